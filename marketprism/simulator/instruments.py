"""The instruments the simulated exchanges list: tick and lot grids, contract terms, and how numbers are written."""

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from marketprism.simulator.options import SimulatorError

Kind = Literal["spot", "linear", "inverse"]

_ASSET_USD: dict[str, float] = {
    "BTC": 84_200.0, "ETH": 2_760.0, "BNB": 712.0, "SOL": 148.0, "XRP": 2.21, "DOGE": 0.163, "ADA": 0.58,
    "AVAX": 21.4, "LINK": 15.2, "LTC": 92.0, "DOT": 4.1, "BCH": 431.0, "TRX": 0.29, "TON": 3.05,
}  # fmt: skip
_DOLLARS = ("USDT", "USDC", "FDUSD", "TUSD", "BUSD", "USD", "EUR")
_CACHED_TEXTS = 100_000


@dataclass(frozen=True, slots=True)
class Grid:
    """Multiples of `unit` x 10^-decimals, e.g. 0.05 is unit 5, decimals 2; `shown` pads with zeros."""

    unit: int
    decimals: int
    shown: int

    @classmethod
    def of(cls, size: str, shown: int = 0) -> "Grid":
        """The grid of a decimal step such as "0.05"; shown is the least number of decimals written."""
        step = Decimal(size)
        decimals = max(0, -int(step.as_tuple().exponent))
        return cls(int(step.scaleb(decimals)), decimals, max(shown, decimals))

    @property
    def size(self) -> float:
        """The step as a float."""
        return float(self.unit / 10**self.decimals)

    @property
    def text(self) -> str:
        """The step as plain text, e.g. "0.05"."""
        return self.trimmed(1)

    def fixed(self, count: int) -> str:
        """`count` steps with all shown decimals, e.g. "84200.10000000"."""
        value = count * self.unit
        digits = self.decimals
        if not self.shown:
            return str(value)
        if digits:
            text = str(value).rjust(digits + 1, "0")
            return f"{text[:-digits]}.{text[-digits:]}{'0' * (self.shown - digits)}"
        return f"{value}.{'0' * self.shown}"

    def trimmed(self, count: int) -> str:
        """`count` steps without trailing zeros, e.g. "84200.1"."""
        value = count * self.unit
        digits = self.decimals
        if not digits:
            return str(value)
        text = str(value).rjust(digits + 1, "0")
        return f"{text[:-digits]}.{text[-digits:]}".rstrip("0").rstrip(".")

    def number(self, count: int) -> str:
        """`count` steps as a JSON float, e.g. "84200.0" (Deribit writes every price and amount so)."""
        text = self.trimmed(count)
        return text if "." in text else text + ".0"


class Instrument:
    """One listed instrument. Prices are counted in ticks, quantities in lots; both are integers."""

    __slots__ = (
        "_prices", "_write_price", "base", "contract_value", "id", "kind", "levels", "lots",
        "quote", "start_price", "ticks", "worker",
    )  # fmt: skip

    def __init__(self, worker: str, name: str, base: str, quote: str, kind: Kind, terms: "_Terms") -> None:
        self.worker = worker
        self.id = name
        self.base = base
        self.quote = quote
        self.kind: Kind = kind
        self.start_price = asset_usd(base) / asset_usd(quote)
        self.ticks = terms.ticks
        self.lots = terms.lots
        self.contract_value = terms.contract_value
        self.levels = terms.levels
        self._prices: dict[int, str] = {}
        style = worker.split("_", maxsplit=1)[0]
        writers = {"binance": self.ticks.fixed, "okx": self.ticks.trimmed, "deribit": self.ticks.number}
        self._write_price: Callable[[int], str] = writers[style]

    def price_text(self, tick: int) -> str:
        """The price of a tick as this exchange writes it; remembered, since prices come back all the time."""
        text = self._prices.get(tick)
        if text is None:
            if len(self._prices) > _CACHED_TEXTS:
                self._prices.clear()
            text = self._prices[tick] = self._write_price(tick)
        return text

    def quantity_text(self, lots: int) -> str:
        """A quantity as this exchange writes it (Deribit: never with an exponent; the wire sometimes has one)."""
        if self.worker.startswith("binance"):
            return self.lots.fixed(lots)
        return self.lots.trimmed(lots) if self.worker.startswith("okx") else self.lots.number(lots)

    def lot_usd(self) -> float:
        """What one lot is worth, in USD, at the starting price."""
        if self.kind == "inverse":
            return self.lots.size * float(self.contract_value)
        return self.lots.size * float(self.contract_value) * self.start_price * asset_usd(self.quote)


@dataclass(frozen=True, slots=True)
class _Terms:
    ticks: Grid
    lots: Grid
    contract_value: str = "1"
    levels: int = 1200


