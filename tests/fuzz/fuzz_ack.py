"""Acknowledgements: whatever a reply to a publish says, each message is acknowledged, given up or kept.

An input is a list of lines. The first byte of a line chooses the message, the second whether the reply has headers;
the rest is its body.
"""

import asyncio
from collections.abc import Iterator
from typing import Any

from marketprism.worker.outbox import OVERHEAD_BYTES, Message
from marketprism.worker.publisher import Publisher, PublisherOptions

_MESSAGES = 8
_loop = asyncio.new_event_loop()


class _Nowhere:
    """A connection that takes everything and says nothing."""

    connected = True

    def write(self, frames: bytes) -> None:
        assert frames.endswith(b"\r\n")


def one(data: bytes) -> None:
    """Answer eight messages."""
    _loop.run_until_complete(_one(data.split(b"\n")[:200]))


async def _one(lines: list[bytes]) -> None:
    publisher: Any = Publisher(PublisherOptions(("nats://127.0.0.1:4",), "fuzz"), lambda _: None)
    publisher._link, publisher._open, publisher._window = _Nowhere(), True, 1000
    publisher._max_payload_bytes = 1 << 20
    for n in range(_MESSAGES):
        assert publisher.publish(
            Message(f"trade.okx.spot.S{n % 2}", f"id:{n}", b"{}", False, n, 0), more=True
        )
    publisher.flush()
    for line in lines:
        headers = b"NATS/1.0 503\r\n\r\n" if line[1:2] == b"h" else None
        publisher._on_ack(line[0] % (_MESSAGES + 2) if line else 0, line[2:], headers)
        counters = publisher.counters
        assert publisher.unacknowledged + counters.acknowledged + counters.refused == _MESSAGES
        assert publisher.backlog_bytes == publisher.unacknowledged * (2 + OVERHEAD_BYTES)
        assert len(publisher.last_error) <= 1_000, "an error without bound"
        assert len(counters.errors) <= 10, "kinds of errors without bound"


def seeds() -> Iterator[bytes]:
    """No recording holds acknowledgements."""
    return iter(())
