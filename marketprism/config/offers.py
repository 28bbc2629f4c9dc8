"""What each of the five exchange sections offers: data types, limits, and its defaults."""

import re
from dataclasses import dataclass

# What a user may list under `exchanges.<exchange>.data_types`.
DATA_TYPES = (
    "orderbook",
    "trade",
    "funding_rate",
    "open_interest",
    "liquidation",
    "lsr_top_position",
    "lsr_top_account",
    "lsr_all_account",
    "volatility_index",
)
# What is published: the changes of a book come with `orderbook`, holes are told of every type.
PUBLISHED_TYPES = (*DATA_TYPES, "orderbook_delta", "gap")
RATIO_TYPES = ("lsr_top_position", "lsr_top_account", "lsr_all_account")
# Asked for at an interval; the default of each, in seconds.
POLL_INTERVAL_S = {
    "funding_rate": 30.0,
    "open_interest": 30.0,
    "lsr_top_position": 20.0,
    "lsr_top_account": 20.0,
    "lsr_all_account": 20.0,
    "volatility_index": 60.0,
}

_SPOT = ("orderbook", "trade")
_DERIVATIVES = (*_SPOT, "funding_rate", "open_interest", "liquidation")
_WITH_RATIOS = (*_DERIVATIVES, *RATIO_TYPES)
_OKX_WS = "wss://ws.okx.com:8443/ws/v5/public"


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One exchange section as MarketPrism knows it.

    `symbol_pattern` is the shape of the exchange's own ids and `symbol_example` says it to a person.
    `depth_max` is the deepest book that a request or the stream gives (None: the whole book always).
    `update_frequencies_ms` are the speeds of the depth stream.
    """

    name: str
    exchange: str
    market_type: str
    base_url: str
    ws_url: str
    symbols: tuple[str, ...]
    data_types: tuple[str, ...]
    symbol_pattern: re.Pattern[str]
    symbol_example: str
    depth_max: int | None
    update_frequencies_ms: tuple[int, ...]
    buffer_max_size: int
    soft_mb: int
    hard_mb: int


# Limits: Binance spot rest-api.md and web-socket-streams.md; USD-M market streams; OKX `books` is 400 levels
# every 100 ms; Deribit `book.<instrument>.100ms` is the whole book. Memory: requirement of each worker, MB.
OFFERS: dict[str, Offer] = {
    offer.name: offer
    for offer in (
        Offer(
            name="binance_spot",
            exchange="binance",
            market_type="spot",
            base_url="https://api.binance.com",
            ws_url="wss://stream.binance.com:9443",
            symbols=("BTCUSDT", "ETHUSDT"),
            data_types=_SPOT,
            symbol_pattern=re.compile(r"[^\s\-/.*>a-z]{2,40}"),
            symbol_example="Binance's own name such as BTCUSDT",
            depth_max=5000,
            update_frequencies_ms=(100, 1000),
            buffer_max_size=5000,
            soft_mb=80,
            hard_mb=120,
        ),
        Offer(
            name="binance_derivatives",
            exchange="binance",
            market_type="perpetual",
            base_url="https://fapi.binance.com",
            ws_url="wss://fstream.binance.com",
            symbols=("BTCUSDT", "ETHUSDT"),
            data_types=_WITH_RATIOS,
            symbol_pattern=re.compile(r"[^\s\-/.*>a-z]{2,40}"),
            symbol_example="Binance's own name such as BTCUSDT",
            depth_max=1000,
            update_frequencies_ms=(0, 100, 500),
            buffer_max_size=5000,
            soft_mb=100,
            hard_mb=140,
        ),
        Offer(
            name="okx_spot",
            exchange="okx",
            market_type="spot",
            base_url="https://www.okx.com",
            ws_url=_OKX_WS,
            symbols=("BTC-USDT", "ETH-USDT"),
            data_types=_SPOT,
            symbol_pattern=re.compile(r"[A-Z0-9]+-[A-Z0-9]+"),
            symbol_example="an OKX instId such as BTC-USDT",
            depth_max=400,
            update_frequencies_ms=(100,),
            buffer_max_size=2000,
            soft_mb=120,
            hard_mb=160,
        ),
        Offer(
            name="okx_derivatives",
            exchange="okx",
            market_type="perpetual",
            base_url="https://www.okx.com",
            ws_url=_OKX_WS,
            symbols=("BTC-USDT-SWAP", "ETH-USDT-SWAP"),
            data_types=_WITH_RATIOS,
            symbol_pattern=re.compile(r"[A-Z0-9]+-[A-Z0-9_]+-(SWAP|\d{6})"),
            symbol_example="an OKX instId such as BTC-USDT-SWAP",
            depth_max=400,
            update_frequencies_ms=(100,),
            buffer_max_size=2000,
            soft_mb=150,
            hard_mb=200,
        ),
        Offer(
            name="deribit_derivatives",
            exchange="deribit",
            market_type="perpetual",
            base_url="https://www.deribit.com",
            ws_url="wss://www.deribit.com/ws/api/v2",
            symbols=("BTC-PERPETUAL", "ETH-PERPETUAL"),
            data_types=(*_DERIVATIVES, "volatility_index"),
            symbol_pattern=re.compile(
                r"[A-Z0-9]{2,5}|[A-Z0-9_]+-(PERPETUAL|\d{1,2}[A-Z]{3}\d\d(-[0-9d]+-[CP])?)"
            ),
            symbol_example="a Deribit instrument such as BTC-PERPETUAL, or a currency such as BTC",
            depth_max=None,
            update_frequencies_ms=(100,),
            buffer_max_size=2000,
            soft_mb=60,
            hard_mb=100,
        ),
    )
}
