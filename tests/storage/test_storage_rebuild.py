"""Books rebuilt from what is stored, hot and cold, against the book that published them."""

from decimal import Decimal
from itertools import count, pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from storedbook import BEGIN_MS, Market, Stored

from marketprism.storage.asking import ReadingError
from marketprism.storage.reading import Span, moment_ms, shown
from marketprism.storage.rebuild import Change, Instrument, Rebuilt, book_at, find, in_order, text

_numbers = count(1)


def sides(text_: tuple[bytes, bytes]) -> tuple[list[list[str]], list[list[str]]]:
    bids, asks = (msgspec.json.decode(side) for side in text_)
    return bids, asks


def price(units: int) -> str:
    return f"{Decimal(units) / 8:.3f}"


LEVELS = st.lists(
    st.tuples(st.integers(1, 40), st.sampled_from(["0", "0.000", "1", "2.50", "1e-05"])), max_size=4
)
STEP = st.fixed_dictionaries(
    {
        "after_ms": st.sampled_from([0, 1, 100, 7_000, 40_000]),
        "bids": LEVELS,
        "asks": LEVELS,
        "kind": st.sampled_from(["change"] * 6 + ["whole", "again", "told", "untold"]),
        "which": st.integers(0, 100),
    }
)


class Story:
    """A market, what happens to its messages, and when nobody can know its book."""

    def __init__(self, exchange: str, skew_ms: int, *, timeless: bool) -> None:
        symbol = f"S{next(_numbers)}"
        self.market = Market(Instrument(exchange, "spot", symbol, symbol), skew_ms=skew_ms)
        self.unknown: list[tuple[int, int]] = []
        self._lost_ms: int | None = None
        self.market.whole(**({"ts_ms": None} if timeless and exchange == "binance" else {}))
        self.market.now_ms += 1  # a snapshot without a time is dated by what follows it
        self.known_from_ms = self.market.now_ms
        self.market.change([["1", "1"]], [["50", "1"]])

    def step(
        self, kind: str, after_ms: int, levels: tuple[list[list[str]], list[list[str]]], which: int
    ) -> None:
        market = self.market
        market.now_ms += after_ms
        if kind == "whole":
            market.whole()
            self.found()
        elif self._lost_ms is not None:
            market.change(*levels, publish=False)
        elif kind == "change":
            market.change(*levels)
        elif kind == "again":
            market.repeat(which)
        elif kind == "told":
            market.gap()
            self._lost_ms = market.now_ms + 1
        else:
            market.change(*levels, publish=False)
            market.now_ms += 1
            market.change(*levels)
            self._lost_ms = market.now_ms

    def found(self) -> None:
        """What was lost, if anything, is so no more."""
        if self._lost_ms is not None:
            self.unknown.append((self._lost_ms, self.market.now_ms))
            self._lost_ms = None

    def check(self, stored: Stored, at_ms: int) -> None:
        """The book of this time is the market's, or nobody's."""
        if any(a <= at_ms < b for a, b in self.unknown):
            with pytest.raises(ReadingError):
                book_at(stored.tiers, self.market.instrument, at_ms)
            return
        expected = [state for ms, state in self.market.states if ms <= at_ms][-1]
        book = book_at(stored.tiers, self.market.instrument, at_ms)
        assert (book.bids, book.asks) == sides(expected), shown(at_ms)


@settings(
    max_examples=25,
    deadline=None,
    phases=[
        Phase.explicit,
        Phase.reuse,
        Phase.generate,
    ],  # making an example smaller takes the engine minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    steps=st.lists(STEP, min_size=4, max_size=40),
    skew_ms=st.sampled_from([-20_000, -50, 0, 50, 20_000]),
    timeless=st.booleans(),
    moved=st.sampled_from(["nothing", "first", "first, kept", "both"]),
    exchange=st.sampled_from(["binance", "okx", "deribit"]),
    data=st.data(),
)
def test_a_rebuilt_book_is_the_published_one_at_every_instant(
    steps: list[dict[str, Any]],
    skew_ms: int,
    timeless: bool,
    moved: str,
    exchange: str,
    data: st.DataObject,
    stored: Stored,
) -> None:
    """Whatever lies hot, cold, or in both; with losses told and untold, repetitions, and clocks that differ."""
    story = Story(exchange, skew_ms, timeless=timeless)
    for step in steps:
        bids = [[price(n), q] for n, q in step["bids"]]
        asks = [[price(n + 300), q] for n, q in step["asks"]]
        story.step(step["kind"], step["after_ms"], (bids, asks), step["which"])
    end_ms = story.market.now_ms
    story.market.now_ms += 1
    story.found()
    story.market.store(stored)
    if moved != "nothing":
        stored.move("orderbook_deltas", BEGIN_MS, drop="kept" not in moved)
    if moved == "both":
        stored.move("orderbook_deltas", BEGIN_MS + 3_600_000)

    times = sorted({ms for ms, _ in story.market.states if ms >= story.known_from_ms})
    asked = data.draw(st.lists(st.integers(story.known_from_ms, end_ms), max_size=4))
    for at_ms in [*asked, *times[-3:], *data.draw(st.lists(st.sampled_from(times), max_size=4))]:
        story.check(stored, at_ms)


