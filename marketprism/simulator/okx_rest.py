"""The REST face of OKX v5.

Sources: OKX API guide v5 (market data, public data, trading statistics); recorded bodies.
"""

from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from marketprism.simulator.face import Reply, dump, forget
from marketprism.simulator.instruments import Instrument
from marketprism.simulator.okx_text import orders_at
from marketprism.simulator.series import Wave, funding_times_ms
from marketprism.simulator.truth import TradeRow

if TYPE_CHECKING:
    from marketprism.simulator.okx import OkxFace, OkxInstrument

_PERIODS_MS = {
    "5m": 300_000,
    "15m": 900_000,
    "30m": 1_800_000,
    "1H": 3_600_000,
    "2H": 7_200_000,
    "4H": 14_400_000,
}
# requests per 2 s
_RATES = {
    "market/books": 40, "market/trades": 100, "market/history-trades": 20, "market/index-tickers": 20,
    "public/instruments": 20, "public/open-interest": 20, "public/funding-rate": 10, "public/funding-rate-history": 10,
    "public/mark-price": 10, "public/time": 10,
}  # fmt: skip
_RUBIK = "rubik/stat/contracts/"
_RUBIK_RATE = 5

Query = Mapping[str, str]
Rows = list[object]


class _BadRequest(Exception):  # noqa: N818 - an answer, not an error of ours
    def __init__(self, code: str, text: str, status: int = 200) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.status = status


def _envelope(code: str, text: str, rows: Rows) -> str:
    return dump({"code": code, "msg": text, "data": rows})


