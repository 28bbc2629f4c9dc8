"""Live books against other words of the exchange: verified, contradicted, inconclusive; by hand and on recordings."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from captures import capture
from drive import Drive

from marketprism.book import normalise
from marketprism.events import Gap
from marketprism.replay import Replay
from marketprism.venues import VENUES
from marketprism.venues.audit import _STATES_MAX, Check, Word
from marketprism.venues.base import Send
from marketprism.venues.venue import Venue
from marketprism.worker.options import replay_options

INTERVAL_S = 10
T_MS = 1_760_000_000_000


class Exchange:
    """One exchange as these tests speak it: its book, its changes, its witnesses."""

    name: str
    symbol: str
    channel: str  # of a witness

    def __init__(self) -> None:
        self.d = Drive(self.name, self.symbol, audit_interval_ms=INTERVAL_S * 1000, types=["orderbook"])
        self.id = 10
        self.d.open()
        self.begin()
        assert self.d.live(self.symbol)
        self.d.fetches.clear()
        self.d.sends.clear()

    def begin(self) -> None:
        """Whatever makes the book live: bid 99 x 1, ask 101 x 1, at the present id."""
        raise NotImplementedError

    def change(self, quantity: str) -> None:
        """The next update: this quantity at bid 99."""
        raise NotImplementedError

    def witness(self, quantity: str) -> None:
        """The channel's word on bid 99 at the present id."""
        raise NotImplementedError

    def rest(self, quantity: str) -> Any:
        """REST's word on it."""
        raise NotImplementedError

    def until_asked(self) -> None:
        """Let time pass until a check begins; the stream goes on meanwhile."""
        for _ in range(400):
            if self.d.venue.auditor.check is not None:
                return
            self.d.tick()
        pytest.fail("no check in 40 s")

    def until_ended(self) -> None:
        for _ in range(100):
            if self.d.venue.auditor.check is None:
                return
            self.d.tick()
        pytest.fail("the check did not end in 10 s")

    @property
    def counts(self) -> dict[str, int]:
        return {k: n for k, n in self.d.venue.auditor.counts.items() if n}

    def operations(self) -> list[Send]:
        """What of ours was about the witnesses."""
        return [s for s in self.d.sends if self.channel in s.text]

    def said(self) -> list[str]:
        """The same in a word each."""
        return ["off" if "unsubscribe" in s.text.lower() else "on" for s in self.operations()]


class Spot(Exchange):
    name, symbol = "binance_spot", "BTCUSDT"
    channel = "@bookTicker"

    def begin(self) -> None:
        self.d.frame(self._depth("1"))
        self.d.answer("depth", self.rest("1"))

    def change(self, quantity: str) -> None:
        self.id += 1
        self.d.frame(self._depth(quantity))

    def _depth(self, quantity: str) -> Any:
        ids = {"U": self.id, "u": self.id, "pu": self.id - 1}
        data = {
            "e": "depthUpdate",
            "E": T_MS + self.id,
            "s": self.symbol,
            **ids,
            "b": [["99", quantity]],
            "a": [],
        }
        return {"stream": "btcusdt@depth@100ms", "data": data}

    def witness(self, quantity: str) -> None:
        data = {"u": self.id, "s": self.symbol, "b": "99", "B": quantity, "a": "101.0", "A": "1.00"}
        self.d.frame({"stream": "btcusdt@bookTicker", "data": data})

    def rest(self, quantity: str) -> Any:
        return {"lastUpdateId": self.id, "bids": [["99", quantity]], "asks": [["101", "1"]]}


class Usdm(Spot):
    name = "binance_derivatives"


