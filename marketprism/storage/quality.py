"""`marketprism quality`: how whole the stored data of a time span is, by exchange, symbol and type.

Judged by the rows themselves: books are rebuilt change by change and their checksums computed; gaps are taken from
what the collector told, and silences are found besides, where nobody told anything.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from marketprism.storage.asking import ReadingError
from marketprism.storage.reading import Span, Tier, select, shown
from marketprism.storage.rebuild import SKEW_MS, Change, Instrument, Rebuilt, changes, holes, in_order
from marketprism.storage.schema import BY_DATA_TYPE, TABLES
from marketprism.storage.timeline import Lane, draw

HOUR_MS, MINUTE_MS = 3_600_000, 60_000
REPLAY_MS = 5 * MINUTE_MS
"""Books are read in parts of this length, which bounds the memory."""
WARM_UP_MS = 10 * MINUTE_MS
"""Books are begun so long before the span, so that they are known at its beginning."""
LATE_MS = 10_000
"""An event that came so long after its own time is counted as late."""
BOOK = "orderbook_delta"

_STREAMED = ("trade", "orderbook", BOOK, "liquidation")
"""Types that come at once; of the others, asked for at intervals, lateness says nothing."""
_SILENCE_MS = {
    "orderbook": MINUTE_MS,
    "funding_rate": 5 * MINUTE_MS,
    "open_interest": 5 * MINUTE_MS,
    "lsr_top_position": 15 * MINUTE_MS,
    "lsr_top_account": 15 * MINUTE_MS,
    "lsr_all_account": 15 * MINUTE_MS,
    "volatility_index": 15 * MINUTE_MS,
}
"""No event for longer than this is a hole. Trades and liquidations may be rare: of those see `_HEARD_MS`."""
_HEARD_MS = MINUTE_MS
"""Trades and liquidations count as covered while anything of their exchange and market came at least so often."""

Interval = tuple[int, int]
Key = tuple[str, str, str, str, str]
"""Exchange, market type, symbol, instrument_id, data type."""


@dataclass(slots=True)
class Heard:
    """What was stored of an instrument and type: counts, and first and last time of each minute with events."""

    events: int = 0
    ids: int = 0
    late: int = 0
    latest_ms: int = 0
    minutes: dict[int, Interval] = field(default_factory=dict)

    def add(self, row: dict[str, Any]) -> None:
        """A row of `_COUNTS`."""
        self.events += row["events"]
        self.ids += row["ids"]
        self.late += row["late"]
        self.latest_ms = max(self.latest_ms, row["latest_ms"])
        for minute, first, last in zip(row["minutes"], row["first_ms"], row["last_ms"], strict=True):
            known = self.minutes.get(minute, (first, last))
            self.minutes[minute] = min(known[0], first), max(known[1], last)

    def correct(self, rows: list[dict[str, Any]], different: dict[int, bool]) -> None:
        """Rows of both places that were added, though some events are in both: these are the different ones."""
        twice = sum(row["ids"] for row in rows) - len(different)
        self.events -= twice
        self.ids -= twice
        self.late -= sum(row["late"] for row in rows) - sum(different.values())


@dataclass(slots=True)
class BookFacts:
    """What rebuilding a book found."""

    live: list[Interval] = field(default_factory=list)
    breaks: int = 0
    """Changes that did not follow although no gap was told. Must be 0."""
    checksums: int = 0
    matching: int = 0


@dataclass(frozen=True, slots=True)
class Quality:
    """One line of the report. `holes` are (from ms, to ms, cause); `None` where it means nothing for the type."""

    exchange: str
    market_type: str
    symbol: str
    data_type: str
    span: Span
    events: int
    duplicates: int
    late: int | None
    latest_ms: int | None
    holes: list[tuple[int, int, str]]
    missing: int
    book: BookFacts | None

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.exchange} {self.market_type} {self.symbol} {self.data_type}"

    @property
    def covered(self) -> float:
        """Share of the span without a hole."""
        lost = sum(end - start for start, end in _merged((a, b) for a, b, _ in self.holes))
        return 1 - lost / (self.span.end_ms - self.span.start_ms)

    @property
    def live_ms(self) -> int | None:
        """How long the book was exact."""
        return None if self.book is None else sum(b - a for a, b in self.book.live)

    def told(self) -> dict[str, Any]:
        """For JSON."""
        book = self.book or BookFacts()
        return {
            "exchange": self.exchange,
            "market_type": self.market_type,
            "symbol": self.symbol,
            "data_type": self.data_type,
            "events": self.events,
            "covered": round(self.covered, 6),
            "gaps": [{"from_ms": a, "to_ms": b, "cause": cause} for a, b, cause in self.holes],
            "missing": self.missing,
            "duplicates": self.duplicates,
            "late": self.late,
            "latest_ms": self.latest_ms,
            "book_live_ms": self.live_ms,
            "book_breaks": self.book and book.breaks,
            "checksums": self.book and book.checksums,
            "checksums_matching": self.book and book.matching,
        }


def report(tiers: Sequence[Tier], span: Span) -> list[Quality]:
    """One line for each instrument and type that has a row or a gap in the span. Raises ReadingError, EngineError."""
    if span.end_ms <= span.start_ms:
        raise ReadingError(
            f"expected --from before --to, got {shown(span.start_ms)} and {shown(span.end_ms)}"
        )
    heard = _heard(tiers, span)
    told, missing = _told_gaps(tiers, span)
    alive = _alive(heard)
    lines = []
    for key in sorted({*heard, *told}):
        *instrument, data_type = key
        of = heard.get(key, Heard())
        book = replay(tiers, Instrument(*instrument), span) if data_type == BOOK else None
        streamed = data_type in _STREAMED
        lines.append(
            Quality(
                *key[:3],
                data_type,
                span,
                of.events,
                of.events - of.ids,
                of.late if streamed else None,
                of.latest_ms if streamed else None,
                _holes(told[key], _silent(key, of, book, alive, span), data_type),
                missing[key],
                book,
            )
        )
    return lines


def _silent(
    key: Key, of: Heard, book: BookFacts | None, alive: dict[tuple[str, str], list[Interval]], span: Span
) -> list[Interval]:
    """When nothing was known of it, by what a silence is for its type."""
    if book is not None:
        return _without(span, book.live)
    if (longest_ms := _SILENCE_MS.get(key[-1])) is not None:
        return _silences(of.minutes.values(), span, longest_ms)
    return _silences(alive[key[0], key[1]], span, _HEARD_MS)


# -- counts ----------------------------------------------------------------------------------------------------

_KEY = "exchange, market_type, symbol, instrument_id"
_MS = "toUnixTimestamp64Milli(timestamp)"
_DELAY = f"if(has_event_time, toUnixTimestamp64Milli(collected_at) - {_MS}, 0)"
_MINUTE = f"intDiv({_MS}, {MINUTE_MS})"
_COUNTS = f"""{_KEY},
    toInt64(count()) AS events,
    toInt64(uniqExact(cityHash64(event_id))) AS ids,
    groupBitXor(cityHash64(event_id, timestamp)) AS mark,
    toInt64(countIf({_DELAY} > {LATE_MS})) AS late,
    toInt64(max({_DELAY})) AS latest_ms,
    minMap([{_MINUTE}], [{_MS}]) AS firsts, maxMap([{_MINUTE}], [{_MS}]) AS lasts,
    firsts.1 AS minutes, firsts.2 AS first_ms, lasts.2 AS last_ms"""


def _heard(tiers: Sequence[Tier], span: Span) -> dict[Key, Heard]:
    """Hour by hour, since the ids of a day do not fit into memory."""
    found: defaultdict[Key, Heard] = defaultdict(Heard)
    for table in TABLES:
        if table.data_type == "gap":
            continue
        for hour in span.pieces(HOUR_MS):
            of_hour: defaultdict[Key, list[dict[str, Any]]] = defaultdict(list)
            for tier in tiers:
                for row in select(tier, table.name, hour, _COUNTS, then=f"GROUP BY {_KEY}").to_pylist():
                    of_hour[_key(row, table.data_type)].append(row)
            for key, rows in of_hour.items():
                if len({(row["events"], row["mark"]) for row in rows}) == 1:
                    del rows[1:]  # moved, and not dropped yet: the same events in both
                for row in rows:
                    found[key].add(row)
                if len(rows) > 1:
                    found[key].correct(rows, _different(tiers, table.name, key, hour))
    return dict(found)


def _key(row: dict[str, Any], data_type: str) -> Key:
    return row["exchange"], row["market_type"], row["symbol"], row["instrument_id"], data_type


def _different(tiers: Sequence[Tier], table: str, key: Key, span: Span) -> dict[int, bool]:
    """The events that lie hot, cold, or in both, and which of them are late. For hours that got some after the move."""
    where = (
        "exchange = {exchange:String} AND market_type = {market_type:String} AND instrument_id = {id:String}"
    )
    what = f"cityHash64(event_id) AS id, max({_DELAY} > {LATE_MS}) AS late"
    values = {"exchange": key[0], "market_type": key[1], "id": key[3]}
    found: dict[int, bool] = {}
    for tier in tiers:
        rows = select(tier, table, span, what, where=where, then="GROUP BY id", values=values)
        found |= zip(rows.column("id").to_pylist(), rows.column("late").to_pylist(), strict=True)
    return found


def _alive(heard: dict[Key, Heard]) -> dict[tuple[str, str], list[Interval]]:
    """When anything came of an exchange's market."""
    found: defaultdict[tuple[str, str], list[Interval]] = defaultdict(list)
    for (exchange, market_type, *_), of in heard.items():
        found[exchange, market_type] += of.minutes.values()
    return found


