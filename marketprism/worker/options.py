"""The checked configuration in the terms of venue and publisher."""

import ssl
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from nats.aio.client import Client

from marketprism.config import OFFERS, ExchangeSettings, NatsSettings, TlsSettings
from marketprism.events import MarketType
from marketprism.venues.base import Options
from marketprism.worker.publisher import PublisherOptions
from marketprism.worker.stream import StreamOptions, ensure_stream

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
        audit_interval_ms=round(book.audit_interval_s * 1000),
        update_frequency_ms=book.update_frequency_ms,
        book_buffer=book.buffer_max_size,
        intervals_s=dict(settings.intervals_s),
        lsr_period=settings.lsr_period,
        lsr_limit=settings.lsr_limit,
        liquidation_symbols=settings.liquidation_symbols,
        volatility_resolution_s=settings.volatility_resolution_s,
    )


def replay_options(name: str, symbols: tuple[str, ...] | None) -> Options:
    """The options of a replay: everything the exchange offers; `symbols` None: whatever turns up.

    Nobody is there to be asked whether a book is right.
    """
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
    return replace(venue_options(settings), symbols=symbols, audit_interval_ms=0)


def publisher_options(nats: NatsSettings, name: str) -> PublisherOptions:
    """The publisher's share of the configuration."""
    connect: dict[str, Any] = {
        "user": nats.user,
        "password": nats.password,
        "token": nats.token,
        "user_credentials": str(nats.creds_file) if nats.creds_file else None,
        "nkeys_seed": str(nats.nkey_seed_file) if nats.nkey_seed_file else None,
    }
    if nats.tls is not None:
        connect["tls"] = tls_context(nats.tls)
        connect["tls_handshake_first"] = nats.tls.handshake_first
    return PublisherOptions(
        servers=nats.servers,
        client_name=f"{nats.client_name}-{name}",
        stream=nats.stream.name,
        connect_options={k: v for k, v in connect.items() if v is not None},
        window=nats.publish.max_pending,
        buffer_bytes=nats.publish.buffer_bytes,
        ack_timeout_s=nats.publish.ack_timeout_s,
        reconnect_time_wait_s=nats.reconnect_time_wait_s,
    )


def tls_context(tls: TlsSettings) -> ssl.SSLContext:
    """TLS to NATS as configured. Raises OSError or ssl.SSLError on files that do not serve."""
    context = ssl.create_default_context(cafile=str(tls.ca_file) if tls.ca_file else None)
    if tls.cert_file is not None:
        context.load_cert_chain(str(tls.cert_file), str(tls.key_file) if tls.key_file else None)
    return context


def stream_preparation(nats: NatsSettings) -> Callable[[Client], Awaitable[None]]:
    """What makes sure of the stream, on each new connection."""
    s = nats.stream
    wanted = StreamOptions(
        subjects=s.subjects,
        name=s.name,
        max_msgs=s.max_msgs,
        max_bytes=s.max_bytes,
        max_age_s=s.max_age_s,
        max_consumers=s.max_consumers,
        duplicate_window_s=s.duplicate_window_s,
        storage=s.storage,
        replicas=s.replicas,
        discard=s.discard,
    )
    return lambda client: ensure_stream(client, wanted)