class OkxSwap(Exchange):
    name, symbol = "okx_derivatives", "BTC-USDT-SWAP"
    channel = "bbo-tbt"

    def begin(self) -> None:
        self.d.frame(self._books("snapshot", -1, "1", [["101", "1", "0", "1"]]))

    def change(self, quantity: str) -> None:
        self.id += 1
        self.d.frame(self._books("update", self.id - 1, quantity, []))

    def _books(self, action: str, prev: int, quantity: str, asks: Any) -> Any:
        row = {"asks": asks, "bids": [["99", quantity, "0", "1"]], "ts": str(T_MS + self.id)}
        row |= {"checksum": 0, "seqId": self.id, "prevSeqId": prev}
        return {"arg": {"channel": "books", "instId": self.symbol}, "action": action, "data": [row]}

    def _row(self, quantity: str) -> Any:
        bids, asks = [["99", quantity, "0", "1"]], [["101", "1", "0", "1"]]
        return {"bids": bids, "asks": asks, "ts": str(T_MS + self.id), "seqId": self.id}

    def witness(self, quantity: str) -> None:
        arg = {"channel": "bbo-tbt", "instId": self.symbol}
        self.d.frame({"arg": arg, "data": [self._row(quantity)]})

    def rest(self, quantity: str) -> Any:
        return {"code": "0", "msg": "", "data": [self._row(quantity)]}


class OkxSpot(OkxSwap):
    name, symbol = "okx_spot", "BTC-USDT"


class DeribitPerpetual(Exchange):
    name, symbol = "deribit_derivatives", "BTC-PERPETUAL"
    channel = "ticker."

    def _data(self, channel: str, data: Any) -> Any:
        common = {"instrument_name": self.symbol, "timestamp": T_MS + self.id}
        params = {"channel": channel, "data": common | data}
        return {"jsonrpc": "2.0", "method": "subscription", "params": params}

    def begin(self) -> None:
        book = {
            "type": "snapshot",
            "change_id": self.id,
            "bids": [["new", 99.0, 1.0]],
            "asks": [["new", 101.0, 1.0]],
        }
        self.d.frame(self._data(f"book.{self.symbol}.100ms", book))

    def change(self, quantity: str) -> None:
        self.id += 1
        book = {"type": "change", "prev_change_id": self.id - 1, "change_id": self.id, "asks": []}
        self.d.frame(
            self._data(f"book.{self.symbol}.100ms", book | {"bids": [["change", 99.0, float(quantity)]]})
        )

    def witness(self, quantity: str) -> None:
        best = {
            "best_bid_price": 99.0,
            "best_bid_amount": float(quantity),
            "best_ask_price": 101,
            "best_ask_amount": 1,
        }
        figures = {"open_interest": 5.0, "mark_price": 100.0, "index_price": 100.0, "current_funding": 0.0}
        self.d.frame(self._data(f"ticker.{self.symbol}.100ms", best | figures))

    def rest(self, quantity: str) -> Any:
        sides = {"bids": [[99.0, float(quantity)]], "asks": [[101.0, 1e0]]}
        return {"result": {"timestamp": T_MS + self.id, "change_id": self.id, **sides}}


ALL = [Spot, Usdm, OkxSwap, OkxSpot, DeribitPerpetual]
every = pytest.mark.parametrize("kind", ALL)


# -- verdicts --------------------------------------------------------------------------------------------------


@every
def test_a_right_book_is_verified(kind: type[Exchange]) -> None:
    x = kind()
    x.until_asked()
    x.change("2")
    x.witness("2")
    x.d.answer("audit", x.rest("2"))
    x.until_ended()
    assert x.counts == {"verified": 1}
    assert x.said() == ["on", "off"]
    assert x.d.of(Gap) == []
    assert x.d.notes == []
    assert {type(e.data).__struct_config__.tag for e in x.d.events} == {"orderbook", "orderbook_delta"}


@every
def test_a_witness_ahead_of_the_book_waits_for_it(kind: type[Exchange]) -> None:
    x = kind()
    x.until_asked()
    x.id += 1
    x.witness("2")
    x.d.tick()
    x.id -= 1
    x.change("2")
    x.until_ended()
    assert x.counts == {"verified": 1}


