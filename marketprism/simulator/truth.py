"""What really happened: every trade with its exchange id, and the book at every update id.

Kept as columns of integers in chunks; a full chunk is compressed. A book chunk begins with the whole book, so the
book at any id is one chunk's start plus a part of its diffs. Chunks older than keep_s are dropped.
"""

import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from marketprism.simulator.instruments import Instrument
from marketprism.simulator.market import BID, SELL

_BOOK_CHUNK_OPS = 4096
_TRADE_CHUNK_ROWS = 4096
_LIQUIDATIONS_KEPT = 10_000

Levels = dict[int, int]
Book = tuple[dict[str, str], dict[str, str]]


class TradeRow(NamedTuple):
    """One trade as stored. Deribit: id is trade_seq and first_id the number in trade_id."""

    id: int
    first_id: int
    last_id: int
    tick: int
    lots: int
    ts_ms: int
    side: int
    forced: int


class TradeRecord(NamedTuple):
    """One trade as the exchange tells it. side is the taker's, buy or sell; fills is how many fills it sums up."""

    id: str
    price: str
    quantity: str
    side: str
    ts_ms: int
    fills: int
    seq: int


class LiquidationRecord(NamedTuple):
    """One liquidation as sent; price is the bankruptcy price where the exchange sends one."""

    side: str
    price: str
    quantity: str
    ts_ms: int


def _pack(columns: list["array[int]"]) -> bytes:
    return zlib.compress(b"".join(column.tobytes() for column in columns), 1)


def _unpack(packed: bytes, columns: int) -> list["array[int]"]:
    raw = zlib.decompress(packed)
    size = len(raw) // columns
    unpacked = []
    for index in range(columns):
        column = array("q")
        column.frombytes(raw[index * size : (index + 1) * size])
        unpacked.append(column)
    return unpacked


class _Chunk:
    """Rows of integers whose first column never falls; packed once full."""

    __slots__ = ("_packed", "_rows", "_width", "first_id", "last_ms", "start")

    def __init__(self, first_id: int, width: int, start: bytes = b"") -> None:
        self.first_id = first_id
        self.start = start
        self.last_ms = 0
        self._width = width
        self._rows: list[tuple[int, ...]] = []
        self._packed = b""

    def add(self, row: tuple[int, ...]) -> int:
        """Add a row; returns how many there are."""
        self._rows.append(row)
        return len(self._rows)

    def seal(self) -> None:
        """No more rows will come."""
        self._packed = _pack(self.columns())
        self._rows = []

    @property
    def sealed(self) -> bool:
        """Whether it is full."""
        return bool(self._packed)

    def columns(self) -> list["array[int]"]:
        """The columns, unpacked if need be."""
        if self._packed:
            return _unpack(self._packed, self._width)
        if not self._rows:
            return [array("q") for _ in range(self._width)]
        return [array("q", column) for column in zip(*self._rows, strict=True)]


@dataclass(slots=True)
class _Epoch:
    """A stretch of ids that only grow."""

    chunks: list[_Chunk]
    last_id: int


