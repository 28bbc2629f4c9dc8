"""One connection to a real nats-server: how it ends, and that whoever waits for it is told."""

import asyncio
import gc
import logging
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from natsbox import Cable, NatsBox, nats_server, until

from marketprism.worker import nats_link
from marketprism.worker.nats_link import Link, LinkError

pytestmark = pytest.mark.skipif(nats_server() is None, reason="nats-server is not installed")


@pytest.fixture
def box(tmp_path: Path) -> Iterator[NatsBox]:
    with NatsBox(tmp_path) as server:
        yield server


class Watch:
    """What a link tells."""

    def __init__(self) -> None:
        self.lost = 0
        self.errors: list[str] = []

    def on_lost(self) -> None:
        self.lost += 1


def ignore(*_: object) -> None:
    """An answer that nobody waits for."""


async def linked(url: str, watch: Watch, on_acks: Any = ignore, on_ack: Any = ignore) -> Link:
    link = Link(on_acks, on_ack, watch.on_lost, watch.errors.append)
    await link.open([url], "test", {})
    return link


def play(scene: Callable[[], Awaitable[None]]) -> None:
    """As a worker runs: its loop refuses to write to a transport that is closed, where asyncio's says nothing."""
    unhandled: list[dict[str, Any]] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
        await scene()

    uvloop.run(run())
    assert unhandled == []


def test_a_connection_that_breaks_while_something_waits_to_be_written_is_told(
    box: NatsBox, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        watch = Watch()
        link = await linked(box.url, watch)
        client: Any = link.client
        client._pending.append(b"PING\r\n")
        client._pending_data_size += 6
        client._transport._io_writer.transport.abort()
        await until(lambda: watch.lost > 0, what="told")
        assert not link.connected
        await link.close()

    play(run)
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "other"])
def test_a_defect_of_ours_on_an_answer_is_told_and_ends_the_connection(
    box: NatsBox, caplog: pytest.LogCaptureFixture, plain: bool
) -> None:
    def broken(*_: object) -> None:
        raise OSError("our own defect")  # a kind that is also the network's

    async def run() -> None:
        watch = Watch()
        link = await linked(box.url, watch, broken, broken)
        answer = b'{"stream":"S","seq":1}' if plain else b'{"stream":"S","seq":1,"duplicate":true}'
        # NATS hands what we publish to the subscription of acknowledgements back to us.
        link.write(b"PUB %b7 %d\r\n%b\r\n" % (link.reply_prefix, len(answer), answer))
        await until(lambda: watch.lost > 0, what="told")
        assert not link.connected
        assert "internal error" in link.loss
        await link.close()

    play(run)
    assert [r.getMessage() for r in caplog.records] == ["internal error on an answer of NATS"]
    assert caplog.records[0].exc_info is not None
    assert "our own defect" in caplog.text


@pytest.mark.parametrize("question", ["request", "ping"])
def test_who_waits_for_an_answer_is_told_when_the_connection_is_lost(
    box: NatsBox, monkeypatch: pytest.MonkeyPatch, question: str
) -> None:
    monkeypatch.setattr(nats_link, "REQUEST_TIMEOUT_S", 1000.0)

    async def run() -> None:
        cable = Cable(int(box.url.rsplit(":", 1)[1]))
        await cable.plug()
        watch = Watch()
        link = await linked(cable.url, watch)
        cable.deaf = True
        passed = cable.passed_bytes
        asking: asyncio.Future[Any] = asyncio.ensure_future(
            link.last_message("S", "trade.a") if question == "request" else link.answers(1000.0)
        )
        await until(lambda: cable.passed_bytes > passed, what="asked")
        await cable.cut()
        await asyncio.wait([asking], timeout=20)
        assert asking.done()
        if question == "request":
            assert isinstance(asking.exception(), LinkError)
        else:
            assert asking.result() is False
        assert watch.lost
        await link.close()

    play(run)


def test_nothing_waits_once_it_is_closed(box: NatsBox) -> None:
    async def run() -> None:
        link = await linked(box.url, Watch())
        await link.close()
        with pytest.raises(LinkError, match="no answer"):
            await link.last_message("S", "trade.a")

    play(run)


def test_a_refusal_is_read_though_the_server_resets_the_connection() -> None:
    attempts = 100

    def refuse(listener: socket.socket) -> None:
        for _ in range(attempts):
            client, _ = listener.accept()
            with client:
                client.sendall(b'INFO {"max_payload":1048576,"auth_required":true}\r\n')
                while client.recv(1) != b"\n":
                    pass  # CONNECT
                client.recv(1, socket.MSG_PEEK)  # its PING has come: closing with it unread resets
                client.sendall(b"-ERR 'Authorization Violation'\r\n")

    async def run() -> None:
        for _ in range(attempts):
            with pytest.raises(LinkError, match=r"rejects the credentials \(Authorization Violation"):
                await linked(f"nats://127.0.0.1:{listener.getsockname()[1]}", Watch())

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=refuse, args=(listener,), daemon=True)
        server.start()
        play(run)
        server.join()


def test_a_cancellation_arrives_even_together_with_the_answer() -> None:
    """asyncio.wait_for, which nats-py asks with, swallows it then, before Python 3.12."""

    async def main() -> None:
        answer = asyncio.get_running_loop().create_future()

        async def asks() -> None:
            await nats_link._cancellable(asyncio.wait_for(answer, 10))

        asking = asyncio.create_task(asks())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        answer.set_result("an answer")
        asking.cancel()
        await asyncio.wait([asking], timeout=5)
        assert asking.cancelled()

    asyncio.run(main())


def test_what_fails_after_a_cancellation_is_not_told() -> None:
    told: list[dict[str, Any]] = []

    async def fails_at_its_end() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            raise LinkError("cannot say goodbye")

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        asking = asyncio.create_task(nats_link._cancellable(fails_at_its_end()))
        await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.wait([asking], timeout=5)
        assert asking.cancelled()
        await asyncio.sleep(0.01)
        gc.collect()

    asyncio.run(main())
    assert told == []
