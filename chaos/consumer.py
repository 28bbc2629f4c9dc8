"""A consumer of `orderbook_delta` that knows nothing but the published payloads: the judge of books in tests.

Deliberately naive, and written from the documentation of the payload, not from the collector's book.
"""

import zlib
from decimal import Decimal
from typing import Any


class ConsumerBook:
    """A book rebuilt from published deltas."""

    def __init__(self) -> None:
        self.bids: dict[Decimal, tuple[str, str]] = {}
        self.asks: dict[Decimal, tuple[str, str]] = {}
        self.last_id: int | None = None
        self.ts_ms: int | None = None
        self.exact_from: Decimal | None = None
        self.exact_to: Decimal | None = None
        self.begun = False
        self.broken = False  # a delta did not follow: the chain has a hole that nobody told

    def gap(self, last_id_before: str | None = None) -> None:
        """A gap was told: wait for the next snapshot, unless the book has been carried on beyond where it begins."""
        if last_id_before is None or self.last_id is None or int(last_id_before) >= self.last_id:
            self.begun = False

    def take(self, data: dict[str, Any]) -> bool:
        """Apply a payload; False where it is to be passed over."""
        if self.begun and self._known(data):
            return False  # of a second collector
        if data["update_type"] == "snapshot":
            self.bids, self.asks = {}, {}
            self.begun = True
            self.exact_from = None if data["exact_from"] is None else Decimal(data["exact_from"])
            self.exact_to = None if data["exact_to"] is None else Decimal(data["exact_to"])
        elif not self.begun:
            return False
        elif not self._follows(data):
            self.broken = True
        for side, levels in ((self.bids, data["bids"]), (self.asks, data["asks"])):
            for price, quantity in levels:
                if Decimal(quantity) == 0:
                    side.pop(Decimal(price), None)
                else:
                    side[Decimal(price)] = price, quantity
        self.last_id, self.ts_ms = data["last_update_id"], data["ts_ms"]
        return True

    def _known(self, data: dict[str, Any]) -> bool:
        """Whether the book tells this already: a delta it holds, a snapshot older than it."""
        last = data["last_update_id"]
        if last is None or self.last_id is None or data["prev_update_id"] == self.last_id:
            return False
        newest = last + (data["update_type"] == "snapshot")
        if data["exchange"] == "okx":  # its ids may begin anew from a smaller one
            later_ms = data["ts_ms"] - (self.ts_ms or 0)
            return bool(later_ms < -10_000 or (newest <= self.last_id and later_ms < 10_000))
        return bool(newest <= self.last_id)

    def _follows(self, data: dict[str, Any]) -> bool:
        first, prev, last = data["first_update_id"], data["prev_update_id"], data["last_update_id"]
        if last is None:
            return self.last_id is None
        if prev is not None and prev == self.last_id:
            return True
        assert self.last_id is not None
        if first is not None:
            return bool(first <= self.last_id + 1 <= last)
        return bool(prev is not None and prev <= self.last_id < last)

    def knows(self, price: Decimal) -> bool:
        """Whether the book claims to be complete at this price."""
        above = self.exact_from is None or price >= self.exact_from
        return above and (self.exact_to is None or price <= self.exact_to)

    def best(self) -> tuple[tuple[str, str] | None, tuple[str, str] | None]:
        """Best bid and best ask as published."""
        return (
            self.bids[max(self.bids)] if self.bids else None,
            self.asks[min(self.asks)] if self.asks else None,
        )

    @property
    def crossed(self) -> bool:
        """Best bid at or above best ask."""
        return bool(self.bids and self.asks and max(self.bids) >= min(self.asks))

    def crc32(self) -> int:
        """OKX's checksum, by its documentation."""
        bids = [self.bids[p] for p in sorted(self.bids, reverse=True)[:25]]
        asks = [self.asks[p] for p in sorted(self.asks)[:25]]
        parts = []
        for n in range(25):
            parts += [":".join(side[n]) for side in (bids, asks) if n < len(side)]
        return int.from_bytes(zlib.crc32(":".join(parts).encode()).to_bytes(4, "big"), "big", signed=True)
