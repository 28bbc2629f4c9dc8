"""Binance spot and USD-M without sockets, judged by naive checkers written from the documented rules."""

import json
from itertools import pairwise
from typing import Any

import pytest
from simulator_support import Book, Rig, apply_levels

from marketprism.simulator.face import Refused
from marketprism.simulator.messages import Connection

SPOT, USDM = "binance_spot", "binance_derivatives"
PREFIX = {SPOT: "/api/v3", USDM: "/fapi/v1"}
PATH = {SPOT: "/stream", USDM: "/public/stream"}


def watch(rig: Rig, *streams: str) -> Connection:
    return rig.connect(PATH[rig.worker], streams="/".join(streams))


def fits(worker: str, limit_id: int, diff: dict[str, Any]) -> str:
    """'old', 'first' or 'gap': what a diff is to a snapshot with this lastUpdateId."""
    if worker == SPOT:
        if diff["u"] <= limit_id:
            return "old"
        return "first" if diff["U"] <= limit_id + 1 <= diff["u"] else "gap"
    if diff["u"] < limit_id:
        return "old"
    return "first" if diff["U"] <= limit_id <= diff["u"] or diff["pu"] == limit_id else "gap"


def chained(worker: str, before: dict[str, Any], diff: dict[str, Any]) -> bool:
    return bool(diff["U"] == before["u"] + 1 if worker == SPOT else diff["pu"] == before["u"])


def relation(worker: str, limit_id: int, diff: dict[str, Any]) -> str:
    if worker == SPOT:
        return "U == L+1" if diff["U"] == limit_id + 1 else "U <= L"
    return "pu == L" if diff["pu"] == limit_id else "u == L" if diff["u"] == limit_id else "inside"


def window(book: Book, snapshot: dict[str, Any]) -> Book:
    """The part of a book that a truncated snapshot knows about."""
    low, high = float(snapshot["bids"][-1][0]), float(snapshot["asks"][-1][0])
    bids = {price: size for price, size in book[0].items() if float(price) >= low}
    return bids, {price: size for price, size in book[1].items() if float(price) <= high}


def splice(
    rig: Rig, name: str, limit: str, wait: int
) -> tuple[str, dict[str, Any], list[dict[str, Any]], int]:
    """Subscribe, fetch until a snapshot fits, follow for a second: (relation, snapshot, applied, stale tries)."""
    connection = watch(rig, f"{name.lower()}@depth@100ms")
    diffs = [one["data"] for one in rig.messages(wait, connection)]
    stale = 0
    while True:
        snapshot = rig.get(PREFIX[rig.worker] + "/depth", symbol=name, limit=limit)
        diffs += [one["data"] for one in rig.messages(60, connection)]
        news = [diff for diff in diffs if fits(rig.worker, snapshot["lastUpdateId"], diff) != "old"]
        verdict = fits(rig.worker, snapshot["lastUpdateId"], news[0])
        if verdict == "first":
            rig.face.disconnect(connection)
            return relation(rig.worker, snapshot["lastUpdateId"], news[0]), snapshot, news, stale
        assert snapshot["lastUpdateId"] < diffs[0]["U"] - 1
        stale += 1


@pytest.mark.parametrize("worker", [SPOT, USDM])
def test_every_kind_of_splice_comes_and_the_book_is_the_truth(worker: str) -> None:
    rig, seen, stale = Rig(worker, seed=5), set(), 0
    for trial in range(16):
        kind, snapshot, applied, missed = splice(rig, "BTCUSDT", "1000", (3, 14, 25)[trial % 3])
        seen.add(kind)
        stale += missed
        book: Book = (dict(snapshot["bids"]), dict(snapshot["asks"]))
        for index, diff in enumerate(applied):
            assert index == 0 or chained(worker, applied[index - 1], diff)
            apply_levels(book[0], diff["b"])
            apply_levels(book[1], diff["a"])
            true = rig.truth.book_at(worker, "BTCUSDT", diff["u"])
            assert window(book, snapshot) == window(true, snapshot)
        rig.now_ms += 60_000  # a new minute for the weight
    wanted = {"U == L+1", "U <= L"} if worker == SPOT else {"pu == L", "u == L", "inside"}
    assert seen >= wanted
    assert stale >= 1


