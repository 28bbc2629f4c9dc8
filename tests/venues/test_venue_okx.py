"""OKX: sequence ids with keepalives and resets, the book without a first snapshot, checksums, units."""

import gzip
import json
from decimal import Decimal
from typing import Any

import pytest
from captures import capture
from drive import Drive

from marketprism.book import Book
from marketprism.events import (
    Event,
    FundingRate,
    Liquidation,
    LsrAllAccount,
    LsrTopPosition,
    OpenInterest,
    OrderBook,
    OrderBookDelta,
    Trade,
    encode,
)
from marketprism.venues.base import Fetch, Instrument

S = "BTC-USDT-SWAP"
BIDS = [["99", "1", "0", "1"], ["98", "2", "0", "1"]]
ASKS = [["101", "1", "0", "1"]]
MS = 1_760_000_000_000


def book(
    action: str,
    prev: int | None,
    last: int | None,
    bids: Any = (),
    asks: Any = (),
    *,
    ts: int = MS,
    checksum: int | None = 0,
) -> dict[str, Any]:
    ids = {"checksum": checksum, "seqId": last, "prevSeqId": prev}
    row = {"asks": asks, "bids": bids, "ts": str(ts)} | {k: v for k, v in ids.items() if v is not None}
    return {"arg": {"channel": "books", "instId": S}, "action": action, "data": [row]}


def snapshot(last: int, bids: Any = BIDS, asks: Any = ASKS, **other: Any) -> dict[str, Any]:
    return book("snapshot", -1, last, bids, asks, **other)


def update(prev: int, last: int, bids: Any = (), asks: Any = (), **other: Any) -> dict[str, Any]:
    return book("update", prev, last, bids, asks, **other)


def bid(quantity: int) -> list[list[str]]:
    return [["99", str(quantity), "0", "1"]]


def rest(last: int | None, bids: Any = BIDS, asks: Any = ASKS, ts: int = MS) -> dict[str, Any]:
    row = {"asks": asks, "bids": bids, "ts": str(ts)}
    return {"code": "0", "msg": "", "data": [row if last is None else {**row, "seqId": last}]}


def okx(**options: Any) -> Drive:
    return Drive("okx_derivatives", S, **options)


def live(last: int = 10, **options: Any) -> Drive:
    d = okx(**options)
    d.open()
    d.frame(snapshot(last))
    assert d.live(S)
    return d


def ids(d: Drive) -> list[int | None]:
    return [x.last_update_id for x in d.of(OrderBookDelta)]


# -- sequence --------------------------------------------------------------------------------------------------


def test_the_documented_example() -> None:
    d = okx()
    d.open()
    d.frame(snapshot(10))
    d.frame(update(10, 15, bid(2), ts=MS + 1))
    d.frame(update(15, 15, ts=MS + 60_000))  # keepalive: nothing published, the chain holds
    d.frame(update(15, 3, bid(3), ts=MS + 60_001))  # ids begin anew
    d.frame(update(3, 5, bid(4), ts=MS + 60_002))
    assert ids(d) == [10, 15, 3, 5]
    assert d.gaps() == []
    assert d.judge.books[S].best()[0] == ("99", "4")
    d.frame(update(3, 5, bid(4), ts=MS + 60_002))  # repeated
    d.frame(update(10, 15, bid(2), ts=MS + 1))
    assert ids(d) == [10, 15, 3, 5]
    assert d.gaps() == []


def test_a_keepalive_that_does_not_chain_tells_a_gap() -> None:
    d = live()
    d.frame(update(12, 12))
    assert [(g.cause, g.last_id_before) for g in d.gaps()] == [("sequence", "10")]


def test_a_second_message_that_does_not_chain_is_a_gap_not_ignored() -> None:
    d = live()
    d.frame(update(11, 14, bid(5)))
    d.frame(update(14, 16, bid(6)))
    assert [(g.last_id_before, g.first_id_after) for g in d.gaps()] == [("10", "14")]
    assert [f.path for f in d.asked("depth")] == [f"/api/v5/market/books?instId={S}&sz=400"]
    assert d.sent()[1:] == []  # no subscription spent on it
    d.answer("depth", rest(15))
    assert ids(d) == [10, 15, 16]
    assert len(d.gaps()) == 1


