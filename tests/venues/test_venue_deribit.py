"""Deribit: change ids, resubscription, acks, heartbeats, figures that are JSON numbers, amounts."""

import gzip
import json
from typing import Any

import pytest
from captures import capture
from drive import Drive

from marketprism.events import (
    FundingRate,
    Liquidation,
    OpenInterest,
    OrderBook,
    OrderBookDelta,
    Trade,
    VolatilityIndex,
    encode,
)
from marketprism.venues.base import Fetch

S = "BTC-PERPETUAL"
MS = 1_760_000_000_000
BIDS = [["new", 99.0, 10.0], ["new", 98.5, 20.0]]
ASKS = [["new", 101.0, 10.0]]


def subscription(channel: str, data: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": "subscription", "params": {"channel": channel, "data": data}}


def book(
    last: int, prev: int | None, bids: Any = (), asks: Any = (), name: str = S, **other: Any
) -> dict[str, Any]:
    data = {"timestamp": MS, "instrument_name": name, "change_id": last, "bids": bids, "asks": asks}
    data |= {"type": "snapshot"} if prev is None else {"type": "change", "prev_change_id": prev}
    return subscription(f"book.{name}.100ms", data | other)


def snapshot(last: int) -> dict[str, Any]:
    return book(last, None, BIDS, ASKS)


def deribit(**options: Any) -> Drive:
    return Drive("deribit_derivatives", S, **options)


def live(last: int = 10, **options: Any) -> Drive:
    d = deribit(**options)
    d.open()
    d.frame(snapshot(last))
    assert d.live(S)
    d.sent()
    return d


def ids(d: Drive) -> list[int | None]:
    return [x.last_update_id for x in d.of(OrderBookDelta)]


# -- books -----------------------------------------------------------------------------------------------------


def test_chain() -> None:
    d = live()
    d.frame(book(17, 10, [["change", 99.0, 5.0]]))
    d.frame(book(17, 10, [["change", 99.0, 5.0]]))  # repeated
    d.frame(book(30, 17, [["delete", 98.5, 0.0]], [["new", 102, 7]]))
    assert ids(d) == [10, 17, 30]
    assert d.judge.books[S].best() == (("99.0", "5.0"), ("101.0", "10.0"))
    assert d.gaps() == []


def test_snapshot_without_a_type() -> None:
    d = deribit()
    d.open()
    message = snapshot(10)
    del message["params"]["data"]["type"]
    d.frame(message)
    message = book(11, 10)
    del message["params"]["data"]["type"]
    d.frame(message)
    assert ids(d) == [10, 11]


def test_a_change_without_the_previous_id_is_not_a_snapshot() -> None:
    d = live()
    d.frame(book(12, None, [["new", 50, 1]], type="change"))
    assert d.malformed == 1
    assert ids(d) == [10]


def test_resync_unsubscribes_waits_and_subscribes() -> None:
    d = live()
    for _ in range(5):
        d.wait(10)
        d.frame({"jsonrpc": "2.0", "method": "heartbeat", "params": {"type": "heartbeat"}})
    d.sent()
    d.notes.clear()
    d.frame(book(20, 15))
    assert [(g.cause, g.last_id_before, g.first_id_after) for g in d.gaps()] == [("sequence", "10", "20")]
    (call,) = d.sent()
    assert (call["method"], call["params"]) == (
        "public/unsubscribe",
        {"channels": ["book.BTC-PERPETUAL.100ms"]},
    )
    d.frame(book(25, 20))  # still on its way
    assert d.sent() == []
    d.frame({"jsonrpc": "2.0", "id": call["id"], "result": ["book.BTC-PERPETUAL.100ms"]})
    (again,) = d.sent()
    assert (again["method"], again["params"]) == (
        "public/subscribe",
        {"channels": ["book.BTC-PERPETUAL.100ms"]},
    )
    d.wait(1)
    d.frame({"jsonrpc": "2.0", "id": again["id"], "result": ["book.BTC-PERPETUAL.100ms"]})
    d.frame(snapshot(40))
    d.frame(book(41, 40))
    assert ids(d) == [10, 40, 41]
    assert len(d.gaps()) == 1
    assert [n for n in d.notes if n.event == "unacknowledged"] == []


def test_an_ack_that_never_comes_is_asked_for_again_and_nothing_piles_up() -> None:
    d = live()
    d.frame(book(20, 15))
    for _ in range(60):
        d.frame({"jsonrpc": "2.0", "method": "heartbeat", "params": {"type": "heartbeat"}})
        d.wait(10)
    calls = [m for m in d.sent() if m["method"] == "public/unsubscribe"]
    assert 5 <= len(calls) <= 30
    d.close()
    assert d.venue.connections == {}


def test_the_same_channel_as_recorded_is_subscribed_again() -> None:
    d = deribit()
    d.open()
    d.sent()
    raw = snapshot(10)
    raw["params"]["channel"] = f"book.{S}.raw"
    d.frame(raw)
    raw = book(20, 15)
    raw["params"]["channel"] = f"book.{S}.raw"
    d.frame(raw)
    assert d.sent()[0]["params"]["channels"] == [f"book.{S}.raw"]


def test_a_real_gap() -> None:
    path = capture("samples/deribit.ssc2ce_testnet_btc-perpetual.raw.jsonl")
    d = Drive("deribit_derivatives")
    d.open()
    for line in path.read_text().splitlines():
        d.frame(line)
    assert len(d.gaps()) == 1
    calls = [m for m in d.sent() if m["method"] == "public/unsubscribe"]
    assert len(calls) == 1
    assert d.of(OrderBookDelta)[0].update_type == "snapshot"
    assert d.malformed == 0


def test_empty_and_one_sided_books_are_normal() -> None:
    d = deribit()
    d.open()
    d.frame(book(10, None))
    d.frame(book(11, 10, [["new", 0.0005, 1]]))
    d.frame(book(12, 11, [["delete", 0.0005, 0]]))
    assert ids(d) == [10, 11, 12]


def test_hand_over() -> None:
    d = live()
    d.open("c2")
    d.frame(snapshot(12), "c2")
    d.frame(book(12, 10))
    d.frame(book(14, 12))
    d.frame(book(14, 12), "c2")
    d.close()
    d.frame(book(15, 14), "c2")
    assert ids(d) == [10, 12, 14, 15]
    assert d.gaps() == []


def test_partial_books_are_not_the_chain() -> None:
    d = live()
    d.frame(subscription(f"book.{S}.none.20.100ms", {"change_id": 99, "bids": [], "asks": []}))
    assert d.live(S)
    assert d.notes == []


# -- figures ---------------------------------------------------------------------------------------------------


def literal(last: int, prev: int, bids: str) -> str:
    return (
        f'{{"jsonrpc":"2.0","method":"subscription","params":{{"channel":"book.{S}.100ms","data":{{"type":"change",'
        f'"timestamp":{MS},"instrument_name":"{S}","change_id":{last},"prev_change_id":{prev},"bids":[{bids}],"asks":[]}}}}}}'
    )


def test_one_price_written_in_three_ways_is_one_level() -> None:
    d = deribit()
    d.open()
    d.frame(book(10, None))
    d.frame(literal(11, 10, '["new",2.2e3,1.5e1]'))
    d.frame(literal(12, 11, '["change",2200.0,7.0]'))
    d.frame(literal(13, 12, '["new",1.423e-4,3]'))
    levels = [x.bids for x in d.of(OrderBookDelta)[1:]]
    assert [(x[0].price, x[0].quantity) for x in levels] == [
        ("2200.0", "15"),
        ("2200.0", "7.0"),
        ("0.0001423", "3"),
    ]
    d.frame(literal(14, 13, '["delete",2200,0.0]'))
    assert d.judge.books[S].best()[0] == ("0.0001423", "3")


@pytest.mark.parametrize("figure", ["1e999999", "1e-999999", "1e999999999999999", "NaN", '"x"', "null"])
@pytest.mark.parametrize("level", ['["new",{},1]', '["new",1,{}]'])
def test_absurd_figures_are_malformed(level: str, figure: str) -> None:
    d = live()
    d.frame(literal(11, 10, level.format(figure)))
    assert d.malformed == 1
    assert ids(d) == [10]
    d.frame(book(12, 11))
    assert [g.cause for g in d.gaps()] == ["malformed" if figure != "NaN" else "sequence"]


def test_white_space_does_not_matter() -> None:
    d = deribit()
    d.open()
    d.frame(json.dumps(snapshot(10), indent=1))
    d.frame(json.dumps(book(11, 10)))
    assert ids(d) == [10, 11]


# -- control ---------------------------------------------------------------------------------------------------


def test_subscriptions_and_what_was_not_given() -> None:
    d = Drive("deribit_derivatives", S, "NOSUCH-PERPETUAL")
    d.open()
    heartbeat, call = d.sent()
    assert (heartbeat["method"], heartbeat["params"]) == ("public/set_heartbeat", {"interval": 10})
    assert call["method"] == "public/subscribe"
    channels = call["params"]["channels"]
    assert sorted(channels) == sorted(
        f"{kind}.{s}.100ms" for kind in ("book", "trades") for s in d.venue.markets
    )
    given = [c for c in reversed(channels) if "NOSUCH" not in c]
    d.frame({"jsonrpc": "2.0", "id": call["id"], "result": given})
    (note,) = d.notes
    assert note.event == "not_subscribed"
    assert "book.NOSUCH-PERPETUAL.100ms" in note.text
    assert S not in note.text


def test_errors() -> None:
    d = deribit()
    d.open()
    call = d.sent()[1]
    error = {"code": 13778, "message": "raw_subscriptions_not_available_for_unauthorized"}
    d.frame({"jsonrpc": "2.0", "id": call["id"], "error": error})
    assert [n.event for n in d.notes] == ["refused"]
    assert "13778" in d.notes[0].text
    assert d.reconnects == []
    d.frame({"jsonrpc": "2.0", "error": {"code": 10028, "message": "too_many_requests"}})
    assert [(r.conn, r.overlap) for r in d.reconnects] == [("c1", False)]


def test_heartbeats() -> None:
    d = live()
    d.frame({"jsonrpc": "2.0", "method": "heartbeat", "params": {"type": "heartbeat"}})
    assert d.sent() == []
    d.frame({"jsonrpc": "2.0", "method": "heartbeat", "params": {"type": "test_request"}})
    assert [m["method"] for m in d.sent()] == ["public/test"]
    d.frame({"jsonrpc": "2.0", "id": 99, "result": {"version": "1.2.26"}})
    d.wait(21)
    assert [m["method"] for m in d.sent()][-1] == "public/test"
    d.wait(11)
    assert len(d.reconnects) == 1


def test_an_unknown_currency_does_not_keep_the_others_waiting() -> None:
    for order in ((0, 1), (1, 0)):
        d = Drive("deribit_derivatives", S, "NOSUCH-PERPETUAL")
        d.start()
        fetches = sorted(d.asked("instruments"), key=lambda f: f.instrument)
        assert [f.instrument for f in fetches] == ["BTC", "NOSUCH"]
        for n in order:
            if n:
                d.respond(fetches[1], {"error": {"code": -32602, "message": "Invalid params"}}, 400)
            else:
                row = {
                    "instrument_name": S,
                    "kind": "future",
                    "base_currency": "BTC",
                    "quote_currency": "USD",
                    "settlement_period": "perpetual",
                }
                d.respond(fetches[0], {"result": [row]})
        assert d.venue.ready
        assert list(d.venue.markets) == [S]


def test_descriptions_that_come_late_or_never_forget_nothing() -> None:
    d = Drive("deribit_derivatives")
    d.open()
    d.frame(trades(trade(1)))
    d.respond(Fetch("instruments", "BTC", ""), b"", 400)
    d.frame(trades(trade(1)))
    d.respond(Fetch("instruments", "BTC", ""), {"result": []})
    d.frame(trades(trade(1), trade(2)))
    assert [t.trade_seq for t in d.of(Trade)] == [1, 2]


def test_a_bare_currency_is_its_perpetual() -> None:
    d = Drive("deribit_derivatives", "BTC", "ETH", types=["volatility_index"])
    assert list(d.venue.markets) == ["BTC-PERPETUAL", "ETH-PERPETUAL"]
    assert d.venue.sockets() == []
    assert [p.fetch(d.now_ns).instrument for p in d.venue.polls()] == ["BTC", "ETH"]


# -- trades ----------------------------------------------------------------------------------------------------


def trade(seq: int, name: str = S, **other: Any) -> dict[str, Any]:
    row = {
        "trade_seq": seq,
        "trade_id": f"T{seq}",
        "timestamp": MS,
        "tick_direction": 0,
        "price": 50000.5,
        "instrument_name": name,
        "index_price": 50000.0,
        "direction": "buy",
        "amount": 100.0,
    }
    return row | other


def trades(*rows: dict[str, Any], name: str = S) -> dict[str, Any]:
    return subscription(f"trades.{name}.100ms", list(rows))


def test_batches_repetitions_and_backfill() -> None:
    d = deribit(types=["trade"])
    d.open()
    d.frame(trades(trade(6), trade(5)))
    d.frame(trades(trade(6)))
    d.frame(trades(trade(10)))
    fetch = d.asked("trades")[0]
    assert "start_seq=7&end_seq=9&count=1000" in fetch.path
    d.answer("trades", {"result": {"trades": [trade(n) for n in (7, 8, 9)], "has_more": False}})
    assert [(t.trade_id, t.trade_seq) for t in d.of(Trade)] == [(f"T{n}", n) for n in (5, 6, 7, 8, 9, 10)]
    assert d.gaps("trade") == []


def test_liquidation_flags() -> None:
    d = deribit()
    d.open()
    d.frame(
        trades(trade(1), trade(2, liquidation="T"), trade(3, liquidation="M"), trade(4, liquidation="MT"))
    )
    d.frame(trades(trade(4, liquidation="MT")))
    assert [(x.liquidation_id, x.side) for x in d.of(Liquidation)] == [
        ("deribit_T2", "buy"),
        ("deribit_T3", "sell"),
        ("deribit_T4", "buy"),
    ]
    assert len(d.of(Trade)) == 4


@pytest.mark.parametrize(("wanted", "told"), [((), 1), ((S,), 1), (("BTC",), 1), (("ETH-PERPETUAL",), 0)])
def test_liquidations_of_wanted_symbols_only(wanted: tuple[str, ...], told: int) -> None:
    d = deribit(liquidation_symbols=wanted)
    d.open()
    d.frame(trades(trade(1, liquidation="T")))
    assert len(d.of(Liquidation)) == told
    assert len(d.of(Trade)) == 1


def test_liquidations_alone() -> None:
    d = deribit(types=["liquidation"])
    d.open()
    assert d.sent()[1]["params"]["channels"] == [f"trades.{S}.100ms"]
    d.frame(trades(trade(1), trade(2, liquidation="T")))
    d.frame(trades(trade(2, liquidation="T")))
    assert [type(e.data) for e in d.events] == [Liquidation]


def described() -> Drive:
    d = Drive("deribit_derivatives")
    with gzip.open(capture("rest/deribit.cryptofeed_202205.instruments.txt.gz"), "rt") as lines:
        for line in lines:
            if "{" in line:
                d.respond(Fetch("instruments", "", ""), line[line.index("{") :])
    rows = [
        {
            "instrument_name": "BTC_USDC-PERPETUAL",
            "kind": "future",
            "base_currency": "BTC",
            "quote_currency": "USDC",
            "settlement_period": "perpetual",
            "contract_size": 0.0001,
        },
        {
            "instrument_name": "BTC_USDC",
            "kind": "spot",
            "base_currency": "BTC",
            "quote_currency": "USDC",
            "contract_size": 0.0001,
        },
    ]
    d.respond(Fetch("instruments", "", ""), {"result": rows})
    d.open()
    return d


@pytest.mark.parametrize(
    ("name", "price", "amount", "quantity", "unit", "kind", "symbol"),
    [
        ("BTC-PERPETUAL", 50000.0, 100.0, "0.002", "quote", "perpetual", "BTC-USD"),
        ("ETH-PERPETUAL", 2000.0, 1000, "0.5", "quote", "perpetual", "ETH-USD"),
        ("BTC_USDC-PERPETUAL", 50000.0, 0.25, "0.25", "base", "perpetual", "BTC-USDC"),
        ("BTC-24SEP21-40000-P", 0.05, 0.5, "0.5", "base", "options", "BTC-24SEP21-40000-P"),
        ("BTC_USDC", 50000.0, 0.5, "0.5", "base", "spot", "BTC-USDC"),
    ],
)
def test_amounts(
    name: str, price: float, amount: float, quantity: str, unit: str, kind: str, symbol: str
) -> None:
    d = described()
    assert name in d.venue.instruments
    d.frame(trades(trade(1, name, price=price, amount=amount), name=name))
    (x,) = d.of(Trade)
    assert (x.quantity, x.exchange_quantity, x.quantity_unit) == (quantity, str(amount), unit)
    assert (x.market_type, x.symbol) == (kind, symbol)


def test_without_metadata_the_exchanges_figure_stands_alone() -> None:
    d = Drive("deribit_derivatives")
    d.open()
    for name, kind in (
        ("BTC-PERPETUAL", "perpetual"),
        ("BTC-25MAR22", "futures"),
        ("BTC-25MAR22-50000-C", "options"),
    ):
        d.frame(trades(trade(1, name, liquidation="T"), name=name))
        x = d.of(Trade)[-1]
        assert (x.quantity, x.exchange_quantity, x.quantity_unit, x.market_type) == (
            None,
            "100.0",
            None,
            kind,
        )
        assert d.of(Liquidation)[-1].notional_value is None


@pytest.mark.parametrize(
    "bad", ['"price":1e999999', '"price":"x"', '"amount":null', '"timestamp":"x"', '"direction":"up"']
)
def test_a_malformed_trade_is_a_hole_not_silence(bad: str) -> None:
    d = deribit(types=["trade"])
    d.open()
    d.frame(trades(trade(1)))
    text = json.dumps(trades(trade(2)), separators=(",", ":"))
    key = bad.split(":", 1)[0]
    start = text.index(key)
    end = min(text.index(mark, start) for mark in ",}" if mark in text[start:])
    d.frame(text[:start] + bad + text[end:])
    d.frame(trades(trade(3)))
    assert "start_seq=2&end_seq=2" in d.asked("trades")[0].path
    d.finish()
    assert [t.trade_seq for t in d.of(Trade)] == [1, 3]
    assert [g.missing for g in d.gaps("trade")] == [1]


# -- the rarer types -------------------------------------------------------------------------------------------


def test_ticker() -> None:
    d = described()
    data = {
        "instrument_name": S,
        "timestamp": MS,
        "open_interest": 1e6,
        "mark_price": 50000.0,
        "index_price": 49999.5,
        "current_funding": 1.5e-05,
        "funding_8h": 0.00001,
    }
    for _ in range(2):
        d.frame(subscription(f"ticker.{S}.100ms", data))
    d.respond(Fetch("ticker", S, ""), {"result": {**data, "timestamp": MS + 1}})
    (rate, _) = d.of(FundingRate)
    assert (rate.current_funding_rate, rate.funding_interval) == ("0.000015", "continuous")
    (interest, _) = d.of(OpenInterest)
    assert (interest.open_interest_unit, interest.open_interest_usd, interest.open_interest_base) == (
        "quote",
        "1000000.0",
        "20",
    )


def candles(*rows: list[Any], now_ms: int) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "result": {"data": list(rows), "continuation": None}, "usOut": now_ms * 1000}


