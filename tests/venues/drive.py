"""Drives a venue by plain function calls and judges each event as it is published.

The judge knows only payloads: chains must hold unless a gap was told, no book is ever crossed, no trade id comes
twice, no told gap covers a published trade, and everything can be written as JSON.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar

import msgspec

from chaos.consumer import ConsumerBook
from marketprism.events import Event, Gap, OrderBook, OrderBookDelta, Trade, encode
from marketprism.venues import VENUES
from marketprism.venues.base import MS, SECOND, Fetch, Note, Out, Reconnect, Send
from marketprism.worker.options import replay_options

T0_NS = 1_760_000_000 * SECOND
T = TypeVar("T")
Frame = dict[str, Any] | list[Any] | str | bytes


class Judge:
    """What must hold of everything that is published."""

    def __init__(self) -> None:
        self.books: dict[str, ConsumerBook] = defaultdict(ConsumerBook)
        self.windows: dict[str, tuple[str | None, str | None]] = {}
        self.trade_ids: dict[str, set[str]] = defaultdict(set)
        self.on_book: Callable[[OrderBookDelta, ConsumerBook], None] = lambda *_: None
        self.on_top: Callable[[OrderBook], None] = lambda _: None

    def take(self, event: Event) -> None:
        """Judge one event."""
        data = event.data
        assert event.payload == encode(data)  # and it is valid, and as the encoder writes it
        assert (event.kind, event.ts_ms, event.collected_ts_ms) == (
            type(data),
            data.ts_ms,
            data.collected_ts_ms,
        )
        assert " " not in event.subject
        assert event.subject.split(".", 1)[0] == type(data).__struct_config__.tag
        if isinstance(data, OrderBookDelta):
            self._delta(data)
        elif isinstance(data, OrderBook):
            self._top(data)
        elif isinstance(data, Trade):
            ids = self.trade_ids[data.instrument_id]
            identity = f"{data.trade_id}/{data.trade_seq}"
            assert identity not in ids, f"trade {identity} twice"
            ids.add(identity)
        elif isinstance(data, Gap) and data.affected_data_type == "orderbook_delta":
            self._gap(data)

    def _delta(self, data: OrderBookDelta) -> None:
        book = self.books[data.instrument_id]
        taken = book.take(msgspec.to_builtins(data))
        assert taken, "a delta before any snapshot"
        assert not book.broken, f"chain broken at {data.last_update_id}"
        assert not book.crossed
        if data.update_type == "snapshot":
            self.windows[data.instrument_id] = data.exact_from, data.exact_to
        self.on_book(data, book)

    def _gap(self, data: Gap) -> None:
        book = self.books[data.instrument_id]
        if data.cause != "restart" and book.begun and book.last_id is not None:
            assert data.last_id_before == str(book.last_id), "the gap begins after what was published last"
        book.gap()

    def _top(self, data: OrderBook) -> None:
        bids = [float(level.price) for level in data.bids]
        asks = [float(level.price) for level in data.asks]
        assert bids == sorted(bids, reverse=True)
        assert asks == sorted(asks)
        assert not (bids and asks and bids[0] >= asks[0])
        self.on_top(data)


class Drive:
    """A venue, and everything that came of it so far."""

    def __init__(
        self, exchange: str, *symbols: str, types: Iterable[str] | None = None, **options: Any
    ) -> None:
        base = replay_options(exchange, symbols or None)
        if types is not None:
            options["data_types"] = frozenset(types)
        self.venue = VENUES[exchange](replace(base, **options))
        self.now_ns = T0_NS
        self.judge = Judge()
        self.events: list[Event] = []
        self.sends: list[Send] = []
        self.fetches: list[Fetch] = []
        self.reconnects: list[Reconnect] = []
        self.notes: list[Note] = []
        for socket in self.venue.sockets():
            self.socket = socket.name
            break
        else:
            self.socket = "main"

    # -- what happens ------------------------------------------------------------------------------------------

    def take(self, out: Out) -> Out:
        """Sort what came out, and let the judge see it in order."""
        for item in out:
            if isinstance(item, Event):
                self.events.append(item)
                self.judge.take(item)
            elif isinstance(item, Send):
                self.sends.append(item)
            elif isinstance(item, Fetch):
                self.fetches.append(item)
            elif isinstance(item, Reconnect):
                self.reconnects.append(item)
            else:
                self.notes.append(item)
        return out

    def start(self) -> Out:
        return self.take(self.venue.start(self.now_ns))

    def finish(self) -> Out:
        return self.take(self.venue.finish(self.now_ns))

    def open(self, conn: str = "c1", socket: str | None = None) -> Out:
        return self.take(self.venue.opened(socket or self.socket, conn, self._later()))

    def close(self, conn: str = "c1") -> Out:
        return self.take(self.venue.closed(conn, "test", self._later()))

    def frame(self, message: Frame, conn: str = "c1") -> Out:
        return self.take(self.venue.receive(conn, raw(message), self._later()))

    def answer(self, kind: str, body: Frame, status: int = 200) -> Out:
        """Answer the oldest request of this kind."""
        fetch = next(f for f in self.fetches if f.kind == kind)
        self.fetches.remove(fetch)
        return self.respond(fetch, body, status)

    def respond(self, fetch: Fetch, body: Frame, status: int = 200) -> Out:
        return self.take(self.venue.response(fetch, status, raw(body), self._later()))

    def tick(self, seconds: float = 0.1) -> Out:
        self.now_ns += round(seconds * SECOND)
        return self.take(self.venue.tick(self.now_ns))

    def wait(self, seconds: float, step_s: float = 0.5) -> None:
        """Let time pass as a worker does."""
        for _ in range(round(seconds / step_s)):
            self.tick(step_s)

    def _later(self) -> int:
        self.now_ns += MS
        return self.now_ns

    # -- what came of it ---------------------------------------------------------------------------------------

    def of(self, kind: type[T]) -> list[T]:
        return [e.data for e in self.events if isinstance(e.data, kind)]

    def gaps(self, data_type: str = "orderbook_delta") -> list[Gap]:
        return [g for g in self.of(Gap) if g.affected_data_type == data_type]

    def live(self, instrument_id: str) -> bool:
        market = self.venue.markets[instrument_id]
        return market.book is not None and market.book.live

    def asked(self, kind: str) -> list[Fetch]:
        return [f for f in self.fetches if f.kind == kind]

    def sent(self) -> list[Any]:
        """The messages of ours so far, parsed, and forgotten."""
        sends, self.sends = self.sends, []
        return [json.loads(s.text) if s.text[0] == "{" else s.text for s in sends]

    @property
    def malformed(self) -> int:
        """How often something was told not to be as documented."""
        return sum(note.event == "malformed" for note in self.notes)

    @property
    def ms(self) -> int:
        return self.now_ns // MS


def raw(message: Frame) -> bytes:
    """A message as an exchange writes it: no spaces."""
    if isinstance(message, bytes):
        return message
    return (
        message.encode() if isinstance(message, str) else json.dumps(message, separators=(",", ":")).encode()
    )
