"""What is said of stored data, against data of which everything is known."""

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from captures import capture, of, replay
from hypothesis import given
from hypothesis import strategies as st
from samples import trade
from storedbook import BEGIN_MS, Market, Stored

from marketprism.events import Gap, OrderBook, OrderBookDelta
from marketprism.storage import quality
from marketprism.storage.asking import ReadingError
from marketprism.storage.quality import Quality, report
from marketprism.storage.reading import Span
from marketprism.storage.rebuild import Instrument, book_at
from marketprism.storage.timeline import BARS_PX, COLOURS, COVERED, HEAD_PX, INK, Canvas, Lane, draw

SPAN = Span(BEGIN_MS, BEGIN_MS + 600_000)  # two minutes of one hour, eight of the next


def common(data_type: str, at_ms: int, **changed: Any) -> Any:
    return trade(ts_ms=at_ms, collected_ts_ms=at_ms + 20, trade_ts_ms=at_ms, **changed)


def trades(*times_ms: int, first: int = 1, **changed: Any) -> list[tuple[int, str, Any]]:
    return [
        (n, f"trade:{n}", common("trade", ms, trade_id=str(n), **changed))
        for n, ms in enumerate(times_ms, first)
    ]


def every(step_ms: int, start_ms: int = SPAN.start_ms, end_ms: int = SPAN.end_ms) -> list[int]:
    return list(range(start_ms, end_ms, step_ms))


def told(data_type: str, since_ms: int, until_ms: int, cause: str, **changed: Any) -> Gap:
    fields = {
        "exchange": "binance",
        "market_type": "spot",
        "symbol": "BTC-USDT",
        "instrument_id": "BTCUSDT",
        "ts_ms": until_ms,
        "collected_ts_ms": until_ms,
        "affected_data_type": data_type,
        "cause": cause,
        "last_ts_ms_before": since_ms,
        "first_ts_ms_after": until_ms,
    }
    return Gap(**fields | changed)


def line(lines: list[Quality], data_type: str) -> Quality:
    (found,) = (x for x in lines if x.data_type == data_type)
    return found


def test_whole_data_is_said_to_be_whole(stored: Stored) -> None:
    stored.insert("trade", trades(*every(1000)))
    found = line(report(stored.tiers, SPAN), "trade")
    assert (found.events, found.duplicates, found.late, found.latest_ms, found.missing) == (600, 0, 0, 20, 0)
    assert (found.holes, found.covered, found.book) == ([], 1, None)


@pytest.mark.parametrize("moved", ["nothing", "dropped", "kept"])
def test_nothing_is_counted_twice_while_it_is_moved(stored: Stored, moved: str) -> None:
    """Also: what comes late into an hour that was moved."""
    stored.insert("trade", trades(*every(1000)))
    if moved != "nothing":
        stored.move("trades", BEGIN_MS, drop=moved == "dropped")
    stored.insert("trade", trades(BEGIN_MS + 500, BEGIN_MS + 1500, first=9000))
    found = line(report(stored.tiers, SPAN), "trade")
    assert (found.events, found.duplicates, found.holes) == (602, 0, [])


def test_an_event_under_two_times_is_a_duplicate_and_a_slow_one_is_late(stored: Stored) -> None:
    rows = trades(*every(1000))
    rows.append((900, "trade:1", rows[0][2].__class__(**_fields(rows[0][2]) | {"ts_ms": BEGIN_MS + 300})))
    rows.append((901, "slow", common("trade", BEGIN_MS + 700, trade_id="901")))
    rows[-1][2].collected_ts_ms += 12_000
    stored.insert("trade", rows)
    found = line(report(stored.tiers, SPAN), "trade")
    assert (found.events, found.duplicates, found.late, found.latest_ms) == (602, 1, 1, 12_020)


def _fields(payload: Any) -> dict[str, Any]:
    return {name: getattr(payload, name) for name in payload.__struct_fields__}