class BookLog:
    """The book of one instrument at every id since the log began.

    Ids grow within an epoch; a new epoch begins where the exchange resets its sequence (OKX maintenance).
    """

    def __init__(self, first_id: int, state: Levels, keep_s: float) -> None:
        self.state = dict(state)
        self._keep_ms = keep_s * 1000.0
        self._epochs: list[_Epoch] = []
        self._published_ids = array("q")
        self._published_ms = array("q")
        self._reading: tuple[_Chunk | None, list[array[int]], int, Levels] = None, [], 0, {}
        self.reset(first_id)

    @property
    def last_id(self) -> int:
        """The newest id."""
        return self._epochs[-1].last_id

    def add(self, update_id: int, key: int, lots: int) -> None:
        """At update_id the level `key` (tick * 2 + side) holds `lots`; 0 removes it."""
        if lots:
            self.state[key] = lots
        else:
            self.state.pop(key, None)
        epoch = self._epochs[-1]
        epoch.last_id = update_id
        chunk = epoch.chunks[-1]
        if chunk.add((update_id, key, lots)) >= _BOOK_CHUNK_OPS:
            chunk.seal()
            epoch.chunks.append(self._new_chunk(update_id))

    def publish(self, update_id: int, ts_ms: int) -> None:
        """A message that ends at update_id was due at ts_ms."""
        epoch = self._epochs[-1]
        epoch.last_id = update_id
        epoch.chunks[-1].last_ms = ts_ms
        self._published_ids.append(update_id)
        self._published_ms.append(ts_ms)
        if len(self._published_ids) % 1000 == 0:
            self._forget(ts_ms - self._keep_ms)

    def reset(self, first_id: int) -> None:
        """The sequence starts anew at this id with the same book."""
        self._epochs.append(_Epoch([self._new_chunk(first_id)], first_id))

    def update_ids(self) -> list[int]:
        """Ids at which a message ended, in order of time."""
        return self._published_ids.tolist()

    def id_at(self, ts_ms: int) -> int | None:
        """The id at which the last message ended that was due at or before ts_ms; None before the first one kept."""
        known = bisect_right(self._published_ms, ts_ms)
        return self._published_ids[known - 1] if known else None

    def recent_id(self, back: int) -> int:
        """The id published `back` messages ago (0: the last one), or the oldest known."""
        known = self._published_ids
        return known[-min(back + 1, len(known))] if known else self.last_id

    def stale_id(self, back: int) -> int:
        """The id published `back` messages ago, or the one the log began with."""
        known = len(self._published_ids) > back
        return self.recent_id(back) if known else self._epochs[0].chunks[0].first_id

    def state_at(self, update_id: int) -> Levels:
        """The levels (lots by key) at an id. Raises KeyError, with the range kept, for an id not covered."""
        chunk = self._chunk_of(update_id)
        before, columns, at, state = self._reading
        if before is not chunk or not columns:
            columns = chunk.columns()
        ids, keys, lots = columns
        end = bisect_right(ids, update_id)
        if before is not chunk or at > end:
            at, state = 0, dict(zip(*_unpack(chunk.start, 2), strict=True))
        for index in range(at, end):
            if lots[index]:
                state[keys[index]] = lots[index]
            else:
                state.pop(keys[index], None)
        # Who asks for one id after the other need not begin anew.
        self._reading = chunk, columns if chunk.sealed else [], end, state
        return dict(state)

    def _new_chunk(self, first_id: int) -> _Chunk:
        return _Chunk(first_id, 3, _pack([array("q", self.state.keys()), array("q", self.state.values())]))

    def _chunk_of(self, update_id: int) -> _Chunk:
        for epoch in reversed(self._epochs):
            if epoch.chunks[0].first_id <= update_id <= epoch.last_id:
                index = bisect_right(epoch.chunks, update_id, key=lambda chunk: chunk.first_id)
                return epoch.chunks[index - 1]
        kept = "; ".join(f"{epoch.chunks[0].first_id} to {epoch.last_id}" for epoch in self._epochs)
        raise KeyError(f"no book at update id {update_id}: kept are ids from {kept}")

    def _forget(self, before_ms: float) -> None:
        old = bisect_left(self._published_ms, before_ms)
        del self._published_ids[:old], self._published_ms[:old]
        for epoch in self._epochs:
            while len(epoch.chunks) > 1 and epoch.chunks[0].last_ms < before_ms:
                epoch.chunks.pop(0)
        while len(self._epochs) > 1 and self._epochs[0].chunks[-1].last_ms < before_ms:
            self._epochs.pop(0)


class TradeLog:
    """Trades of one instrument in order of id."""

    def __init__(self, keep_s: float) -> None:
        self.last_id = 0
        self._keep_ms = keep_s * 1000.0
        self._chunks: list[_Chunk] = []
        self._full = True

    def add(self, row: TradeRow) -> None:
        """Add the next trade; its id is greater than all before."""
        if self._full:
            self._roll(row)
        chunk = self._chunks[-1]
        self._full = chunk.add(row) >= _TRADE_CHUNK_ROWS
        chunk.last_ms = row.ts_ms
        self.last_id = row.id

    def rows(self, from_id: int = 0) -> Iterator[TradeRow]:
        """All trades kept with an id of at least from_id, oldest first."""
        first = max(0, bisect_right([chunk.first_id for chunk in self._chunks], from_id) - 1)
        for chunk in self._chunks[first:]:
            columns = chunk.columns()
            for values in list(
                zip(*(column[bisect_left(columns[0], from_id) :] for column in columns), strict=True)
            ):
                yield TradeRow(*values)

    def before(self, end_id: int, count: int) -> list[TradeRow]:
        """Up to `count` of the newest trades with an id below end_id, oldest first."""
        found: list[TradeRow] = []
        for chunk in reversed(self._chunks):
            if chunk.first_id >= end_id:
                continue
            columns = chunk.columns()
            stop = bisect_left(columns[0], end_id)
            start = max(0, stop - (count - len(found)))
            part = [
                TradeRow(*values) for values in zip(*(column[start:stop] for column in columns), strict=True)
            ]
            found = part + found
            if len(found) >= count:
                break
        return found

    def newest(self, count: int) -> list[TradeRow]:
        """The newest trades, oldest first."""
        return self.before(self.last_id + 1, count)

    def _roll(self, row: TradeRow) -> None:
        if self._chunks:
            self._chunks[-1].seal()
        before_ms = row.ts_ms - self._keep_ms
        while self._chunks and self._chunks[0].last_ms < before_ms:
            self._chunks.pop(0)
        self._chunks.append(_Chunk(row.id, len(row)))


@dataclass(slots=True)
class Ledger:
    """All that happened to one instrument of one worker."""

    instrument: Instrument
    book: BookLog
    fills: TradeLog
    aggregates: TradeLog
    liquidations: deque[LiquidationRecord] = field(default_factory=lambda: deque(maxlen=_LIQUIDATIONS_KEPT))