@every
def test_a_witness_of_another_moment_says_nothing(kind: type[Exchange]) -> None:
    x = kind()
    x.until_asked()
    x.id += 5
    x.witness("7")
    x.d.answer("audit", x.rest("7"))
    x.id -= 5
    x.change("2")
    x.until_ended()
    assert x.counts == {"inconclusive": 1}
    assert x.said() == ["on", "off"]
    assert x.d.live(x.symbol)


@every
def test_a_wrong_book_is_a_gap_and_is_begun_anew(kind: type[Exchange]) -> None:
    x = kind()
    x.until_asked()
    x.change("2")
    x.d.sends.clear()
    x.d.answer("audit", x.rest("3"))
    x.d.tick()
    assert x.counts == {"contradicted": 1}
    assert not x.d.live(x.symbol)
    (gap,) = x.d.gaps()
    assert (gap.cause, gap.last_id_before) == ("audit", str(x.id))
    assert "bid 1: expected 3" in gap.detail
    assert "the book has 2" in gap.detail
    (note,) = x.d.notes
    assert (note.level, note.event, note.instrument) == ("error", "audit", x.symbol)
    assert x.said() == ["off"]
    # A new book is asked for, in the exchange's own way.
    assert x.d.asked("depth") or any("unsubscribe" in s.text and "book." in s.text for s in x.d.sends)


@pytest.mark.parametrize("kind", [Spot, Usdm, OkxSwap, OkxSpot])
def test_a_channel_with_ids_contradicts_at_once(kind: type[Exchange]) -> None:
    x = kind()
    x.until_asked()
    x.change("2")
    x.witness("3")
    x.d.tick()
    assert x.counts == {"contradicted": 1}


def test_a_channel_without_ids_contradicts_at_the_third_time_in_a_row() -> None:
    x = DeribitPerpetual()
    x.until_asked()
    for told in ("9", "9", "2", "9", "9"):  # the third word agrees
        x.change("2")
        x.witness(told)
        x.d.tick()
    assert x.counts == {}
    x.change("2")
    x.witness("9")
    x.d.tick()
    assert x.counts == {"contradicted": 1}


def test_two_states_within_one_millisecond_are_not_told_apart_by_time() -> None:
    x = DeribitPerpetual()
    x.until_asked()
    for n in range(5):
        x.change("2")
        change = {"type": "change", "prev_change_id": x.id, "change_id": x.id + 100, "asks": []}
        x.d.frame(x._data(f"book.{x.symbol}.100ms", change | {"bids": [["change", 99.0, 3.0 + n]]}))
        x.witness("2")
        x.id += 100
        x.d.tick()
    assert x.counts == {}


def test_a_clock_of_the_exchange_that_is_set_back() -> None:
    x = DeribitPerpetual()
    x.until_asked()
    for _ in range(10):
        x.change("2")
    x.witness("2")
    x.d.tick()
    before, book_id = x.id, x.id
    for back in range(9, 0, -1):  # the same milliseconds again, with another book
        change = {"type": "change", "prev_change_id": book_id, "change_id": book_id + 100, "asks": []}
        book_id += 100
        x.id = before - back
        if back in (9, 4):
            x.d.frame(x._data(f"book.{x.symbol}.100ms", change | {"bids": [["change", 99.0, 3.0]]}))
        else:
            book_id -= 100
        x.witness("3")
        x.d.tick()
    x.until_ended()
    assert x.counts == {"verified": 1}


def test_an_empty_side_of_a_ticker() -> None:
    x = DeribitPerpetual()
    x.until_asked()
    for _ in range(3):  # without an ask in it, that would be a contradiction
        x.change("2")
        data = {"best_bid_price": 99.0, "best_bid_amount": 2.0, "best_ask_price": 0.0, "best_ask_amount": 0.0}
        x.d.frame(x._data(f"ticker.{x.symbol}.100ms", data))
        x.d.tick()
    assert x.counts == {"contradicted": 1}
    assert "ask 1: expected none" in x.d.gaps()[0].detail


