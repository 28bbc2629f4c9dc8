"""Websocket in: connect, keep one connection of a socket, replace it before it is cut, back off."""

import asyncio
import logging
import random
import time
from collections import deque
from typing import Protocol

from marketprism.logs import RateLimitedLog
from marketprism.venues.base import Socket
from marketprism.worker.wire import Wire, WireError, open_wire

log = logging.getLogger(__name__)

OPEN_TIMEOUT_S = 15.0
FIRST_BACKOFF_S = 0.5
LAST_BACKOFF_S = 30.0
HEALTHY_S = 60.0  # a connection that lived this long starts the back-off anew
# Binance cuts after 24 h; each connection leaves at another moment before that.
ROTATE_AFTER_S = (22.5 * 3600, 23.5 * 3600)
OVERLAP_S = 5.0  # how long both connections deliver while one replaces the other


class Driver(Protocol):
    """Who is told what happens on a socket."""

    def opened(self, socket: str, conn: str) -> None: ...

    def received(self, conn: str, data: bytes, read_ns: int) -> None: ...

    def read(self) -> None: ...

    def sent(self, conn: str, text: str) -> None: ...

    def closed(self, conn: str, cause: str) -> None: ...


class _Connection:
    """One connection from its first attempt to its end."""

    def __init__(self, name: str, socket: Socket, driver: Driver, send_interval_s: float) -> None:
        self.name = name
        self.opened = asyncio.Event()
        self._socket = socket
        self._driver = driver
        self._send_interval_s = send_interval_s
        self._outgoing: asyncio.Queue[str] = asyncio.Queue()
        self._early: deque[tuple[bytes, int]] = deque()
        self._cause = ""
        self._ended = False
        self._wire: Wire | None = None

    async def run(self) -> str:
        """Connect and serve until the connection ends; returns why. Raises WireError."""
        wire = await open_wire(self._socket.url, self._on_frame, self._driver.read, OPEN_TIMEOUT_S)
        self._wire = wire
        self._driver.opened(self._socket.name, self.name)
        self.opened.set()
        sender = asyncio.create_task(self._send_all(wire))
        try:
            while self._early:
                self._on_frame(*self._early.popleft())
            why = await wire.closed()
            return self._cause or why
        finally:
            sender.cancel()
            self._ended = True
            wire.abort()
            self._driver.closed(self.name, self._cause or "closed by the exchange")

    def send(self, text: str) -> None:
        """Send soon, at the pace the exchange allows."""
        self._outgoing.put_nowait(text)

    async def close(self, cause: str) -> None:
        """End the connection."""
        self._cause = self._cause or cause
        if self._wire is not None:
            await self._wire.close()

    def _on_frame(self, data: bytes, read_ns: int) -> None:
        if not self.opened.is_set():
            self._early.append((data, read_ns))
            return
        if self._ended:  # what was still under way when the connection was given up
            return
        try:
            self._driver.received(self.name, data, read_ns)
        except Exception:
            # A defect of ours: told in full, and this connection begun anew, so that no state is trusted after it.
            log.exception("internal error on a frame of %s: %r", self.name, data[:200])
            self._cause = "internal error"
            self._ended = True
            if self._wire is not None:
                self._wire.abort()

    async def _send_all(self, wire: Wire) -> None:
        while True:
            text = await self._outgoing.get()
            wire.send(text)
            self._driver.sent(self.name, text)
            await asyncio.sleep(self._send_interval_s)