class OkxRest:
    """GET requests of one OKX face."""

    def __init__(self, face: "OkxFace") -> None:
        self._face = face
        self._recent: dict[str, deque[int]] = {}
        self._handlers: dict[str, Callable[[Query, int], Rows]] = {
            "market/books": self._books,
            "market/trades": self._trades,
            "market/history-trades": self._history_trades,
            "market/index-tickers": self._index_tickers,
            "public/instruments": self._instruments,
            "public/open-interest": lambda query, now_ms: self._listed_rows(
                query, now_ms, self._face.interest_row
            ),
            "public/mark-price": lambda query, now_ms: self._listed_rows(query, now_ms, self._face.mark_row),
            "public/funding-rate": self._funding_rate,
            "public/funding-rate-history": self._funding_history,
            "public/time": lambda query, now_ms: [{"ts": str(now_ms)}],
        }
        self._ratios: dict[str, Callable[[OkxInstrument], Wave]] = {
            "long-short-account-ratio-contract": lambda one: one.figures.account_ratio,
            "long-short-account-ratio-contract-top-trader": lambda one: one.figures.top_account_ratio,
            "long-short-position-ratio-contract-top-trader": lambda one: one.figures.position_ratio,
        }

    def get(self, path: str, query: Query, now_ms: int) -> Reply:
        """The answer to one request. HTTP 200 with a code other than "0" is an error, too."""
        if self._face.faults.take("rate_limit", self._face.worker):
            return Reply(429, _envelope("50011", "Too Many Requests", []), {"Retry-After": "1"})
        name = path.removeprefix("/api/v5/")
        if not path.startswith("/api/v5/") or not self._known(name):
            return Reply(404, dump({"code": "404", "data": {}, "msg": f"Invalid request path {path}"}))
        if self._too_often(name, query, now_ms):
            return Reply(429, _envelope("50011", "Too Many Requests", []))
        try:
            return Reply(200, _envelope("0", "", self._rows(name, query, now_ms)))
        except _BadRequest as bad:
            return Reply(bad.status, _envelope(bad.code, bad.text, []))

    def _known(self, name: str) -> bool:
        swap = self._face.instrument_type == "SWAP"
        return name in self._handlers or (swap and name.removeprefix(_RUBIK) in self._ratios)

    def _rows(self, name: str, query: Query, now_ms: int) -> Rows:
        if name in self._handlers:
            return self._handlers[name](query, now_ms)
        return self._ratio_rows(self._ratios[name.removeprefix(_RUBIK)], query, now_ms)

    def _too_often(self, name: str, query: Query, now_ms: int) -> bool:
        """Limits are per endpoint, for trading statistics per endpoint and instrument, in 2 s."""
        limit = _RATES.get(name, _RUBIK_RATE)
        bucket = name if name in _RATES else f"{name} {query.get('instId')}"
        recent = self._recent.setdefault(bucket, deque())
        forget(recent, now_ms, 2000)
        if len(recent) >= limit:
            return True
        recent.append(now_ms)
        return False

    # -- parameters ----------------------------------------------------------------------------------------

    def _one(self, query: Query) -> "OkxInstrument":
        name = query.get("instId", "")
        if not name:
            raise _BadRequest("50014", "Parameter instId can not be empty.", 400)
        one = self._face.listed.get(name)
        if one is None:
            raise _BadRequest("51001", "Instrument ID, Instrument ID code, or Spread ID doesn't exist.")
        return one

    def _of_type(self, query: Query) -> "list[OkxInstrument]":
        wanted = query.get("instType", "")
        if not wanted:
            raise _BadRequest("50014", "Parameter instType can not be empty.", 400)
        if wanted != self._face.instrument_type:
            return []
        return [self._one(query)] if query.get("instId") else list(self._face.listed.values())

    # -- market --------------------------------------------------------------------------------------------

    def _books(self, query: Query, now_ms: int) -> Rows:
        """The book with its seqId: mid-window, just published, or some messages old."""
        one, size = self._one(query), _integer(query, "sz", 1, 400)
        log, chance = one.ledger.book, self._face.rng.random()
        if chance < 0.4:
            update_id = self._face.snapshot_id(one)
        else:
            update_id = log.recent_id(0 if chance < 0.8 else self._face.rng.randrange(1, 6))
        levels = log.state_at(update_id)
        asks = self._sorted_levels(one.instrument, levels, 1)[:size]
        bids = self._sorted_levels(one.instrument, levels, 0)[:size]
        return [{"asks": asks, "bids": bids, "ts": str(now_ms), "seqId": update_id}]

    def _sorted_levels(self, instrument: Instrument, levels: Mapping[int, int], side: int) -> list[list[str]]:
        keys = sorted((key for key in levels if key & 1 == side), reverse=not side)
        price, size = instrument.price_text, instrument.quantity_text
        return [[price(key >> 1), size(levels[key]), "0", str(orders_at(key, levels[key]))] for key in keys]

    def _trades(self, query: Query, now_ms: int) -> Rows:
        one = self._one(query)
        rows = one.ledger.fills.newest(_integer(query, "limit", 100, 500))
        return [_trade_body(one.instrument, row) for row in reversed(rows)]

    def _history_trades(self, query: Query, now_ms: int) -> Rows:
        """Newest first. type 1: after/before are trade ids, type 2: times; after asks for older ones."""
        one, limit = self._one(query), _integer(query, "limit", 100, 100)
        log, by_time = one.ledger.fills, query.get("type") == "2"
        after = _integer(query, "after", 0)
        before = _integer(query, "before", 0)
        if by_time:
            rows = [row for row in log.rows() if row.ts_ms > before and not (after and row.ts_ms >= after)]
        elif before:
            rows = [row for row in log.rows(before + 1) if not after or row.id < after]
        else:
            rows = log.before(after or log.last_id + 1, limit)
        return [_trade_body(one.instrument, row) for row in reversed(rows[-limit:])]

    def _index_tickers(self, query: Query, now_ms: int) -> Rows:
        name, quote = query.get("instId"), query.get("quoteCcy")
        chosen = [
            one for index, one in self._face.indexes.items() if name == index or one.instrument.quote == quote
        ]
        return [self._face.index_row(one, now_ms) for one in chosen]

    # -- public --------------------------------------------------------------------------------------------

    def _instruments(self, query: Query, now_ms: int) -> Rows:
        return [_instrument_body(one.instrument, one.index_id) for one in self._of_type(query)]

    def _listed_rows(
        self, query: Query, now_ms: int, row: "Callable[[OkxInstrument, int], dict[str, str]]"
    ) -> Rows:
        chosen = self._of_type(query) if self._face.instrument_type == "SWAP" else []
        return [row(one, now_ms) for one in chosen]

    def _funding_rate(self, query: Query, now_ms: int) -> Rows:
        if self._face.instrument_type != "SWAP":
            return []
        everyone = query.get("instId") == "ANY"
        chosen = list(self._face.listed.values()) if everyone else [self._one(query)]
        return [self._face.funding_row(one, now_ms) for one in chosen]

    def _funding_history(self, query: Query, now_ms: int) -> Rows:
        one, limit = self._one(query), _integer(query, "limit", 100, 400)
        last, following = funding_times_ms(now_ms)
        times = [last - index * (following - last) for index in range(limit)]
        return [self._funding_history_row(one, at) for at in times]

    def _funding_history_row(self, one: "OkxInstrument", at_ms: int) -> dict[str, str]:
        rate = f"{one.figures.funding.at(at_ms):.16f}"
        row = {"instType": "SWAP", "instId": one.instrument.id, "fundingRate": rate, "realizedRate": rate}
        return row | {"fundingTime": str(at_ms), "method": "current_period", "formulaType": "withRate"}

    def _ratio_rows(self, series: "Callable[[OkxInstrument], Wave]", query: Query, now_ms: int) -> Rows:
        """[ts, ratio], newest first."""
        wave = series(self._one(query))
        period = _PERIODS_MS.get(query.get("period", "5m"))
        if period is None:
            raise _BadRequest("51000", "Parameter period error")
        last = now_ms // period * period
        times = [last - index * period for index in range(_integer(query, "limit", 100, 100))]
        return [[str(at), f"{wave.at(at):.4f}"] for at in times]