def test_volatility_candles_are_published_once_and_closed() -> None:
    d = Drive("deribit_derivatives", "BTC", types=["volatility_index"])
    fetch = d.venue.polls()[0].fetch(d.now_ns)
    assert "currency=BTC" in fetch.path
    assert "resolution=60" in fetch.path
    rows = [[MS + 60_000 * n, 50.1, 51.0, 50.0, 50.5 + n] for n in range(3)]
    d.respond(fetch, candles(*reversed(rows), now_ms=MS + 150_000))
    d.respond(fetch, candles(*rows, now_ms=MS + 179_999))
    d.respond(fetch, candles(*rows, now_ms=MS + 180_000))
    found = d.of(VolatilityIndex)
    assert [(x.ts_ms, x.vol_index, x.open, x.high, x.low, x.resolution_s, x.currency) for x in found] == [
        (MS + 60_000 * n, str(50.5 + n), "50.1", "51.0", "50.0", 60, "BTC") for n in range(3)
    ]
    d.respond(fetch, candles([1e15, 1, 1, 1, 1], now_ms=MS))
    body = b'{"result":{"data":[[1e999999999,1,1,1,1]]}}'
    d.respond(fetch, body)
    assert len(d.of(VolatilityIndex)) == 3


def test_points_over_the_stream_do_not_hide_candles() -> None:
    d = Drive("deribit_derivatives", "BTC", types=["volatility_index"])
    d.open("c1", "x")
    point = {"timestamp": MS + 59_000, "volatility": 50.7, "index_name": "btc_usd"}
    for _ in range(2):
        d.frame(subscription("deribit_volatility_index.btc_usd", point))
    d.respond(Fetch("volatility_index", "BTC", ""), candles([MS, 50.1, 51.0, 50.0, 50.5], now_ms=MS + 60_000))
    assert [x.vol_index for x in d.of(VolatilityIndex)] == ["50.7", "50.5"]


