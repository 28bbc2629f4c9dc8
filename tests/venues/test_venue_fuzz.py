"""Anything at any time: nothing is ever raised, and what is published stays consistent (see `drive.Judge`)."""

import copy
import json
from typing import Any

import pytest
from drive import Drive
from fuzz import scripted
from hypothesis import given, settings
from hypothesis import strategies as st
from truth import SYMBOLS

from marketprism.venues.base import Fetch

MS = 1_760_000_000_000


def spot_depth(u: int, price: int) -> Any:
    data = {
        "e": "depthUpdate",
        "E": MS + u,
        "s": "BTCUSDT",
        "U": u,
        "u": u + 1,
        "pu": u - 1,
        "b": [[str(price), "1"]],
        "a": [[str(price + 1), "2"]],
    }
    return {"stream": "btcusdt@depth@100ms", "data": data}


def spot_trade(n: int, price: int) -> Any:
    data = {
        "e": "trade",
        "E": MS,
        "s": "BTCUSDT",
        "t": n,
        "a": n,
        "p": str(price),
        "q": "1",
        "T": MS + n,
        "m": True,
        "f": 1,
        "l": 2,
    }
    return {"stream": "btcusdt@trade", "data": data}


def binance(n: int, p: int) -> list[Any]:
    order = {
        "s": "BTCUSDT",
        "S": "BUY",
        "q": "1",
        "p": str(p),
        "ap": "1",
        "X": "FILLED",
        "z": "1",
        "T": MS + n,
    }
    row = {
        "symbol": "BTCUSDT",
        "longShortRatio": "1",
        "longAccount": "0.5",
        "shortAccount": "0.5",
        "timestamp": MS + n,
    }
    return [
        spot_depth(n, p),
        spot_trade(n, p),
        spot_depth(n, p)["data"],
        {
            "stream": "btcusdt@markPrice@1s",
            "data": {"s": "BTCUSDT", "E": MS + n, "p": "1", "r": "1", "T": MS},
        },
        {"stream": "!forceOrder@arr", "data": {"o": order}},
        {"result": None, "id": n},
        {"code": n, "msg": "x"},
        {"e": "serverShutdown", "E": n},
        ("depth", {"lastUpdateId": n, "bids": [[str(p), "1"]], "asks": [[str(p + 1), "1"]]}),
        ("trades", [{"id": n, "price": "1", "qty": "1", "time": MS + n, "isBuyerMaker": True}]),
        ("trades", [{"a": n, "p": "1", "q": "1", "f": 1, "l": 1, "T": MS + n, "m": True}]),
        ("instruments", {"symbols": [{"symbol": "BTCUSDT", "baseAsset": "BTC", "quoteAsset": "USDT"}]}),
        (
            "funding_rate",
            {
                "symbol": "BTCUSDT",
                "markPrice": "1",
                "indexPrice": "1",
                "lastFundingRate": "1",
                "nextFundingTime": n,
                "time": n,
            },
        ),
        ("open_interest", {"symbol": "BTCUSDT", "openInterest": "1", "time": n}),
        ("lsr_top_position", [row]),
    ]


def okx(n: int, p: int) -> list[Any]:
    s = "BTC-USDT-SWAP"

    def book(action: str) -> Any:
        row = {
            "bids": [[str(p), "1", "0", "1"]],
            "asks": [[str(p + 1), "1", "0", "1"]],
            "ts": str(MS + n),
            "seqId": n + 1,
            "prevSeqId": n,
            "checksum": 0,
        }
        return {"arg": {"channel": "books", "instId": s}, "action": action, "data": [row]}

    trade = {
        "instId": s,
        "tradeId": str(n),
        "px": str(p),
        "sz": "1",
        "side": "buy",
        "ts": str(MS + n),
        "count": "1",
    }
    detail = {"side": "buy", "bkPx": "1", "sz": "1", "ts": str(MS + n), "posSide": "long"}
    funding = {
        "instId": s,
        "fundingRate": "1",
        "nextFundingRate": "",
        "fundingTime": str(MS),
        "nextFundingTime": str(MS + 1),
        "ts": str(n),
    }
    info = {
        "instId": s,
        "instType": "SWAP",
        "ctVal": "0.01",
        "ctValCcy": "BTC",
        "ctMult": "1",
        "uly": "BTC-USDT",
    }
    ok: dict[str, Any] = {"code": "0", "msg": ""}
    return [
        book("update"),
        book("snapshot"),
        {"arg": {"channel": "trades", "instId": s}, "data": [trade]},
        {
            "arg": {"channel": "liquidation-orders", "instType": "SWAP"},
            "data": [{"instId": s, "details": [detail]}],
        },
        {"arg": {"channel": "funding-rate", "instId": s}, "data": [funding]},
        {"event": "subscribe", "arg": {"channel": "books", "instId": s}},
        {"event": "notice", "code": "64008", "msg": ""},
        {"event": "error", "code": "60012", "msg": ""},
        "pong",
        ("depth", ok | {"data": [book("x")["data"][0]]}),
        ("trades", ok | {"data": [trade]}),
        ("instruments", ok | {"data": [info]}),
        (
            "open_interest",
            ok | {"data": [{"instId": s, "oi": "1", "oiCcy": "1", "oiUsd": "1", "ts": str(n)}]},
        ),
        ("mark_price", ok | {"data": [{"instId": s, "markPx": "1"}]}),
        ("lsr_all_account", ok | {"data": [[str(n), "1.5"]]}),
    ]