class Truth:
    """The simulator's own record, to be asked what should have arrived.

    Every method raises KeyError, with a sentence, for an instrument the worker's exchange does not list.
    """

    def __init__(self) -> None:
        self._ledgers: dict[tuple[str, str], Ledger] = {}

    def enter(self, ledger: Ledger) -> Ledger:
        """Take up an instrument (for the exchange faces)."""
        self._ledgers[ledger.instrument.worker, ledger.instrument.id] = ledger
        return ledger

    def trades(self, worker: str, instrument: str) -> list[TradeRecord]:
        """What the exchange's ordinary trade channel tells, each once.

        Binance `@trade` and Deribit `trades`: every fill. OKX `trades`: one per taker order and price, with the id
        of its last fill and `fills` = count, since that channel aggregates.
        """
        return (
            self.aggregates(worker, instrument)
            if worker.startswith("okx")
            else self.fills(worker, instrument)
        )

    def fills(self, worker: str, instrument: str) -> list[TradeRecord]:
        """Every single fill (OKX: `trades-all` and REST)."""
        ledger = self._ledger(worker, instrument)
        return [_record(ledger.instrument, row) for row in ledger.fills.rows()]

    def aggregates(self, worker: str, instrument: str) -> list[TradeRecord]:
        """Fills summed per taker order and price: Binance `@aggTrade`, OKX `trades`. Deribit has none."""
        ledger = self._ledger(worker, instrument)
        return [_record(ledger.instrument, row) for row in ledger.aggregates.rows()]

    def summed_up(self, worker: str, instrument: str, before: int, after: int) -> range:
        """The numbers of the fills that the aggregates between two numbers of aggregates sum up."""
        rows = [r for r in self._ledger(worker, instrument).aggregates.rows() if before < r.id < after]
        return range(rows[0].first_id, rows[-1].last_id + 1) if rows else range(0)

    def liquidations(self, worker: str, instrument: str) -> list[LiquidationRecord]:
        """Liquidations put on the exchange's liquidation channel (Deribit: forced trades)."""
        return list(self._ledger(worker, instrument).liquidations)

    def update_ids(self, worker: str, instrument: str) -> list[int]:
        """Ids at which a 100 ms book message ended, in order of time."""
        return self._ledger(worker, instrument).book.update_ids()

    def id_at(self, worker: str, instrument: str, ts_ms: int) -> int | None:
        """The id at which the last 100 ms book message ended that was due at or before ts_ms."""
        return self._ledger(worker, instrument).book.id_at(ts_ms)

    def book_at(self, worker: str, instrument: str, update_id: int) -> Book:
        """(bids, asks), quantity text by price text, at any id; best first.

        Binance and Deribit: the whole book. OKX: the 400 level window, which is what its ids stand for.
        Raises KeyError for an id before or after what is kept.
        """
        ledger = self._ledger(worker, instrument)
        return texts(ledger.instrument, ledger.book.state_at(update_id))

    def levels_at(self, worker: str, instrument: str, update_id: int) -> Levels:
        """The same as integers, lots by tick * 2 + side, in no order. Raises KeyError as book_at() does."""
        return self._ledger(worker, instrument).book.state_at(update_id)

    def instrument(self, worker: str, instrument: str) -> Instrument:
        """How the instrument's ticks and lots are written."""
        return self._ledger(worker, instrument).instrument

    def instruments(self) -> list[tuple[str, str]]:
        """(worker, instrument) of all ledgers."""
        return list(self._ledgers)

    def _ledger(self, worker: str, instrument: str) -> Ledger:
        ledger = self._ledgers.get((worker, instrument))
        if ledger is None:
            known = ", ".join(f"{w} {i}" for w, i in self._ledgers)
            raise KeyError(f"no instrument {instrument!r} at {worker!r}: known are {known}")
        return ledger


def split(state: Levels) -> tuple[Levels, Levels]:
    """(bids, asks) as lots by tick, best first."""
    bids = {key >> 1: lots for key, lots in sorted(state.items(), reverse=True) if key & 1 == BID}
    asks = {key >> 1: lots for key, lots in sorted(state.items()) if key & 1 != BID}
    return bids, asks


def texts(instrument: Instrument, state: Levels) -> Book:
    """(bids, asks) as the exchange writes them."""
    price, quantity = instrument.price_text, instrument.quantity_text
    bids, asks = split(state)
    return {price(t): quantity(n) for t, n in bids.items()}, {price(t): quantity(n) for t, n in asks.items()}


def deribit_trade_id(instrument: str, number: int) -> str:
    """Deribit's trade_id: a bare number for BTC, with the currency in front for the others."""
    currency = instrument.split("-", maxsplit=1)[0].split("_", maxsplit=1)[0]
    return str(number) if currency == "BTC" else f"{currency}-{number}"


def _record(instrument: Instrument, row: TradeRow) -> TradeRecord:
    deribit = instrument.worker.startswith("deribit")
    return TradeRecord(
        id=deribit_trade_id(instrument.id, row.first_id) if deribit else str(row.id),
        price=instrument.price_text(row.tick),
        quantity=instrument.quantity_text(row.lots),
        side="sell" if row.side == SELL else "buy",
        ts_ms=row.ts_ms,
        fills=row.last_id - row.first_id + 1,
        seq=row.id,
    )
