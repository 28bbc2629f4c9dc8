"""The publisher against a real nats-server: what was taken in arrives once and in order, whatever happens to NATS."""

import asyncio
import logging
import re
import shutil
import signal
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import nats
import pytest
from nats.aio.client import Client
from natsbox import Cable, NatsBox, free_port, nats_server, until

from marketprism.worker.outbox import OVERHEAD_BYTES, Hole, Message, Outbox
from marketprism.worker.publisher import LinkError, Publisher, PublisherOptions
from marketprism.worker.stream import StreamOptions, ensure_stream

pytestmark = pytest.mark.skipif(nats_server() is None, reason="nats-server is not installed")

STREAM = StreamOptions(subjects=("trade.>", "orderbook.>", "gap.>"))
SUBJECTS = [f"trade.okx.spot.S{i}" for i in range(5)]


@pytest.fixture
def box(tmp_path: Path) -> Iterator[NatsBox]:
    with NatsBox(tmp_path) as server:
        yield server


def message(number: int, subject: str = "", size: int = 200, droppable: bool = False) -> Message:
    subject = subject or SUBJECTS[number % len(SUBJECTS)]
    payload = b"%d " % number + b"x" * size
    return Message(subject, f"{subject}:{number}", payload, droppable, 1000 + number, time.perf_counter_ns())


async def prepare(client: Client) -> None:
    await ensure_stream(client, STREAM)


@asynccontextmanager
async def publishing(
    url: str,
    on_resume: Callable[[list[Hole]], None] = lambda holes: None,
    on_written: Callable[[int, int], None] | None = None,
    on_acknowledged: Callable[[int, int], None] | None = None,
    setup: Callable[[Client], Awaitable[None]] | None = prepare,
    **options: Any,
) -> AsyncIterator[Publisher]:
    options = {"reconnect_time_wait_s": 0.05} | options
    publisher = Publisher(
        PublisherOptions((url,), "test", **options), on_resume, on_written, on_acknowledged, setup
    )
    await publisher.connect()
    try:
        yield publisher
    finally:
        await publisher.close()


async def stored(box: NatsBox) -> dict[str, list[int]]:
    """The numbers the stream holds, by subject, in the stream's order."""
    client = await nats.connect(box.url)
    try:
        context = client.jetstream()
        total = (await context.stream_info(STREAM.name)).state.messages
        subscription = await context.subscribe(">", stream=STREAM.name, ordered_consumer=True)
        found: dict[str, list[int]] = {}
        for _ in range(total):
            got = await subscription.next_msg(timeout=5)
            found.setdefault(got.subject, []).append(int(got.data.split()[0]))
        return found
    finally:
        await client.close()


def each(into: list[int]) -> Callable[[int, int], None]:
    """A latency for each message, told for several at once."""
    return lambda latency_ns, messages: into.extend([latency_ns] * messages)


def expected(count: int) -> dict[str, list[int]]:
    return {subject: list(range(i, count, len(SUBJECTS))) for i, subject in enumerate(SUBJECTS)}


def test_each_once_in_order_and_drained(box: NatsBox) -> None:
    written: list[int] = []
    acknowledged: list[int] = []

    async def run() -> None:
        tell = {"on_written": each(written), "on_acknowledged": each(acknowledged)}
        async with publishing(box.url, **tell) as publisher:
            assert publisher.flowing
            assert all(publisher.publish(message(i)) for i in range(3000))
            assert publisher.in_flight <= 1000
            assert await publisher.drain(10) == 0
            counters = publisher.counters
            assert (counters.published, counters.acknowledged, counters.duplicates) == (3000, 3000, 0)
            assert (publisher.backlog_messages, publisher.backlog_bytes, publisher.in_flight) == (0, 0, 0)
        assert await stored(box) == expected(3000)

    asyncio.run(run())
    assert len(written) == len(acknowledged) == 3000
    assert 0 < min(written) < min(acknowledged)


