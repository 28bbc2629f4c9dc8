"""Trades: each id once, and every id in between either published or told.

What holds, for any interleaving of live trades, repetitions, backfill pages, failures and disconnects:
1. no id is published twice; 2. no told gap covers a published id; 3. no two told gaps cover the same id; 4. whenever an
id is published, every id before it is published already, or in a told gap, or was left out between two ids that the
exchange listed in one page. So whoever dies leaves no hole behind the last id that it published.
"""

from hypothesis import given, settings
from hypothesis import strategies as st

from marketprism.events import Event, Gap, Trade
from marketprism.venues.base import SECOND, Instrument, Out
from marketprism.venues.trades import TradeLog

I = Instrument("X", "okx", "spot", "X-Y", "base")  # noqa: E741


class Exchange:
    """Trades 1, 2, 3 … of which some were never given out, and a log that hears of them."""

    def __init__(
        self, missing: frozenset[int] = frozenset(), newest_first: bool = False, page: int = 4
    ) -> None:
        self.log = TradeLog(I, self._backfill)
        self.missing = missing
        self.newest_first = newest_first
        self.page = page
        self.gone_before = 0  # what REST does not hold any more
        self.asked: list[tuple[int, int]] = []
        self.published: list[int] = []
        self.listed: list[set[int]] = []
        self.gaps: list[Gap] = []
        self.now_ns = 1_700_000_000 * SECOND
        self.newest = 0

    def _backfill(self, instrument: Instrument, first: int, last: int, out: Out) -> bool:
        self.asked.append((first, last))
        return True

    def see(self, out: Out) -> None:
        for item in out:
            assert isinstance(item, Event)
            if isinstance(item.data, Gap):
                self.gaps.append(item.data)
                assert not any(n in told_by(item.data) for n in self.published), "published, and told"
            else:
                assert isinstance(item.data, Trade)
                self.publish(int(item.data.first_trade_id or 0), int(item.data.trade_id))

    def publish(self, first: int, last: int) -> None:
        assert not set(range(first, last + 1)) & set(self.published), "published twice"
        known = {*self.published, *self.passed_over()}
        at = max(self.published, default=first) + 1
        while at < first:
            told = next((t for t in map(told_by, self.gaps) if at in t), None)
            assert told or at in known, "a hole lies before it, and not a word"
            at = told.stop if told else at + 1
        self.published += range(first, last + 1)

    def trade(self, number: int, first: int | None = None) -> bool:
        out: Out = []
        first = first or number
        new = self.log.accept(first, number, 1_700_000_000_000 + number, self.now_ns, out)
        self.see(out)
        self.newest = max(self.newest, number)
        if new and self.log.held_ns is not None:
            self.log.hold(first, trade(first, number))
        elif new:
            self.see([trade(first, number)])
        return new

    def answer(self) -> None:
        """Answer what was asked first, by pages, as REST does."""
        if not self.asked:
            return
        first, last = self.asked.pop(0)
        held = [i for i in range(max(first, self.gone_before + 1), last + 1) if i not in self.missing]
        page = held[-self.page :] if self.newest_first else held[: self.page]
        self.listed.append(set(page))
        for number in page:
            self.trade(number)
        out: Out = []
        self.log.answered((min(page), max(page)) if page else None, self.now_ns, out)
        self.see(out)

    def fail(self, final: bool) -> None:
        if self.asked:
            self.asked.pop(0)
            out: Out = []
            self.log.failed(self.now_ns, out, final=final)
            self.see(out)

    def wait(self, seconds: float) -> None:
        out: Out = []
        self.now_ns += round(seconds * SECOND)
        self.log.tick(self.now_ns, out)
        self.see(out)

    def finish(self) -> None:
        out: Out = []
        self.log.close(self.now_ns, out)
        self.see(out)

    def told(self) -> list[int]:
        ids: list[int] = []
        for g in self.gaps:
            ids += told_by(g)
            assert g.missing == len(told_by(g)) > 0
        return ids

    def passed_over(self) -> set[int]:
        """What a page left out between its first and its last."""
        return {i for page in self.listed if page for i in range(min(page), max(page)) if i not in page}

    def check(self) -> None:
        told = self.told()
        assert len(told) == len(set(told)), "told twice"
        if self.published:
            whole = set(range(min(self.published), max(self.published) + 1))
            assert whole <= set(self.published) | set(told) | self.passed_over()


