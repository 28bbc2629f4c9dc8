"""Binance spot and USD-M futures.

Sources: Binance spot-api-docs (web-socket-streams.md, rest-api.md), USD-M futures developer documentation
(websocket market streams, "Important WebSocket Change Notice" of 2026-03-06, "How to manage a local order book
correctly"), and recorded traffic where it contradicts them (noted at the place).
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TypeAlias
from urllib.parse import quote

import msgspec

from marketprism.events import FundingRate, Liquidation, MarketType, OpenInterest, Side
from marketprism.venues.audit import DEPTH, REST, level
from marketprism.venues.base import (
    Budget,
    Connection,
    Fetch,
    Instrument,
    Note,
    Options,
    Out,
    Poll,
    Reconnect,
    Routes,
    Send,
    Socket,
    chunks,
    place,
    plain,
)
from marketprism.venues.sync import BookSync, Numbering, Update, iso
from marketprism.venues.venue import LSR, NO_SPAN, Market, Venue, recorded

_STREAMS_PER_SOCKET = 200  # of 1,024 allowed: the older USD-M text says 200
_STREAMS_PER_MESSAGE = 100
_MICROSECONDS = 10**14  # a time above this is in µs (`timeUnit=MICROSECOND`): in ms it would be the year 5138


# -- messages --------------------------------------------------------------------------------------------------


class _Depth(Update, kw_only=True, gc=False):
    symbol: str = msgspec.field(name="s")
    ts_ms: int = msgspec.field(name="E")
    first_id: int = msgspec.field(name="U")
    last_id: int = msgspec.field(name="u")
    bids: msgspec.Raw = msgspec.field(name="b")
    asks: msgspec.Raw = msgspec.field(name="a")
    prev_id: int | None = msgspec.field(name="pu", default=None)


class _BookTicker(msgspec.Struct, gc=False):
    """The best bid and ask at once, at the id at which they changed."""

    symbol: str = msgspec.field(name="s")
    last_id: int = msgspec.field(name="u")
    bid: msgspec.Raw = msgspec.field(name="b")
    bid_quantity: msgspec.Raw = msgspec.field(name="B")
    ask: msgspec.Raw = msgspec.field(name="a")
    ask_quantity: msgspec.Raw = msgspec.field(name="A")


class _Trade(msgspec.Struct, gc=False):
    """`@trade` (t) and `@aggTrade` (a, f, l); buyer is maker: the taker sold."""

    symbol: str = msgspec.field(name="s")
    price: str = msgspec.field(name="p")
    quantity: str = msgspec.field(name="q")
    trade_ms: int = msgspec.field(name="T")
    buyer_is_maker: bool = msgspec.field(name="m")
    trade_id: int | None = msgspec.field(name="t", default=None)
    aggregate_id: int | None = msgspec.field(name="a", default=None)
    first_id: int | None = msgspec.field(name="f", default=None)
    last_id: int | None = msgspec.field(name="l", default=None)


class _MarkPrice(msgspec.Struct, gc=False):
    symbol: str = msgspec.field(name="s")
    event_ms: int = msgspec.field(name="E")
    mark_price: str = msgspec.field(name="p")
    index_price: str = msgspec.field(name="i", default="")
    rate: str = msgspec.field(name="r", default="")
    next_ms: int = msgspec.field(name="T", default=0)


class _ForcedOrder(msgspec.Struct, gc=False):
    symbol: str = msgspec.field(name="s")
    side: str = msgspec.field(name="S")
    quantity: str = msgspec.field(name="q")
    price: str = msgspec.field(name="p")
    average_price: str = msgspec.field(name="ap")
    status: str = msgspec.field(name="X")
    filled: str = msgspec.field(name="z")
    trade_ms: int = msgspec.field(name="T")


class _ForceOrder(msgspec.Struct, gc=False):
    order: _ForcedOrder = msgspec.field(name="o")


class _Header(msgspec.Struct, gc=False):
    """Whatever else: an ack, an error, a raw frame of `/ws`."""

    stream: str = ""
    event: str = msgspec.field(name="e", default="")
    id: int | str | None = None
    code: int | None = None
    msg: str = ""
    error: msgspec.Raw = msgspec.Raw()


class _RestDepth(msgspec.Struct, gc=False):
    last_id: int = msgspec.field(name="lastUpdateId")
    bids: msgspec.Raw
    asks: msgspec.Raw
    event_ms: int | None = msgspec.field(name="E", default=None)


class _RestTrade(msgspec.Struct, gc=False):
    id: int
    price: str
    quantity: str = msgspec.field(name="qty")
    trade_ms: int = msgspec.field(name="time")
    buyer_is_maker: bool = msgspec.field(name="isBuyerMaker")


class _RestAggregate(msgspec.Struct, gc=False):
    aggregate_id: int = msgspec.field(name="a")
    price: str = msgspec.field(name="p")
    quantity: str = msgspec.field(name="q")
    first_id: int = msgspec.field(name="f")
    last_id: int = msgspec.field(name="l")
    trade_ms: int = msgspec.field(name="T")
    buyer_is_maker: bool = msgspec.field(name="m")


class _SymbolInfo(msgspec.Struct, gc=False):
    symbol: str
    base: str = msgspec.field(name="baseAsset")
    quote: str = msgspec.field(name="quoteAsset")
    contract_type: str = msgspec.field(name="contractType", default="")


class _ExchangeInfo(msgspec.Struct, gc=False):
    symbols: list[_SymbolInfo]


class _Premium(msgspec.Struct, gc=False):
    symbol: str
    mark_price: str = msgspec.field(name="markPrice")
    index_price: str = msgspec.field(name="indexPrice")
    rate: str = msgspec.field(name="lastFundingRate")
    next_ms: int = msgspec.field(name="nextFundingTime")
    ts_ms: int = msgspec.field(name="time")


_Premiums: TypeAlias = _Premium | list[_Premium]  # of one symbol, or of all


class _FundingInfo(msgspec.Struct, gc=False):
    symbol: str
    hours: int = msgspec.field(name="fundingIntervalHours")


class _OpenInterest(msgspec.Struct, gc=False):
    symbol: str
    value: str = msgspec.field(name="openInterest")
    ts_ms: int = msgspec.field(name="time")


class _Ratio(msgspec.Struct, gc=False):
    symbol: str
    ratio: str = msgspec.field(name="longShortRatio")
    long: str = msgspec.field(name="longAccount")
    short: str = msgspec.field(name="shortAccount")
    ts_ms: int = msgspec.field(name="timestamp")


class _InEnvelope(msgspec.Struct, gc=False):
    data: _Depth


class _BookTickerEnvelope(msgspec.Struct, gc=False):
    data: _BookTicker


class _TradeEnvelope(msgspec.Struct, gc=False):
    data: _Trade


class _MarkEnvelope(msgspec.Struct, gc=False):
    data: _MarkPrice


class _ForceEnvelope(msgspec.Struct, gc=False):
    data: _ForceOrder


_decode_depth = msgspec.json.Decoder(_InEnvelope).decode
_decode_book_ticker = msgspec.json.Decoder(_BookTickerEnvelope).decode
_decode_trade = msgspec.json.Decoder(_TradeEnvelope).decode
_decode_mark = msgspec.json.Decoder(_MarkEnvelope).decode
_decode_force = msgspec.json.Decoder(_ForceEnvelope).decode
_decode_rows = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_header = msgspec.json.Decoder(_Header).decode


# -- the two markets -------------------------------------------------------------------------------------------


def _spot_follows(u: Update, last: int | None) -> bool:
    return last is not None and u.first_id == last + 1


def _spot_splices(u: Update, last: int) -> bool:
    # The documentation asks for `last` within [U, u]; of 20 recorded splices 19 have U == last + 1 and would fail.
    return u.first_id is not None and u.last_id is not None and u.first_id <= last + 1 <= u.last_id


def _usdm_follows(u: Update, last: int | None) -> bool:
    return u.prev_id is not None and u.prev_id == last


def _usdm_splices(u: Update, last: int) -> bool:
    # An update that ends at `last` is held by the snapshot; the one after it has pu == last.
    if u.first_id is None or u.last_id is None:
        return False
    return u.last_id > last and (u.first_id <= last or u.prev_id == last)


def _contained(u: Update, last: int) -> bool:
    return u.last_id is not None and u.last_id <= last


@dataclass(frozen=True, slots=True)
class _Kind:
    """How spot and USD-M differ."""

    numbering: Numbering
    api: str
    depth_limits: tuple[int, ...]
    depth_weights: tuple[int, ...]  # for each of depth_limits
    depth_path: str
    market_path: str
    trade_channel: str
    backfill_weight: int
    budgets: tuple[Budget, ...]
    send_interval_s: float


_KINDS: dict[MarketType, _Kind] = {
    "spot": _Kind(
        numbering=Numbering(_spot_follows, _spot_splices, _contained),
        api="/api/v3",
        depth_limits=(5, 10, 20, 50, 100, 500, 1000, 5000),
        depth_weights=(5, 5, 5, 5, 5, 25, 50, 250),
        depth_path="/stream",
        market_path="/stream",
        trade_channel="trade",
        backfill_weight=25,
        budgets=(Budget("ip", 4800, 60),),  # of 6,000 a minute
        send_interval_s=0.25,  # of 5 messages a second, pongs included
    ),
    "perpetual": _Kind(
        numbering=Numbering(_usdm_follows, _usdm_splices, _contained),
        api="/fapi/v1",
        depth_limits=(5, 10, 20, 50, 100, 500, 1000),
        depth_weights=(2, 2, 2, 2, 5, 10, 20),
        # Since 2026-04-23 a path decides what a connection can carry; on the wrong one a stream is acked and silent.
        depth_path="/public/stream",
        market_path="/market/stream",
        trade_channel="aggTrade",  # documented, unlike `trade`
        backfill_weight=20,
        budgets=(Budget("ip", 1900, 60), Budget("futures_data", 800, 300)),  # of 2,400 and 1,000
        send_interval_s=0.12,  # of 10 messages a second
    ),
}

_RATIOS = {
    "lsr_top_position": "topLongShortPositionRatio",
    "lsr_top_account": "topLongShortAccountRatio",
    "lsr_all_account": "globalLongShortAccountRatio",
}
_STATUS = {
    "FILLED": "filled",
    "PARTIALLY_FILLED": "partially_filled",
    "NEW": "pending",
    "CANCELED": "cancelled",
    "EXPIRED": "cancelled",
}
_TRADE_KINDS = ("trade", "aggTrade")
_TYPE_OF = {"@depth": "orderbook", "@trade": "trade", "@aggTrade": "trade", "forceOrder": "liquidation"}


class Binance(Venue):
    """Binance, one of its two markets."""

    probe_after_ns = 30 * 1_000_000_000

    def __init__(self, options: Options) -> None:
        self._kind = _KINDS[options.market_type]
        self.numbering = self._kind.numbering
        super().__init__(options)
        self._depth_limit = self._at_least(max(options.depth_limit, options.snapshot_depth))
        self._routes = Routes(lambda stream: self._route(stream.decode()))
        self._funding_hours: dict[str, int] | None = None
        self._places: dict[str, str] = {}  # stream → socket
        self._whole_list = False  # of instruments: one unknown symbol in a request for some spoils it

    @property
    def budgets(self) -> tuple[Budget, ...]:  # type: ignore[override]
        """The REST budgets of this market."""
        return self._kind.budgets

    @property
    def send_interval_s(self) -> float:  # type: ignore[override]
        """Pause between two messages of ours."""
        return self._kind.send_interval_s

    # -- websocket ---------------------------------------------------------------------------------------------

    def sockets(self) -> list[Socket]:
        """`/stream` on spot; `/public/stream` and `/market/stream` on USD-M."""
        url = self.options.ws_url.rstrip("/")
        return [Socket(name, url + path) for name, (path, _) in self._streams().items()]

    def _streams(self) -> dict[str, tuple[str, list[str]]]:
        """Socket name → (path, streams)."""
        kind = self._kind
        by_path: dict[str, list[str]] = {}
        if self.options.wants("orderbook") and self.options.book_method == "websocket":
            by_path.setdefault(kind.depth_path, []).extend(
                f"{s.lower()}@{self._depth_channel()}" for s in self.markets
            )
        if self.options.wants("trade"):
            trades = [f"{s.lower()}@{kind.trade_channel}" for s in self.markets]
            by_path.setdefault(kind.market_path, []).extend(trades)
        if self.options.wants("liquidation"):
            by_path.setdefault(kind.market_path, []).extend(self._liquidation_streams())
        sockets: dict[str, tuple[str, list[str]]] = {}
        for path, streams in by_path.items():
            name = path.strip("/").replace("/stream", "")
            self._places = place(streams, self._places, name, _STREAMS_PER_SOCKET)
            for stream in streams:
                sockets.setdefault(self._places[stream], (path, []))[1].append(stream)
        return sockets

    def _wanted(self) -> dict[str, list[str]]:
        return {socket: streams for socket, (_, streams) in self._streams().items()}

    def _depth_channel(self) -> str:
        """The diff stream at the wanted speed; 1 s is spot's default and has no suffix."""
        ms = self.options.update_frequency_ms
        return "depth" if self.options.market_type == "spot" and ms >= 1000 else f"depth@{ms}ms"

    def _liquidation_streams(self) -> Iterator[str]:
        wanted = self.options.liquidation_symbols
        if not wanted:
            yield "!forceOrder@arr"
        for symbol in wanted:
            if symbol in self.instruments:
                yield f"{symbol.lower()}@forceOrder"

    def _subscribe(self, connection: Connection, out: Out) -> None:
        streams = self._streams().get(connection.socket, ("", []))[1]
        self._ask_for(connection, streams, connection.opened_ns, out)

    def _ask_for(self, connection: Connection, channels: Sequence[str], now_ns: int, out: Out) -> None:
        for part in chunks(channels, _STREAMS_PER_MESSAGE):
            request_id = self.next_id()
            connection.ask(request_id, part, now_ns)
            out.append(Send(connection.conn, _request("SUBSCRIBE", request_id, list(part))))

    def _unsubscribe(self, connection: Connection, channels: Sequence[str], now_ns: int, out: Out) -> None:
        for part in chunks(channels, _STREAMS_PER_MESSAGE):
            out.append(Send(connection.conn, _request("UNSUBSCRIBE", self.next_id(), list(part))))

    def _types_on(self, socket: str) -> frozenset[str]:
        path, streams = self._streams().get(socket, ("", []))
        if not path:
            return self.options.data_types
        return frozenset(kind for word, kind in _TYPE_OF.items() if any(word in s for s in streams))

    def _join(self, connection: Connection, streams: Iterable[str], now_ns: int) -> None:
        for stream in streams:
            if "@depth" in stream:
                self.book(stream.split("@", 1)[0].upper(), connection.conn, now_ns)

    def _channels(self, connection: Connection) -> Iterable[str]:
        streams = self._streams().get(connection.socket, ("", []))[1]
        return (s for s in streams if "forceOrder" not in s)

    def _probe(self) -> str:
        return _request("LIST_SUBSCRIPTIONS", self.next_id())

    def _frame(self, connection: Connection, data: bytes, now_ns: int, out: Out) -> None:
        if data[:11] == b'{"stream":"':
            stream = data[11 : data.index(b'"', 11)]
            route = self._routes[stream]
            if route is not None:
                if stream not in connection.seen:
                    connection.saw(stream)
                route(connection, data, now_ns, out)
                return
            if b"serverShutdown" not in stream:
                return
        self._other(connection, data, now_ns, out)

    def _route(self, stream: str) -> Callable[[Connection, bytes, int, Out], None] | None:
        """What takes the frames of this stream."""
        channel = stream.split("@", 1)[1] if "@" in stream else ""
        if channel == "depth" or channel.startswith("depth@"):  # not depth5, depth10, depth20: partial books
            return self._on_depth
        if channel == "bookTicker":
            return self._on_book_ticker
        if channel in _TRADE_KINDS and self.options.wants("trade"):
            return self._on_trade
        if channel.startswith("markPrice") and self.options.wants("funding_rate"):
            return self._on_mark_price
        if "forceOrder" in stream and self.options.wants("liquidation"):
            return self._on_force_order
        return None

    def _other(self, connection: Connection, data: bytes, now_ns: int, out: Out) -> None:
        """An ack, an error, a notice, or a frame that is written in another way than Binance does on `/stream`."""
        header = _decode_header(data)
        if header.event == "serverShutdown" or header.stream == "!serverShutdown":
            out.append(Reconnect(connection.conn, "serverShutdown", overlap=True))
        elif header.stream or header.event in _RAW:
            route = self._route(header.stream or _RAW[header.event])
            if route is not None:
                # The raw path `/ws` has no envelope.
                route(connection, data if header.stream else b'{"data":' + data + b"}", now_ns, out)
        elif header.code is not None or header.error:
            text = header.msg or bytes(header.error).decode("utf-8", "replace")
            out.append(Note("error", "refused", f"{self.options.name}: code {header.code}: {text[:200]}"))
        elif header.id is not None:
            self._join(connection, connection.acknowledged(header.id), now_ns)

    def _on_depth(self, connection: Connection, data: bytes, now_ns: int, out: Out) -> None:
        m = _decode_depth(data).data
        book = self.book(m.symbol, connection.conn, now_ns)
        if book is not None:
            if m.ts_ms >= _MICROSECONDS:
                m.ts_ms = _ms(m.ts_ms)
            if m.prev_id is None:  # spot says nothing of the update before; its rule U == u + 1 does
                m.prev_id = m.first_id - 1
            book.receive(m, connection.conn, now_ns, out)

    def _on_book_ticker(self, _: Connection, data: bytes, now_ns: int, out: Out) -> None:
        if self.auditor.check is not None:
            m = _decode_book_ticker(data).data
            bids, asks = level(m.bid, m.bid_quantity), level(m.ask, m.ask_quantity)
            self.auditor.hear(m.symbol, "bookTicker", ("id", m.last_id), 1, bids, asks)

    def _on_trade(self, connection: Connection, data: bytes, now_ns: int, out: Out) -> None:
        m = _decode_trade(data).data
        market = self.markets.get(m.symbol) or self.market(m.symbol)
        if market is None:
            return
        # A recording may hold both kinds; they tell the same trades, under two numberings.
        number, aggregate = m.trade_id, False
        if number is None:
            number, aggregate = m.aggregate_id, True
        if market.aggregates is not aggregate:
            if market.aggregates is not None:
                return
            market.aggregates = aggregate
        if number is None:
            raise ValueError("trade without an id")
        self.trade(
            market,
            number,
            number,
            str(number),
            m.price,
            m.quantity,
            "sell" if m.buyer_is_maker else "buy",
            m.trade_ms if m.trade_ms < _MICROSECONDS else _ms(m.trade_ms),
            now_ns,
            out,
            _span(m.first_id, m.last_id) if aggregate else NO_SPAN,
        )

    def _on_mark_price(self, _: Connection, data: bytes, now_ns: int, out: Out) -> None:
        m = _decode_mark(data).data
        market = self.market(m.symbol)
        if market is None:
            return
        market.mark_price = m.mark_price
        if m.rate:  # "" for delivery symbols
            ts_ms = _ms(m.event_ms)
            self._funding(market, m.rate, m.mark_price, m.index_price, _ms(m.next_ms), ts_ms, now_ns, out)

    def _on_force_order(self, _: Connection, data: bytes, now_ns: int, out: Out) -> None:
        o = _decode_force(data).data.order
        side: Side = "buy" if o.side == "BUY" else "sell"
        ts_ms = _ms(o.trade_ms)
        self.publish(
            Liquidation,
            self.describe(o.symbol),
            ts_ms,
            f"{o.trade_ms}:{side}:{o.price}:{o.quantity}:{o.filled}",
            now_ns,
            out,
            liquidation_id=f"binance_{o.trade_ms}_{o.symbol}_{side}_{o.price}_{o.filled}",
            side=side,
            status=_STATUS.get(o.status, o.status.lower()),
            price=o.price,
            quantity=o.quantity,
            exchange_quantity=o.quantity,
            quantity_unit="base",
            filled_quantity=o.filled,
            notional_value=plain(Decimal(o.average_price) * Decimal(o.filled)),
            liquidation_time=iso(ts_ms),
            liquidation_ts_ms=ts_ms,
            aggregation_mode="filtered" if self.options.liquidation_symbols else "all-symbol",
            average_price=o.average_price,
        )

    # -- REST --------------------------------------------------------------------------------------------------

    def polls(self) -> list[Poll]:
        """What has no stream, or is wanted by polling."""
        o, api = self.options, self._kind.api
        polls = []
        for s in self.markets:
            q = quote(s)
            if o.wants("orderbook") and o.book_method == "snapshot":
                polls.append(
                    Poll.of(
                        self._depth_fetch(s, self._at_least(o.snapshot_depth)), o.snapshot_interval_ms / 1000
                    )
                )
            if o.wants("funding_rate"):
                fetch = Fetch("funding_rate", s, f"{api}/premiumIndex?symbol={q}")
                polls.append(Poll.of(fetch, o.intervals_s.get("funding_rate", 30)))
            if o.wants("open_interest"):
                fetch = Fetch("open_interest", s, f"{api}/openInterest?symbol={q}")
                polls.append(Poll.of(fetch, o.intervals_s.get("open_interest", 30)))
            for data_type in _RATIOS.keys() & o.data_types:
                path = (
                    f"/futures/data/{_RATIOS[data_type]}?symbol={q}&period={o.lsr_period}&limit={o.lsr_limit}"
                )
                fetch = Fetch(data_type, s, path, budget="futures_data")
                polls.append(Poll.of(fetch, o.intervals_s.get(data_type, 20)))
        if o.wants("funding_rate"):
            polls.append(
                Poll.of(Fetch("funding_info", "", f"{api}/fundingInfo", budget="futures_data"), 3600)
            )
        return polls

    def key_of(self, url: str) -> tuple[str, str] | None:
        """What a recorded URL answers."""
        endpoint, query = recorded(url)
        symbol = query.get("symbol", [""])[0]
        kind = _ENDPOINTS.get(endpoint)
        return (kind, "" if kind in ("instruments", "funding_info") else symbol) if kind else None

    def _ask_instruments(self, instrument_ids: Sequence[str]) -> Iterable[Fetch]:
        path = f"{self._kind.api}/exchangeInfo"
        if (
            self.options.market_type == "spot" and instrument_ids and not self._whole_list
        ):  # that is over 10 MB
            path += "?symbols=" + quote(json.dumps(list(instrument_ids), separators=(",", ":")))
        yield Fetch("instruments", "", path, weight=20)

    def _instruments_refused(self, fetch: Fetch, now_ns: int, out: Out) -> None:
        self._whole_list = True  # code -1121: one of the symbols is unknown, without saying which

    def _parse_instruments(self, body: bytes) -> Iterator[Instrument]:
        for s in msgspec.json.decode(body, type=_ExchangeInfo).symbols:
            if "_" in s.symbol and s.contract_type not in ("PERPETUAL", "TRADIFI_PERPETUAL", ""):
                yield self._guess(s.symbol)
            else:
                market_type = self.options.market_type
                yield Instrument(s.symbol, "binance", market_type, f"{s.base}-{s.quote}", unit="base")

    def _guess(self, instrument_id: str) -> Instrument:
        # Every quantity on spot and USD-M is in base coin: a contract is one base coin. BTCUSDT_260327 is dated.
        market_type: MarketType = self.options.market_type
        if market_type == "perpetual" and instrument_id[-6:].isdecimal() and instrument_id[-7:-6] == "_":
            market_type = "futures"
        return Instrument(instrument_id, "binance", market_type, instrument_id, unit="base")

    def _at_least(self, depth: int) -> int:
        limits = self._kind.depth_limits
        return next((n for n in limits if n >= depth), limits[-1])

    def _depth_fetch(self, symbol: str, limit: int) -> Fetch:
        kind = self._kind
        weight = kind.depth_weights[kind.depth_limits.index(limit)]
        return Fetch("depth", symbol, f"{kind.api}/depth?symbol={quote(symbol)}&limit={limit}", weight)

    def _resync(self, book: BookSync, now_ns: int, out: Out) -> bool:
        out.append(self._depth_fetch(book.instrument.id, self._depth_limit))
        return True

    def _backfill(self, instrument: Instrument, first: int, last: int, out: Out) -> bool:
        # By the numbering that the stream has; a recording may have the other one.
        market = self.markets.get(instrument.id)
        aggregate = market.aggregates if market is not None else None
        if aggregate is None:
            aggregate = self._kind.trade_channel == "aggTrade"
        path = "aggTrades" if aggregate else "historicalTrades"
        limit = min(1000, last - first + 1)
        path = f"{self._kind.api}/{path}?symbol={quote(instrument.id)}&fromId={first}&limit={limit}"
        out.append(Fetch("trades", instrument.id, path, self._kind.backfill_weight))
        return True

    def _witness_fetch(self, instrument_id: str) -> Fetch:
        return msgspec.structs.replace(self._depth_fetch(instrument_id, self._at_least(DEPTH)), kind="audit")

    def _witness_message(self, instrument_id: str, on: bool) -> str:
        # Equal to the book at every equal id of the recordings: 1,271 on spot, 589 on USD-M.
        stream = f"{instrument_id.lower()}@bookTicker"
        return _request("SUBSCRIBE" if on else "UNSUBSCRIBE", self.next_id(), [stream])

    def _handlers(self) -> dict[str, Callable[[Fetch, bytes, int, Out], None]]:
        return {
            "instruments": self.take_instruments,
            "audit": self._take_witness,
            "depth": self._take_depth,
            "trades": self._take_trades,
            "funding_rate": self._take_premium,
            "funding_info": self._take_funding_info,
            "open_interest": self._take_open_interest,
            **dict.fromkeys(_RATIOS, self._take_ratios),
        }

    def _take_depth(self, fetch: Fetch, body: bytes, now_ns: int, out: Out) -> None:
        m = msgspec.json.decode(body, type=_RestDepth)
        market = self.market(fetch.instrument)
        if market is None:
            return
        snap = Update(m.bids, m.asks, m.event_ms, m.last_id)
        if market.book is None:
            self.polled_book(market, snap, now_ns, out)
            return
        # As many levels as were asked for: the rest was cut off. (A recording may have asked for another number.)
        limit = recorded(fetch.path)[1].get("limit", ["0"])[0]
        limits = (min(int(limit), self._kind.depth_limits[-1]),) if limit != "0" else self._kind.depth_limits
        cut = [len(_decode_rows(side)) in limits for side in (m.bids, m.asks)]
        market.book.rest_snapshot(snap, cut_bids=cut[0], cut_asks=cut[1], now_ns=now_ns, out=out)

    def _take_witness(self, fetch: Fetch, body: bytes, now_ns: int, out: Out) -> None:
        m = msgspec.json.decode(body, type=_RestDepth)
        self.auditor.hear(fetch.instrument, REST, ("id", m.last_id), DEPTH, m.bids, m.asks)

    def _take_trades(self, fetch: Fetch, body: bytes, now_ns: int, out: Out) -> None:
        market = self.market(fetch.instrument)
        if market is None:
            return
        ids: list[int] = []
        aggregate = b'"a":' in body
        if market.aggregates not in (None, aggregate):
            raise ValueError("trades of another numbering than the stream's")
        if aggregate:
            for a in msgspec.json.decode(body, type=list[_RestAggregate]):
                n, side, span = a.aggregate_id, _taker(a.buyer_is_maker), _span(a.first_id, a.last_id)
                ids.append(n)
                self.trade(market, n, n, str(n), a.price, a.quantity, side, a.trade_ms, now_ns, out, span)
        else:
            for t in msgspec.json.decode(body, type=list[_RestTrade]):
                ids.append(t.id)
                side = _taker(t.buyer_is_maker)
                self.trade(market, t.id, t.id, str(t.id), t.price, t.quantity, side, t.trade_ms, now_ns, out)
        market.trades.answered((min(ids), max(ids)) if ids else None, now_ns, out)

    def _take_premium(self, fetch: Fetch, body: bytes, now_ns: int, out: Out) -> None:
        answer = msgspec.json.decode(body, type=_Premiums)
        for m in answer if isinstance(answer, list) else [answer]:
            market = self.market(m.symbol)
            if market is not None:
                market.mark_price = m.mark_price
                self._funding(market, m.rate, m.mark_price, m.index_price, m.next_ms, m.ts_ms, now_ns, out)

    def _funding(
        self,
        market: Market,
        rate: str,
        mark: str,
        index: str,
        next_ms: int,
        ts_ms: int,
        now_ns: int,
        out: Out,
    ) -> None:
        i = market.instrument
        if not rate or not self.is_new("funding_rate", i.id, ts_ms):
            return
        # fundingInfo lists only symbols whose interval is not 8 h.
        hours = None if self._funding_hours is None else self._funding_hours.get(i.id, 8)
        self.publish(
            FundingRate,
            i,
            ts_ms,
            ts_ms,
            now_ns,
            out,
            current_funding_rate=rate,
            estimated_funding_rate=None,
            funding_interval=f"{hours}h" if hours else None,
            mark_price=mark or None,
            index_price=index or None,
            premium_index=None,
            next_funding_ts_ms=next_ms or None,
        )

    def _take_funding_info(self, fetch: Fetch, body: bytes, now_ns: int, out: Out) -> None:
        self._funding_hours = {f.symbol: f.hours for f in msgspec.json.decode(body, type=list[_FundingInfo])}

    def _take_open_interest(self, fetch: Fetch, body: bytes, now_ns: int, out: Out) -> None:
        m = msgspec.json.decode(body, type=_OpenInterest)
        market = self.market(m.symbol)
        if market is None or not self.is_new("open_interest", m.symbol, m.ts_ms):
            return
        mark = market.mark_price
        self.publish(
            OpenInterest,
            market.instrument,
            m.ts_ms,
            m.ts_ms,
            now_ns,
            out,
            open_interest_value=m.value,
            open_interest_unit="base",
            open_interest_base=m.value,
            open_interest_usd=plain(Decimal(m.value) * Decimal(mark)) if mark else None,
            mark_price=mark,
        )

    def _take_ratios(self, fetch: Fetch, body: bytes, now_ns: int, out: Out) -> None:
        share = "position" if fetch.kind == "lsr_top_position" else "account"
        rows = msgspec.json.decode(body, type=list[_Ratio])
        period = self.options.lsr_period
        for row in sorted(rows, key=lambda r: r.ts_ms):
            market = self.market(row.symbol)
            if market is not None and self.is_new(fetch.kind, row.symbol, row.ts_ms):
                fields = {f"long_{share}_ratio": row.long, f"short_{share}_ratio": row.short}
                self.publish(
                    LSR[fetch.kind],
                    market.instrument,
                    row.ts_ms,
                    f"{row.ts_ms}:{period}",
                    now_ns,
                    out,
                    long_short_ratio=row.ratio,
                    period=period,
                    **fields,
                )


def _ms(time: int) -> int:
    return time if time < _MICROSECONDS else time // 1000


def _taker(buyer_is_maker: bool) -> Side:
    return "sell" if buyer_is_maker else "buy"


def _span(first_id: int | None, last_id: int | None) -> tuple[str | None, str | None]:
    """The trades that an aggregate sums up, as far as it says."""
    return NO_SPAN if first_id is None or last_id is None else (str(first_id), str(last_id))


def _request(method: str, request_id: int, params: list[str] | None = None) -> str:
    message = {"method": method, "id": request_id}
    return json.dumps({**message, "params": params} if params else message)


# What a frame without an envelope would be called with one.
_RAW = {
    "depthUpdate": "@depth",
    "trade": "@trade",
    "aggTrade": "@aggTrade",
    "markPriceUpdate": "@markPrice",
    "forceOrder": "@forceOrder",
}
_ENDPOINTS = {
    "depth": "depth",
    "exchangeInfo": "instruments",
    "trades": "trades",
    "historicalTrades": "trades",
    "aggTrades": "trades",
    "premiumIndex": "funding_rate",
    "fundingInfo": "funding_info",
    "openInterest": "open_interest",
    **{path: data_type for data_type, path in _RATIOS.items()},
}
