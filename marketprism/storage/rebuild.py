"""Books as they were: from the stored snapshots and changes of `orderbook_deltas` (`marketprism book`).

The rules are those of docs/events/README.md, "Rebuilding a book". Rows are put in the order of the stream first.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from marketprism.book import Book
from marketprism.storage.asking import ReadingError
from marketprism.storage.reading import Span, Tier, select, shown

if TYPE_CHECKING:
    import pyarrow as pa

SKEW_MS = 60_000
"""So much may our clock differ from an exchange's. A snapshot without an event time is stored under ours."""
LOOK_BACK_MS = (15 * 60_000, 6 * 3_600_000, 48 * 3_600_000)
"""How far before an instant a snapshot is looked for, in turn. By default there is one every 5 minutes."""
ANEW_MS = 10_000
"""OKX's ids may begin anew: so much later counts for more than a smaller id."""

Verdict = Literal["taken", "stale", "waiting", "broken"]
_COLUMNS = (
    "toUnixTimestamp64Milli(timestamp) AS ts_ms, toUnixTimestamp64Milli(collected_at) AS collected_ms, "
    "has_event_time, exchange, stream_seq, event_id, "
    "update_type, bids, asks, last_update_id, prev_update_id, checksum, exact_from, exact_to"
)
_THIS = "exchange = {exchange:String} AND market_type = {market_type:String} AND instrument_id = {instrument_id:String}"


class Change(msgspec.Struct, frozen=True, gc=False):
    """A row of `orderbook_deltas`: a whole book, or one change of it."""

    ts_ms: int
    collected_ms: int
    has_event_time: bool
    exchange: str
    stream_seq: int
    event_id: str
    update_type: str
    bids: str
    asks: str
    last_update_id: int | None
    prev_update_id: int | None
    checksum: int | None
    exact_from: Decimal | None
    exact_to: Decimal | None


class Hole(msgspec.Struct, frozen=True, gc=False):
    """A row of `gaps` about a book: from `since_ms` on it is not known, until a snapshot follows."""

    since_ms: int
    stream_seq: int
    event_id: str
    cause: str
    last_id_before: str | None


@dataclass(frozen=True, slots=True)
class Instrument:
    """Whose book."""

    exchange: str
    market_type: str
    symbol: str
    instrument_id: str

    @property
    def values(self) -> dict[str, str | int]:
        """For a statement."""
        return {
            "exchange": self.exchange,
            "market_type": self.market_type,
            "instrument_id": self.instrument_id,
        }

    def __str__(self) -> str:
        return f"{self.exchange} {self.market_type} {self.symbol}"