def trade(first: int, last: int) -> Event:
    data = Trade(
        exchange=I.exchange,
        market_type=I.market_type,
        symbol=I.symbol,
        instrument_id=I.id,
        ts_ms=0,
        collected_ts_ms=0,
        trade_id=str(last),
        first_trade_id=str(first),
        price="1",
        quantity="1",
        exchange_quantity="1",
        quantity_unit="base",
        side="buy",
        trade_ts_ms=0,
        last_trade_id=str(last),
        normalized_symbol=I.symbol,
    )
    return Event.of(I.subject("trade"), I.event_id("trade", last), data)


def told_by(gap: Gap) -> range:
    assert gap.last_id_before is not None
    assert gap.first_id_after is not None
    return range(int(gap.last_id_before) + 1, int(gap.first_id_after))


actions = st.lists(
    st.one_of(
        st.tuples(st.just("next"), st.integers(1, 1)),
        st.tuples(st.just("jump"), st.integers(1, 15)),
        st.tuples(st.just("old"), st.integers(0, 30)),
        st.tuples(
            st.sampled_from(["answer", "answer", "fail", "refuse", "wait", "drop", "forget", "both"]),
            st.integers(0, 40),
        ),
    ),
    max_size=50,
)


@settings(deadline=None, max_examples=250)
@given(
    actions=actions,
    missing=st.frozensets(st.integers(1, 80), max_size=12),
    newest_first=st.booleans(),
    page=st.integers(1, 6),
)
def test_any_interleaving(
    actions: list[tuple[str, int]], missing: frozenset[int], newest_first: bool, page: int
) -> None:
    x = Exchange(missing, newest_first, page)
    x.trade(1)
    for action, n in actions:
        if action in ("next", "jump"):
            number = x.newest + n
            while number in missing:
                number += 1
            x.trade(number)
        elif action == "old" and x.newest - n > 0 and x.newest - n not in missing:
            x.trade(x.newest - n)
        elif action in ("answer", "both"):
            x.answer()
        elif action in ("fail", "refuse"):
            x.fail(action == "refuse")
        elif action == "wait":
            x.wait(n)
        elif action == "drop":
            x.log.disconnected()
        elif action == "forget":
            x.gone_before = max(x.gone_before, x.newest - n)
    x.finish()
    x.check()


@settings(deadline=None, max_examples=60)
@given(jumps=st.lists(st.integers(1, 30), max_size=10), newest_first=st.booleans(), page=st.integers(1, 6))
def test_all_is_filled_where_rest_holds_all(jumps: list[int], newest_first: bool, page: int) -> None:
    x = Exchange(newest_first=newest_first, page=page)
    x.trade(1)
    for jump in jumps:
        x.trade(x.newest + jump)
    while x.asked:
        x.answer()
    x.finish()
    assert x.gaps == []
    assert sorted(x.published) == list(range(1, x.newest + 1))


def test_numbers_a_page_passes_over_were_never_given_out() -> None:
    for newest_first in (False, True):
        x = Exchange(frozenset({5, 9}), newest_first, page=100)
        x.trade(1)
        x.trade(12)
        x.answer()
        assert x.asked == []
        x.finish()
        assert x.gaps == []


def test_what_rest_no_longer_holds_is_told_exactly() -> None:
    for newest_first in (False, True):
        x = Exchange(newest_first=newest_first, page=3)
        x.gone_before = 5
        x.trade(1)
        x.trade(12)
        while x.asked:
            x.answer()
        assert [(g.last_id_before, g.first_id_after, g.missing) for g in x.gaps] == [("1", "6", 4)]
        assert sorted(x.published) == [1, 6, 7, 8, 9, 10, 11, 12]


