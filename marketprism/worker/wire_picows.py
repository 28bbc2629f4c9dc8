"""A websocket connection by picows."""

import asyncio
import time
from typing import Any

import picows

from marketprism.worker.wire import MAX_FRAME_BYTES, OnFrame, OnRead, Wire, WireError

_TEXT, _BINARY = picows.WSMsgType.TEXT, picows.WSMsgType.BINARY
_CONTINUATION, _CLOSE = picows.WSMsgType.CONTINUATION, picows.WSMsgType.CLOSE


async def open_picows(url: str, on_frame: OnFrame, on_read: OnRead, timeout_s: float) -> Wire:
    """Connect. Compression is not negotiated; a ping of the server is answered. Raises WireError."""
    listener = _Listener(on_frame, on_read)
    try:
        async with asyncio.timeout(timeout_s):
            transport, _ = await picows.ws_connect(
                lambda: listener,
                url,
                websocket_handshake_timeout=timeout_s,
                max_frame_size=MAX_FRAME_BYTES,
                enable_auto_pong=True,
            )
    except (OSError, TimeoutError, picows.WSError) as e:
        raise WireError(str(e) or type(e).__name__) from e
    return _Picows(transport, listener)


class _Listener(picows.WSListener):
    """Hands frames on; puts fragments together."""

    def __init__(self, on_frame: OnFrame, on_read: OnRead) -> None:
        self.close_reason = ""
        self._on_frame = on_frame
        self._on_read = on_read
        self._read_ns = 0
        self._parts = bytearray()  # of a message in several frames

    def on_ws_frame(self, transport: Any, frame: Any) -> None:
        """A frame; several of them may come of one read."""
        if not self._read_ns:
            self._read_ns = time.perf_counter_ns()
        kind = frame.msg_type
        if kind is _TEXT or kind is _BINARY or kind is _CONTINUATION:
            data = frame.get_payload_as_bytes()
            if frame.fin and not self._parts:
                self._on_frame(data, self._read_ns)
            else:
                self._gather(transport, data, frame.fin)
        elif kind is _CLOSE:
            self.close_reason = f"{frame.get_close_code()} {frame.get_close_reason()}"
            transport.send_close(frame.get_close_code())
            transport.disconnect()
        if frame.last_in_buffer:
            self._read_ns = 0
            self._on_read()

    def _gather(self, transport: Any, data: bytes, fin: bool) -> None:
        self._parts += data
        if len(self._parts) > MAX_FRAME_BYTES:
            self.close_reason = f"a message of more than {MAX_FRAME_BYTES} bytes"
            transport.disconnect(graceful=False)
        elif fin:
            whole, self._parts = bytes(self._parts), bytearray()
            self._on_frame(whole, self._read_ns)


class _Picows:
    """A connection by picows."""

    def __init__(self, transport: Any, listener: _Listener) -> None:
        self._transport = transport
        self._listener = listener

    def send(self, text: str) -> None:
        if not self._transport.is_disconnected:
            self._transport.send(_TEXT, text.encode())

    def abort(self) -> None:
        self._transport.disconnect(graceful=False)

    async def close(self) -> None:
        if not self._transport.is_disconnected:
            self._transport.send_close(picows.WSCloseCode.OK)
            self._transport.disconnect()
        try:
            async with asyncio.timeout(2):
                await self.closed()
        except TimeoutError:
            self.abort()

    async def closed(self) -> str:
        try:
            await asyncio.shield(asyncio.ensure_future(self._transport.wait_disconnected()))
        except (OSError, picows.WSError) as e:
            return str(e) or type(e).__name__
        return self._listener.close_reason or "the connection ended"