class Rebuilt:
    """One instrument's book, rebuilt from rows in the order of the stream."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self.book = Book()
        self.exact = False
        self.held: Change | None = None
        """What was taken last."""
        self.base: Change | None = None
        """The snapshot it hangs on."""

    def take(self, row: Change) -> Verdict:
        """Take in the next row."""
        verdict = self._verdict(row)
        if verdict == "taken":
            try:
                self._apply(row)
            except ValueError:  # levels that are none: nobody knows what the book is now
                verdict = "broken"
        if verdict in ("taken", "broken"):
            self.exact = verdict == "taken"
        return verdict

    def _verdict(self, row: Change) -> Verdict:
        if row.update_type == "snapshot":
            return "stale" if self.exact and self._stale(row) else "taken"
        if not self.exact:
            return "waiting"
        if self._follows(row):
            return "taken"
        return "stale" if self._stale(row) else "broken"

    def _apply(self, row: Change) -> None:
        if row.update_type == "snapshot":
            self.book.load(row.bids.encode(), row.asks.encode())
            self.base = row
        else:
            self.book.apply(row.bids.encode(), row.asks.encode())
        self.held = row

    def lose(self, hole: Hole) -> bool:
        """A gap was told. Returns whether it concerns this book: not where it was carried on beyond it."""
        last, held = hole.last_id_before, self.held.last_update_id if self.held else None
        if not self.exact or (last and last.isdigit() and held is not None and int(last) < held):
            return False
        self.exact = False
        return True

    def sides(self, depth: int | None = None) -> tuple[list[list[str]], list[list[str]]]:
        """Bids and asks as `[price, quantity]`, best first, none beyond what is known to be complete."""
        assert self.base is not None
        low, high = self.base.exact_from, self.base.exact_to
        bids, asks = (msgspec.json.decode(side, type=list[list[str]]) for side in self.book.all())
        known_bids = [x for x in bids if low is None or Decimal(x[0]) >= low]
        known_asks = [x for x in asks if high is None or Decimal(x[0]) <= high]
        return known_bids[:depth], known_asks[:depth]

    def _follows(self, row: Change) -> bool:
        assert self.held is not None
        held, last, prev = self.held.last_update_id, row.last_update_id, row.prev_update_id
        if last is None:
            return True  # the exchange numbers nothing: the order is all there is
        if held is None or prev is None:
            return False
        return prev == held or prev <= held < last

    def _stale(self, row: Change) -> bool:
        """Held already, or older: a second collector tells again what the first one told."""
        assert self.held is not None
        held, last = self.held.last_update_id, row.last_update_id
        if held is None or last is None:
            return False
        older = last < held or (last == held and row.update_type == "delta")
        if row.exchange != "okx":
            return older
        later_ms = row.ts_ms - self.held.ts_ms
        return later_ms < -ANEW_MS or (older and later_ms < ANEW_MS)


def in_order(rows: Iterable[Change]) -> list[Change]:
    """Rows once each, in the order of the stream.

    A stream that was made anew counts from 1 again. So where numbers fall to less than half of what was seen before, in
    the order of receiving, another stream begins.
    """
    once = {row.event_id: row for row in rows}.values()
    streams: list[list[Change]] = []
    lowest = 0
    for row in sorted(once, key=lambda row: (row.collected_ms, row.stream_seq)):
        if not streams or 2 * row.stream_seq < lowest:
            streams.append([])
            lowest = row.stream_seq
        lowest = min(lowest, row.stream_seq)
        streams[-1].append(row)
    return [row for stream in streams for row in sorted(stream, key=lambda row: row.stream_seq)]


def changes(tiers: Iterable[Tier], instrument: Instrument, span: Span) -> list[Change]:
    """The rows of a span, in order. Raises ReadingError, EngineError."""
    found: list[Change] = []
    for tier in tiers:
        rows = select(tier, "orderbook_deltas", span, _COLUMNS, where=_THIS, values=instrument.values)
        found += structs(rows, Change)
    return in_order(found)


def holes(tiers: Iterable[Tier], instrument: Instrument, span: Span) -> list[Hole]:
    """What `gaps` tells of a book, in the order of the stream. Raises ReadingError, EngineError."""
    what = (
        "toUnixTimestamp64Milli(ifNull(last_time_before, timestamp)) AS since_ms, "
        "stream_seq, event_id, cause, last_id_before"
    )
    found: dict[str, Hole] = {}
    for tier in tiers:
        where = f"{_THIS} AND affected_data_type = 'orderbook_delta'"
        rows = select(tier, "gaps", span, what, where=where, values=instrument.values)
        found |= {hole.event_id: hole for hole in structs(rows, Hole)}
    return sorted(found.values(), key=lambda hole: hole.stream_seq)


def structs(rows: "pa.Table", kind: type[Any]) -> list[Any]:
    """Rows as structs of that kind, whose fields are named as the columns."""
    names = kind.__struct_fields__
    return [kind(*values) for values in zip(*(rows.column(name).to_pylist() for name in names), strict=True)]


# -- one instant -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BookAt:
    """A book as it was at `at_ms`. `since_ms` is the time of the last change before it.

    `exact_from` and `exact_to` bound what is complete. `contradicted`: the cause of a gap that makes it doubtful.
    """

    instrument: Instrument
    at_ms: int
    since_ms: int
    last_update_id: int | None
    bids: list[list[str]]
    asks: list[list[str]]
    exact_from: str | None
    exact_to: str | None
    contradicted: str

    def told(self) -> dict[str, Any]:
        """For JSON."""
        i = self.instrument
        return {
            "exchange": i.exchange,
            "market_type": i.market_type,
            "symbol": i.symbol,
            "instrument_id": i.instrument_id,
            "at_ms": self.at_ms,
            "ts_ms": self.since_ms,
            "last_update_id": self.last_update_id,
            "exact_from": self.exact_from,
            "exact_to": self.exact_to,
            "contradicted": self.contradicted or None,
            "bids": self.bids,
            "asks": self.asks,
        }


def find(
    tiers: Sequence[Tier], exchange: str, symbol: str, market_type: str | None, at_ms: int
) -> Instrument:
    """The one instrument with stored changes that is meant, by our symbol or the exchange's name.

    `exchange` may also be a section of the configuration, such as binance_spot. Raises ReadingError, EngineError.
    """
    where = "exchange = {exchange:String} AND (symbol = {symbol:String} OR instrument_id = {symbol:String})"
    what = "DISTINCT exchange, market_type, symbol, instrument_id"
    values = {"exchange": exchange, "symbol": symbol}
    found: set[Instrument] = set()
    for back_ms in LOOK_BACK_MS:
        for tier in tiers:
            span = Span(at_ms - back_ms, at_ms + SKEW_MS)
            rows = select(tier, "orderbook_deltas", span, what, where=where, values=values).to_pylist()
            found |= {Instrument(**row) for row in rows}
        fitting = sorted((i for i in found if market_type in (None, i.market_type)), key=str)
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            choice = ", ".join(i.market_type for i in fitting)
            raise ReadingError(f"{exchange} {symbol} is several: say --market-type, one of {choice}")
    hours = LOOK_BACK_MS[-1] // 3_600_000
    raise ReadingError(
        f"no book of {exchange} {symbol}{f' ({market_type})' if market_type else ''} is stored in the {hours} hours "
        f"before {shown(at_ms)}"
    )


def book_at(tiers: Sequence[Tier], instrument: Instrument, at_ms: int, depth: int | None = None) -> BookAt:
    """The book after everything of this instrument that the exchange dates at or before `at_ms`.

    Raises ReadingError where it is not known, with the reason; EngineError.
    """
    span = _since_snapshot(tiers, instrument, at_ms)
    rebuilt = Rebuilt()
    for row in _until(changes(tiers, instrument, span), at_ms):
        rebuilt.take(row)
    if not rebuilt.exact or rebuilt.held is None or rebuilt.base is None:
        raise ReadingError(f"the book of {instrument} at {shown(at_ms)} is not known: {_why_not(rebuilt)}")
    held = rebuilt.held
    told = holes(tiers, instrument, Span(rebuilt.base.ts_ms - SKEW_MS, at_ms + LOOK_BACK_MS[-1]))
    for hole in told:
        if hole.stream_seq > held.stream_seq and hole.since_ms < at_ms and rebuilt.lose(hole):
            raise ReadingError(
                f"the book of {instrument} at {shown(at_ms)} is not known: it was lost at {shown(hole.since_ms)} "
                f"({hole.cause})"
            )
    bids, asks = rebuilt.sides(depth)
    return BookAt(
        instrument,
        at_ms,
        held.ts_ms,
        held.last_update_id,
        bids,
        asks,
        _plain(rebuilt.base.exact_from),
        _plain(rebuilt.base.exact_to),
        _contradicted(told, held, at_ms),
    )


def _plain(bound: Decimal | None) -> str | None:
    return None if bound is None else f"{bound.normalize():f}"


def _contradicted(told: list[Hole], held: Change, at_ms: int) -> str:
    """The cause of the gap that ended this book, if it says that the book may have been wrong before."""
    end = next((h for h in told if h.stream_seq > held.stream_seq), None)
    doubtful = end is not None and end.cause in _WRONG and end.since_ms <= at_ms + LOOK_BACK_MS[0]
    return end.cause if end is not None and doubtful else ""


_WRONG = ("audit", "crossed")


def _since_snapshot(tiers: Sequence[Tier], instrument: Instrument, at_ms: int) -> Span:
    """From a snapshot to the instant, with room for clocks that differ."""
    for back_ms in LOOK_BACK_MS:
        span = Span(at_ms - back_ms, at_ms + SKEW_MS + 1)
        what = "toUnixTimestamp64Milli(timestamp) AS ts_ms, has_event_time"
        where = f"{_THIS} AND update_type = 'snapshot'"
        rows = [
            row
            for tier in tiers
            for row in select(
                tier, "orderbook_deltas", span, what, where=where, values=instrument.values
            ).to_pylist()
        ]
        # One without an event time may belong after the instant: it is no place to begin unless there is no other.
        timed = [row["ts_ms"] for row in rows if row["has_event_time"] and row["ts_ms"] <= at_ms]
        if begin := max(timed, default=0) or min((row["ts_ms"] for row in rows), default=0):
            return Span(begin - SKEW_MS, span.end_ms)
    raise ReadingError(
        f"no snapshot of {instrument} is stored in the {LOOK_BACK_MS[-1] // 3_600_000} hours before {shown(at_ms)}"
    )


def _until(rows: list[Change], at_ms: int) -> list[Change]:
    """The stream as far as the instant: up to the first row that the exchange dates after it.

    Not all rows of before: behind that one an old snapshot of a second collector may follow.
    """
    end = next((n for n, row in enumerate(rows) if row.has_event_time and row.ts_ms > at_ms), len(rows))
    while end and not rows[end - 1].has_event_time and rows[end - 1].ts_ms > at_ms:
        end -= 1  # came after the instant by our clock, and nothing tells otherwise
    return rows[:end]


def _why_not(rebuilt: Rebuilt) -> str:
    if rebuilt.held is None:
        return "no snapshot before it"
    return f"a change is missing after {shown(rebuilt.held.ts_ms)}, id {rebuilt.held.last_update_id}"


def text(book: BookAt) -> str:
    """For people: the best at the top."""
    lines = [
        f"{book.instrument} ({book.instrument.instrument_id}) at {shown(book.at_ms)} UTC",
        f"last change {shown(book.since_ms)}, id {book.last_update_id}, {book.at_ms - book.since_ms} ms before",
    ]
    if book.exact_from or book.exact_to:
        lines.append(f"complete from {book.exact_from or 'the bottom'} to {book.exact_to or 'the top'}")
    if book.contradicted:
        lines.append(
            f"DOUBTFUL: a gap followed with cause {book.contradicted}: this book may have been wrong already"
        )
    width = max((len(x) for side in (book.bids, book.asks) for level in side for x in level), default=8)
    lines += ["", f"{'quantity':>{width}}  {'bid':>{width}}   {'ask':<{width}}  quantity"]
    for n in range(max(len(book.bids), len(book.asks))):
        (bid, bid_quantity), (ask, ask_quantity) = _level(book.bids, n), _level(book.asks, n)
        lines.append(f"{bid_quantity:>{width}}  {bid:>{width}}   {ask:<{width}}  {ask_quantity}".rstrip())
    return "\n".join(lines)


def _level(side: list[list[str]], n: int) -> list[str]:
    return side[n] if n < len(side) else ["", ""]