def test_a_failure_is_retried_after_a_while_not_at_once() -> None:
    x = Exchange()
    x.trade(1)
    x.trade(3)
    x.fail(final=False)
    assert x.asked == []
    x.wait(5)
    assert x.asked == [(2, 2)]
    assert x.published == [1]
    x.answer()
    assert x.published == [1, 2, 3]
    x.finish()
    assert x.gaps == []


def test_rest_that_is_away_for_long_is_told() -> None:
    x = Exchange()
    x.trade(1)
    x.trade(3)
    for _ in range(100):
        x.fail(final=False)
        x.wait(5)
    assert x.told() == [2]


def test_an_answer_that_is_late_is_still_taken() -> None:
    x = Exchange()  # 429 makes the poller hold requests for minutes
    x.trade(1)
    x.trade(5)
    for _ in range(300):
        x.wait(1)
    assert len(x.asked) == 1, "asked again while the first request is still under way"
    x.answer()
    x.finish()
    assert sorted(x.published) == [1, 2, 3, 4, 5]


def test_live_trades_wait_for_a_hole_to_be_filled() -> None:
    x = Exchange(page=2)
    x.trade(1)
    x.trade(6)
    x.trade(7)
    assert x.published == [1]
    x.answer()
    assert x.published == [1, 2, 3]
    x.trade(9)
    x.answer()
    assert x.published == [1, 2, 3, 4, 5, 6, 7]
    x.answer()
    assert x.published == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    x.trade(10)
    assert x.published[-1] == 10
    assert x.gaps == []


def test_live_trades_do_not_wait_for_long() -> None:
    x = Exchange()
    x.trade(1)
    x.trade(4)
    x.wait(9)
    assert x.published == [1]
    x.wait(1)
    assert x.told() == [2, 3]
    assert x.published == [1, 4]
    x.trade(5)
    assert x.published == [1, 4, 5]
    x.answer()
    assert x.published == [1, 4, 5, 2, 3], "what is told is looked for all the same"
    x.trade(7)
    assert x.published[-1] == 3, "another hole"
    x.finish()
    assert x.told() == [2, 3, 6], "told once"
    assert x.published[-1] == 7


def test_numbering_that_begins_anew_is_told_and_followed() -> None:
    x = Exchange()
    x.trade(1_000_000)
    x.wait(3_000)
    out: Out = []
    later_ms = 1_700_000_000_000 + 2_000_000
    for number in (1, 2, 3):
        assert x.log.accept(number, number, later_ms + number, x.now_ns, out)
    x.see(out)
    assert len(x.gaps) == 1
    assert (x.gaps[0].last_id_before, x.gaps[0].first_id_after, x.gaps[0].missing) == ("1000000", "1", None)
    assert not x.log.accept(2, 2, later_ms + 2, x.now_ns, [])
    assert not x.log.accept(2, 2, later_ms + 10**9, x.now_ns, []), "no such time has come yet"


def test_causes() -> None:
    x = Exchange()
    x.log.resume(10, 5)
    x.trade(13)
    x.log.disconnected()
    x.trade(15)
    x.trade(17)
    x.finish()
    assert [g.cause for g in x.gaps] == ["restart", "disconnect", "sequence"]


def test_summed_up_trades() -> None:
    x = Exchange()
    x.trade(1)
    assert x.trade(4, first=2)
    assert not x.trade(4, first=2)
    x.trade(9, first=8)
    assert x.asked == [(5, 7)]
    assert x.trade(6, first=5)
    x.finish()
    assert x.told() == [7]


def test_a_hole_of_absurd_size_does_not_ask_for_ever() -> None:
    x = Exchange(page=1)
    x.trade(1)
    x.trade(10**9)
    for _ in range(1000):
        if not x.asked:
            break
        first = x.asked.pop(0)[0]
        x.trade(first)
        x.listed.append({first})
        out: Out = []
        x.log.answered((first, first), x.now_ns, out)
        x.see(out)
    assert not x.asked
    assert sum(g.missing or 0 for g in x.gaps) + len(x.published) == 10**9
