"""A websocket connection by websockets: the fallback where picows is not installed."""

import asyncio
import time
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidURI, WebSocketException
from websockets.frames import Frame, Opcode

from marketprism.worker.wire import MAX_FRAME_BYTES, OnFrame, OnRead, Wire, WireError


async def open_websockets(url: str, on_frame: OnFrame, on_read: OnRead, timeout_s: float) -> Wire:
    """Connect. Raises WireError."""

    def make(*args: Any, **kwargs: Any) -> _Direct:
        return _Direct(*args, on_frame=on_frame, on_read=on_read, **kwargs)

    try:
        connection = await connect(
            url,
            create_connection=make,  # type: ignore[arg-type]  # any callable that makes one will do
            compression=None,
            open_timeout=timeout_s,
            ping_interval=None,  # exchanges ping, and the venue probes a silent connection in its own words
            max_size=MAX_FRAME_BYTES,
            close_timeout=2,
        )
    except (OSError, TimeoutError, InvalidURI, WebSocketException) as e:
        raise WireError(str(e) or type(e).__name__) from e
    return _Websockets(connection, on_frame)


class _Direct(ClientConnection):
    """Hands each whole frame on at the moment it is read, past the library's queue."""

    def __init__(self, *args: Any, on_frame: OnFrame, on_read: OnRead, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._on_frame = on_frame
        self._on_read = on_read
        self._in_fragments = False
        self._read_ns = 0

    def data_received(self, data: bytes) -> None:
        self._read_ns = time.perf_counter_ns()
        super().data_received(data)
        self._on_read()

    def process_event(self, event: Any) -> None:
        """Frames that are a whole message pass at once; fragments are put together by the library."""
        if isinstance(event, Frame) and event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            if event.fin and not self._in_fragments:
                self._on_frame(bytes(event.data), self._read_ns)
                return
            self._in_fragments = not event.fin
        super().process_event(event)


class _Websockets:
    """A connection by websockets."""

    def __init__(self, connection: ClientConnection, on_frame: OnFrame) -> None:
        self._connection = connection
        self._on_frame = on_frame
        self._sending: set[asyncio.Task[None]] = set()

    def send(self, text: str) -> None:
        task = asyncio.ensure_future(self._send(text))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _send(self, text: str) -> None:
        try:
            await self._connection.send(text)
        except ConnectionClosed:
            return  # told by `closed`

    def abort(self) -> None:
        self._connection.transport.abort()

    async def close(self) -> None:
        await self._connection.close()

    async def closed(self) -> str:
        try:
            while True:  # only messages that came in fragments
                self._on_frame(await self._connection.recv(decode=False), time.perf_counter_ns())
        except ConnectionClosed as e:
            return str(e)
