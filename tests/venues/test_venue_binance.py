"""Binance spot and USD-M: every rule of its books, its sockets and its REST answers."""

from collections.abc import Callable
from typing import Any

import pytest
from drive import Drive

from marketprism.events import (
    FundingRate,
    Gap,
    Liquidation,
    LsrTopPosition,
    OpenInterest,
    OrderBook,
    OrderBookDelta,
    Trade,
)
from marketprism.venues.base import SECOND, Fetch

S = "BTCUSDT"
BIDS = [["99", "1"], ["98", "2"]]
ASKS = [["101", "1"], ["102", "2"]]


def depth(
    first: int,
    last: int,
    bids: Any = (),
    asks: Any = (),
    *,
    ms: int = 1_760_000_000_000,
    pu: int | None = None,
    symbol: str = S,
) -> dict[str, Any]:
    data = {"e": "depthUpdate", "E": ms, "s": symbol, "U": first, "u": last, "b": bids, "a": asks}
    if pu is not None:
        data |= {"pu": pu, "T": ms, "st": 1, "ps": symbol}
    return {"stream": f"{symbol.lower()}@depth@100ms", "data": data}


def rest(last_id: int, bids: Any = BIDS, asks: Any = ASKS, ms: int | None = None) -> dict[str, Any]:
    body = {"lastUpdateId": last_id, "bids": bids, "asks": asks}
    return body if ms is None else {**body, "E": ms, "T": ms}


def trade(number: int, ms: int = 1_760_000_000_000, **other: Any) -> dict[str, Any]:
    data = {
        "e": "trade",
        "E": ms,
        "s": S,
        "t": number,
        "p": "100.10",
        "q": "0.5",
        "T": ms,
        "m": True,
        "M": True,
    }
    return {"stream": "btcusdt@trade", "data": data | other}


def spot(**options: Any) -> Drive:
    return Drive("binance_spot", S, **options)


def usdm(**options: Any) -> Drive:
    return Drive("binance_derivatives", S, **options)


def live_spot(last_id: int = 10, **options: Any) -> Drive:
    d = spot(**options)
    d.open()
    d.frame(depth(last_id - 1, last_id))
    d.answer("depth", rest(last_id))
    assert d.live(S)
    return d


# -- splices ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "last", "spliced"),
    [(11, 13, True), (9, 11, True), (5, 20, True), (11, 11, True), (12, 14, False)],
)
def test_spot_splice(first: int, last: int, spliced: bool) -> None:
    d = spot()
    d.open()
    d.frame(depth(first, last, [["99", "7"]]))
    d.answer("depth", rest(10))
    assert d.live(S) is spliced
    assert [(x.update_type, x.last_update_id) for x in d.of(OrderBookDelta)] == (
        [("snapshot", 10), ("delta", last)] if spliced else []
    )
    assert d.gaps() == []


def test_spot_drops_what_the_snapshot_holds_and_keeps_what_came_while_it_was_fetched() -> None:
    d = spot()
    d.open()
    for first in range(1, 31, 3):
        d.frame(depth(first, first + 2, [["99", str(first)]]))
    assert len(d.asked("depth")) == 1
    d.answer("depth", rest(14))
    assert [x.last_update_id for x in d.of(OrderBookDelta)] == [14, 15, 18, 21, 24, 27, 30]
    d.frame(depth(31, 31, [["99", "0"]]))
    assert d.judge.books[S].best()[0] == ("98", "2")


def test_spot_snapshot_older_than_the_stream_is_fetched_again_not_at_once() -> None:
    d = spot()
    d.open()
    d.frame(depth(20, 21))
    for stale in (5, 18):
        d.answer("depth", rest(stale))
        assert not d.live(S)
        assert d.asked("depth") == []
        d.wait(5)
    d.answer("depth", rest(19))
    assert d.live(S)
    assert d.gaps() == []


def test_a_snapshot_ahead_of_the_stream_waits_for_it() -> None:
    d = spot()
    d.open()
    d.frame(depth(1, 2))
    d.answer("depth", rest(10))
    d.frame(depth(3, 9))
    d.frame(depth(10, 10))
    d.frame(depth(11, 12))
    assert [x.last_update_id for x in d.of(OrderBookDelta)] == [10, 12]
    assert d.gaps() == []


def test_a_quiet_symbol_is_asked_for_without_a_word_from_the_stream() -> None:
    d = spot()
    d.open()
    d.frame({"result": None, "id": d.sent()[0]["id"]})
    assert d.asked("depth") == []
    d.wait(6)
    d.answer("depth", rest(10))
    assert d.live(S)


@pytest.mark.parametrize(
    ("first", "last", "pu", "spliced"),
    [
        (8, 12, 7, True),
        (10, 12, 8, True),  # U == L
        (13, 15, 10, True),  # pu == L, U not contiguous
        (11, 15, 10, True),
        (12, 15, 11, False),  # something between is missing
    ],
)
def test_usdm_splice(first: int, last: int, pu: int, spliced: bool) -> None:
    d = usdm()
    d.open()
    d.frame(depth(first, last, [["99", "7"]], pu=pu))
    d.answer("depth", rest(10, ms=1_760_000_000_000))
    assert d.live(S) is spliced
    assert len(d.of(OrderBookDelta)) == (2 if spliced else 0)


