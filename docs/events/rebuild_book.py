"""Rebuild an exact order book from `orderbook_delta` alone, and print its top once a second.

    .venv/bin/python docs/events/rebuild_book.py orderbook_delta.binance.spot.BTC-USDT [nats://127.0.0.1:4222]

Depends on nats-py only. The rules are told in words in docs/events/README.md.
"""

import asyncio
import json
import sys
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import nats
from nats.js.api import ConsumerConfig, DeliverPolicy

CHECKPOINT_S = 300  # orderbook.checkpoint_interval: within it the stream holds a whole book
ANEW_MS = 10_000  # so much later counts for more than a smaller id


class Book:
    """One instrument's book, rebuilt from what was published of it, in the order of the stream."""

    def __init__(self) -> None:
        self.bids: dict[Decimal, str] = {}  # price as a number → quantity as published
        self.asks: dict[Decimal, str] = {}
        self.held: dict[str, Any] = {}  # what was taken in last
        self.window: tuple[str | None, str | None] = None, None  # the prices between which it is complete
        self.exact = False  # False: wait for a snapshot

    def take(self, told: dict[str, Any]) -> bool:
        """Take in a payload. Returns whether the book is exact now."""
        if told["update_type"] == "snapshot":
            if self.exact and self._stale(told):
                return True
            self.bids.clear()
            self.asks.clear()
            self.window = told["exact_from"], told["exact_to"]
            self.exact = True
        elif not self.exact or not self._follows(told):
            self.exact = self.exact and self._stale(told)
            return self.exact
        for side, levels in ((self.bids, told["bids"]), (self.asks, told["asks"])):
            for price, quantity in levels:
                if Decimal(quantity):
                    side[Decimal(price)] = quantity
                else:
                    side.pop(Decimal(price), None)
        self.held = told
        return True

    def _follows(self, delta: dict[str, Any]) -> bool:
        """Whether this delta is the next one."""
        held, last, prev = self.held["last_update_id"], delta["last_update_id"], delta["prev_update_id"]
        if last is None:  # the exchange numbers nothing: the order is all there is
            return True
        if held is None or prev is None:
            return False
        return prev == held or bool(prev <= held < last)  # it may begin earlier: levels are set, not added to

    def _stale(self, told: dict[str, Any]) -> bool:
        """Whether it is held already, or older: a second collector tells again what the first one told."""
        held, last = self.held["last_update_id"], told["last_update_id"]
        if held is None or last is None:
            return False
        older = bool(last < held or (last == held and told["update_type"] == "delta"))
        if told["exchange"] != "okx":
            return older
        later_ms = told["ts_ms"] - self.held["ts_ms"]  # OKX's ids may begin anew from a smaller one
        return bool(later_ms < -ANEW_MS or (older and later_ms < ANEW_MS))

    def top(self, depth: int) -> tuple[list[Decimal], list[Decimal]]:
        """The best prices of both sides, none beyond what is known to be complete."""
        low, high = (Decimal(price) if price else None for price in self.window)
        bids = [p for p in sorted(self.bids, reverse=True)[:depth] if low is None or p >= low]
        asks = [p for p in sorted(self.asks)[:depth] if high is None or p <= high]
        return bids, asks


async def main(subject: str, server: str) -> None:
    """Follow one book until Ctrl-C."""
    client = await nats.connect(server)
    since = datetime.now(UTC) - timedelta(seconds=CHECKPOINT_S + 5)
    start = ConsumerConfig(deliver_policy=DeliverPolicy.BY_START_TIME, opt_start_time=since)
    messages = await client.jetstream().subscribe(
        subject, stream="MARKET_DATA", ordered_consumer=True, config=start
    )
    book, shown_s = Book(), 0.0
    async for message in messages.messages:
        exact = book.take(json.loads(message.data))
        if exact and time.monotonic() - shown_s >= 1:
            shown_s = time.monotonic()
            bid, ask = (next(iter(side), None) for side in book.top(1))
            print(
                f"bid {bid}   ask {ask}   {len(book.bids)} + {len(book.asks)} levels   id {book.held['last_update_id']}"
            )


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "nats://127.0.0.1:4222"))