def deribit(n: int, p: int) -> list[Any]:
    s = "BTC-PERPETUAL"

    def sub(channel: str, data: Any) -> Any:
        return {"jsonrpc": "2.0", "method": "subscription", "params": {"channel": channel, "data": data}}

    book = {
        "type": "change",
        "timestamp": MS + n,
        "instrument_name": s,
        "change_id": n + 1,
        "prev_change_id": n,
        "bids": [["new", p, 1.0]],
        "asks": [["new", p + 1, 1.0]],
    }
    whole = {k: v for k, v in book.items() if k != "prev_change_id"} | {"type": "snapshot"}
    trade = {
        "trade_seq": n,
        "trade_id": f"T{n}",
        "timestamp": MS + n,
        "price": p,
        "instrument_name": s,
        "direction": "buy",
        "amount": 1.0,
        "liquidation": "T",
    }
    ticker = {
        "instrument_name": s,
        "timestamp": MS + n,
        "open_interest": 1.0,
        "mark_price": 1.0,
        "index_price": 1.0,
        "current_funding": 0.1,
    }
    info = {
        "instrument_name": s,
        "kind": "future",
        "base_currency": "BTC",
        "quote_currency": "USD",
        "settlement_period": "perpetual",
    }
    return [
        sub(f"book.{s}.100ms", book),
        sub(f"book.{s}.100ms", whole),
        sub(f"trades.{s}.100ms", [trade]),
        sub(f"ticker.{s}.100ms", ticker),
        sub(
            "deribit_volatility_index.btc_usd",
            {"timestamp": MS + n, "volatility": 50.5, "index_name": "btc_usd"},
        ),
        {"jsonrpc": "2.0", "id": n, "result": [f"book.{s}.100ms"]},
        {"jsonrpc": "2.0", "method": "heartbeat", "params": {"type": "test_request"}},
        {"jsonrpc": "2.0", "id": n, "error": {"code": 10028, "message": "too_many_requests"}},
        ("trades", {"result": {"trades": [trade], "has_more": False}}),
        ("instruments", {"result": [info]}),
        ("ticker", {"result": ticker}),
        (
            "volatility_index",
            {"result": {"data": [[MS + n, 1.0, 1.0, 1.0, 1.0]]}, "usOut": (MS + 10**7) * 1000},
        ),
        ("depth", {"result": {"timestamp": MS, "change_id": n, "bids": [[p, 1.0]], "asks": [[p + 1, 1.0]]}}),
    ]