def test_usdm_update_that_ends_at_the_snapshot_is_held_by_it() -> None:
    d = usdm()
    d.open()
    d.frame(depth(8, 10, [["99", "7"]], pu=7))  # u == L
    d.frame(depth(14, 15, [["99", "8"]], pu=10))
    d.answer("depth", rest(10))
    assert [x.last_update_id for x in d.of(OrderBookDelta)] == [10, 15]
    d.frame(depth(20, 21, [["99", "9"]], pu=15))  # U != u + 1 is normal here
    assert d.gaps() == []
    d.frame(depth(25, 26, [["99", "9"]], pu=22))
    assert [(g.cause, g.last_id_before, g.first_id_after) for g in d.gaps()] == [("sequence", "21", "25")]


# -- holes and defects -----------------------------------------------------------------------------------------


def test_a_gap_is_told_once_and_the_book_begun_anew() -> None:
    d = live_spot()
    d.frame(depth(11, 11, [["99", "3"]], ms=1_760_000_000_100))
    d.frame(depth(13, 13, [["99", "4"]], ms=1_760_000_000_200))
    gap = d.gaps()[0]
    assert (gap.cause, gap.last_id_before, gap.first_id_after) == ("sequence", "11", "13")
    assert (gap.last_ts_ms_before, gap.first_ts_ms_after) == (1_760_000_000_100, 1_760_000_000_200)
    d.frame(depth(14, 14, [["99", "5"]]))
    assert len(d.asked("depth")) == 1
    d.answer("depth", rest(13))
    assert d.live(S)
    assert d.judge.books[S].best()[0] == ("99", "5")
    assert len(d.gaps()) == 1


def test_a_crossed_book_is_a_defect_told_from_what_was_published_last() -> None:
    d = live_spot()
    d.frame(depth(11, 11, [["99", "3"]]))
    d.frame(depth(12, 12, [["101", "3"]]))
    gap = d.gaps()[0]
    assert (gap.cause, gap.last_id_before, gap.first_id_after) == ("crossed", "11", "12")
    assert not d.live(S)
    assert all(x.last_update_id != 12 for x in d.of(OrderBookDelta))
    d.frame(depth(13, 13))
    d.answer("depth", rest(12))
    assert d.live(S)


def crossed(d: Drive) -> None:
    d.frame(depth(12, 12, [["101", "3"]]))


def refused_level(d: Drive) -> None:
    d.frame(depth(12, 12, [["99", "NaN"]]))


@pytest.mark.parametrize("defect", [crossed, refused_level])
def test_rest_from_before_the_defect_is_asked_for_again(defect: Callable[[Drive], None]) -> None:
    d = live_spot()
    d.frame(depth(11, 11, [["99", "3"]]))
    defect(d)
    d.answer("depth", rest(11))  # nothing is held that could show that it is too old
    assert not d.live(S)
    d.frame(depth(13, 13))
    d.wait(5)
    d.answer("depth", rest(12))
    assert d.live(S)
    assert len(d.gaps()) == 1


def test_crossed_is_judged_after_the_whole_message() -> None:
    d = live_spot()
    d.frame(depth(11, 11, [["101", "3"]], [["101", "0"]]))
    assert d.live(S)
    assert d.judge.books[S].best() == (("101", "3"), ("102", "2"))


def test_a_crossed_snapshot_is_refused() -> None:
    d = spot()
    d.open()
    d.frame(depth(10, 11))
    d.answer("depth", rest(10, [["101", "1"]], [["101", "1"]]))
    assert d.of(OrderBookDelta) == []
    d.wait(5)
    d.answer("depth", rest(11))
    assert d.live(S)


@pytest.mark.parametrize("level", [["x", "1"], ["99", "NaN"], ["99", "-1"], ["1e999", "1"]])
def test_a_figure_that_is_none_costs_the_book_its_trust(level: list[str]) -> None:
    d = live_spot()
    d.frame(depth(11, 11, [level]))
    assert [g.cause for g in d.gaps()] == ["malformed"]
    d.frame(depth(12, 12))
    d.answer("depth", rest(11))
    assert d.live(S)


def test_a_malformed_frame_is_noted_and_the_hole_it_leaves_is_told() -> None:
    d = live_spot()
    message = depth(11, 11)
    del message["data"]["u"]
    d.frame(message)
    assert [n.event for n in d.notes] == ["malformed"]
    assert d.malformed == 1
    d.frame(depth(12, 12))
    assert [g.cause for g in d.gaps()] == ["sequence"]


def test_deletes_of_unknown_levels_are_normal() -> None:
    d = live_spot()
    d.frame(depth(11, 11, [["1", "0"]], [["1000", "0.000"]]))
    assert d.live(S)
    assert d.gaps() == []


