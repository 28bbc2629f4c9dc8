"""The stream held against what the simulator knows happened."""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from chaos.consumer import ConsumerBook
from marketprism.simulator import TradeRecord, Truth
from marketprism.simulator.market import BID

Payload = dict[str, Any]
Due = Mapping[tuple[str, str], Collection[int]]
"""(worker, instrument) → the numbers of the fills that must be in the stream, or in a gap."""

WORKER_OF = {
    ("binance", "spot"): "binance_spot",
    ("binance", "perpetual"): "binance_derivatives",
    ("okx", "spot"): "okx_spot",
    ("okx", "perpetual"): "okx_derivatives",
    ("deribit", "perpetual"): "deribit_derivatives",
}


_WRONG_TOLD = 3  # states of one book


@dataclass
class Verdict:
    """What was compared, and every contradiction found.

    trades, liquidations: published; fills: what trades sum up; missing: fills that a gap tells; books: states compared.
    """

    trades: int = 0
    fills: int = 0
    missing: int = 0
    books: int = 0
    liquidations: int = 0
    gaps: list[Payload] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def blame(self, text: str) -> None:
        """Note a contradiction (the first hundred)."""
        if len(self.faults) < 100:
            self.faults.append(text)


def judge(messages: Iterable[tuple[str, bytes]], truth: Truth, due: Due | None = None) -> Verdict:
    """Hold the messages of the stream, in its order, against the truth.

    What was collected begins with the first trade published of an instrument; without `due` it ends with the last one.
    """
    return judge_payloads((json.loads(body) for _, body in messages), truth, due)


def judge_payloads(payloads: Iterable[Payload], truth: Truth, due: Due | None = None) -> Verdict:
    """The same of decoded messages."""
    verdict = Verdict()
    by_instrument: dict[tuple[str, str], list[Payload]] = {one: [] for one in due or ()}
    for data in payloads:
        worker = WORKER_OF.get((data["exchange"], data["market_type"]))
        if worker is not None:  # DVOL belongs to no instrument
            by_instrument.setdefault((worker, data["instrument_id"]), []).append(data)
    for (worker, instrument), of_it in by_instrument.items():
        gaps = [p for p in of_it if p["data_type"] == "gap"]
        verdict.gaps += gaps
        gaps = [_by_fills(gap, worker, truth) for gap in gaps]
        _trades(worker, instrument, of_it, gaps, truth, (due or {}).get((worker, instrument)), verdict)
        _books(worker, instrument, of_it, truth, verdict)
    return verdict


def _by_fills(gap: Payload, worker: str, truth: Truth) -> Payload:
    """A gap of trades by the numbers of fills: Binance USD-M numbers what sums them up."""
    before, after = gap["last_id_before"], gap["first_id_after"]
    if worker != "binance_derivatives" or gap["affected_data_type"] != "trade" or not (before and after):
        return gap
    fills = truth.summed_up(worker, gap["instrument_id"], int(before), int(after))
    return gap | {"last_id_before": str(fills.start - 1), "first_id_after": str(fills.stop)}


def awaited(messages: Iterable[tuple[str, bytes]], due: Due, truth: Truth) -> int:
    """How many fills that are due are neither published nor told so far; `messages`: trades and gaps."""
    covered: dict[tuple[str, str], set[int]] = {one: set() for one in due}
    begun: dict[tuple[str, str], int] = {}
    for _, body in messages:
        data = json.loads(body)
        key = WORKER_OF.get((data["exchange"], data["market_type"]), ""), data["instrument_id"]
        if data["data_type"] == "trade" and key in due:
            span = _span(data)
            covered[key].update(span)
            begun[key] = min(begun.get(key, span.start), span.start)
        elif key in due and data["affected_data_type"] == "trade" and data["last_id_before"]:
            data = _by_fills(data, key[0], truth)
            covered[key].update(range(int(data["last_id_before"]) + 1, int(data["first_id_after"])))
    return sum(n >= begun.get(key, n) and n not in covered[key] for key, fills in due.items() for n in fills)


def _span(trade: Payload) -> range:
    """The running numbers of the fills that a published trade sums up."""
    if trade["trade_seq"] is not None:
        return range(trade["trade_seq"], trade["trade_seq"] + 1)
    first, last = trade["first_trade_id"] or trade["trade_id"], trade["last_trade_id"] or trade["trade_id"]
    return range(int(first), int(last) + 1)


def _trades(
    worker: str,
    instrument: str,
    payloads: list[Payload],
    gaps: list[Payload],
    truth: Truth,
    due: Collection[int] | None,
    verdict: Verdict,
) -> None:
    fills = {f.seq: f for f in truth.fills(worker, instrument)}
    covered: set[int] = set()
    for trade in payloads:
        if trade["data_type"] != "trade":
            continue
        verdict.trades += 1
        span = _span(trade)
        if not covered.isdisjoint(span):
            verdict.blame(f"{worker} {instrument}: trade {trade['trade_id']} published twice")
        covered.update(span)
        real = [fills[n] for n in span if n in fills]
        if len(real) != len(span):
            verdict.blame(f"{worker} {instrument}: trade {trade['trade_id']} never happened")
        elif not _same(trade, real):
            verdict.blame(f"{worker} {instrument}: trade {trade['trade_id']} is not as it happened: {real}")
    verdict.fills += len(covered)
    if covered:
        _missing(worker, instrument, fills, covered, gaps, due, verdict)
    elif due is not None:
        verdict.blame(f"{worker} {instrument}: not one trade was published")