# -- holes -----------------------------------------------------------------------------------------------------


def _told_gaps(
    tiers: Sequence[Tier], span: Span
) -> tuple[defaultdict[Key, list[tuple[int, int, str]]], Counter[Key]]:
    """Of each instrument and type the told gaps within the span, and how many messages they miss."""
    what = (
        f"{_KEY}, affected_data_type, event_id, cause, toInt64(ifNull(missing, 0)) AS lost, "
        "toUnixTimestamp64Milli(ifNull(last_time_before, timestamp)) AS since_ms, "
        "toUnixTimestamp64Milli(ifNull(first_time_after, timestamp)) AS until_ms"
    )
    wide = Span(span.start_ms - 24 * HOUR_MS, span.end_ms + 24 * HOUR_MS)  # a gap is dated by one of its ends
    rows = {row["event_id"]: row for tier in tiers for row in select(tier, "gaps", wide, what).to_pylist()}
    gaps: defaultdict[Key, list[tuple[int, int, str]]] = defaultdict(list)
    missing: Counter[Key] = Counter()
    for row in rows.values():
        key = _key(row, row["affected_data_type"])
        since, until = max(row["since_ms"], span.start_ms), min(row["until_ms"], span.end_ms)
        if since <= until and row["affected_data_type"] in BY_DATA_TYPE:
            gaps[key].append((since, until, row["cause"]))
            missing[key] += row["lost"]
    return gaps, missing