def test_disconnect_is_told_and_nothing_is_live_without_a_connection() -> None:
    d = live_spot()
    d.close()
    assert [(g.cause, g.last_id_before) for g in d.gaps()] == [("disconnect", "10")]
    assert not d.live(S)
    d.wait(60)
    assert d.asked("depth") == []
    d.open("c2")
    d.frame(depth(30, 31), "c2")
    d.answer("depth", rest(29))
    assert d.live(S)
    assert len(d.gaps()) == 1


def test_an_answer_that_comes_when_the_connection_is_gone_begins_nothing() -> None:
    d = spot()
    d.open()
    d.frame(depth(10, 11))
    d.close()
    d.answer("depth", rest(10))
    assert not d.live(S)
    assert d.of(OrderBookDelta) == []


def test_an_answer_to_a_connection_that_is_gone_is_not_for_the_next() -> None:
    d = spot()
    d.open()
    d.frame(depth(10, 11))
    d.close()
    d.open("c2")
    d.answer("depth", rest(10))
    d.frame(depth(30, 31), "c2")
    d.answer("depth", rest(29))
    assert d.live(S)
    assert d.gaps() == []


def test_rest_that_answers_after_minutes_is_asked_once() -> None:
    d = spot()
    d.open()
    d.frame(depth(10, 11))
    d.wait(600)
    assert len(d.asked("depth")) == 1
    d.answer("depth", rest(10))
    assert d.live(S)


def test_refusals_are_retried_ever_more_slowly_and_never_given_up() -> None:
    d = spot()
    d.open()
    asked = 0
    for n in range(600):
        d.tick(1)
        d.frame(depth(10 + n, 10 + n))
        while d.asked("depth"):
            asked += 1
            d.answer("depth", b"{}", 500)
    assert 20 <= asked <= 30
    assert all(n.level != "info" for n in d.notes if n.event == "rest_error")


def test_a_clock_that_steps_back_does_not_hang_a_retry() -> None:
    d = spot()
    d.open()
    d.frame(depth(10, 11))
    d.answer("depth", b"", 500)
    d.now_ns -= 3600 * SECOND
    d.wait(5)
    assert len(d.asked("depth")) == 1


def test_ids_that_begin_anew_on_a_live_connection_are_a_hole_not_silence() -> None:
    d = live_spot(1_000_000)
    d.frame(depth(1_000_001, 1_000_001, ms=1_760_000_000_000))
    d.frame(depth(1_000_001, 1_000_001, ms=1_760_000_000_000))  # repeated: nothing
    assert d.gaps() == []
    d.frame(depth(5, 6, ms=1_760_000_060_000))
    assert [g.cause for g in d.gaps()] == ["sequence"]
    d.answer("depth", rest(6))
    assert d.live(S)


# -- the window ------------------------------------------------------------------------------------------------


def twenty(best_bid: int, best_ask: int) -> tuple[list[list[str]], list[list[str]]]:
    return [[str(best_bid - n), "1"] for n in range(20)], [[str(best_ask + n), "1"] for n in range(20)]


def windowed() -> Drive:
    d = spot(snapshot_depth=10, depth_limit=20, snapshot_interval_ms=1000)
    d.open()
    d.frame(depth(10, 10))
    d.answer("depth", rest(10, *twenty(99, 101)))
    assert d.live(S)
    return d


def test_a_truncated_snapshot_tells_its_window_and_shows_nothing_beyond() -> None:
    d = windowed()
    snapshot = d.of(OrderBookDelta)[0]
    assert (snapshot.exact_from, snapshot.exact_to) == ("80", "120")
    d.frame(depth(11, 11, [["70", "5"]], [["130", "5"]], ms=1_760_000_001_000))
    d.frame(depth(12, 12, [[str(p), "0"] for p in range(85, 100)], ms=1_760_000_002_000))
    d.frame(depth(13, 13, ms=1_760_000_003_000))
    top = d.of(OrderBook)[-1]
    assert [x.price for x in top.bids] == ["84", "83", "82", "81", "80"]  # not 70: between them it is dark
    assert len(top.asks) == 10


@pytest.mark.parametrize("ahead", [-1, 0, 3])
def test_the_window_is_refreshed_without_a_gap(ahead: int) -> None:
    """`ahead`: how far REST is ahead of the stream, or behind it."""
    d = windowed()
    d.frame(depth(11, 11, [[str(p), "0"] for p in range(85, 100)], ms=1_760_000_001_000))
    d.wait(11)
    assert len(d.asked("depth")) == 1
    d.frame(depth(12, 12, [["60", "9"]], ms=1_760_000_002_000))
    d.frame(depth(13, 13, [["61", "9"]], ms=1_760_000_002_100))
    d.answer("depth", rest(13 + ahead, *twenty(84, 101)))
    for n in range(14, 19):
        d.frame(depth(n, n, [["62", str(n)]], ms=1_760_000_003_000 + n * 100))
    snapshots = [x for x in d.of(OrderBookDelta) if x.update_type == "snapshot"]
    assert len(snapshots) == 2
    assert snapshots[1].exact_from is not None
    assert int(snapshots[1].exact_from) < 80
    assert d.judge.books[S].last_id == 18
    d.frame(depth(19, 19, ms=1_760_000_009_000))
    assert len(d.of(OrderBook)[-1].bids) == 10
    assert d.gaps() == []


