"""In the machine: what the stream holds, but for snapshots, into a file of (subject, payload) for the host's judge."""

import asyncio
import pickle
import sys
from pathlib import Path

import nats
from nats.js.api import AckPolicy, ConsumerConfig


async def messages() -> list[tuple[str, bytes]]:
    """In the order of the stream, up to the newest of this moment."""
    client = await nats.connect("nats://127.0.0.1:4222")
    js = client.jetstream()
    consumer = await js.add_consumer(
        "MARKET_DATA", ConsumerConfig(ack_policy=AckPolicy.NONE, mem_storage=True)
    )
    subscription = await js.pull_subscribe_bind(stream="MARKET_DATA", consumer=consumer.name)
    left, found = consumer.num_pending or 0, []
    while left > 0:
        batch = await subscription.fetch(min(1000, left), timeout=20)
        left -= len(batch)
        found += [(m.subject, m.data) for m in batch if not m.subject.startswith("orderbook.")]
    await client.close()
    return found


if __name__ == "__main__":
    part = Path(sys.argv[1] + ".part")
    part.write_bytes(pickle.dumps(asyncio.run(messages())))
    part.rename(sys.argv[1])