def _holes(
    told: list[tuple[int, int, str]], silent: list[Interval], data_type: str
) -> list[tuple[int, int, str]]:
    """Told gaps and silences together. A silence that a gap was told of has its cause."""
    found = (
        [] if data_type == BOOK else list(told)
    )  # a book's hole lasts until the next snapshot: `silent` has it
    for start, end in silent:
        cause = next((c for a, b, c in told if a <= end and b >= start), "silence")
        found.append((start, end, cause))
    return sorted(found)


def _silences(heard: Iterable[Interval], span: Span, longest_ms: int) -> list[Interval]:
    """Where nothing came for longer than that."""
    found, last = [], span.start_ms
    for first, end in [*_merged(heard), (span.end_ms, span.end_ms)]:
        if first - last > longest_ms:
            found.append((last, first))
        last = max(last, end)
    return found


def _without(span: Span, covered: Iterable[Interval]) -> list[Interval]:
    """What is left of a span."""
    return _silences(covered, span, 0)


def _merged(intervals: Iterable[Interval]) -> list[Interval]:
    """The same time, in order and without overlap."""
    found: list[Interval] = []
    for start, end in sorted(intervals):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    return found


# -- books -----------------------------------------------------------------------------------------------------


def replay(tiers: Sequence[Tier], instrument: Instrument, span: Span) -> BookFacts:
    """Rebuild a book over the span. Raises ReadingError, EngineError."""
    facts, book = BookFacts(), Rebuilt()
    wide = Span(span.start_ms - WARM_UP_MS, span.end_ms)
    lost = deque(holes(tiers, instrument, Span(wide.start_ms - HOUR_MS, wide.end_ms + 24 * HOUR_MS)))
    kept: list[Change] = []
    for piece in wide.pieces(REPLAY_MS):
        rows = in_order([*kept, *changes(tiers, instrument, piece)])
        # Near the end a row may still have to go between: one without an event time is dated by our clock.
        done = len(rows) if piece.end_ms == wide.end_ms else _before(rows, piece.end_ms - SKEW_MS)
        kept = rows[done:]
        for row in rows[:done]:
            while lost and lost[0].stream_seq < row.stream_seq and lost[0].since_ms <= row.ts_ms + SKEW_MS:
                book.lose(lost.popleft())
            _step(book, row, facts)
    if book.exact and book.held is not None and span.end_ms - book.held.ts_ms <= MINUTE_MS:
        facts.live.append((book.held.ts_ms, span.end_ms))  # nothing has changed since
    facts.live = [
        (max(a, span.start_ms), min(b, span.end_ms))
        for a, b in _merged(facts.live)
        if b > span.start_ms and a < span.end_ms
    ]
    return facts