def test_beyond_the_end_of_a_cut_book_nothing_is_compared() -> None:
    d = Drive(
        "binance_spot", "BTCUSDT", audit_interval_ms=1, types=["orderbook"], depth_limit=5, snapshot_depth=5
    )
    d.open()
    x = Spot.__new__(Spot)
    x.d, x.id = d, 10
    d.frame(x._depth("1"))
    five = [[str(99 - n), "1"] for n in range(5)], [[str(101 + n), "1"] for n in range(5)]
    d.answer("depth", {"lastUpdateId": 10, "bids": five[0], "asks": five[1]})
    d.tick()
    more = [*five[0], ["90", "1"]], [*five[1], ["111", "1"]]
    d.answer("audit", {"lastUpdateId": 10, "bids": more[0], "asks": more[1]})
    d.wait(3, 0.1)
    assert x.counts == {"verified": 1}


# -- manners ---------------------------------------------------------------------------------------------------


@every
def test_the_rate(kind: type[Exchange]) -> None:
    """Ten minutes without a verdict: six requests a check, and OKX a quarter of its operations of an hour."""
    x = kind()
    asked = 0
    for _ in range(6_000):
        x.d.tick()
        for fetch in x.d.asked("audit"):
            asked += 1
            x.d.fetches.remove(fetch)
            x.d.respond(fetch, "", status=0)
    checks = sum(x.counts.values())
    assert 58 <= checks <= 61
    assert 4 * checks <= asked <= 6 * checks
    most = 20 if kind.name.startswith("okx") else 2 * checks + 1
    assert most - 2 <= len(x.operations()) <= most


@every
def test_requests_do_not_pile_up_while_none_is_answered(kind: type[Exchange]) -> None:
    x = kind()
    x.d.wait(600, 0.1)
    assert len(x.d.asked("audit")) == 1
    x.d.answer("audit", "", status=0)
    x.d.wait(60, 0.1)
    assert len(x.d.asked("audit")) == 1


def test_each_book_in_turn() -> None:
    names = [f"A{n}USDT" for n in range(7)]
    d = Drive("binance_spot", *names, audit_interval_ms=10_000, types=["orderbook"])
    d.open()
    for name in names:
        data = {"e": "depthUpdate", "E": T_MS, "s": name, "U": 10, "u": 10, "b": [["99", "1"]], "a": []}
        d.frame({"stream": f"{name.lower()}@depth@100ms", "data": data})
        d.answer("depth", {"lastUpdateId": 10, "bids": [["99", "1"]], "asks": [["101", "1"]]})
    seen: Counter[str] = Counter()
    while sum(seen.values()) < 21:
        d.tick()
        for fetch in d.asked("audit"):
            seen[fetch.instrument] += 1
            d.respond(fetch, {"lastUpdateId": 10, "bids": [["99", "1"]], "asks": [["101", "1"]]})
        d.fetches.clear()
    assert seen == dict.fromkeys(names, 3)


@every
def test_one_contradicted_again_and_again_is_left_alone_for_longer_each_time(kind: type[Exchange]) -> None:
    x = kind()
    began: list[int] = []
    for _ in range(5):
        while x.d.venue.auditor.check is None:
            x.d.tick(1)
        began.append(x.d.now_ns)
        x.d.fetches = [f for f in x.d.fetches if f.kind == "audit"][-1:]
        x.d.answer("audit", x.rest("9"))
        x.d.tick()
        assert not x.d.live(x.symbol)
        x.id += 1
        if kind in (Spot, Usdm):
            x.d.frame(x._depth("1"))  # type: ignore[attr-defined]
            x.d.answer("depth", x.rest("1"))
        else:
            x.begin()
        assert x.d.live(x.symbol)
    pauses = [round((b - a) / 1e9) for a, b in pairwise(began)]
    assert [n >= wanted for n, wanted in zip(pauses, (10, 20, 40, 80), strict=True)] == [True] * 4
    assert pauses[-1] < 100


