"""Liquidations held against the truth. They have no numbers, so a hole is told by its times only."""

from collections import Counter
from collections.abc import Iterable
from typing import TypeAlias

from chaos.explain import NOTICED_WITHIN_MS, Fired
from chaos.judge import WORKER_OF, Payload, Verdict
from marketprism.simulator import Truth

_NUMBERED = frozenset({"deribit_derivatives"})  # there they come with the trades
_SKEW_MS = 3_000
"""Exchange's clock against ours: faults put it off by two seconds."""
_TAKEN_IN_SILENCE = frozenset({
    "silence", "half_open", "slow", "binance_wrong_route", "okx_error_60011", "okx_error_60012", "okx_operations_spent",
})  # fmt: skip
"""Faults that take what has no numbers from a connection that stands: nobody can know."""

_Figures: TypeAlias = tuple[str, str, str, int]


def judge_liquidations(
    payloads: Iterable[Payload], truth: Truth, fired: Iterable[Fired], until_ms: int, verdict: Verdict
) -> None:
    """Between the first trade published and `until_ms` each liquidation is published once, or told by a gap.

    What a fault takes from a connection that stands is excused.
    """
    faults = [one for one in fired if one.fault.name in _TAKEN_IN_SILENCE]
    began_ms: dict[tuple[str, str], int] = {}
    held: dict[tuple[str, str], Counter[_Figures]] = {}
    gaps: dict[tuple[str, str], list[Payload]] = {}
    for data in payloads:
        key = WORKER_OF.get((data["exchange"], data["market_type"]), ""), data["instrument_id"]
        if data["data_type"] == "trade":
            began_ms[key] = min(began_ms.get(key, data["collected_ts_ms"]), data["collected_ts_ms"])
        elif data["data_type"] == "liquidation":
            figures = data["side"], data["price"], data["exchange_quantity"], data["liquidation_ts_ms"]
            held.setdefault(key, Counter())[figures] += 1
        elif data["data_type"] == "gap" and data["affected_data_type"] == "liquidation":
            gaps.setdefault(key, []).append(data)
    for key, since_ms in began_ms.items():
        worker, instrument = key
        if worker in _NUMBERED:
            continue
        true = Counter((r.side, r.price, r.quantity, r.ts_ms) for r in truth.liquidations(*key))
        ours = held.get(key, Counter())
        verdict.liquidations += ours.total()
        for figures in ours - true:
            verdict.blame(f"{worker} {instrument}: liquidation {figures} never happened, or is there twice")
        for figures in true - ours:
            ts_ms = figures[3]
            due = since_ms + _SKEW_MS < ts_ms < until_ms - _SKEW_MS
            if due and not _told(gaps.get(key, []), ts_ms) and not _taken(faults, worker, ts_ms):
                verdict.blame(f"{worker} {instrument}: liquidation {figures} is missing without a word")


def _told(gaps: Iterable[Payload], ts_ms: int) -> bool:
    return any(
        gap["last_ts_ms_before"] - _SKEW_MS <= ts_ms <= gap["first_ts_ms_after"] + _SKEW_MS for gap in gaps
    )


def _taken(faults: Iterable[Fired], worker: str, ts_ms: int) -> bool:
    return any(
        one.hits(worker) and one.from_ms - _SKEW_MS <= ts_ms <= one.to_ms + NOTICED_WITHIN_MS
        for one in faults
    )
