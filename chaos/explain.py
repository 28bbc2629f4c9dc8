"""Which told gaps have a fault that explains them: false alarms are defects, too."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from chaos.judge import WORKER_OF, Payload
from chaos.schedule import LAUNCHER, NATS, AnyFault
from marketprism.simulator.faults import FaultKind

NOTICED_WITHIN_MS = 90_000
"""A connection that has never brought anything is replaced after 60 s, and the new one must be up by then."""
TOLD_WITHIN_MS = {"trade": 150_000}
"""A trade's hole is told when REST has refused for about a minute; all else as soon as it is noticed."""
_ENDS_A_WORKER = frozenset({"kill_worker", "kill_launcher"})
_SINCE_THE_START = frozenset({"orderbook_delta", "liquidation"})
"""Types of which a new process tells what it missed as a `restart` gap. Trades come by REST."""
_EARLY_MS = 1_000  # clocks are read at different moments


@dataclass(frozen=True, slots=True)
class Fired:
    """A fault and when, by the wall clock in milliseconds. `struck`: it took effect; else it was armed only."""

    fault: AnyFault
    from_ms: int
    to_ms: int
    struck: bool = True

    def hits(self, worker: str) -> bool:
        """Whether this worker had to do with it."""
        return self.fault.worker in (worker, NATS, LAUNCHER)


def unexplained(gaps: Iterable[Payload], fired: Iterable[Fired], kinds: Mapping[str, FaultKind]) -> list[str]:
    """One line for each gap that no fault explains."""
    faults = list(fired)
    return [
        f"{_worker(gap)} {gap['instrument_id']}: gap in {gap['affected_data_type']} without a fault that explains it: "
        f"{gap['cause']} after {gap['last_id_before']} before {gap['first_id_after']} at {gap['collected_ts_ms']}"
        for gap in gaps
        if not any(_explains(one, gap, kinds) for one in faults)
    ]


def _worker(gap: Payload) -> str:
    return WORKER_OF[gap["exchange"], gap["market_type"]]


def _explains(fired: Fired, gap: Payload, kinds: Mapping[str, FaultKind]) -> bool:
    name, data_type, told_ms = fired.fault.name, gap["affected_data_type"], gap["collected_ts_ms"]
    if data_type in _SINCE_THE_START and (gap["cause"] == "restart") != (name in _ENDS_A_WORKER):
        return False
    began_ms = min(told_ms, gap["last_ts_ms_before"] or told_ms)
    return (
        fired.hits(_worker(gap))
        and data_type in kinds[name].gap_expected
        and fired.from_ms - _EARLY_MS
        <= told_ms
        <= fired.to_ms + TOLD_WITHIN_MS.get(data_type, NOTICED_WITHIN_MS)
        and began_ms <= fired.to_ms + NOTICED_WITHIN_MS
    )


def causes(gaps: Iterable[Payload]) -> Counter[tuple[str, str]]:
    """How many gaps by data type and cause."""
    return Counter((gap["affected_data_type"], gap["cause"]) for gap in gaps)
