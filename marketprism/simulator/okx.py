"""The websocket face of OKX v5, for spot or SWAP instruments.

Sources: OKX API guide v5 ("WebSocket", "Order book channel", "Trades channel", public data channels) and its changelog;
captured frames. REST is in okx_rest.py.
"""

from collections.abc import Callable, Mapping
from itertools import groupby

import msgspec

from marketprism.simulator.face import Face, Refused, Reply, World, dump, parse
from marketprism.simulator.faults import Fault
from marketprism.simulator.instruments import Instrument
from marketprism.simulator.market import ASK, BID, SELL, Market, Order
from marketprism.simulator.messages import Connection, Outgoing
from marketprism.simulator.okx_rest import OkxRest
from marketprism.simulator.okx_text import checksum_of, level_texts, push, trade_fields
from marketprism.simulator.options import STEPS_PER_WINDOW
from marketprism.simulator.series import Figures, funding_times_ms
from marketprism.simulator.truth import BookLog, Ledger, Levels, LiquidationRecord, TradeLog, TradeRow

WINDOW_LEVELS = 400
_OPERATIONS_PER_HOUR = 480
_REQUEST_BYTES = 65_536
_IDLE_MS = 30_000
_KEEPALIVE_MS = 60_000
_LOGIN_CHANNELS = ("books-l2-tbt", "books50-l2-tbt")
_BOTH = ("books", "books5", "bbo-tbt", "trades")
_SHORT = {"books5": 5, "bbo-tbt": 1}  # channel → levels a side
_SWAP_ONLY = ("funding-rate", "open-interest", "mark-price")
_FIRST_RESET_ID = 1_000_000_000


class OkxInstrument:
    """One instrument: its market, the window it has published, its sequence."""

    __slots__ = (
        "figures", "instrument", "ledger", "market", "noted", "published", "published_ms", "resets", "seq_id",
        "top", "touched", "trade_id",
    )  # fmt: skip

    def __init__(self, market: Market, ledger: Ledger, figures: Figures, trade_id: int) -> None:
        self.market = market
        self.instrument: Instrument = market.instrument
        self.ledger = ledger
        self.figures = figures
        self.trade_id = trade_id
        self.seq_id = ledger.book.last_id
        self.published: Levels = dict(ledger.book.state)
        self.published_ms = 0
        self.resets = 0
        self.touched = False
        self.noted: set[int] = set()  # keys changed under ids between two messages
        self.top: tuple[int, int, int, int] = (0, 0, 0, 0)

    def window(self) -> Levels:
        """The best 400 levels a side now."""
        return window_of(self.market)

    def note(self, update_id: int) -> None:
        """Write the window as it is now to the truth under this id."""
        log = self.ledger.book
        for key, lots in changes(log.state, self.window()).items():
            log.add(update_id, key, lots)
            self.noted.add(key)

    @property
    def index_id(self) -> str:
        """The index behind a SWAP, e.g. BTC-USDT."""
        return f"{self.instrument.base}-{self.instrument.quote}"


def window_of(market: Market) -> Levels:
    """The best 400 levels a side of a market, lots by key."""
    bids, asks = market.ladders
    bid_lots, ask_lots = bids.lots, asks.lots
    window = {tick * 2 + BID: bid_lots[tick] for tick in bids.top(WINDOW_LEVELS)}
    for tick in asks.top(WINDOW_LEVELS):
        window[tick * 2 + ASK] = ask_lots[tick]
    return window


def changes(old: Levels, new: Levels) -> Levels:
    """What turns the old levels into the new: lots by key, 0 for a level that left."""
    known = old.get
    changed = {key: lots for key, lots in new.items() if known(key) != lots}
    for key in old.keys() - new.keys():
        changed[key] = 0
    return changed