def test_a_single_message_is_written_promptly(box: NatsBox) -> None:
    latencies: list[int] = []

    async def run() -> None:
        async with publishing(box.url, on_written=each(latencies)) as publisher:
            for i in range(200):
                publisher.publish(message(i))
                assert await publisher.drain(5) == 0

    asyncio.run(run())
    assert sorted(latencies)[100] < 1_000_000, "median from publish to socket, ns"


def test_the_same_id_twice_is_stored_once(box: NatsBox) -> None:
    async def run() -> None:
        async with publishing(box.url) as publisher:
            for _ in range(2):
                publisher.publish(message(0))
            assert await publisher.drain(5) == 0
            assert publisher.counters.duplicates == 1
        assert await stored(box) == {SUBJECTS[0]: [0]}

    asyncio.run(run())


def test_kill_and_restart_lose_and_repeat_nothing(box: NatsBox) -> None:
    async def run() -> None:
        async with publishing(box.url) as publisher:
            for i in range(20_000):
                assert publisher.publish(message(i))
                if i % 5000 == 2000:
                    await asyncio.to_thread(box.kill)
                if i % 5000 == 3000:
                    await until(lambda: not publisher.connected, what="loss noticed")
                    await asyncio.to_thread(box.start)
                if i % 5000 == 4000:
                    await until(lambda: publisher.flowing, what="flowing again")
                if i % 50 == 0:
                    await asyncio.sleep(0)
            assert await publisher.drain(15) == 0
            assert publisher.counters.errors["disconnected"] == 4
        assert await stored(box) == expected(20_000)

    asyncio.run(run())


def test_publishing_goes_on_while_nats_is_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    box = NatsBox(tmp_path)

    async def run() -> None:
        async with publishing(box.url) as publisher:
            assert not publisher.connected
            assert publisher.alive
            for i in range(2000):
                assert publisher.publish(message(i))
            with pytest.raises(LinkError, match="is nats-server running there"):
                await publisher.last_ids(STREAM.name, SUBJECTS)
            await until(lambda: publisher.counters.errors["connect"] >= 5)
            await asyncio.to_thread(box.start)
            assert await publisher.drain(10) == 0
        assert await stored(box) == expected(2000)

    try:
        asyncio.run(run())
    finally:
        box.kill()
    assert len([r for r in caplog.records if "refuses the connection" in r.message]) == 1


@pytest.mark.parametrize("fraction", [0.0, 0.4, 1.0])
def test_an_outage_longer_than_the_duplicate_window(box: NatsBox, fraction: float) -> None:
    """The stream stored some of what was in flight, no acknowledgement came back, and ids are forgotten since."""
    short = StreamOptions(subjects=STREAM.subjects, duplicate_window_s=0.2)

    async def held(client: Client) -> int:
        return (await client.jetstream().stream_info(STREAM.name)).state.messages

    async def settle_down(client: Client, flown: int) -> int:
        """How many the stream holds, once that number stands still."""
        count, since = -1, time.monotonic()
        while time.monotonic() - since < 0.3 and count < flown:
            if (now := await held(client)) != count:
                count, since = now, time.monotonic()
        return count

    async def run() -> None:
        cable = Cable(box.port)
        await cable.plug()
        observer = await nats.connect(box.url)
        async with publishing(cable.url, setup=lambda c: ensure_stream(c, short)) as publisher:
            publisher.publish(message(0))
            assert await publisher.drain(5) == 0
            cable.deaf = True
            frames_bytes = sum(len(message(i).payload) + 120 for i in range(1, 501))
            cable.limit_bytes = cable.passed_bytes + int(frames_bytes * fraction) if fraction < 1 else None
            for i in range(1, 501):
                assert publisher.publish(message(i))
            await until(lambda: publisher.in_flight == 500)
            count = await settle_down(observer, 501)
            assert (count == 1, count == 501) == (fraction == 0, fraction == 1)
            await cable.cut()
            await until(lambda: not publisher.flowing)  # or these would be in flight, too
            for i in range(501, 601):
                assert publisher.publish(message(i))
            forgotten = time.monotonic() + 0.5
            await until(lambda: time.monotonic() > forgotten)
            cable.deaf, cable.limit_bytes = False, None
            await cable.plug()
            assert await publisher.drain(10) == 0
            assert publisher.counters.resent == 501 - count
            assert publisher.counters.duplicates == 0
        assert await stored(box) == expected(601)
        await observer.close()
        await cable.cut()

    asyncio.run(run())


