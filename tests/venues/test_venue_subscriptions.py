"""What was subscribed and not given is asked for again, and a connection that brings nothing is replaced."""

from itertools import pairwise
from typing import Any

import pytest
from drive import Drive

from marketprism.events import OrderBookDelta, Trade, encode

SYMBOLS = {
    "binance_spot": ("BTCUSDT", "ETHUSDT"),
    "binance_derivatives": ("BTCUSDT", "ETHUSDT"),
    "okx_spot": ("BTC-USDT", "ETH-USDT"),
    "deribit_derivatives": ("BTC-PERPETUAL", "ETH-PERPETUAL"),
}
EXCHANGES = list(SYMBOLS)
TYPES = ("orderbook", "trade")


def drive(exchange: str, **options: Any) -> Drive:
    d = Drive(exchange, *SYMBOLS[exchange], types=TYPES, **options)
    d.open()
    return d


def wanted(message: Any) -> list[str]:
    """The channels that a message of ours subscribes."""
    if not isinstance(message, dict):
        return []
    if message.get("method") == "SUBSCRIBE":
        return list(message["params"])
    if message.get("op") == "subscribe":
        return [f"{a['channel']}:{a['instId']}" for a in message["args"]]
    if message.get("method") == "public/subscribe":
        return list(message["params"]["channels"])
    return []


def acks(message: Any) -> list[dict[str, Any]]:
    """How its exchange acknowledges a subscription."""
    if "op" in message:
        return [{"event": "subscribe", "arg": arg, "connId": "x"} for arg in message["args"]]
    result = message["params"]["channels"] if "jsonrpc" in message else None
    return [{"jsonrpc": "2.0", "id": message["id"], "result": result}]


def keepalive(d: Drive) -> None:
    """The exchange answers whatever it is asked, and sends no data."""
    d.frame("pong" if d.venue.options.exchange == "okx" else {"id": 99_999, "result": "ok"})


def subscriptions(d: Drive, seconds: float) -> list[tuple[float, list[str]]]:
    """When what was subscribed from now on, in seconds."""
    d.sent()
    found = []
    for n in range(round(2 * seconds)):
        d.tick(0.5)
        if n % 8 == 0:
            keepalive(d)
        asked = [name for message in d.sent() for name in wanted(message)]
        if asked:
            found.append((n / 2, sorted(asked)))
    return found


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_what_is_not_acknowledged_is_asked_for_again_with_growing_pauses(exchange: str) -> None:
    d = drive(exchange)
    (all_of_them,) = [wanted(m) for m in d.sent() if wanted(m)]
    found = subscriptions(d, 2000)
    assert all(names == sorted(all_of_them) for _, names in found)
    at_s = [0.0, *(moment for moment, _ in found)]
    pauses = [round(b - a) for a, b in pairwise(at_s)]
    assert pauses == [10, 20, 40, 80, 160, 300, 300, 300, 300, 300]
    assert d.venue.missing_channels == len(all_of_them)
    assert all(n.event in ("unacknowledged", "silent") for n in d.notes)
    assert d.gaps() == []


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_what_is_acknowledged_at_last_is_not_asked_for_any_more(exchange: str) -> None:
    d = drive(exchange)
    subscriptions(d, 9)
    d.sent()
    d.wait(2)
    (again,) = [m for m in d.sent() if wanted(m)]
    assert d.venue.missing_channels == len(wanted(again))
    for ack in acks(again):
        d.frame(ack)
    assert d.venue.missing_channels == 0
    assert subscriptions(d, 300) == []


def test_channels_that_deribit_does_not_give_are_asked_for_again() -> None:
    d = drive("deribit_derivatives")
    (call,) = [m for m in d.sent() if wanted(m)]
    channels = wanted(call)
    d.frame({"jsonrpc": "2.0", "id": call["id"], "result": channels[1:]})
    assert d.venue.missing_channels == 1
    ((at_s, names),) = subscriptions(d, 15)
    assert (round(at_s), names) == (10, channels[:1])


def test_what_okx_acknowledges_late_is_not_asked_for_again() -> None:
    d = drive("okx_spot")
    (call,) = [m for m in d.sent() if wanted(m)]
    subscriptions(d, 12)
    for ack in acks(call):
        d.frame(ack)
    assert d.venue.missing_channels == 0
    assert subscriptions(d, 300) == []