def test_rest_seeded_from_the_start() -> None:
    d = okx()
    d.open()
    d.frame(update(20, 23, bid(3)))
    d.frame(update(23, 23))
    d.frame(update(23, 30, bid(4)))
    d.answer("depth", rest(18))  # older than the first update: fetched again
    assert not d.live(S)
    d.wait(5)
    d.answer("depth", rest(25))  # within the second
    assert ids(d) == [25, 30]
    d.frame(update(30, 31, bid(5)))
    assert d.gaps() == []
    d.frame(snapshot(40))  # the exchange may always begin the book anew
    d.frame(update(40, 41, bid(6)))
    assert len(d.gaps()) == 1
    assert d.live(S)


def test_in_band_snapshot_while_rest_is_under_way() -> None:
    d = okx()
    d.open()
    d.frame(update(5, 6))
    d.frame(snapshot(10))
    d.frame(update(10, 11, bid(3)))
    d.answer("depth", rest(4))
    assert ids(d) == [10, 11]
    assert d.gaps() == []


def test_ids_that_begin_anew_while_the_book_is_fetched() -> None:
    d = okx()
    d.open()
    d.frame(update(100_000, 100_010, bid(3), ts=MS))
    d.frame(update(100_010, 7, bid(4), ts=MS + 10))
    d.frame(update(7, 9, bid(5), ts=MS + 20))
    d.answer("depth", rest(100_005, ts=MS + 5))  # from before: fetched again, not taken for later
    assert not d.live(S)
    d.wait(5)
    d.answer("depth", rest(8, ts=MS + 5_000))
    assert ids(d) == [8, 9]
    assert d.gaps() == []


def test_a_stale_book_from_before_a_reset_does_not_swallow_the_stream() -> None:
    d = okx()
    d.open()
    d.frame(update(7, 9, bid(4), ts=MS + 20))
    d.answer("depth", rest(100_005, ts=MS + 10))
    for n in range(20):
        d.frame(update(9 + n, 10 + n, bid(5 + n), ts=MS + 1_000 * n))
    assert [g.cause for g in d.gaps()] == ["sequence"]
    d.answer("depth", rest(29, ts=MS + 30_000))
    assert d.live(S)


def test_ids_that_begin_anew_unheard_while_the_book_is_fetched() -> None:
    d = okx()
    d.open()
    d.frame(update(100_000, 100_010, bid(3), ts=MS))
    for n in range(30):
        d.frame(update(7 + n, 8 + n, bid(4), ts=MS + 1_000 * n))
        d.tick(1)
        if d.asked("depth"):
            d.answer("depth", rest(8 + n, ts=MS + 1_000 * n))
    assert d.live(S)
    assert d.gaps() == []


def test_a_keepalive_of_a_connection_that_is_behind() -> None:
    d = live()
    d.frame(update(10, 11, bid(2)))
    d.open("c2")
    d.frame(update(11, 12, bid(3)))
    d.frame(update(11, 11), "c2")
    d.frame(update(11, 12, bid(3)), "c2")
    d.close("c1")
    d.frame(update(12, 13, bid(4)), "c2")
    assert ids(d) == [10, 11, 12, 13]
    assert d.gaps() == []


def test_hand_over_with_a_snapshot_of_its_own() -> None:
    d = live()
    d.frame(update(10, 12, bid(2)))
    d.open("c2")
    d.frame(snapshot(15), "c2")
    d.frame(update(15, 17, bid(4)), "c2")
    d.frame(update(12, 15, bid(3)))
    d.frame(update(15, 17, bid(4)))
    d.close("c1")
    d.frame(update(17, 18, bid(5)), "c2")
    assert ids(d) == [10, 12, 15, 17, 18]
    assert d.gaps() == []


def test_a_connection_that_lags_behind_a_fresh_book_is_not_ahead_of_it() -> None:
    d = live()
    d.open("c2")
    d.frame(update(13, 14, bid(2)))
    d.frame(update(13, 14, bid(2)), "c2")  # 10 → 13 was lost on both
    d.answer("depth", rest(20, ts=MS + 20))
    d.frame(update(20, 21, bid(3), ts=MS + 21))
    for n in range(14, 21):
        d.frame(update(n, n + 1, bid(n), ts=MS + n + 1), "c2")
    d.frame(update(21, 22, bid(5), ts=MS + 22))
    d.frame(update(21, 22, bid(5), ts=MS + 22), "c2")
    d.close("c1")
    d.frame(update(22, 23, bid(6), ts=MS + 23), "c2")
    assert ids(d) == [10, 20, 21, 22, 23]
    assert len(d.gaps()) == 1


