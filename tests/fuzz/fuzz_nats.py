"""The NATS protocol: a server on a real socket that says anything, and a publisher that must live on.

An input is a list of chunks, split at a form feed. The first one greets; where it is empty, a good greeting does. Of
the others one is sent whenever something is heard of the client. One that begins with `%` waits for a request, and
answers it with the rest of the chunk as a body. Then the server hangs up.
"""

import asyncio
import re
from collections.abc import Iterator
from contextlib import suppress

from marketprism.worker import nats_link, stream
from marketprism.worker.outbox import Message
from marketprism.worker.publisher import Publisher, PublisherOptions
from marketprism.worker.stream import StreamOptions, ensure_stream

_GREETING = b'INFO {"server_id":"S","version":"2.10.0","max_payload":1048576,"headers":true}\r\n'
_SUB = re.compile(rb"^SUB (\S+)\.\* +(\d+)\r$", re.MULTILINE)
_REQUEST = re.compile(rb"^H?PUB \S+ (\S+) [\d ]+\r$", re.MULTILINE)
_STREAM = StreamOptions(subjects=("trade.>",))
_SILENCE_S = 0.03
stream.TIMEOUT_S = nats_link.REQUEST_TIMEOUT_S = 0.1  # who hangs up answers no more
_loop = asyncio.new_event_loop()


class _Server:
    """Says its piece once, then hangs up; later connections are closed at once."""

    def __init__(self, chunks: list[bytes]) -> None:
        self._greeting, self._chunks = chunks[0] or _GREETING, chunks[1:]
        self._served = False
        self.done = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._served:
            writer.close()
            return
        self._served = True
        with suppress(OSError):
            await self._talk(reader, writer)
        writer.close()
        self.done.set()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self._greeting)
        sids: dict[bytes, bytes] = {}
        while self._chunks:
            try:
                async with asyncio.timeout(_SILENCE_S):
                    heard = await reader.read(1 << 16)
            except TimeoutError:
                heard = b""
            sids |= dict(_SUB.findall(heard))
            writer.write(b"PONG\r\n" * heard.count(b"PING\r\n"))
            requests = _REQUEST.findall(heard)
            if self._chunks[0][:1] != b"%":
                writer.write(self._chunks.pop(0))
            elif requests:
                sid = sids.get(requests[0].rpartition(b".")[0], b"1")
                writer.write(_message(requests[0], sid, self._chunks.pop(0)[1:]))
            elif not heard:
                return
        await writer.drain()


def _message(subject: bytes, sid: bytes, body: bytes) -> bytes:
    return b"MSG %b %b %d\r\n%b\r\n" % (subject, sid, len(body), body)


def one(data: bytes) -> None:
    """One conversation."""
    _loop.run_until_complete(_one(data.split(b"\f")[:12]))


async def _one(chunks: list[bytes]) -> None:
    script = _Server(chunks)
    server = await asyncio.start_server(script.serve, "127.0.0.1", 0)
    url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    options = PublisherOptions((url,), "fuzz", reconnect_time_wait_s=0.01, ack_timeout_s=0.2)
    publisher = Publisher(options, lambda _: None, prepare=lambda client: ensure_stream(client, _STREAM))
    publisher.publish(Message("trade.okx.spot.S", "id:1", b"{}", False, 1, 0))
    try:
        async with asyncio.timeout(30):
            await publisher.connect()
            await script.done.wait()
            while publisher.connected:  # noqa: ASYNC110 - it tells nobody when it loses a connection
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.002)
        assert publisher.alive, f"the publisher ended: {publisher.last_error}"
        assert publisher.unacknowledged + publisher.counters.acknowledged + publisher.counters.refused == 1
        assert len(publisher.last_error) <= 1_000, "an error without bound"
        assert publisher.last_error.isprintable(), "not one line"
    finally:
        await publisher.close()
        server.close()


def seeds() -> Iterator[bytes]:
    """No recording holds the NATS protocol."""
    return iter(())
