"""Deribit: JSON-RPC 2.0 over a websocket and REST.

Sources: docs.deribit.com (subscriptions, heartbeats, market data methods), observations of 2026-07 and 2026-09
published by others (acks, resubscription, floats with exponents), recorded traffic of 2020, 2021 and 2026.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import msgspec

from marketprism.events import (
    FundingRate,
    Liquidation,
    MarketType,
    OpenInterest,
    Side,
    Trade,
    VolatilityIndex,
)
from marketprism.venues.audit import DEPTH, REST, level
from marketprism.venues.base import (
    MS,
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
    plain,
    shown,
)
from marketprism.venues.sync import BookSync, Numbering, Update, iso
from marketprism.venues.venue import NO_SPAN, Market, Venue, recorded

_CHANNELS_PER_CALL = 200  # of about 500
_SOCKET = "main"
_HEARTBEAT_S = 10  # the least that is allowed
_EXPONENT_MAX = 40  # a figure with more digits than this is none
_LITERAL_MAX = 128
_CANDLES_MAX = 900  # of the 1,000 in one answer


# -- messages --------------------------------------------------------------------------------------------------


class _Book(msgspec.Struct, gc=False):
    instrument: str = msgspec.field(name="instrument_name")
    ts_ms: int = msgspec.field(name="timestamp")
    change_id: int
    bids: msgspec.Raw  # [new | change | delete, price, amount]
    asks: msgspec.Raw
    prev_id: int | None = msgspec.field(name="prev_change_id", default=None)  # a snapshot has none
    type: str = "snapshot"  # or "change"; not there in 2020


class _Trade(msgspec.Struct, gc=False):
    instrument: str = msgspec.field(name="instrument_name")
    seq: int = msgspec.field(name="trade_seq")
    trade_id: str
    ts_ms: int = msgspec.field(name="timestamp")
    price: msgspec.Raw  # a number
    amount: msgspec.Raw
    direction: Side  # of the taker
    liquidation: str = ""  # M, T, MT: which side was liquidated


class _Ticker(msgspec.Struct, gc=False):
    instrument: str = msgspec.field(name="instrument_name")
    ts_ms: int = msgspec.field(name="timestamp")
    open_interest: Decimal | None = None
    mark_price: Decimal | None = None
    index_price: Decimal | None = None
    current_funding: Decimal | None = None
    funding_8h: Decimal | None = None


class _Best(msgspec.Struct, gc=False):
    """The best bid and ask of a ticker; 0 and an amount of 0 where there is none."""

    instrument: str = msgspec.field(name="instrument_name")
    ts_ms: int = msgspec.field(name="timestamp")
    bid: msgspec.Raw = msgspec.field(name="best_bid_price")
    bid_amount: msgspec.Raw = msgspec.field(name="best_bid_amount")
    ask: msgspec.Raw = msgspec.field(name="best_ask_price")
    ask_amount: msgspec.Raw = msgspec.field(name="best_ask_amount")


class _Volatility(msgspec.Struct, gc=False):
    ts_ms: int = msgspec.field(name="timestamp")
    volatility: Decimal
    index: str = msgspec.field(name="index_name")


class _BookParams(msgspec.Struct, gc=False):
    data: _Book


class _BookFrame(msgspec.Struct, gc=False):
    params: _BookParams


class _TradesParams(msgspec.Struct, gc=False):
    data: list[_Trade]


class _TradesFrame(msgspec.Struct, gc=False):
    params: _TradesParams


class _TickerParams(msgspec.Struct, gc=False):
    data: _Ticker


class _TickerFrame(msgspec.Struct, gc=False):
    params: _TickerParams


class _BestParams(msgspec.Struct, gc=False):
    data: _Best


class _BestFrame(msgspec.Struct, gc=False):
    params: _BestParams


class _VolatilityParams(msgspec.Struct, gc=False):
    data: _Volatility


class _VolatilityFrame(msgspec.Struct, gc=False):
    params: _VolatilityParams


class _Error(msgspec.Struct, gc=False):
    code: int = 0
    message: str = ""


class _Params(msgspec.Struct, gc=False):
    type: str = ""
    channel: str = ""


class _Rpc(msgspec.Struct, gc=False):
    """An answer to a request of ours, or a heartbeat."""

    id: int | None = None
    method: str = ""
    result: Any = None
    error: _Error | None = None
    params: _Params | None = None


class _InstrumentRow(msgspec.Struct, gc=False):
    name: str = msgspec.field(name="instrument_name")
    kind: str
    base: str = msgspec.field(name="base_currency")
    quote: str = msgspec.field(name="quote_currency")
    period: str = msgspec.field(name="settlement_period", default="")


class _Instruments(msgspec.Struct, gc=False):
    result: list[_InstrumentRow]


class _TradesPage(msgspec.Struct, gc=False):
    trades: list[_Trade]


class _TradesAnswer(msgspec.Struct, gc=False):
    result: _TradesPage


class _TickerAnswer(msgspec.Struct, gc=False):
    result: _Ticker


class _Candles(msgspec.Struct, gc=False):
    data: list[tuple[Decimal, Decimal, Decimal, Decimal, Decimal]]  # ts_ms, open, high, low, close


class _CandlesAnswer(msgspec.Struct, gc=False):
    result: _Candles
    answered_us: int | None = msgspec.field(name="usOut", default=None)


class _OrderBook(msgspec.Struct, gc=False):
    ts_ms: int = msgspec.field(name="timestamp")
    change_id: int
    bids: msgspec.Raw  # [price, amount]
    asks: msgspec.Raw


class _OrderBookAnswer(msgspec.Struct, gc=False):
    result: _OrderBook


_decode_book = msgspec.json.Decoder(_BookFrame).decode
_decode_trades = msgspec.json.Decoder(_TradesFrame).decode
_decode_ticker = msgspec.json.Decoder(_TickerFrame).decode
_decode_best = msgspec.json.Decoder(_BestFrame).decode
_decode_volatility = msgspec.json.Decoder(_VolatilityFrame).decode
_decode_rpc = msgspec.json.Decoder(_Rpc).decode


def text(number: Decimal) -> str:
    """A JSON number as sent; one with an exponent as the same number would be sent without.

    Raises ValueError on a figure of absurd size.
    """
    literal = str(number)
    if "E" not in literal:
        return literal
    if abs(number.adjusted()) > _EXPONENT_MAX:
        raise ValueError(f"figure out of range: {literal}")
    literal = f"{number:f}"
    return literal if "." in literal else literal + ".0"


def _literal(number: msgspec.Raw) -> str:
    """What `text` gives, without the number in between. On the way of every trade, which refuses what is no number."""
    literal = bytes(number).decode()
    if len(literal) > _LITERAL_MAX:
        raise ValueError(f"figure of {len(literal)} characters")
    return literal if "e" not in literal and "E" not in literal else text(Decimal(literal))


def _follows(u: Update, last: int | None) -> bool:
    return u.prev_id is not None and u.prev_id == last


def _contained(u: Update, last: int) -> bool:
    return u.last_id is not None and u.last_id <= last


class Deribit(Venue):
    """Deribit's derivatives."""

    # One counter serves all instruments: ids grow, with steps of any size. There is no REST snapshot to splice.
    numbering = Numbering(_follows, lambda u, last: u.prev_id == last, _contained)
    # 500 credits a request, refilled at 10,000 a second; unauthenticated limits are not published: stay far below.
    budgets = (Budget("ip", 8, 1),)
    unnumbered = frozenset()  # liquidations come with the trades, which are numbered
    send_interval_s = 0.35  # a subscription costs 3,000 of a pool refilled by about 10,000 a second

    def __init__(self, options: Options) -> None:
        self._routes = Routes(lambda channel: self._route(channel.decode()))
        self._currencies_asked: set[str] = set()
        super().__init__(options)

    # -- websocket ---------------------------------------------------------------------------------------------

    def sockets(self) -> list[Socket]:
        """One, if anything is streamed."""
        return [Socket(name, self.options.ws_url) for name in self._wanted()]

    def _wanted(self) -> dict[str, list[str]]:
        channels = self._subscriptions()
        return {_SOCKET: channels} if channels else {}

    def _subscriptions(self) -> list[str]:
        o = self.options
        channels: list[str] = []
        for s in self.markets:
            if o.wants("orderbook") and o.book_method == "websocket":
                channels.append(f"book.{s}.100ms")
            if o.wants("trade") or o.wants("liquidation"):
                channels.append(f"trades.{s}.100ms")
        return channels

    def _subscribe(self, connection: Connection, out: Out) -> None:
        heartbeat = _call(self.next_id(), "public/set_heartbeat", {"interval": _HEARTBEAT_S})
        out.append(Send(connection.conn, heartbeat))
        self._ask_for(connection, self._subscriptions(), connection.opened_ns, out)

    def _ask_for(self, connection: Connection, channels: Sequence[str], now_ns: int, out: Out) -> None:
        leaving = {name for names in connection.unsubscribing.values() for name in names}
        connection.missing |= leaving.intersection(channels)  # asked for once they are gone, or after a while
        channels = [name for name in channels if name not in leaving]
        for part in chunks(channels, _CHANNELS_PER_CALL):
            request_id = self.next_id()
            connection.ask(request_id, part, now_ns)
            call = _call(request_id, "public/subscribe", {"channels": list(part)})
            out.append(Send(connection.conn, call))

    def _unsubscribe(self, connection: Connection, channels: Sequence[str], now_ns: int, out: Out) -> None:
        for part in chunks(channels, _CHANNELS_PER_CALL):
            request_id = self.next_id()
            connection.unsubscribing[request_id] = tuple(part)
            call = _call(request_id, "public/unsubscribe", {"channels": list(part)})
            out.append(Send(connection.conn, call))

    def _channels(self, connection: Connection) -> Iterable[str]:
        # A subscription to a book always brings a snapshot.
        return (c for c in self._subscriptions() if c.startswith("book."))

    def _probe(self) -> str:
        return _call(self.next_id(), "public/test", {})

    def _frame(self, connection: Connection, data: bytes, now_ns: int, out: Out) -> None:
        at = data.find(b'"channel":"')
        if at < 0:
            self._on_rpc(connection, data, now_ns, out)
        else:
            self._on_data(connection, data[at + 11 : data.index(b'"', at + 11)], data, now_ns, out)

    def _on_data(self, connection: Connection, channel: bytes, data: bytes, now_ns: int, out: Out) -> None:
        route = self._routes[channel]
        if route is not None:
            if channel not in connection.seen:
                connection.saw(channel)
            route(connection, data, now_ns, out)

    def _route(self, channel: str) -> Callable[[Connection, bytes, int, Out], None] | None:
        """What takes the frames of this channel."""
        o = self.options
        parts = channel.split(".")
        # book.<instrument>.<group>.<depth>.<interval> has five parts and no chain.
        if parts[0] == "book" and len(parts) == 3 and o.wants("orderbook"):
            return self._on_book
        if parts[0] == "trades" and (o.wants("trade") or o.wants("liquidation")):
            return self._on_trades
        if parts[0] == "ticker" and o.audit_interval_ms:  # a witness; the figures in it are polled
            return self._on_witness
        if parts[0] == "ticker" and (o.wants("open_interest") or o.wants("funding_rate")):
            return self._on_ticker
        if parts[0] == "deribit_volatility_index" and o.wants("volatility_index"):
            return self._on_volatility
        return None

    def _on_rpc(self, connection: Connection, data: bytes, now_ns: int, out: Out) -> None:
        m = _decode_rpc(data)
        params = m.params or _Params()
        if params.channel:  # data, but not written as Deribit does
            self._on_data(connection, params.channel.encode(), data, now_ns, out)
        elif m.method == "heartbeat":
            if params.type == "test_request":
                out.append(Send(connection.conn, _call(self.next_id(), "public/test", {})))
        elif m.error is not None:
            text = f"{self.options.name}: code {m.error.code}: {m.error.message[:200]}"
            out.append(Note("error", "refused", text))
            if m.error.code == 10028:  # too_many_requests: the session is closed
                out.append(Reconnect(connection.conn, "too_many_requests"))
        elif m.id is not None:
            self._on_result(connection, m.id, m.result, now_ns, out)

    def _on_result(self, connection: Connection, request_id: int, result: Any, now_ns: int, out: Out) -> None:
        gone = connection.unsubscribing.pop(request_id, ())
        # A live channel that is subscribed again is acknowledged but sends no new snapshot: hence this order.
        self._ask_for(connection, [c for c in gone if c.split(".")[1] in self.markets], now_ns, out)
        asked = connection.asked.get(request_id, ())
        if isinstance(result, list):
            given = connection.acknowledged(request_id, [name for name in result if isinstance(name, str)])
            self._diff(asked, given, out)
            for channel in given:
                if channel.startswith("book."):
                    self.book(channel.split(".")[1], connection.conn, now_ns)
        else:
            connection.acknowledged(request_id)

    def _diff(self, asked: Sequence[str], given: Sequence[str], out: Out) -> None:
        """Unknown and malformed channels are dropped without a word."""
        missing = sorted(set(asked) - set(given))
        if missing:
            out.append(
                Note("error", "not_subscribed", f"{len(missing)} channels not given: {shown(missing)}")
            )

    def _on_book(self, connection: Connection, data: bytes, now_ns: int, out: Out) -> None:
        m = _decode_book(data).params.data
        if m.prev_id is None and m.type != "snapshot":
            raise ValueError(f"{m.type} of a book without prev_change_id")
        book = self.book(m.instrument, connection.conn, now_ns)
        if book is None:
            return
        update = Update(m.bids, m.asks, m.ts_ms, m.change_id, None, m.prev_id)
        if m.prev_id is None:
            book.snapshot(update, connection.conn, now_ns, out)
        else:
            book.receive(update, connection.conn, now_ns, out)

    def _on_trades(self, connection: Connection, data: bytes, now_ns: int, out: Out) -> None:
        self._take_rows(_decode_trades(data).params.data, now_ns, out)

    def _take_rows(self, rows: list[_Trade], now_ns: int, out: Out) -> None:
        for row in sorted(rows, key=lambda r: r.seq) if len(rows) > 1 else rows:
            market = self.markets.get(row.instrument) or self.market(row.instrument)
            if market is None:
                continue
            new = self.trade(
                market,
                row.seq,
                row.seq,
                row.trade_id,
                _literal(row.price),
                _literal(row.amount),
                row.direction,
                row.ts_ms,
                now_ns,
                out,
                NO_SPAN,
                row.seq,
            )
            if new and row.liquidation and self._liquidation_wanted(row.instrument):
                self._publish_liquidation(market.instrument, row, now_ns, out)

    def _liquidation_wanted(self, instrument_id: str) -> bool:
        wanted = self.options.liquidation_symbols
        return self.options.wants("liquidation") and (
            not wanted or instrument_id in {_resolve(s) for s in wanted}
        )

    def _publish_liquidation(self, i: Instrument, row: _Trade, now_ns: int, out: Out) -> None:
        """The taker's order where the taker was liquidated, else the maker's, on the other side."""
        taker = "T" in row.liquidation
        side: Side = row.direction if taker else ("sell" if row.direction == "buy" else "buy")
        price, amount = _literal(row.price), _literal(row.amount)
        quantity = i.base_quantity(amount, price)
        notional = amount if i.unit == "quote" else None
        if i.unit == "base":
            notional = plain(Decimal(amount) * Decimal(price))
        self.publish(
            Liquidation,
            i,
            row.ts_ms,
            row.trade_id,
            now_ns,
            out,
            liquidation_id=f"deribit_{row.trade_id}",
            side=side,
            status="filled",
            price=price,
            quantity=quantity,
            exchange_quantity=amount,
            quantity_unit=i.unit,
            filled_quantity=quantity,
            notional_value=notional,
            liquidation_time=iso(row.ts_ms),
            liquidation_ts_ms=row.ts_ms,
            aggregation_mode="filtered",
        )

    def _on_ticker(self, connection: Connection, data: bytes, now_ns: int, out: Out) -> None:
        self._take_figures(_decode_ticker(data).params.data, now_ns, out)

    def _on_witness(self, connection: Connection, data: bytes, now_ns: int, out: Out) -> None:
        if self.auditor.check is not None:
            m = _decode_best(data).params.data
            bids, asks = level(m.bid, m.bid_amount), level(m.ask, m.ask_amount)
            self.auditor.hear(m.instrument, "ticker", ("ms", m.ts_ms), 1, bids, asks)

    def _on_volatility(self, connection: Connection, data: bytes, now_ns: int, out: Out) -> None:
        m = _decode_volatility(data).params.data
        currency = m.index.split("_", 1)[0].upper()  # btc_usd
        # Apart from the candles, which are told when they close, after the points within them.
        if self.is_new("volatility_point", currency, m.ts_ms):
            value = text(m.volatility)
            fields = {
                "currency": currency,
                "vol_index": value,
                "volatility_index": value,
                "data_source": "websocket",
            }
            self.publish(VolatilityIndex, _dvol(currency), m.ts_ms, m.ts_ms, now_ns, out, **fields)

    # -- REST --------------------------------------------------------------------------------------------------

    def polls(self) -> list[Poll]:
        """Tickers for funding and open interest, candles of the volatility index."""
        o = self.options
        polls: list[Poll] = []
        for s in self.markets:
            if o.wants("orderbook") and o.book_method == "snapshot":
                path = f"/api/v2/public/get_order_book?instrument_name={quote(s)}&depth={o.snapshot_depth}"
                polls.append(Poll.of(Fetch("depth", s, path), o.snapshot_interval_ms / 1000))
            if o.wants("funding_rate") or o.wants("open_interest"):
                interval_s = min(
                    o.intervals_s.get("funding_rate", 30), o.intervals_s.get("open_interest", 30)
                )
                fetch = Fetch("ticker", s, f"/api/v2/public/ticker?instrument_name={quote(s)}")
                polls.append(Poll.of(fetch, interval_s))
        if o.wants("volatility_index"):
            interval_s = o.intervals_s.get("volatility_index", 60)
            polls += [Poll(self._candles_of(c), interval_s) for c in sorted(self._currencies())]
        return polls

    def _currencies(self, instrument_ids: Iterable[str] | None = None) -> set[str]:
        """The base currencies of these instruments, or of what is collected."""
        return {_base_currency(i) for i in self._described(instrument_ids)}

    def _candles_of(self, currency: str) -> Callable[[int], Fetch]:
        resolution_s = self.options.volatility_resolution_s

        def fetch(now_ns: int) -> Fetch:
            now_ms = now_ns // MS
            since_ms = now_ms - max(3_600, 10 * resolution_s) * 1000
            known_ms = self._newest_ts_ms.get(("volatility_index", currency), since_ms)
            # Whatever was missed since, as far as one answer goes.
            since_ms = max(min(since_ms, known_ms), now_ms - _CANDLES_MAX * resolution_s * 1000)
            path = (
                f"/api/v2/public/get_volatility_index_data?currency={currency}"
                f"&start_timestamp={since_ms}&end_timestamp={now_ms}&resolution={resolution_s}"
            )
            return Fetch("volatility_index", currency, path)

        return fetch

    def key_of(self, url: str) -> tuple[str, str] | None:
        """What a recorded URL answers."""
        endpoint, query = recorded(url)
        kind = _ENDPOINTS.get(endpoint)
        if kind is None:
            return None
        name = "currency" if kind == "volatility_index" else "instrument_name"
        return kind, "" if kind == "instruments" else query.get(name, [""])[0]

    def market(self, instrument_id: str) -> Market | None:
        """A bare currency, as the earlier system's files have it, stands for its perpetual."""
        return super().market(_resolve(instrument_id))

    def _instrument_id(self, symbol: str) -> str:
        return _resolve(symbol)

    def _collected(self, instrument_id: str) -> bool:
        symbols = self.options.symbols
        if symbols is None:
            return super()._collected(instrument_id)
        return instrument_id in {_resolve(s) for s in symbols}

    def _ask_instruments(self, instrument_ids: Sequence[str]) -> Iterable[Fetch]:
        self._currencies_asked = {_listed_under(i) for i in instrument_ids}
        for currency in sorted(self._currencies_asked):
            path = f"/api/v2/public/get_instruments?currency={currency}&expired=false"
            yield Fetch("instruments", currency, path)

    def _instruments_complete(self, fetch: Fetch) -> bool:
        self._currencies_asked.discard(fetch.instrument)
        return not self._currencies_asked

    def _instruments_refused(self, fetch: Fetch, now_ns: int, out: Out) -> None:
        """A currency that Deribit does not know lists nothing."""
        if (not self.ready or self._describing) and self._instruments_complete(fetch):
            self._begin(now_ns, out)

    def _parse_instruments(self, body: bytes) -> Iterator[Instrument]:
        for row in msgspec.json.decode(body, type=_Instruments).result:
            market_type: MarketType = "options" if "option" in row.kind else "futures"
            if row.period == "perpetual":
                market_type = "perpetual"
            elif row.kind == "spot":
                market_type = "spot"
            symbol = f"{row.base}-{row.quote}" if market_type in ("perpetual", "spot") else row.name
            # An amount is in USD on inverse futures, in base coin on everything else: it is never in contracts.
            if "future" in row.kind and row.quote == "USD":
                yield Instrument(row.name, "deribit", market_type, symbol, "quote", Decimal(1), inverse=True)
            else:
                yield Instrument(row.name, "deribit", market_type, symbol, "base")

    def _guess(self, instrument_id: str) -> Instrument:
        # Names by docs.deribit.com: BTC-PERPETUAL, BTC_USDC-PERPETUAL, BTC-25MAR22, BTC-25MAR22-50000-C.
        market_type: MarketType = "futures"
        symbol = instrument_id
        if instrument_id.endswith("-PERPETUAL"):
            market_type = "perpetual"
            pair = instrument_id.removesuffix("-PERPETUAL")
            symbol = pair.replace("_", "-") if "_" in pair else f"{pair}-USD"
        elif instrument_id.endswith(("-C", "-P")):
            market_type = "options"
        return Instrument(instrument_id, "deribit", market_type, symbol)

    def _resync(self, book: BookSync, now_ns: int, out: Out) -> bool:
        """Unsubscribe, wait for the ack, subscribe: see `_on_result`."""
        for connection in self.connections_of(book):
            channel = self._book_channel(connection, book.instrument.id)
            self._unsubscribe(connection, [channel], now_ns, out)
        return False

    def _book_channel(self, connection: Connection, instrument_id: str) -> str:
        prefix = f"book.{instrument_id}."
        seen = (c.decode() for c in connection.seen if c.startswith(prefix.encode()))
        return min(seen, default=f"{prefix}100ms")

    def _backfill(self, instrument: Instrument, first: int, last: int, out: Out) -> bool:
        path = (
            f"/api/v2/public/get_last_trades_by_instrument?instrument_name={quote(instrument.id)}"
            f"&start_seq={first}&end_seq={last}&count=1000&sorting=asc"
        )
        out.append(Fetch("trades", instrument.id, path))
        return True

    def resume_subjects(self, instrument_ids: Iterable[str] | None = None) -> list[str]:
        """The subjects whose last event `resume` wants to see; DVOL belongs to a currency."""
        ids = None if instrument_ids is None else list(instrument_ids)
        subjects = [s for s in super().resume_subjects(ids) if not s.startswith("volatility_index.")]
        if self.options.wants("volatility_index"):
            subjects += [_dvol(c).subject("volatility_index") for c in sorted(self._currencies(ids))]
        return subjects

    def _trade_number(self, trade: Trade) -> int | None:
        return trade.trade_seq

    def _witness_fetch(self, instrument_id: str) -> Fetch:
        path = f"/api/v2/public/get_order_book?instrument_name={quote(instrument_id)}&depth={DEPTH}"
        return Fetch("audit", instrument_id, path)

    def _witness_message(self, instrument_id: str, on: bool) -> str:
        # A ticker has no id. At an equal time it is equal to the book: 39 of 39 in the recording of 2021.
        method = "public/subscribe" if on else "public/unsubscribe"
        return _call(self.next_id(), method, {"channels": [f"ticker.{instrument_id}.100ms"]})

    def _handlers(self) -> dict[str, Callable[[Fetch, bytes, int, Out], None]]:
        return {
            "instruments": self.take_instruments,
            "audit": self._take_witness,
            "depth": self._take_depth,
            "trades": self._take_trades,
            "ticker": self._take_ticker,
            "volatility_index": self._take_candles,
        }

    def _take_depth(self, fetch: Fetch, body: bytes, now_ns: int, out: Out) -> None:
        market = self.market(fetch.instrument)
        if market is None or market.book is not None:
            return
        m = msgspec.json.decode(body, type=_OrderBookAnswer).result
        self.polled_book(market, Update(m.bids, m.asks, m.ts_ms, m.change_id), now_ns, out)

    def _take_witness(self, fetch: Fetch, body: bytes, now_ns: int, out: Out) -> None:
        m = msgspec.json.decode(body, type=_OrderBookAnswer).result
        self.auditor.hear(fetch.instrument, REST, ("id", m.change_id), DEPTH, m.bids, m.asks)

    def _take_trades(self, fetch: Fetch, body: bytes, now_ns: int, out: Out) -> None:
        rows = msgspec.json.decode(body, type=_TradesAnswer).result.trades
        self._take_rows(rows, now_ns, out)
        market = self.market(fetch.instrument)
        if market is not None:
            seqs = [r.seq for r in rows]
            market.trades.answered((min(seqs), max(seqs)) if seqs else None, now_ns, out)

    def _take_ticker(self, fetch: Fetch, body: bytes, now_ns: int, out: Out) -> None:
        self._take_figures(msgspec.json.decode(body, type=_TickerAnswer).result, now_ns, out)

    def _take_figures(self, m: _Ticker, now_ns: int, out: Out) -> None:
        market = self.market(m.instrument)
        if market is None:
            return
        mark = text(m.mark_price) if m.mark_price is not None else None
        index = text(m.index_price) if m.index_price is not None else None
        if m.current_funding is not None and self._due("funding_rate", m):
            self._publish_funding(market.instrument, m, mark, index, now_ns, out)
        if m.open_interest is not None and self._due("open_interest", m):
            self._publish_interest(market.instrument, m, mark, index, now_ns, out)

    def _due(self, data_type: str, m: _Ticker) -> bool:
        return self.options.wants(data_type) and self.is_new(data_type, m.instrument, m.ts_ms)

    def _publish_funding(
        self, i: Instrument, m: _Ticker, mark: str | None, index: str | None, now_ns: int, out: Out
    ) -> None:
        self.publish(
            FundingRate,
            i,
            m.ts_ms,
            m.ts_ms,
            now_ns,
            out,
            current_funding_rate=text(m.current_funding or Decimal(0)),
            estimated_funding_rate=None,
            funding_interval="continuous",
            mark_price=mark,
            index_price=index,
            premium_index=None,
            next_funding_ts_ms=None,
        )

    def _publish_interest(
        self, i: Instrument, m: _Ticker, mark: str | None, index: str | None, now_ns: int, out: Out
    ) -> None:
        value = text(m.open_interest or Decimal(0))
        usd = None
        if i.unit == "quote":
            usd = value
        elif i.unit == "base" and m.index_price is not None:
            usd = plain(Decimal(value) * m.index_price)
        self.publish(
            OpenInterest,
            i,
            m.ts_ms,
            m.ts_ms,
            now_ns,
            out,
            open_interest_value=value,
            open_interest_unit=i.unit,
            open_interest_base=i.base_quantity(value, mark) if mark else None,
            open_interest_usd=usd,
            mark_price=mark,
            index_price=index,
        )

    def _take_candles(self, fetch: Fetch, body: bytes, now_ns: int, out: Out) -> None:
        """Closed candles only: the last one still changes."""
        m = msgspec.json.decode(body, type=_CandlesAnswer)
        resolution_s = self.options.volatility_resolution_s
        now_ms = m.answered_us // 1000 if m.answered_us else now_ns // MS
        currency = fetch.instrument
        for ts, opened, high, low, close in sorted(m.result.data):
            ts_ms = int(text(ts).removesuffix(".0"))
            if ts_ms + resolution_s * 1000 > now_ms or not self.is_new("volatility_index", currency, ts_ms):
                continue
            self.publish(
                VolatilityIndex,
                _dvol(currency),
                ts_ms,
                f"{ts_ms}:{resolution_s}",
                now_ns,
                out,
                currency=currency,
                vol_index=text(close),
                volatility_index=text(close),
                open=text(opened),
                high=text(high),
                low=text(low),
                resolution_s=resolution_s,
            )


def _call(request_id: int, method: str, params: dict[str, Any]) -> str:
    return json.dumps({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})


def _resolve(symbol: str) -> str:
    return f"{symbol}-PERPETUAL" if symbol.isalnum() else symbol


def _base_currency(i: Instrument) -> str:
    return i.id.split("-", 1)[0].split("_", 1)[0]


def _listed_under(symbol: str) -> str:
    """The currency under which get_instruments lists it: linear instruments under the one they settle in."""
    return symbol.split("-", 1)[0].rsplit("_", 1)[-1]


def _dvol(currency: str) -> Instrument:
    """DVOL belongs to a currency's options, not to an instrument."""
    return Instrument(currency, "deribit", "options", currency)


_ENDPOINTS = {
    "get_instruments": "instruments",
    "get_order_book": "depth",
    "get_last_trades_by_instrument": "trades",
    "get_last_trades_by_instrument_and_time": "trades",
    "ticker": "ticker",
    "get_volatility_index_data": "volatility_index",
}