class OkxFace(Face):
    """OKX: one public websocket endpoint for books, trades and public data."""

    book_request = ("market/books", "instId")
    messages_per_order = 1.01  # aggregated trades
    connects = (3, 1000)

    def __init__(self, worker: str, world: World) -> None:
        super().__init__(worker, world)
        self.instrument_type = "SPOT" if worker == "okx_spot" else "SWAP"
        self.listed: dict[str, OkxInstrument] = {}
        for market in self.make_markets():
            self.listed[market.instrument.id] = self._enter(market)
        self.indexes = {one.index_id: one for one in self.listed.values()}
        self._operations: dict[Connection, list[int]] = {}
        self._rest = OkxRest(self)
        self.acts["okx_keepalive"] = self._keep_alive
        self.acts["okx_operations_spent"] = self._spend_operations
        self._timers: list[tuple[int, str, Callable[[OkxInstrument, int], dict[str, str]]]] = [
            (20, "mark-price", self.mark_row),
            (300, "open-interest", self.interest_row),
            (3000, "funding-rate", self.funding_row),
        ]

    def _enter(self, market: Market) -> OkxInstrument:
        first_id = 80_274_874_000 + self.rng.randrange(10**9)
        keep_s = self.options.keep_s
        book = BookLog(first_id, window_of(market), keep_s)
        ledger = self.truth.enter(Ledger(market.instrument, book, TradeLog(keep_s), TradeLog(keep_s)))
        seed = f"{self.options.seed}/{self.worker}/{market.instrument.id}"
        figures = Figures(seed, 2.8e9 if market.instrument.base == "BTC" else 9e8)
        trade_id = 700_000_000 + self.rng.randrange(10**8)
        return OkxInstrument(market, ledger, figures, trade_id)

    # -- connections ---------------------------------------------------------------------------------------

    def connect(self, path: str, query: Mapping[str, str], now_ms: int) -> Connection:
        """/ws/v5/public, and /ws/v5/business for trades-all."""
        if path not in ("/ws/v5/public", "/ws/v5/business"):
            raise Refused(404, f"no websocket at {path}: expected /ws/v5/public")
        connection = self.open(path, now_ms)
        self._operations[connection] = []
        return connection

    def disconnect(self, connection: Connection) -> None:
        """The websocket is gone, and its count of operations with it."""
        super().disconnect(connection)
        self._operations.pop(connection, None)

    def receive(self, connection: Connection, text: str, now_ms: int) -> list[Outgoing]:
        """The text `ping`, or subscribe and unsubscribe; one answer per argument."""
        connection.last_in_ms = now_ms
        if text == "ping":
            return [] if self.faults.take("okx_no_pong", self.worker) else [self.reply(connection, "pong")]
        request = self._request(text)
        if request is None:
            return [self._error(connection, "60012", f"Invalid request: {text[:200]}")]
        if self.faults.take("okx_error_60012", self.worker):
            return [self._error(connection, "60012", f"Invalid request: {text[:200]}")]
        if self.faults.take("okx_error_60011", self.worker):
            return [self._error(connection, "60011", "Please log in")]
        operation, arguments = request
        if not self._allowed(connection, now_ms):
            return [self._error(connection, "60014", "Requests too frequent")]
        answers: list[Outgoing] = []
        for argument in arguments:
            answers += self._perform(connection, operation, argument)
        return answers

    def _request(self, text: str) -> tuple[str, list[dict[str, str]]] | None:
        if len(text) > _REQUEST_BYTES:
            return None
        try:
            request = msgspec.convert(parse(text), dict[str, object])
            arguments = msgspec.convert(request.get("args"), list[dict[str, str]])
        except (msgspec.DecodeError, msgspec.ValidationError):
            return None
        operation = request.get("op")
        return (str(operation), arguments) if operation in ("subscribe", "unsubscribe") else None

    def _allowed(self, connection: Connection, now_ms: int) -> bool:
        """480 subscribe and unsubscribe requests a connection and hour."""
        done = self._operations[connection]
        done[:] = [at for at in done if at > now_ms - 3_600_000]
        done.append(now_ms)
        return len(done) <= _OPERATIONS_PER_HOUR

    def _error(self, connection: Connection, code: str, text: str) -> Outgoing:
        body = {"event": "error", "code": code, "msg": text, "connId": _connection_id(connection)}
        return self.reply(connection, dump(body))

    def _perform(self, connection: Connection, operation: str, argument: dict[str, str]) -> list[Outgoing]:
        channel = argument.get("channel", "")
        if channel in _LOGIN_CHANNELS:
            return [self._error(connection, "60011", "Please log in")]
        topic = self._topic(connection, argument)
        if topic is None:
            where = ",".join(f"{name}:{value}" for name, value in argument.items())
            text = f"Wrong URL or {where} doesn't exist. Please use the correct URL, channel and parameters."
            return [self._error(connection, "60018", text)]
        ack = {"event": operation, "arg": argument, "connId": _connection_id(connection)}
        answers = [self.reply(connection, dump(ack))]
        if operation == "unsubscribe":
            self.unsubscribe(connection, topic)
        elif topic not in connection.topics:
            self.subscribe(connection, topic)
            answers += self._first(connection, channel, argument)
        return answers

    def _topic(self, connection: Connection, argument: dict[str, str]) -> str | None:
        """The topic of an argument this endpoint serves, else None."""
        channel, name = argument.get("channel", ""), argument.get("instId", "")
        if connection.path.endswith("business"):
            return f"trades-all {name}" if channel == "trades-all" and name in self.listed else None
        if channel == "liquidation-orders":
            known = argument.get("instType") == self.instrument_type == "SWAP"
            return f"{channel} SWAP" if known else None
        if channel == "index-tickers":
            return f"{channel} {name}" if name in self.indexes else None
        served = _BOTH if self.instrument_type == "SPOT" else (*_BOTH, *_SWAP_ONLY)
        return f"{channel} {name}" if channel in served and name in self.listed else None

    def _first(self, connection: Connection, channel: str, argument: dict[str, str]) -> list[Outgoing]:
        """What a new subscriber gets at once: the book snapshot, and slow figures as they are."""
        one = self.listed.get(argument.get("instId", ""))
        if one is None:
            return []
        if channel == "books" and self._sends_snapshot(one):
            text = self._book_text(one, "snapshot", one.published, -1, one.seq_id, connection.last_in_ms)
            return [self.snapshot(connection, text, one.instrument.id)]
        if channel in _SHORT:
            text = self._short_text(one, channel, self.snapshot_id(one), connection.last_in_ms)
            return [self.reply(connection, text)]
        for _, name, row in self._timers:
            if name == channel:
                data = push(channel, one.instrument.id, dump(row(one, connection.last_in_ms)))
                return [self.reply(connection, data)]
        return []

    def _sends_snapshot(self, one: OkxInstrument) -> bool:
        return self.options.okx_snapshot and not self.faults.active(
            "okx_no_snapshot", self.worker, one.instrument.id
        )

    def _spend_operations(self, fault: Fault, now_ms: int) -> list[Outgoing]:
        for done in self._operations.values():
            done[:] = [now_ms] * _OPERATIONS_PER_HOUR
        return []

    # -- time passes ---------------------------------------------------------------------------------------

    def advance(self, now_ms: int) -> None:
        """One step of every instrument."""
        for one in self.listed.values():
            market = one.market
            market.step()
            for order in market.orders:
                self._tell_order(one, order, now_ms)
            moved = bool(market.ops)
            one.touched |= moved
            if (self.steps + one.market.phase) % STEPS_PER_WINDOW == 0:
                self._tell_book(one, now_ms)
            if moved:
                self._tell_top(one, now_ms)
            self._tell_timers(one, now_ms)
        if self.steps % 100 == 0:
            self._drop_idle(now_ms)
        for message in self._outgoing:
            for connection in message.connections:
                connection.last_out_ms = now_ms

    def _drop_idle(self, now_ms: int) -> None:
        """A connection with nothing pushed and nothing received for 30 s is dropped."""
        for connection in self.connections:
            if now_ms - max(connection.last_in_ms, connection.last_out_ms) > _IDLE_MS:
                connection.closing = (4004, "No data received in 30s.")

    def _tell_timers(self, one: OkxInstrument, now_ms: int) -> None:
        name = one.instrument.id
        if self.instrument_type == "SWAP":
            for steps, channel, row in self._timers:
                if self.steps % steps == 0 and f"{channel} {name}" in self.subscribers:
                    self.send(f"{channel} {name}", push(channel, name, dump(row(one, now_ms))), "other", name)
        index = one.index_id
        if self.steps % STEPS_PER_WINDOW == 0 and f"index-tickers {index}" in self.subscribers:
            text = push("index-tickers", index, dump(self.index_row(one, now_ms)))
            self.send(f"index-tickers {index}", text, "other", name)

    # -- books ---------------------------------------------------------------------------------------------

    def _tell_book(self, one: OkxInstrument, now_ms: int) -> None:
        name = one.instrument.id
        if one.touched:
            one.touched = False
            window = one.window()
            changed = changes(one.published, window)
            # who was seeded between two messages must hear of every level that moved, there and back, too
            changed |= {key: window.get(key, 0) for key in one.noted}
            one.noted.clear()
            if changed:
                self._tell_change(one, changed, window, now_ms)
                return
        if one.published_ms and now_ms - one.published_ms < _KEEPALIVE_MS:
            return
        if one.published_ms:
            self.send(f"books {name}", self._keepalive_text(one, now_ms), "other", name)
        one.published_ms = now_ms

    def _keepalive_text(self, one: OkxInstrument, now_ms: int) -> str:
        return self._book_text(one, "update", {}, one.seq_id, one.seq_id, now_ms)

    def _keep_alive(self, fault: Fault, now_ms: int) -> list[Outgoing]:
        told: list[Outgoing] = []
        for name, one in self.listed.items():
            listeners = tuple(self.subscribers.get(f"books {name}", ()))
            if listeners and fault.instrument in (None, name):
                text = self._keepalive_text(one, now_ms)
                told.append(Outgoing(listeners, text, "other", self.worker, name))
        return told

    def _tell_change(self, one: OkxInstrument, changed: Levels, window: Levels, now_ms: int) -> None:
        name, previous = one.instrument.id, one.seq_id
        one.seq_id = self._next_id(one)
        log = one.ledger.book
        for key, lots in changed.items():
            if log.state.get(key, 0) != lots:
                log.add(one.seq_id, key, lots)
        log.publish(one.seq_id, now_ms)
        one.published, one.published_ms = window, now_ms
        if f"books {name}" in self.subscribers:
            if self.faults.busy:
                changed = changed | self._faulty_levels(one, changed)
            text = self._book_text(one, "update", changed, previous, one.seq_id, now_ms)
            self.send(f"books {name}", text, "book", name)
        if f"books5 {name}" in self.subscribers:
            self.send(f"books5 {name}", self._short_text(one, "books5", one.seq_id, now_ms), "other", name)

    def _faulty_levels(self, one: OkxInstrument, changed: Levels) -> Levels:
        name, levels = one.instrument.id, Levels()
        if self.faults.take("cross", self.worker, name):
            levels[(one.market.best_ask + 3) * 2 + BID] = 1000
        if self.faults.take("orphan_deletes", self.worker, name):
            levels |= dict.fromkeys(one.market.vacant(changed), 0)
        if self.faults.take("wrong_level", self.worker, name):
            levels |= one.market.wrong_level()
        return levels

    def _next_id(self, one: OkxInstrument) -> int:
        """The next seqId: some way on, or, after maintenance, a far smaller one."""
        log = one.ledger.book
        if self.faults.take("okx_reset", self.worker, one.instrument.id):
            one.resets += 1
            first_id: int = max(10, _FIRST_RESET_ID // 100 ** (one.resets - 1))
            log.reset(first_id)
            return first_id + 3
        return max(one.seq_id + self.rng.randrange(7, 94), log.last_id + 1)

    def snapshot_id(self, one: OkxInstrument) -> int:
        """An id for the book as it is in the middle of a window: REST, `bbo-tbt`."""
        if not one.touched or not changes(one.ledger.book.state, one.window()):
            return one.ledger.book.last_id
        update_id = one.ledger.book.last_id + 1
        one.note(update_id)
        return update_id

    def _book_text(
        self, one: OkxInstrument, action: str, levels: Levels, previous: int, seq_id: int, now_ms: int
    ) -> str:
        asks, bids = level_texts(one.instrument, levels)
        checksum = self._checksum(one)
        ids = f'"ts":"{now_ms}"{checksum},"seqId":{seq_id},"prevSeqId":{previous}'
        head = f'{{"arg":{{"channel":"books","instId":"{one.instrument.id}"}},"action":"{action}"'
        return f'{head},"data":[{{"asks":[{asks}],"bids":[{bids}],{ids}}}]}}'

    def _checksum(self, one: OkxInstrument) -> str:
        """The field as it is since 2026-06-23 (always 0), left out, or as it was before (CRC32 of 25 levels)."""
        how = self.options.checksum
        if self.faults.active("okx_checksum_absent", self.worker, one.instrument.id):
            how = "absent"
        elif self.faults.active("okx_checksum_zero", self.worker, one.instrument.id):
            how = "zero"
        if how == "absent":
            return ""
        if how == "zero":
            return ',"checksum":0'
        return f',"checksum":{checksum_of(one.instrument, one.published)}'

    def _short_text(self, one: OkxInstrument, channel: str, seq_id: int, now_ms: int) -> str:
        bids, asks = one.market.ladders
        count = _SHORT[channel]
        levels = {tick * 2 + BID: bids.lots[tick] for tick in bids.top(count)}
        levels |= {tick * 2 + ASK: asks.lots[tick] for tick in asks.top(count)}
        ask_texts, bid_texts = level_texts(one.instrument, levels)
        name = one.instrument.id
        body = f'"asks":[{ask_texts}],"bids":[{bid_texts}],"instId":"{name}","ts":"{now_ms}","seqId":{seq_id}'
        return push(channel, name, f"{{{body}}}")

    def _tell_top(self, one: OkxInstrument, now_ms: int) -> None:
        name = one.instrument.id
        if f"bbo-tbt {name}" not in self.subscribers:
            return
        bids, asks = one.market.ladders
        top = (bids.best, bids.lots[bids.best], asks.best, asks.lots[asks.best])
        if top != one.top:
            one.top = top
            text = self._short_text(one, "bbo-tbt", self.snapshot_id(one), now_ms)
            self.send(f"bbo-tbt {name}", text, "other", name)

    # -- trades --------------------------------------------------------------------------------------------

    def _tell_order(self, one: OkxInstrument, order: Order, now_ms: int) -> None:
        traded_ms = now_ms - 1
        for tick, fills in groupby(order.fills, key=lambda fill: fill[0]):
            first_id, total = one.trade_id + 1, 0
            for _, lots in fills:
                one.trade_id += 1
                total += lots
                number = one.trade_id
                row = TradeRow(number, number, number, tick, lots, traded_ms, order.side, order.forced)
                one.ledger.fills.add(row)
                self._tell_trade(one, "trades-all", row)
            last_id = one.trade_id
            row = TradeRow(last_id, first_id, last_id, tick, total, traded_ms, order.side, order.forced)
            one.ledger.aggregates.add(row)
            self._tell_trade(one, "trades", row)
        if order.forced:
            self._tell_forced(one, order, now_ms)

    def _tell_trade(self, one: OkxInstrument, channel: str, row: TradeRow) -> None:
        name = one.instrument.id
        topic = f"{channel} {name}"
        if topic not in self.subscribers:
            return
        count = f',"count":"{row.last_id - row.first_id + 1}"' if channel == "trades" else ""
        body = f'{trade_fields(one.instrument, row)}{count},"source":"0","seqId":{one.seq_id}'
        self.send(topic, push(channel, name, f"{{{body}}}"), "trade", name)

    def _tell_forced(self, one: OkxInstrument, order: Order, now_ms: int) -> None:
        name, instrument = one.instrument.id, one.instrument
        bankrupt = instrument.price_text(order.fills[-1][0] + (-20 if order.side == SELL else 20))
        size = instrument.quantity_text(sum(lots for _, lots in order.fills))
        side, position = ("sell", "long") if order.side == SELL else ("buy", "short")
        one.ledger.liquidations.append(LiquidationRecord(side, bankrupt, size, now_ms))
        detail = {"bkLoss": "0", "bkPx": bankrupt, "ccy": "", "posSide": position, "side": side, "sz": size}
        row = {
            "details": [detail | {"ts": str(now_ms)}],
            "instFamily": one.index_id,
            "instId": name,
            "instType": "SWAP",
            "uly": one.index_id,
        }
        text = dump({"arg": {"channel": "liquidation-orders", "instType": "SWAP"}, "data": [row]})
        self.send("liquidation-orders SWAP", text, "other", name)

    # -- public data ---------------------------------------------------------------------------------------

    def index_price(self, one: OkxInstrument) -> float:
        """The asset's own price, without the contract's basis."""
        return self.underlyings.fair(one.instrument.base, one.instrument.quote, self.steps)

    def mark_row(self, one: OkxInstrument, now_ms: int) -> dict[str, str]:
        """A row of mark-price."""
        mark = one.instrument.price_text(int(one.market.fair / one.instrument.ticks.size))
        return {"instType": "SWAP", "instId": one.instrument.id, "markPx": mark, "ts": str(now_ms)}

    def index_row(self, one: OkxInstrument, now_ms: int) -> dict[str, str]:
        """A row of index-tickers."""
        price = f"{self.index_price(one):.2f}"
        day = dict.fromkeys(("open24h", "high24h", "low24h", "sodUtc0", "sodUtc8"), price)
        return {"instId": one.index_id, "idxPx": price, **day, "ts": str(now_ms)}

    def interest_row(self, one: OkxInstrument, now_ms: int) -> dict[str, str]:
        """A row of open-interest: contracts, coins and USD."""
        instrument, usd = one.instrument, one.figures.open_interest_usd.at(now_ms)
        coins = usd / one.market.fair
        inverse = instrument.kind == "inverse"
        contracts = (usd if inverse else coins) / float(instrument.contract_value)
        return {
            "instType": "SWAP",
            "instId": instrument.id,
            "oi": f"{contracts:.2f}",
            "oiCcy": f"{coins:.4f}",
            "oiUsd": f"{usd:.4f}",
            "ts": str(now_ms),
        }

    def funding_row(self, one: OkxInstrument, now_ms: int) -> dict[str, str]:
        """A row of funding-rate; nextFundingRate is empty, as under the current-period method."""
        due, following = funding_times_ms(now_ms)[1], funding_times_ms(now_ms)[1] + 28_800_000
        rate = one.figures.funding
        return {
            "formulaType": "withRate",
            "fundingRate": f"{rate.at(now_ms):.16f}",
            "fundingTime": str(due),
            "impactValue": "20000.0000000000000000",
            "instId": one.instrument.id,
            "instType": "SWAP",
            "interestRate": "0.0001000000000000",
            "maxFundingRate": "0.00375",
            "method": "current_period",
            "minFundingRate": "-0.00375",
            "nextFundingRate": "",
            "nextFundingTime": str(following),
            "premium": f"{one.market.fair / self.index_price(one) - 1.0:.16f}",
            "settFundingRate": f"{rate.at(due - 28_800_000):.16f}",
            "settState": "settled",
            "ts": str(now_ms),
        }

    # -- the rest ------------------------------------------------------------------------------------------

    def rest(self, path: str, query: Mapping[str, str], now_ms: int) -> Reply:
        """See okx_rest.py."""
        return self._rest.get(path, query, now_ms)

    def notice(self, now_ms: int) -> list[Outgoing]:
        """Code 64008: the connection will be closed for an upgrade in about a minute."""
        text = "The connection will soon be closed for a service upgrade. Please reconnect."
        body = {"event": "notice", "code": "64008", "msg": text}
        return [self.reply(one, dump(body | {"connId": _connection_id(one)})) for one in self.connections]


def _connection_id(connection: Connection) -> str:
    return f"{connection.number * 2_654_435_761 % 2**32:08x}"
