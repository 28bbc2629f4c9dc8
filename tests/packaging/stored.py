"""In the machine: trades, books and gaps of the stream into a file, as (subject, payload), for the judge."""

import asyncio
import pickle
import sys
from pathlib import Path

import nats
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig

BATCH = 100  # in one go a slow machine would take longer than the server waits for it
Found = list[tuple[int, str, bytes]]


async def read(js: JetStreamContext, subject: str) -> Found:
    """Number in the stream, subject and payload of what it holds at this moment."""
    config = ConsumerConfig(filter_subject=subject, ack_policy=AckPolicy.NONE, mem_storage=True)
    consumer = await js.add_consumer("MARKET_DATA", config)
    subscription = await js.pull_subscribe_bind(stream="MARKET_DATA", consumer=consumer.name)
    left, found = consumer.num_pending or 0, Found()
    while len(found) < left:
        batch = await subscription.fetch(min(BATCH, left - len(found)), timeout=60)
        found += [(m.metadata.sequence.stream, m.subject, m.data) for m in batch]
    return found


async def main(target: Path) -> None:
    """Not the snapshots, which are most of the bytes. Gaps last: what they explain has been read by then."""
    client = await nats.connect("nats://127.0.0.1:4222")
    found = Found()
    for kind in ("trade", "orderbook_delta", "gap"):
        found += await read(client.jetstream(), f"{kind}.>")
    part = target.with_suffix(".part")
    part.write_bytes(pickle.dumps([(subject, body) for _, subject, body in sorted(found)]))
    part.rename(target)
    await client.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
