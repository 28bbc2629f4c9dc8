"""One order book: apply, top, crossed, checksum. Knows no exchange.

Levels come in as the JSON that the exchange sent and go out as JSON text; in between nobody needs them as objects.
`Book` and `normalise` are those of `_book.c` where it is built, else `PureBook` and `pure_normalise`, which give the
same results and the same errors in ten times the time. `NATIVE` says which.

What is read: a JSON array of levels. A level is an array of "new", "change" or "delete" (Deribit only), a price, a
quantity, and whatever else, which is skipped (OKX sends four figures). After "delete" the quantity counts as 0.
A figure is a JSON number, or a decimal number in a string: digits, perhaps with a point, a minus before or an exponent
after them; no plus, no space, no "nan" or "inf". It has at most 128 characters; where it has an exponent, its first
digit is at most 40 places from the point. Arrays and objects are at most 32 deep.

What goes out: `[["price","quantity"],...]`, each figure as sent, but without an exponent: 1e-05 becomes 0.00001 and
2.2e3 becomes 2200.0.
"""

import os
import re
from bisect import bisect_left, bisect_right, insort
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from typing import TypeAlias, final
from zlib import crc32

import msgspec

Buffer: TypeAlias = bytes | bytearray | memoryview | msgspec.Raw

_FIGURE_MAX = 128
_ADJUSTED_MAX = 40
_DEPTH_MAX = 32
_EXCERPT_MAX = 40
_FIGURE = re.compile(rb"-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_ACTIONS = b'"new"', b'"change"', b'"delete"'
_COMMON = b'[]",.0123456789'  # Binance and OKX write nothing else


class _Level(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A level as it goes out."""

    price: str
    quantity: str


_Change: TypeAlias = tuple[float, float, _Level]  # price, quantity

_decode_common = msgspec.json.Decoder(list[_Level]).decode
_decode_any = msgspec.json.Decoder(list[list[msgspec.Raw]]).decode
_decode_rows = msgspec.json.Decoder(list[msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


# -- levels ----------------------------------------------------------------------------------------------------


def pure_normalise(levels: Buffer, /) -> bytes:
    """A JSON array of levels as it goes out, without a book. Raises ValueError on one that is none."""
    return _text(_read(levels))


def _text(changes: list[_Change]) -> bytes:
    return _encode([level for _, _, level in changes])


def _read(levels: Buffer) -> list[_Change]:
    text = bytes(memoryview(levels))
    if not text.translate(None, _COMMON):
        with suppress(ValueError):
            rows = _decode_common(text)
            # Thorough is the other way: for figures of absurd length, and for arrays within levels.
            longest = max([len(x.price) + len(x.quantity) for x in rows], default=0)
            if longest <= _FIGURE_MAX and text.count(b"[") == len(rows) + 1:
                return [(float(x.price), float(x.quantity), x) for x in rows]
    return _read_any(text)


def _read_any(text: bytes) -> list[_Change]:
    """Any levels there may be, or the reason why they are none."""
    try:
        rows = [[bytes(token) for token in row] for row in _decode_any(text)]
    except (ValueError, RecursionError):
        rows = None
    if rows is None or _depth(text) > _DEPTH_MAX:
        raise _error("levels are not a JSON array of arrays", text)
    return [_change(row) or _refuse(text, n) for n, row in enumerate(rows)]


def _depth(text: bytes) -> int:
    depth = deepest = 0
    for bracket in re.findall(rb"[][{}]", _STRING.sub(b"", text)):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(depth, deepest)
    return deepest


def _refuse(text: bytes, n: int) -> _Change:
    raise _error("level has no price and quantity", bytes(_decode_rows(text)[n]))


def _change(row: list[bytes]) -> _Change | None:
    action = row.pop(0) if row and row[0] in _ACTIONS else b""
    if len(row) < 2:
        return None
    price, quantity = _figure("price", row[0]), _figure("quantity", row[1])
    if action == _ACTIONS[2]:
        quantity = "0.0"  # a delete has amount 0 by the documentation; the word counts
    if float(quantity) < 0:
        raise _error("quantity is below 0", row[1].strip(b'"'))
    return float(price), float(quantity), _Level(price, quantity)


def _figure(name: str, token: bytes) -> str:
    """A figure as it goes out."""
    literal = token[1:-1] if token.startswith(b'"') else token
    match = _FIGURE.fullmatch(literal)
    if not match:
        raise _error(f"{name} is not a decimal number", literal)
    text = literal.decode()
    if len(text) > _FIGURE_MAX:
        raise _error(f"{name} is out of range", literal)
    return _written_out(name, text) if match[1] else text


def _written_out(name: str, literal: str) -> str:
    """A figure with an exponent as the same number would be sent without."""
    try:
        number = Decimal(literal)
    except InvalidOperation:  # an exponent of twenty digits
        raise _error(f"{name} is out of range", literal.encode()) from None
    if abs(number.adjusted()) > _ADJUSTED_MAX:
        raise _error(f"{name} is out of range", literal.encode())
    text = f"{number:f}"
    _, _, exponent = number.as_tuple()
    return text + ".0" if isinstance(exponent, int) and exponent > 0 else text


def _error(what: str, about: bytes) -> ValueError:
    return ValueError(f"{what}: {about[:_EXCERPT_MAX].decode(errors='replace')!r}")


# -- the book --------------------------------------------------------------------------------------------------


class _Side:
    """One side: a sorted list of prices beside a table from price to the level as it goes out.

    Always sorted, best price in O(1), the top n in O(n). Prices are floats only as keys, to order and to find a
    level whatever way its price is written. Doubles tell decimal prices of up to 15 digits apart, more than any
    exchange lists.
    """

    __slots__ = ("levels", "prices")

    def __init__(self) -> None:
        self.prices: list[float] = []  # ascending, for bids and asks alike
        self.levels: dict[float, _Level] = {}

    def apply(self, changes: list[_Change]) -> None:
        """Set each level, or remove it where its quantity is 0."""
        levels = self.levels
        prices = self.prices
        for price, quantity, level in changes:
            if quantity == 0.0:
                # An unknown level is normal: a truncated snapshot does not hold every level that is deleted later.
                if levels.pop(price, None) is not None:
                    del prices[bisect_left(prices, price)]
                continue
            if price not in levels:
                insort(prices, price)
            levels[price] = level

    def load(self, changes: list[_Change]) -> None:
        """Replace all levels."""
        self.levels = {}
        self.prices = []
        self.apply(changes)


@final
class PureBook:
    """Bids and asks of one instrument, and the price range in which they are complete."""

    __slots__ = ("_asks", "_bids", "_exact_from", "_exact_to")

    def __init__(self) -> None:
        self._bids = _Side()
        self._asks = _Side()
        self._exact_from: str | None = None
        self._exact_to: str | None = None

    @property
    def exact_from(self) -> str | None:
        """Where a snapshot that was cut ends: of what lies below this bid nothing is known. None: all is known."""
        return self._exact_from

    @property
    def exact_to(self) -> str | None:
        """Where a snapshot that was cut ends: of what lies above this ask nothing is known. None: all is known."""
        return self._exact_to

    def load(self, bids: Buffer, asks: Buffer, /, *, cut_bids: bool = False, cut_asks: bool = False) -> None:
        """Replace the book. `cut_bids`, `cut_asks`: the snapshot holds only the best of that side.

        Raises ValueError on levels that are none; what the book holds is then undefined until the next `load`.
        """
        self._exact_from = self._exact_to = None
        self._bids.load(_read(bids))
        self._asks.load(_read(asks))
        if cut_bids and self._bids.prices:
            self._exact_from = self._bids.levels[self._bids.prices[0]].price
        if cut_asks and self._asks.prices:
            self._exact_to = self._asks.levels[self._asks.prices[-1]].price

    def apply(self, bids: Buffer, asks: Buffer, /) -> tuple[bytes, bytes]:
        """Apply one whole message. Returns its levels as they go out, in the order they came in.

        Raises ValueError on levels that are none; what the book holds is then undefined until the next `load`.
        """
        new_bids = _read(bids)
        self._bids.apply(new_bids)
        new_asks = _read(asks)
        self._asks.apply(new_asks)
        return _text(new_bids), _text(new_asks)

    @property
    def crossed(self) -> bool:
        """Best bid at or above best ask: after a whole message always a defect."""
        bids, asks = self._bids.prices, self._asks.prices
        return bool(bids and asks and bids[-1] >= asks[0])

    def sizes(self) -> tuple[int, int]:
        """How many bids and asks are held."""
        return len(self._bids.prices), len(self._asks.prices)

    def known_levels(self) -> tuple[int, int]:
        """How many bids and asks lie where the book is complete."""
        bids, asks = self._bids.prices, self._asks.prices
        hidden_bids = 0 if self._exact_from is None else bisect_left(bids, float(self._exact_from))
        known_asks = len(asks) if self._exact_to is None else bisect_right(asks, float(self._exact_to))
        return len(bids) - hidden_bids, known_asks

    def top(self, depth: int, /) -> tuple[bytes, bytes, int, int]:
        """Up to `depth` bids and asks, best first, none of them beyond what is known to be complete; and how many."""
        n_bids, n_asks = (max(0, min(depth, known)) for known in self.known_levels())
        bids, asks = self._best(n_bids, n_asks)
        return _encode(bids), _encode(asks), n_bids, n_asks

    def all(self) -> tuple[bytes, bytes]:
        """Every level held, best first."""
        bids, asks = self._best(*self.sizes())
        return _encode(bids), _encode(asks)

    def best(self) -> tuple[tuple[str, str] | None, tuple[str, str] | None]:
        """Price and quantity of the best bid and the best ask."""
        bids, asks = ([(x.price, x.quantity) for x in side] for side in self._best(1, 1))
        return bids[0] if bids else None, asks[0] if asks else None

    def checksum(self) -> int:
        """OKX's CRC32 over the best 25 levels as they go out, bids and asks in turn, as a signed 32-bit integer.

        Source: OKX docs-v5, order book channel; equal on all 8,347 messages of the 2021-22 recordings.
        """
        sides = self._best(25, 25)
        rows = [side[n] for n in range(25) for side in sides if n < len(side)]
        crc = crc32(":".join(f"{x.price}:{x.quantity}" for x in rows).encode())
        return crc - (1 << 32) if crc >= 1 << 31 else crc

    def _best(self, n_bids: int, n_asks: int) -> tuple[list[_Level], list[_Level]]:
        bids, asks = self._bids, self._asks
        best_bids = bids.prices[: -n_bids - 1 : -1] if n_bids else []  # prices[-0:] would be all of them
        return [bids.levels[p] for p in best_bids], [asks.levels[p] for p in asks.prices[:n_asks]]


NATIVE = False
Book, normalise = PureBook, pure_normalise
if not os.environ.get("MARKETPRISM_PURE_PYTHON"):
    with suppress(ImportError):  # not built: no compiler here (scripts/setup says so)
        from marketprism._book import Book, normalise  # type: ignore[assignment]  # noqa: F401 - exported

        NATIVE = True
