"""Deribit without sockets: acks, chains, heartbeats, numbers."""

import json
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from simulator_support import Rig

from marketprism.simulator.face import Refused
from marketprism.simulator.messages import Connection

WORKER, NAME = "deribit_derivatives", "BTC-PERPETUAL"
BOOK, TRADES = f"book.{NAME}.100ms", f"trades.{NAME}.100ms"


def call(rig: Rig, connection: Connection, method: str, **parameters: object) -> dict[str, Any]:
    answer = rig.ask(
        connection, {"jsonrpc": "2.0", "id": 3, "method": f"public/{method}", "params": parameters}
    )
    return dict(answer[0])


def connect(rig: Rig, *channels: str) -> tuple[Connection, list[str]]:
    connection = rig.connect("/ws/api/v2")
    request = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "public/subscribe",
        "params": {"channels": list(channels)},
    }
    return connection, rig.say(connection, request)


def decimals(
    book: tuple[dict[str, str], dict[str, str]],
) -> tuple[dict[Decimal, Decimal], dict[Decimal, Decimal]]:
    bids, asks = ({Decimal(price): Decimal(size) for price, size in side.items()} for side in book)
    return bids, asks


def take(book: tuple[dict[Decimal, Decimal], ...], data: dict[str, Any]) -> None:
    for side, name in zip(book, ("bids", "asks"), strict=True):
        for action, price, amount in data[name]:
            assert (action == "new") == (price not in side)
            if action == "delete":
                assert amount == 0
                del side[price]
            else:
                side[price] = amount


@pytest.mark.parametrize("interval", ["100ms", "agg2"])
def test_chain_equals_the_truth(interval: str) -> None:
    rig = Rig(WORKER)
    rig.steps(77)
    channels = [f"book.{name}-PERPETUAL.{interval}" for name in ("BTC", "ETH")]
    connection, answers = connect(rig, *channels)
    ids: list[int] = []
    books: dict[str, tuple[dict[Decimal, Decimal], ...]] = {}
    last: dict[str, int] = {}
    texts = [*answers[1:], *rig.steps(2000 if interval == "agg2" else 600, connection)]
    for message in (json.loads(text, parse_float=Decimal, parse_int=Decimal) for text in texts):
        data = message["params"]["data"]
        name = data["instrument_name"]
        if data["type"] == "snapshot":
            assert "prev_change_id" not in data
            books[name] = ({}, {})
        else:
            assert data["prev_change_id"] == last[name]
            ids.append(int(data["change_id"]))
        take(books[name], data)
        last[name] = int(data["change_id"])
        assert decimals(rig.truth.book_at(WORKER, name, last[name])) == books[name]
    assert len(books) == 2
    assert len(ids) >= 30
    assert ids == sorted(ids)
    assert any(b" " not in text.encode() and "e3" in text for text in texts)


def test_acks_list_what_was_subscribed() -> None:
    rig = Rig(WORKER)
    wanted = [
        BOOK,
        TRADES,
        f"ticker.{NAME}.100ms",
        f"perpetual.{NAME}.100ms",
        "deribit_volatility_index.btc_usd",
    ]
    connection, answers = connect(rig, *wanted, "book.NOPE.100ms", "nonsense", f"book.{NAME}.7ms")
    ack = json.loads(answers[0])
    assert sorted(ack["result"]) == sorted(wanted)
    assert ack["usDiff"] == ack["usOut"] - ack["usIn"]
    assert len(answers) == 2
    again = rig.say(connection, {"id": 2, "method": "public/subscribe", "params": {"channels": [BOOK]}})
    assert [json.loads(text)["result"] for text in again] == [[BOOK]]
    assert call(rig, connection, "unsubscribe", channels=[BOOK, "nonsense"])["result"] == [BOOK]
    fresh = rig.say(connection, {"id": 2, "method": "public/subscribe", "params": {"channels": [BOOK]}})
    assert json.loads(fresh[1])["params"]["data"]["type"] == "snapshot"
    got = {json.loads(text)["params"]["channel"] for text in rig.steps(300, connection)}
    assert got == set(wanted)


def test_errors() -> None:
    rig = Rig(WORKER)
    connection = rig.connect("/ws/api/v2")
    raw = call(rig, connection, "subscribe", channels=[BOOK, f"trades.{NAME}.raw"])
    assert raw["error"] == {"code": 13778, "message": "raw_subscriptions_not_available_for_unauthorized"}
    assert not connection.topics
    assert call(rig, connection, "dance")["error"]["code"] == -32601
    assert rig.ask(connection, "{not json")[0]["error"]["code"] == 11050
    assert call(rig, connection, "set_heartbeat", interval=5)["error"]["code"] == -32602
    for _ in range(9):
        call(rig, connection, "subscribe", channels=[])
    assert call(rig, connection, "subscribe", channels=[])["error"]["code"] == 10028
    assert connection.closing is not None
    with pytest.raises(Refused):
        rig.connect("/elsewhere")


def test_heartbeat_must_be_answered() -> None:
    rig = Rig(WORKER)
    connection = rig.connect("/ws/api/v2")
    assert call(rig, connection, "set_heartbeat", interval=10)["result"] == "ok"
    assert [one["params"]["type"] for one in rig.messages(1100, connection)] == ["test_request"]
    assert call(rig, connection, "test")["result"]["version"]
    rig.steps(1000, connection)
    assert connection.closing is None
    rig.steps(1100, connection)
    assert connection.closing == (4000, "heartbeat close")