def test_a_refresh_that_fails_leaves_the_book_as_it_is() -> None:
    d = windowed()
    d.frame(depth(11, 11, [[str(p), "0"] for p in range(85, 100)]))
    d.wait(11)
    d.answer("depth", b"", 500)
    d.frame(depth(12, 12, [["84", "9"]]))
    assert d.live(S)
    d.wait(11)
    d.answer("depth", rest(5, *twenty(84, 101)))  # too old to be of use
    d.frame(depth(13, 13, [["84", "8"]]))
    assert d.live(S)
    d.wait(11)
    assert len(d.asked("depth")) == 1
    assert d.gaps() == []


@pytest.mark.parametrize(
    ("limit", "cut"), [("&limit=20", True), ("&limit=1000", False), ("&limit=21", False), ("", True)]
)
def test_what_was_asked_for_tells_whether_a_book_was_cut(limit: str, cut: bool) -> None:
    d = spot()
    d.open()
    d.frame(depth(10, 11))
    fetch = Fetch("depth", S, f"https://api.binance.com/api/v1/depth?symbol=BTCUSDT{limit}")
    d.respond(fetch, rest(10, *twenty(99, 101)))
    assert (d.of(OrderBookDelta)[0].exact_from is not None) is cut


def test_an_unusual_limit_cuts_too() -> None:
    d = spot()
    d.open()
    d.frame(depth(10, 11))
    bids, asks = twenty(99, 101)
    d.respond(Fetch("depth", S, "/api/v3/depth?symbol=BTCUSDT&limit=17"), rest(10, bids[:17], asks[:9]))
    first = d.of(OrderBookDelta)[0]
    assert first.exact_from == "83"
    assert first.exact_to is None


# -- what is shown ---------------------------------------------------------------------------------------------


def test_orderbook_follows_the_exchanges_clock() -> None:
    d = live_spot(snapshot_interval_ms=1000)
    for n, ms in enumerate((100, 900, 1_000, 1_050, 3_999, 4_000)):
        d.frame(depth(11 + n, 11 + n, [["99", str(n + 1)]], ms=1_760_000_000_000 + ms))
    shown = [(x.last_update_id, x.bids[0].quantity) for x in d.of(OrderBook)]
    assert shown == [(10, "1"), (12, "2"), (14, "4"), (15, "5")]


def test_a_book_gone_quiet_is_shown_once() -> None:
    d = live_spot(snapshot_interval_ms=1000)
    d.frame(depth(11, 11, [["99", "5"]]))
    d.wait(30)
    assert [x.last_update_id for x in d.of(OrderBook)] == [10, 11]


def test_checkpoints_are_whole_books_in_the_chain() -> None:
    d = live_spot(checkpoint_interval_ms=10_000)
    for n in range(11, 61):
        d.frame(depth(n, n, [["99", str(n)]], ms=1_760_000_000_000 + (n - 11) * 1_000))
    kinds = [x.update_type for x in d.of(OrderBookDelta)]
    assert kinds.count("snapshot") == 5
    assert len({e.id for e in d.events}) == len(d.events)


def test_republish() -> None:
    d = live_spot()
    d.take(d.venue.republish([S, "nothing"], d.now_ns))
    assert [x.update_type for x in d.of(OrderBookDelta)] == ["snapshot", "snapshot"]


def test_polled_books() -> None:
    d = spot(book_method="snapshot", snapshot_depth=1)
    poll = d.venue.polls()[0].fetch(d.now_ns)
    assert "limit=5" in poll.path
    d.respond(poll, rest(10))
    assert [(x.last_update_id, len(x.bids), len(x.asks)) for x in d.of(OrderBook)] == [(10, 1, 1)]
    d.respond(poll, rest(11, [["101", "1"]], [["101", "1"]]))
    d.respond(poll, rest(12, [["x", "1"]], [["101", "1"]]))
    assert len(d.of(OrderBook)) == 1
    assert len(d.notes) == 2


# -- two connections -------------------------------------------------------------------------------------------


def test_hand_over_misses_nothing_and_says_nothing_twice() -> None:
    d = live_spot()
    d.frame(depth(11, 11, [["99", "2"]]))
    d.open("c2")
    d.frame(depth(14, 15, [["99", "4"]]), "c2")  # the new one is ahead
    d.frame(depth(16, 16, [["99", "5"]]), "c2")
    d.frame(depth(12, 13, [["99", "3"]]))
    d.frame(depth(14, 15, [["99", "4"]]))
    d.frame(depth(17, 17, [["99", "6"]]), "c2")
    d.close("c1")
    d.frame(depth(18, 18, [["99", "7"]]), "c2")
    assert [x.last_update_id for x in d.of(OrderBookDelta)] == [10, 11, 13, 15, 16, 17, 18]
    assert d.gaps() == []