@pytest.mark.parametrize("worker", [SPOT, USDM])
def test_whole_book_equals_the_truth_at_every_id(worker: str) -> None:
    rig = Rig(worker)
    connection = watch(rig, "btcusdt@depth@100ms", "btcusdt@bookTicker")
    log = rig.truth._ledgers[worker, "BTCUSDT"].book
    bids, asks = rig.truth.book_at(worker, "BTCUSDT", log.last_id)
    tops: dict[int, dict[str, str]] = {}
    before: dict[str, Any] = {}
    orphans = compared = 0
    for message in rig.messages(1000, connection):
        data = message["data"]
        if "bookTicker" in message["stream"]:
            tops[data["u"]] = data
            continue
        orphans += sum(1 for price, size in data["b"] if not float(size) and price not in bids)
        apply_levels(bids, data["b"])
        apply_levels(asks, data["a"])
        assert rig.truth.book_at(worker, "BTCUSDT", data["u"]) == (bids, asks)
        assert max(map(float, bids)) < min(map(float, asks))
        if data["u"] in tops:
            top, compared = tops[data["u"]], compared + 1
            assert bids[top["b"]] == top["B"]
            assert asks[top["a"]] == top["A"]
            assert float(top["b"]) == max(map(float, bids))
        if worker == USDM and before:
            assert data["U"] > before["u"]
            assert data["pu"] == before["u"]
            assert (data["st"], data["ps"]) == (1, "BTCUSDT")
        before = data
    assert before["u"] == rig.truth.update_ids(worker, "BTCUSDT")[-1]
    assert compared > 10
    assert orphans > 10


def test_usdm_ids_are_not_contiguous_but_spot_ids_are() -> None:
    for worker in (SPOT, USDM):
        rig = Rig(worker)
        diffs = [one["data"] for one in rig.messages(500, watch(rig, "ethusdt@depth@100ms"))]
        steps = {after["U"] - before["u"] for before, after in pairwise(diffs)}
        assert (steps == {1}) == (worker == SPOT)
        assert all(diff["u"] > diff["U"] for diff in diffs)


@pytest.mark.parametrize(("stream", "least"), [("depth@0ms", 150), ("depth@500ms", 8), ("depth", 15)])
def test_other_depth_intervals_chain_too(stream: str, least: int) -> None:
    rig = Rig(USDM)
    rig.steps(33)
    diffs = [one["data"] for one in rig.messages(500, watch(rig, f"btcusdt@{stream}"))]
    assert len(diffs) >= least
    assert all(after["pu"] == before["u"] for before, after in pairwise(diffs))


@pytest.mark.parametrize("worker", [SPOT, USDM])
def test_each_trade_once_and_aggregates_sum_up(worker: str) -> None:
    rig = Rig(worker, rate=400.0)
    trades_on = watch(rig, "btcusdt@trade")
    aggregates_on = rig.connect("/stream" if worker == SPOT else "/market/stream", streams="btcusdt@aggTrade")
    got = rig.steps(500)
    trades = [one["data"] for one in map(json.loads, got) if one["stream"].endswith("@trade")]
    sums = [one["data"] for one in map(json.loads, got) if one["stream"].endswith("@aggTrade")]
    true = rig.truth.trades(worker, "BTCUSDT")
    told = [(str(t["t"]), t["p"], t["q"], "sell" if t["m"] else "buy", t["T"]) for t in trades]
    assert told == [(t.id, t.price, t.quantity, t.side, t.ts_ms) for t in true]
    assert [t["t"] for t in trades] == list(range(trades[0]["t"], trades[0]["t"] + len(trades)))
    assert sums[0]["f"] == trades[0]["t"]
    assert all(after["f"] == before["l"] + 1 for before, after in pairwise(sums))
    assert sum(round(float(t["q"]) * 1e6) for t in trades) == sum(round(float(t["q"]) * 1e6) for t in sums)
    assert len(sums) < len(trades)
    assert [str(t["a"]) for t in sums] == [t.id for t in rig.truth.aggregates(worker, "BTCUSDT")]
    assert {trades_on, aggregates_on} == set(rig.face.connections)


