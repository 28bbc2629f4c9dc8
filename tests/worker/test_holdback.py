"""What is told of a hole when the stream may hold what was missed: `Holdback` for books, `Backfill` for trades."""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from natsbox import NatsBox, nats_server, until

from marketprism.events import Event, Gap, OrderBookDelta, Trade, encode
from marketprism.logs import RateLimitedLog
from marketprism.worker.backfill import Backfill
from marketprism.worker.holdback import Holdback, reaches
from marketprism.worker.nats_link import Link, LinkError

BOOK, GAP, TRADES = (f"{t}.deribit.perpetual.BTC-USD" for t in ("orderbook_delta", "gap", "trade"))
COMMON: dict[str, Any] = {
    "exchange": "deribit",
    "market_type": "perpetual",
    "symbol": "BTC-USD",
    "instrument_id": "BTC-PERPETUAL",
    "collected_ts_ms": 1_760_000_000_000,
}


def book(last: int | None, prev: int | None = None, ts_ms: int | None = 1, **more: Any) -> OrderBookDelta:
    """A whole book, or the change `prev` → `last`."""
    fields: dict[str, Any] = COMMON | more
    return OrderBookDelta(
        **fields,
        ts_ms=ts_ms,
        update_type="snapshot" if prev is None else "delta",
        bids=[],
        asks=[],
        first_update_id=None,
        last_update_id=last,
        prev_update_id=prev,
        quantity_unit=None,
    )


def gap(before: int | None, cause: Any = "disconnect", **more: Any) -> Gap:
    fields: dict[str, Any] = {"affected_data_type": "orderbook_delta"} | COMMON | more
    return Gap(**fields, ts_ms=1, cause=cause, last_id_before=None if before is None else str(before))


def trade(number: int, **more: Any) -> Trade:
    fields: dict[str, Any] = {"trade_seq": number} | COMMON | more
    return Trade(
        **fields,
        ts_ms=COMMON["collected_ts_ms"],
        trade_id=str(number),
        price="1",
        quantity=None,
        exchange_quantity="1",
        quantity_unit=None,
        side="buy",
        trade_ts_ms=COMMON["collected_ts_ms"],
        normalized_symbol="BTC-USD",
    )


ODD = msgspec.structs.replace(trade(1), trade_id="odd", trade_seq=None)  # a stranger's


LOG = RateLimitedLog(logging.getLogger(__name__))


class Desk:
    """A `Holdback`, a stream whose end is written down here, and what was published."""

    def __init__(self) -> None:
        self.last: OrderBookDelta | None = None
        self.away = False
        self.looks = 0
        self.published: list[str] = []
        self.holdback = Holdback(self.publish, lambda: None, self.look)

    async def look(self, subjects: Iterable[str]) -> Mapping[str, tuple[str, bytes]]:
        assert list(subjects) == [BOOK]
        self.looks += 1
        if self.away:
            raise LinkError("away")
        return {} if self.last is None else {BOOK: ("", encode(self.last))}

    def publish(self, event: Event, read_ns: int) -> None:
        assert not self.holdback.takes(event, read_ns)
        data = event.data
        assert isinstance(data, OrderBookDelta | Gap)
        self.published.append("gap" if isinstance(data, Gap) else f"{data.update_type} {data.last_update_id}")

    def take(self, *datas: OrderBookDelta | Gap) -> None:
        for data in datas:
            event = Event.of(GAP if isinstance(data, Gap) else BOOK, "", data)
            if not self.holdback.takes(event, 0):
                self.publish(event, 0)

    async def looked(self, times: int = 1) -> None:
        """Wait until the stream was asked so often from now on, and the answer taken in."""
        wanted = self.looks + times
        await until(lambda: self.looks >= wanted, what="a look at the stream")
        await asyncio.sleep(0)

    async def settled(self) -> None:
        await until(lambda: not self.holdback.doubts, what="no doubt left")


