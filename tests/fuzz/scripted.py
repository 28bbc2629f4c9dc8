"""A venue driven by bytes: what the four venue harnesses have in common.

An input is a script of lines. The first byte of the first line chooses options, the first byte of every other line
an operation; the rest is what the exchange says. So a corpus can be read and written by hand:

    0                        options, see `_EVERY` and the next
    o0                       connection 0 opens (0 to 2)
    0{"stream":"btcusdt@…    a frame on connection 0 (0 to 2)
    rd{"lastUpdateId":…      an answer to the oldest request of this kind, see `_KINDS`; to none, if none was made
    sd429                    the oldest request of this kind fails with this status
    +25                      so many tenths of a second pass; a negative number steps back
    p{"data_type":"trade"…   the stream holds this as a last message; only before anything else
    x0                       connection 0 closes

Any other line is a frame on connection 0.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import msgspec
from captures import FOLDER

from marketprism import capture
from marketprism.events import Event, Level, OrderBook, OrderBookDelta, Payload, decode, encode
from marketprism.venues import VENUES
from marketprism.venues.base import MS, SECOND, Fetch, Note, Out, Reconnect, Send
from marketprism.venues.venue import Venue
from marketprism.worker.options import replay_options
from marketprism.worker.outbox import Message
from marketprism.worker.publisher import Publisher, PublisherOptions

T0_NS = 1_760_000_000 * SECOND
NOTE_CHARS_MAX = 1_000
_OPS_MAX = 400
_TICK_MAX = 3_000  # tenths of a second
_KINDS = {
    "d": "depth",
    "t": "trades",
    "i": "instruments",
    "f": "funding_rate",
    "n": "funding_info",
    "o": "open_interest",
    "m": "mark_price",
    "k": "ticker",
    "v": "volatility_index",
    "l": "lsr_top_position",
    "a": "lsr_all_account",
}
LETTERS = {kind: letter for letter, kind in _KINDS.items()}
# By bits of the first byte: every instrument that turns up; books by polling; liquidations of one symbol only.
_EVERY, _POLLED, _FILTERED = 1, 2, 4
# What a venue skips by its first bytes may be anything behind them.
_ENVELOPES = (b'{"stream":"', b'{"arg":{', b'"channel":"')


class NaiveBook:
    """A book rebuilt from what is published: two dictionaries, sorted when asked. Prices are numbers to it, too."""

    def __init__(self) -> None:
        self.sides: tuple[dict[float, Any], dict[float, Any]] = {}, {}
        self.begun = False
        self.last_id: int | None = None

    def take(self, data: OrderBookDelta) -> None:
        if data.update_type == "snapshot":
            self.sides = {}, {}
            self.begun = True
        else:
            assert self.begun, "a delta before any snapshot"
            assert self._follows(data), f"{data.last_update_id} does not follow {self.last_id}"
        for side, levels in zip(self.sides, (data.bids, data.asks), strict=True):
            for level in levels:
                if float(level.quantity) == 0:
                    side.pop(float(level.price), None)
                else:
                    side[float(level.price)] = level
        self.last_id = data.last_update_id

    def _follows(self, data: OrderBookDelta) -> bool:
        first, prev, last = data.first_update_id, data.prev_update_id, data.last_update_id
        if prev == self.last_id or last is None or self.last_id is None:
            return prev == self.last_id
        return (first is not None and first <= self.last_id + 1 <= last) or (
            first is None and prev is not None and prev <= self.last_id < last
        )

    def levels(self) -> tuple[list[Any], list[Any]]:
        bids, asks = self.sides
        return [bids[p] for p in sorted(bids, reverse=True)], [asks[p] for p in sorted(asks)]


class Script:
    """One run of a venue, and what must hold of it."""

    def __init__(self, exchange: str, symbol: str, flags: int) -> None:
        options = replay_options(exchange, None if flags & _EVERY else (symbol,))
        options = replace(options, snapshot_depth=5, checkpoint_interval_ms=5_000, book_buffer=50)
        if flags & _POLLED:
            options = replace(options, book_method="snapshot")
        if flags & _FILTERED:
            options = replace(options, liquidation_symbols=(symbol,))
        self.venue: Venue = VENUES[exchange](options)
        self.symbol = symbol
        self.now_ns = T0_NS
        self.books: dict[str, NaiveBook] = defaultdict(NaiveBook)
        self.asked: list[Fetch] = []
        self.conns: dict[int, str] = {}
        self.serial = 0
        self.items = 0
        self.publisher = Publisher(
            PublisherOptions(("nats://127.0.0.1:4",), "fuzz", buffer_bytes=1 << 20), lambda _: None
        )

    def run(self, lines: Iterable[bytes]) -> None:
        self._take(self.venue.start(self.now_ns))
        said = 0
        for operations, line in enumerate(lines, 1):
            said += len(line)
            self._do(line)
            self._check()
            # A frame releases at most what was held, a tick a few things an instrument.
            assert self.items <= said + operations * (16 + 8 * len(self.venue.markets)), (
                "output without bound"
            )
        self._take(self.venue.finish(self.now_ns))

    # -- operations --------------------------------------------------------------------------------------------

    def _do(self, line: bytes) -> None:
        self.now_ns += MS
        operation, rest = line[:1], line[1:]
        if operation in (b"0", b"1", b"2"):
            self._frame(int(operation), rest)
        elif operation in (b"o", b"x") and rest in (b"0", b"1", b"2"):
            (self._open if operation == b"o" else self._close)(int(rest))
        elif operation in (b"r", b"s") and chr(rest[0] if rest else 0) in _KINDS:
            self._answer(operation, _KINDS[chr(rest[0])], rest[1:])
        elif operation == b"+":
            self.now_ns += max(-_TICK_MAX, min(_TICK_MAX, _whole(rest))) * 100 * MS
            self._take(self.venue.tick(self.now_ns))
        elif operation == b"p":
            self.venue.resume([rest])
        else:
            self._frame(0, line)

    def _frame(self, slot: int, data: bytes) -> None:
        out = self.venue.receive(self.conns.get(slot, "unknown"), data, self.now_ns)
        self._take(out)
        told = any(isinstance(item, Note) and item.event == "malformed" for item in out)
        if (
            slot in self.conns
            and data != b"pong"
            and not any(e in data for e in _ENVELOPES)
            and not _is_object(data)
        ):
            assert told, "malformed, and not told"

    def _open(self, slot: int) -> None:
        if slot in self.conns:
            return
        self.serial += 1
        self.conns[slot] = conn = f"c{self.serial}"
        sockets = self.venue.sockets()
        name = sockets[-1 if slot == 2 else 0].name if sockets else "main"
        self._take(self.venue.opened(name, conn, self.now_ns))

    def _close(self, slot: int) -> None:
        if slot in self.conns:
            self._take(self.venue.closed(self.conns.pop(slot), "test", self.now_ns))

    def _answer(self, operation: bytes, kind: str, body: bytes) -> None:
        if kind not in self.venue._handlers():
            return
        fetch = next((f for f in self.asked if f.kind == kind), None)
        if fetch is None:
            fetch = Fetch(kind, "BTC" if kind == "volatility_index" else self.symbol, "/x?limit=5")
        else:
            self.asked.remove(fetch)
        status = 200 if operation == b"r" else _whole(body) % 600
        self._take(self.venue.response(fetch, status, body, self.now_ns))

    # -- what must hold ----------------------------------------------------------------------------------------

    def _take(self, out: Out) -> None:
        self.items += len(out)
        for item in out:
            if isinstance(item, Event):
                self._event(item)
            elif isinstance(item, Note):
                assert len(item.text) <= NOTE_CHARS_MAX, "a log line without bound"
            elif isinstance(item, Fetch):
                self.asked = [*self.asked, item][-50:]
            elif isinstance(item, Send):
                assert len(item.text) < 1 << 16
            else:
                assert isinstance(item, Reconnect)
                assert len(item.cause) <= NOTE_CHARS_MAX, "a log line without bound"

    def _event(self, event: Event) -> None:
        payload = encode(event.data)
        data = decode(payload)  # as a consumer gets it
        assert encode(data) == payload, "it does not come back as it went out"
        # Raises for a subject or an id that NATS cannot carry; nothing is connected, so all of it waits.
        self.publisher.publish(Message(event.subject, event.id, payload, True, data.ts_ms, 0))
        if isinstance(data, OrderBookDelta):
            self.books[data.instrument_id].take(data)
        elif isinstance(data, OrderBook):
            prices = [float(x.price) for x in (*reversed(data.bids), *data.asks)]
            assert prices == sorted(set(prices)), "crossed, or out of order"
        self._bounded(data)

    def _bounded(self, data: Payload) -> None:
        detail = getattr(data, "detail", "")
        assert len(detail) <= NOTE_CHARS_MAX, "a gap's detail without bound"

    def _check(self) -> None:
        venue = self.venue
        for name, market in venue.markets.items():
            assert len(market.trades._holes) <= 1_000, "holes without bound"
            if market.book is None or not market.book.live:
                continue
            assert not market.book.book.crossed, "a live book is crossed"
            held = tuple(msgspec.json.decode(side, type=list[Level]) for side in market.book.book.all())
            assert held == self.books[name].levels(), "the book is not what was published"


def _whole(text: bytes) -> int:
    digits = text[:6].removeprefix(b"-")
    return int(text[:6]) if digits.isdigit() else 0


class _Object(msgspec.Struct):
    """Any JSON object; what it holds is passed over, as venues pass over what they do not know."""


def _is_object(data: bytes) -> bool:
    try:
        return bool(msgspec.json.decode(data, type=_Object))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def run(exchange: str, symbol: str, data: bytes) -> None:
    """Run one script."""
    first, *lines = data.split(b"\n")[: _OPS_MAX + 1]
    Script(exchange, symbol, first[0] if first else 0).run(lines)


def scripts(exchanges: Iterable[str], lines: int = 8, many: int = 60) -> Iterator[bytes]:
    """Scripts made of the recordings, where they are at hand."""
    for path in sorted(FOLDER.glob("*.jsonl.gz")):
        exchange = next(
            (e for e in exchanges if path.name.startswith((f"{e}.", f"{e.split('_')[0]}."))), None
        )
        if exchange is not None:
            yield from _scripts(path, VENUES[exchange](replay_options(exchange, None)), lines, many)


def _scripts(path: Any, venue: Venue, lines: int, many: int) -> Iterator[bytes]:
    script: list[bytes] = []
    for _, frame in capture.read(path):
        if isinstance(frame, capture.Damage) or frame.out or "\n" in frame.raw or len(frame.raw) > 20_000:
            continue
        if frame.via == "ws":
            script.append(b"0" + frame.raw.encode())
        elif (key := venue.key_of(frame.url)) is not None and key[0] in LETTERS:
            script.append(b"r" + LETTERS[key[0]].encode() + frame.raw.encode())
        if len(script) == lines:
            yield b"\n".join([b"1", b"o0", *script, b"+30"])
            script = []
            many -= 1
        if not many:
            return