def test_holes_are_what_was_told_and_what_is_silent(stored: Stored) -> None:
    """A silence nobody told a gap of is one, too; of trades only if all of the market is silent."""
    begin = SPAN.start_ms
    stored.insert("trade", trades(*every(1000, begin, begin + 100_000), *every(1000, begin + 250_000)))
    stored.insert(
        "gap", [(5000, "gap:1", told("trade", begin + 30_000, begin + 40_000, "disconnect", missing=7))]
    )
    found = line(report(stored.tiers, SPAN), "trade")
    assert found.missing == 7
    assert found.holes == [
        (begin + 30_000, begin + 40_000, "disconnect"),
        (begin + 99_000, begin + 250_000, "silence"),
    ]
    assert found.covered == pytest.approx(1 - (10_000 + 151_000) / 600_000)
    market = Market(now_ms=begin)
    market.whole()
    for ms in every(1000):
        market.now_ms = ms
        market.change([["1", "1"]], [])
    market.store(stored)
    lines = report(stored.tiers, SPAN)
    assert [cause for *_, cause in line(lines, "trade").holes] == ["disconnect"]
    assert line(lines, "orderbook_delta").holes == []


def test_a_book_is_live_but_for_its_holes(stored: Stored) -> None:
    """Told ones with their cause, untold ones as breaks of the chain; and checksums are computed again."""
    market = Market(now_ms=SPAN.start_ms - 5_000)
    market.change([["10", "1"]], [["11", "1"]], publish=False)
    market.whole()
    for n in range(600):
        market.now_ms = SPAN.start_ms + n * 1000
        if n == 100:
            market.gap("disconnect")
        if n == 130:
            market.whole()
        if n == 400:
            market.change([["10", "400"]], [], publish=False)  # lost, and nobody told
        if n == 420:
            market.whole()
        checksum = None if n % 10 else 12345 if n == 50 else -1
        if not 100 <= n < 130:
            market.change([["10", str(n + 1)]], [], **({} if checksum is None else {"checksum": checksum}))
    for number, (seq, identity, payload) in enumerate(market.events):
        if isinstance(payload, OrderBookDelta) and payload.checksum == -1:
            payload.checksum = market.sums[identity]
            market.events[number] = seq, identity, payload
    market.store(stored)
    stored.move("orderbook_deltas", BEGIN_MS)
    found = line(report(stored.tiers, SPAN), "orderbook_delta")
    begin = SPAN.start_ms
    assert found.holes == [
        (begin + 99_000, begin + 130_000, "disconnect"),
        (begin + 399_000, begin + 420_000, "silence"),
    ]
    assert found.book is not None
    assert (found.book.breaks, found.live_ms) == (1, 600_000 - 31_000 - 21_000)
    assert (found.book.checksums, found.book.matching) == (55, 54)


def test_a_span_that_is_none_is_told(stored: Stored) -> None:
    with pytest.raises(ReadingError, match="--from before --to"):
        report(stored.tiers, Span(5, 5))
    assert report(stored.tiers, SPAN) == []


def test_the_table_says_it_and_json_too(stored: Stored) -> None:
    stored.insert("trade", trades(*every(1000)))
    stored.insert("gap", [(5000, "gap:1", told("trade", BEGIN_MS, BEGIN_MS + 5, "overflow", missing=2))])
    lines = report(stored.tiers, SPAN)
    shown = quality.text(lines, SPAN)
    assert "99.999 %" in shown
    assert "overflow" in shown
    (data,) = json.loads(json.dumps(quality.told(lines, SPAN)))["data"]
    assert data["gaps"] == [{"from_ms": BEGIN_MS, "to_ms": BEGIN_MS + 5, "cause": "overflow"}]
    assert (data["events"], data["duplicates"], data["missing"], data["book_live_ms"]) == (600, 0, 2, None)


