"""The checked configuration in a venue's own terms."""

from dataclasses import replace

from marketprism.config import OFFERS, ExchangeSettings
from marketprism.events import MarketType
from marketprism.venues.base import Options

_MARKET_TYPES: dict[str, MarketType] = {"spot": "spot", "perpetual": "perpetual"}


def venue_options(settings: ExchangeSettings) -> Options:
    """What a venue needs to know of the configuration of its exchange."""
    book = settings.orderbook
    return Options(
        name=settings.name,
        exchange=settings.exchange,
        market_type=_MARKET_TYPES[settings.market_type],
        ws_url=settings.ws_url,
        symbols=settings.symbols,
        data_types=settings.data_types,
        book_method=book.method,
        depth_limit=book.depth_limit,
        snapshot_depth=book.snapshot_depth,
        snapshot_interval_ms=round(book.snapshot_interval_s * 1000),
        checkpoint_interval_ms=round(book.checkpoint_interval_s * 1000),
        update_frequency_ms=book.update_frequency_ms,
        book_buffer=book.buffer_max_size,
        intervals_s=dict(settings.intervals_s),
        lsr_period=settings.lsr_period,
        lsr_limit=settings.lsr_limit,
        liquidation_symbols=settings.liquidation_symbols,
        volatility_resolution_s=settings.volatility_resolution_s,
    )


def replay_options(name: str, symbols: tuple[str, ...] | None) -> Options:
    """The options of a replay: everything the exchange offers; `symbols` None: whatever turns up."""
    offer = OFFERS[name]
    settings = ExchangeSettings(
        name=name,
        exchange=offer.exchange,
        market_type=offer.market_type,
        base_url=offer.base_url,
        ws_url=offer.ws_url,
        symbols=symbols or (),
        data_types=frozenset(offer.data_types),
    )
    return replace(venue_options(settings), symbols=symbols)