def test_requests_acks_and_errors() -> None:
    rig = Rig(SPOT)
    combined, raw = rig.connect("/stream"), rig.connect("/ws")
    request = {"method": "SUBSCRIBE", "params": ["btcusdt@trade", "nosuch@trade"], "id": 7}
    assert rig.ask(combined, request) == [{"result": None, "id": 7}]
    assert rig.ask(raw, request) == [{"result": None, "id": 7}]
    listed = rig.ask(combined, {"method": "LIST_SUBSCRIPTIONS", "id": 8})
    assert listed == [{"result": ["btcusdt@trade", "nosuch@trade"], "id": 8}]
    assert rig.ask(combined, "{nonsense")[0]["code"] == 3
    bad = rig.ask(combined, {"method": "SUBSCRIB", "params": [], "id": 9})[0]
    assert (bad["code"], bad["id"]) == (2, 9)
    assert {"stream", "data"} == set(rig.messages(200, combined)[0])
    assert rig.messages(200, raw)[0]["e"] == "trade"
    rig.ask(raw, {"method": "UNSUBSCRIBE", "params": ["btcusdt@trade"], "id": 10})
    assert rig.steps(200, raw) == []
    with pytest.raises(Refused):
        rig.connect("/nowhere")


def test_more_than_five_messages_a_second_are_cut() -> None:
    rig = Rig(SPOT)
    connection = rig.connect("/ws")
    for number in range(5):
        rig.say(connection, {"method": "LIST_SUBSCRIPTIONS", "id": number})
    assert connection.closing is None
    rig.now_ms += 1000
    for number in range(6):
        rig.say(connection, {"method": "LIST_SUBSCRIPTIONS", "id": number})
    assert connection.closing is not None


@pytest.mark.parametrize(
    ("path", "stream", "flows"),
    [
        ("/public/stream", "btcusdt@depth@100ms", True),
        ("/public/stream", "btcusdt@trade", True),
        ("/public/stream", "btcusdt@markPrice@1s", False),
        ("/market/stream", "btcusdt@markPrice@1s", True),
        ("/market/stream", "btcusdt@aggTrade", True),
        ("/market/stream", "btcusdt@depth@100ms", False),
        ("/stream", "btcusdt@depth@100ms", True),
        ("/stream", "btcusdt@aggTrade", False),
        ("/private/stream", "btcusdt@trade", False),
    ],
)
def test_usdm_paths_carry_only_their_streams(path: str, stream: str, flows: bool) -> None:
    rig = Rig(USDM)
    connection = rig.connect(path)
    assert rig.ask(connection, {"method": "SUBSCRIBE", "params": [stream], "id": 1}) == [
        {"result": None, "id": 1}
    ]
    assert bool(rig.steps(300, connection)) == flows


