"""What goes wrong and when: faults of the exchanges, which the simulator plays, and faults of our own processes."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

from marketprism.simulator import WORKERS, SimulatorError
from marketprism.simulator.faults import CATALOG, Fault, FaultKind, random_schedule

NATS, LAUNCHER, HOT, COLD = "nats", "launcher", "hot", "cold"
_ANY = frozenset(WORKERS)
_LIVE_ONLY = frozenset({"orderbook_delta", "liquidation"})
_NOTHING: frozenset[str] = frozenset()
_STREAMS = _LIVE_ONLY | {"trade", "funding_rate", "open_interest", "volatility_index"}

PROCESS_FAULTS: dict[str, FaultKind] = {
    "kill_worker": FaultKind("kill -9 of the worker; the launcher starts it again", _ANY, False, _LIVE_ONLY),
    "stop_worker": FaultKind("the worker stands still (SIGSTOP) for `seconds`", _ANY, True, _NOTHING),
    "kill_launcher": FaultKind(
        "kill -9 of the launcher; then a new one", frozenset({LAUNCHER}), False, _LIVE_ONLY
    ),
    "kill_nats": FaultKind("kill -9 of NATS, started again at once", frozenset({NATS}), False, _NOTHING),
    "nats_away": FaultKind(
        "kill -9 of NATS, started again after `seconds`", frozenset({NATS}), True, _NOTHING
    ),
    "stop_nats": FaultKind("NATS stands still (SIGSTOP) for `seconds`", frozenset({NATS}), True, _NOTHING),
    "kill_hot": FaultKind(
        "kill -9 of the hot store and its engine, started again at once", frozenset({HOT}), False, _NOTHING
    ),
    "hot_away": FaultKind(
        "kill -9 of the hot store, started again after `seconds`", frozenset({HOT}), True, _NOTHING
    ),
    "kill_cold": FaultKind(
        "kill -9 of the cold store, started again at once", frozenset({COLD}), False, _NOTHING
    ),
}
"""The faults that are not the exchanges'."""
STORE_FAULTS = ("kill_hot", "hot_away", "kill_cold")
"""Those that need the stores."""
KINDS: dict[str, FaultKind] = {**CATALOG, **PROCESS_FAULTS}
_FAST = 600.0  # messages per second and exchange
_MORE_WHEN_FAST = {
    **dict.fromkeys(("kill_nats", "nats_away", "stop_nats"), _STREAMS),
    **dict.fromkeys(("kill_worker", "kill_launcher", "stop_worker"), frozenset({"trade"})),
}

SLOW = frozenset({
    "silence", "half_open", "binance_wrong_route", "okx_error_60011", "okx_error_60012", "okx_no_pong",
    "deribit_ack_subset", "deribit_error_13778", "deribit_heartbeat_close",
})  # fmt: skip
"""Faults that a collector can only notice by waiting, for half a minute or more."""
# A worker killed for the fourth time waits 30 s for its start (marketprism/control/restarts.py).
_KILLS_MAX = 3
_STILL_S = (1.0, 8.0)
_AWAY_S = (1.0, 60.0)
_AWAY_SHARE = 0.25  # of the whole time, at most
_PROCESS_EVERY = 3  # so many times rarer than faults of an exchange


def kinds_at(rate: float) -> dict[str, FaultKind]:
    """KINDS, with what more may be told at several times the usual rate (messages per second and exchange).

    There the buffer for NATS lasts for some ten seconds only, and REST may take longer for a hole than trades are held
    back for it.
    """
    more = _MORE_WHEN_FAST if rate >= _FAST else {}
    return {
        name: replace(kind, gap_expected=kind.gap_expected | more.get(name, _NOTHING))
        for name, kind in KINDS.items()
    }


class ScheduleError(Exception):
    """A schedule cannot be played; the text is one line for a person."""


@dataclass(frozen=True, slots=True)
class ProcessFault:
    """A fault of PROCESS_FAULTS. `worker`: a worker, "nats", "launcher", "hot" or "cold".

    `seconds`: how long a lasting one lasts. Raises ScheduleError for a name or worker that cannot be.
    """

    name: str
    worker: str
    at_s: float = 0.0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        kind = PROCESS_FAULTS.get(self.name)
        if kind is None:
            raise ScheduleError(f"expected one of {', '.join(KINDS)}, got {self.name!r}")
        if self.worker not in kind.workers:
            expected = ", ".join(sorted(kind.workers))
            raise ScheduleError(f"{self.name}: expected one of {expected}, got {self.worker!r}")


AnyFault: TypeAlias = Fault | ProcessFault


