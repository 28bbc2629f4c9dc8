"""The market itself: plausible, repeatable, never crossed."""

import pytest

from marketprism.simulator.instruments import Grid, instrument
from marketprism.simulator.market import ASK, BID, BUY, Market, Pace, Underlyings
from marketprism.simulator.options import SimulatorError, SimulatorOptions


def market(worker: str = "binance_spot", name: str = "BTCUSDT", seed: int = 1, rate: float = 600.0) -> Market:
    return Market(seed, instrument(worker, name), Underlyings(seed), Pace.of(rate, 1, 1.0))


@pytest.mark.parametrize(
    ("worker", "name"),
    [
        ("binance_spot", "BTCUSDT"),
        ("binance_spot", "ETHBTC"),
        ("binance_derivatives", "1000PEPEUSDT"),
        ("okx_spot", "SOL-USDT"),
        ("okx_derivatives", "BTC-USD-SWAP"),
        ("deribit_derivatives", "BTC_USDC-PERPETUAL"),
    ],
)
def test_book_is_whole_and_never_crossed(worker: str, name: str) -> None:
    one = market(worker, name)
    books = [dict(ladder.lots) for ladder in one.ladders]
    for _ in range(2000):
        one.step()
        for key, lots in one.ops:
            if lots:
                books[key & 1][key >> 1] = lots
            else:
                books[key & 1].pop(key >> 1, None)
        assert one.best_bid < one.best_ask
    assert books == [ladder.lots for ladder in one.ladders]
    assert all(ladder.ticks == sorted(ladder.lots) for ladder in one.ladders)
    assert min(len(ladder.ticks) for ladder in one.ladders) > 150


def test_trades_hit_the_touch_and_move_the_price() -> None:
    one, seen, prices = market(), 0, set()
    for _ in range(1500):
        ask, bid = one.best_ask, one.best_bid
        one.step()
        for order in one.orders:
            ticks = [tick for tick, _ in order.fills]
            assert ticks == sorted(ticks, reverse=order.side != BUY)
            seen += len(ticks)
        prices.add((bid, ask))
    assert seen > 1000
    assert len(prices) > 100
    start = one.instrument.start_price / one.instrument.ticks.size
    assert abs(one.best_bid / start - 1.0) < 0.02


def test_same_seed_same_market() -> None:
    def story(seed: int) -> list[object]:
        one = market(seed=seed)
        told: list[object] = []
        for _ in range(300):
            one.step()
            told += (one.ops, one.orders)
        return told

    assert story(7) == story(7)
    assert story(7) != story(8)


def test_liquidations_only_in_derivatives() -> None:
    forced = {"binance_spot": 0, "binance_derivatives": 0}
    for worker in forced:
        one = market(worker)
        for _ in range(6000):
            one.step()
            forced[worker] += sum(order.forced for order in one.orders)
    assert forced["binance_spot"] == 0
    assert forced["binance_derivatives"] >= 2


def test_rate_zero_stands_still() -> None:
    one = market(rate=0.0)
    for _ in range(200):
        one.step()
        assert not one.ops
        assert not one.orders


@pytest.mark.parametrize(
    ("grid", "count", "fixed", "trimmed", "number"),
    [
        (Grid.of("0.01", 8), 6183763, "61837.63000000", "61837.63", "61837.63"),
        (Grid.of("0.1", 2), 618002, "61800.20", "61800.2", "61800.2"),
        (Grid.of("0.5"), 178001, "89000.5", "89000.5", "89000.5"),
        (Grid.of("10"), 254, "2540", "2540", "2540.0"),
        (Grid.of("10", 8), 8, "80.00000000", "80", "80.0"),
        (Grid.of("0.00000001", 8), 12, "0.00000012", "0.00000012", "0.00000012"),
        (Grid.of("0.1"), 787430, "78743.0", "78743", "78743.0"),
    ],
)
def test_numbers_are_written_as_the_exchanges_write_them(
    grid: Grid, count: int, fixed: str, trimmed: str, number: str
) -> None:
    assert (grid.fixed(count), grid.trimmed(count), grid.number(count)) == (fixed, trimmed, number)


def test_bad_settings_are_one_clear_line() -> None:
    with pytest.raises(SimulatorError, match=r"okx_spot lists no instrument like 'BTCUSDT'.*'BTC-USDT'"):
        instrument("okx_spot", "BTCUSDT")
    with pytest.raises(SimulatorError, match="unknown worker 'binance'"):
        SimulatorOptions(symbols={"binance": []})
    with pytest.raises(SimulatorError, match="rate: expected a number of at least 0"):
        SimulatorOptions(rate=-1)
    assert (BID, ASK) == (0, 1)