# -- checksum --------------------------------------------------------------------------------------------------


def crc(bids: Any, asks: Any) -> int:
    b = Book()
    b.load(json.dumps(bids).encode(), json.dumps(asks).encode())
    return b.checksum()


@pytest.mark.parametrize("checksum", [0, None])
def test_no_checksum_is_compared_with_nothing(checksum: int | None) -> None:
    d = okx()
    d.open()
    d.frame(snapshot(10, checksum=checksum))
    d.frame(update(10, 11, bid(3), checksum=checksum))
    assert ids(d) == [10, 11]
    assert all(x.checksum is None for x in d.of(OrderBookDelta))


def test_a_right_checksum_is_published_and_a_wrong_one_is_a_defect() -> None:
    d = okx()
    d.open()
    d.frame(snapshot(10, checksum=crc(BIDS, ASKS)))
    right = crc([bid(3)[0], BIDS[1]], ASKS)
    d.frame(update(10, 11, bid(3), checksum=right))
    assert [x.checksum for x in d.of(OrderBookDelta)] == [crc(BIDS, ASKS), right]
    assert d.judge.books[S].crc32() == right
    d.frame(update(11, 12, bid(4), checksum=right))
    assert [(g.cause, g.last_id_before, g.first_id_after) for g in d.gaps()] == [("checksum", "11", "12")]
    d.answer("depth", rest(12))
    assert d.live(S)


def test_a_snapshot_with_a_wrong_checksum_is_refused() -> None:
    d = okx()
    d.open()
    d.frame(snapshot(10, checksum=1))
    assert d.events == []
    d.frame(update(10, 11))
    d.wait(5)
    d.answer("depth", rest(11))
    assert d.live(S)


def test_books_without_ids_are_begun_anew_by_subscription() -> None:
    d = okx()
    d.open()
    d.frame(book("snapshot", None, None, BIDS, ASKS, checksum=crc(BIDS, ASKS)))
    d.sent()
    d.frame(book("update", None, None, bid(3), checksum=1))
    assert [m["op"] for m in d.sent()] == ["unsubscribe", "subscribe"]
    d.frame(book("snapshot", None, None, BIDS, ASKS, checksum=crc(BIDS, ASKS)))
    assert d.live(S)
    assert [g.cause for g in d.gaps()] == ["checksum"]


def test_rest_books_without_ids_are_of_no_use() -> None:
    d = live()
    d.sent()
    d.frame(update(11, 12))
    d.answer("depth", rest(None))
    d.wait(5)
    assert [m["op"] for m in d.sent() if m != "ping"][:2] == ["unsubscribe", "subscribe"]
    d.frame(snapshot(12))
    assert d.live(S)


@pytest.mark.parametrize("message", [book("partial", -1, 10, BIDS, ASKS), book("update", 10, 11, [["1"]])])
def test_malformed_books(message: dict[str, Any]) -> None:
    d = live()
    d.frame(message)
    assert d.malformed == 1
    d.frame(update(11, 12))
    assert len(d.gaps()) == 1


def test_other_channels_of_books() -> None:
    d = live()
    other = snapshot(99)
    other["arg"]["channel"] = "books50-l2-tbt"
    d.frame(other)
    five = snapshot(99)
    five["arg"]["channel"] = "books5"
    del five["action"]
    d.frame(five)
    assert ids(d) == [10]
    for channel in ("books-l2-tbt", "books50-l2-tbt"):
        d = okx()
        d.open()
        for message in (snapshot(10), update(10, 11, bid(3))):
            message["arg"]["channel"] = channel
            d.frame(message)
        assert ids(d) == [10, 11]


# -- control ---------------------------------------------------------------------------------------------------


def test_subscriptions_and_acks() -> None:
    d = okx()
    d.open()
    (message,) = d.sent()
    assert message == {
        "op": "subscribe",
        "args": [
            {"channel": "books", "instId": S},
            {"channel": "trades", "instId": S},
            {"channel": "liquidation-orders", "instType": "SWAP"},
        ],
    }
    for arg in message["args"][:2]:
        d.frame({"event": "subscribe", "arg": arg, "connId": "x"})
    d.wait(15)
    (note,) = [n for n in d.notes if n.event == "unacknowledged"]
    assert "liquidation-orders:SWAP" in note.text
    assert "books" not in note.text