def _same(trade: Payload, real: list[TradeRecord]) -> bool:
    """Whether a published trade is the sum of these fills."""
    total = sum(Decimal(f.quantity) for f in real)
    figures = {(f.price, f.side) for f in real}
    return total == Decimal(trade["exchange_quantity"]) and figures == {(trade["price"], trade["side"])}


def _missing(
    worker: str,
    instrument: str,
    fills: Mapping[int, TradeRecord],
    covered: set[int],
    gaps: list[Payload],
    due: Collection[int] | None,
    verdict: Verdict,
) -> None:
    """Blame what is neither published nor told."""
    if due is None:
        due = [n for n in fills if n <= max(covered)]
    told = [g for g in gaps if g["affected_data_type"] == "trade"]
    begun = min(covered)
    missing = [fills[n] for n in sorted(due) if n >= begun and n not in covered]
    silent = [f.seq for f in missing if not any(_tells(gap, f) for gap in told)]
    verdict.missing += len(missing)
    if silent:
        verdict.blame(
            f"{worker} {instrument}: {len(silent)} trades missing without a word, first {silent[0]}, last {silent[-1]}"
        )


def _tells(gap: Payload, fill: TradeRecord) -> bool:
    """Whether a gap covers this fill, by its numbers, or where it has none by its times."""
    before, after = gap["last_id_before"], gap["first_id_after"]
    if before is not None and after is not None:
        return int(before) < fill.seq < int(after)
    start_ms, end_ms = gap["last_ts_ms_before"], gap["first_ts_ms_after"]
    return start_ms is not None and end_ms is not None and start_ms <= fill.ts_ms <= end_ms


class RealBook:
    """The true book in the exchange's texts, carried on from id to id."""

    def __init__(self, worker: str, instrument: str, truth: Truth) -> None:
        self.bids: dict[str, str] = {}
        self.asks: dict[str, str] = {}
        self._name = worker, instrument
        self._truth = truth
        self._writes = truth.instrument(worker, instrument)
        self._levels: dict[int, int] = {}

    def go_to(self, update_id: int) -> None:
        """Become the book at this id. Raises KeyError where the truth knows none."""
        levels = self._truth.levels_at(*self._name, update_id)
        for key in self._levels.keys() - levels.keys():
            del self._side(key)[self._writes.price_text(key >> 1)]
        for key, lots in levels.items() - self._levels.items():
            self._side(key)[self._writes.price_text(key >> 1)] = self._writes.quantity_text(lots)
        self._levels = levels

    def _side(self, key: int) -> dict[str, str]:
        return self.bids if key & 1 == BID else self.asks


def _books(worker: str, instrument: str, payloads: list[Payload], truth: Truth, verdict: Verdict) -> None:
    book, real = ConsumerBook(), RealBook(worker, instrument, truth)
    wrong = 0
    for data in payloads:
        if data["data_type"] == "gap" and data["affected_data_type"] == "orderbook_delta":
            book.gap(data["last_id_before"])
        if data["data_type"] != "orderbook_delta" or not book.take(data):
            continue
        where = f"{worker} {instrument}: book at {data['last_update_id']}"
        if book.broken:
            verdict.blame(f"{where}: the chain breaks without a gap")
            book.broken = False
        verdict.books += 1
        if found := differences(book, real, data["last_update_id"]):
            verdict.blame(f"{where}: {found}")
            wrong += 1
        if wrong == _WRONG_TOLD:  # a wrong book stays wrong
            return


def differences(book: ConsumerBook, real: RealBook, update_id: int) -> str:
    """Every level held must be real, and every real one within the known window must be held."""
    try:
        real.go_to(update_id)
    except KeyError:
        return "not known to the truth"
    found = []
    for name, ours, theirs in (("bids", book.bids, real.bids), ("asks", book.asks, real.asks)):
        held = dict(ours.values())
        # Texts differ where the exchange writes a number in two ways: those few are compared as numbers.
        true = {Decimal(p): Decimal(q) for p, q in theirs.items() - held.items()}
        wrong = {Decimal(p) for p, q in held.items() - theirs.items() if true.get(Decimal(p)) != Decimal(q)}
        absent = {p for p in true.keys() - ours.keys() if book.knows(p)}
        if wrong or absent:
            prices = ", ".join(map(str, sorted(wrong | absent)[:3]))
            found.append(f"{len(wrong)} {name} wrong, {len(absent)} absent, e.g. {prices}")
    return "; ".join(found)
