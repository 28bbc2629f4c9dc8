"""The least that can be done: each websocket message is read by picows and goes to JetStream as it is.

The other half of `scripts/bench floor`. Arguments: `raw` or `nats-py`, a configuration that leads to the simulator,
the exchange, NATS's address. Commands on stdin: `start` subscribes to what the worker subscribes to; `read` tells
messages, acknowledgements and CPU time so far; `stop` closes the websockets.
"""

import asyncio
import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import nats
import picows
import uvloop
from nats.js.api import StorageType, StreamConfig
from nats.js.client import JetStreamContext

from marketprism.config import ExchangeSettings, load
from marketprism.venues import VENUES
from marketprism.venues.base import Fetch, Send
from marketprism.venues.venue import Venue
from marketprism.worker.nats_link import Link
from marketprism.worker.options import venue_options
from marketprism.worker.publisher import FRAME, HEADER_BYTES

WINDOW = 1000
STREAM = StreamConfig(
    name="FLOOR",
    subjects=["floor"],
    storage=StorageType.FILE,
    max_bytes=2 * 1024**3,
    duplicate_window=120,
)


class Sink(Protocol):
    """Where messages go. `acknowledged` counts."""

    acknowledged: int

    def take(self, data: bytes) -> None:
        """One message."""

    def flush(self) -> None:
        """That was all of one read of the socket."""


class Raw:
    """Frames of the NATS protocol, written once a read through the publisher's own kind of connection."""

    def __init__(self) -> None:
        self.acknowledged = 0
        self._taken = self._written = 0
        self._waiting: list[bytes] = []
        self._link = Link(self._on_acks, self._on_ack, lambda: sys.exit("NATS is gone"), sys.exit)

    async def open(self, url: str) -> None:
        await self._link.open([url], "floor", {})

    def take(self, data: bytes) -> None:
        self._taken += 1
        ident = b"%d" % self._taken
        header = HEADER_BYTES + len(ident)
        prefix = self._link.reply_prefix
        self._waiting += (
            FRAME % (b"floor", prefix, self._taken, header, header + len(data), ident),
            data,
            b"\r\n",
        )

    def flush(self) -> None:
        if self._waiting and self._written - self.acknowledged < WINDOW:
            self._link.write(b"".join(self._waiting))
            self._waiting.clear()
            self._written = self._taken

    def _on_acks(self, tokens: Sequence[int]) -> None:
        self.acknowledged += len(tokens)
        self.flush()

    def _on_ack(self, token: int, body: bytes, headers: bytes | None) -> None:
        self._on_acks((token,))


class NatsPy:
    """nats-py's own `publish_async`, with as many unacknowledged as our publisher allows."""

    def __init__(self, stream: JetStreamContext) -> None:
        self.acknowledged = 0
        self._taken = 0
        self._stream = stream
        self._queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._task = asyncio.create_task(self._publish())

    def take(self, data: bytes) -> None:
        self._queue.put_nowait(data)

    def flush(self) -> None:
        pass

    async def _publish(self) -> None:
        while True:
            data = await self._queue.get()
            self._taken += 1
            headers = {"Nats-Msg-Id": str(self._taken)}
            future = await self._stream.publish_async("floor", data, headers=headers)
            future.add_done_callback(self._on_ack)

    def _on_ack(self, future: "asyncio.Future[Any]") -> None:
        future.result()
        self.acknowledged += 1


class Listener(picows.WSListener):
    """Hands each message on."""

    def __init__(self, sink: Sink, count: Callable[[int], None]) -> None:
        self._sink = sink
        self._count = count

    def on_ws_frame(self, transport: Any, frame: Any) -> None:
        if frame.msg_type is picows.WSMsgType.TEXT:
            data = frame.get_payload_as_bytes()
            self._count(len(data))
            self._sink.take(data)
        if frame.last_in_buffer:
            self._sink.flush()


class Floor:
    """The websockets of one worker, and how much came over them."""

    def __init__(self, venue: Venue, sink: Sink) -> None:
        self.messages = 0
        self.bytes = 0
        self.sink = sink
        self._venue = venue
        self._transports: list[Any] = []

    def count(self, size: int) -> None:
        self.messages += 1
        self.bytes += size

    async def start(self) -> None:
        """The same sockets and subscriptions as the venue's."""
        for number, socket in enumerate(self._venue.sockets()):
            transport, _ = await picows.ws_connect(
                lambda: Listener(self.sink, self.count), socket.url, enable_auto_pong=True
            )
            self._transports.append(transport)
            conn = f"{socket.name}.{time.time_ns()}.{number}"
            for request in self._venue.opened(socket.name, conn, time.time_ns()):
                if isinstance(request, Send):
                    transport.send(picows.WSMsgType.TEXT, request.text.encode())

    def stop(self) -> None:
        while self._transports:
            self._transports.pop().disconnect()

    def figures(self) -> dict[str, int]:
        return {
            "messages": self.messages,
            "bytes": self.bytes,
            "acknowledged": self.sink.acknowledged,
            "cpu_ns": time.process_time_ns(),
        }


async def ready_venue(settings: ExchangeSettings) -> Venue:
    """A venue that knows its instruments, and so its sockets."""
    venue = VENUES[settings.name](venue_options(settings))
    async with aiohttp.ClientSession(settings.base_url) as session:
        for fetch in venue.start(time.time_ns()):
            assert isinstance(fetch, Fetch)
            async with session.get(fetch.path) as answer:
                venue.response(fetch, answer.status, await answer.read(), time.time_ns())
    return venue


async def main(variant: str, config: str, exchange: str, url: str) -> None:
    """See the head of the file."""
    client = await nats.connect(url)
    stream = client.jetstream(publish_async_max_pending=WINDOW)
    await stream.add_stream(STREAM)
    sink: Raw | NatsPy
    if variant == "raw":
        sink = Raw()
        await sink.open(url)
    else:
        sink = NatsPy(stream)
    floor = Floor(await ready_venue(load(Path(config)).settings.exchanges[exchange]), sink)
    gc.collect()
    gc.freeze()
    commands: asyncio.Queue[str] = asyncio.Queue()
    asyncio.get_running_loop().add_reader(0, lambda: commands.put_nowait(sys.stdin.readline()))
    while command := (await commands.get()).strip():
        if command == "start":
            await floor.start()
        elif command == "stop":
            floor.stop()
        print(json.dumps(floor.figures()), flush=True)


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