def test_few_deep_books_on_a_socket() -> None:
    d = Drive("okx_derivatives", *[f"A{n}-USDT-SWAP" for n in range(60)])
    sockets = d.venue.sockets()
    assert len(sockets) == 3
    for n, socket in enumerate(sockets):
        d.open(f"c{n}", socket.name)
    args = [a for m in d.sent() for a in m["args"]]
    assert len(args) == 121
    assert max(len(json.dumps(m)) for m in [args]) < 65_536


@pytest.mark.parametrize("code", ["60012", "60018", "60011", "64004"])
def test_errors_are_told(code: str) -> None:
    d = okx()
    d.open()
    d.frame({"event": "error", "code": code, "msg": "no such thing", "connId": "x"})
    (note,) = d.notes
    assert note.level == "error"
    assert code in note.text


def test_a_notice_asks_for_an_overlapping_connection() -> None:
    d = okx()
    d.open()
    d.frame({"event": "notice", "code": "64008", "msg": "upgrade", "connId": "x"})
    assert [(r.conn, r.overlap) for r in d.reconnects] == [("c1", True)]


def test_ping_and_pong() -> None:
    d = okx()
    d.open()
    d.sent()
    d.wait(21)
    assert d.sent()[-1] == "ping"
    d.frame(b"pong")
    d.wait(15)
    assert d.reconnects == []
    assert d.malformed == 0
    d.wait(40)
    assert [(r.conn, r.overlap) for r in d.reconnects][:1] == [("c1", False)]


def test_a_connection_that_brings_nothing_is_replaced() -> None:
    """Refused, or acknowledged on a path that carries nothing: a warning alone would leave it so for ever."""
    d = okx()
    d.open()
    for _ in range(7):
        d.frame(b"pong")
        d.wait(10, 1)
    assert [(r.conn, r.overlap) for r in d.reconnects] == [("c1", True)]
    d = live()
    for _ in range(7):
        d.frame(b"pong")
        d.wait(10, 1)
    assert d.reconnects == []


def test_a_book_begun_from_rest_is_not_silent_at_once() -> None:
    d = okx()
    d.open()
    d.frame({"event": "subscribe", "arg": {"channel": "books", "instId": S}})
    d.wait(6)  # not a word: asked of REST
    d.answer("depth", rest(15))
    assert d.live(S)
    d.wait(1)
    assert not any(n.event == "silent" for n in d.notes)
    assert d.reconnects == []


def test_a_book_that_falls_silent_is_an_alarm() -> None:
    d = live()
    for _ in range(20):
        d.frame(b"pong")
        d.wait(10, 1)
    assert [(r.conn, r.overlap) for r in d.reconnects] == [("c1", True)]
    assert any(n.event == "silent" and S in n.text for n in d.notes)
    assert d.gaps() == []


def test_white_space_does_not_matter() -> None:
    d = okx()
    d.open()
    d.frame(json.dumps(snapshot(10), indent=1))
    d.frame(json.dumps(update(10, 11)))
    assert ids(d) == [10, 11]


# -- trades ----------------------------------------------------------------------------------------------------


def trade(number: int, **other: Any) -> dict[str, Any]:
    return {
        "instId": S,
        "tradeId": str(number),
        "px": "100.5",
        "sz": "3",
        "side": "buy",
        "ts": str(MS),
        **other,
    }


def trades(*rows: dict[str, Any], channel: str = "trades") -> dict[str, Any]:
    return {"arg": {"channel": channel, "instId": S}, "data": list(rows)}


def test_summed_up_trades_and_repetitions() -> None:
    d = okx(types=["trade"])
    d.open()
    d.frame(trades(trade(10, count="1", source="0", seqId=5), trade(13, count="3", seqId=5)))
    d.frame(trades(trade(13, count="3", seqId=5)))
    a, b = d.of(Trade)
    assert (a.trade_id, a.first_trade_id, a.last_trade_id) == ("10", None, None)
    assert (b.trade_id, b.first_trade_id, b.last_trade_id) == ("13", "11", "13")
    assert d.gaps("trade") == []
    assert d.asked("trades") == []


def page(*numbers: int) -> dict[str, Any]:
    return {"code": "0", "msg": "", "data": [trade(n) for n in sorted(numbers, reverse=True)]}