def random_faults(seed: int, seconds: float, workers: Sequence[str], every_s: float) -> list[AnyFault]:
    """Faults of exchanges about every `every_s`, of our processes a third as often. The same for the same seed."""
    faults: list[AnyFault] = list(random_schedule(seed, seconds, workers, every_s))
    names = [name for name in PROCESS_FAULTS if name not in STORE_FAULTS]
    faults += _process_faults(Random(f"chaos/{seed}"), seconds, workers, every_s * _PROCESS_EVERY, names)
    return sorted(faults, key=lambda fault: fault.at_s)


def random_process_faults(
    seed: int, seconds: float, workers: Sequence[str], every_s: float
) -> list[AnyFault]:
    """Faults of our processes, the stores among them, about every `every_s`. The same for the same seed."""
    return list(_process_faults(Random(f"chaos/{seed}"), seconds, workers, every_s, list(PROCESS_FAULTS)))


def _process_faults(
    rng: Random, seconds: float, workers: Sequence[str], every_s: float, names: Sequence[str]
) -> list[ProcessFault]:
    faults: list[ProcessFault] = []
    at_s = rng.uniform(0.2, 1.0) * every_s
    while at_s < seconds:
        fault = _process_fault(rng, seconds, workers, round(at_s, 1), names)
        if not any(_collide(fault, other) for other in faults) and _kills(faults, fault) < _KILLS_MAX:
            faults.append(fault)
        at_s += rng.uniform(0.5, 1.5) * every_s
    return faults


def _process_fault(
    rng: Random, seconds: float, workers: Sequence[str], at_s: float, names: Sequence[str]
) -> ProcessFault:
    name = rng.choice(names)
    (target, *others) = sorted(PROCESS_FAULTS[name].workers)
    if others:
        target = rng.choice(list(workers))
    low, high = _AWAY_S if name in ("nats_away", "hot_away") else _STILL_S
    lasts_s = round(rng.uniform(low, max(low, min(high, seconds * _AWAY_SHARE))), 1)
    return ProcessFault(name, target, at_s, lasts_s if PROCESS_FAULTS[name].lasting else 0.0)


def _collide(fault: ProcessFault, earlier: ProcessFault) -> bool:
    """Whether both would handle one process at the same time."""
    same = fault.worker == earlier.worker or (fault.worker == LAUNCHER and earlier.name == "stop_worker")
    return same and fault.at_s < earlier.at_s + earlier.seconds + 1.0


def _kills(faults: Iterable[ProcessFault], new: ProcessFault) -> int:
    return sum(one.name == new.name == "kill_worker" and one.worker == new.worker for one in faults)


def read(path: Path) -> list[AnyFault]:
    """The schedule in a file, as `write` makes it. Raises ScheduleError."""
    try:
        entries = json.loads(path.read_text())
    except OSError as error:
        raise ScheduleError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ScheduleError(f"{path}: expected a JSON list of faults: {error}") from None
    if not isinstance(entries, list):
        raise ScheduleError(f"{path}: expected a JSON list of faults, got {type(entries).__name__}")
    faults = [_fault(f"{path}: fault {n}", entry) for n, entry in enumerate(entries, 1)]
    return sorted(faults, key=lambda fault: fault.at_s)


def _fault(where: str, entry: Any) -> AnyFault:
    try:
        return Fault(**entry) if entry["name"] in CATALOG else ProcessFault(**entry)
    except KeyError:
        raise ScheduleError(f"{where}: expected a name, a worker and at_s, got {entry}") from None
    except (TypeError, SimulatorError, ScheduleError) as error:
        raise ScheduleError(f"{where}: {error}") from None


def write(path: Path, faults: Iterable[AnyFault]) -> None:
    """Write a schedule, one fault a line."""
    path.write_text("[\n" + ",\n".join(f"  {json.dumps(asdict(fault))}" for fault in faults) + "\n]\n")


def begin_at(faults: Sequence[AnyFault], first_s: float) -> list[AnyFault]:
    """The same, all of it so much earlier that the first one comes at `first_s`, if it comes later."""
    spare_s = max(0.0, min((fault.at_s for fault in faults), default=0.0) - first_s)
    return [replace(fault, at_s=round(fault.at_s - spare_s, 1)) for fault in faults]


def ends_s(faults: Iterable[AnyFault]) -> float:
    """When the last fault is over."""
    return max((fault.at_s + fault.seconds for fault in faults), default=0.0)


def line(fault: AnyFault) -> str:
    """A fault for a person."""
    words = [fault.name, fault.worker]
    if isinstance(fault, Fault):
        words += [fault.instrument] if fault.instrument else []
        words += [f"{fault.count} times"] if fault.count > 1 else []
    if fault.seconds and KINDS[fault.name].lasting:
        words.append(f"for {fault.seconds:g} s")
    return " ".join(words)
