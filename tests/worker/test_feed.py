"""Websocket in, against a real websocket server on loopback."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest
from natsbox import until
from websockets.asyncio.server import ServerConnection, serve

from marketprism.venues.base import Socket
from marketprism.worker import feed as feed_module
from marketprism.worker.feed import Feed
from marketprism.worker.wire_picows import open_picows
from marketprism.worker.wire_websockets import open_websockets


@pytest.fixture(autouse=True, params=[open_picows, open_websockets], ids=["picows", "websockets"])
def _both_libraries(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything holds with either library."""
    monkeypatch.setattr(feed_module, "open_wire", request.param)


class Witness:
    """Takes note of what the feed tells its driver."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str]] = []
        self.frames: list[tuple[str, bytes]] = []
        self.fail_on = b""
        self.reads = 0

    def opened(self, socket: str, conn: str) -> None:
        self.log.append(("opened", conn))

    def received(self, conn: str, data: bytes, read_ns: int) -> None:
        assert read_ns > 0
        if data == self.fail_on:
            raise RuntimeError("a defect of ours")
        self.frames.append((conn, data))

    def read(self) -> None:
        self.reads += 1

    def sent(self, conn: str, text: str) -> None:
        self.log.append(("sent", text))

    def closed(self, conn: str, cause: str) -> None:
        self.log.append(("closed", conn))

    def conns(self, what: str) -> list[str]:
        return [conn for kind, conn in self.log if kind == what]


async def with_feed(
    handler: Callable[[ServerConnection], Awaitable[None]], work: Callable[[Feed, Witness], Awaitable[None]]
) -> None:
    witness = Witness()
    async with serve(handler, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        feed = Feed(Socket("public", f"ws://127.0.0.1:{port}/x"), witness, 0.0)
        task = asyncio.create_task(feed.run())
        try:
            await work(feed, witness)
        finally:
            task.cancel()
            await asyncio.wait([task])


async def say_and_wait(ws: ServerConnection) -> None:
    await ws.send('{"hello":1}')
    await ws.wait_closed()


def test_frames_pass_whole_and_in_order_also_in_fragments() -> None:
    async def handler(ws: ServerConnection) -> None:
        for n in range(3):
            await ws.send(str(n))
        await ws.send(iter(["frag", "ment", "ed"]))
        await ws.send("after")
        await ws.wait_closed()

    async def work(feed: Feed, witness: Witness) -> None:
        await until(lambda: len(witness.frames) == 5)
        assert sorted(d for _, d in witness.frames) == sorted([b"0", b"1", b"2", b"fragmented", b"after"])
        assert [d for _, d in witness.frames][:3] == [b"0", b"1", b"2"]
        assert feed.connected

    asyncio.run(with_feed(handler, work))


def test_it_connects_again_for_ever_with_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "FIRST_BACKOFF_S", 0.01)
    monkeypatch.setattr(feed_module, "LAST_BACKOFF_S", 0.02)

    async def handler(ws: ServerConnection) -> None:
        await ws.send("x")
        ws.transport.abort()

    async def work(feed: Feed, witness: Witness) -> None:
        await until(lambda: feed.reconnections >= 4)
        opened, closed = witness.conns("opened"), witness.conns("closed")
        assert len(set(opened)) == len(opened)  # each connection has a name of its own
        assert opened[: len(closed)] == closed

    asyncio.run(with_feed(handler, work))


def test_a_handover_overlaps() -> None:
    async def work(feed: Feed, witness: Witness) -> None:
        await until(lambda: len(witness.frames) == 1)
        first = witness.conns("opened")[0]
        feed.replace(first, "notice 64008", overlap=True)
        await until(lambda: witness.conns("closed") == [first], 15)
        second = witness.conns("opened")[1]
        assert [c for c, _ in witness.frames] == [first, second]
        # The second was open, and delivering, before the first was closed.
        assert witness.log.index(("opened", second)) < witness.log.index(("closed", first))
        assert feed.reconnections == 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feed_module, "OVERLAP_S", 0.2)
        asyncio.run(with_feed(say_and_wait, work))


def test_it_leaves_before_the_exchange_cuts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "ROTATE_AFTER_S", (0.1, 0.2))
    monkeypatch.setattr(feed_module, "OVERLAP_S", 0.05)

    async def work(feed: Feed, witness: Witness) -> None:
        await until(lambda: len(witness.conns("closed")) >= 3)
        opened = witness.conns("opened")
        for n, conn in enumerate(witness.conns("closed")[:3]):
            assert witness.log.index(("opened", opened[n + 1])) < witness.log.index(("closed", conn))

    asyncio.run(with_feed(say_and_wait, work))


def test_a_replacement_without_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "FIRST_BACKOFF_S", 0.01)

    async def work(feed: Feed, witness: Witness) -> None:
        await until(lambda: len(witness.frames) == 1)
        feed.replace(witness.conns("opened")[0], "no answer to a keepalive", overlap=False)
        await until(lambda: len(witness.frames) == 2)
        assert witness.conns("closed") == witness.conns("opened")[:1]

    asyncio.run(with_feed(say_and_wait, work))


def test_messages_of_ours_are_paced_and_told() -> None:
    got: list[str] = []

    async def handler(ws: ServerConnection) -> None:
        await ws.send("ready")
        while len(got) < 3:
            got.append(str(await ws.recv()))
        await ws.wait_closed()

    async def work(feed: Feed, witness: Witness) -> None:
        await until(lambda: len(witness.frames) == 1)
        conn = witness.conns("opened")[0]
        for n in range(3):
            feed.send(conn, json.dumps(n))
        feed.send("another connection", "nothing")
        await until(lambda: len(got) == 3)
        assert got == ["0", "1", "2"]
        assert witness.conns("sent") == got

    asyncio.run(with_feed(handler, work))


def test_a_defect_of_ours_begins_the_connection_anew(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(feed_module, "FIRST_BACKOFF_S", 0.01)

    async def handler(ws: ServerConnection) -> None:
        await ws.send("good")
        await ws.send("bad")
        await ws.wait_closed()

    async def work(feed: Feed, witness: Witness) -> None:
        witness.fail_on = b"bad"
        await until(lambda: len(witness.conns("opened")) >= 2)
        assert witness.conns("closed")[0] == witness.conns("opened")[0]

    asyncio.run(with_feed(handler, work))
    assert "internal error on a frame" in caplog.text
    assert "a defect of ours" in caplog.text


def test_nobody_there_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(feed_module, "FIRST_BACKOFF_S", 0.01)
    monkeypatch.setattr(feed_module, "LAST_BACKOFF_S", 0.01)

    async def work() -> None:
        feed = Feed(Socket("public", "ws://127.0.0.1:1/x"), Witness(), 0.0)
        task = asyncio.create_task(feed.run())
        await until(lambda: feed.reconnections >= 3)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(work())
    lines = [r for r in caplog.records if r.levelname == "WARNING"]
    assert len(lines) == 1
    assert "ws://127.0.0.1:1/x: cannot connect" in lines[0].getMessage()
    assert "Traceback" not in caplog.text
