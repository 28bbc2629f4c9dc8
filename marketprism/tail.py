"""`marketprism tail`: print what is published, as it comes."""

import asyncio
import sys

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from marketprism.config import NatsSettings
from marketprism.worker.options import publisher_options


async def run(settings: NatsSettings, subject: str, count: int | None) -> int:
    """Print `subject payload` for each message until told to stop. Returns the exit status."""
    options = publisher_options(settings, "tail")
    client = Client()
    done = asyncio.Event()
    seen = 0

    async def show(message: Msg) -> None:
        nonlocal seen
        seen += 1
        sys.stdout.write(f"{message.subject} {message.data.decode('utf-8', 'replace')}\n")
        sys.stdout.flush()
        if seen == count:
            done.set()

    try:
        await client.connect(
            servers=list(options.servers),
            name=options.client_name,
            allow_reconnect=False,
            **options.connect_options,
        )
        await client.subscribe(subject, cb=show)
    except (OSError, TimeoutError, nats.errors.Error) as e:
        servers = ", ".join(options.servers)
        print(f"marketprism tail: no NATS at {servers}: {e or type(e).__name__}", file=sys.stderr)
        return 1
    try:
        await done.wait()
    finally:
        await client.close()
    return 0