@every
def test_a_lost_connection_ends_the_check_and_the_next_one_is_not_subscribed(kind: type[Exchange]) -> None:
    x = kind()
    x.until_asked()
    x.change("2")
    x.d.close()
    x.d.open("c2")
    x.d.tick()
    assert x.counts == {"inconclusive": 1}
    assert [s.conn for s in x.operations()] == ["c1", "c1"]
    assert x.d.venue.markets[x.symbol].book.watch is None  # type: ignore[union-attr]


@every
def test_without_an_interval_nothing_is_checked(kind: type[Exchange]) -> None:
    x = kind()
    d = Drive(kind.name, kind.symbol, types=["orderbook"])
    d.open()
    x.d = d
    x.begin()
    d.fetches.clear()
    d.wait(100)
    x.change("2")
    x.witness("9")
    assert (d.asked("audit"), d.venue.auditor.check, d.gaps()) == ([], None, [])


@every
def test_a_witness_that_is_no_book_is_malformed(kind: type[Exchange]) -> None:
    x = kind()
    x.until_asked()
    x.d.answer("audit", '{"code":"0","data":[')
    assert [n.event for n in x.d.notes] == ["malformed"]
    x.until_ended()
    assert x.counts == {"inconclusive": 1}


@every
def test_memory_is_bounded(kind: type[Exchange]) -> None:
    x = kind()
    x.until_asked()
    check = x.d.venue.auditor.check
    assert check is not None
    for n in range(3 * _STATES_MAX):
        x.change(str(n + 1))
        x.id += 10**6
        x.witness("1")  # of a moment that never comes
        x.id -= 10**6
    assert len(check._states) <= 2 * _STATES_MAX
    assert len(check._words) <= _STATES_MAX


# -- recordings ------------------------------------------------------------------------------------------------


class Everywhere:
    """In the place of an auditor: every live book is under observation from its beginning on."""

    check = True  # somebody listens

    def __init__(self, venue: Venue) -> None:
        self.compared: Counter[str] = Counter()
        self._venue = venue
        self._checks: dict[str, Check] = {}

    def tick(self, *_: object) -> None:
        """Nothing is asked of a recording."""

    def hear(self, name: str, witness: str, moment: Any, depth: int, bids: Any, asks: Any) -> None:
        market = self._venue.market(name)
        if market is None or market.book is None or not market.book.live:
            return
        check = self._checks.get(name) or self._checks.setdefault(name, Check(market.book, "", 0))
        assert not check.broken_off
        check.hear(Word(witness, moment, depth, normalise(bids), normalise(asks)))
        waiting = len(check._words)
        assert check.compare() is None
        self.compared[witness] += waiting - len(check._words)


# Recording, exchange, witness, equal moments known from a check made with other code.
RECORDED = [
    ("binance_spot.btcusdt.20240808", "binance_spot", "bookTicker", 1072),
    ("binance_derivatives.btcusdt.20240808", "binance_derivatives", "bookTicker", 503),
    ("binance_spot.many.202104", "binance_spot", "bookTicker", 199),
    ("binance_derivatives.many.202104", "binance_derivatives", "bookTicker", 86),
    ("deribit.options.202104", "deribit_derivatives", "ticker", 39),
]


@pytest.mark.parametrize(("name", "exchange", "witness", "moments"), RECORDED)
def test_recorded_books_and_their_witnesses_agree(
    name: str, exchange: str, witness: str, moments: int
) -> None:
    venue = VENUES[exchange](replace(replay_options(exchange, None), audit_interval_ms=1))
    everywhere = venue.auditor = Everywhere(venue)  # type: ignore[assignment]
    path = capture(f"{name}.jsonl.gz")
    Replay(venue, [path], lambda event: None).run()
    few = 5  # from before the first word about a book
    assert everywhere.compared[witness] >= moments - few, everywhere.compared
