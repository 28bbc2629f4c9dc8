"""`scripts/bench scale`: one worker, and whether its cost follows the messages or what it keeps.

All rows of one rate and exchange get the same mix of messages: at `LOW` messages/s half of them are books even with
the fewest symbols (a simulated symbol sends at most ten books a second), at `HIGH` from 100 symbols on. Symbols are
those of OKX, which sends whole books unasked: Binance's limit of requests would make 500 of them wait for minutes.
"""

from dataclasses import dataclass

from benchmarks.live import FIVE, Run, run_once
from benchmarks.load import Load
from benchmarks.machine import Machine

LOW, HIGH = 200.0, 1000.0
LOADS = (
    *(Load(LOW, exchange="okx_spot", symbols=symbols) for symbols in (10, 100, 500)),
    *(Load(HIGH, exchange="okx_spot", symbols=symbols) for symbols in (100, 500)),
    *(Load(LOW, exchange="binance_spot", symbols=10, levels=levels) for levels in (100, 1000, 5000)),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One shape of the load."""

    load: Load
    run: Run


@dataclass(frozen=True, slots=True)
class ScaleResult:
    """All that `scale` found."""

    machine: Machine
    rows: list[Row]


def scale(seconds: float, loads: tuple[Load, ...] = LOADS) -> ScaleResult:
    """Measure each load for `seconds`. Raises QuickstartError, StopRequestedError."""
    machine = Machine.here()
    return ScaleResult(machine, [Row(load, run_once(load, seconds, FIVE)) for load in loads])