@pytest.mark.parametrize(
    ("exchange", "name", "limit"),
    [("okx_derivatives", "okx.books.202205", 2000), ("binance_spot", "binance_spot.many.202104", 2000)],
)
def test_recorded_books_are_rebuilt_as_they_were_shown(
    stored: Stored, exchange: str, name: str, limit: int
) -> None:
    """Real traffic: each top that was published is that of the rebuilt book; each checksum is right."""
    events = replay(exchange, capture(f"{name}.jsonl.gz"))[:limit]
    for data_type, kind in (("orderbook", OrderBook), ("orderbook_delta", OrderBookDelta)):
        stored.insert(
            data_type, [(n, e.id, e.data) for n, e in enumerate(events, 1) if isinstance(e.data, kind)]
        )
    shown = [book for book in of(events, OrderBook) if book.ts_ms is not None]
    assert shown
    same = 0
    for book in shown[:: len(shown) // 40 + 1]:
        instrument = Instrument(book.exchange, book.market_type, book.symbol, book.instrument_id)
        rebuilt = book_at(stored.tiers, instrument, book.ts_ms or 0, depth=len(book.bids))
        if rebuilt.last_update_id == book.last_update_id:  # else more of the same millisecond followed
            same += 1
            assert rebuilt.bids == [[x.price, x.quantity] for x in book.bids]
            asks = [[x.price, x.quantity] for x in book.asks]
            assert rebuilt.asks[: len(asks)] == asks[: len(rebuilt.asks)]
    assert same > 3
    times = [data.ts_ms for data in of(events, OrderBookDelta) if data.ts_ms is not None]
    lines = [
        x for x in report(stored.tiers, Span(min(times), max(times) + 1)) if x.data_type == "orderbook_delta"
    ]
    books = [x.book for x in lines if x.book is not None]
    assert [(b.breaks, b.matching - b.checksums) for b in books] == [(0, 0)] * len(books)
    assert exchange != "okx_derivatives" or sum(b.checksums for b in books) > 100


# -- picture ---------------------------------------------------------------------------------------------------


def pixels(png: bytes) -> list[list[tuple[int, ...]]]:
    """Read by the book, with checks of all that is checked there."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, rest = {}, png[8:]
    while rest:
        (length,) = struct.unpack(">I", rest[:4])
        kind, data, crc = rest[4:8], rest[8 : 8 + length], rest[8 + length : 12 + length]
        assert struct.unpack(">I", crc) == (zlib.crc32(kind + data),)
        chunks[kind], rest = data, rest[12 + length :]
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    raw = zlib.decompress(chunks[b"IDAT"])
    stride = 1 + 3 * width
    assert len(raw) == stride * height
    rows = [raw[stride * y + 1 : stride * (y + 1)] for y in range(height)]
    return [[tuple(row[3 * x : 3 * x + 3]) for x in range(width)] for row in rows]


def test_the_picture_shows_each_hole_where_it_is() -> None:
    start, end = SPAN.start_ms, SPAN.end_ms
    holes = [(start, start + 60_000, "restart"), (start + 300_000, start + 300_001, "sequence")]
    image = pixels(draw("Title", [Lane("a", "", holes), Lane("b", "100 %", [])], start, end))
    left = len(image[0]) - BARS_PX - 24 - 6 * len("100 %")
    bar = image[HEAD_PX + 2][left : left + BARS_PX]
    assert bar[:90] == [COLOURS["restart"]] * 90
    assert [x for x, colour in enumerate(bar) if colour == COLOURS["sequence"]] == [450]
    assert set(bar[90:]) == {COVERED, COLOURS["sequence"]}
    assert set(image[HEAD_PX + 16 + 2][left : left + BARS_PX]) == {COVERED}


def test_letters_are_drawn() -> None:
    canvas = Canvas(6, 8)
    canvas.write(0, 0, "L")
    image = pixels(canvas.png())
    drawn = ["".join("#" if colour == INK else "." for colour in row) for row in image]
    assert drawn == ["#....."] * 6 + ["#####.", "......"]


@given(
    st.integers(-50, 50), st.integers(-50, 50), st.integers(0, 80), st.integers(0, 80), st.text(max_size=5)
)
def test_what_lies_outside_is_cut_off(x: int, y: int, width: int, height: int, text: str) -> None:
    canvas = Canvas(20, 10)
    canvas.fill(x, y, width, height, INK)
    canvas.write(x, y, text)
    assert len(pixels(canvas.png())) == 10


def test_the_picture_is_written(stored: Stored, tmp_path: Path) -> None:
    stored.insert("trade", trades(*every(1000)))
    image = pixels(quality.timeline(report(stored.tiers, SPAN), SPAN))
    assert len(image[0]) > BARS_PX