def test_what_another_publisher_stored_says_nothing_of_what_was_sent_before_it(box: NatsBox) -> None:
    """Trades that REST brought, and then a live one that the other collector has stored first."""
    subject = SUBJECTS[0]

    async def run() -> None:
        cable = Cable(int(box.url.rsplit(":", 1)[1]))
        await cable.plug()
        async with publishing(cable.url) as one, publishing(box.url) as other:
            assert one.publish(message(0, subject))
            assert await one.drain(5) == 0
            cable.limit_bytes = cable.passed_bytes  # nothing more gets there
            for number in (1, 2, 3):
                assert one.publish(message(number, subject))
            await until(lambda: one.in_flight == 3)
            assert other.publish(message(3, subject, size=201))  # told by the other: not the same bytes
            assert await other.drain(5) == 0
            await cable.cut()
            cable.limit_bytes = None
            await cable.plug()
            assert await one.drain(10) == 0
        assert await stored(box) == {subject: [0, 3, 1, 2]}

    asyncio.run(run())


def test_a_server_that_hangs_is_left_and_found_again(box: NatsBox) -> None:
    async def run() -> None:
        async with publishing(box.url, ack_timeout_s=0.4) as publisher:
            publisher.publish(message(0))
            assert await publisher.drain(5) == 0
            box.signal(signal.SIGSTOP)
            for i in range(1, 500):
                publisher.publish(message(i))
            await until(lambda: publisher.counters.errors.get("ack_timeout", 0) > 0)
            await until(lambda: publisher.counters.errors.get("disconnected", 0) > 0)
            box.signal(signal.SIGCONT)
            assert await publisher.drain(15) == 0
        assert await stored(box) == expected(500)

    asyncio.run(run())


def test_a_full_buffer_makes_holes_and_tells_them(box: NatsBox) -> None:
    told: list[list[Hole]] = []
    slot = 1000 + len(b"10 ") + OVERHEAD_BYTES
    room = 10 * slot * 8 // 7 + 8  # an eighth is for gaps

    async def run() -> None:
        def on_resume(holes: list[Hole]) -> None:
            told.append(holes)
            assert publisher.publish(message(900, "gap.okx.spot.A"))
            assert publisher.publish(message(901, "trade.okx.spot.A"))

        async with publishing(box.url, on_resume, buffer_bytes=room) as publisher:
            await asyncio.to_thread(box.stop)
            await until(lambda: not publisher.connected)
            taken = [publisher.publish(message(i, "trade.okx.spot.A", size=1000)) for i in range(5)]
            skipped = publisher.publish(message(5, "orderbook.okx.spot.A", size=1000, droppable=True))
            taken += [publisher.publish(message(i, "trade.okx.spot.A", size=1000)) for i in range(6, 11)]
            refused = [publisher.publish(message(i, "trade.okx.spot.A", size=1000)) for i in range(11, 14)]
            assert all(taken)
            assert not skipped
            assert not any(refused)
            assert publisher.publish(message(14, "trade.okx.spot.A", size=0)) is False, "shut until told"
            assert publisher.backlog_bytes <= room
            assert told == []
            await asyncio.to_thread(box.start)
            await until(lambda: len(told) == 1)
            assert await publisher.drain(5) == 0
            assert publisher.counters.skipped == 1
            assert publisher.counters.refused == 4
        holes = await stored(box)
        assert holes["trade.okx.spot.A"] == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 901]
        assert holes["gap.okx.spot.A"] == [900]

    asyncio.run(run())
    (hole,) = told[0]
    assert hole == Hole("trade.okx.spot.A", "trade.okx.spot.A:11", "trade.okx.spot.A:14", 1011, 1014, 4)


