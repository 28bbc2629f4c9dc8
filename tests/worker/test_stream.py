"""Creating and updating the stream on a real nats-server; nothing stored is ever lost by it."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import nats
import nats.errors
import pytest
from nats.aio.client import Client
from nats.js.api import RetentionPolicy, StorageType, StreamConfig
from natsbox import NatsBox, nats_server, until

from marketprism.worker.stream import StreamError, StreamOptions, ensure_stream

pytestmark = pytest.mark.skipif(nats_server() is None, reason="nats-server is not installed")

WANTED = StreamOptions(subjects=("trade.>", "funding_rate.>", "open_interest.>"))
EARLIER = [
    f"{kind}.{exchange}.>" for kind in ("funding_rate", "open_interest") for exchange in ("binance", "okx")
]


@pytest.fixture
def box(tmp_path: Path) -> Iterator[NatsBox]:
    with NatsBox(tmp_path) as server:
        yield server


def connected(box: NatsBox, scene: Callable[[Client], Awaitable[None]]) -> None:
    """Play a scene with a connection of its own."""

    async def run() -> None:
        client = await nats.connect(box.url)
        try:
            await scene(client)
        finally:
            await client.close()

    asyncio.run(run())


async def fill(client: Client, count: int, subject: str = "trade.okx.spot.A") -> None:
    for number in range(count):
        await client.jetstream().publish(subject, b"%d" % number)


async def refused(client: Client, wanted: StreamOptions, *words: str) -> None:
    """The change is refused in one line with these words, and the stream is as before."""
    before = await client.jetstream().stream_info(wanted.name)
    with pytest.raises(StreamError) as caught:
        await ensure_stream(client, wanted)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text
    after = await client.jetstream().stream_info(wanted.name)
    assert (after.config, after.state.messages) == (before.config, before.state.messages)


def test_it_is_created_as_asked_and_left_alone_then(box: NatsBox) -> None:
    async def scene(client: Client) -> None:
        await ensure_stream(client, WANTED)
        config = (await client.jetstream().stream_info("MARKET_DATA")).config
        assert config.subjects == list(WANTED.subjects)
        assert (config.max_msgs, config.max_bytes, config.max_age) == (5_000_000, 2 * 1024**3, 172_800)
        assert (config.duplicate_window, config.storage, config.allow_direct) == (120, StorageType.FILE, True)
        await ensure_stream(client, WANTED)
        assert (await client.jetstream().stream_info("MARKET_DATA")).config == config

    connected(box, scene)


def test_the_earlier_systems_stream_is_updated_in_place(box: NatsBox) -> None:
    async def scene(client: Client) -> None:
        context = client.jetstream()
        earlier = StreamConfig(
            name="MARKET_DATA",
            subjects=EARLIER,
            max_consumers=50,
            max_msgs=5_000_000,
            max_age=172_800,
            duplicate_window=300,
        )
        await context.add_stream(earlier)
        await fill(client, 3, "funding_rate.binance.perpetual.BTC-USDT")
        await ensure_stream(client, WANTED)
        info = await context.stream_info("MARKET_DATA")
        assert info.state.messages == 3
        assert info.config.subjects == list(WANTED.subjects)
        assert (info.config.max_consumers, info.config.duplicate_window) == (50, 120)
        await fill(client, 1)

    connected(box, scene)


def test_what_an_update_does_not_name_stays(box: NatsBox) -> None:
    async def scene(client: Client) -> None:
        context = client.jetstream()
        await context.add_stream(
            StreamConfig(name="MARKET_DATA", subjects=["trade.>"], description="ours", deny_delete=True)
        )
        await ensure_stream(client, WANTED)
        config = (await context.stream_info("MARKET_DATA")).config
        assert (config.description, config.deny_delete) == ("ours", True)

    connected(box, scene)


def test_limits_below_what_is_stored_are_refused(box: NatsBox) -> None:
    async def scene(client: Client) -> None:
        await ensure_stream(client, WANTED)
        await fill(client, 20)
        await refused(client, replace(WANTED, max_msgs=10), "holds 20 messages", "max_msgs 10", "purge")
        await refused(client, replace(WANTED, max_bytes=100), "bytes", "max_bytes 100")
        await ensure_stream(client, replace(WANTED, max_msgs=20, max_bytes=1_000_000))
        assert (await client.jetstream().stream_info("MARKET_DATA")).state.messages == 20

    connected(box, scene)


def test_a_shorter_age_than_the_oldest_message_is_refused(box: NatsBox) -> None:
    async def scene(client: Client) -> None:
        short = replace(WANTED, max_age_s=0.2, duplicate_window_s=0.1)
        await ensure_stream(client, replace(short, max_age_s=60))
        await ensure_stream(client, replace(short, max_age_s=30))
        await fill(client, 1)
        loop = asyncio.get_running_loop()
        old = loop.time() + 0.25
        await until(lambda: loop.time() > old)
        await refused(client, short, "max_age")

    connected(box, scene)


def test_a_subject_with_messages_is_not_given_up(box: NatsBox) -> None:
    async def scene(client: Client) -> None:
        await ensure_stream(client, WANTED)
        fewer = replace(WANTED, subjects=("trade.>",))
        await ensure_stream(client, fewer)
        await ensure_stream(client, WANTED)
        await fill(client, 2, "open_interest.okx.perpetual.A")
        await refused(client, fewer, "open_interest.okx.perpetual.A", "open_interest.>")
        await ensure_stream(client, replace(WANTED, subjects=("trade.>", "open_interest.okx.*.A")))

    connected(box, scene)


@pytest.mark.parametrize(
    ("there", "words"),
    [
        ({"storage": StorageType.MEMORY}, ("memory", "file was asked for")),
        ({"retention": RetentionPolicy.WORK_QUEUE}, ("workqueue", "limits")),
    ],
)
def test_another_kind_of_stream_is_refused(
    box: NatsBox, there: dict[str, object], words: tuple[str, ...]
) -> None:
    async def scene(client: Client) -> None:
        await client.jetstream().add_stream(StreamConfig(name="MARKET_DATA", subjects=["trade.>"]), **there)
        await refused(client, WANTED, *words)

    connected(box, scene)


def test_a_stream_that_owns_our_subject_is_named(box: NatsBox) -> None:
    async def scene(client: Client) -> None:
        await client.jetstream().add_stream(name="OTHER", subjects=["trade.binance.>"])
        with pytest.raises(StreamError, match=r"subject trade\.> overlaps trade\.binance\.> of stream OTHER"):
            await ensure_stream(client, WANTED)
        await ensure_stream(client, replace(WANTED, subjects=("gap.okx.>",)))
        await refused(client, WANTED, "OTHER")

    connected(box, scene)


def test_the_servers_own_refusal_is_passed_on(box: NatsBox) -> None:
    async def scene(client: Client) -> None:
        with pytest.raises(StreamError, match=r"NATS refuses to create stream MARKET_DATA: .*window"):
            await ensure_stream(client, replace(WANTED, max_age_s=10))

    connected(box, scene)


def test_five_workers_at_once(box: NatsBox) -> None:
    async def scene(client: Client) -> None:
        clients = [await nats.connect(box.url) for _ in range(5)]
        await asyncio.gather(*(ensure_stream(each, WANTED) for each in clients))
        wider = replace(WANTED, subjects=(*WANTED.subjects, "gap.>"), max_msgs=6_000_000)
        await asyncio.gather(*(ensure_stream(each, wider) for each in clients))
        config = (await client.jetstream().stream_info("MARKET_DATA")).config
        assert (config.subjects, config.max_msgs) == (list(wider.subjects), 6_000_000)
        for each in clients:
            await each.close()

    connected(box, scene)


def test_no_jetstream_means_try_again(tmp_path: Path) -> None:
    box = NatsBox(tmp_path)
    (tmp_path / "nats.conf").write_text(f"listen: 127.0.0.1:{box.port}\n")

    async def scene(client: Client) -> None:
        with pytest.raises(nats.errors.Error, match="is it switched on"):
            await ensure_stream(client, WANTED)

    with box:
        connected(box, scene)