def _integer(query: Query, name: str, default: int, most: int | None = None) -> int:
    text = query.get(name, "")
    if not text:
        return default
    if not text.isdigit() or (most is not None and not 1 <= int(text) <= most):
        raise _BadRequest("51000", f"Parameter {name} error")
    return int(text)


def _trade_body(instrument: Instrument, row: TradeRow) -> dict[str, str]:
    side = "sell" if row.side else "buy"
    price, size = instrument.price_text(row.tick), instrument.quantity_text(row.lots)
    body = {"instId": instrument.id, "side": side, "sz": size, "source": "0", "px": price}
    return body | {"tradeId": str(row.id), "ts": str(row.ts_ms)}


def _instrument_body(instrument: Instrument, index_id: str) -> dict[str, str]:
    swap = instrument.kind != "spot"
    inverse = instrument.kind == "inverse"
    value_currency = instrument.quote if inverse else instrument.base
    return {
        "alias": "",
        "baseCcy": "" if swap else instrument.base,
        "category": "1",
        "ctMult": "1" if swap else "",
        "ctType": "" if not swap else "inverse" if inverse else "linear",
        "ctVal": instrument.contract_value if swap else "",
        "ctValCcy": value_currency if swap else "",
        "expTime": "",
        "instFamily": index_id if swap else "",
        "instId": instrument.id,
        "instType": "SWAP" if swap else "SPOT",
        "lever": "100",
        "listTime": "1611916828000",
        "lotSz": instrument.lots.text,
        "minSz": instrument.lots.text,
        "optType": "",
        "quoteCcy": "" if swap else instrument.quote,
        "ruleType": "normal",
        "settleCcy": (instrument.base if inverse else instrument.quote) if swap else "",
        "state": "live",
        "stk": "",
        "tickSz": instrument.ticks.text,
        "uly": index_id if swap else "",
    }