def test_a_hole_on_one_connection_is_filled_by_the_other() -> None:
    d = live_spot()
    d.open("c2")
    d.frame(depth(11, 11), "c2")
    d.frame(depth(11, 11))
    d.frame(depth(13, 13), "c2")  # 12 was lost here
    d.frame(depth(12, 12))
    d.frame(depth(14, 14), "c2")
    assert [x.last_update_id for x in d.of(OrderBookDelta)] == [10, 11, 12, 13, 14]
    d.frame(depth(16, 16))
    d.frame(depth(16, 16), "c2")  # 15 was lost on both
    assert [(g.last_id_before, g.first_id_after) for g in d.gaps()] == [("14", "16")]


def test_a_hole_is_told_soon_even_if_the_other_connection_stays_silent() -> None:
    d = live_spot()
    d.open("c2")
    d.frame(depth(13, 13))
    for n in range(14, 26):
        d.tick(1)
        d.frame(depth(n, n))
    assert [(g.last_id_before, g.first_id_after) for g in d.gaps()] == [("10", "13")]
    d.answer("depth", rest(20))
    assert d.live(S)
    assert d.judge.books[S].last_id == 25


def test_a_hole_is_told_at_once_when_the_other_connection_leaves() -> None:
    d = live_spot()
    d.open("c2")
    d.frame(depth(13, 13), "c2")
    d.frame(depth(14, 14), "c2")
    assert d.gaps() == []
    d.close("c1")
    assert [(g.cause, g.last_id_before, g.first_id_after) for g in d.gaps()] == [("sequence", "10", "13")]
    d.answer("depth", rest(13))
    assert d.judge.books[S].last_id == 14


def test_a_connection_that_leaves_while_the_book_is_fetched_leaves_no_hole() -> None:
    d = spot()
    d.open("c1")
    d.open("c2")
    d.frame(depth(8, 8), "c1")
    d.close("c1")
    d.frame(depth(6, 6), "c2")
    d.frame(depth(7, 7), "c2")
    d.frame(depth(8, 8), "c2")
    d.answer("depth", rest(5))
    assert d.live(S)
    assert [x.last_update_id for x in d.of(OrderBookDelta)] == [5, 6, 7, 8]
    assert d.gaps() == []


# -- sockets, subscriptions, control ---------------------------------------------------------------------------


def test_spot_subscribes_on_one_socket() -> None:
    d = spot()
    assert [s.url for s in d.venue.sockets()] == ["wss://stream.binance.com:9443/stream"]
    d.open()
    (message,) = d.sent()
    assert message["method"] == "SUBSCRIBE"
    assert message["params"] == ["btcusdt@depth@100ms", "btcusdt@trade"]


def test_usdm_sockets_by_path() -> None:
    d = usdm()
    assert {s.name: s.url for s in d.venue.sockets()} == {
        "public": "wss://fstream.binance.com/public/stream",
        "market": "wss://fstream.binance.com/market/stream",
    }
    d.open("c1", "public")
    assert [m["params"] for m in d.sent()] == [["btcusdt@depth@100ms"]]
    d.open("c2", "market")
    assert [m["params"] for m in d.sent()] == [["btcusdt@aggTrade", "!forceOrder@arr"]]


def test_many_symbols_are_spread() -> None:
    d = Drive("binance_spot", *[f"A{n}USDT" for n in range(250)])
    sockets = d.venue.sockets()
    assert len(sockets) == 3
    for n, socket in enumerate(sockets):
        d.open(f"c{n}", socket.name)
    params = [p for m in d.sent() for p in m["params"]]
    assert len(params) == len(set(params)) == 500


def test_non_ascii_symbol() -> None:
    d = Drive("binance_spot", "币安USDT")
    d.open()
    assert d.sent()[0]["params"][0] == "币安usdt@depth@100ms"
    message = depth(10, 11, symbol="币安USDT")
    d.frame(message)
    d.answer("depth", rest(10))
    assert d.live("币安USDT")
    d.frame(str(depth(12, 12, symbol="币安USDT")).replace("'", '"').replace("()", "[]").replace(" ", ""))
    assert len(d.of(OrderBookDelta)) == 3


def test_acks() -> None:
    d = spot()
    d.open()
    request = d.sent()[0]
    d.frame({"result": None, "id": request["id"]})
    d.wait(20)
    assert [n for n in d.notes if n.event == "unacknowledged"] == []
    d.open("c2")
    d.wait(20)
    assert [n.event for n in d.notes if n.event == "unacknowledged"] == ["unacknowledged"] * 2
    assert [m["method"] for m in d.sent()][-1] == "SUBSCRIBE"


@pytest.mark.parametrize(
    "message",
    [
        {"code": 2, "msg": "Invalid request: x", "id": 1},
        {"code": 3, "msg": "Invalid JSON: x"},
        {"error": {"code": 2, "msg": "Invalid request"}, "id": 1},
    ],
)
def test_refusals_are_told(message: dict[str, Any]) -> None:
    d = spot()
    d.open()
    d.frame(message)
    assert [(n.level, n.event) for n in d.notes] == [("error", "refused")]
    assert "Invalid" in d.notes[0].text


def test_silent_streams_are_an_alarm() -> None:
    d = spot()
    d.open()
    d.frame({"result": None, "id": 1})
    d.frame(trade(1))
    for _ in range(13):
        d.frame({"result": [], "id": 99})
        d.wait(5)
    silent = [n for n in d.notes if n.event == "silent"]
    assert len(silent) == 1
    assert "btcusdt@depth@100ms" in silent[0].text
    assert "btcusdt@trade" not in silent[0].text