def test_candles_are_not_published_again_after_a_restart() -> None:
    first = Drive("deribit_derivatives", "BTC", types=["volatility_index"])
    rows = [[MS + 60_000 * n, 50.1, 51.0, 50.0, 50.5] for n in range(3)]
    first.respond(Fetch("volatility_index", "BTC", ""), candles(*rows, now_ms=MS + 1_000_000))
    subject = first.events[-1].subject
    d = Drive("deribit_derivatives", "BTC", types=["volatility_index"])
    assert d.venue.resume_subjects() == [subject]
    d.venue.resume([encode(first.events[-1].data)])
    d.respond(Fetch("volatility_index", "BTC", ""), candles(*rows, now_ms=MS + 1_000_000))
    assert d.events == []
    d.now_ns = (MS + 10 * 3_600_000) * 1_000_000
    path = d.venue.polls()[0].fetch(d.now_ns).path
    assert f"start_timestamp={MS + 120_000}" in path  # what was missed while away


def test_polled_books() -> None:
    d = deribit(book_method="snapshot", snapshot_depth=5)
    fetch = d.venue.polls()[0].fetch(d.now_ns)
    assert "get_order_book?instrument_name=BTC-PERPETUAL&depth=5" in fetch.path
    result = {"timestamp": MS, "change_id": 7, "bids": [[99.5, 10.0]], "asks": [[100.0, 20.0]]}
    d.respond(fetch, {"result": result})
    d.respond(fetch, {"result": {**result, "bids": [[100.5, 10.0]]}})
    assert [(x.last_update_id, x.bids[0].price) for x in d.of(OrderBook)] == [(7, "99.5")]


def test_nothing_kept_inside_grows_without_end() -> None:
    d = deribit()
    d.open()
    for n in range(12_000):
        d.frame(trades(name=f"X{n}"))
    assert len(d.venue.connections["c1"].seen) <= 10_000
    assert len(d.venue._routes) <= 10_000  # type: ignore[attr-defined]