class Feed:
    """Keeps one socket of a venue connected, for ever."""

    def __init__(self, socket: Socket, driver: Driver, send_interval_s: float) -> None:
        self.socket = socket
        self.reconnections = 0
        self._driver = driver
        self._send_interval_s = send_interval_s
        self._log = RateLimitedLog(log)
        self._connections: dict[str, _Connection] = {}
        self._replacing: asyncio.Event = asyncio.Event()
        self._serial = 0
        self._began = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}"

    @property
    def connected(self) -> bool:
        """Whether a connection is open."""
        return any(c.opened.is_set() for c in self._connections.values())

    def send(self, conn: str, text: str) -> None:
        """Send on a connection; nothing where it is gone."""
        connection = self._connections.get(conn)
        if connection is not None:
            connection.send(text)

    def replace(self, conn: str, cause: str, overlap: bool) -> None:
        """Get a new connection; the old one goes at once, or when the new one delivers (`overlap`)."""
        connection = self._connections.get(conn)
        if connection is None:
            return
        self._log.info("replace", "%s: replacing the connection: %s", conn, cause, event="reconnect")
        if overlap:
            self._replacing.set()
        else:
            task = asyncio.create_task(connection.close(cause))
            task.add_done_callback(lambda t: t.exception() if not t.cancelled() else None)

    async def run(self) -> None:
        """Connect, serve, connect again; returns only by cancellation."""
        backoff_s, failing_since = FIRST_BACKOFF_S, None
        current: asyncio.Task[str] | None = None
        try:
            while True:
                began = time.monotonic()
                if current is None:
                    current = self._start()
                current, error = await self._serve(current)
                if current is not None:
                    continue  # handed over to a new connection
                now = time.monotonic()
                if now - began >= HEALTHY_S:
                    backoff_s, failing_since = FIRST_BACKOFF_S, None
                failing_since = now if failing_since is None else failing_since
                self.reconnections += 1
                self._log.warning(
                    "lost",
                    "%s: %s; trying for %.0f s, next in about %.1f s",
                    self.socket.url,
                    error,
                    now - failing_since,
                    backoff_s,
                    event="disconnect",
                )
                await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))
                backoff_s = min(2 * backoff_s, LAST_BACKOFF_S)
        finally:
            if current is not None:
                current.cancel()
                await asyncio.wait([current])

    def _start(self) -> asyncio.Task[str]:
        """Begin a connection with a name of its own."""
        self._serial += 1
        name = f"{self.socket.url}#{self.socket.name}.{self._began}.{self._serial}"
        connection = _Connection(name, self.socket, self._driver, self._send_interval_s)
        self._connections[name] = connection
        task = asyncio.create_task(connection.run(), name=name)
        task.add_done_callback(lambda _: self._connections.pop(name, None))
        return task

    async def _serve(self, task: asyncio.Task[str]) -> tuple[asyncio.Task[str] | None, str]:
        """Serve until the connection ends (None, why) or another has taken over (its task, "")."""
        self._replacing.clear()
        lifetime_s = random.uniform(*ROTATE_AFTER_S)
        replacing = asyncio.create_task(self._replacing.wait())
        try:
            await asyncio.wait([task, replacing], timeout=lifetime_s, return_when=asyncio.FIRST_COMPLETED)
            while not task.done():
                successor = await self._hand_over(task)
                if successor is not None:
                    return successor, ""
                await asyncio.wait(
                    [task], timeout=LAST_BACKOFF_S
                )  # it did not come up: keep the old one, try again
        finally:
            replacing.cancel()
        return None, _why(task)

    async def _hand_over(self, task: asyncio.Task[str]) -> asyncio.Task[str] | None:
        """Open a second connection, let both deliver for a while, close the first. None if the second failed."""
        successor = self._start()
        connection = self._connections[successor.get_name()]
        opened = asyncio.create_task(connection.opened.wait())
        try:
            await asyncio.wait(
                [successor, opened], timeout=OPEN_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            opened.cancel()
        if successor.done() or not connection.opened.is_set():
            successor.cancel()
            return None
        await asyncio.wait([successor, task], timeout=OVERLAP_S, return_when=asyncio.FIRST_COMPLETED)
        if successor.done():
            return None
        old = self._connections.get(task.get_name())
        if old is not None:
            await old.close("replaced")
        return successor


def _why(task: asyncio.Task[str]) -> str:
    """Why a connection ended, in one line."""
    if task.cancelled():
        return "cancelled"
    error = task.exception()
    if error is None:
        return task.result()
    if isinstance(error, WireError):
        return f"cannot connect: {error}"
    log.error("internal error of a connection", exc_info=error)
    return f"internal error: {error}"