def test_a_trade_gap_is_filled_page_by_page_newest_first() -> None:
    d = okx(types=["trade"])
    d.open()
    d.frame(trades(trade(1)))
    d.frame(trades(trade(251, count="2")))
    assert d.asked("trades")[0].path.endswith(f"history-trades?instId={S}&type=1&after=250&limit=100")
    d.answer("trades", page(*range(150, 250)))
    assert "after=150&limit=100" in d.asked("trades")[0].path
    d.answer("trades", page(*range(50, 150)))
    assert "after=50&limit=48" in d.asked("trades")[0].path
    d.answer("trades", page(*range(2, 50)))
    assert d.asked("trades") == []
    assert sorted(int(t.trade_id) for t in d.of(Trade)) == [*range(1, 250), 251]
    assert d.gaps("trade") == []


def test_what_is_not_in_the_history_is_told_exactly() -> None:
    d = okx(types=["trade"])
    d.open()
    d.frame(trades(trade(1)))
    d.frame(trades(trade(51)))
    d.answer("trades", page(*range(30, 51)))
    d.answer("trades", {"code": "0", "msg": "", "data": []})
    (gap,) = d.gaps("trade")
    assert (gap.last_id_before, gap.first_id_after, gap.missing) == ("1", "30", 28)


def test_an_error_in_a_rest_answer_is_a_refusal_not_a_malformed_message() -> None:
    d = okx(types=["trade"])
    d.open()
    d.frame(trades(trade(1)))
    d.frame(trades(trade(3)))
    d.answer("trades", {"code": "50011", "msg": "Too Many Requests", "data": []})
    assert d.malformed == 0
    assert [n.event for n in d.notes] == ["rest_error"]
    d.wait(3)
    d.answer("trades", page(2))
    assert d.gaps("trade") == []


def test_the_first_channel_of_trades_counts() -> None:
    d = okx(types=["trade"])
    d.open()
    d.frame(trades(trade(1)))
    d.frame(trades(trade(1), trade(2), channel="trades-all"))
    assert [t.trade_id for t in d.of(Trade)] == ["1"]


@pytest.mark.parametrize("bad", [{"px": ""}, {"sz": "x"}, {"ts": ""}, {"side": "both"}, {"sz": "1e999999"}])
def test_a_malformed_trade_is_a_hole_not_silence(bad: dict[str, Any]) -> None:
    d = okx(types=["trade"])
    d.open()
    d.frame(trades(trade(1)))
    d.frame(trades(trade(2, **bad)))
    d.frame(trades(trade(3)))
    assert "after=3&limit=1" in d.asked("trades")[0].path
    d.finish()
    assert [t.trade_id for t in d.of(Trade)] == ["1", "3"]
    assert [g.missing for g in d.gaps("trade")] == [1]


# -- the rarer types -------------------------------------------------------------------------------------------


def test_every_liquidation_detail_is_published_once() -> None:
    d = okx()
    d.open()
    d.open("c2")
    detail = {
        "side": "sell",
        "posSide": "long",
        "bkPx": "100",
        "bkLoss": "0",
        "sz": "2",
        "ccy": "",
        "ts": str(MS),
    }
    message = {
        "arg": {"channel": "liquidation-orders", "instType": "SWAP"},
        "data": [
            {
                "instId": S,
                "instType": "SWAP",
                "uly": "BTC-USDT",
                "details": [detail, detail, {**detail, "sz": "5"}],
            },
            {
                "instId": "ETH-USD-SWAP",
                "instType": "SWAP",
                "uly": "ETH-USD",
                "details": [{**detail, "side": "buy"}],
            },
        ],
    }
    d.frame(message)
    d.frame(message, "c2")
    found = d.of(Liquidation)
    assert [(x.instrument_id, x.exchange_quantity, x.side) for x in found] == [
        (S, "2", "sell"),
        (S, "2", "sell"),
        (S, "5", "sell"),
        ("ETH-USD-SWAP", "2", "buy"),
    ]
    assert len({e.id for e in d.events}) == 4
    assert {x.liquidation_ts_ms for x in found} == {MS}
    assert found[0].quantity is None
    assert found[0].quantity_unit == "contracts"


def test_only_the_socket_with_liquidations_can_lose_them() -> None:
    d = Drive("okx_derivatives", *[f"A{n}-USDT-SWAP" for n in range(30)])
    d.open("c1", "public")
    d.open("c2", "public-2")
    d.close("c2")
    d.open("c3", "public-2")
    assert d.gaps("liquidation") == []
    d.close("c1")
    d.open("c4", "public")
    assert len(d.gaps("liquidation")) == 30


