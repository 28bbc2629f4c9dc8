"""A made-up exchange that knows its own book at every update id, in each exchange's way of telling it.

A message sums up one to three changes, each with an id of its own, so that a REST book may lie between two messages.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

SYMBOLS = {
    "binance_spot": "BTCUSDT",
    "binance_derivatives": "BTCUSDT",
    "okx_derivatives": "BTC-USDT-SWAP",
    "deribit_derivatives": "BTC-PERPETUAL",
}
Side = dict[int, int]
State = tuple[Side, Side]
Pairs = list[list[str]]


@dataclass
class Truth:
    """The book of one instrument, its history, and what the exchange says of it."""

    exchange: str
    rng: Random
    bids: Side = field(default_factory=dict)
    asks: Side = field(default_factory=dict)
    middle: int = 100
    last_id: int = 100_000
    states: dict[int, State] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    message_id: int = 0  # last id of the last message
    epoch: int = 0

    def __post_init__(self) -> None:
        for price in range(80, 120):
            (self.bids if price < self.middle else self.asks)[price] = self.rng.randint(1, 9)
        self._keep()
        self.message_id = self.last_id

    @property
    def symbol(self) -> str:
        return SYMBOLS[self.exchange]

    def step(self, ts_ms: int) -> dict[str, Any]:
        """One message of the stream."""
        previous = self.message_id
        if self.exchange != "binance_spot":
            self.last_id += self.rng.choice((0, 0, 1, 7))  # ids of other instruments in between
        first = self.last_id + 1
        changed: tuple[set[int], set[int]] = (set(), set())
        for _ in range(self.rng.randint(1, 3)):
            self._change(changed)
        self.message_id = self.last_id
        return self._message(previous, first, changed, ts_ms)

    def snapshot(self, ago: int = 0, limit: int | None = None) -> tuple[int, Pairs, Pairs]:
        """(id, bids, asks) as they were `ago` changes ago."""
        last_id = self.order[max(len(self.order) - 1 - ago, 0)]
        bids, asks = self.states[last_id]
        return (
            last_id,
            [[str(p), str(bids[p])] for p in sorted(bids, reverse=True)][:limit],
            [[str(p), str(asks[p])] for p in sorted(asks)][:limit],
        )

    def rest(self, ts_ms: int, ago: int = 0, limit: int | None = None) -> dict[str, Any]:
        """The answer to a request for the book."""
        last_id, bids, asks = self.snapshot(ago, limit)
        if self.exchange == "okx_derivatives":
            row = {"bids": _okx(bids), "asks": _okx(asks), "ts": str(ts_ms), "seqId": last_id}
            return {"code": "0", "msg": "", "data": [row]}
        body: dict[str, Any] = {"lastUpdateId": last_id, "bids": bids, "asks": asks}
        return body if self.exchange == "binance_spot" else {**body, "E": ts_ms, "T": ts_ms}

    def in_band(self, ts_ms: int) -> dict[str, Any]:
        """The whole book over the stream, as of the last message."""
        bids, asks = self.states[self.message_id]
        return self._say(
            "snapshot", None, self.message_id, None, (sorted(bids, reverse=True), sorted(asks)), ts_ms
        )

    def keepalive(self, ts_ms: int) -> dict[str, Any]:
        """OKX: nothing changed for a minute."""
        return self._say("update", self.message_id, self.message_id, None, ([], []), ts_ms)

    def reset(self, ts_ms: int) -> dict[str, Any]:
        """OKX: ids begin anew from a smaller one; the message still hangs on the last."""
        self.epoch += 1
        previous, self.last_id = self.message_id, 100_000 - 10_000 * self.epoch
        changed: tuple[set[int], set[int]] = (set(), set())
        self._change(changed)
        self.message_id = self.last_id
        return self._message(previous, self.last_id, changed, ts_ms)

    # -- inside ------------------------------------------------------------------------------------------------

    def _change(self, changed: tuple[set[int], set[int]]) -> None:
        self.last_id += 1
        self.middle += self.rng.choice((-1, 0, 0, 1))
        for price in [p for p in self.bids if p >= self.middle]:
            del self.bids[price]
            changed[0].add(price)
        for price in [p for p in self.asks if p < self.middle]:
            del self.asks[price]
            changed[1].add(price)
        is_bid = self.rng.random() < 0.5
        distance = self.rng.randint(0, 25)
        price = self.middle - 1 - distance if is_bid else self.middle + distance
        side = self.bids if is_bid else self.asks
        if self.rng.random() < 0.4:
            side.pop(price, None)
        else:
            side[price] = self.rng.randint(1, 9)
        changed[0 if is_bid else 1].add(price)
        self._keep()

    def _keep(self) -> None:
        self.states[self.last_id] = dict(self.bids), dict(self.asks)
        self.order.append(self.last_id)

    def _message(
        self, previous: int, first: int, changed: tuple[set[int], set[int]], ts_ms: int
    ) -> dict[str, Any]:
        return self._say(
            "update", previous, self.last_id, first, (sorted(changed[0]), sorted(changed[1])), ts_ms
        )

    def _say(
        self,
        action: str,
        previous: int | None,
        last: int,
        first: int | None,
        prices: tuple[list[int], list[int]],
        ts_ms: int,
    ) -> dict[str, Any]:
        state = self.states[last]
        bids, asks = (
            [[str(p), str(side.get(p, 0))] for p in ps] for side, ps in zip(state, prices, strict=True)
        )
        return _SAY[self.exchange](self.symbol, action, previous, last, first, bids, asks, ts_ms)


def _okx(pairs: Pairs) -> list[list[str]]:
    return [[p, q, "0", "1"] for p, q in pairs]


def _say_binance(
    s: str, action: str, prev: int | None, last: int, first: int | None, bids: Pairs, asks: Pairs, ts: int
) -> dict[str, Any]:
    data = {"e": "depthUpdate", "E": ts, "s": s, "U": first, "u": last, "b": bids, "a": asks}
    return {"stream": f"{s.lower()}@depth@100ms", "data": data}


def _say_usdm(
    s: str, action: str, prev: int | None, last: int, first: int | None, bids: Pairs, asks: Pairs, ts: int
) -> dict[str, Any]:
    frame = _say_binance(s, action, prev, last, first, bids, asks, ts)
    frame["data"] |= {"pu": prev, "T": ts, "st": 1, "ps": s}
    return frame


def _say_okx(
    s: str, action: str, prev: int | None, last: int, first: int | None, bids: Pairs, asks: Pairs, ts: int
) -> dict[str, Any]:
    row = {
        "asks": _okx(asks),
        "bids": _okx(bids),
        "ts": str(ts),
        "checksum": 0,
        "seqId": last,
        "prevSeqId": -1 if prev is None else prev,
    }
    return {"arg": {"channel": "books", "instId": s}, "action": action, "data": [row]}


def _say_deribit(
    s: str, action: str, prev: int | None, last: int, first: int | None, bids: Pairs, asks: Pairs, ts: int
) -> dict[str, Any]:
    whole = action == "snapshot"

    def rows(pairs: Pairs) -> list[list[Any]]:
        return [["new" if whole or q != "0" else "delete", float(p), float(q)] for p, q in pairs]

    data: dict[str, Any] = {
        "type": "snapshot" if whole else "change",
        "timestamp": ts,
        "instrument_name": s,
        "change_id": last,
        "bids": rows(bids),
        "asks": rows(asks),
    }
    if not whole:
        data["prev_change_id"] = prev
    params = {"channel": f"book.{s}.100ms", "data": data}
    return {"jsonrpc": "2.0", "method": "subscription", "params": params}


_SAY: dict[str, Callable[..., dict[str, Any]]] = {
    "binance_spot": _say_binance,
    "binance_derivatives": _say_usdm,
    "okx_derivatives": _say_okx,
    "deribit_derivatives": _say_deribit,
}
