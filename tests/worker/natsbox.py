"""What tests need around a nats-server: patience, and a cable to it that can be cut."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from chaos.natsbox import NatsBox, free_port, nats_server

__all__ = ["Cable", "NatsBox", "free_port", "nats_server", "until"]


async def until(condition: Callable[[], bool], timeout_s: float = 10.0, what: str = "condition") -> None:
    """Return once the condition holds; AssertionError if it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s"
        await asyncio.sleep(0.005)


class Cable:
    """A TCP relay to the server. It can lose the replies, pass only so many bytes, and be cut."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self.port = free_port()
        self.deaf = False
        """Replies are read and thrown away."""
        self.passed_bytes = 0
        self.limit_bytes: int | None = None
        """What goes beyond is thrown away on the way to the server."""

    @property
    def url(self) -> str:
        """Address of the near end."""
        return f"nats://127.0.0.1:{self.port}"

    async def plug(self) -> None:
        """Accept connections."""
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", self.port)

    async def cut(self) -> None:
        """Break every connection and accept no more."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _relay(self, near_reader: asyncio.StreamReader, near_writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        self._writers += [near_writer, far_writer]
        await asyncio.gather(self._up(near_reader, far_writer), self._down(far_reader, near_writer))

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if self.limit_bytes is not None:
                    data = data[: max(0, self.limit_bytes - self.passed_bytes)]
                self.passed_bytes += len(data)
                writer.write(data)
            writer.close()

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if not self.deaf:
                    writer.write(data)
            writer.close()
