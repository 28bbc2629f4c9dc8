"""The stream held against what the simulator knows happened."""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from consumer import ConsumerBook

from marketprism.simulator import Truth

Payload = dict[str, Any]
Key = tuple[str, str, str]

WORKER_OF = {
    ("binance", "spot"): "binance_spot",
    ("binance", "perpetual"): "binance_derivatives",
    ("okx", "spot"): "okx_spot",
    ("okx", "perpetual"): "okx_derivatives",
    ("deribit", "perpetual"): "deribit_derivatives",
}


@dataclass
class Verdict:
    """What was compared, and every contradiction found."""

    trades: int = 0
    fills: int = 0
    books: int = 0
    gaps: list[Payload] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def blame(self, text: str) -> None:
        """Note a contradiction (the first hundred)."""
        if len(self.faults) < 100:
            self.faults.append(text)


def judge(messages: Iterable[tuple[str, bytes]], truth: Truth) -> Verdict:
    """Hold the messages of the stream, in its order, against the truth."""
    verdict = Verdict()
    by_instrument: dict[Key, list[Payload]] = defaultdict(list)
    for _, body in messages:
        data = json.loads(body)
        by_instrument[data["exchange"], data["market_type"], data["instrument_id"]].append(data)
    for (exchange, market_type, instrument), payloads in by_instrument.items():
        worker = WORKER_OF.get((exchange, market_type))
        if worker is None:
            continue  # DVOL belongs to no instrument
        gaps = [p for p in payloads if p["data_type"] == "gap"]
        verdict.gaps += gaps
        _trades(worker, instrument, payloads, gaps, truth, verdict)
        _books(worker, instrument, payloads, truth, verdict)
    return verdict


def _span(trade: Payload) -> range:
    """The running numbers of the fills that a published trade sums up."""
    if trade["trade_seq"] is not None:
        return range(trade["trade_seq"], trade["trade_seq"] + 1)
    first, last = trade["first_trade_id"] or trade["trade_id"], trade["last_trade_id"] or trade["trade_id"]
    return range(int(first), int(last) + 1)


def _trades(
    worker: str, instrument: str, payloads: list[Payload], gaps: list[Payload], truth: Truth, verdict: Verdict
) -> None:
    published = [p for p in payloads if p["data_type"] == "trade"]
    if not published:
        return
    fills = {f.seq: f for f in truth.fills(worker, instrument)}
    covered: set[int] = set()
    for trade in published:
        verdict.trades += 1
        span = _span(trade)
        if not covered.isdisjoint(span):
            verdict.blame(f"{worker} {instrument}: trade {trade['trade_id']} published twice")
        covered.update(span)
        real = [fills[n] for n in span if n in fills]
        if len(real) != len(span):
            verdict.blame(f"{worker} {instrument}: trade {trade['trade_id']} never happened")
            continue
        total = sum(Decimal(f.quantity) for f in real)
        same = total == Decimal(trade["exchange_quantity"]) and {(f.price, f.side) for f in real} == {
            (trade["price"], trade["side"])
        }
        if not same:
            verdict.blame(f"{worker} {instrument}: trade {trade['trade_id']} is not as it happened: {real}")
    verdict.fills += len(covered)
    told = [
        range(int(g["last_id_before"]) + 1, int(g["first_id_after"]))
        for g in gaps
        if g["affected_data_type"] == "trade" and g["last_id_before"]
    ]
    missing = [n for n in range(min(covered), max(covered)) if n in fills and n not in covered]
    silent = [n for n in missing if not any(n in r for r in told)]
    if silent:
        verdict.blame(
            f"{worker} {instrument}: {len(silent)} trades missing without a word, first {silent[0]}"
        )


def _books(worker: str, instrument: str, payloads: list[Payload], truth: Truth, verdict: Verdict) -> None:
    book = ConsumerBook()
    for data in payloads:
        if data["data_type"] == "gap" and data["affected_data_type"] == "orderbook_delta":
            book.gap()
        if data["data_type"] != "orderbook_delta" or not book.take(data):
            continue
        if book.broken:
            verdict.blame(
                f"{worker} {instrument}: the chain breaks at {data['last_update_id']} without a gap"
            )
            book.broken = False
        verdict.books += 1
        _compare(worker, instrument, data["last_update_id"], book, truth, verdict)


def _compare(
    worker: str, instrument: str, update_id: int, book: ConsumerBook, truth: Truth, verdict: Verdict
) -> None:
    """Every level held must be real, and every real one within the known window must be held."""
    sides = truth.book_at(worker, instrument, update_id)
    for name, ours, theirs in (("bid", book.bids, sides[0]), ("ask", book.asks, sides[1])):
        real = {Decimal(p): Decimal(q) for p, q in theirs.items()}
        held = {p: Decimal(q) for p, (_, q) in ours.items()}
        wrong = {p for p, q in held.items() if real.get(p) != q}
        absent = {p for p in real.keys() - held.keys() if book.knows(p)}
        if wrong or absent:
            verdict.blame(
                f"{worker} {instrument}: book at {update_id}: {len(wrong)} {name}s wrong, {len(absent)} absent, "
                f"e.g. {sorted(wrong | absent)[:3]}"
            )
