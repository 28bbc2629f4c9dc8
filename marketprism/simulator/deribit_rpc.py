"""Deribit's public methods and the bodies they share with the channels."""

from collections.abc import Callable, Mapping
from itertools import islice
from typing import TYPE_CHECKING

from marketprism.simulator.deribit_text import number_text
from marketprism.simulator.instruments import Instrument
from marketprism.simulator.market import ASK, BID, SELL
from marketprism.simulator.truth import TradeRow, deribit_trade_id, split

if TYPE_CHECKING:
    from marketprism.simulator.deribit import DeribitFace, DeribitInstrument

_RESOLUTIONS_S = {"1": 1, "60": 60, "3600": 3600, "43200": 43_200, "1D": 86_400}
_CANDLES = 1000
_DEPTHS = (1, 5, 10, 20, 50, 100, 1000, 10_000)

Parameters = Mapping[str, object]


class RpcError(Exception):
    """A JSON-RPC error answer."""

    def __init__(self, code: int, message: str, data: object = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data


class MarketData:
    """The public methods that read."""

    def __init__(self, face: "DeribitFace") -> None:
        self._face = face
        self._methods: dict[str, Callable[[Parameters, int], object]] = {
            "public/test": lambda parameters, now_ms: {"version": "1.2.26"},
            "public/get_time": lambda parameters, now_ms: now_ms,
            "public/get_instruments": self._instruments,
            "public/get_instrument": lambda parameters, now_ms: _instrument_body(
                self._one(parameters).instrument
            ),
            "public/get_order_book": self._order_book,
            "public/get_last_trades_by_instrument": self._last_trades,
            "public/get_book_summary_by_currency": self._summaries,
            "public/get_book_summary_by_instrument": lambda parameters, now_ms: [
                self._summary(self._one(parameters), now_ms)
            ],
            "public/ticker": lambda parameters, now_ms: self.ticker(self._one(parameters), now_ms),
            "public/get_volatility_index_data": self._volatility,
        }

    def call(self, method: str, parameters: Parameters, now_ms: int) -> object:
        """The result of a method. Raises RpcError."""
        handler = self._methods.get(method)
        if handler is None:
            raise RpcError(-32601, "Method not found")
        return handler(parameters, now_ms)

    # -- bodies --------------------------------------------------------------------------------------------

    def trade_body(self, one: "DeribitInstrument", row: TradeRow, tick_direction: int) -> dict[str, object]:
        """One trade; `liquidation` only where a side was forced (T: the taker)."""
        instrument = one.instrument
        amount = float(instrument.quantity_text(row.lots))
        body: dict[str, object] = {
            "trade_seq": row.id,
            "trade_id": deribit_trade_id(instrument.id, row.first_id),
            "timestamp": row.ts_ms,
            "tick_direction": tick_direction,
            "price": float(instrument.price_text(row.tick)),
            "mark_price": round(one.market.fair, 2),
            "instrument_name": instrument.id,
            "index_price": self._index_price(one),
            "direction": "sell" if row.side == SELL else "buy",
            "contracts": amount / _contract_size(instrument),
            "amount": amount,
        }
        return body | {"liquidation": "T"} if row.forced else body

    def ticker(self, one: "DeribitInstrument", now_ms: int) -> dict[str, object]:
        """The ticker as the method gives it."""
        instrument, market = one.instrument, one.market
        price = market.fair
        bids, asks = market.ladders
        funding = one.figures.funding.at(now_ms)
        day = {"high": round(price * 1.02, 1), "low": round(price * 0.97, 1), "price_change": 1.3}
        volume = {"volume": 7539.21, "volume_usd": 7539.21 * price, "volume_notional": 7539.21 * price}
        return {
            "timestamp": now_ms,
            "state": "open",
            "stats": day | volume,
            "index_price": self._index_price(one),
            "instrument_name": instrument.id,
            "last_price": float(instrument.price_text(market.last_tick)),
            "settlement_price": round(price * 0.998, 2),
            "min_price": round(price * 0.985, 1),
            "max_price": round(price * 1.015, 1),
            "open_interest": self._open_interest(one, now_ms),
            "mark_price": round(price, 2),
            "interest_value": funding * 1000.0,
            "best_ask_price": float(instrument.price_text(asks.best)),
            "best_bid_price": float(instrument.price_text(bids.best)),
            "estimated_delivery_price": self._index_price(one),
            "best_ask_amount": float(instrument.quantity_text(asks.lots[asks.best])),
            "best_bid_amount": float(instrument.quantity_text(bids.lots[bids.best])),
            "current_funding": funding,
            "funding_8h": funding * 0.9,
        }

    def ticker_text(self, one: "DeribitInstrument", now_ms: int) -> str:
        """The ticker as the channel sends it: small numbers with an exponent."""
        return _object_text(self.ticker(one, now_ms))

    def perpetual_text(self, one: "DeribitInstrument", now_ms: int) -> str:
        """The body of perpetual.{instrument}.100ms."""
        interest = one.figures.funding.at(now_ms)
        body = {"index_price": self._index_price(one), "interest": interest, "timestamp": now_ms}
        return _object_text(body)

    def _index_price(self, one: "DeribitInstrument") -> float:
        instrument, face = one.instrument, self._face
        return round(face.underlyings.fair(instrument.base, instrument.quote, face.steps), 2)

    def _open_interest(self, one: "DeribitInstrument", now_ms: int) -> float:
        """USD for inverse contracts, coins for linear ones."""
        usd = one.figures.open_interest_usd.at(now_ms)
        return float(round(usd, -1)) if one.instrument.kind == "inverse" else round(usd / one.market.fair, 4)

    # -- methods -------------------------------------------------------------------------------------------

    def _one(self, parameters: Parameters) -> "DeribitInstrument":
        name = parameters.get("instrument_name")
        one = self._face.listed.get(str(name))
        if one is None:
            raise RpcError(-32602, "Invalid params", {"param": "instrument_name", "reason": "wrong format"})
        return one

    def _of_currency(self, parameters: Parameters) -> "list[DeribitInstrument]":
        """Instruments of a settlement currency: BTC_USDC-PERPETUAL belongs to USDC, not to BTC."""
        currency, kind = str(parameters.get("currency", "")), parameters.get("kind", "future")
        if not currency:
            raise RpcError(-32602, "Invalid params", {"param": "currency", "reason": "must not be empty"})
        everyone = self._face.listed.values() if kind in ("future", "any") else ()
        return [one for one in everyone if currency in ("any", _settlement(one.instrument))]

    def _instruments(self, parameters: Parameters, now_ms: int) -> object:
        return [_instrument_body(one.instrument) for one in self._of_currency(parameters)]

    def _order_book(self, parameters: Parameters, now_ms: int) -> object:
        one, depth = self._one(parameters), _integer(parameters, "depth", 5)
        if depth not in _DEPTHS:
            raise RpcError(
                -32602, "Invalid params", {"param": "depth", "reason": f"must be one of {_DEPTHS}"}
            )
        instrument = one.instrument
        sides = split(one.book.state)
        levels = [
            [
                [float(instrument.price_text(t)), float(instrument.quantity_text(n))]
                for t, n in islice(side.items(), depth)
            ]
            for side in sides
        ]
        book = {"change_id": one.book.change_id, "bids": levels[BID], "asks": levels[ASK]}
        return self.ticker(one, now_ms) | book

    def _last_trades(self, parameters: Parameters, now_ms: int) -> object:
        """By trade_seq range; without start_seq the newest first, with it oldest first, unless sorting says."""
        one, count = self._one(parameters), min(1000, _integer(parameters, "count", 10))
        log = one.ledger.fills
        start, end = _integer(parameters, "start_seq", 0), _integer(parameters, "end_seq", log.last_id)
        ascending = parameters.get("sorting", "asc" if start else "desc") == "asc"
        if ascending:
            rows = list(islice((row for row in log.rows(start) if row.id <= end), count + 1))
        else:
            rows = [row for row in reversed(log.before(end + 1, count + 1)) if row.id >= start]
        trades = [self.trade_body(one, row, 1) for row in rows[:count]]
        return {"trades": trades, "has_more": len(rows) > count}

    def _summaries(self, parameters: Parameters, now_ms: int) -> object:
        return [self._summary(one, now_ms) for one in self._of_currency(parameters)]

    def _summary(self, one: "DeribitInstrument", now_ms: int) -> dict[str, object]:
        ticker, instrument = self.ticker(one, now_ms), one.instrument
        bid, ask = ticker["best_bid_price"], ticker["best_ask_price"]
        same = ("instrument_name", "open_interest", "mark_price", "current_funding", "funding_8h")
        assert isinstance(bid, float)
        assert isinstance(ask, float)
        return {name: ticker[name] for name in (*same, "estimated_delivery_price")} | {
            "base_currency": instrument.base,
            "quote_currency": instrument.quote,
            "creation_timestamp": now_ms,
            "bid_price": bid,
            "ask_price": ask,
            "mid_price": (bid + ask) / 2,
            "last": ticker["last_price"],
            "volume": 7539.21,
            "volume_usd": 7539.21 * bid,
        }

    def _volatility(self, parameters: Parameters, now_ms: int) -> object:
        """Candles [ts, open, high, low, close], oldest first; continuation is the next end_timestamp."""
        wave = self._face.volatility.get(str(parameters.get("currency", "")).lower())
        if wave is None:
            raise RpcError(-32602, "Invalid params", {"param": "currency", "reason": "invalid currency"})
        resolution = _RESOLUTIONS_S.get(str(parameters.get("resolution", "")))
        if resolution is None:
            raise RpcError(
                -32602, "Invalid params", {"param": "resolution", "reason": f"one of {[*_RESOLUTIONS_S]}"}
            )
        step = resolution * 1000
        start = -(-_integer(parameters, "start_timestamp", None) // step) * step
        end = min(now_ms, _integer(parameters, "end_timestamp", None)) // step * step
        first = max(start, end - (_CANDLES - 1) * step)
        rows = [
            _candle(at, [wave.at(min(now_ms, at + part * step / 4)) for part in range(5)])
            for at in range(first, end + 1, step)
        ]
        return {"data": rows, "continuation": first - step if first > start else None}


def _candle(at_ms: int, values: list[float]) -> list[float]:
    return [at_ms, *(round(value, 4) for value in (values[0], max(values), min(values), values[-1]))]


def _object_text(body: Mapping[str, object]) -> str:
    """A JSON object whose floats are written as Deribit writes them."""
    return "{" + ",".join(f'"{name}":{_value_text(value)}' for name, value in body.items()) + "}"


def _value_text(value: object) -> str:
    if isinstance(value, dict):
        return _object_text(value)
    if isinstance(value, float):
        return number_text(value)
    return f'"{value}"' if isinstance(value, str) else str(value)


def _integer(parameters: Parameters, name: str, default: int | None) -> int:
    value = parameters.get(name, default)
    if isinstance(value, int):
        return value
    if isinstance(value, str) and value.isdigit():
        return int(value)
    raise RpcError(-32602, "Invalid params", {"param": name, "reason": "must be an integer"})


def _contract_size(instrument: Instrument) -> float:
    """What one contract is: 10 USD for BTC, 1 USD for ETH, one lot for linear ones."""
    return instrument.lots.size


def _settlement(instrument: Instrument) -> str:
    return instrument.base if instrument.kind == "inverse" else instrument.quote


def _instrument_body(instrument: Instrument) -> dict[str, object]:
    inverse = instrument.kind == "inverse"
    form = "reversed" if inverse else "linear"
    return {
        "price_index": f"{instrument.base}_{instrument.quote}".lower(),
        "kind": "future",
        "instrument_name": instrument.id,
        "max_leverage": 50,
        "maker_commission": 0.0,
        "taker_commission": 0.0005,
        "instrument_type": form,
        "expiration_timestamp": 32503708800000,
        "creation_timestamp": 1534167754000,
        "is_active": True,
        "tick_size": instrument.ticks.size,
        "contract_size": _contract_size(instrument),
        "instrument_id": 124972,
        "min_trade_amount": instrument.lots.size,
        "future_type": form,
        "settlement_currency": _settlement(instrument),
        "settlement_period": "perpetual",
        "base_currency": instrument.base,
        "counter_currency": instrument.quote,
        "quote_currency": instrument.quote,
        "tick_size_steps": [],
    }