def test_a_book_crosses_from_cold_into_hot(stored: Stored) -> None:
    market = Market(now_ms=BEGIN_MS)
    market.change([["10", "1"]], [["11", "1"]], publish=False)
    market.whole()
    for n in range(1, 240):
        market.now_ms += 1000
        market.change([["10", str(n)]], [])
    market.store(stored)
    stored.move("orderbook_deltas", BEGIN_MS)
    hot = stored.engine.value(f"SELECT min(timestamp) FROM {stored.layout.table('orderbook_deltas')}")
    assert (
        int(hot.timestamp()) == (BEGIN_MS + 120_000) // 1000
    )  # the snapshot and the first changes are in the file
    book = book_at(stored.tiers, market.instrument, BEGIN_MS + 200_500)
    assert book.bids == [["10", "200"]]
    assert (book.since_ms, book.last_update_id) == (BEGIN_MS + 200_000, 100 + 3 * 201)
    with pytest.raises(ReadingError, match="snapshot"):
        book_at(stored.tiers[:1], market.instrument, BEGIN_MS + 200_500)


def test_an_old_snapshot_told_again_is_no_way_out_of_a_loss(stored: Stored) -> None:
    """It comes after the snapshot that ends the loss, though its time is before."""
    market = Market()
    market.change([["10", "1"]], [["11", "1"]], publish=False)
    market.whole()
    market.change([["10", "2"]], [], publish=False)
    market.now_ms += 10
    market.change([["10", "3"]], [])
    market.now_ms += 10
    market.whole()
    market.repeat(0)
    market.store(stored)
    with pytest.raises(ReadingError, match="a change is missing"):
        book_at(stored.tiers, market.instrument, BEGIN_MS + 15)
    assert book_at(stored.tiers, market.instrument, BEGIN_MS + 20).bids == [["10", "3"]]


def test_bounds_doubts_and_depth_are_told(stored: Stored) -> None:
    market = Market()
    market.change([["10", "1"], ["9", "2"]], [["11", "1"], ["12.5", "1"]], publish=False)
    market.whole(exact_from="9.5", exact_to="12")
    market.gap("audit")
    market.store(stored)
    book = book_at(stored.tiers, market.instrument, BEGIN_MS, 5)
    assert (book.bids, book.asks) == ([["10", "1"]], [["11", "1"]])
    assert (book.exact_from, book.exact_to, book.contradicted) == ("9.5", "12", "audit")
    assert "complete from 9.5 to 12" in text(book)
    assert "DOUBTFUL" in text(book)
    with pytest.raises(ReadingError, match="audit"):
        book_at(stored.tiers, market.instrument, BEGIN_MS + 1)


def test_an_instrument_is_found_by_any_of_its_names(stored: Stored) -> None:
    for market_type in ("spot", "perpetual"):
        market = Market(Instrument("binance", market_type, "BTC-USDT", "BTCUSDT"))
        market.whole()
        market.store(stored)
    for symbol in ("BTC-USDT", "BTCUSDT"):
        assert find(stored.tiers, "binance", symbol, "spot", BEGIN_MS).market_type == "spot"
        with pytest.raises(ReadingError, match="one of perpetual, spot"):
            find(stored.tiers, "binance", symbol, None, BEGIN_MS)
    for exchange, symbol in (
        ("okx", "BTC-USDT"),
        ("binance", "' OR 1=1 --"),
        ("binance\\", "BTC-USDT\t\n\0"),
    ):
        with pytest.raises(ReadingError, match="no book of"):
            find(stored.tiers, exchange, symbol, None, BEGIN_MS)
    with pytest.raises(ReadingError, match="no book of"):
        find(stored.tiers, "binance", "BTC-USDT", "spot", BEGIN_MS - 61_000)