def run(scene: Any) -> None:
    """Play a scene at a desk."""

    async def play() -> None:
        desk = Desk()
        task = asyncio.create_task(desk.holdback.run())
        try:
            await scene(desk)
        finally:
            task.cancel()

    asyncio.run(play())


def test_what_the_stream_reaches_is_no_gap_and_only_the_rest_is_published() -> None:
    async def scene(d: Desk) -> None:
        d.last = book(7, 6)
        d.take(gap(5), book(6), book(7, 6), book(8, 7))
        assert d.published == []
        await d.settled()
        assert d.published == ["delta 8"]
        d.take(book(9, 8))
        assert d.published == ["delta 8", "delta 9"]

    run(scene)


def test_nothing_missed_is_no_gap_even_with_a_book_from_before() -> None:
    async def scene(d: Desk) -> None:
        d.last = book(5, 4)  # ours
        d.take(gap(5), book(6), book(7, 5))  # a whole book that ends within the first change
        await d.settled()
        assert d.published == ["snapshot 6", "delta 7"]

    run(scene)


def test_while_another_goes_on_it_waits_for_the_new_book() -> None:
    async def scene(d: Desk) -> None:
        d.last = book(6, 5)
        d.take(gap(5))
        await d.looked()
        (doubt,) = d.holdback.doubts.values()
        assert doubt.deadline_s is None
        d.last = book(90, 89)
        d.take(book(90))
        await d.settled()
        assert d.published == []

    run(scene)


def test_a_stream_that_stays_behind_is_a_gap_told_before_the_book() -> None:
    async def scene(d: Desk) -> None:
        d.last = book(6, 5)
        d.take(gap(5))
        await d.looked()  # somebody went on, but no further than 6
        d.take(book(9), book(10, 9))
        await d.looked(2)
        assert d.published == []  # it has its chance
        await d.settled()
        assert d.published == ["gap", "snapshot 9", "delta 10"]

    run(scene)


@pytest.mark.parametrize("away", [False, True])
def test_nobody_else_or_no_answer_is_a_gap(away: bool) -> None:
    async def scene(d: Desk) -> None:
        d.last, d.away = book(5, 4), away
        d.take(gap(5))
        await d.settled()
        assert d.published == ["gap"]
        d.take(book(9))
        assert d.published == ["gap", "snapshot 9"]

    run(scene)


def test_a_second_hole_needs_the_second_book() -> None:
    async def scene(d: Desk) -> None:
        d.last = book(6, 5)
        d.take(gap(5), book(7), book(8, 7), gap(8), book(11))
        await d.looked()
        d.last = book(10, 9)
        await d.looked()
        assert d.published == []
        d.last = book(12, 10)
        await d.settled()
        assert d.published == []

    run(scene)


def test_a_first_start_has_no_hole_and_a_start_beside_another_neither() -> None:
    async def scene(d: Desk) -> None:
        d.take(gap(None, "restart"), book(6))
        await d.settled()
        assert d.published == ["snapshot 6"]
        d.last = book(8, 7)
        d.take(gap(None, "restart"), book(7))
        await d.settled()
        assert d.published == ["snapshot 6"]

    run(scene)


def test_what_cannot_be_judged_or_is_wrong_is_told_at_once() -> None:
    async def scene(d: Desk) -> None:
        d.take(gap(5, "crossed"), gap(5, "checksum"), gap(None), gap(5, affected_data_type="liquidation"))
        assert d.published == ["gap"] * 4

    run(scene)


def test_at_the_end_what_is_in_doubt_is_told() -> None:
    async def scene(d: Desk) -> None:
        d.last = book(5, 4)
        d.take(gap(5), book(9))
        d.holdback.close()
        assert d.published == ["gap", "snapshot 9"]
        d.last = book(11, 10)
        d.take(gap(9))
        await d.looked()
        d.holdback.close()  # another one goes on
        assert d.published == ["gap", "snapshot 9"]

    run(scene)


