"""One websocket connection, as bytes in and text out.

picows parses frames in C: where messages come one by one, a good third of the time between reading the socket and
having the message is spared (docs/performance.md). Where it is not installed, websockets does the same job.
"""

from collections.abc import Callable
from typing import Protocol

MAX_FRAME_BYTES = 32 << 20

OnFrame = Callable[[bytes, int], None]
OnRead = Callable[[], None]


class WireError(Exception):
    """A connection could not be opened; the message says why."""


class Wire(Protocol):
    """An open connection.

    Frames are handed to `on_frame(data, read_ns)` at the moment they are read, without a queue in between;
    `on_read()` follows when all of one read has been handed on. `read_ns` is `time.perf_counter_ns()`.
    """

    def send(self, text: str) -> None:
        """Send a text message; nothing where the connection is gone."""

    def abort(self) -> None:
        """Drop the connection at once."""

    async def close(self) -> None:
        """End the connection in good order, in two seconds at most."""

    async def closed(self) -> str:
        """Wait for the end; why it ended."""


async def open_wire(url: str, on_frame: OnFrame, on_read: OnRead, timeout_s: float) -> Wire:
    """Connect. Raises WireError."""
    try:
        from marketprism.worker.wire_picows import open_picows as opener
    except ImportError:
        from marketprism.worker.wire_websockets import open_websockets as opener
    return await opener(url, on_frame, on_read, timeout_s)
