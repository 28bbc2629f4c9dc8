"""OKX v5: spot and derivatives speak the same protocol and differ by instrument.

Sources: OKX docs-v5 (order book channel, sequence ids, websocket limits), its changelog of 2026-02-12 and the notice
of 2026-05-21 (the checksum is fixed to 0), and recorded traffic of 2021, 2022 and 2026.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import TypeVar
from urllib.parse import quote

import msgspec

from marketprism.events import FundingRate, Liquidation, MarketType, OpenInterest, Side, Unit
from marketprism.venues.audit import DEPTH, REST
from marketprism.venues.base import (
    SECOND,
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
    elapsed,
    place,
    plain,
)
from marketprism.venues.sync import BookSync, Numbering, Update, iso
from marketprism.venues.venue import LSR, NO_SPAN, RefusedError, Venue, recorded

_BOOKS_PER_SOCKET = 25  # fewer than 30 deep books on a connection are recommended
_SOCKET = "public"
_LEVELS = 400  # of the `books` channel
_HISTORY_PAGE = 100
_WITNESSES = {"books5": 5, "bbo-tbt": 1}  # channel → levels a side, whole each time
_SILENT_BOOK_NS = 180 * SECOND  # a book without a change says so about once a minute


# -- messages --------------------------------------------------------------------------------------------------


class _Arg(msgspec.Struct, gc=False):
    channel: str
    inst_id: str = msgspec.field(name="instId", default="")
    inst_type: str = msgspec.field(name="instType", default="")


class _BookRow(Update, kw_only=True, gc=False):
    bids: msgspec.Raw  # [price, size, deprecated, orders]: what follows the size is left out
    asks: msgspec.Raw
    ts_ms: int = msgspec.field(name="ts")  # in quotes
    last_id: int | None = msgspec.field(name="seqId", default=None)
    prev_id: int | None = msgspec.field(name="prevSeqId", default=None)


class _BookFrame(msgspec.Struct, gc=False):
    data: list[_BookRow]
    action: str = ""


class _TradeRow(msgspec.Struct, gc=False):
    inst_id: str = msgspec.field(name="instId")
    trade_id: str = msgspec.field(name="tradeId")
    price: str = msgspec.field(name="px")
    size: str = msgspec.field(name="sz")
    side: Side
    ts: str
    count: str = "1"  # executions summed up; trade_id is the last of them


class _TradeFrame(msgspec.Struct, gc=False):
    data: list[_TradeRow]


class _FundingRow(msgspec.Struct, gc=False):
    inst_id: str = msgspec.field(name="instId")
    rate: str = msgspec.field(name="fundingRate", default="")
    next_rate: str = msgspec.field(name="nextFundingRate", default="")
    time_ms: str = msgspec.field(name="fundingTime", default="")
    next_ms: str = msgspec.field(name="nextFundingTime", default="")
    premium: str = ""
    ts: str = ""


class _InterestRow(msgspec.Struct, gc=False):
    inst_id: str = msgspec.field(name="instId")
    contracts: str = msgspec.field(name="oi")
    coins: str = msgspec.field(name="oiCcy", default="")
    usd: str = msgspec.field(name="oiUsd", default="")
    ts: str = ""


class _MarkRow(msgspec.Struct, gc=False):
    inst_id: str = msgspec.field(name="instId")
    price: str = msgspec.field(name="markPx")


class _LiquidationDetail(msgspec.Struct, gc=False, frozen=True):
    side: Side
    price: str = msgspec.field(name="bkPx")
    size: str = msgspec.field(name="sz")
    ts: str
    position: str = msgspec.field(name="posSide", default="")


class _LiquidationRow(msgspec.Struct, gc=False):
    inst_id: str = msgspec.field(name="instId")
    details: list[_LiquidationDetail]


class _LiquidationFrame(msgspec.Struct, gc=False):
    data: list[_LiquidationRow]


class _InstrumentRow(msgspec.Struct, gc=False):
    inst_id: str = msgspec.field(name="instId")
    inst_type: str = msgspec.field(name="instType")
    base: str = msgspec.field(name="baseCcy", default="")
    quote: str = msgspec.field(name="quoteCcy", default="")
    underlying: str = msgspec.field(name="uly", default="")
    value: str = msgspec.field(name="ctVal", default="")
    value_ccy: str = msgspec.field(name="ctValCcy", default="")
    multiplier: str = msgspec.field(name="ctMult", default="")
    contract_type: str = msgspec.field(name="ctType", default="")  # linear, inverse; none on options


class _Event(msgspec.Struct, gc=False):
    """An ack, an error, a notice."""

    event: str = ""
    arg: _Arg | None = None
    code: str = ""
    msg: str = ""


class _Answer(msgspec.Struct, gc=False):
    """The envelope of every REST answer; HTTP 200 with a code other than "0" is an error."""

    code: str
    data: msgspec.Raw
    msg: str = ""


_decode_event = msgspec.json.Decoder(_Event).decode
_decode_books = msgspec.json.Decoder(_BookFrame, strict=False).decode
_decode_trades = msgspec.json.Decoder(_TradeFrame).decode
_decode_liquidations = msgspec.json.Decoder(_LiquidationFrame).decode


class _FundingFrame(msgspec.Struct, gc=False):
    data: list[_FundingRow]


class _InterestFrame(msgspec.Struct, gc=False):
    data: list[_InterestRow]


def _follows(u: Update, last: int | None) -> bool:
    return u.prev_id == last


def _splices(u: Update, last: int) -> bool:
    # The REST-seeded way of the changelog of 2026-02-12.
    return u.prev_id is not None and u.last_id is not None and u.prev_id <= last < u.last_id


def _contained(u: Update, last: int) -> bool:
    return u.last_id is not None and u.last_id <= last


_MARKET_TYPES: dict[str, MarketType] = {
    "SPOT": "spot",
    "MARGIN": "spot",
    "SWAP": "perpetual",
    "FUTURES": "futures",
    "OPTION": "options",
}
_INSTRUMENT_TYPES: dict[MarketType, str] = {"spot": "SPOT", "perpetual": "SWAP"}
_RUBIK = "/api/v5/rubik/stat/contracts/"
_RATIOS = {
    "lsr_top_position": "long-short-position-ratio-contract-top-trader",
    "lsr_top_account": "long-short-account-ratio-contract-top-trader",
    "lsr_all_account": "long-short-account-ratio-contract",
}


class Okx(Venue):
    """OKX, one of the two workers that share its protocol."""

    numbering = Numbering(_follows, _splices, _contained, monotone=False)
    # A check takes two of the 480 operations that a connection has in an hour: so it takes a quarter of them.
    witness_pause_ns = 60 * SECOND
    # A quarter below what is allowed, per endpoint and IP.
    budgets = (
        Budget("books", 30, 2),
        Budget("history", 15, 2),
        Budget("public", 8, 2),
        Budget("rubik", 4, 2),
    )

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._routes = Routes(self._route)
        # A recording may hold several channels of the same thing: the first one of each instrument counts.
        self._book_channel: dict[str, str] = {}
        self._trade_channel: dict[str, str] = {}
        self._places: dict[str, str] = {}  # instrument → socket
        self._unseeded: set[str] = set()  # instruments whose REST book carries no sequence id

    # -- websocket ---------------------------------------------------------------------------------------------

    def sockets(self) -> list[Socket]:
        """One socket for every 25 instruments."""
        return [Socket(name, self.options.ws_url) for name in self._args()]

    def _args(self) -> dict[str, list[_Arg]]:
        """Socket name → what to subscribe there."""
        o = self.options
        sockets: dict[str, list[_Arg]] = {}
        self._places = place(self.markets, self._places, _SOCKET, _BOOKS_PER_SOCKET)
        channels = ["books"] if self.keeps_books else []
        channels += ["trades"] if o.wants("trade") else []
        for channel in channels:
            for s in self.markets:
                sockets.setdefault(self._places[s], []).append(_Arg(channel, s))
        if o.wants("liquidation") and (self.markets or self.coming):
            sockets.setdefault(_SOCKET, []).append(_Arg("liquidation-orders", inst_type="SWAP"))
        return sockets

    def _wanted(self) -> dict[str, list[str]]:
        return {socket: [_name(arg) for arg in args] for socket, args in self._args().items()}

    def _subscribe(self, connection: Connection, out: Out) -> None:
        args = self._args().get(connection.socket, [])
        self._ask_for(connection, [_name(arg) for arg in args], connection.opened_ns, out)

    def _ask_for(self, connection: Connection, channels: Sequence[str], now_ns: int, out: Out) -> None:
        args = [arg for arg in self._args().get(connection.socket, []) if _name(arg) in channels]
        if args:
            out.append(Send(connection.conn, _operation("subscribe", args)))
        for arg in args:
            connection.ask(_name(arg), [_name(arg)], now_ns)

    def _follow(self, before: Mapping[str, list[str]], now_ns: int, out: Out) -> None:
        self._routes.clear()  # some lead nowhere, for an instrument that is collected now
        super()._follow(before, now_ns, out)

    def _unsubscribe(self, connection: Connection, channels: Sequence[str], now_ns: int, out: Out) -> None:
        # One operation of the 480 an hour, however many channels.
        args = [_Arg(channel, name) for channel, _, name in (c.partition(":") for c in channels)]
        out.append(Send(connection.conn, _operation("unsubscribe", args)))

    def _channels(self, connection: Connection) -> Iterable[str]:
        # A book without a change says so about once a minute; trades and liquidations may rightly be silent.
        return (_name(a) for a in self._args().get(connection.socket, []) if a.channel == "books")

    def _types_on(self, socket: str) -> frozenset[str]:
        args = self._args().get(socket)
        if args is None:
            return self.options.data_types
        return frozenset(_KIND_OF.get(a.channel, "orderbook") for a in args)

    def _probe(self) -> str:
        return "ping"

    def tick(self, now_ns: int) -> Out:
        """Time has passed. A subscription may be ended without the connection: its book would stand still."""
        out = super().tick(now_ns)
        if now_ns != self._looked_ns:
            return out
        for market in self.markets.values():
            book = market.book
            if book is None or not (book.live and book.numbered):
                continue
            if elapsed(now_ns, book.heard_ns, _SILENT_BOOK_NS):
                book.heard_ns = now_ns
                i = market.instrument.id
                out.append(Note("error", "silent", f"no word of the book of {i} for three minutes", i))
                out += (Reconnect(c, f"silent book {i}", overlap=True) for c in sorted(book.conns))
            self._look_ns = min(self._look_ns, book.heard_ns + _SILENT_BOOK_NS)
        return out

    def _frame(self, connection: Connection, data: bytes, now_ns: int, out: Out) -> None:
        if data[:8] == b'{"arg":{':
            prefix = data[: data.index(b"}")]
            route = self._routes[prefix]
            if route is not None:
                handler, arg, name = route
                if name not in connection.seen:
                    connection.saw(name)
                handler(arg, connection, data, now_ns, out)
        elif data != b"pong":
            self._on_event(connection, data, now_ns, out)

    def _route(self, prefix: bytes) -> tuple[Callable[..., None], _Arg, bytes] | None:
        """What takes the frames that begin like this."""
        arg = msgspec.json.decode(prefix[len(b'{"arg":') :] + b"}", type=_Arg)
        handler = self._handler(arg)
        return (handler, arg, _name(arg).encode()) if handler else None

    def _handler(self, arg: _Arg) -> Callable[..., None] | None:
        if arg.channel in _WITNESSES:
            return self._on_witness
        kind = _KIND_OF.get(arg.channel, "orderbook" if arg.channel.startswith("books") else "")
        if not kind or not self.options.wants(kind) or (arg.inst_id and self.market(arg.inst_id) is None):
            return None
        return {
            "orderbook": self._on_books,
            "trade": self._on_trades,
            "funding_rate": self._on_funding,
            "open_interest": self._on_interest,
            "liquidation": self._on_liquidations,
        }[kind]

    def _on_event(self, connection: Connection, data: bytes, now_ns: int, out: Out) -> None:
        m = _decode_event(data)
        if m.event == "subscribe" and m.arg is not None:
            connection.acknowledged(_name(m.arg))
            connection.missing.discard(_name(m.arg))  # however late
            if m.arg.channel == "books":
                self.book(m.arg.inst_id, connection.conn, now_ns)
        elif not m.event and m.arg is not None:  # data, but not written as OKX does
            handler = self._handler(m.arg)
            if handler is not None:
                connection.saw(_name(m.arg).encode())
                handler(m.arg, connection, data, now_ns, out)
        elif m.event == "notice":
            out.append(Reconnect(connection.conn, f"notice {m.code[:20]}", overlap=True))
        elif m.event in ("error", "channel-conn-count-error"):
            out.append(Note("error", "refused", f"{self.options.name}: code {m.code[:20]}: {m.msg[:200]}"))

    def _on_books(self, arg: _Arg, connection: Connection, data: bytes, now_ns: int, out: Out) -> None:
        m = _decode_books(data)
        if not m.action:  # books5: a snapshot of five levels each time, no chain
            return
        if m.action not in ("snapshot", "update"):
            raise ValueError(f"action {m.action!r} of a book")
        if self._book_channel.setdefault(arg.inst_id, arg.channel) != arg.channel:
            return
        book = self.book(arg.inst_id, connection.conn, now_ns)
        if book is None:
            return
        for row in m.data:
            if not row.checksum:  # 0 since 2026-06-23: nothing to compare with
                row.checksum = None
            if m.action == "snapshot":
                row.prev_id = None
                book.snapshot(row, connection.conn, now_ns, out)
            else:
                book.receive(row, connection.conn, now_ns, out)

    def _on_witness(self, arg: _Arg, connection: Connection, data: bytes, now_ns: int, out: Out) -> None:
        if self.auditor.check is not None:
            for row in _decode_books(data).data:
                self._hear(arg.inst_id, arg.channel, _WITNESSES[arg.channel], row)

    def _hear(self, instrument_id: str, witness: str, depth: int, row: _BookRow) -> None:
        if row.last_id is not None:
            self.auditor.hear(instrument_id, witness, ("id", row.last_id), depth, row.bids, row.asks)

    def _on_trades(self, arg: _Arg, connection: Connection, data: bytes, now_ns: int, out: Out) -> None:
        if self._trade_channel.setdefault(arg.inst_id, arg.channel) != arg.channel:
            return
        self._take_trade_rows(_decode_trades(data).data, now_ns, out)

    def _take_trade_rows(self, rows: list[_TradeRow], now_ns: int, out: Out) -> None:
        for row in sorted(rows, key=lambda r: int(r.trade_id)) if len(rows) > 1 else rows:
            market = self.markets.get(row.inst_id) or self.market(row.inst_id)
            if market is None:
                continue
            last = first = int(row.trade_id)
            span = NO_SPAN
            if row.count != "1":
                first -= max(int(row.count), 1) - 1
                span = (str(first), row.trade_id) if first != last else NO_SPAN
            self.trade(
                market,
                first,
                last,
                row.trade_id,
                row.price,
                row.size,
                row.side,
                int(row.ts),
                now_ns,
                out,
                span,
            )

    def _on_funding(self, _: _Arg, connection: Connection, data: bytes, now_ns: int, out: Out) -> None:
        self._take_funding_rows(msgspec.json.decode(data, type=_FundingFrame).data, now_ns, out)

    def _on_interest(self, _: _Arg, connection: Connection, data: bytes, now_ns: int, out: Out) -> None:
        self._take_interest_rows(msgspec.json.decode(data, type=_InterestFrame).data, now_ns, out)

    def _on_liquidations(self, _: _Arg, connection: Connection, data: bytes, now_ns: int, out: Out) -> None:
        wanted = self.options.liquidation_symbols
        for row in _decode_liquidations(data).data:
            if wanted and row.inst_id not in wanted:
                continue
            alike: Counter[_LiquidationDetail] = Counter()
            for detail in row.details:
                alike[detail] += 1
                self._publish_liquidation(self.describe(row.inst_id), detail, alike[detail], now_ns, out)

    def _publish_liquidation(
        self, i: Instrument, d: _LiquidationDetail, nth: int, now_ns: int, out: Out
    ) -> None:
        """`nth` tells two liquidations apart that are alike in every figure."""
        ts_ms = int(d.ts)
        quantity = i.base_quantity(d.size, d.price)
        identity = f"{d.ts}:{d.side}:{d.position}:{d.price}:{d.size}:{nth}"
        self.publish(
            Liquidation,
            i,
            ts_ms,
            identity,
            now_ns,
            out,
            liquidation_id=f"okx_{d.ts}_{i.id}_{d.side}_{d.price}_{d.size}_{nth}",
            side=d.side,
            status="filled",
            price=d.price,
            quantity=quantity,
            exchange_quantity=d.size,
            quantity_unit=i.unit,
            filled_quantity=quantity,
            notional_value=plain(Decimal(quantity) * Decimal(d.price)) if quantity else None,
            liquidation_time=iso(ts_ms),
            liquidation_ts_ms=ts_ms,
            aggregation_mode="filtered" if self.options.liquidation_symbols else "all-symbol",
            bankruptcy_price=d.price,
        )

    # -- REST --------------------------------------------------------------------------------------------------

    def polls(self) -> list[Poll]:
        """What is polled, and books where they are wanted by polling."""
        o = self.options
        polls: list[Poll] = []
        for s in self.markets:
            q = quote(s)
            if o.wants("orderbook") and o.book_method == "snapshot":
                fetch = self._depth_fetch(s, min(max(o.snapshot_depth, 1), _LEVELS))
                polls.append(Poll.of(fetch, o.snapshot_interval_ms / 1000))
            if o.wants("funding_rate"):
                interval_s = o.intervals_s.get("funding_rate", 30)
                mark = Fetch(
                    "mark_price", s, f"/api/v5/public/mark-price?instType=SWAP&instId={q}", 1, "public"
                )
                polls.append(Poll.of(mark, interval_s))
                rate = Fetch("funding_rate", s, f"/api/v5/public/funding-rate?instId={q}", 1, "public")
                polls.append(Poll.of(rate, interval_s))
            if o.wants("open_interest"):
                path = f"/api/v5/public/open-interest?instType=SWAP&instId={q}"
                fetch = Fetch("open_interest", s, path, 1, "public")
                polls.append(Poll.of(fetch, o.intervals_s.get("open_interest", 30)))
            for data_type in sorted(_RATIOS.keys() & o.data_types):
                path = f"{_RUBIK}{_RATIOS[data_type]}?instId={q}&period={o.lsr_period}&limit={o.lsr_limit}"
                polls.append(Poll.of(Fetch(data_type, s, path, 1, "rubik"), o.intervals_s.get(data_type, 20)))
        return polls

    def key_of(self, url: str) -> tuple[str, str] | None:
        """What a recorded URL answers."""
        endpoint, query = recorded(url)
        kind = _ENDPOINTS.get(endpoint)
        inst_id = query.get("instId", [""])[0]
        return (kind, "" if kind == "instruments" else inst_id) if kind else None

    def _ask_instruments(self, instrument_ids: Sequence[str]) -> Iterable[Fetch]:
        inst_type = _INSTRUMENT_TYPES.get(self.options.market_type, "SWAP")
        yield Fetch("instruments", "", f"/api/v5/public/instruments?instType={inst_type}", 1, "public")

    def _parse_instruments(self, body: bytes) -> Iterator[Instrument]:
        for row in _rows(body, list[_InstrumentRow]):
            market_type = _MARKET_TYPES.get(row.inst_type)
            if market_type == "spot":
                yield Instrument(row.inst_id, "okx", "spot", f"{row.base}-{row.quote}", unit="base")
            elif market_type is not None:
                symbol = row.underlying if market_type == "perpetual" and row.underlying else row.inst_id
                size = Decimal(row.value) * Decimal(row.multiplier or "1") if row.value else None
                # A contract is worth an amount of base coin (linear, options) or of quote currency (inverse).
                base = (row.underlying or row.inst_id).split("-", 1)[0]
                inverse = row.contract_type == "inverse" or (not row.contract_type and row.value_ccy != base)
                yield Instrument(row.inst_id, "okx", market_type, symbol, "contracts", size, inverse)

    def _guess(self, instrument_id: str) -> Instrument:
        # instId by OKX docs-v5: BTC-USDT, BTC-USDT-SWAP, BTC-USD-220527, BTC-USD-210924-42000-P.
        parts = instrument_id.split("-")
        market_type: MarketType = "options"
        if len(parts) <= 2:
            market_type = "spot"
        elif len(parts) == 3:
            market_type = "perpetual" if parts[2] == "SWAP" else "futures"
        unit: Unit = "base" if market_type == "spot" else "contracts"
        return Instrument(instrument_id, "okx", market_type, instrument_id.removesuffix("-SWAP"), unit)

    def _depth_fetch(self, instrument_id: str, size: int) -> Fetch:
        path = f"/api/v5/market/books?instId={quote(instrument_id)}&sz={size}"
        return Fetch("depth", instrument_id, path, 1, "books")

    def _resync(self, book: BookSync, now_ns: int, out: Out) -> bool:
        """By REST, which costs nothing of the 480 subscriptions an hour; where that has no ids, anew."""
        i = book.instrument.id
        if book.numbered and i not in self._unseeded:
            out.append(self._depth_fetch(i, _LEVELS))
            return True
        arg = _Arg(self._book_channel.get(i, "books"), i)
        for connection in self.connections_of(book):
            out.append(Send(connection.conn, _operation("unsubscribe", [arg])))
            out.append(Send(connection.conn, _operation("subscribe", [arg])))
        return False

    def _backfill(self, instrument: Instrument, first: int, last: int, out: Out) -> bool:
        # type=1: pages by trade id; `after` gives what is older than it, newest first.
        limit = min(_HISTORY_PAGE, last - first + 1)
        path = f"/api/v5/market/history-trades?instId={quote(instrument.id)}&type=1&after={last + 1}&limit={limit}"
        out.append(Fetch("trades", instrument.id, path, 1, "history"))
        return True

    def _witness_fetch(self, instrument_id: str) -> Fetch:
        return msgspec.structs.replace(self._depth_fetch(instrument_id, DEPTH), kind="audit")

    def _witness_message(self, instrument_id: str, on: bool) -> str:
        # An instrument's sequence ids are the same on all its channels (OKX docs-v5, order book channel).
        args = [_Arg(channel, instrument_id) for channel in _WITNESSES]
        return _operation("subscribe" if on else "unsubscribe", args)

    def _handlers(self) -> dict[str, Callable[[Fetch, bytes, int, Out], None]]:
        return {
            "instruments": self.take_instruments,
            "audit": self._take_witness,
            "depth": self._take_depth,
            "trades": self._take_trades,
            "funding_rate": self._take_funding,
            "mark_price": self._take_mark,
            "open_interest": self._take_interest,
            **dict.fromkeys(_RATIOS, self._take_ratios),
        }

    def _take_depth(self, fetch: Fetch, body: bytes, now_ns: int, out: Out) -> None:
        market = self.market(fetch.instrument)
        row = _rows(body, list[_BookRow])[0]
        if market is None:
            return
        snap = Update(row.bids, row.asks, row.ts_ms, row.last_id)
        if market.book is None:
            self.polled_book(market, snap, now_ns, out)
        elif row.last_id is None:
            self._unseeded.add(fetch.instrument)
            market.book.failed(now_ns)
        else:
            # What lies beyond 400 levels never comes over the stream either: the book is whole as far as it goes.
            market.book.rest_snapshot(snap, cut_bids=False, cut_asks=False, now_ns=now_ns, out=out)

    def _take_witness(self, fetch: Fetch, body: bytes, now_ns: int, out: Out) -> None:
        self._hear(fetch.instrument, REST, DEPTH, _rows(body, list[_BookRow])[0])

    def _take_trades(self, fetch: Fetch, body: bytes, now_ns: int, out: Out) -> None:
        rows = _rows(body, list[_TradeRow])
        self._take_trade_rows(rows, now_ns, out)
        market = self.market(fetch.instrument)
        if market is not None:
            ids = [int(r.trade_id) for r in rows]
            market.trades.answered((min(ids), max(ids)) if ids else None, now_ns, out)

    def _take_mark(self, fetch: Fetch, body: bytes, now_ns: int, out: Out) -> None:
        for row in _rows(body, list[_MarkRow]):
            market = self.market(row.inst_id)
            if market is not None:
                market.mark_price = row.price

    def _take_funding(self, fetch: Fetch, body: bytes, now_ns: int, out: Out) -> None:
        self._take_funding_rows(_rows(body, list[_FundingRow]), now_ns, out)

    def _take_funding_rows(self, rows: list[_FundingRow], now_ns: int, out: Out) -> None:
        for row in rows:
            market = self.market(row.inst_id)
            ts_ms = _int(row.ts)
            if market is None or not row.rate:  # frames without a rate have been seen
                continue
            # Until 2023 without a time of its own: then what it says tells it apart.
            identity = row.ts or f"{row.time_ms}:{row.rate}:{row.next_rate}"
            if ts_ms is None and not self.remember(f"{row.inst_id}:{identity}"):
                continue
            if ts_ms is not None and not self.is_new("funding_rate", row.inst_id, ts_ms):
                continue
            due_ms, next_ms = _int(row.time_ms), _int(row.next_ms)
            hours = (next_ms - due_ms) // 3_600_000 if due_ms and next_ms and next_ms > due_ms else None
            self.publish(
                FundingRate,
                market.instrument,
                ts_ms,
                identity,
                now_ns,
                out,
                current_funding_rate=row.rate,
                estimated_funding_rate=row.next_rate or None,
                funding_interval=f"{hours}h" if hours else None,
                mark_price=market.mark_price,
                index_price=None,
                premium_index=row.premium or None,
                next_funding_ts_ms=due_ms,
            )

    def _take_interest(self, fetch: Fetch, body: bytes, now_ns: int, out: Out) -> None:
        self._take_interest_rows(_rows(body, list[_InterestRow]), now_ns, out)

    def _take_interest_rows(self, rows: list[_InterestRow], now_ns: int, out: Out) -> None:
        for row in rows:
            market = self.market(row.inst_id)
            ts_ms = _int(row.ts)
            if market is None or ts_ms is None or not self.is_new("open_interest", row.inst_id, ts_ms):
                continue
            self.publish(
                OpenInterest,
                market.instrument,
                ts_ms,
                ts_ms,
                now_ns,
                out,
                open_interest_value=row.contracts,
                open_interest_unit="contracts",
                open_interest_base=row.coins or None,
                open_interest_usd=row.usd or None,
                mark_price=market.mark_price,
            )

    def _take_ratios(self, fetch: Fetch, body: bytes, now_ns: int, out: Out) -> None:
        """Rows `[ts, ratio]`, newest first. OKX gives the ratio only; the shares follow from it."""
        market = self.market(fetch.instrument)
        if market is None:
            return
        share = "position" if fetch.kind == "lsr_top_position" else "account"
        for ts, ratio in reversed(_rows(body, list[tuple[str, str]])):
            ts_ms = int(ts)
            if not self.is_new(fetch.kind, fetch.instrument, ts_ms):
                continue
            shares = _shares(Decimal(ratio))
            fields = {f"long_{share}_ratio": shares[0], f"short_{share}_ratio": shares[1]}
            self.publish(
                LSR[fetch.kind],
                market.instrument,
                ts_ms,
                f"{ts}:{self.options.lsr_period}",
                now_ns,
                out,
                long_short_ratio=ratio,
                period=self.options.lsr_period,
                **fields,
            )


T = TypeVar("T")


def _rows(body: bytes, kind: type[T]) -> T:
    """The rows of a REST answer. Raises RefusedError where OKX answers with an error."""
    answer = msgspec.json.decode(body, type=_Answer)
    if answer.code != "0":
        raise RefusedError(f"code {answer.code}: {answer.msg}")
    return msgspec.json.decode(answer.data, type=kind, strict=False)


def _operation(op: str, args: list[_Arg]) -> str:
    named = [
        {k: v for k, v in (("channel", a.channel), ("instId", a.inst_id), ("instType", a.inst_type)) if v}
        for a in args
    ]
    return json.dumps({"op": op, "args": named})


def _name(arg: _Arg) -> str:
    return f"{arg.channel}:{arg.inst_id or arg.inst_type}"


def _int(text: str) -> int | None:
    return int(text) if text else None


def _shares(ratio: Decimal) -> tuple[str, str]:
    """Long and short share of a long/short ratio, to six places."""
    long = ratio / (1 + ratio)
    return f"{long:.6f}", f"{1 - long:.6f}"


_KIND_OF = {
    "trades": "trade",
    "trades-all": "trade",
    "funding-rate": "funding_rate",
    "open-interest": "open_interest",
    "liquidation-orders": "liquidation",
}
_ENDPOINTS = {
    "books": "depth",
    "books-full": "depth",
    "instruments": "instruments",
    "trades": "trades",
    "history-trades": "trades",
    "funding-rate": "funding_rate",
    "mark-price": "mark_price",
    "open-interest": "open_interest",
    **{path: data_type for data_type, path in _RATIOS.items()},
}