def test_idle_without_subscriptions_is_cut() -> None:
    rig = Rig(WORKER, rate=0.0)
    idle, (busy, _) = rig.connect("/ws/api/v2"), connect(rig, BOOK)
    rig.steps(6200)
    assert idle.closing == (0, "idle")
    assert busy.closing is None


def test_trades_are_consecutive_and_paged() -> None:
    rig = Rig(WORKER, rate=500.0)
    connection, _ = connect(rig, TRADES)
    batches = [one["params"]["data"] for one in rig.messages(2000, connection)]
    trades = [trade for batch in batches for trade in batch]
    assert any(len(batch) > 1 for batch in batches)
    true = rig.truth.trades(WORKER, NAME)
    told = [(t["trade_id"], t["trade_seq"], t["direction"], t["timestamp"]) for t in trades]
    assert told == [(t.id, t.seq, t.side, t.ts_ms) for t in true]
    assert [t["trade_seq"] for t in trades] == list(
        range(trades[0]["trade_seq"], trades[0]["trade_seq"] + len(trades))
    )
    assert all(t["contracts"] * 10 == t["amount"] for t in trades)
    assert sum("liquidation" in t for t in trades) >= 1
    first = trades[0]["trade_seq"]
    path = "/api/v2/public/get_last_trades_by_instrument"
    page = rig.get(path, instrument_name=NAME, start_seq=str(first + 5), end_seq=str(first + 30), count="10")[
        "result"
    ]
    assert [t["trade_seq"] for t in page["trades"]] == list(range(first + 5, first + 15))
    assert page["has_more"] is True
    rest = rig.get(
        path, instrument_name=NAME, start_seq=str(first + 15), end_seq=str(first + 20), count="10"
    )["result"]
    assert (len(rest["trades"]), rest["has_more"]) == (6, False)
    newest = rig.get(path, instrument_name=NAME, count="2")["result"]["trades"]
    assert [t["trade_seq"] for t in newest] == [true[-1].seq, true[-2].seq]


def test_slow_rate_keeps_the_100_ms_interval() -> None:
    rig = Rig(WORKER, rate=30.0)
    connection, _ = connect(rig, TRADES)
    times: list[int] = []
    for _ in range(3000):
        times += [rig.now_ms] * len(rig.steps(1, connection))
    assert len(times) > 50
    assert all(after - before >= 90 for before, after in pairwise(times))


def test_rest() -> None:
    rig = Rig(WORKER, symbols={WORKER: ["BTC-PERPETUAL", "ETH-PERPETUAL", "BTC_USDC-PERPETUAL"]})
    rig.steps(50)
    by_currency = {
        currency: [
            one["instrument_name"]
            for one in rig.get("/api/v2/public/get_instruments", currency=currency)["result"]
        ]
        for currency in ("BTC", "ETH", "USDC")
    }
    assert by_currency == {"BTC": ["BTC-PERPETUAL"], "ETH": ["ETH-PERPETUAL"], "USDC": ["BTC_USDC-PERPETUAL"]}
    book = rig.get("/api/v2/public/get_order_book", instrument_name=NAME, depth="10000")["result"]
    true = decimals(rig.truth.book_at(WORKER, NAME, book["change_id"]))
    assert {Decimal(str(price)): Decimal(str(size)) for price, size in book["bids"]} == true[0]
    summary = rig.get("/api/v2/public/get_book_summary_by_currency", currency="BTC", kind="future")["result"][
        0
    ]
    assert summary["open_interest"] > 1e6
    bad = rig.face.rest("/api/v2/public/ticker", {"instrument_name": "NOPE"}, rig.now_ms)
    assert (bad.status, json.loads(bad.body)["error"]["code"]) == (400, -32602)


def test_volatility_index_rows_and_continuation() -> None:
    rig = Rig(WORKER)
    path = "/api/v2/public/get_volatility_index_data"
    span = {"currency": "BTC", "resolution": "60", "end_timestamp": str(rig.now_ms)}
    hour = rig.get(path, **span, start_timestamp=str(rig.now_ms - 3_600_000))["result"]
    assert 59 <= len(hour["data"]) <= 61
    assert hour["continuation"] is None
    assert all(low <= min(o, c) and high >= max(o, c) for _, o, high, low, c in hour["data"])
    start = rig.now_ms - 2 * 86_400_000
    newest = rig.get(path, **span, start_timestamp=str(start))["result"]
    older = rig.get(
        path, **(span | {"end_timestamp": str(newest["continuation"])}), start_timestamp=str(start)
    )["result"]
    assert len(newest["data"]) == 1000
    assert older["data"][-1][0] == newest["data"][0][0] - 60_000


def test_credits_run_out() -> None:
    rig = Rig(WORKER)
    query = {"currency": "BTC"}
    statuses = [rig.face.rest("/api/v2/public/get_instruments", query, rig.now_ms).status for _ in range(6)]
    assert statuses == [200] * 5 + [429]


def test_the_33rd_connection_is_refused_and_maintenance_is_announced() -> None:
    rig = Rig(WORKER)
    connection, _ = connect(rig, "platform_state")
    for _ in range(31):
        rig.connect("/ws/api/v2")
    with pytest.raises(Refused):
        rig.connect("/ws/api/v2")
    assert rig.messages(100, connection)[0]["params"]["data"]["locked"] is False
    notice = rig.face.notice(rig.now_ms)[0]
    assert notice.connections == (connection,)
    assert json.loads(notice.text)["params"]["data"] == {"maintenance": True}