def test_a_full_outbox_has_room_for_gaps() -> None:
    """A gap that was refused would be told by nobody."""
    outbox = Outbox(16 * (1000 + OVERHEAD_BYTES))
    trades = [message(n, "trade.okx.spot.A", size=990) for n in range(20)]
    taken = [outbox.take(one) for one in trades]
    assert taken.count(False) >= 4
    gap = msgspec.structs.replace(message(30, "gap.okx.spot.A"), essential=True)
    assert outbox.take(gap)
    assert not outbox.take(trades[0])
    while outbox.take(gap):
        assert outbox.held_bytes <= 16 * (1000 + OVERHEAD_BYTES), "without bound"


@pytest.mark.parametrize("limit", ["server", "stream"])
def test_a_message_nats_never_takes_is_a_hole_and_blocks_nothing(box: NatsBox, limit: str) -> None:
    told: list[Hole] = []

    async def limited(client: Client) -> None:
        await ensure_stream(client, STREAM)
        if limit == "stream":
            config = (await client.jetstream().stream_info(STREAM.name)).config
            await client.jetstream().update_stream(config, max_msg_size=5000)

    async def run() -> None:
        async with publishing(box.url, told.extend, setup=limited) as publisher:
            size = 10_000 if limit == "stream" else 2_000_000
            publisher.publish(message(0))
            publisher.publish(message(1, "trade.okx.spot.BIG", size=size))
            publisher.publish(message(5))
            assert await publisher.drain(5) == 0
            await until(lambda: len(told) == 1)
            assert publisher.counters.errors == {"too_large": 1}
        assert await stored(box) == {SUBJECTS[0]: [0, 5]}

    asyncio.run(run())
    assert told[0].subject == "trade.okx.spot.BIG"


def test_messages_wait_for_their_stream(box: NatsBox, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with publishing(box.url, setup=None) as publisher:
            for i in range(50):
                assert publisher.publish(message(i))
            await until(lambda: publisher.counters.errors.get("no_responders", 0) >= 2)
            client = await nats.connect(box.url)
            await ensure_stream(client, STREAM)
            assert await publisher.drain(10) == 0
            await client.jetstream().delete_stream(STREAM.name)
            for i in range(50, 100):
                assert publisher.publish(message(i))
            await until(lambda: publisher.counters.errors["no_responders"] >= 10)
            await ensure_stream(client, STREAM)
            assert await publisher.drain(10) == 0
            await client.close()
        assert await stored(box) == {
            s: [n for n in numbers if n >= 50] for s, numbers in expected(100).items()
        }

    asyncio.run(run())
    assert len([r for r in caplog.records if "no stream takes" in r.message]) == 1


def test_a_full_stream_pauses_and_goes_on(box: NatsBox) -> None:
    full = StreamOptions(subjects=STREAM.subjects, discard="new", max_msgs=10)

    async def run() -> None:
        async with publishing(box.url, setup=None) as publisher:
            client = await nats.connect(box.url)
            await ensure_stream(client, full)
            for i in range(30):
                assert publisher.publish(message(i))
            await until(lambda: publisher.counters.errors.get("rejected", 0) >= 2)
            assert "maximum messages exceeded" in publisher.last_error
            await ensure_stream(client, STREAM)
            assert await publisher.drain(10) == 0
            await client.close()
        assert await stored(box) == expected(30)

    asyncio.run(run())


def test_wrong_password_is_one_clear_line_and_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    box = NatsBox(tmp_path, "authorization { user: mp, password: right }")

    async def run() -> None:
        async with publishing(box.url, connect_options={"user": "mp", "password": "wrong"}) as publisher:
            publisher.publish(message(0))
            await until(lambda: publisher.counters.errors["connect"] >= 3)
            assert publisher.alive
            box.stop()
            box.configure("authorization { user: mp, password: wrong }")
            await asyncio.to_thread(box.start)
            assert await publisher.drain(10) == 0

    with box:
        asyncio.run(run())
    lines = [r.message for r in caplog.records if "rejects the credentials" in r.message]
    assert len(lines) == 1
    assert "\n" not in lines[0]
    assert "wrong" not in lines[0]
    assert not [r for r in caplog.records if r.exc_info]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_tls(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -keyout key.pem"
    )
    names = ["-out", "cert.pem", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command.split(), *names], cwd=tmp_path, check=True, capture_output=True)
    box = NatsBox(tmp_path, f'tls {{ cert_file: "{tmp_path}/cert.pem", key_file: "{tmp_path}/key.pem" }}')
    trusted = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))

    async def run() -> None:
        async with publishing(box.url) as publisher:
            assert not publisher.connected
        async with publishing(
            box.url.replace("nats:", "tls:"), connect_options={"tls": trusted}
        ) as publisher:
            for i in range(2000):
                publisher.publish(message(i, size=2000))
            assert await publisher.drain(10) == 0

    with box:
        asyncio.run(run())
    assert "certificate verify failed" in caplog.text