@pytest.mark.parametrize(
    "message",
    [
        {"e": "serverShutdown", "E": 1},
        {"stream": "!serverShutdown", "data": {"e": "serverShutdown", "E": 1}},
    ],
)
def test_server_shutdown_asks_for_an_overlapping_connection(message: dict[str, Any]) -> None:
    d = spot()
    d.open()
    d.frame(message)
    assert [(r.conn, r.overlap) for r in d.reconnects] == [("c1", True)]


def test_a_half_open_connection_is_probed_and_replaced() -> None:
    d = spot()
    d.open()
    d.frame(depth(10, 11))
    d.sent()
    d.wait(31)
    assert "LIST_SUBSCRIPTIONS" in [m["method"] for m in d.sent()]
    d.frame({"result": ["btcusdt@trade"], "id": 5})
    d.wait(12)
    assert d.reconnects == []
    d.wait(31)
    assert [(r.conn, r.overlap) for r in d.reconnects] == [("c1", False)]


def test_raw_frames_without_an_envelope() -> None:
    d = spot()
    d.open()
    d.frame(depth(10, 11)["data"])
    d.answer("depth", rest(10))
    d.frame(trade(7)["data"])
    assert d.live(S)
    assert [t.trade_id for t in d.of(Trade)] == ["7"]


def test_raw_frames_of_what_is_not_wanted() -> None:
    d = usdm(types=["trade"])
    d.open()
    d.frame(MARK["data"])
    d.frame(FORCE["data"])
    d.frame(depth(1, 2, pu=0)["data"])
    assert d.events == []


def test_white_space_does_not_matter() -> None:
    d = spot()
    d.open()
    d.frame(
        '{ "stream": "btcusdt@trade", "data": '
        + str(trade(7)["data"]).replace("'", '"').replace("True", "true")
        + "}"
    )
    assert [t.trade_id for t in d.of(Trade)] == ["7"]


def test_partial_books_are_not_the_diff_stream() -> None:
    d = live_spot()
    for channel in ("depth20@100ms", "depth5", "rpiDepth@500ms", "bookTicker"):
        d.frame({"stream": f"btcusdt@{channel}", "data": {"lastUpdateId": 99, "bids": [], "asks": []}})
    assert d.live(S)
    assert d.notes == []


# -- trades ----------------------------------------------------------------------------------------------------


def test_maker_flag_and_fields() -> None:
    d = spot(types=["trade"])
    d.open()
    d.frame(trade(7))
    d.frame(trade(8, m=False, p="1.50", q="2.000"))
    a, b = d.of(Trade)
    assert (a.side, b.side) == ("sell", "buy")
    assert (b.price, b.quantity, b.exchange_quantity, b.quantity_unit) == ("1.50", "2.000", "2.000", "base")
    assert a.trade_ts_ms == a.ts_ms == 1_760_000_000_000


def test_microseconds() -> None:
    d = spot()
    d.open()
    d.frame(trade(7, ms=1_760_000_000_123_456))
    d.frame(depth(10, 11, ms=1_760_000_000_123_456))
    d.answer("depth", rest(10))
    assert d.of(Trade)[0].ts_ms == 1_760_000_000_123
    assert d.of(OrderBookDelta)[-1].ts_ms == 1_760_000_000_123


def test_a_trade_gap_is_backfilled() -> None:
    d = spot(types=["trade"])
    d.open()
    d.frame(trade(7))
    d.frame(trade(11))
    fetch = d.asked("trades")[0]
    assert "historicalTrades" in fetch.path
    assert "fromId=8&limit=3" in fetch.path
    rows = [
        {"id": n, "price": "1.0", "qty": "2", "time": 1_760_000_000_000, "isBuyerMaker": False}
        for n in (8, 9, 10)
    ]
    d.answer("trades", rows)
    assert [t.trade_id for t in d.of(Trade)] == ["7", "8", "9", "10", "11"]
    d.frame(trade(9))
    assert d.gaps("trade") == []


def test_a_jump_after_a_lost_connection_says_why() -> None:
    d = spot(types=["trade"])
    d.open()
    d.frame(trade(7))
    d.close()
    d.open("c2")
    d.frame(trade(9), "c2")
    d.frame(trade(11), "c2")
    d.answer("trades", b"", 404)
    d.answer("trades", b"", 404)
    assert [g.cause for g in d.gaps("trade")] == ["disconnect", "sequence"]


@pytest.mark.parametrize(
    ("status", "told"), [(400, True), (404, True), (429, False), (418, False), (500, False), (0, False)]
)
def test_what_rest_refuses_for_good_is_told_at_once(status: int, told: bool) -> None:
    d = spot(types=["trade"])
    d.open()
    d.frame(trade(7))
    d.frame(trade(9))
    d.answer("trades", b"", status)
    assert len(d.gaps("trade")) == told
    assert d.asked("trades") == []
    d.wait(2)
    assert len(d.asked("trades")) == (not told)


