"""The websocket faces of Binance spot and USD-M futures.

Sources: Binance spot-api-docs, web-socket-streams.md; USD-M "Websocket Market Streams" and "Important
WebSocket Change Notice" (routed paths /public, /market). REST is in binance_rest.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from marketprism.simulator.binance_rest import BinanceRest, Flavor
from marketprism.simulator.face import Face, Refused, Reply, World, dump, parse
from marketprism.simulator.faults import Fault
from marketprism.simulator.instruments import Instrument
from marketprism.simulator.market import ASK, BID, SELL, Market, Order
from marketprism.simulator.messages import Connection, MessageKind, Outgoing
from marketprism.simulator.options import STEPS_PER_WINDOW
from marketprism.simulator.series import Figures, funding_times_ms
from marketprism.simulator.truth import BookLog, Ledger, LiquidationRecord, TradeLog, TradeRow

SPOT = Flavor("/api/v3", 6000, incoming_per_s=5, ping_interval_s=20.0)
USDM = Flavor("/fapi/v1", 2400, incoming_per_s=10, ping_interval_s=180.0)

_PUBLIC, _MARKET = "public", "market"
_STREAMS_PER_CONNECTION = 1024
_LIFE_MS = 24 * 3_600_000
_METHODS = ("SUBSCRIBE", "UNSUBSCRIBE", "LIST_SUBSCRIPTIONS", "SET_PROPERTY", "GET_PROPERTY")
_SPOT_DEPTHS = {"depth@100ms": 10, "depth": 100, "depth@1000ms": 100}
_USDM_DEPTHS = {"depth@100ms": 10, "depth@0ms": 1, "depth": 25, "depth@500ms": 50}
_BOOK_CHANNEL = "depth@100ms"  # the one the truth's update ids are about; always kept running


class _Stream(NamedTuple):
    """A stream's name and the topics of its two forms."""

    name: str
    raw: str
    combined: str

    @classmethod
    def of(cls, name: str) -> "_Stream":
        return cls(name, f"ws {name}", f"stream {name}")


_ALL_FORCED = _Stream.of("!forceOrder@arr")
_ALL_MARKS = _Stream.of("!markPrice@arr@1s")


@dataclass(slots=True)
class _Depth:
    """One depth stream of a symbol: what was touched since its last message."""

    channel: str
    every_steps: int
    previous_id: int
    first_id: int = 0
    touched: dict[int, None] = field(default_factory=dict)


class BinanceSymbol:
    """One symbol: its market, its ids, its streams."""

    __slots__ = (
        "_streams", "aggregate_id", "depths", "figures", "forced", "instrument", "ledger", "market",
        "top", "trade_id", "update_id",
    )  # fmt: skip

    def __init__(self, market: Market, ledger: Ledger, figures: Figures, first_trade_id: int) -> None:
        self.market = market
        self.instrument: Instrument = market.instrument
        self.ledger = ledger
        self.figures = figures
        self.trade_id = first_trade_id
        self.aggregate_id = first_trade_id // 2
        self.update_id = ledger.book.last_id
        self.top: tuple[int, int, int, int] = (0, 0, 0, 0)
        self.depths: dict[str, _Depth] = {}
        self.forced: Order | None = None
        self._streams: dict[str, _Stream] = {}

    def stream(self, channel: str) -> _Stream:
        """The symbol's stream of this channel."""
        found = self._streams.get(channel)
        if found is None:
            found = self._streams[channel] = _Stream.of(f"{self.instrument.id.lower()}@{channel}")
        return found


