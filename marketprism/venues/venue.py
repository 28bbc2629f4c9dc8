"""The half of a venue that is the same for all exchanges: instruments, connections, REST answers, time."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import inf
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import msgspec

from marketprism.book import Book
from marketprism.events import (
    PLACE,
    Event,
    Gap,
    GapCause,
    LsrAllAccount,
    LsrTopAccount,
    LsrTopPosition,
    OrderBookDelta,
    Payload,
    Side,
    Trade,
    decode,
    pattern,
)
from marketprism.venues.audit import Auditor
from marketprism.venues.base import (
    EXCERPT_CHARS,
    MS,
    SECOND,
    Budget,
    Connection,
    Fetch,
    Instrument,
    Note,
    Options,
    Out,
    Poll,
    Socket,
    check_acks,
    check_alive,
    check_silent,
    elapsed,
    excerpt,
)
from marketprism.venues.sync import BookSync, Numbering, Update, order_book
from marketprism.venues.trades import TradeLog

# What a frame or body that is not as documented may raise.
MALFORMED = (
    msgspec.DecodeError,
    ValueError,
    ArithmeticError,
    KeyError,
    IndexError,
    TypeError,
    RecursionError,
)


class RefusedError(Exception):
    """An answer that is an error, though its HTTP status is 200."""


_INSTRUMENTS_RETRY_NS = 10 * SECOND
_TOO_MANY = (418, 429)
_REMEMBERED_MAX = 10_000
_HELD_MAX = 20_000  # trades that wait for holes to be filled, about 15 MB


NO_SPAN: tuple[str | None, str | None] = None, None  # a trade that sums up no others


class Market:
    """All that is held of one instrument."""

    __slots__ = (
        "aggregates",
        "book",
        "instrument",
        "mark_price",
        "trade_ids",
        "trade_pattern",
        "trade_subject",
        "trades",
    )

    def __init__(self, instrument: Instrument, trades: TradeLog) -> None:
        self.trades = trades
        self.book: BookSync | None = None
        self.mark_price: str | None = None
        self.aggregates: bool | None = None  # Binance: whether its trades are aggregates; None: not known yet
        self.describe(instrument)

    def describe(self, instrument: Instrument) -> None:
        """This is the instrument, as far as is known now."""
        self.instrument = self.trades.instrument = instrument
        self.trade_subject = instrument.subject("trade")
        self.trade_ids = instrument.event_id("trade", "")  # what all their ids begin with
        self.trade_pattern = pattern(
            Trade(
                exchange=instrument.exchange,
                market_type=instrument.market_type,
                symbol=instrument.symbol,
                instrument_id=instrument.id,
                ts_ms=PLACE,
                collected_ts_ms=PLACE,
                trade_id=PLACE,
                price=PLACE,
                quantity=PLACE,
                exchange_quantity=PLACE,
                quantity_unit=instrument.unit,
                side=PLACE,
                trade_ts_ms=PLACE,
                first_trade_id=PLACE,
                last_trade_id=PLACE,
                trade_seq=PLACE,
                normalized_symbol=instrument.symbol,
            )
        )
        if self.book is not None:
            self.book.describe(instrument)


class Venue(ABC):
    """One exchange, spoken. See `base` for how it is driven."""

    numbering: Numbering
    budgets: ClassVar[tuple[Budget, ...]]
    # How long a socket may be silent before it is asked whether it still lives.
    probe_after_ns = 20 * SECOND
    # Data types that come over a websocket without ids: what is lost with a connection can only be told by time.
    unnumbered: ClassVar[frozenset[str]] = frozenset({"liquidation"})
    # Pause between two messages of ours on one connection; exchanges count them.
    send_interval_s: ClassVar[float] = 0.25
    # Pause between two subscriptions of witnesses on one connection.
    witness_pause_ns: ClassVar[int] = 0

    def __init__(self, options: Options) -> None:
        self.options = options
        self._data_types = options.data_types
        self.ready = False  # instruments are known: connect
        self.instruments: dict[str, Instrument] = {}
        self.markets: dict[str, Market] = {}
        self.connections: dict[str, Connection] = {}
        self._newest_ts_ms: dict[tuple[str, str], int] = {}  # of polled types, by (data type, instrument)
        self.coming: set[str] = set()  # instruments that `change` has added and `admit` has not let in yet
        # When books and trades were looked at, when they will be again, and the books that are due before that. No
        # timer of theirs is shorter than from one look to the next, so one that is started in between can wait for it.
        self._looked_ns = self._look_ns = 0
        self._look_every_ns = min(SECOND, options.snapshot_interval_ms * MS)
        self._soon: list[tuple[int, BookSync]] = []
        self._asked_instruments_ns: int | None = None
        self._describing: frozenset[str] = frozenset()  # instruments whose descriptions are asked for
        self._down: dict[str, tuple[int, GapCause]] = {}  # socket → since when nothing was heard, and why
        self._vain: dict[str, int] = {}  # socket → how many connections in a row brought nothing
        self._request_id = 0
        self._remembered: dict[
            str, None
        ] = {}  # ids of events without a number that were published, oldest first
        self.auditor = Auditor(
            self._witness_fetch, self._witness_message, options.audit_interval_ms * MS, self.witness_pause_ns
        )
        for symbol in options.symbols or ():
            self.market(symbol)

    # -- what an exchange fills in -----------------------------------------------------------------------------

    @abstractmethod
    def sockets(self) -> list[Socket]:
        """The websockets to keep open."""

    @abstractmethod
    def polls(self) -> list[Poll]:
        """The REST calls to make again and again."""

    @abstractmethod
    def key_of(self, url: str) -> tuple[str, str] | None:
        """The `Fetch.key` that a recorded URL of this exchange answers, whatever its host and version."""

    @abstractmethod
    def _wanted(self) -> dict[str, list[str]]:
        """Channels by socket. A channel keeps its socket for as long as it is wanted."""

    @abstractmethod
    def _ask_instruments(self, instrument_ids: Sequence[str]) -> Iterable[Fetch]:
        """Ask for at least these descriptions."""

    @abstractmethod
    def _parse_instruments(self, body: bytes) -> Iterable[Instrument]: ...

    @abstractmethod
    def _guess(self, instrument_id: str) -> Instrument:
        """An instrument without a description, as far as its name is unambiguous."""

    @abstractmethod
    def _subscribe(self, connection: Connection, out: Out) -> None: ...

    @abstractmethod
    def _ask_for(self, connection: Connection, channels: Sequence[str], now_ns: int, out: Out) -> None:
        """Subscribe these channels, and note that they were asked for."""

    @abstractmethod
    def _unsubscribe(
        self, connection: Connection, channels: Sequence[str], now_ns: int, out: Out
    ) -> None: ...

    @abstractmethod
    def _frame(self, connection: Connection, data: bytes, now_ns: int, out: Out) -> None:
        """One frame. Raises one of MALFORMED on what is not as documented."""

    @abstractmethod
    def _probe(self) -> str:
        """A message that the exchange answers."""

    @abstractmethod
    def _resync(self, book: BookSync, now_ns: int, out: Out) -> bool:
        """Ask for a whole book. Returns whether an answer is certain, as it is to a `Fetch`."""

    @abstractmethod
    def _backfill(self, instrument: Instrument, first: int, last: int, out: Out) -> bool:
        """Ask for the trades `first` to `last`; False where the exchange does not offer it."""

    @abstractmethod
    def _witness_fetch(self, instrument_id: str) -> Fetch:
        """Asks REST for the best levels of a book, to check a live one; of kind "audit"."""

    @abstractmethod
    def _witness_message(self, instrument_id: str, on: bool) -> str:
        """Subscribes, or ends, the channels that tell the best levels by another way than the book's channel."""

    @abstractmethod
    def _handlers(self) -> dict[str, Callable[[Fetch, bytes, int, Out], None]]:
        """By kind of `Fetch`: what takes its body. A handler raises one of MALFORMED."""

    def _channels(self, connection: Connection) -> Iterable[str]:
        """The channels subscribed on this connection from which data must come within a minute."""
        return ()

    # -- how it is driven --------------------------------------------------------------------------------------

    def start(self, now_ns: int) -> Out:
        """The first requests. Connect once `ready`."""
        out: Out = []
        self._describe(now_ns, out)
        return out

    def opened(self, socket: str, conn: str, now_ns: int) -> Out:
        """A connection of the socket of this name is open."""
        out: Out = []
        connection = self.connections[conn] = Connection(conn, socket, now_ns)
        self._subscribe(connection, out)
        since = self._down.pop(socket, None)
        if since is not None:
            self._tell_unnumbered(socket, *since, now_ns, out)
        return out

    def receive(self, conn: str, data: bytes, now_ns: int) -> Out:
        """One frame, as the bytes of its text."""
        out: Out = []
        connection = self.connections.get(conn)
        if connection is None:
            return out  # of a connection already given up
        connection.heard_ns = now_ns
        try:
            self._frame(connection, data, now_ns, out)
        except MALFORMED as e:
            self._malformed("frame", data, e, out)
        return out

    def closed(self, conn: str, cause: str, now_ns: int) -> Out:
        """A connection is gone."""
        out: Out = []
        connection = self.connections.pop(conn, None)
        if connection is None:
            return out
        for market in self.markets.values():
            if market.book is not None:
                market.book.left(conn, now_ns, out)
        if not any(c.socket == connection.socket for c in self.connections.values()):
            # It may have been dead for a while.
            self._down[connection.socket] = connection.heard_ns, "disconnect"
            for market in self.markets.values():
                market.trades.disconnected()
        return out

    def response(self, fetch: Fetch, status: int, body: bytes, now_ns: int) -> Out:
        """The answer to a `Fetch`; status 0: there was none."""
        out: Out = []
        if fetch.kind == "audit":
            self.auditor.answered()
        if status != 200:
            self._refused(fetch, status, body, now_ns, out)
            return out
        try:
            self._handlers()[fetch.kind](fetch, body, now_ns, out)
        except RefusedError as e:
            self._refused(fetch, status, str(e).encode(), now_ns, out)
        except MALFORMED as e:
            self._malformed(f"answer to {fetch.path}", body, e, out)
            self._refused(fetch, 0, b"", now_ns, out)
        return out

    def tick(self, now_ns: int) -> Out:
        """Time has passed."""
        out: Out = []
        asked_ns, waiting = self._asked_instruments_ns, not self.ready or self._describing
        if waiting and asked_ns is not None and elapsed(now_ns, asked_ns, _INSTRUMENTS_RETRY_NS):
            self._describe(now_ns, out)
        check_alive(self.connections.values(), now_ns, self._probe, self.probe_after_ns, out)
        for connection in self.connections.values():
            missing = check_acks(connection, now_ns, out)
            if missing:
                self._ask_for(connection, missing, now_ns, out)
            check_silent(connection, self._channels, self._vain, now_ns, out)
        if not self._looked_ns <= now_ns < self._look_ns:
            self._look(now_ns, out)
        elif self._soon:
            self._look_at_some(now_ns, out)
        self.auditor.tick((m.book for m in self.markets.values() if m.book is not None), now_ns, out)
        return out

    def _look(self, now_ns: int, out: Out) -> None:
        """Do what is due of books and trades, and note when to look again: they may be many, and ticks are frequent."""
        self._looked_ns = now_ns
        self._look_ns = next_ns = now_ns + self._look_every_ns
        self._soon = []
        crowded = sum(len(m.trades.held) for m in self.markets.values()) > _HELD_MAX
        for market in self.markets.values():
            if market.trades.failed_ns is not None:
                self._look_ns = now_ns
            if market.trades.held_ns is not None or market.trades.failed_ns is not None:
                market.trades.tick(now_ns, out)
            if crowded:
                market.trades.let_go(now_ns, out)
            if market.book is not None:
                due_ns = market.book.tick(now_ns, out)
                if due_ns < next_ns:
                    self._soon.append((due_ns, market.book))

    def _look_at_some(self, now_ns: int, out: Out) -> None:
        """Do what is due of the books that cannot wait for the next look at all of them."""
        soon, self._soon = self._soon, []
        for at_ns, book in soon:
            due_ns = at_ns if at_ns > now_ns else book.tick(now_ns, out)
            if due_ns < self._look_ns:
                self._soon.append((due_ns, book))

    def finish(self, now_ns: int) -> Out:
        """The end: tell what is still missing."""
        out: Out = []
        for market in self.markets.values():
            market.trades.close(now_ns, out)
        return out

    def republish(self, instrument_ids: Iterable[str], now_ns: int) -> Out:
        """Publish these books whole."""
        out: Out = []
        for book in self._books(instrument_ids):
            book.republish(now_ns, out)
        return out

    # -- while it runs -----------------------------------------------------------------------------------------

    def change(self, options: Options, now_ns: int) -> Out:
        """Other symbols, intervals or liquidations from now on; what goes on being wanted is not touched.

        What is added waits: see `arrivals`.
        """
        out: Out = []
        before = self._wanted()
        wanted = dict.fromkeys(self._instrument_id(s) for s in options.symbols or ())
        self.options = options
        for instrument_id in [i for i in self.markets if i not in wanted]:
            self._leave(self.markets.pop(instrument_id), now_ns, out)
        self.coming = {i for i in wanted if i not in self.markets}
        self._follow(before, now_ns, out)
        if not self._describing:
            self._describe(now_ns, out)
        return out

    def arrivals(self) -> list[str]:
        """The instruments that were added and are described by now; `admit` them when the stream has been asked."""
        return sorted(i for i in self.coming if i in self.instruments) if self.ready else []

    def admit(self, instrument_ids: Iterable[str], payloads: Iterable[bytes], now_ns: int) -> Out:
        """Collect these instruments, too. `payloads`: what the stream held of `resume_subjects` of theirs."""
        out: Out = []
        before = self._wanted()
        arrived = [i for i in instrument_ids if i in self.coming and i in self.instruments]
        self.coming.difference_update(arrived)
        markets = [m for i in arrived if (m := self.market(i)) is not None]
        self._follow(before, now_ns, out)
        signs = self._take_up(markets, payloads)
        # Without a list of symbols the liquidations of all instruments came all the time.
        for socket in self.sockets() if self.options.liquidation_symbols else ():
            for market in markets:
                types = self._types_on(socket.name)
                newest_ms = max((signs.get((market.instrument.id, t), 0) for t in types), default=0)
                if newest_ms:
                    self._tell_unnumbered(socket.name, newest_ms * MS, "restart", now_ns, out, [market])
        return out

    def _follow(self, before: Mapping[str, list[str]], now_ns: int, out: Out) -> None:
        """Bring the open connections from what was wanted to what is wanted now."""
        after = self._wanted()
        for connection in self.connections.values():
            had, has = before.get(connection.socket, []), after.get(connection.socket, [])
            gone = [c for c in had if c not in has]
            added = [c for c in has if c not in had]
            if gone:
                connection.forget(gone)
                self._unsubscribe(connection, gone, now_ns, out)
            if added:
                connection.widened(now_ns)
                self._ask_for(connection, added, now_ns, out)

    def _leave(self, market: Market, now_ns: int, out: Out) -> None:
        """An instrument is no longer collected. What is missing of it until here is told."""
        market.trades.close(now_ns, out)
        if market.book is not None:
            market.book.abandon()

    def _describe(self, now_ns: int, out: Out) -> None:
        """Ask for the descriptions that are missing."""
        unknown = [i for i in (*self.markets, *sorted(self.coming)) if i not in self.instruments]
        self._describing = frozenset(unknown)
        self._asked_instruments_ns = now_ns
        if unknown or not self.ready:
            out += self._ask_instruments(unknown)

    @property
    def keeps_books(self) -> bool:
        """Whether books are kept from a websocket."""
        return self.options.wants("orderbook") and self.options.book_method == "websocket"

    @property
    def missing_channels(self) -> int:
        """How many channels are wanted and not subscribed, though they were asked for."""
        return sum(len(c.missing) for c in self.connections.values())

    # -- where an earlier run stopped --------------------------------------------------------------------------

    def resume_subjects(self, instrument_ids: Iterable[str] | None = None) -> list[str]:
        """The subjects whose last event `resume` wants to see, or `admit` of these instruments."""
        types = self.options.data_types - {"orderbook"}
        if self.keeps_books:
            types |= {"orderbook_delta"}
        return [i.subject(t) for i in self._described(instrument_ids) for t in sorted(types)]

    def _described(self, instrument_ids: Iterable[str] | None) -> list[Instrument]:
        """These instruments, or all that are collected."""
        if instrument_ids is None:
            return [m.instrument for m in self.markets.values()]
        return [self.describe(i) for i in instrument_ids]

    def resume(self, payloads: Iterable[bytes]) -> None:
        """The last events in the stream, by an earlier run or another collector; what was missed is told or fetched.

        Of a book a `restart` gap is told with its first snapshot in any case: see `BookSync.resume`.
        """
        newest_ms: dict[str, int] = {}
        for (_, kind), ms in self._take_up(list(self.markets.values()), payloads).items():
            newest_ms[kind] = max(newest_ms.get(kind, 0), ms)
        self._resume_unnumbered(newest_ms)

    def _take_up(self, markets: Iterable[Market], payloads: Iterable[bytes]) -> dict[tuple[str, str], int]:
        """Go on where the stream ends. Returns the newest times of receipt by (instrument, data type)."""
        for market in markets:
            if market.book is not None:
                market.book.resume()
        newest_ms: dict[tuple[str, str], int] = {}
        for payload in payloads:
            try:
                data = decode(payload)
                self._resume(data)
            except MALFORMED:
                continue  # of an earlier system, or of a stranger: nothing to go on
            kind = "orderbook" if isinstance(data, OrderBookDelta) else _data_type(data)
            key = data.instrument_id, kind
            newest_ms[key] = max(newest_ms.get(key, 0), data.collected_ts_ms)
        return newest_ms

    def _resume_unnumbered(self, newest_ms: Mapping[str, int]) -> None:
        """What has no numbers is missing since the last sign of life of what came over the same socket."""
        for socket in self.sockets():
            types = self._types_on(socket.name)
            signs_ms = [newest_ms[t] for t in types & newest_ms.keys()]
            if signs_ms and types & self.unnumbered:
                self._down[socket.name] = max(signs_ms) * MS, "restart"

    def _resume(self, data: Payload) -> None:
        market = self.markets.get(data.instrument_id)
        if isinstance(data, Trade) and market is not None:
            number = self._trade_number(data)
            if number is not None:
                market.trades.resume(number, data.trade_ts_ms)
        elif isinstance(data, OrderBookDelta) and market is not None and market.book is not None:
            market.book.resume(data.last_update_id, data.ts_ms)
        elif data.ts_ms is not None:
            self.is_new(_data_type(data), data.instrument_id, data.ts_ms)

    def _trade_number(self, trade: Trade) -> int | None:
        """The running number of a published trade."""
        return int(trade.trade_id) if trade.trade_id.isdecimal() else None

    # -- for the exchanges -------------------------------------------------------------------------------------

    def market(self, instrument_id: str) -> Market | None:
        """What is held of an instrument; None for one that is not collected."""
        market = self.markets.get(instrument_id)
        if market is None and self._collected(instrument_id) and instrument_id not in self.coming:
            instrument = self.instruments.get(instrument_id) or self._guess(instrument_id)
            market = self.markets[instrument_id] = Market(instrument, TradeLog(instrument, self._backfill))
            if self.keeps_books:
                market.book = BookSync(instrument, self.options, self.numbering, self._resync)
        return market

    def book(self, instrument_id: str, conn: str, now_ns: int) -> BookSync | None:
        """The book that an update on this connection is for."""
        market = self.markets.get(instrument_id) or self.market(instrument_id)
        book = None if market is None else market.book
        if book is not None and conn not in book.conns:
            book.joined(conn, now_ns)
        return book

    def describe(self, instrument_id: str) -> Instrument:
        """An instrument, collected or not."""
        return self.instruments.get(instrument_id) or self._guess(instrument_id)

    def connections_of(self, book: BookSync) -> Iterator[Connection]:
        """The connections that carry this book."""
        return (c for c in self.connections.values() if c.conn in book.conns)

    def next_id(self) -> int:
        """An id for a request of ours."""
        self._request_id += 1
        return self._request_id

    def is_new(self, data_type: str, instrument_id: str, ts_ms: int) -> bool:
        """Whether this polled figure is newer than the last one published."""
        key = data_type, instrument_id
        if ts_ms <= self._newest_ts_ms.get(key, -1):
            return False
        self._newest_ts_ms[key] = ts_ms
        return True

    def remember(self, identity: str) -> bool:
        """Whether this identity of something without a number is new."""
        if identity in self._remembered:
            return False
        self._remembered[identity] = None
        if len(self._remembered) > _REMEMBERED_MAX:
            del self._remembered[next(iter(self._remembered))]
        return True

    def take_instruments(self, fetch: Fetch, body: bytes, now_ns: int, out: Out) -> None:
        """The answer with instrument descriptions."""
        for instrument in self._parse_instruments(body):
            self.instruments[instrument.id] = instrument
            market = self.markets.get(instrument.id)
            if market is not None:
                market.describe(instrument)
        if (not self.ready or self._describing) and self._instruments_complete(fetch):
            self._begin(now_ns, out)

    def _begin(self, now_ns: int, out: Out) -> None:
        """All that was asked for is described, or does not exist: collect what there is."""
        asked = self._describing if self.ready else self._describing | self.markets.keys()
        self.ready = True
        if self.options.symbols is None:
            return  # whatever turns up, described or not
        for unknown in sorted(asked - self.instruments.keys()):
            text = f"{self.options.name} lists no instrument {unknown!r}: it is not collected"
            out.append(Note("error", "unknown_symbol", text, unknown))
            self.markets.pop(unknown, None)
            self.coming.discard(unknown)
        self._describe(now_ns, out)  # what has been added since

    def _instruments_complete(self, fetch: Fetch) -> bool:
        """Whether, with this answer, all instruments are known."""
        return True

    def _instruments_refused(  # noqa: B027 - nothing to do by default
        self, fetch: Fetch, now_ns: int, out: Out
    ) -> None:
        """The exchange will never answer this request for instruments. They are asked for again after a while."""

    def trade(
        self,
        market: Market,
        first: int,
        last: int,
        trade_id: str,
        price: str,
        quantity: str,
        side: Side,
        ts_ms: int,
        now_ns: int,
        out: Out,
        span: tuple[str | None, str | None] = NO_SPAN,
        seq: int | None = None,
    ) -> bool:
        """Publish a trade unless it has been; returns whether it is new. Raises ValueError on a figure that is none.

        `first` and `last`: running numbers of what it sums up. On the way of every trade, hence no keywords.
        """
        i = market.instrument
        base_quantity = quantity if i.unit == "base" else i.base_quantity(quantity, price)
        # Before the number counts as seen: a trade that cannot be read is a hole, not a repetition.
        if not (-inf < float(price) * float(quantity) < inf and trade_id.isprintable()):
            raise ValueError(f"trade {trade_id!r} of {quantity!r} at {price!r}")
        if not market.trades.accept(first, last, ts_ms, now_ns, out):
            return False
        if "trade" not in self._data_types:
            return True
        now_ms = now_ns // MS
        first_id, last_id = span
        payload = market.trade_pattern(
            ts_ms, now_ms, trade_id, price, base_quantity, quantity, side, ts_ms, first_id, last_id, seq
        )
        event = Event(market.trade_subject, market.trade_ids + trade_id, Trade, ts_ms, now_ms, payload)
        if market.trades.held_ns is not None:
            market.trades.hold(first, event)
        else:
            out.append(event)
        return True

    def publish(
        self,
        cls: type[Payload],
        i: Instrument,
        ts_ms: int | None,
        identity: object,
        now_ns: int,
        out: Out,
        **fields: Any,
    ) -> None:
        """Publish an event of the rarer types."""
        data_type = str(cls.__struct_config__.tag)
        event_id = i.event_id(data_type, identity)
        if not event_id.isprintable():
            raise ValueError(f"an id that is not printable: {event_id[:EXCERPT_CHARS]!r}")
        if data_type in self.unnumbered and not self.remember(event_id):
            return  # the other of two connections brought it
        data: Any = cls(
            exchange=i.exchange,
            market_type=i.market_type,
            symbol=i.symbol,
            instrument_id=i.id,
            ts_ms=ts_ms,
            collected_ts_ms=now_ns // MS,
            **fields,
        )
        out.append(Event.of(i.subject(data_type), event_id, data))

    def polled_book(self, market: Market, snap: Update, now_ns: int, out: Out) -> None:
        """`orderbook.method: snapshot`: publish what REST said. Raises ValueError on a book that cannot be."""
        book = Book()
        book.load(snap.bids, snap.asks)
        if book.crossed:
            raise ValueError(f"best bid at or above best ask: {book.best()}")
        top = book.top(self.options.snapshot_depth)
        out.append(order_book(market.instrument, *top, snap.last_id, snap.ts_ms, now_ns))

    # -- inside ------------------------------------------------------------------------------------------------

    def _instrument_id(self, symbol: str) -> str:
        """The exchange's name of what the configuration calls so."""
        return symbol

    def _collected(self, instrument_id: str) -> bool:
        symbols = self.options.symbols
        if symbols is not None:
            return instrument_id in symbols
        return instrument_id != "" and instrument_id.isprintable()

    def _books(self, instrument_ids: Iterable[str]) -> Iterator[BookSync]:
        for instrument_id in instrument_ids:
            market = self.markets.get(instrument_id)
            if market is not None and market.book is not None:
                yield market.book

    def _malformed(self, what: str, data: bytes, error: Exception, out: Out) -> None:
        start = data[:EXCERPT_CHARS].decode("utf-8", "replace")
        out.append(Note("warning", "malformed", f"{what} not as documented: {excerpt(error)}: {start!r}"))

    def _refused(self, fetch: Fetch, status: int, body: bytes, now_ns: int, out: Out) -> None:
        market = self.markets.get(fetch.instrument)
        final = 400 <= status < 500 and status not in _TOO_MANY
        if fetch.kind == "instruments" and final:
            self._instruments_refused(fetch, now_ns, out)
        elif fetch.kind == "depth" and market is not None and market.book is not None:
            market.book.failed(now_ns)
        elif fetch.kind == "trades" and market is not None:
            market.trades.failed(now_ns, out, final=final)
        if status:
            start = body[:EXCERPT_CHARS].decode("utf-8", "replace")
            out.append(
                Note("warning", "rest_error", f"{fetch.path}: HTTP {status} {start}", fetch.instrument)
            )

    def _tell_unnumbered(
        self,
        socket: str,
        since_ns: int,
        cause: GapCause,
        now_ns: int,
        out: Out,
        markets: Iterable[Market] | None = None,
    ) -> None:
        """What has no ids and came over this socket is missing for as long as it was away."""
        for data_type in sorted(self.unnumbered & self.options.data_types & self._types_on(socket)):
            for market in self.markets.values() if markets is None else markets:
                i = market.instrument
                fields = {
                    "affected_data_type": data_type,
                    "cause": cause,
                    "last_ts_ms_before": since_ns // MS,
                    "first_ts_ms_after": now_ns // MS,
                    "detail": "times by the collector's clock: the exchange numbers nothing here",
                }
                self.publish(Gap, i, now_ns // MS, f"{data_type}:{since_ns // MS}", now_ns, out, **fields)

    def _types_on(self, socket: str) -> frozenset[str]:
        """The data types that come over this socket."""
        return self.options.data_types


def recorded(url: str) -> tuple[str, dict[str, list[str]]]:
    """The last part of a recorded URL's path, and its query; of a text that is no URL, nothing."""
    try:
        parts = urlsplit(url)
        return parts.path.rsplit("/", 1)[-1], parse_qs(parts.query)
    except ValueError:  # of brackets without an address, say
        return "", {}


def _data_type(data: Payload) -> str:
    return str(type(data).__struct_config__.tag)


LSR: dict[str, type[Payload]] = {
    "lsr_top_position": LsrTopPosition,
    "lsr_top_account": LsrTopAccount,
    "lsr_all_account": LsrAllAccount,
}
