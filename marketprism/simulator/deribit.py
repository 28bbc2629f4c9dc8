"""The websocket and REST faces of Deribit: JSON-RPC 2.0 over both.

Sources: Deribit API v2 documentation (public methods, subscriptions); captured frames.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import msgspec

from marketprism.simulator.deribit_rpc import MarketData, RpcError
from marketprism.simulator.deribit_text import amount_text, exponents_of, number_text
from marketprism.simulator.face import Face, Refused, Reply, World, dump, parse
from marketprism.simulator.faults import Fault
from marketprism.simulator.instruments import Instrument
from marketprism.simulator.market import ASK, BID, SELL, Market, Order
from marketprism.simulator.messages import Connection, Outgoing
from marketprism.simulator.options import STEPS_PER_WINDOW
from marketprism.simulator.series import Figures, Wave
from marketprism.simulator.truth import BookLog, Ledger, Levels, LiquidationRecord, TradeLog, TradeRow

_PATH = "/ws/api/v2"
_INTERVALS = {"100ms": STEPS_PER_WINDOW, "agg2": 100}
_HEARTBEAT_GRACE_MS = 10_000
_IDLE_MS = 60_000
_SUBSCRIBE_COST, _SUBSCRIBE_POOL = 3_000, 30_000
_METHOD_COST, _METHOD_POOL = 500, 50_000
_INSTRUMENTS_COST = 10_000
_REFILL_PER_MS = 10.0
_CHANNELS_PER_CALL = 500
_OPEN_CONNECTIONS = 32
_TEST_REQUEST = '{"params":{"type":"test_request"},"method":"heartbeat","jsonrpc":"2.0"}'


@dataclass(slots=True)
class Credits:
    """A pool that refills with time (Deribit "Rate limits")."""

    pool: float
    left: float
    at_ms: int

    @classmethod
    def full(cls, pool: float, now_ms: int) -> "Credits":
        """A full pool."""
        return cls(pool, pool, now_ms)

    def spend(self, cost: float, now_ms: int) -> bool:
        """False if there is not enough left."""
        self.left = min(self.pool, self.left + max(0, now_ms - self.at_ms) * _REFILL_PER_MS)
        self.at_ms = now_ms
        if self.left < cost:
            return False
        self.left -= cost
        return True


@dataclass(slots=True)
class _Client:
    """What Deribit remembers of a connection."""

    subscribe_credits: Credits
    method_credits: Credits
    heartbeat_ms: int = 0
    next_test_ms: int = 0
    answer_by_ms: int = 0
    deaf: bool = False  # answers to test_request are lost


@dataclass(slots=True)
class BookChannel:
    """One interval of a book: what subscribers know, and what was touched since."""

    interval: str
    change_id: int
    state: Levels
    touched: dict[int, None] = field(default_factory=dict)


class DeribitInstrument:
    """One instrument: market, book channels, trade numbers."""

    __slots__ = (
        "channels", "figures", "instrument", "ledger", "market", "previous_tick", "trade_id", "trade_seq",
        "waiting",
    )  # fmt: skip

    def __init__(self, market: Market, ledger: Ledger, figures: Figures, first_trade: int) -> None:
        self.market = market
        self.instrument: Instrument = market.instrument
        self.ledger = ledger
        self.figures = figures
        self.trade_seq = first_trade
        self.trade_id = first_trade * 2
        self.previous_tick = market.last_tick
        book = ledger.book
        self.channels = {"100ms": BookChannel("100ms", book.last_id, dict(book.state))}
        self.waiting: list[str] = []

    @property
    def book(self) -> BookChannel:
        """The 100 ms channel, which the truth's ids are about."""
        return self.channels["100ms"]