MESSAGES = {
    "binance_spot": binance,
    "binance_derivatives": binance,
    "okx_derivatives": okx,
    "deribit_derivatives": deribit,
}
STRANGE: list[Any] = [None, True, -1, 0, 2**63, 10**30, 1.5, 1e308, [], {}, [[]], [["1"]], {"x": 1}]
STRANGE += ["", "x", "-1", "NaN", "Infinity", "1e999999", "0", "é\u0000"]
number = st.integers(0, 12)
step = st.one_of(
    st.tuples(st.just("message"), number, st.integers(10, 14), st.integers(0, 20)),
    st.tuples(st.just("strange"), number, st.integers(0, len(STRANGE) - 1), st.integers(0, 400)),
    st.tuples(st.just("bytes"), st.binary(max_size=30), number, number),
    st.tuples(st.just("cut"), number, st.integers(0, 200), st.integers(0, 20)),
    st.tuples(st.sampled_from(["open", "close"]), number, number, number),
    st.tuples(st.just("tick"), st.integers(-20, 40), number, number),
    st.tuples(st.just("status"), st.sampled_from([0, 400, 404, 418, 429, 500, 200]), number, number),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where in a message something can be replaced."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, inner in items for place in places(inner, (*path, key)))]


def replaced(message: Any, where: int, by: Any) -> Any:
    message = copy.deepcopy(message)
    path = (found := places(message))[where % len(found)]
    if not path:
        return by
    inner = message
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = by
    return message


class Fuzz:
    """A venue that is told anything."""

    def __init__(self, exchange: str, named: bool) -> None:
        self.exchange = exchange
        self.drive = Drive(exchange, *([SYMBOLS[exchange]] if named else []), snapshot_depth=5)
        self.drive.start()
        self.drive.open("c0")

    def give(self, message: Any, conn: int) -> None:
        if isinstance(message, tuple):
            kind, body = message
            self.drive.respond(Fetch(kind, SYMBOLS[self.exchange], "/x?limit=5"), json.dumps(body))
        else:
            text = message if isinstance(message, str) else json.dumps(message, separators=(",", ":"))
            self.drive.frame(text, f"c{conn % 3}")

    def do(self, action: str, a: Any, b: Any, c: Any) -> None:
        d = self.drive
        if action == "message":
            options = MESSAGES[self.exchange](a, b)
            self.give(options[c % len(options)], a)
        elif action == "strange":
            options = MESSAGES[self.exchange](a, 10)
            message = options[c % len(options)]
            if isinstance(message, tuple):
                self.give((message[0], replaced(message[1], c, STRANGE[b])), 0)
            else:
                self.give(replaced(message, c, STRANGE[b]), a)
        elif action == "bytes":
            d.frame(a, f"c{b % 3}")
            d.respond(
                Fetch(("depth", "trades", "instruments", "nothing")[c % 4], SYMBOLS[self.exchange], ""), a
            )
        elif action == "cut":
            message = MESSAGES[self.exchange](a, 10)[0]
            d.frame(json.dumps(message, separators=(",", ":"))[:b], "c0")
        elif action in ("open", "close"):
            getattr(d, action)(f"c{a % 3}")
        elif action == "tick":
            d.tick(a)
        else:
            d.respond(Fetch(("depth", "trades", "instruments")[b % 3], SYMBOLS[self.exchange], ""), b"", a)


@pytest.mark.parametrize("exchange", list(MESSAGES))
@pytest.mark.parametrize("named", [True, False])
@settings(max_examples=60, deadline=None)
@given(steps=st.lists(step, max_size=60))
def test_anything(exchange: str, named: bool, steps: list[tuple[Any, Any, Any, Any]]) -> None:
    fuzz = Fuzz(exchange, named)
    for s in steps:
        fuzz.do(*s)
    fuzz.drive.finish()


def line(message: Any, conn: int) -> bytes:
    """A message as a line of a script (see `fuzz.scripted`)."""
    head, body = f"{conn}", message
    if isinstance(message, tuple):
        head, body = f"r{scripted.LETTERS[message[0]]}", message[1]
    text = body if isinstance(body, str) else json.dumps(body, separators=(",", ":"))
    return (head + text).encode()


conn = st.integers(0, 2)
interleaved = st.one_of(
    st.tuples(number, st.integers(10, 14), st.integers(0, 3) | st.integers(0, 20), conn),
    st.builds("o{}".format, conn),
    st.builds("x{}".format, conn),
    st.builds("+{}".format, st.integers(-50, 400)),
    st.builds("s{}{}".format, st.sampled_from("dti"), st.sampled_from([0, 404, 418, 429, 500])),
)


@pytest.mark.parametrize("exchange", list(MESSAGES))
@settings(max_examples=60, deadline=None)
@given(options=st.integers(0, 7), steps=st.lists(interleaved, max_size=60))
def test_any_interleaving_keeps_each_book_as_published(exchange: str, options: int, steps: list[Any]) -> None:
    """Frames, answers, connections that open and close, time: see `scripted.Script` for what is checked."""
    script = scripted.Script(exchange, SYMBOLS[exchange], options)
    lines = [b"o0"]
    for s in steps:
        if isinstance(s, str):
            lines.append(s.encode())
        else:
            n, p, which, on = s
            known = MESSAGES[exchange](n, p)
            lines.append(line(known[which % len(known)], on))
    script.run(lines)


@pytest.mark.parametrize("exchange", list(MESSAGES))
def test_every_message_spoiled_at_every_place(exchange: str) -> None:
    for message in MESSAGES[exchange](5, 10):
        body = message[1] if isinstance(message, tuple) else message
        if isinstance(body, str):
            continue
        fuzz = Fuzz(exchange, True)
        for where in range(len(places(body))):
            for by in STRANGE:
                spoiled = replaced(body, where, by)
                fuzz.give((message[0], spoiled) if isinstance(message, tuple) else spoiled, 0)