def test_liquidations_at_most_one_a_second_and_symbol() -> None:
    rig = Rig(USDM)
    connection = rig.connect("/market/stream", streams="!forceOrder@arr/btcusdt@forceOrder")
    got = [one for one in rig.messages(6000, connection) if one["stream"] == "!forceOrder@arr"]
    assert len(got) >= 3
    seen = {(one["data"]["o"]["s"], one["data"]["E"] // 1000) for one in got}
    assert len(seen) == len(got)
    true = sum(len(rig.truth.liquidations(USDM, name)) for name in ("BTCUSDT", "ETHUSDT"))
    assert true == len(got)


@pytest.mark.parametrize("worker", [SPOT, USDM])
def test_rest_pages_trades(worker: str) -> None:
    rig, prefix = Rig(worker, rate=800.0), PREFIX[worker]
    rig.steps(300)
    true = rig.truth.fills(worker, "BTCUSDT")
    newest = rig.get(prefix + "/trades", symbol="BTCUSDT", limit="5")
    assert [str(one["id"]) for one in newest] == [one.id for one in true[-5:]]
    page = rig.get(prefix + "/historicalTrades", symbol="BTCUSDT", fromId=true[10].id, limit="20")
    assert [(str(one["id"]), one["price"], one["qty"]) for one in page] == [t[:3] for t in true[10:30]]
    sums = rig.truth.aggregates(worker, "BTCUSDT")
    page = rig.get(prefix + "/aggTrades", symbol="BTCUSDT", fromId=sums[3].id, limit="4")
    assert [str(one["a"]) for one in page] == [one.id for one in sums[3:7]]


def test_rest_bodies_of_futures() -> None:
    rig = Rig(USDM)
    rig.steps(100)
    for name in ("topLongShortPositionRatio", "topLongShortAccountRatio", "globalLongShortAccountRatio"):
        rows = rig.get(f"/futures/data/{name}", symbol="BTCUSDT", period="5m", limit="12")
        assert [row["timestamp"] for row in rows] == sorted(row["timestamp"] for row in rows)
        assert len(rows) == 12
        assert float(rows[0]["longAccount"]) + float(rows[0]["shortAccount"]) == pytest.approx(1.0)
    assert set(rig.get("/fapi/v1/openInterest", symbol="BTCUSDT")) == {"symbol", "openInterest", "time"}
    premium = rig.get("/fapi/v1/premiumIndex")
    assert [row["symbol"] for row in premium] == ["BTCUSDT", "ETHUSDT"]
    assert premium[0]["nextFundingTime"] % 28_800_000 == 0
    assert "sumOpenInterest" in rig.get("/futures/data/openInterestHist", symbol="ETHUSDT", period="1h")[0]
    assert rig.get("/fapi/v1/fundingInfo") == []
    filters = rig.get("/fapi/v1/exchangeInfo")["symbols"][0]["filters"]
    assert filters[0]["tickSize"] == "0.10"


def test_rest_errors_and_weight() -> None:
    rig = Rig(SPOT)
    rest = rig.face.rest
    for query, code in (
        ({}, -1102),
        ({"symbol": "NOPE"}, -1121),
        ({"symbol": "BTCUSDT", "limit": "x"}, -1100),
    ):
        reply = rest("/api/v3/depth", query, rig.now_ms)
        assert (reply.status, json.loads(reply.body)["code"]) == (400, code)
    assert rest("/api/v1/depth", {"symbol": "BTCUSDT"}, rig.now_ms).status == 404
    query = {"symbol": "BTCUSDT", "limit": "5000"}
    replies = [rest("/api/v3/depth", query, rig.now_ms) for _ in range(40)]
    assert replies[0].headers["X-MBX-USED-WEIGHT-1M"] == "260"
    statuses = [reply.status for reply in replies]
    assert statuses == [200] * 23 + [429] * 5 + [418] * 12
    assert 1 <= int(replies[23].headers["Retry-After"]) <= 60
    assert rest("/api/v3/ping", {}, rig.now_ms + 60_000).status == 418
    assert rest("/api/v3/ping", {}, rig.now_ms + 121_000).status == 200
    futures = Rig(USDM).face.rest("/fapi/v1/depth", {"symbol": "BTCUSDT", "limit": "7"}, 0)
    assert json.loads(futures.body)["code"] == -4021


def _prices(message: dict[str, Any]) -> tuple[list[float], list[float]]:
    sides = (message["b"], message["a"]) if message["e"] == "depthUpdate" else ([], [])
    bids, asks = ([float(price) for price, size in side if float(size)] for side in sides)
    return bids, asks


def test_faults_in_the_stream() -> None:
    rig = Rig(SPOT)
    connection = watch(rig, "btcusdt@depth@100ms", "btcusdt@trade")
    rig.arm("drop_next_book_update", instrument="BTCUSDT")
    rig.arm("drop_next_trade")
    got = [one["data"] for one in rig.messages(200, connection)]
    rig.arm("cross", instrument="BTCUSDT")
    after = [one["data"] for one in rig.messages(100, connection)]
    touches = [(max(p), min(a)) for p, a in map(_prices, after) if p and a]
    assert sum(bid > ask for bid, ask in touches) == 1
    got += after
    assert rig.faults.fired == {"drop_next_book_update": 1, "drop_next_trade": 1, "cross": 1}
    ids = [one["t"] for one in got if one["e"] == "trade"]
    assert len(rig.truth.trades(SPOT, "BTCUSDT")) == len(ids) + 1
    assert len(rig.truth.update_ids(SPOT, "BTCUSDT")) == sum(one["e"] == "depthUpdate" for one in got) + 1
    notices = rig.face.notice(rig.now_ms)
    assert json.loads(notices[0].text)["stream"] == "!serverShutdown"