def test_the_end_of_each_subject_is_found(box: NatsBox) -> None:
    async def run() -> None:
        async with publishing(box.url) as publisher:
            assert await publisher.last_ids("ELSEWHERE", SUBJECTS) == {}
            for i in range(8):
                publisher.publish(message(i))
            publisher.publish(message(9, "trade.binance.spot.币安人生-USDT"))
            assert await publisher.drain(5) == 0
            last = await publisher.last_ids(
                STREAM.name, [*SUBJECTS, "trade.x.y.z", "trade.binance.spot.币安人生-USDT"]
            )
        assert {subject: found[0] for subject, found in last.items()} == {
            **{SUBJECTS[i % 5]: f"{SUBJECTS[i % 5]}:{i}" for i in range(3, 8)},
            "trade.binance.spot.币安人生-USDT": "trade.binance.spot.币安人生-USDT:9",
        }
        assert last[SUBJECTS[0]][1] == message(5).payload

    asyncio.run(run())


def test_what_is_not_drained_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with publishing(f"nats://127.0.0.1:{free_port()}") as publisher:
            publisher.publish(message(0))
            publisher.publish(message(1))
            assert await publisher.drain(0.05) == 2

    asyncio.run(run())
    assert "2 messages not acknowledged" in caplog.text


@pytest.mark.parametrize(
    ("subject", "ident"),
    [
        ("trade.a b.c", "1"),
        ("trade..c", "1"),
        ("trade.*.c", "1"),
        ("trade.a\r\nPUB", "1"),
        ("trade.a", "1\r\n"),
        ("trade.a", ""),
    ],
)
def test_what_the_protocol_cannot_carry_is_refused(subject: str, ident: str) -> None:
    async def run() -> None:
        publisher = Publisher(PublisherOptions(("nats://127.0.0.1:1",), "test"), lambda holes: None)
        with pytest.raises(ValueError, match="expected"):
            publisher.publish(Message(subject, ident, b"", False, None, 0))

    asyncio.run(run())


@pytest.mark.parametrize("servers", [(), ("ws://127.0.0.1:4222",), ("http://user:secret@127.0.0.1",)])
def test_addresses_that_cannot_work_are_named(servers: tuple[str, ...]) -> None:
    async def run() -> None:
        with pytest.raises(ValueError, match=re.escape("nats://")) as caught:
            Publisher(PublisherOptions(servers, "test"), lambda holes: None)
        assert "secret" not in str(caught.value)

    asyncio.run(run())


def test_logs_name_no_password(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def run() -> None:
        async with publishing(f"nats://user:secret@127.0.0.1:{free_port()}") as publisher:
            await until(lambda: publisher.counters.errors["connect"] >= 1)

    asyncio.run(run())
    assert "secret" not in caplog.text