def funding(**other: Any) -> dict[str, Any]:
    row = {
        "instId": S,
        "instType": "SWAP",
        "fundingRate": "0.0001",
        "nextFundingRate": "",
        "fundingTime": str(MS + 3_600_000),
        "nextFundingTime": str(MS + 3 * 3_600_000),
        "premium": "0.0002",
        "ts": str(MS),
    }
    return {"arg": {"channel": "funding-rate", "instId": S}, "data": [row | other]}


def test_funding_with_empty_figures() -> None:
    d = okx()
    d.open()
    d.frame(funding())
    d.frame(funding())
    d.frame(funding(fundingRate="", ts=str(MS + 1)))
    without = funding(ts=str(MS + 2))
    del without["data"][0]["fundingRate"]
    d.frame(without)
    d.frame(funding(nextFundingTime="", ts=str(MS + 3)))
    a, b = d.of(FundingRate)
    assert (a.current_funding_rate, a.estimated_funding_rate, a.funding_interval) == ("0.0001", None, "2h")
    assert (a.next_funding_ts_ms, a.premium_index, a.ts_ms) == (MS + 3_600_000, "0.0002", MS)
    assert b.funding_interval is None


def test_funding_without_a_time_of_its_own() -> None:
    d = okx()
    d.open()
    for rate in ("0.1", "0.1", "0.2"):
        message = funding(fundingRate=rate)
        del message["data"][0]["ts"]
        d.frame(message)
    assert [r.current_funding_rate for r in d.of(FundingRate)] == ["0.1", "0.2"]
    assert len({e.id for e in d.events}) == 2


def test_open_interest_and_ratios() -> None:
    d = okx()
    row = {"instId": S, "instType": "SWAP", "oi": "100", "oiCcy": "1", "oiUsd": "90000", "ts": str(MS)}
    for _ in range(2):
        d.respond(Fetch("open_interest", S, ""), {"code": "0", "msg": "", "data": [row]})
    (x,) = d.of(OpenInterest)
    assert (x.open_interest_value, x.open_interest_unit, x.open_interest_base, x.open_interest_usd) == (
        "100",
        "contracts",
        "1",
        "90000",
    )
    rows = {"code": "0", "msg": "", "data": [[str(MS + 1), "0.97"], [str(MS), "3"]]}
    for _ in range(2):
        d.respond(Fetch("lsr_all_account", S, ""), rows)
        d.respond(Fetch("lsr_top_position", S, ""), rows)
    accounts = d.of(LsrAllAccount)
    assert [(r.ts_ms, r.long_short_ratio, r.long_account_ratio, r.short_account_ratio) for r in accounts] == [
        (MS, "3", "0.750000", "0.250000"),
        (MS + 1, "0.97", "0.492386", "0.507614"),
    ]
    assert len(d.of(LsrTopPosition)) == 2
    d.respond(Fetch("lsr_all_account", "", ""), rows)
    assert "" not in d.venue.markets


def test_polls_are_of_the_documented_endpoints() -> None:
    d = okx()
    paths = {p.fetch(d.now_ns).path.split("?")[0] for p in d.venue.polls()}
    rubik = "/api/v5/rubik/stat/contracts/long-short-"
    assert paths == {
        "/api/v5/public/mark-price",
        "/api/v5/public/funding-rate",
        "/api/v5/public/open-interest",
        f"{rubik}position-ratio-contract-top-trader",
        f"{rubik}account-ratio-contract-top-trader",
        f"{rubik}account-ratio-contract",
    }


def test_polled_books() -> None:
    d = okx(book_method="snapshot", snapshot_depth=1)
    d.respond(Fetch("depth", S, ""), rest(10))
    d.respond(Fetch("depth", S, ""), rest(11, ASKS, BIDS))
    assert [(x.last_update_id, len(x.bids), x.quantity_unit) for x in d.of(OrderBook)] == [
        (10, 1, "contracts")
    ]


# -- units, from real metadata ---------------------------------------------------------------------------------


def instruments() -> list[str]:
    with gzip.open(capture("rest/okx.cryptofeed_202205.instruments.txt.gz"), "rt") as lines:
        return [line[line.index("{") :] for line in lines if "{" in line]


