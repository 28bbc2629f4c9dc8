"""The exchanges on loopback: Binance spot and USD-M, OKX spot and SWAP, Deribit, with faults on demand.

Written from the exchanges' protocol documentation alone; shares nothing with the collector, so that it can
witness against it. `Simulator.truth` says what should have arrived.
"""

from marketprism.simulator.board import Injected
from marketprism.simulator.configure import write_config
from marketprism.simulator.faults import (
    CATALOG,
    Fault,
    FaultKind,
    parse_schedule,
    random_schedule,
    schedule_text,
)
from marketprism.simulator.options import DEFAULT_SYMBOLS, WORKERS, SimulatorError, SimulatorOptions
from marketprism.simulator.server import Simulator, run
from marketprism.simulator.truth import LiquidationRecord, TradeRecord, Truth

__all__ = [
    "CATALOG",
    "DEFAULT_SYMBOLS",
    "WORKERS",
    "Fault",
    "FaultKind",
    "Injected",
    "LiquidationRecord",
    "Simulator",
    "SimulatorError",
    "SimulatorOptions",
    "TradeRecord",
    "Truth",
    "parse_schedule",
    "random_schedule",
    "run",
    "schedule_text",
    "write_config",
]
