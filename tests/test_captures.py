"""Real exchange traffic, judged on what is published: books against the exchanges' own words, each trade once."""

import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from captures import capture, of, replay

from chaos.consumer import ConsumerBook
from marketprism.events import Event, Gap, OrderBookDelta, Trade


def frames(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON messages received over a websocket."""
    with gzip.open(path, "rt") as lines:
        for line in lines:
            frame = json.loads(line)
            if frame["via"] == "ws" and not frame.get("out") and frame["raw"][0] == "{":
                yield json.loads(frame["raw"])


def tops(events: list[Event]) -> dict[tuple[str, int], tuple[Any, Any]]:
    """(instrument, update id) → best bid and ask of the book rebuilt from the published deltas."""
    books: dict[str, ConsumerBook] = defaultdict(ConsumerBook)
    best = {}
    for data in of(events, OrderBookDelta):
        book = books[data.instrument_id]
        book.take(msgspec.to_builtins(data))
        assert not book.crossed
        best[data.instrument_id, data.last_update_id] = book.best()
    assert not any(b.broken for b in books.values())
    return best


# Recording, exchange, equal update ids known from a check made with other code (the recordings' index).
BINANCE = [
    ("binance_spot.btcusdt.20240808", "binance_spot", 1072),
    ("binance_derivatives.btcusdt.20240808", "binance_derivatives", 503),
    ("binance_spot.many.202104", "binance_spot", 199),
    ("binance_derivatives.many.202104", "binance_derivatives", 86),
]


@pytest.mark.parametrize(("name", "exchange", "equal_ids"), BINANCE)
def test_binance_books_equal_book_ticker(name: str, exchange: str, equal_ids: int) -> None:
    path = capture(f"{name}.jsonl.gz")
    events = replay(exchange, path)
    best = tops(events)
    compared = 0
    for message in frames(path):
        if message.get("stream", "").endswith("@bookTicker"):
            ticker = message["data"]
            ours = best.get((ticker["s"], ticker["u"]))
            if ours is not None:
                compared += 1
                assert ours == ((ticker["b"], ticker["B"]), (ticker["a"], ticker["A"]))
    assert compared >= equal_ids
    assert of(events, Gap) == []


@pytest.mark.parametrize(("name", "exchange", "_"), BINANCE)
def test_binance_trades_once(name: str, exchange: str, _: int) -> None:
    path = capture(f"{name}.jsonl.gz")
    sent = Counter(
        (m["data"]["s"], str(m["data"].get("t") or m["data"]["a"]), m["data"]["p"], m["data"]["q"])
        for m in frames(path)
        if m.get("data", {}).get("e") in ("trade", "aggTrade")
    )
    events = replay(exchange, path)
    published = Counter((t.instrument_id, t.trade_id, t.price, t.quantity) for t in of(events, Trade))
    assert published == sent
    assert max(published.values()) == 1
    assert len({e.id for e in events}) == len(events)


@pytest.mark.parametrize("name", ["okx.many.202107.conn1", "okx.many.202107.conn2", "okx.books.202205"])
def test_okx_checksums_and_trades(name: str) -> None:
    path = capture(f"{name}.jsonl.gz")
    events = replay("okx_derivatives", path)
    sent = [r["checksum"] for m in frames(path) for r in m.get("data", []) if "action" in m]
    books: dict[str, ConsumerBook] = defaultdict(ConsumerBook)
    deltas = of(events, OrderBookDelta)
    for data in deltas:
        books[data.instrument_id].take(msgspec.to_builtins(data))
        assert books[data.instrument_id].crc32() == data.checksum
    assert Counter(d.checksum for d in deltas) == Counter(sent)
    trades = [r for m in frames(path) if m["arg"]["channel"] == "trades" for r in m.get("data", [])]
    assert sorted((r["instId"], r["tradeId"]) for r in trades) == sorted(
        (t.instrument_id, t.trade_id) for t in of(events, Trade)
    )
    assert of(events, Gap) == []


def test_okx_two_connections_are_one_record() -> None:
    paths = [capture(f"okx.many.202107.conn{n}.jsonl.gz") for n in (1, 2)]
    events = replay("okx_derivatives", *paths)
    ids = [(t.instrument_id, t.trade_id) for t in of(events, Trade)]
    assert len(ids) == len(set(ids)) == 36
    books: dict[str, ConsumerBook] = defaultdict(ConsumerBook)
    for data in of(events, OrderBookDelta):
        books[data.instrument_id].take(msgspec.to_builtins(data))
        assert books[data.instrument_id].crc32() == data.checksum
    assert of(events, Gap) == []


def test_deribit_chain_and_best_prices() -> None:
    path = capture("deribit.options.202104.jsonl.gz")
    events = replay("deribit_derivatives", path)
    deltas = of(events, OrderBookDelta)
    assert Counter(d.update_type for d in deltas) == {"snapshot": 10, "delta": 46}
    best = tops(events)
    assert of(events, Gap) == []
    # The ticker of the same instant names the best prices.
    at = {(d.instrument_id, d.ts_ms): best[d.instrument_id, d.last_update_id] for d in deltas}
    compared = 0
    for message in frames(path):
        params = message.get("params", {})
        if not params.get("channel", "").startswith("ticker."):
            continue
        ticker = params["data"]
        ours = at.get((ticker["instrument_name"], ticker["timestamp"]))
        if ours is not None:
            compared += 1
            for level, price in zip(ours, (ticker["best_bid_price"], ticker["best_ask_price"]), strict=True):
                assert Decimal(level[0] if level else 0) == Decimal(str(price))
    assert compared >= 20
