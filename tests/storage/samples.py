"""Events of every type, with figures that a float or a narrow decimal would spoil."""

from typing import Any

from marketprism.events import (
    Event,
    FundingRate,
    Gap,
    Level,
    Liquidation,
    LsrAllAccount,
    LsrTopAccount,
    LsrTopPosition,
    OpenInterest,
    OrderBook,
    OrderBookDelta,
    Payload,
    Trade,
    VolatilityIndex,
    subject,
)

NOW_MS = 1_795_417_150_231
WIDEST = "99999999999999999999.999999999999999999"
FINEST = "0.000000000000000001"


def common(symbol: str = "BTC-USDT", at_ms: int | None = NOW_MS) -> dict[str, Any]:
    """What every payload carries."""
    return {
        "exchange": "binance",
        "market_type": "spot",
        "symbol": symbol,
        "instrument_id": symbol.replace("-", ""),
        "ts_ms": at_ms,
        "collected_ts_ms": NOW_MS + 7,
    }


def trade(number: int = 1, **changed: Any) -> Trade:
    """A trade; `number` is its id."""
    fields = common(at_ms=NOW_MS + number // 10) | {
        "trade_id": str(number),
        "price": "84232.2",
        "quantity": FINEST,
        "exchange_quantity": WIDEST,
        "quantity_unit": "contracts",
        "side": "sell",
        "trade_ts_ms": NOW_MS + number // 10,
        "normalized_symbol": "BTC-USDT",
    }
    return Trade(**fields | changed)


def event(data: Payload, identity: str) -> Event:
    """The payload with its subject and id."""
    data_type = str(data.__struct_config__.tag)
    where = subject(data_type, data.exchange, data.market_type, data.symbol)
    return Event.of(
        where, f"{data_type}:{data.exchange}:{data.market_type}:{data.instrument_id}:{identity}", data
    )  # type: ignore[arg-type]


def trades(first: int, last: int) -> list[Event]:
    """Trades with these ids, as events."""
    return [event(trade(i), str(i)) for i in range(first, last + 1)]


def one_of_each() -> list[Payload]:
    """A payload of every type."""
    bids, asks = [Level("84232.10", "0.50000000")], [Level("84232.2", "1"), Level("84233", "2.5")]
    ratios = {"long_short_ratio": "1.25", "period": "5m"}
    return [
        trade(),
        OrderBook(
            **common(at_ms=None),
            bids=bids,
            asks=asks,
            depth_levels=2,
            last_update_id=None,
            quantity_unit="base",
            normalized_symbol="BTC-USDT",
            standardized_at="2026-11-23T00:00:00Z",
        ),
        OrderBookDelta(
            **common(),
            update_type="delta",
            bids=[],
            asks=asks,
            first_update_id=7,
            last_update_id=9,
            prev_update_id=6,
            quantity_unit=None,
            checksum=-5,
            exact_from="0.1",
        ),
        FundingRate(
            **common(),
            current_funding_rate="-0.0000182221218054",
            estimated_funding_rate=None,
            funding_interval="8h",
            mark_price="1.5",
            index_price=None,
            premium_index="1e-7",
            next_funding_ts_ms=NOW_MS + 3_600_000,
        ),
        OpenInterest(
            **common(),
            open_interest_value=WIDEST,
            open_interest_unit="contracts",
            open_interest_base=None,
            open_interest_usd="12.5",
        ),
        Liquidation(
            **common(),
            liquidation_id="l1",
            side="buy",
            status="filled",
            price="2",
            quantity=None,
            exchange_quantity="3",
            quantity_unit=None,
            filled_quantity="3",
            notional_value="6",
            liquidation_time="2026-11-23T00:00:00Z",
            liquidation_ts_ms=NOW_MS,
            aggregation_mode="filtered",
        ),
        LsrTopPosition(**common(), **ratios, long_position_ratio="0.6", short_position_ratio=None),
        LsrTopAccount(**common(), **ratios, long_account_ratio="0.6", short_account_ratio="0.4"),
        LsrAllAccount(**common(), **ratios, long_account_ratio="0.6", short_account_ratio="0.4"),
        VolatilityIndex(
            **common("BTC"),
            currency="BTC",
            vol_index="45.12",
            volatility_index="45.12",
            high="46",
            resolution_s=60,
        ),
        Gap(**common(), affected_data_type="trade", cause="restart", missing=3, detail="it's \\ a 'hole'\n"),
    ]