# Instruments whose grids are known; taken from the exchanges' own instrument lists.
_KNOWN: dict[tuple[str, str], _Terms] = {
    ("binance_spot", "BTCUSDT"): _Terms(Grid.of("0.01", 8), Grid.of("0.00001", 8)),
    ("binance_spot", "ETHUSDT"): _Terms(Grid.of("0.01", 8), Grid.of("0.0001", 8)),
    ("binance_derivatives", "BTCUSDT"): _Terms(Grid.of("0.1", 2), Grid.of("0.001")),
    ("binance_derivatives", "ETHUSDT"): _Terms(Grid.of("0.01"), Grid.of("0.001")),
    ("okx_spot", "BTC-USDT"): _Terms(Grid.of("0.1"), Grid.of("0.00000001"), levels=560),
    ("okx_spot", "ETH-USDT"): _Terms(Grid.of("0.01"), Grid.of("0.000001"), levels=560),
    ("okx_derivatives", "BTC-USDT-SWAP"): _Terms(Grid.of("0.1"), Grid.of("0.01"), "0.01", 560),
    ("okx_derivatives", "ETH-USDT-SWAP"): _Terms(Grid.of("0.01"), Grid.of("0.01"), "0.1", 560),
    ("okx_derivatives", "BTC-USD-SWAP"): _Terms(Grid.of("0.1"), Grid.of("1"), "100", 560),
    ("deribit_derivatives", "BTC-PERPETUAL"): _Terms(Grid.of("0.5"), Grid.of("10"), levels=260),
    ("deribit_derivatives", "ETH-PERPETUAL"): _Terms(Grid.of("0.05"), Grid.of("1"), levels=260),
    ("deribit_derivatives", "BTC_USDC-PERPETUAL"): _Terms(Grid.of("0.1"), Grid.of("0.0001"), levels=260),
}

_PATTERNS: dict[str, tuple[str, str]] = {
    "binance_spot": (rf"(?P<base>\w+?)(?P<quote>{'|'.join(_DOLLARS)}|BTC|ETH|BNB)", "BTCUSDT"),
    "binance_derivatives": (rf"(?P<base>\w+?)(?P<quote>{'|'.join(_DOLLARS)})", "BTCUSDT"),
    "okx_spot": (r"(?P<base>\w+)-(?P<quote>\w+)", "BTC-USDT"),
    "okx_derivatives": (r"(?P<base>\w+)-(?P<quote>USDT|USDC|USD)-SWAP", "BTC-USDT-SWAP"),
    "deribit_derivatives": (r"(?P<base>[A-Z0-9]+?)(_(?P<quote>USDC))?-PERPETUAL", "BTC-PERPETUAL"),
}


def asset_usd(asset: str) -> float:
    """A plausible starting price of an asset in USD; unknown assets get a stable one from their name."""
    if asset in _DOLLARS:
        return 1.0
    if asset in _ASSET_USD:
        return _ASSET_USD[asset]
    spread = int.from_bytes(hashlib.sha256(asset.encode()).digest()[:4], "big") / 2**32
    return float(10 ** (spread * 3 - 1))


def instrument(worker: str, name: str) -> Instrument:
    """The instrument an exchange lists under this id. Raises SimulatorError when the id has not its form."""
    pattern, example = _PATTERNS[worker]
    match = re.fullmatch(pattern, name)
    if match is None:
        raise SimulatorError(
            f"{worker} lists no instrument like {name!r}: expected a form such as {example!r}"
        )
    base, quote = match["base"], match["quote"] or "USD"
    kind: Kind = "spot"
    if worker.endswith("derivatives"):
        kind = "inverse" if quote == "USD" else "linear"
    terms = _KNOWN.get((worker, name)) or _terms(worker, base, quote, kind)
    return Instrument(worker, name, base, quote, kind, terms)


def _terms(worker: str, base: str, quote: str, kind: Kind) -> _Terms:
    magnitude = math.floor(math.log10(asset_usd(base) / asset_usd(quote)))
    tick = _power_of_ten(magnitude - 4)
    lot = _power_of_ten(-math.floor(math.log10(asset_usd(base))))
    shown = 8 if worker == "binance_spot" else 0
    if worker == "okx_derivatives":
        value = "10" if kind == "inverse" else _power_of_ten(1 - magnitude)
        return _Terms(Grid.of(tick), Grid.of("1" if kind == "inverse" else "0.1"), value, 560)
    if kind == "inverse":
        return _Terms(Grid.of(tick), Grid.of("1"), levels=260)
    levels = {"binance": 1200, "okx": 560, "deribit": 260}[worker.split("_", maxsplit=1)[0]]
    return _Terms(Grid.of(tick, shown), Grid.of(lot, shown), levels=levels)


def _power_of_ten(exponent: int) -> str:
    return format(Decimal(1).scaleb(exponent), "f")