def test_aggregates_are_backfilled_as_aggregates() -> None:
    d = usdm(types=["trade"])
    d.open("c1", "market")
    for number in (5, 7):
        data = {
            "e": "aggTrade",
            "E": 1,
            "s": S,
            "a": number,
            "p": "1.0",
            "q": "2",
            "f": 50,
            "l": 52,
            "T": 3,
            "m": True,
        }
        d.frame({"stream": "btcusdt@aggTrade", "data": data})
    assert "aggTrades?symbol=BTCUSDT&fromId=6" in d.asked("trades")[0].path
    d.answer("trades", [{"a": 6, "p": "1", "q": "2", "f": 53, "l": 53, "T": 3, "m": False}])
    a, b, c = d.of(Trade)
    assert (a.first_trade_id, a.last_trade_id) == ("50", "52")
    assert (b.trade_id, b.side) == ("6", "buy")
    assert c.trade_id == "7"


def test_a_recording_of_the_other_kind_of_trades_is_not_filled_with_foreign_numbers() -> None:
    d = usdm(types=["trade"])
    d.open("c1", "market")
    d.frame(trade(7))
    d.frame(trade(9))
    assert not any("aggTrades" in f.path for f in d.asked("trades"))
    d = spot(types=["trade"])
    d.open()
    for number in (5, 7):
        d.frame(
            {
                "stream": "btcusdt@aggTrade",
                "data": {"s": S, "a": number, "p": "1", "q": "2", "T": 3, "m": True},
            }
        )
    assert "aggTrades" in d.asked("trades")[0].path
    assert d.of(Trade)[0].first_trade_id is None


@pytest.mark.parametrize("bad", [{"p": "x"}, {"q": ""}, {"q": "1e999999999"}, {"p": None}, {"T": "x"}])
def test_a_malformed_trade_is_a_hole_not_silence(bad: dict[str, Any]) -> None:
    d = spot(types=["trade"])
    d.open()
    d.frame(trade(7))
    d.frame(trade(8, **bad))
    d.frame(trade(9))
    assert d.malformed == 1
    assert "fromId=8" in d.asked("trades")[0].path
    d.finish()
    assert [t.trade_id for t in d.of(Trade)] == ["7", "9"]
    assert [g.missing for g in d.gaps("trade")] == [1]


# -- the rarer types -------------------------------------------------------------------------------------------

MARK: dict[str, Any] = {
    "stream": "btcusdt@markPrice@1s",
    "data": {
        "e": "markPriceUpdate",
        "E": 5,
        "s": S,
        "p": "100.5",
        "i": "100.4",
        "P": "1",
        "r": "0.0001",
        "T": 9,
        "st": 1,
    },
}
FORCE: dict[str, Any] = {
    "stream": "!forceOrder@arr",
    "data": {
        "e": "forceOrder",
        "E": 5,
        "o": {
            "s": "ETHUSDT",
            "S": "SELL",
            "o": "LIMIT",
            "f": "IOC",
            "q": "0.5",
            "p": "100",
            "ap": "101",
            "X": "FILLED",
            "l": "0.5",
            "z": "0.4",
            "T": 1_760_000_000_000,
        },
    },
}


def test_mark_price_and_liquidation() -> None:
    d = usdm()
    d.open("c1", "market")
    d.frame(MARK)
    d.frame({**MARK, "data": {**MARK["data"], "E": 6, "r": ""}})
    rate = d.of(FundingRate)
    assert [(r.current_funding_rate, r.mark_price, r.index_price, r.next_funding_ts_ms) for r in rate] == [
        ("0.0001", "100.5", "100.4", 9)
    ]
    d.frame(FORCE)
    (x,) = d.of(Liquidation)
    assert (x.side, x.instrument_id, x.quantity, x.filled_quantity, x.notional_value) == (
        "sell",
        "ETHUSDT",
        "0.5",
        "0.4",
        "40.4",
    )


def test_liquidations_of_two_connections_are_published_once() -> None:
    d = usdm()
    d.open("c1", "market")
    d.open("c2", "market")
    d.frame(FORCE, "c1")
    d.frame(FORCE, "c2")
    assert len(d.of(Liquidation)) == 1


def test_only_the_socket_with_liquidations_can_lose_them() -> None:
    d = usdm()
    d.open("c1", "public")
    d.open("c2", "market")
    d.close("c1")
    d.open("c3", "public")
    assert d.gaps("liquidation") == []
    d.close("c2")
    d.open("c4", "market")
    assert [g.cause for g in d.gaps("liquidation")] == ["disconnect"]


