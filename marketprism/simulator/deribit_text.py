"""How Deribit writes numbers: JSON floats, now and then with an exponent."""

from collections.abc import Callable
from decimal import Decimal

from marketprism.simulator.instruments import Instrument


def amount_text(instrument: Instrument, key: int, lots: int) -> str:
    """A level's amount; some round ones as 2.2e3. The same level is always written the same way."""
    if not lots:
        return "0.0"
    text = instrument.lots.number(lots)
    whole = text.removesuffix(".0")
    if whole.isdigit() and len(whole) > 3 and whole.endswith("00") and (key * 31 + lots) % 5 == 0:
        return _exponent(whole)
    return text


def exponents_of(instrument: Instrument) -> tuple[Callable[[int], str], Callable[[int, int], str]]:
    """How prices (by tick) and amounts (by key and lots) are written with exponents: 8.42005e+04, 1e-05."""

    def price(tick: int) -> str:
        return _scientific(instrument.ticks.number(tick))

    def amount(key: int, lots: int) -> str:
        return _scientific(instrument.lots.number(lots)) if lots else "0.0"

    return price, amount


def _scientific(text: str) -> str:
    mantissa, exponent = f"{Decimal(text).normalize():e}".split("e")
    return f"{mantissa}e{exponent[0]}{exponent[1:]:0>2}"


def number_text(value: float) -> str:
    """A figure; small ones as 1.423e-4."""
    if value and abs(value) < 1e-3:
        mantissa, exponent = f"{value:.6e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return repr(round(value, 4))


def _exponent(digits: str) -> str:
    mantissa = f"{digits[0]}.{digits[1:]}".rstrip("0")
    return f"{mantissa}{'0' if mantissa.endswith('.') else ''}e{len(digits) - 1}"
