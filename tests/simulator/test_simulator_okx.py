"""OKX v5 without sockets: chains, windows, checksums, resets, and the algorithm seeded over REST."""

import json
import zlib
from itertools import pairwise
from typing import Any

import pytest
from simulator_support import Book, Rig, apply_levels

from marketprism.simulator.face import Refused
from marketprism.simulator.messages import Connection

SPOT, SWAP = "okx_spot", "okx_derivatives"
PUBLIC = "/ws/v5/public"


def subscribe(rig: Rig, *arguments: dict[str, str]) -> tuple[Connection, list[Any]]:
    connection = rig.connect(PUBLIC)
    return connection, rig.ask(connection, {"op": "subscribe", "args": list(arguments)})


def books(name: str) -> dict[str, str]:
    return {"channel": "books", "instId": name}


def take(book: Book, row: dict[str, Any]) -> None:
    apply_levels(book[0], row["bids"])
    apply_levels(book[1], row["asks"])


def crc(book: Book) -> int:
    """The documented checksum: best 25, bid:size:ask:size, signed 32 bit."""
    bids = sorted(book[0].items(), key=lambda level: -float(level[0]))[:25]
    asks = sorted(book[1].items(), key=lambda level: float(level[0]))[:25]
    parts = [text for pair in zip(bids, asks, strict=True) for level in pair for text in level]
    value = zlib.crc32(":".join(parts).encode())
    return value - 2**32 if value >= 2**31 else value


@pytest.mark.parametrize(("worker", "name"), [(SPOT, "BTC-USDT"), (SWAP, "ETH-USDT-SWAP")])
def test_chain_and_window_equal_the_truth(worker: str, name: str) -> None:
    rig = Rig(worker)
    rig.steps(57)
    connection, answers = subscribe(rig, books(name))
    assert answers[0]["event"] == "subscribe"
    assert answers[0]["arg"] == books(name)
    first = answers[1]["data"][0]
    assert (answers[1]["action"], first["prevSeqId"], first["checksum"]) == ("snapshot", -1, 0)
    assert (len(first["bids"]), len(first["asks"])) == (400, 400)
    book: Book = ({}, {})
    take(book, first)
    assert rig.truth.book_at(worker, name, first["seqId"]) == book
    last, steps, window_moves = first["seqId"], set(), 0
    for message in rig.messages(900, connection):
        row = message["data"][0]
        assert message["action"] == "update"
        assert row["prevSeqId"] == last
        assert all(len(level) == 4 for level in row["bids"] + row["asks"])
        edge = min(map(float, book[0]))
        window_moves += sum(1 for price, size, *_ in row["bids"] if size == "0" and float(price) == edge)
        steps.add(row["seqId"] - last)
        last = row["seqId"]
        take(book, row)
        assert rig.truth.book_at(worker, name, last) == book
        assert (len(book[0]), len(book[1])) == (400, 400)
        assert max(map(float, book[0])) < min(map(float, book[1]))
    assert last == rig.truth.update_ids(worker, name)[-1]
    assert len(steps) > 20
    assert min(steps) >= 7
    assert window_moves > 5


def test_checksum_real_and_absent() -> None:
    rig = Rig(SPOT, checksum="real")
    connection, answers = subscribe(rig, books("BTC-USDT"))
    book: Book = ({}, {})
    for message in [*answers[1:], *rig.messages(300, connection)]:
        take(book, message["data"][0])
        assert message["data"][0]["checksum"] == crc(book)
    assert "checksum" not in subscribe(Rig(SPOT, checksum="absent"), books("BTC-USDT"))[1][1]["data"][0]


def test_seeded_over_rest_when_no_snapshot_comes() -> None:
    """The algorithm of the OKX changelog, 2026-02-12."""
    rig, middles, stale = Rig(SPOT, okx_snapshot=False), 0, 0
    for trial in range(16):
        rig.steps(13 + trial)
        connection, answers = subscribe(rig, books("BTC-USDT"))
        assert [one.get("event") for one in answers] == ["subscribe"]
        updates = [one["data"][0] for one in rig.messages(15, connection)]
        while True:
            snapshot = rig.get("/api/v5/market/books", instId="BTC-USDT", sz="400", source="0")["data"][0]
            updates += [one["data"][0] for one in rig.messages(40, connection)]
            if snapshot["seqId"] >= updates[0]["prevSeqId"]:
                break
            stale += 1
        news = [one for one in updates if one["seqId"] > snapshot["seqId"]]
        assert news[0]["prevSeqId"] <= snapshot["seqId"] < news[0]["seqId"]
        middles += news[0]["prevSeqId"] < snapshot["seqId"]
        book: Book = ({}, {})
        take(book, snapshot)
        assert rig.truth.book_at(SPOT, "BTC-USDT", snapshot["seqId"]) == book
        for row in news:
            take(book, row)
            assert rig.truth.book_at(SPOT, "BTC-USDT", row["seqId"]) == book
        rig.face.disconnect(connection)
    assert middles >= 2
    assert stale >= 1