def test_a_book_that_comes_although_nobody_acknowledged_it_is_not_begun_anew() -> None:
    d = drive("okx_spot")
    d.sent()
    s = SYMBOLS["okx_spot"][0]
    row = {"asks": [["101", "1", "0", "1"]], "bids": [["100", "1", "0", "1"]], "ts": str(d.ms), "seqId": 5}
    d.frame(
        {"arg": {"channel": "books", "instId": s}, "action": "snapshot", "data": [row | {"prevSeqId": -1}]}
    )
    assert d.live(s)
    found = subscriptions(d, 15)
    assert found
    assert all(f"books:{s}" not in names for _, names in found)


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_a_connection_that_brings_nothing_is_replaced_with_growing_pauses(exchange: str) -> None:
    d = drive(exchange)
    pauses = []
    for n in range(2, 12):
        began_ns, replaced = d.now_ns, len(d.reconnects)
        while len(d.reconnects) == replaced:
            d.tick(0.5)
            d.frame("pong" if exchange.startswith("okx") else {"id": 99_999, "result": "ok"}, f"c{n - 1}")
            assert d.now_ns - began_ns < 3000 * 10**9
        assert d.reconnects[-1].overlap
        pauses.append(round((d.now_ns - began_ns) / 1e9))
        d.open(f"c{n}")
        d.close(f"c{n - 1}")
    assert pauses == [20, 40, 80, 160, 320, 640, 1280, 1800, 1800, 1800]


def test_a_connection_that_brings_some_of_it_is_kept() -> None:
    d = drive("binance_derivatives")
    d.frame({"stream": "btcusdt@depth@100ms", "data": {}})
    for _ in range(400):
        d.wait(4)
        keepalive(d)
    assert d.reconnects == []
    (note,) = [n for n in d.notes if n.event == "silent"]
    assert "ethusdt@depth@100ms" in note.text


def test_a_lone_quiet_book_is_given_a_minute() -> None:
    d = Drive("binance_derivatives", "BTCUSDT", types=TYPES)
    d.open()
    for _ in range(14):
        d.wait(4)
        keepalive(d)
    assert d.reconnects == []
    d.wait(5)
    assert len(d.reconnects) == 1


def test_rest_is_not_asked_for_a_book_that_is_not_subscribed_yet() -> None:
    """What changes between a REST book and its subscription would be missing."""
    d = drive("binance_spot")
    (call,) = [m for m in d.sent() if wanted(m)]
    d.wait(8)
    assert d.asked("depth") == []
    d.frame(acks(call)[0])
    d.wait(4.5)
    assert d.asked("depth") == []
    d.wait(1)
    assert {f.instrument for f in d.asked("depth")} == set(SYMBOLS["binance_spot"])  # quiet, and yet wanted


# -- liquidations: they have no numbers, so what is missing can only be told by time -----------------------------


def liquidations(d: Drive) -> list[tuple[str, str, int | None, int | None]]:
    """The gaps told of them: instrument, cause, from, to."""
    gaps = d.gaps("liquidation")
    return [(g.instrument_id, g.cause, g.last_ts_ms_before, g.first_ts_ms_after) for g in gaps]


def earlier(d: Drive, data_type: str, ms_ago: int) -> bytes:
    """The last trade or book of an earlier run."""
    i = d.venue.markets["BTCUSDT"].instrument
    then_ms = d.ms - ms_ago
    common = {"exchange": i.exchange, "market_type": i.market_type, "symbol": i.symbol, "instrument_id": i.id}
    times = {"ts_ms": then_ms - 5, "collected_ts_ms": then_ms}
    if data_type == "trade":
        figures = {"price": "1", "quantity": "1", "exchange_quantity": "1", "quantity_unit": "base"}
        rest = {"trade_id": "7", "side": "buy", "trade_ts_ms": then_ms, "trade_seq": None}
        spans = {"first_trade_id": None, "last_trade_id": None, "normalized_symbol": i.symbol}
        return encode(Trade(**common, **times, **figures, **rest, **spans))
    update = {"update_type": "delta", "bids": [], "asks": [], "first_update_id": 1, "last_update_id": 2}
    rest = {"prev_update_id": 0, "quantity_unit": "base", "checksum": None}
    return encode(OrderBookDelta(**common, **times, **update, **rest, exact_from=None, exact_to=None))


def usdm() -> Drive:
    return Drive("binance_derivatives", "BTCUSDT", types=(*TYPES, "liquidation"))


def test_liquidations_lost_during_a_restart_are_told() -> None:
    d = usdm()
    assert any("liquidation." in s for s in d.venue.resume_subjects())
    # The books have a connection of their own: what came over it says nothing of the liquidations.
    d.venue.resume([earlier(d, "trade", 60_000), earlier(d, "orderbook_delta", 30_000)])
    since_ms = d.ms - 60_000
    d.open("books", "public")
    assert liquidations(d) == []
    d.open("others", "market")
    assert liquidations(d) == [("BTCUSDT", "restart", since_ms, d.ms)]
    d.close("others")
    d.open("others again", "market")
    assert [cause for _, cause, _, _ in liquidations(d)] == ["restart", "disconnect"]


def test_the_very_first_start_misses_no_liquidation() -> None:
    d = usdm()
    d.venue.resume([])
    d.open("others", "market")
    assert liquidations(d) == []


def test_a_dead_connection_is_missing_liquidations_since_it_was_heard_last() -> None:
    d = usdm()
    d.open("others", "market")
    d.frame({"result": None, "id": 1}, "others")
    heard_ms = d.ms
    d.wait(45)
    d.close("others")
    d.open("others again", "market")
    assert liquidations(d) == [("BTCUSDT", "disconnect", heard_ms, d.ms)]
