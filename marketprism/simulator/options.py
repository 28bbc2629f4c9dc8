"""What a person may set on the exchange simulator, checked once."""

import difflib
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

WORKERS = ("binance_spot", "binance_derivatives", "okx_spot", "okx_derivatives", "deribit_derivatives")

DEFAULT_SYMBOLS: dict[str, tuple[str, ...]] = {
    "binance_spot": ("BTCUSDT", "ETHUSDT"),
    "binance_derivatives": ("BTCUSDT", "ETHUSDT"),
    "okx_spot": ("BTC-USDT", "ETH-USDT"),
    "okx_derivatives": ("BTC-USDT-SWAP", "ETH-USDT-SWAP"),
    "deribit_derivatives": ("BTC-PERPETUAL", "ETH-PERPETUAL"),
}

STEP_S = 0.01
"""The simulator's heartbeat in seconds: markets move and frames leave once a step."""

STEPS_PER_WINDOW = 10
"""Steps of one 100 ms book window."""

Checksum = Literal["zero", "absent", "real"]


class SimulatorError(Exception):
    """The simulator cannot do what was asked; the text says what to change."""


def unknown(what: str, word: object, known: Iterable[str]) -> SimulatorError:
    """The error for a word that is none of the known ones, with the nearest right spelling if one is near."""
    near = difflib.get_close_matches(str(word), list(known), 1)
    hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
    return SimulatorError(f"unknown {what} {word!r}: {hint}")


@dataclass(frozen=True, slots=True)
class SimulatorOptions:
    """Settings of one simulator run.

    rate: websocket data messages per second and worker that a subscriber of books (100 ms) and trades gets;
        0 stands the markets still. symbols: the exchange's own instrument ids per worker name; a worker left
        out keeps its defaults. ports: port per worker; without it base_port + 0..4 in the order of WORKERS;
        base_port 0 takes free ports. okx_snapshot: False leaves out the in-band `books` snapshot.
        checksum: what OKX `books` frames carry. keep_s: how many seconds the truth remembers.
        clock_skew_ms: added to every exchange timestamp. rest_latency_ms: mean delay of a REST answer.
        control_port: where faults can be ordered, always on 127.0.0.1; 0 takes a free one, None serves nothing.
        control_token: the bearer token an order must show.

    Raises SimulatorError for a value that cannot be.
    """

    seed: int = 1
    rate: float = 120.0
    symbols: dict[str, list[str]] | None = None
    host: str = "127.0.0.1"
    ports: dict[str, int] = field(default_factory=dict)
    base_port: int = 0
    okx_snapshot: bool = True
    checksum: Checksum = "zero"
    keep_s: float = 3600.0
    clock_skew_ms: int = 0
    rest_latency_ms: float = 15.0
    control_port: int | None = None
    control_token: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        for name in (*(self.symbols or {}), *self.ports):
            if name not in WORKERS:
                raise unknown("worker", name, WORKERS)
        for name, low in (("rate", 0), ("keep_s", 1), ("rest_latency_ms", 0), ("base_port", 0)):
            value = getattr(self, name)
            if not value >= low:
                raise SimulatorError(f"{name}: expected a number of at least {low}, got {value!r}")
        if self.checksum not in ("zero", "absent", "real"):
            raise SimulatorError(f"checksum: expected zero, absent or real, got {self.checksum!r}")
        if self.control_port is not None and not 0 <= self.control_port <= 65_535:
            raise SimulatorError(f"control_port: expected a port of 0 to 65535, got {self.control_port!r}")
        if self.control_port is not None and not self.control_token:
            raise SimulatorError(
                "control_token: expected a text, got none; whoever orders faults must show it"
            )

    def symbols_of(self, worker: str) -> tuple[str, ...]:
        """Instrument ids the worker's exchange lists, without repeats."""
        chosen = (self.symbols or {}).get(worker)
        return DEFAULT_SYMBOLS[worker] if chosen is None else tuple(dict.fromkeys(chosen))

    def port_of(self, worker: str) -> int:
        """The port asked for this worker; 0 means any free one."""
        if worker in self.ports:
            return self.ports[worker]
        return self.base_port + WORKERS.index(worker) if self.base_port else 0

    @property
    def loopback(self) -> bool:
        """True when only this machine can reach the simulator."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