def test_reset_continues_from_a_smaller_id() -> None:
    rig = Rig(SWAP)
    connection, answers = subscribe(rig, books("BTC-USDT-SWAP"))
    rig.arm("okx_reset", instrument="BTC-USDT-SWAP")
    rows = [one["data"][0] for one in [*answers[1:], *rig.messages(100, connection)]]
    resets = [row for row in rows[1:] if row["seqId"] < row["prevSeqId"]]
    assert len(resets) == 1
    assert all(after["prevSeqId"] == before["seqId"] for before, after in pairwise(rows))
    book: Book = ({}, {})
    for row in rows:
        take(book, row)
        assert rig.truth.book_at(SWAP, "BTC-USDT-SWAP", row["seqId"]) == book


def test_keepalive_after_a_minute_without_change() -> None:
    rig = Rig(SPOT, rate=0.0)
    connection, answers = subscribe(rig, books("BTC-USDT"))
    for _ in range(14):
        rig.steps(500)
        assert rig.say(connection, "ping") == ["pong"]
    last = answers[1]["data"][0]["seqId"]
    got = [one["data"][0] for one in rig.messages(6000, connection)]
    assert [(one["prevSeqId"], one["seqId"], one["bids"], one["asks"]) for one in got] == [
        (last, last, [], [])
    ]
    assert connection.closing is not None  # nobody pinged in the last minute, and nothing was pushed for 30 s


def test_trades_are_aggregated_and_fills_are_not() -> None:
    rig = Rig(SPOT, rate=900.0)
    connection, _ = subscribe(rig, {"channel": "trades", "instId": "BTC-USDT"})
    rows = [one["data"][0] for one in rig.messages(400, connection)]
    true = rig.truth.trades(SPOT, "BTC-USDT")
    told = [(r["tradeId"], r["px"], r["sz"], r["side"], int(r["ts"]), int(r["count"])) for r in rows]
    assert told == [trade[:6] for trade in true]
    assert any(trade.fills > 1 for trade in true)
    fills = rig.truth.fills(SPOT, "BTC-USDT")
    assert len(fills) == sum(trade.fills for trade in true) > len(true)
    newest = rig.get("/api/v5/market/trades", instId="BTC-USDT", limit="3")["data"]
    assert [one["tradeId"] for one in newest] == [fill.id for fill in reversed(fills[-3:])]
    page = rig.get(
        "/api/v5/market/history-trades", instId="BTC-USDT", type="1", after=fills[50].id, limit="10"
    )
    assert [(one["tradeId"], one["px"], one["sz"]) for one in page["data"]] == [
        f[:3] for f in reversed(fills[40:50])
    ]


def test_requests_and_errors() -> None:
    rig = Rig(SPOT)
    connection = rig.connect(PUBLIC)
    assert rig.say(connection, "ping") == ["pong"]

    def code(message: object) -> str:
        answer = rig.ask(connection, message)[0]
        assert answer["event"] == "error"
        assert answer["connId"]
        return str(answer["code"])

    assert code("{not json") == "60012"
    assert code({"op": "dance", "args": []}) == "60012"
    assert code({"op": "subscribe", "args": [books("NO-PE")]}) == "60018"
    assert code({"op": "subscribe", "args": [{"channel": "funding-rate", "instId": "BTC-USDT"}]}) == "60018"
    for channel in ("books-l2-tbt", "books50-l2-tbt"):
        assert code({"op": "subscribe", "args": [{"channel": channel, "instId": "BTC-USDT"}]}) == "60011"
    with pytest.raises(Refused):
        rig.connect("/ws/v5/nowhere")
    both = rig.ask(connection, {"op": "subscribe", "args": [books("BTC-USDT"), books("ETH-USDT")]})
    assert [one.get("event", one.get("action")) for one in both] == ["subscribe", "snapshot"] * 2
    again = rig.ask(connection, {"op": "unsubscribe", "args": [books("BTC-USDT")]})
    assert again[0]["event"] == "unsubscribe"
    assert {one["arg"]["instId"] for one in rig.messages(200, connection)} == {"ETH-USDT"}


