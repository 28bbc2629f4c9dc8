"""`marketprism tail`: print what is published, as it comes."""

import asyncio
import sys

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from marketprism.config import NatsSettings
from marketprism.worker.options import publisher_options

CONNECT_S = 5.0


async def run(settings: NatsSettings, subject: str, count: int | None) -> int:
    """Print `subject payload` for each message until told to stop. Returns the exit status."""
    options = publisher_options(settings, "tail")
    servers = ", ".join(options.servers)
    client = Client()
    done = asyncio.Event()
    lost = asyncio.Event()
    seen = 0
    why: Exception | None = None

    async def show(message: Msg) -> None:
        nonlocal seen
        if done.is_set():
            return
        seen += 1
        sys.stdout.write(f"{message.subject} {message.data.decode('utf-8', 'replace')}\n")
        sys.stdout.flush()
        if seen == count:
            done.set()

    async def ended() -> None:
        lost.set()
        done.set()

    async def note(error: Exception) -> None:
        nonlocal why
        why = error

    try:
        async with asyncio.timeout(CONNECT_S):  # nats-py goes on trying for longer than a person waits
            await client.connect(
                servers=list(options.servers),
                name=options.client_name,
                allow_reconnect=False,
                error_cb=note,
                closed_cb=ended,
                **options.connect_options,
            )
            await client.subscribe(subject, cb=show)
    except (OSError, TimeoutError, nats.errors.Error) as e:
        print(f"marketprism tail: no NATS at {servers}: {why or e or type(e).__name__}", file=sys.stderr)
        return 1
    await done.wait()
    if lost.is_set():
        print(f"marketprism tail: the connection to NATS at {servers} was lost", file=sys.stderr)
        return 1
    await client.close()
    return 0