def test_ids_that_began_anew_are_not_reached_by_old_ones() -> None:
    assert reaches(book(9, ts_ms=1_000), book(8, ts_ms=2_000))
    assert not reaches(book(9, ts_ms=1_000), book(8, ts_ms=60_000))
    assert reaches(book(9, ts_ms=1_000), book(9, ts_ms=60_000))  # a quiet book
    assert not reaches(book(3, ts_ms=60_000), book(8, ts_ms=1_000))
    assert reaches(book(3, ts_ms=60_000, exchange="okx"), book(8, ts_ms=1_000, exchange="okx"))
    # A greater id that is older by any time is from before: chaos found a reset five seconds after a restart.
    assert not reaches(book(9, ts_ms=1_000, exchange="okx"), book(8, ts_ms=6_000, exchange="okx"))
    assert reaches(book(9, ts_ms=6_000, exchange="okx"), book(8, ts_ms=1_000, exchange="okx"))
    assert reaches(book(9, ts_ms=1_000, exchange="okx"), book(9, ts_ms=6_000, exchange="okx"))
    assert not reaches(book(None), book(None))


# -- trades ----------------------------------------------------------------------------------------------------


def backfilled(held: list[Trade], *datas: Trade | Gap, away: bool = False) -> list[Trade | Gap]:
    """What is published of these when the stream holds those."""
    published: list[Any] = []

    async def read(subject: str, since_s: float) -> list[bytes]:
        assert subject == TRADES
        assert since_s < COMMON["collected_ts_ms"] / 1000
        if away:
            raise LinkError("away")
        return [encode(t) for t in held] + [b"not ours", encode(ODD)]

    async def look(subjects: Iterable[str]) -> dict[str, tuple[str, bytes]]:
        if away:
            raise LinkError("away")
        return {s: ("", encode(held[-1])) for s in subjects if held}

    async def scene() -> None:
        backfill = Backfill(lambda event, _: published.append(event.data), lambda: None, look, read, LOG)
        for data in datas:
            if isinstance(data, Gap):
                assert backfill.takes(Event.of(GAP, "", data), 0)
            else:
                backfill.take(Event.of(TRADES, "", data), 0)
        task = asyncio.create_task(backfill.run())
        await until(lambda: not backfill.waiting, what="all is decided")
        task.cancel()

    asyncio.run(scene())
    return published


def test_a_trade_that_the_stream_holds_is_not_published_again() -> None:
    new, old = trade(8), trade(7)
    assert backfilled([trade(7)], old, new) == [new]
    assert backfilled([trade(7)], old, new, away=True) == [old, new]


def test_a_stream_that_ends_before_a_trade_is_not_read_for_it() -> None:
    async def scene() -> list[Any]:
        published: list[Any] = []

        async def look(subjects: Iterable[str]) -> dict[str, tuple[str, bytes]]:
            return {s: ("", encode(trade(6))) for s in subjects}

        nothing = partial(pytest.fail, "nothing to read")
        backfill = Backfill(lambda event, _: published.append(event.data), lambda: None, look, nothing, LOG)
        for number in (7, 8):
            backfill.take(Event.of(TRADES, "", trade(number)), 0)
        await backfill.finish(5)
        return published

    assert asyncio.run(scene()) == [trade(7), trade(8)]