def test_480_operations_an_hour() -> None:
    rig = Rig(SPOT)
    connection = rig.connect(PUBLIC)
    request = {"op": "unsubscribe", "args": [books("BTC-USDT")]}
    assert all(rig.ask(connection, request)[0]["event"] == "unsubscribe" for _ in range(480))
    assert rig.ask(connection, request)[0]["code"] == "60014"
    rig.now_ms += 3_600_000
    assert rig.ask(connection, request)[0]["event"] == "unsubscribe"


def test_public_data_of_swaps() -> None:
    rig, name = Rig(SWAP), "BTC-USDT-SWAP"
    channels = [{"channel": one, "instId": name} for one in ("funding-rate", "open-interest", "mark-price")]
    forced = {"channel": "liquidation-orders", "instType": "SWAP"}
    connection, answers = subscribe(
        rig, *channels, forced, {"channel": "index-tickers", "instId": "BTC-USDT"}
    )
    assert sum(one.get("event") == "subscribe" for one in answers) == 5
    got = [json.loads(text) for text in rig.steps(5000, connection)]
    by_channel = {one["arg"]["channel"] for one in got}
    assert by_channel >= {
        "funding-rate",
        "open-interest",
        "mark-price",
        "index-tickers",
        "liquidation-orders",
    }
    details = [one["data"][0]["details"][0] for one in got if one["arg"] == forced]
    told = sum(len(rig.truth.liquidations(SWAP, one)) for one in rig.face.instruments)
    assert told == len(details) >= 1
    assert set(details[0]) == {"bkLoss", "bkPx", "ccy", "posSide", "side", "sz", "ts"}


def test_rest_bodies() -> None:
    rig = Rig(SWAP)
    row = rig.get("/api/v5/public/instruments", instType="SWAP", instId="BTC-USDT-SWAP")["data"][0]
    assert (row["ctVal"], row["ctValCcy"], row["ctMult"], row["ctType"]) == ("0.01", "BTC", "1", "linear")
    assert rig.get("/api/v5/public/instruments", instType="SPOT")["data"] == []
    interest = rig.get("/api/v5/public/open-interest", instType="SWAP")["data"]
    assert {"instId", "oi", "oiCcy", "oiUsd", "ts"} <= set(interest[0])
    assert len(rig.get("/api/v5/public/funding-rate", instId="ANY")["data"]) == 2
    rubik = "/api/v5/rubik/stat/contracts/"
    for kind in (
        "account-ratio-contract",
        "account-ratio-contract-top-trader",
        "position-ratio-contract-top-trader",
    ):
        rows = rig.get(f"{rubik}long-short-{kind}", instId="BTC-USDT-SWAP", period="5m", limit="5")["data"]
        assert [int(one[0]) for one in rows] == sorted((int(one[0]) for one in rows), reverse=True)
        assert len(rows) == 5
    assert rig.get("/api/v5/market/books", instId="NO-PE")["code"] == "51001"
    spot = Rig(SPOT).get("/api/v5/public/instruments", instType="SPOT")["data"][0]
    assert (spot["baseCcy"], spot["quoteCcy"], spot["tickSz"]) == ("BTC", "USDT", "0.1")


def test_rate_limit_is_50011() -> None:
    rig = Rig(SPOT)
    replies = [rig.face.rest("/api/v5/market/books", {"instId": "BTC-USDT"}, rig.now_ms) for _ in range(41)]
    assert [reply.status for reply in replies] == [200] * 40 + [429]
    assert json.loads(replies[-1].body)["code"] == "50011"
    assert rig.face.rest("/api/v5/market/books", {"instId": "BTC-USDT"}, rig.now_ms + 2000).status == 200


def test_three_connections_a_second() -> None:
    rig = Rig(SPOT)
    for _ in range(3):
        rig.connect(PUBLIC)
    with pytest.raises(Refused, match="more than 3 connections in 1 s"):
        rig.connect(PUBLIC)
    rig.now_ms += 1000
    rig.connect(PUBLIC)
    assert [json.loads(one.text)["code"] for one in rig.face.notice(rig.now_ms)] == ["64008"] * 4