# -- order -----------------------------------------------------------------------------------------------------


def row(number: int, ts_ms: int, *, timed: bool = True, identity: str = "", **changed: Any) -> Change:
    fields: dict[str, Any] = {
        "ts_ms": ts_ms,
        "collected_ms": ts_ms,
        "has_event_time": timed,
        "exchange": "binance",
        "stream_seq": number,
        "event_id": identity or f"{number}:{ts_ms}",
        "update_type": "delta",
        "bids": "[]",
        "asks": "[]",
        "last_update_id": number,
        "prev_update_id": number - 1,
        "checksum": None,
        "exact_from": None,
        "exact_to": None,
    }
    return Change(**fields | changed)


def test_a_stream_that_was_made_anew_comes_after_the_first() -> None:
    first = [row(n, 1_000_000 + n) for n in range(500, 520)]
    second = [row(n, 1_200_000 + n) for n in range(1, 530)]
    assert in_order([*second, *first]) == first + second


def test_a_young_stream_is_one_though_an_exchanges_clock_is_ahead() -> None:
    """A snapshot without a time was stored under ours, behind changes that came after it."""
    rows = [row(1, 5_000, timed=False), *(row(n, 1_000 + n, collected_ms=5_000 + n) for n in range(2, 9))]
    assert in_order(reversed(rows)) == rows


def test_a_late_repetition_stays_where_the_stream_has_it() -> None:
    rows = [row(1, 1_000_000), row(2, 1_100_000), row(3, 1_010_000), row(4, 1_101_000)]
    assert in_order(reversed(rows)) == rows


@given(st.permutations([row(n, 1_000 + n // 3, timed=n % 5 > 0) for n in range(20)]))
def test_rows_come_in_the_order_of_the_stream_and_once(rows: list[Change]) -> None:
    assert [r.stream_seq for r in in_order([*rows, *rows[:7]])] == list(range(20))


def test_a_change_that_does_not_follow_ends_the_book_until_a_snapshot() -> None:
    book = Rebuilt()
    verdicts = [
        book.take(r)
        for r in (
            row(1, 0),
            row(2, 0, update_type="snapshot"),
            row(3, 0),
            row(3, 0),
            row(9, 0, prev_update_id=2),
            row(8, 0, update_type="snapshot"),
            row(12, 0),
            row(13, 0),
            row(13, 0, update_type="snapshot"),
        )
    ]
    assert verdicts == ["waiting", "taken", "taken", "stale", "taken", "stale", "broken", "waiting", "taken"]


def test_levels_that_are_none_end_the_book() -> None:
    book = Rebuilt()
    steps = (
        row(1, 0, update_type="snapshot"),
        row(2, 0, bids='[["x","1"]]'),
        row(3, 0),
        row(4, 0, update_type="snapshot"),
    )
    assert [book.take(r) for r in steps] == ["taken", "broken", "waiting", "taken"]


def test_okx_may_begin_its_ids_anew() -> None:
    book = Rebuilt()
    steps = (
        row(100, 0, update_type="snapshot", exchange="okx"),
        row(7, 5_000, prev_update_id=100, exchange="okx"),  # the reset still hangs on the last
        row(8, 5_100, exchange="okx"),
        row(3, 30_000, update_type="snapshot", exchange="okx"),
        row(200, 4_000, update_type="snapshot", exchange="okx"),  # of before
    )
    assert [book.take(r) for r in steps] == ["taken", "taken", "taken", "taken", "stale"]


@pytest.mark.parametrize(
    "wrong", ["", "now", "2026-13-01", "-1", "1e3", "9" * 30, "2100-01-01", "2026-11-23T25:00"]
)
def test_a_time_that_is_none_is_told(wrong: str) -> None:
    with pytest.raises(ValueError, match="expected a time"):
        moment_ms(wrong)


@given(st.integers(0, 4_102_444_799_999))
def test_a_time_is_read_as_it_is_shown(ms: int) -> None:
    assert moment_ms(shown(ms)) == moment_ms(str(ms)) == ms


@given(st.integers(0, 10**12), st.integers(1, 10**8), st.integers(10**6, 10**8))
def test_pieces_make_up_the_span(start: int, length: int, piece: int) -> None:
    span = Span(start, start + length)
    pieces = list(span.pieces(piece))
    assert (pieces[0].start_ms, pieces[-1].end_ms) == (span.start_ms, span.end_ms)
    assert all(a.end_ms == b.start_ms and b.start_ms % piece == 0 for a, b in pairwise(pieces))
