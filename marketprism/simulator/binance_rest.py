"""The REST faces of Binance spot and USD-M futures.

Sources: Binance spot-api-docs, rest-api.md; USD-M "Market Data Endpoints"; recorded bodies.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from marketprism.simulator.face import Reply, dump
from marketprism.simulator.instruments import Instrument
from marketprism.simulator.market import SELL
from marketprism.simulator.series import funding_times_ms
from marketprism.simulator.truth import TradeRow, split

if TYPE_CHECKING:
    from marketprism.simulator.binance import BinanceFace, BinanceSymbol

_PERIODS_MS = {
    "5m": 300_000, "15m": 900_000, "30m": 1_800_000, "1h": 3_600_000, "2h": 7_200_000, "4h": 14_400_000,
    "6h": 21_600_000, "12h": 43_200_000, "1d": 86_400_000,
}  # fmt: skip
_USDM_DEPTH_WEIGHTS = {5: 2, 10: 2, 20: 2, 50: 2, 100: 5, 500: 10, 1000: 20}
_SPOT_WEIGHTS = {"trades": 25, "historicalTrades": 25, "aggTrades": 4, "exchangeInfo": 20}
_USDM_WEIGHTS = {"trades": 5, "historicalTrades": 20, "aggTrades": 20, "exchangeInfo": 1, "premiumIndex": 1}
_REFUSALS_BEFORE_BAN = 5
_BAN_S = 120
_FUTURES_DATA_PER_5_MIN = 1000
_STALE_MESSAGES = 100  # of 100 ms each

Query = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Flavor:
    """What differs between spot and USD-M besides the messages."""

    prefix: str
    weight_per_minute: int
    incoming_per_s: int
    ping_interval_s: float


class _BadRequest(Exception):  # noqa: N818 - an answer, not an error of ours
    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class _Budget:
    """Weight per minute: over it 429, and 418 for those who do not listen."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._minute = 0
        self._refused = 0
        self._banned_until_ms = 0

    def spend(self, weight: int, now_ms: int) -> Reply | None:
        """None, or the refusal."""
        if now_ms < self._banned_until_ms:
            return self._refusal(418, (self._banned_until_ms - now_ms) // 1000 + 1)
        if now_ms // 60_000 != self._minute:
            self._minute, self.used, self._refused = now_ms // 60_000, 0, 0
        self.used += weight
        if self.used <= self.limit:
            return None
        self._refused += 1
        if self._refused > _REFUSALS_BEFORE_BAN:
            self._banned_until_ms = now_ms + _BAN_S * 1000
            return self._refusal(418, _BAN_S)
        return self._refusal(429, 60 - now_ms // 1000 % 60)

    def _refusal(self, status: int, wait_s: int) -> Reply:
        text = f"Too much request weight used; current limit is {self.limit} request weight per 1 MINUTE."
        return Reply(status, dump({"code": -1003, "msg": text}), {"Retry-After": str(wait_s)})


class BinanceRest:
    """GET requests of one Binance face."""

    def __init__(self, face: "BinanceFace") -> None:
        self._face = face
        self._flavor = face.flavor
        self._budget = _Budget(face.flavor.weight_per_minute)
        self._data_budget = _Budget(_FUTURES_DATA_PER_5_MIN)
        self._wait_ms = self._wait_until_ms = self._banned_until_ms = 0
        self._handlers: dict[str, Callable[[Query, int], object]] = {
            "ping": lambda query, now_ms: {},
            "time": lambda query, now_ms: {"serverTime": now_ms},
            "depth": self._depth,
            "trades": self._trades,
            "historicalTrades": self._historical,
            "aggTrades": self._aggregates,
            "exchangeInfo": self._exchange_info,
        }
        if not face.spot:
            self._handlers |= {
                "premiumIndex": self._premium_index,
                "fundingInfo": self._funding_info,
                "fundingRate": self._funding_rate,
                "openInterest": self._open_interest,
            }
        self._data: dict[str, Callable[[BinanceSymbol, int], dict[str, str]]] = {
            "topLongShortPositionRatio": lambda one, at: _ratio_row(one.figures.position_ratio.at(at)),
            "topLongShortAccountRatio": lambda one, at: _ratio_row(one.figures.top_account_ratio.at(at)),
            "globalLongShortAccountRatio": lambda one, at: _ratio_row(one.figures.account_ratio.at(at)),
            "openInterestHist": self._interest_row,
        }

    def get(self, path: str, query: Query, now_ms: int) -> Reply:
        """The answer to one request."""
        if refusal := self._told_off(now_ms):
            return refusal
        prefix, _, name = path.rpartition("/")
        try:
            if prefix == "/futures/data" and name in self._data and not self._face.spot:
                refusal = self._data_budget.spend(1, now_ms)
                return refusal or Reply(200, dump(self._history(name, query, now_ms)))
            if prefix != self._flavor.prefix or name not in self._handlers:
                return Reply(404, dump({"code": -1000, "msg": f"Path {path}, Method GET is invalid"}))
            return self._weighed(name, query, now_ms)
        except _BadRequest as bad:
            return Reply(400, dump({"code": bad.code, "msg": bad.text}))

    def _told_off(self, now_ms: int) -> Reply | None:
        """429 on demand; who does not wait as long as that said is banned for as long again: 418."""
        faults, worker = self._face.faults, self._face.worker
        if now_ms < self._wait_until_ms:
            self._banned_until_ms = now_ms + self._wait_ms
            self._wait_until_ms = 0
        if now_ms < self._banned_until_ms:
            return _too_many(418, self._banned_until_ms - now_ms)
        if faults.take("rate_limit", worker):
            return _too_many(429, 1000)
        if fault := faults.take("rate_limit_ban", worker):
            self._wait_ms = max(1000, int(fault.seconds * 1000))
            self._wait_until_ms = now_ms + self._wait_ms
            return _too_many(429, self._wait_ms)
        return None

    def _weighed(self, name: str, query: Query, now_ms: int) -> Reply:
        refusal = self._budget.spend(self._weight(name, query), now_ms)
        headers = {"X-MBX-USED-WEIGHT-1M": str(self._budget.used)}
        if refusal:
            return Reply(refusal.status, refusal.body, headers | dict(refusal.headers))
        return Reply(200, dump(self._handlers[name](query, now_ms)), headers)

    def _weight(self, name: str, query: Query) -> int:
        if name != "depth":
            return (_SPOT_WEIGHTS if self._face.spot else _USDM_WEIGHTS).get(name, 1)
        limit = self._depth_limit(query)
        if not self._face.spot:
            return _USDM_DEPTH_WEIGHTS[limit]
        return 5 if limit <= 100 else 25 if limit <= 500 else 50 if limit <= 1000 else 250

    # -- parameters ----------------------------------------------------------------------------------------

    def _symbol(self, query: Query) -> "BinanceSymbol":
        name = query.get("symbol", "")
        if not name:
            raise _BadRequest(
                -1102, "Mandatory parameter 'symbol' was not sent, was empty/null, or malformed."
            )
        symbol = self._face.symbols.get(name)
        if symbol is None:
            raise _BadRequest(-1121, "Invalid symbol.")
        return symbol

    def _depth_limit(self, query: Query) -> int:
        limit = _integer(query, "limit", 100 if self._face.spot else 500)
        if self._face.spot:
            return max(1, min(limit, 5000))
        if limit not in _USDM_DEPTH_WEIGHTS:
            allowed = ", ".join(map(str, _USDM_DEPTH_WEIGHTS))
            raise _BadRequest(-4021, f"{limit} is not valid depth limit. Valid limits are [{allowed}].")
        return limit

    # -- books and trades ----------------------------------------------------------------------------------

    def _depth(self, query: Query, now_ms: int) -> object:
        """The book at an id of the recent past: REST is a cache, and sometimes an old one."""
        symbol, limit = self._symbol(query), self._depth_limit(query)
        update_id = self._served_id(symbol)
        bids, asks = split(symbol.ledger.book.state_at(update_id))
        body: dict[str, object] = {"lastUpdateId": update_id}
        if not self._face.spot:
            body |= {"E": now_ms, "T": now_ms - 7}
        return body | {
            "bids": _levels(symbol.instrument, bids, limit),
            "asks": _levels(symbol.instrument, asks, limit),
        }

    def _served_id(self, symbol: "BinanceSymbol") -> int:
        faults, where, name = self._face.faults, self._face.worker, symbol.instrument.id
        if faults.take("binance_rest_stale", where, name):
            return symbol.ledger.book.stale_id(_STALE_MESSAGES)
        chance = self._face.rng.random()
        if faults.take("binance_rest_at_edge", where, name):
            chance = 0.0
        elif faults.take("binance_rest_inside", where, name):
            chance = 0.7
        if chance < 0.5:
            return symbol.ledger.book.recent_id(0)  # the next diff has U == L + 1 (USD-M: pu == L, or u == L)
        if chance < 0.8:
            return symbol.ledger.book.last_id  # inside the next diff: U <= L
        return symbol.ledger.book.recent_id(
            self._face.rng.randrange(2, 6)
        )  # stale: may be before the first diff

    def _trades(self, query: Query, now_ms: int) -> object:
        symbol = self._symbol(query)
        rows = symbol.ledger.fills.newest(_limit(query, 500, 1000))
        return [_trade_body(symbol.instrument, row) for row in rows]

    def _historical(self, query: Query, now_ms: int) -> object:
        symbol, limit = self._symbol(query), _limit(query, 500, 1000)
        if "fromId" not in query:
            return self._trades(query, now_ms)
        rows = islice(symbol.ledger.fills.rows(_integer(query, "fromId", 0)), limit)
        return [_trade_body(symbol.instrument, row) for row in rows]

    def _aggregates(self, query: Query, now_ms: int) -> object:
        symbol, limit = self._symbol(query), _limit(query, 500, 1000)
        log = symbol.ledger.aggregates
        if "fromId" in query:
            rows = list(islice(log.rows(_integer(query, "fromId", 0)), limit))
        elif "startTime" in query or "endTime" in query:
            start, end = _integer(query, "startTime", 0), _integer(query, "endTime", now_ms)
            rows = list(islice((row for row in log.rows() if start <= row.ts_ms <= end), limit))
        else:
            rows = log.newest(limit)
        return [self._aggregate_body(symbol.instrument, row) for row in rows]

    def _aggregate_body(self, instrument: Instrument, row: TradeRow) -> dict[str, object]:
        body: dict[str, object] = {
            "a": row.id,
            "p": instrument.price_text(row.tick),
            "q": instrument.quantity_text(row.lots),
            "f": row.first_id,
            "l": row.last_id,
            "T": row.ts_ms,
            "m": row.side == SELL,
        }
        return body | {"M": True} if self._face.spot else body

    # -- what is listed ------------------------------------------------------------------------------------

    def _exchange_info(self, query: Query, now_ms: int) -> object:
        wanted = {query["symbol"]} if "symbol" in query else None
        if wanted and not wanted <= self._face.symbols.keys():
            raise _BadRequest(-1121, "Invalid symbol.")
        listed = [
            one.instrument for name, one in self._face.symbols.items() if wanted is None or name in wanted
        ]
        limit = {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1}
        body: dict[str, object] = {
            "timezone": "UTC",
            "serverTime": now_ms,
            "rateLimits": [limit | {"limit": self._flavor.weight_per_minute}],
            "exchangeFilters": [],
            "symbols": [_spot_body(one) if self._face.spot else _usdm_body(one) for one in listed],
        }
        return body if self._face.spot else body | {"futuresType": "U_MARGINED", "assets": []}

    # -- futures only --------------------------------------------------------------------------------------

    def _premium_index(self, query: Query, now_ms: int) -> object:
        if "symbol" in query:
            return self._premium_row(self._symbol(query), now_ms)
        return [self._premium_row(one, now_ms) for one in self._face.symbols.values()]

    def _premium_row(self, symbol: "BinanceSymbol", now_ms: int) -> dict[str, object]:
        index = f"{self._face.index_price(symbol):.8f}"
        return {
            "symbol": symbol.instrument.id,
            "markPrice": f"{symbol.market.fair:.8f}",
            "indexPrice": index,
            "estimatedSettlePrice": index,
            "lastFundingRate": f"{symbol.figures.funding.at(now_ms):.8f}",
            "interestRate": "0.00010000",
            "nextFundingTime": funding_times_ms(now_ms)[1],
            "time": now_ms,
        }

    def _funding_info(self, query: Query, now_ms: int) -> object:
        """Only symbols with an interval other than 8 h are listed; here none has one."""
        return []

    def _funding_rate(self, query: Query, now_ms: int) -> object:
        symbol, limit = self._symbol(query), _limit(query, 100, 1000)
        last, following = funding_times_ms(now_ms)
        times = range(last - (limit - 1) * (following - last), last + 1, following - last)
        start, end = _integer(query, "startTime", 0), _integer(query, "endTime", now_ms)
        return [self._funding_row(symbol, at) for at in times if start <= at <= end]

    def _funding_row(self, symbol: "BinanceSymbol", at_ms: int) -> dict[str, object]:
        stray_ms = at_ms // 28_800_000 % 4  # fundingTime may carry stray milliseconds
        rate = f"{symbol.figures.funding.at(at_ms):.8f}"
        mark = f"{symbol.market.fair:.8f}"
        return {
            "symbol": symbol.instrument.id,
            "fundingTime": at_ms + stray_ms,
            "fundingRate": rate,
            "markPrice": mark,
        }

    def _open_interest(self, query: Query, now_ms: int) -> object:
        symbol = self._symbol(query)
        base = symbol.figures.open_interest_usd.at(now_ms) / symbol.market.fair
        text = symbol.instrument.quantity_text(int(base / symbol.instrument.lots.size))
        return {"symbol": symbol.instrument.id, "openInterest": text, "time": now_ms}

    def _history(self, name: str, query: Query, now_ms: int) -> list[dict[str, object]]:
        symbol = self._symbol(query)
        period = _PERIODS_MS.get(query.get("period", ""))
        if period is None:
            raise _BadRequest(-1130, "parameter 'period' is invalid.")
        limit = _limit(query, 30, 500)
        last = min(now_ms, _integer(query, "endTime", now_ms)) // period * period
        first = max(last - (limit - 1) * period, _integer(query, "startTime", 0))
        row = self._data[name]
        times = range(last - (last - first) // period * period, last + 1, period)
        return [{"symbol": symbol.instrument.id, **row(symbol, at), "timestamp": at} for at in times]

    def _interest_row(self, symbol: "BinanceSymbol", at_ms: int) -> dict[str, str]:
        value = symbol.figures.open_interest_usd.at(at_ms)
        base = value / symbol.market.fair
        return {"sumOpenInterest": f"{base:.8f}", "sumOpenInterestValue": f"{value:.8f}"}


def _too_many(status: int, wait_ms: int) -> Reply:
    wait_s = -(-wait_ms // 1000)
    return Reply(status, dump({"code": -1003, "msg": "Too many requests."}), {"Retry-After": str(wait_s)})


def _ratio_row(ratio: float) -> dict[str, str]:
    short = 1.0 / (1.0 + ratio)
    return {
        "longShortRatio": f"{ratio:.4f}",
        "longAccount": f"{1 - short:.4f}",
        "shortAccount": f"{short:.4f}",
    }


def _integer(query: Query, name: str, default: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not text.isdigit():
        raise _BadRequest(
            -1100, f"Illegal characters found in parameter '{name}'; legal range is '^[0-9]{{1,20}}$'."
        )
    return int(text)


def _limit(query: Query, default: int, most: int) -> int:
    return max(1, min(_integer(query, "limit", default), most))


def _levels(instrument: Instrument, side: Mapping[int, int], limit: int) -> list[list[str]]:
    price, quantity = instrument.price_text, instrument.quantity_text
    return [[price(tick), quantity(lots)] for tick, lots in islice(side.items(), limit)]


def _trade_body(instrument: Instrument, row: TradeRow) -> dict[str, object]:
    price, quantity = instrument.price_text(row.tick), instrument.quantity_text(row.lots)
    body: dict[str, object] = {
        "id": row.id,
        "price": price,
        "qty": quantity,
        "quoteQty": f"{float(price) * float(quantity):.8f}",
        "time": row.ts_ms,
        "isBuyerMaker": row.side == SELL,
    }
    return body | {"isBestMatch": True} if instrument.kind == "spot" else body


def _filters(instrument: Instrument) -> list[dict[str, object]]:
    tick, lot = instrument.price_text(1), instrument.quantity_text(1)
    return [
        {"filterType": "PRICE_FILTER", "minPrice": tick, "maxPrice": "1000000", "tickSize": tick},
        {"filterType": "LOT_SIZE", "minQty": lot, "maxQty": "9000", "stepSize": lot},
    ]


def _spot_body(instrument: Instrument) -> dict[str, object]:
    return {
        "symbol": instrument.id,
        "status": "TRADING",
        "baseAsset": instrument.base,
        "baseAssetPrecision": 8,
        "quoteAsset": instrument.quote,
        "quotePrecision": 8,
        "quoteAssetPrecision": 8,
        "orderTypes": ["LIMIT", "LIMIT_MAKER", "MARKET"],
        "isSpotTradingAllowed": True,
        "filters": _filters(instrument),
        "permissions": [],
        "permissionSets": [["SPOT"]],
    }


def _usdm_body(instrument: Instrument) -> dict[str, object]:
    return {
        "symbol": instrument.id,
        "pair": instrument.id,
        "contractType": "PERPETUAL",
        "deliveryDate": 4133404800000,
        "onboardDate": 1569398400000,
        "status": "TRADING",
        "baseAsset": instrument.base,
        "quoteAsset": instrument.quote,
        "marginAsset": instrument.quote,
        "pricePrecision": instrument.ticks.shown,
        "quantityPrecision": instrument.lots.shown,
        "baseAssetPrecision": 8,
        "quotePrecision": 8,
        "underlyingType": "COIN",
        "filters": _filters(instrument),
    }