def test_polled_figures() -> None:
    d = usdm()
    kinds = {p.fetch(d.now_ns).kind for p in d.venue.polls()}
    assert kinds == {
        "funding_rate",
        "funding_info",
        "open_interest",
        "lsr_top_position",
        "lsr_top_account",
        "lsr_all_account",
    }
    premium = {
        "symbol": S,
        "markPrice": "100.5",
        "indexPrice": "100.4",
        "lastFundingRate": "0.0002",
        "nextFundingTime": 9,
        "time": 7,
    }
    d.respond(Fetch("funding_info", "", ""), [{"symbol": S, "fundingIntervalHours": 4}])
    for _ in range(2):
        d.respond(Fetch("funding_rate", S, ""), premium)
        d.respond(Fetch("open_interest", S, ""), {"symbol": S, "openInterest": "12.5", "time": 8})
    assert [(r.current_funding_rate, r.funding_interval) for r in d.of(FundingRate)] == [("0.0002", "4h")]
    assert [
        (o.open_interest_base, o.open_interest_unit, o.open_interest_usd) for o in d.of(OpenInterest)
    ] == [("12.5", "base", "1256.25")]
    rows = [
        {"symbol": S, "longShortRatio": "1.5", "longAccount": "0.6", "shortAccount": "0.4", "timestamp": t}
        for t in (2, 1)
    ]
    for _ in range(2):
        d.respond(Fetch("lsr_top_position", S, ""), rows)
    ratios = d.of(LsrTopPosition)
    assert [(r.ts_ms, r.long_position_ratio, r.short_position_ratio) for r in ratios] == [
        (1, "0.6", "0.4"),
        (2, "0.6", "0.4"),
    ]


def test_figures_of_all_symbols_at_once_and_of_none() -> None:
    d = usdm()
    premium = {
        "markPrice": "100.5",
        "indexPrice": "100.4",
        "lastFundingRate": "0.0002",
        "nextFundingTime": 9,
        "time": 7,
    }
    d.respond(Fetch("funding_rate", "", ""), [{**premium, "symbol": S}, {**premium, "symbol": "ETHUSDT"}])
    assert [r.instrument_id for r in d.of(FundingRate)] == [S]
    everything = Drive("binance_derivatives")
    row = {"longShortRatio": "1.5", "longAccount": "0.6", "shortAccount": "0.4", "timestamp": 1}
    everything.respond(Fetch("lsr_top_account", "", ""), [row])
    everything.respond(Fetch("lsr_top_account", "", ""), [{**row, "pair": "BTCUSD"}])
    assert everything.events == []
    assert "" not in everything.venue.markets


def test_an_unknown_symbol_does_not_keep_the_others_waiting() -> None:
    d = Drive("binance_spot", S, "NOSUCHUSDT")
    d.start()
    assert "symbols=" in d.asked("instruments")[0].path
    d.answer("instruments", {"code": -1121, "msg": "Invalid symbol."}, 400)
    d.wait(11)
    info = {"symbol": S, "baseAsset": "BTC", "quoteAsset": "USDT"}
    assert "symbols=" not in d.asked("instruments")[0].path
    d.answer("instruments", {"symbols": [info, {**info, "symbol": "ETHUSDT", "baseAsset": "ETH"}]})
    assert d.venue.ready
    assert list(d.venue.markets) == [S]
    assert [n.event for n in d.notes if n.level == "error"] == ["unknown_symbol"]


def test_instruments_are_asked_for_until_they_come() -> None:
    d = spot()
    d.start()
    d.answer("instruments", b"", 500)
    d.wait(11)
    d.answer("instruments", b"<html>")
    d.wait(11)
    d.answer("instruments", {"symbols": [{"symbol": S, "baseAsset": "BTC", "quoteAsset": "USDT"}]})
    assert d.venue.ready


def test_dated_futures_keep_their_name() -> None:
    d = Drive("binance_derivatives")
    info = {
        "symbol": "BTCUSDT_210625",
        "baseAsset": "BTC",
        "quoteAsset": "USDT",
        "contractType": "CURRENT_QUARTER",
    }
    for described in (False, True):
        if described:
            d.respond(Fetch("instruments", "", ""), {"symbols": [info]})
        i = d.venue.describe("BTCUSDT_210625")
        assert (i.market_type, i.symbol, i.unit) == ("futures", "BTCUSDT_210625", "base")


def test_nothing_kept_inside_grows_without_end() -> None:
    d = usdm()
    d.open("c1", "market")
    for n in range(30_000):
        d.frame(
            {
                "stream": f"x{n}@aggTrade",
                "data": {"s": f"X{n}", "a": 1, "p": "1", "q": "1", "T": 1, "m": True},
            }
        )
        d.frame({"stream": f"x{n}@nothing", "data": {}})
    connection = d.venue.connections["c1"]
    assert len(connection.seen) <= 10_000
    assert len(d.venue._routes) <= 10_000  # type: ignore[attr-defined]
    assert list(d.venue.markets) == [S]


def test_resume_tells_or_fetches_what_was_missed_since() -> None:
    first = live_spot()
    first.frame(trade(5))
    from marketprism.events import encode

    d = spot()
    assert "trade.binance.spot.BTCUSDT" in d.venue.resume_subjects()
    d.venue.resume([encode(e.data) for e in first.events] + [b"not ours"])
    d.open()
    d.frame(trade(8))
    assert "fromId=6" in d.asked("trades")[0].path
    d.frame(depth(29, 30))
    d.answer("depth", rest(30))
    restart = [g for g in d.of(Gap) if g.cause == "restart"]
    assert [(g.last_id_before, g.first_id_after) for g in restart] == [("10", "30")]