@pytest.mark.parametrize(
    ("instrument", "price", "size", "quantity", "symbol", "market_type"),
    [
        ("BTC-USDT", "30000", "0.5", "0.5", "BTC-USDT", "spot"),
        ("BTC-USDT-SWAP", "30000", "7", "0.07", "BTC-USDT", "perpetual"),  # 0.01 BTC
        ("BTC-USD-SWAP", "25000", "5", "0.02", "BTC-USD", "perpetual"),  # 100 USD
        ("ETH-USD-SWAP", "2000", "8", "0.04", "ETH-USD", "perpetual"),  # 10 USD
    ],
)
def test_quantities_in_base_coin(
    instrument: str, price: str, size: str, quantity: str, symbol: str, market_type: str
) -> None:
    d = Drive("okx_derivatives")
    for body in instruments():
        d.respond(Fetch("instruments", "", ""), body)
    d.open()
    row = {**trade(1), "instId": instrument, "px": price, "sz": size}
    d.frame({"arg": {"channel": "trades", "instId": instrument}, "data": [row]})
    (x,) = d.of(Trade)
    assert x.quantity is not None
    assert Decimal(x.quantity) == Decimal(quantity)
    assert (x.exchange_quantity, x.symbol, x.market_type) == (size, symbol, market_type)


def test_quantities_of_every_real_instrument() -> None:
    d = Drive("okx_derivatives")
    for body in instruments():
        d.respond(Fetch("instruments", "", ""), body)
    kinds = set()
    for i in d.venue.instruments.values():
        kinds.add((i.market_type, i.inverse))
        quantity = i.base_quantity("2", "50")
        assert quantity is not None
        assert Decimal(quantity) > 0
        assert i.inverse == ("-USD-" in i.id and i.market_type in ("perpetual", "futures"))
    assert {("spot", False), ("perpetual", False), ("perpetual", True)} <= kinds


def test_without_metadata_the_exchanges_figure_stands_alone() -> None:
    d = Drive("okx_derivatives")
    d.open()
    for instrument, market_type in (
        ("BTC-USDT", "spot"),
        ("BTC-USDT-SWAP", "perpetual"),
        ("BTC-USD-220527", "futures"),
        ("BTC-USD-210924-42000-P", "options"),
    ):
        d.frame(
            {"arg": {"channel": "trades", "instId": instrument}, "data": [{**trade(1), "instId": instrument}]}
        )
        x = d.of(Trade)[-1]
        assert (x.instrument_id, x.market_type, x.exchange_quantity) == (instrument, market_type, "3")
        assert x.quantity == ("3" if market_type == "spot" else None)
        assert x.quantity_unit == ("base" if market_type == "spot" else "contracts")


def test_linear_without_underlying_is_not_inverse() -> None:
    d = Drive("okx_derivatives")
    row = {
        "instId": S,
        "instType": "SWAP",
        "ctVal": "0.01",
        "ctValCcy": "BTC",
        "ctMult": "1",
        "ctType": "linear",
        "uly": "",
    }
    d.respond(
        Fetch("instruments", "", ""),
        {"code": "0", "msg": "", "data": [row, {**row, "instId": "X-USDT-SWAP", "ctVal": ""}]},
    )
    assert d.venue.describe(S).base_quantity("7", "100") == "0.07"
    assert d.venue.describe("X-USDT-SWAP").base_quantity("7", "100") is None


def test_events_begin_as_copies_and_share_nothing() -> None:
    """Of a figure that one event has and the next has not, nothing is left; a later description is in later events."""
    d = live()
    outs = [
        d.frame(trades(trade(13, count="3"))),
        d.frame(update(10, 11, bid(2), checksum=None)),
        d.take(d.venue.republish([S], d.now_ns)),
    ]
    first = [encode(item.data) for out in outs for item in out if isinstance(item, Event)]
    market = d.venue.markets[S]
    market.describe(Instrument(S, "okx", "perpetual", "BTC-USDT", "base"))
    d.frame(trades(trade(14)))
    d.frame(update(11, 12, bid(3)))
    assert first == [encode(item.data) for out in outs for item in out if isinstance(item, Event)]
    assert [(x.quantity, x.quantity_unit, x.first_trade_id) for x in d.of(Trade)] == [
        (None, "contracts", "11"),
        ("3", "base", None),
    ]
    assert [(x.update_type, x.quantity_unit, x.last_update_id) for x in d.of(OrderBookDelta)][1:] == [
        ("delta", "contracts", 11),
        ("snapshot", "contracts", 11),
        ("delta", "base", 12),
    ]