@pytest.mark.parametrize("last", [ODD, trade(9)])
def test_what_follows_a_trade_that_waits_waits_too(last: Trade) -> None:
    """In the order in which it came, while the stream is asked and read."""
    published: list[Any] = []
    anew = gap(600, "sequence", affected_data_type="trade", first_id_after="1")
    asked = asyncio.Event()
    answer = asyncio.Event()

    async def look(subjects: Iterable[str]) -> dict[str, tuple[str, bytes]]:
        return {s: ("", encode(last)) for s in subjects}

    async def read(subject: str, since_s: float) -> list[bytes]:
        asked.set()
        await answer.wait()
        return [encode(trade(8)), encode(last)]

    async def scene() -> None:
        backfill = Backfill(lambda event, _: published.append(event.data), lambda: None, look, read, LOG)
        live = Event.of(TRADES, "", trade(10))
        assert not backfill.takes(live, 0)
        for number in (7, 8):
            backfill.take(Event.of(TRADES, "", trade(number)), 0)
        assert backfill.takes(live, 0)
        assert not backfill.takes(Event.of(BOOK, "", book(1)), 0)
        assert not backfill.takes(Event.of(TRADES + ".other", "", trade(1)), 0)
        task = asyncio.create_task(backfill.run())
        await asked.wait()
        assert backfill.takes(Event.of(GAP, "", anew), 0)
        assert backfill.takes(Event.of(TRADES, "", trade(1)), 0)
        assert published == []
        answer.set()
        await until(lambda: not backfill.waiting, what="all is decided")
        task.cancel()

    asyncio.run(scene())
    assert published == [trade(7), trade(10), anew, trade(1)]


def test_at_the_end_the_stream_is_read_but_not_for_long() -> None:
    async def scene(pause_s: float) -> list[Any]:
        published: list[Any] = []

        async def read(subject: str, since_s: float) -> list[bytes]:
            await asyncio.sleep(pause_s)
            return [encode(trade(7))]

        async def look(subjects: Iterable[str]) -> dict[str, tuple[str, bytes]]:
            return {TRADES: ("", encode(trade(8)))}

        backfill = Backfill(lambda event, _: published.append(event.data), lambda: None, look, read, LOG)
        for number in (7, 8):
            backfill.take(Event.of(TRADES, "", trade(number)), 0)
        await backfill.finish(0.2)
        return published

    assert asyncio.run(scene(0)) == [trade(8)]
    assert asyncio.run(scene(60)) == [trade(7), trade(8)]


def test_a_trade_summed_up_in_the_stream_is_not_published_again() -> None:
    okx: dict[str, Any] = {"exchange": "okx", "trade_seq": None}
    summed_up = trade(9, first_trade_id="7", last_trade_id="9", **okx)
    single = [trade(n, **okx) for n in (6, 7, 8, 9, 10)]
    assert backfilled([summed_up], *single) == [single[0], single[4]]


def test_a_gap_of_trades_is_told_unless_all_are_there() -> None:
    hole = gap(6, "disconnect", affected_data_type="trade", first_id_after="9", missing=2)
    assert backfilled([trade(7)], hole) == [hole]
    assert backfilled([trade(7), trade(8)], hole) == []


def test_a_gap_without_numbers_is_told_at_once() -> None:
    nothing = partial(pytest.fail, "nothing to read")
    backfill = Backfill(lambda *_: None, lambda: None, nothing, nothing, LOG)
    anew = gap(600, "sequence", affected_data_type="trade", first_id_after="9")
    assert not backfill.takes(Event.of(GAP, "", anew), 0)
    assert not backfill.takes(Event.of(GAP, "", msgspec.structs.replace(anew, missing=5)), 0)
    assert not backfill.takes(Event.of(GAP, "", gap(5)), 0)


@pytest.mark.skipif(nats_server() is None, reason="no nats-server: run scripts/setup")
def test_the_stream_is_read_from_a_moment_on(tmp_path: Path) -> None:
    async def scene() -> None:
        link = Link(lambda _: None, lambda *_: None, lambda: None, lambda _: None)
        await link.open([box.url], "test", {})
        js = link.client.jetstream()
        with pytest.raises(LinkError, match="cannot be read"):
            await link.stored_since("S", "a", 0.0)
        await js.add_stream(name="S", subjects=["a", "b", "c"])
        for n in range(300):
            await js.publish("a", str(n).encode())
        await js.publish("b", b"another")
        assert await link.stored_since("S", "a", 0.0) == [str(n).encode() for n in range(300)]
        assert await link.stored_since("S", "c", 0.0) == []
        assert await link.stored_since("S", "a", 4e9) == []
        await link.close()

    with NatsBox(tmp_path) as box:
        asyncio.run(scene())