class DeribitFace(Face):
    """Deribit: one endpoint for everything public."""

    book_request = ("public/get_order_book", "instrument_name")
    connects = (1000, 1000)  # bounded by how many are open, not by how fast they come

    def __init__(self, worker: str, world: World) -> None:
        super().__init__(worker, world)
        self._change_id = 193_809_000_000 + self.rng.randrange(10**9)
        self.listed: dict[str, DeribitInstrument] = {}
        for market in self.make_markets():
            self.listed[market.instrument.id] = self._enter(market)
        seed = self.options.seed
        self.volatility = {
            "btc": Wave(f"{seed}/dvol/btc", 46.0, 14.0),
            "eth": Wave(f"{seed}/dvol/eth", 68.0, 20.0),
        }
        self._clients: dict[Connection, _Client] = {}
        self._rest_credits: Credits | None = None
        self._data = MarketData(self)
        self.acts["deribit_heartbeat_close"] = self._lose_heartbeats
        self.acts["deribit_id_jump"] = self._jump

    def _enter(self, market: Market) -> DeribitInstrument:
        state = {tick * 2 + side.side: lots for side in market.ladders for tick, lots in side.lots.items()}
        keep_s = self.options.keep_s
        book = BookLog(self._next_change_id(), state, keep_s)
        ledger = self.truth.enter(Ledger(market.instrument, book, TradeLog(keep_s), TradeLog(keep_s)))
        big = market.instrument.base == "BTC"
        figures = Figures(f"{self.options.seed}/{self.worker}/{market.instrument.id}", 1.1e9 if big else 4e8)
        first_trade = 203_000_000 + self.rng.randrange(10**8)
        return DeribitInstrument(market, ledger, figures, first_trade)

    def _next_change_id(self) -> int:
        """One counter for all instruments, so no instrument's ids are consecutive."""
        self._change_id += self.rng.randrange(2, 6000)
        return self._change_id

    # -- connections ---------------------------------------------------------------------------------------

    def connect(self, path: str, query: Mapping[str, str], now_ms: int) -> Connection:
        """/ws/api/v2."""
        if path.rstrip("/") != _PATH:
            raise Refused(404, f"no websocket at {path}: expected {_PATH}")
        if len(self.connections) >= _OPEN_CONNECTIONS:
            raise Refused(429, f"more than {_OPEN_CONNECTIONS} connections")
        connection = self.open(path, now_ms)
        pools = Credits.full(_SUBSCRIBE_POOL, now_ms), Credits.full(_METHOD_POOL, now_ms)
        self._clients[connection] = _Client(*pools)
        return connection

    def disconnect(self, connection: Connection) -> None:
        """The websocket is gone."""
        super().disconnect(connection)
        self._clients.pop(connection, None)

    def receive(self, connection: Connection, text: str, now_ms: int) -> list[Outgoing]:
        """One JSON-RPC request."""
        connection.last_in_ms = now_ms
        started_us = now_ms * 1000
        try:
            request = msgspec.convert(parse(text), dict[str, object])
        except (msgspec.DecodeError, msgspec.ValidationError):
            error = RpcError(11050, "bad_request", "invalid json")
            return [self.reply(connection, _error_text(None, error, started_us))]
        number = request.get("id")
        try:
            result, pushed = self._perform(connection, request, now_ms)
        except RpcError as error:
            if error.code == 10028:
                connection.closing = (1008, "too_many_requests")
            return [self.reply(connection, _error_text(number, error, started_us))]
        return [self.reply(connection, _result_text(number, result, started_us)), *pushed]

    def _perform(
        self, connection: Connection, request: dict[str, object], now_ms: int
    ) -> tuple[object, list[Outgoing]]:
        method, parameters = str(request.get("method")), request.get("params") or {}
        if not isinstance(parameters, dict):
            raise RpcError(-32602, "Invalid params", {"reason": "params must be an object"})
        client = self._clients[connection]
        if method in ("public/subscribe", "public/unsubscribe"):
            return self._subscription(connection, client, method, parameters, now_ms)
        if not client.method_credits.spend(_METHOD_COST, now_ms):
            raise RpcError(10028, "too_many_requests")
        if method == "public/set_heartbeat":
            return self._set_heartbeat(client, parameters, now_ms), []
        if method == "public/disable_heartbeat":
            client.heartbeat_ms = client.answer_by_ms = 0
            return "ok", []
        if method == "public/unsubscribe_all":
            for topic in list(connection.topics):
                self.unsubscribe(connection, topic)
            return "ok", []
        if method == "public/test" and not client.deaf:
            client.answer_by_ms = 0
        return self._data.call(method, parameters, now_ms), []

    def _set_heartbeat(self, client: _Client, parameters: dict[str, object], now_ms: int) -> str:
        interval = parameters.get("interval")
        if not isinstance(interval, int | float) or interval < 10:
            raise RpcError(-32602, "Invalid params", {"param": "interval", "reason": "must be at least 10"})
        client.heartbeat_ms = int(interval * 1000)
        client.next_test_ms = now_ms + client.heartbeat_ms
        return "ok"

    def _subscription(
        self, connection: Connection, client: _Client, method: str, parameters: dict[str, object], now_ms: int
    ) -> tuple[object, list[Outgoing]]:
        channels = parameters.get("channels")
        if not isinstance(channels, list) or not all(isinstance(one, str) for one in channels):
            raise RpcError(
                -32602, "Invalid params", {"param": "channels", "reason": "must be an array of strings"}
            )
        if len(channels) > _CHANNELS_PER_CALL:
            raise RpcError(-32602, "Invalid params", {"param": "channels", "reason": "too many channels"})
        if not client.subscribe_credits.spend(_SUBSCRIBE_COST, now_ms):
            raise RpcError(10028, "too_many_requests")
        if method == "public/unsubscribe":
            return [one for one in channels if self.unsubscribe(connection, one)], []
        if any(one.endswith(".raw") for one in channels) or self.faults.take(
            "deribit_error_13778", self.worker
        ):
            raise RpcError(13778, "raw_subscriptions_not_available_for_unauthorized")
        return self._subscribe_all(connection, channels, now_ms)

    def _subscribe_all(
        self, connection: Connection, channels: list[str], now_ms: int
    ) -> tuple[list[str], list[Outgoing]]:
        """Unknown channels are left out in silence; a channel already held is acked and sends nothing new."""
        accepted = [
            one for one in dict.fromkeys(channels) if self._exists(one) and not self._passed_over(one)
        ]
        pushed: list[Outgoing] = []
        for channel in accepted:
            if channel not in connection.topics:
                self.subscribe(connection, channel)
                pushed += self._first(connection, channel, now_ms)
        self.rng.shuffle(accepted)
        return accepted, pushed

    def _passed_over(self, channel: str) -> bool:
        name = channel.partition(".")[2].partition(".")[0]
        return self.faults.take("deribit_ack_subset", self.worker, name) is not None

    def _exists(self, channel: str) -> bool:
        match channel.split("."):
            case ["book" | "ticker", name, interval]:
                return name in self.listed and interval in _INTERVALS
            case ["trades" | "perpetual", name, "100ms"]:
                return name in self.listed
            case ["deribit_volatility_index", index]:
                return index.removesuffix("_usd") in self.volatility and index.endswith("_usd")
            case ["platform_state"]:
                return True
        return False

    def _first(self, connection: Connection, channel: str, now_ms: int) -> list[Outgoing]:
        kind, *rest = channel.split(".")
        if kind != "book":
            return []
        one, interval = self.listed[rest[0]], rest[1]
        held = self.faults.take("deribit_no_snapshot", self.worker, one.instrument.id)
        if interval not in one.channels:
            one.channels[interval] = BookChannel(interval, one.book.change_id, dict(one.book.state))
        book = one.channels[interval]
        text = self._book_text(one, book, "snapshot", dict.fromkeys(book.state, "new"), None, now_ms)
        return [] if held else [self.snapshot(connection, text, one.instrument.id)]

    # -- time passes ---------------------------------------------------------------------------------------

    def advance(self, now_ms: int) -> None:
        """One step of every instrument."""
        for one in self.listed.values():
            one.market.step()
            for key, _ in one.market.ops:
                one.book.touched[key] = None
            for order in one.market.orders:
                self._tell_order(one, order, now_ms)
            if (self.steps + one.market.phase) % STEPS_PER_WINDOW == 0:
                self._tell_window(one, now_ms)
            elif one.waiting and not one.market.pace.sparse:
                self._tell_trades(one)
        if self.steps % 100 == 0:
            self._each_second(now_ms)

    def _tell_window(self, one: DeribitInstrument, now_ms: int) -> None:
        self._tell_trades(one)
        self._tell_book(one, one.book, now_ms)
        aggregated = one.channels.get("agg2")
        if aggregated and self.steps // STEPS_PER_WINDOW % 10 == 0:
            self._tell_book(one, aggregated, now_ms)
        name = one.instrument.id
        for channel in (f"ticker.{name}.100ms", f"ticker.{name}.agg2"):
            due = channel.endswith("100ms") or self.steps // STEPS_PER_WINDOW % 10 == 0
            if due and channel in self.subscribers:
                self._push(channel, self._data.ticker_text(one, now_ms), name)
        if f"perpetual.{name}.100ms" in self.subscribers:
            self._push(f"perpetual.{name}.100ms", self._data.perpetual_text(one, now_ms), name)

    def _push(self, channel: str, data: str, instrument: str | None) -> None:
        self.send(channel, _notification(channel, data), "other", instrument)

    # -- books ---------------------------------------------------------------------------------------------

    def _tell_book(self, one: DeribitInstrument, book: BookChannel, now_ms: int) -> None:
        topic = f"book.{one.instrument.id}.{book.interval}"
        if book is not one.book and topic not in self.subscribers:
            del one.channels[book.interval]
            return
        actions = self._actions(one, book)
        if not actions:
            return
        previous = book.change_id
        book.change_id = self._next_change_id() if book is one.book else one.book.change_id
        if book is one.book:
            self._log(one, actions, now_ms)
        if topic in self.subscribers:
            text = self._book_text(one, book, "change", actions, previous, now_ms)
            self.send(topic, text, "book", one.instrument.id)

    def _actions(self, one: DeribitInstrument, book: BookChannel) -> dict[int, str]:
        """new, change or delete by key, against what the channel's subscribers know; the state follows."""
        actions: dict[int, str] = {}
        state, source = book.state, one.book.state
        touched, book.touched = book.touched, {}
        for key in touched:
            lots, known = one.market.lots(key) if book is one.book else source.get(key, 0), state.get(key, 0)
            if lots == known:
                continue
            actions[key] = "delete" if not lots else "change" if known else "new"
            if lots:
                state[key] = lots
            else:
                del state[key]
        return actions

    def _log(self, one: DeribitInstrument, actions: dict[int, str], now_ms: int) -> None:
        book = one.book
        for key in actions:
            one.ledger.book.add(book.change_id, key, book.state.get(key, 0))
        one.ledger.book.publish(book.change_id, now_ms)
        for other in one.channels.values():
            if other is not book:
                other.touched |= dict.fromkeys(actions)

    def _book_text(
        self,
        one: DeribitInstrument,
        book: BookChannel,
        action: str,
        actions: dict[int, str],
        previous: int | None,
        now_ms: int,
    ) -> str:
        instrument = one.instrument
        sides: tuple[list[str], list[str]] = ([], [])
        price: Callable[[int], str] = instrument.price_text
        amount: Callable[[int, int], str] = partial(amount_text, instrument)
        struck = action == "change" and self.faults.busy
        if struck and self.faults.take("orphan_deletes", self.worker, instrument.id):
            vacant = one.market.vacant(actions.keys() | book.state.keys())
            actions = actions | dict.fromkeys(vacant, "delete")
        if struck and self.faults.active("deribit_exponents", self.worker, instrument.id):
            price, amount = exponents_of(instrument)
        lots = book.state
        if struck and self.faults.take("wrong_level", self.worker, instrument.id):
            wrong = one.market.wrong_level()
            lots, actions = lots | wrong, dict.fromkeys(wrong, "change") | actions
        for key in sorted(actions):
            level = f"{price(key >> 1)},{amount(key, lots.get(key, 0))}"
            sides[key & 1].append(f'["{actions[key]}",{level}]')
        if struck and self.faults.take("cross", self.worker, instrument.id):
            sides[BID].append(f'["new",{price(one.market.best_ask + 3)},{amount(0, 1000)}]')
        bids, asks = ",".join(reversed(sides[BID])), ",".join(sides[ASK])
        before = "" if previous is None else f',"prev_change_id":{previous}'
        head = f'{{"timestamp":{now_ms},"type":"{action}","change_id":{book.change_id}'
        data = f'{head},"instrument_name":"{instrument.id}","bids":[{bids}],"asks":[{asks}]{before}}}'
        return _notification(f"book.{instrument.id}.{book.interval}", data)

    # -- trades --------------------------------------------------------------------------------------------

    def _tell_order(self, one: DeribitInstrument, order: Order, now_ms: int) -> None:
        for tick, lots in order.fills:
            one.trade_seq += 1
            one.trade_id += 1
            number = one.trade_id
            row = TradeRow(one.trade_seq, number, number, tick, lots, now_ms - 1, order.side, order.forced)
            one.ledger.fills.add(row)
            direction = _tick_direction(one.previous_tick, tick)
            one.previous_tick = tick
            one.waiting.append(dump(self._data.trade_body(one, row, direction)))
        if order.forced:
            side = "sell" if order.side == SELL else "buy"
            price = one.instrument.price_text(order.fills[-1][0])
            total = one.instrument.quantity_text(sum(lots for _, lots in order.fills))
            one.ledger.liquidations.append(LiquidationRecord(side, price, total, now_ms - 1))
        if not one.market.pace.sparse:
            self._tell_trades(one)

    def _tell_trades(self, one: DeribitInstrument) -> None:
        """Trades wait for the 100 ms interval, unless the rate asked for needs more messages than that gives."""
        if not one.waiting:
            return
        waiting, one.waiting = one.waiting, []
        channel = f"trades.{one.instrument.id}.100ms"
        if channel in self.subscribers:
            self.send(channel, _notification(channel, f"[{','.join(waiting)}]"), "trade", one.instrument.id)

    # -- every second --------------------------------------------------------------------------------------

    def _each_second(self, now_ms: int) -> None:
        for currency, wave in self.volatility.items():
            index = f"{currency}_usd"
            data = (
                f'{{"volatility":{number_text(wave.at(now_ms))},"timestamp":{now_ms},"index_name":"{index}"}}'
            )
            self._push(f"deribit_volatility_index.{index}", data, None)
        locked = "true" if self.faults.active("deribit_locked", self.worker) else "false"
        self._push("platform_state", f'{{"price_index":"btc_usd","locked":{locked}}}', None)
        for connection, client in list(self._clients.items()):
            self._watch(connection, client, now_ms)

    def _watch(self, connection: Connection, client: _Client, now_ms: int) -> None:
        """Ask for a sign of life; hang up on those who give none, and on idle ones without subscriptions."""
        if client.answer_by_ms and now_ms >= client.answer_by_ms:
            connection.closing = (4000, "heartbeat close")
        elif client.heartbeat_ms and now_ms >= client.next_test_ms:
            client.next_test_ms = now_ms + client.heartbeat_ms
            client.answer_by_ms = client.answer_by_ms or now_ms + _HEARTBEAT_GRACE_MS
            self._outgoing.append(self.reply(connection, _TEST_REQUEST))
        elif not connection.topics and now_ms - connection.last_in_ms > _IDLE_MS:
            connection.closing = (0, "idle")

    def _lose_heartbeats(self, fault: Fault, now_ms: int) -> list[Outgoing]:
        for client in self._clients.values():
            client.deaf, client.answer_by_ms = True, now_ms + int(fault.seconds * 1000)
        return [self.reply(connection, _TEST_REQUEST) for connection in self._clients]

    def _jump(self, fault: Fault, now_ms: int) -> list[Outgoing]:
        self._change_id += 10**9
        return []

    # -- REST ----------------------------------------------------------------------------------------------

    def rest(self, path: str, query: Mapping[str, str], now_ms: int) -> Reply:
        """GET /api/v2/public/<method>; errors come with HTTP 400, too many requests with 429."""
        started_us = now_ms * 1000
        method = path.removeprefix("/api/v2/")
        try:
            if self.faults.take("rate_limit", self.worker):
                raise RpcError(10028, "too_many_requests")
            self._spend(method, now_ms)
            result = self._data.call(method, dict(query), now_ms)
        except RpcError as error:
            body = _error_text(None, error, started_us)
            return Reply(429, body, {"Retry-After": "1"}) if error.code == 10028 else Reply(400, body)
        return Reply(200, _result_text(None, result, started_us))

    def _spend(self, method: str, now_ms: int) -> None:
        if self._rest_credits is None:
            self._rest_credits = Credits.full(_METHOD_POOL, now_ms)
        cost = _INSTRUMENTS_COST if method == "public/get_instruments" else _METHOD_COST
        if not self._rest_credits.spend(cost, now_ms):
            raise RpcError(10028, "too_many_requests")

    def notice(self, now_ms: int) -> list[Outgoing]:
        """platform_state with maintenance, to those who subscribed."""
        text = _notification("platform_state", '{"maintenance":true}')
        listeners = tuple(self.subscribers.get("platform_state", {}))
        return [Outgoing(listeners, text, "other", self.worker)] if listeners else []


def _notification(channel: str, data: str) -> str:
    return f'{{"jsonrpc":"2.0","method":"subscription","params":{{"channel":"{channel}","data":{data}}}}}'


def _times(started_us: int) -> dict[str, object]:
    spent_us = 100 + started_us % 977
    return {"usIn": started_us, "usOut": started_us + spent_us, "usDiff": spent_us, "testnet": False}


def _result_text(number: object, result: object, started_us: int) -> str:
    identity = {} if number is None else {"id": number}
    return dump({"jsonrpc": "2.0", **identity, "result": result, **_times(started_us)})


def _error_text(number: object, error: RpcError, started_us: int) -> str:
    identity = {} if number is None else {"id": number}
    body: dict[str, object] = {"code": error.code, "message": error.message}
    if error.data is not None:
        body["data"] = error.data
    return dump({"jsonrpc": "2.0", **identity, "error": body, **_times(started_us)})


def _tick_direction(before: int, now: int) -> int:
    """0 plus, 1 zero-plus, 2 minus, 3 zero-minus tick."""
    return 0 if now > before else 2 if now < before else 1
