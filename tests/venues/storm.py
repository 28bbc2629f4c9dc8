"""A venue beside a made-up exchange and a network that loses, repeats, delays and breaks."""

import json
from collections import deque
from random import Random
from typing import Any

from drive import Drive
from truth import SYMBOLS, Truth

from chaos.consumer import ConsumerBook
from marketprism.events import OrderBook, OrderBookDelta

# What a network may do without a message being missed for good.
HARMLESS = (
    "step",
    "step",
    "step",
    "deliver",
    "deliver",
    "deliver",
    "repeat",
    "rest",
    "rest_old",
    "tick",
    "second",
    "hand_over",
)
FAULTS = ("lose", "break", "rest_fails", "wait", "garbage")


class Storm:
    """Carries out actions, and lets the judge compare each published book with the truth."""

    def __init__(self, exchange: str, seed: int, *, in_band: bool = True, limit: int | None = None) -> None:
        self.exchange = exchange
        self.rng = Random(seed)
        self.truth = Truth(exchange, self.rng)
        self.symbol = SYMBOLS[exchange]
        self.drive = Drive(
            exchange,
            self.symbol,
            types=["orderbook"],
            snapshot_depth=10,
            depth_limit=limit or 500,
            checkpoint_interval_ms=5_000,
        )
        self.drive.judge.on_book = self._compare
        self.drive.judge.on_top = self._compare_top
        self.in_band = in_band
        self.limit = limit
        self.wire: dict[str, deque[dict[str, Any]]] = {}
        self.deaf: set[str] = set()  # Deribit: connections without a subscription
        self.last: dict[str, dict[str, Any]] = {}
        self.serial = 0
        self.compared = 0

    # -- the judge ---------------------------------------------------------------------------------------------

    def _compare(self, data: OrderBookDelta, book: ConsumerBook) -> None:
        assert data.last_update_id is not None
        bids, asks = self.truth.states[data.last_update_id]
        low, high = self.drive.judge.windows[self.symbol]
        self.compared += 1
        assert {int(p): int(float(q[1])) for p, q in book.bids.items() if low is None or p >= int(low)} == {
            p: q for p, q in bids.items() if low is None or p >= int(low)
        }
        assert {int(p): int(float(q[1])) for p, q in book.asks.items() if high is None or p <= int(high)} == {
            p: q for p, q in asks.items() if high is None or p <= int(high)
        }

    def _compare_top(self, data: OrderBook) -> None:
        assert data.last_update_id is not None
        bids, asks = self.truth.states[data.last_update_id]
        shown = [(int(float(x.price)), int(float(x.quantity))) for x in data.bids]
        assert shown == [(p, bids[p]) for p in sorted(bids, reverse=True)][: len(shown)]
        shown = [(int(float(x.price)), int(float(x.quantity))) for x in data.asks]
        assert shown == [(p, asks[p]) for p in sorted(asks)][: len(shown)]

    # -- actions -----------------------------------------------------------------------------------------------

    def do(self, action: str, n: int) -> None:
        getattr(self, f"_{action}")(n)
        self._answer_sends()

    def _pick(self, n: int) -> str | None:
        conns = sorted(self.wire)
        return conns[n % len(conns)] if conns else None

    def _step(self, n: int) -> None:
        message = self.truth.step(self.drive.ms)
        for conn, wire in self.wire.items():
            if conn not in self.deaf:
                wire.append(message)

    def _deliver(self, n: int) -> None:
        conn = self._pick(n)
        if conn is not None and self.wire[conn]:
            self.last[conn] = self.wire[conn].popleft()
            self.drive.frame(self.last[conn], conn)

    def _repeat(self, n: int) -> None:
        conn = self._pick(n)
        message = self.last.get(conn or "")
        # A snapshot is never sent twice; on Deribit and OKX a repeated one would rightly begin the book anew.
        if conn is not None and message is not None and "snapshot" not in json.dumps(message):
            self.drive.frame(message, conn)

    def _lose(self, n: int) -> None:
        conn = self._pick(n)
        if conn is not None and self.wire[conn] and "id" not in self.wire[conn][0]:  # answers are never lost
            self.wire[conn].popleft()

    def _garbage(self, n: int) -> None:
        conn = self._pick(n)
        if conn is not None:
            self.drive.frame(
                (b"", b"{", b"null", b'{"stream":"', b'{"arg":{', b"\xff\xfe", b"[]")[n % 7], conn
            )

    def _rest(self, n: int) -> None:
        if self.drive.asked("depth"):
            self.drive.answer("depth", self.truth.rest(self.drive.ms, 0, self.limit))

    def _rest_old(self, n: int) -> None:
        if self.drive.asked("depth"):
            ago = min(n % 8, len(self.truth.order) - 1)
            if self.exchange == "okx_derivatives" and any(
                i > self.truth.last_id for i in self.truth.order[-10:]
            ):
                ago = 0  # a book from before the ids began anew cannot be told from a later one
            self.drive.answer("depth", self.truth.rest(self.drive.ms, ago, self.limit))

    def _rest_fails(self, n: int) -> None:
        if self.drive.asked("depth"):
            self.drive.answer("depth", b"", (0, 429, 500, 200)[n % 4])

    def _tick(self, n: int) -> None:
        self.drive.tick(0.05 * (n % 40))

    def _wait(self, n: int) -> None:
        self.drive.wait(n % 30, 1.0)

    def _second(self, n: int) -> None:
        if len(self.wire) < 2:
            self.serial += 1
            conn = f"c{self.serial}"
            self.wire[conn] = deque()
            self.deaf.add(conn)
            self.drive.open(conn)
            if self.exchange != "deribit_derivatives":
                self._begin(conn)

    def _hand_over(self, n: int) -> None:
        """The older of two connections goes once the newer has delivered what the older has."""
        if len(self.wire) == 2:
            old, new = sorted(self.wire, key=lambda c: int(c[1:]))
            if new in self.deaf:
                return
            for conn in (old, new):
                while self.wire[conn]:
                    self.last[conn] = self.wire[conn].popleft()
                    self.drive.frame(self.last[conn], conn)
            self._close(old)

    def _break(self, n: int) -> None:
        conn = self._pick(n)
        if conn is not None:
            self._close(conn)

    def _close(self, conn: str) -> None:
        del self.wire[conn]
        self.deaf.discard(conn)
        self.last.pop(conn, None)
        self.drive.close(conn)

    def _keepalive(self, n: int) -> None:
        for conn, wire in self.wire.items():
            if conn not in self.deaf:
                wire.append(self.truth.keepalive(self.drive.ms))

    def _reset(self, n: int) -> None:
        message = self.truth.reset(self.drive.ms)
        for wire in self.wire.values():
            wire.append(message)

    # -- the exchange ------------------------------------------------------------------------------------------

    def _begin(self, conn: str) -> None:
        """The subscription takes effect."""
        self.deaf.discard(conn)
        if self.in_band and self.exchange in ("okx_derivatives", "deribit_derivatives"):
            self.wire[conn].append(self.truth.in_band(self.drive.ms))

    def _answer_sends(self) -> None:
        sends, self.drive.sends = self.drive.sends, []
        for send in sends:
            if send.conn not in self.wire or send.text == "ping":
                continue
            call = json.loads(send.text)
            if self.exchange == "deribit_derivatives":
                self._answer_call(send.conn, call)
            elif self.exchange == "okx_derivatives":
                self.wire[send.conn] += ({"id": "", "event": call["op"], "arg": arg} for arg in call["args"])
            else:
                self.wire[send.conn].append({"result": None, "id": call["id"]})

    def _answer_call(self, conn: str, call: dict[str, Any]) -> None:
        channels = call["params"].get("channels")
        answer = {"jsonrpc": "2.0", "id": call["id"], "result": channels or "ok"}
        if call["method"] == "public/unsubscribe":
            self.deaf.add(conn)
        self.wire[conn].append(answer)
        if call["method"] == "public/subscribe" and conn in self.deaf:
            self._begin(conn)

    def heal(self, seconds: int = 120) -> None:
        """Good weather: within this time the book must be live and right."""
        if not self.wire:
            self._second(0)
        for _ in range(seconds):
            self._answer_sends()
            for conn in list(self.wire):
                while self.wire[conn]:
                    self.drive.frame(self.wire[conn].popleft(), conn)
                    self._answer_sends()
            while self.drive.asked("depth"):
                self._rest(0)
            if (
                self.drive.live(self.symbol)
                and self.drive.judge.books[self.symbol].last_id == self.truth.message_id
            ):
                return
            self.drive.wait(1, 0.5)
            self._step(0)
        raise AssertionError(f"still not live after {seconds} s: {self.drive.notes[-3:]}")