class BinanceFace(Face):
    """Binance spot or USD-M futures; they differ by a Flavor and by what their messages hold."""

    book_request = ("depth", "symbol")
    messages_per_order = 1.07  # fills
    connects = (300, 300_000)

    def __init__(self, worker: str, world: World) -> None:
        super().__init__(worker, world)
        self.spot = worker == "binance_spot"
        self.flavor = SPOT if self.spot else USDM
        self.ping_interval_s = self.flavor.ping_interval_s
        self._depth_steps = _SPOT_DEPTHS if self.spot else _USDM_DEPTHS
        self.symbols: dict[str, BinanceSymbol] = {}
        for market in self.make_markets():
            self.symbols[market.instrument.id] = self._enter(market)
        self.acts["binance_24h_cut"] = self._cut_soon
        self._rest = BinanceRest(self)

    def _enter(self, market: Market) -> BinanceSymbol:
        first_id = self.rng.randrange(10**9) + (50_093_239_189 if self.spot else 5_123_107_832_006)
        state = {tick * 2 + side.side: lots for side in market.ladders for tick, lots in side.lots.items()}
        keep_s = self.options.keep_s
        ledger = Ledger(
            market.instrument, BookLog(first_id, state, keep_s), TradeLog(keep_s), TradeLog(keep_s)
        )
        seed = f"{self.options.seed}/{self.worker}/{market.instrument.id}"
        figures = Figures(seed, 5e9 if market.instrument.base == "BTC" else 1.5e9)
        trade_id = self.rng.randrange(10**9) + 3_000_000_000
        symbol = BinanceSymbol(market, self.truth.enter(ledger), figures, trade_id)
        symbol.depths[_BOOK_CHANNEL] = _Depth(_BOOK_CHANNEL, STEPS_PER_WINDOW, first_id)
        return symbol

    # -- connections ---------------------------------------------------------------------------------------

    def connect(self, path: str, query: Mapping[str, str], now_ms: int) -> Connection:
        """/ws[/stream...] and /stream?streams=...; on USD-M also under /public, /market and /private."""
        parts = [part for part in path.split("/") if part]
        route = parts.pop(0) if parts and parts[0] in (_PUBLIC, _MARKET, "private") and not self.spot else ""
        if not parts or parts[0] not in ("ws", "stream"):
            raise Refused(404, f"no websocket at {path}: expected /ws or /stream")
        if "timeUnit" in query:
            raise Refused(400, "timeUnit is not simulated: timestamps are milliseconds")
        if not self.spot and self.faults.take("binance_wrong_route", self.worker):
            route = "private"
        connection = self.open(f"{route}/{parts[0]}", now_ms)
        connection.ends_ms = now_ms + _LIFE_MS
        for stream in [*parts[1:], *query.get("streams", "").split("/")]:
            if stream:
                self._add(connection, stream)
        return connection

    def receive(self, connection: Connection, text: str, now_ms: int) -> list[Outgoing]:
        """SUBSCRIBE, UNSUBSCRIBE, LIST_SUBSCRIPTIONS and the properties."""
        self.control_frame(connection, now_ms)
        if connection.closing:
            return []
        return [self.reply(connection, self._answer(connection, text))]

    def control_frame(self, connection: Connection, now_ms: int) -> None:
        """Pings and pongs count among the incoming messages; too many and the connection is cut."""
        if self.too_many(connection, now_ms, self.flavor.incoming_per_s):
            connection.closing = (1008, "Too many requests")

    def _answer(self, connection: Connection, text: str) -> str:
        try:
            request = parse(text)
        except msgspec.DecodeError as error:
            return dump({"code": 3, "msg": f"Invalid JSON: {error}"})
        if not isinstance(request, dict):
            return dump({"code": 2, "msg": "Invalid request: request must be a JSON object"})
        number = request.get("id")
        problem = self._problem(connection, request)
        if problem:
            return dump({"code": 2, "msg": f"Invalid request: {problem}", "id": number})
        return dump({"result": self._perform(connection, request), "id": number})

    def _problem(self, connection: Connection, request: dict[str, object]) -> str:
        method, params = request.get("method"), request.get("params", [])
        if method not in _METHODS:
            wanted = ", ".join(f"`{name}`" for name in _METHODS)
            return f"unknown variant `{method}`, expected one of {wanted}"
        if not isinstance(params, list):
            return "params must be an array"
        if method in ("SUBSCRIBE", "UNSUBSCRIBE") and not all(isinstance(one, str) for one in params):
            return "params must be an array of strings"
        if method == "SUBSCRIBE" and len(connection.topics) + len(params) > _STREAMS_PER_CONNECTION:
            return f"too many streams, at most {_STREAMS_PER_CONNECTION} a connection"
        return ""

    def _perform(self, connection: Connection, request: dict[str, object]) -> object:
        params = request.get("params", [])
        assert isinstance(params, list)
        match request["method"]:
            case "SUBSCRIBE":
                for stream in params:
                    self._add(connection, stream)
            case "UNSUBSCRIBE":
                for stream in params:
                    self.unsubscribe(connection, self._topic(connection, stream))
            case "LIST_SUBSCRIPTIONS":
                return [topic.split(" ", 1)[1] for topic in connection.topics]
            case "GET_PROPERTY":
                return connection.path.endswith("stream")
            case _:
                pass  # SET_PROPERTY: the form of a connection here follows its path
        return None

    def _topic(self, connection: Connection, stream: str) -> str:
        """Where a connection listens: by form (raw or combined), or nowhere on a path that does not carry it."""
        route, form = connection.path.split("/")
        carried = self.spot or _route(stream) == (route or _PUBLIC)
        return f"{form if carried else 'silent'} {stream}"

    def _add(self, connection: Connection, stream: str) -> None:
        self.subscribe(connection, self._topic(connection, stream))
        name, _, channel = stream.partition("@")
        symbol = self.symbols.get(name.upper())
        if symbol and channel in self._depth_steps and channel not in symbol.depths:
            steps = self._depth_steps[channel]
            symbol.depths[channel] = _Depth(channel, steps, symbol.update_id)

    # -- time passes ---------------------------------------------------------------------------------------

    def advance(self, now_ms: int) -> None:
        """One step of every symbol."""
        for symbol in self.symbols.values():
            symbol.market.step()
            self._log_ops(symbol)
            for order in symbol.market.orders:
                self._tell_order(symbol, order, now_ms)
            self._tell_top(symbol, now_ms)
            for depth in list(symbol.depths.values()):
                if (self.steps + symbol.market.phase) % depth.every_steps == 0:
                    self._tell_depth(symbol, depth, now_ms)
        if self.steps % STEPS_PER_WINDOW == 0:
            self._end_old(now_ms)
        if not self.spot and self.steps % 100 == 0:
            self._each_second(now_ms)

    def _end_old(self, now_ms: int) -> None:
        for connection in self.connections:
            if connection.ends_ms is not None and now_ms >= connection.ends_ms:
                connection.ends_ms = None
                connection.closing = (1001, "24 hours are over")

    def _cut_soon(self, fault: Fault, now_ms: int) -> list[Outgoing]:
        for connection in self.connections:
            connection.ends_ms = now_ms + int(fault.seconds * 1000)
        return []

    def _log_ops(self, symbol: BinanceSymbol) -> None:
        update_id = symbol.update_id
        rng, log, spot = self.rng, symbol.ledger.book, self.spot
        for key, lots in symbol.market.ops:
            stride = 1 if spot else 1 + int(rng.random() * 400)
            update_id += stride if rng.random() < 0.9 else stride + 3
            log.add(update_id, key, lots)
            for depth in symbol.depths.values():
                if not depth.touched:
                    depth.first_id = update_id
                depth.touched[key] = None
        symbol.update_id = update_id

    def publish(self, stream: _Stream, data: str, kind: MessageKind, instrument: str | None) -> None:
        """Send a stream's message in both forms, raw and combined."""
        self.send(stream.raw, data, kind, instrument)
        if stream.combined in self.subscribers:
            self.send(stream.combined, f'{{"stream":"{stream.name}","data":{data}}}', kind, instrument)

    def wanted(self, stream: _Stream) -> bool:
        """True if anyone listens."""
        return stream.raw in self.subscribers or stream.combined in self.subscribers

    # -- books ---------------------------------------------------------------------------------------------

    def _tell_depth(self, symbol: BinanceSymbol, depth: _Depth, now_ms: int) -> None:
        name = symbol.instrument.id
        stream = symbol.stream(depth.channel)
        wanted = self.wanted(stream)
        if depth.touched:
            if wanted:
                self.publish(stream, self._depth_text(symbol, depth, now_ms), "book", name)
            if depth.channel == _BOOK_CHANNEL:
                symbol.ledger.book.publish(symbol.update_id, now_ms)
            depth.previous_id = symbol.update_id
            depth.touched = {}
        if not wanted and depth.channel != _BOOK_CHANNEL:
            del symbol.depths[depth.channel]

    def _depth_text(self, symbol: BinanceSymbol, depth: _Depth, now_ms: int) -> str:
        name, last = symbol.instrument.id, symbol.update_id
        bids, asks = self._levels(symbol, depth)
        tail = f'"b":[{bids}],"a":[{asks}]}}'
        if self.spot:
            first = depth.previous_id + 1
            return f'{{"e":"depthUpdate","E":{now_ms},"s":"{name}","U":{first},"u":{last},{tail}'
        ids = f'"U":{depth.first_id},"u":{last},"pu":{depth.previous_id}'
        head = f'{{"e":"depthUpdate","E":{now_ms},"T":{self._engine_ms(now_ms)},"s":"{name}","ps":"{name}","st":1'
        return f"{head},{ids},{tail}"

    def _levels(self, symbol: BinanceSymbol, depth: _Depth) -> tuple[str, str]:
        price, quantity, lots = (
            symbol.instrument.price_text,
            symbol.instrument.quantity_text,
            symbol.market.lots,
        )
        sides: tuple[list[str], list[str]] = ([], [])
        touched = depth.touched
        if self.faults.busy and self.faults.take("orphan_deletes", self.worker, symbol.instrument.id):
            touched = touched | dict.fromkeys(symbol.market.vacant(touched))
        told = {key: lots(key) for key in touched}
        if self.faults.busy and self.faults.take("wrong_level", self.worker, symbol.instrument.id):
            told |= symbol.market.wrong_level()
        for key in sorted(told):
            sides[key & 1].append(f'["{price(key >> 1)}","{quantity(told[key])}"]')
        if self.faults.busy and self.faults.take("cross", self.worker, symbol.instrument.id):
            sides[BID].append(f'["{price(symbol.market.best_ask + 3)}","{quantity(1000)}"]')
        return ",".join(sides[BID]), ",".join(sides[ASK])

    def _tell_top(self, symbol: BinanceSymbol, now_ms: int) -> None:
        name = symbol.instrument.id
        stream = symbol.stream("bookTicker")
        if not symbol.market.ops or not self.wanted(stream):
            return
        bids, asks = symbol.market.ladders
        bid, ask = bids.best, asks.best
        top = (bid, bids.lots[bid], ask, asks.lots[ask])
        if top == symbol.top:
            return
        symbol.top = top
        price, quantity = symbol.instrument.price_text, symbol.instrument.quantity_text
        levels = f'"b":"{price(bid)}","B":"{quantity(top[1])}","a":"{price(ask)}","A":"{quantity(top[3])}"'
        if self.spot:
            text = f'{{"u":{symbol.update_id},"s":"{name}",{levels}}}'
        else:
            times = f'"T":{self._engine_ms(now_ms)},"E":{now_ms},"st":1,"ps":"{name}"'
            text = f'{{"e":"bookTicker","u":{symbol.update_id},"s":"{name}",{levels},{times}}}'
        self.publish(stream, text, "other", name)

    def _engine_ms(self, now_ms: int) -> int:
        """The matching engine's time: a few ms before the message."""
        return now_ms - int(self.rng.random() * 6)

    # -- trades --------------------------------------------------------------------------------------------

    def _tell_order(self, symbol: BinanceSymbol, order: Order, now_ms: int) -> None:
        traded_ms = now_ms - 1
        first_id, run_tick, run_lots = symbol.trade_id + 1, order.fills[0][0], 0
        for tick, lots in order.fills:
            if tick != run_tick:
                self._tell_aggregate(symbol, order, (first_id, run_tick, run_lots), now_ms)
                first_id, run_tick, run_lots = symbol.trade_id + 1, tick, 0
            run_lots += lots
            symbol.trade_id += 1
            number = symbol.trade_id
            row = TradeRow(number, number, number, tick, lots, traded_ms, order.side, order.forced)
            symbol.ledger.fills.add(row)
            self._tell_trade(symbol, row, now_ms)
        self._tell_aggregate(symbol, order, (first_id, run_tick, run_lots), now_ms)
        if order.forced:
            symbol.forced = order

    def _tell_trade(self, symbol: BinanceSymbol, row: TradeRow, now_ms: int) -> None:
        name = symbol.instrument.id
        stream = symbol.stream("trade")
        if not self.wanted(stream):
            return
        price, quantity = symbol.instrument.price_text(row.tick), symbol.instrument.quantity_text(row.lots)
        maker = "true" if row.side == SELL else "false"
        body = f'"s":"{name}","t":{row.id},"p":"{price}","q":"{quantity}"'
        if self.spot:
            text = f'{{"e":"trade","E":{now_ms},{body},"T":{row.ts_ms},"m":{maker},"M":true}}'
        else:
            text = f'{{"e":"trade","E":{now_ms},"T":{row.ts_ms},{body},"X":"MARKET","m":{maker},"st":1}}'
        self.publish(stream, text, "trade", name)

    def _tell_aggregate(
        self, symbol: BinanceSymbol, order: Order, run: tuple[int, int, int], now_ms: int
    ) -> None:
        first_id, tick, lots = run
        symbol.aggregate_id += 1
        last_id, name = symbol.trade_id, symbol.instrument.id
        row = TradeRow(
            symbol.aggregate_id, first_id, last_id, tick, lots, now_ms - 1, order.side, order.forced
        )
        symbol.ledger.aggregates.add(row)
        stream = symbol.stream("aggTrade")
        if not self.wanted(stream):
            return
        price, quantity = symbol.instrument.price_text(tick), symbol.instrument.quantity_text(lots)
        maker = "true" if order.side == SELL else "false"
        tail = '"M":true' if self.spot else '"st":1'
        head = f'{{"e":"aggTrade","E":{now_ms},"s":"{name}","a":{row.id},"p":"{price}","q":"{quantity}"'
        self.publish(
            stream, f'{head},"f":{first_id},"l":{last_id},"T":{row.ts_ms},"m":{maker},{tail}}}', "trade", name
        )

    # -- futures only --------------------------------------------------------------------------------------

    def _each_second(self, now_ms: int) -> None:
        everyone: list[str] = []
        for name, symbol in self.symbols.items():
            mark = self._mark_text(symbol, now_ms)
            everyone.append(mark)
            self.publish(symbol.stream("markPrice@1s"), mark, "other", name)
            if self.steps % 300 == 0:
                self.publish(symbol.stream("markPrice"), mark, "other", name)
            self._tell_forced(symbol, now_ms)
        self.publish(_ALL_MARKS, f"[{','.join(everyone)}]", "other", None)

    def _mark_text(self, symbol: BinanceSymbol, now_ms: int) -> str:
        mark, index = symbol.market.fair, self.index_price(symbol)
        rate, due = symbol.figures.funding.at(now_ms), funding_times_ms(now_ms)[1]
        prices = f'"p":"{mark:.8f}","ap":"{mark * 1.00001:.8f}","P":"{index:.8f}","i":"{index:.8f}"'
        name = symbol.instrument.id
        head = f'{{"e":"markPriceUpdate","E":{now_ms},"s":"{name}"'
        return f'{head},{prices},"r":"{rate:.8f}","T":{due},"st":1}}'

    def index_price(self, symbol: BinanceSymbol) -> float:
        """The index behind a contract: the asset's own price, without the contract's basis."""
        instrument = symbol.instrument
        return self.underlyings.fair(instrument.base, instrument.quote, self.steps)

    def _tell_forced(self, symbol: BinanceSymbol, now_ms: int) -> None:
        """At most one liquidation per symbol and second, the latest: forceOrder is a lower bound."""
        order, symbol.forced = symbol.forced, None
        if order is None:
            return
        name, instrument = symbol.instrument.id, symbol.instrument
        lots = sum(part for _, part in order.fills)
        average = sum(tick * part for tick, part in order.fills) / lots * instrument.ticks.size
        bankrupt = instrument.price_text(order.fills[-1][0] + (-20 if order.side == SELL else 20))
        quantity, side = instrument.quantity_text(lots), "SELL" if order.side == SELL else "BUY"
        record = LiquidationRecord(side.lower(), bankrupt, quantity, now_ms)
        symbol.ledger.liquidations.append(record)
        last = instrument.quantity_text(order.fills[-1][1])
        body = f'"s":"{name}","S":"{side}","o":"LIMIT","f":"IOC","q":"{quantity}","p":"{bankrupt}"'
        done = f'"ap":"{average:.{instrument.ticks.shown}f}","X":"FILLED","l":"{last}","z":"{quantity}","T":{now_ms}'
        text = f'{{"e":"forceOrder","E":{now_ms},"o":{{{body},{done}}}}}'
        self.publish(symbol.stream("forceOrder"), text, "other", name)
        self.publish(_ALL_FORCED, text, "other", name)

    # -- the rest ------------------------------------------------------------------------------------------

    def rest(self, path: str, query: Mapping[str, str], now_ms: int) -> Reply:
        """See binance_rest.py."""
        return self._rest.get(path, query, now_ms)

    def notice(self, now_ms: int) -> list[Outgoing]:
        """`serverShutdown` (spot-api-docs CHANGELOG 2026-05-08), in the form of each connection."""
        data = f'{{"e":"serverShutdown","E":{now_ms}}}'
        combined = f'{{"stream":"!serverShutdown","data":{data}}}'
        return [
            self.reply(one, combined if one.path.endswith("stream") else data) for one in self.connections
        ]


def _route(stream: str) -> str:
    """The USD-M path that carries a stream: books, top of book and raw trades are public, the others market."""
    channel = stream.partition("@")[2] or stream
    public = channel.startswith(("depth", "bookTicker", "rpiDepth")) or channel == "trade"
    return _PUBLIC if public or stream == "!bookTicker" else _MARKET