def _step(book: Rebuilt, row: Change, facts: BookFacts) -> None:
    live, since = book.exact, book.held
    verdict = book.take(row)
    if verdict == "broken":
        facts.breaks += 1
    if verdict != "taken":
        return
    assert book.held is not None
    if live and since is not None:
        facts.live.append((since.ts_ms, max(row.ts_ms, since.ts_ms)))
        if len(facts.live) > 1000:
            facts.live = _merged(facts.live)
    if row.checksum is not None:
        facts.checksums += 1
        facts.matching += book.book.checksum() == row.checksum


def _before(rows: Sequence[Change], ms: int) -> int:
    """How many rows come before the first one that the exchange dates there or later."""
    return next((n for n, row in enumerate(rows) if row.has_event_time and row.ts_ms >= ms), len(rows))


# -- what is shown ---------------------------------------------------------------------------------------------

_HEADS = ("exchange", "market", "symbol", "type", "events", "covered", "gaps", "missing", "dup", "late")
_BOOK_HEADS = ("book live", "breaks", "checksums")


def text(lines: Sequence[Quality], span: Span) -> str:
    """For people: a table, and the gaps below it."""
    rows: list[tuple[str, ...]] = [(*_HEADS, *_BOOK_HEADS), *(_row(line) for line in lines)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    shown_rows = ["  ".join(_aligned(cells, widths)).rstrip() for cells in rows]
    gaps = [
        f"{shown(start)}  {end - start:>9} ms  {cause:<10}  {line.name}"
        for line in lines
        for start, end, cause in line.holes
    ]
    head = f"{shown(span.start_ms)} to {shown(span.end_ms)} UTC"
    return "\n".join([head, "", *shown_rows, "", f"gaps: {len(gaps)}", *sorted(gaps)])


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [f"{x:<{w}}" if n < 4 else f"{x:>{w}}" for n, (x, w) in enumerate(zip(cells, widths, strict=True))]


def _row(line: Quality) -> tuple[str, ...]:
    book = line.book
    return (
        line.exchange,
        line.market_type,
        line.symbol,
        line.data_type,
        str(line.events),
        _percent(line.covered),
        str(len(line.holes)),
        str(line.missing),
        str(line.duplicates),
        "" if line.late is None else str(line.late),
        "" if book is None or line.live_ms is None else f"{line.live_ms / 1000:.1f} s",
        "" if book is None else str(book.breaks),
        "" if book is None or not book.checksums else f"{book.matching}/{book.checksums}",
    )


def _percent(share: float) -> str:
    """Never 100 % where something is missing."""
    return "100 %" if share == 1 else f"{min(share * 100, 99.999):.3f} %"


def told(lines: Sequence[Quality], span: Span) -> dict[str, Any]:
    """For JSON."""
    return {"from_ms": span.start_ms, "to_ms": span.end_ms, "data": [line.told() for line in lines]}


def timeline(lines: Sequence[Quality], span: Span) -> bytes:
    """As a picture, PNG."""
    lanes = [Lane(x.name, f"{_percent(x.covered)}  {x.events}", x.holes) for x in lines]
    return draw(f"{shown(span.start_ms)} to {shown(span.end_ms)} UTC", lanes, span.start_ms, span.end_ms)
