"""The typed settings the rest of MarketPrism works with. Units are in the names; defaults stand here."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from marketprism.config.offers import OFFERS, POLL_INTERVAL_S, PUBLISHED_TYPES


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLimits:
    """A process's memory: above `soft_mb` it warns and runs on, at `hard_mb` it stops and starts again."""

    soft_mb: int
    hard_mb: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderBookSettings:
    """How an exchange's books are kept and published."""

    method: Literal["websocket", "snapshot"] = "websocket"
    depth_limit: int = 500
    snapshot_interval_s: float = 1.0
    snapshot_depth: int = 100
    update_frequency_ms: int = 100
    checkpoint_interval_s: float = 300.0
    audit_interval_s: float = 10.0
    buffer_max_size: int = 5000
    request_timeout_s: float = 0.9
    rest_base: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeSettings:
    """One enabled exchange. `name` is the section (okx_spot), `exchange` who it is (okx).

    `intervals_s` holds the poll interval of every polled data type. `liquidation_symbols` empty means all
    symbols of the exchange.
    """

    name: str
    exchange: str
    market_type: str
    base_url: str
    ws_url: str
    symbols: tuple[str, ...]
    data_types: frozenset[str]
    orderbook: OrderBookSettings = field(default_factory=OrderBookSettings)
    intervals_s: dict[str, float] = field(default_factory=lambda: dict(POLL_INTERVAL_S))
    lsr_period: str = "5m"
    lsr_limit: int = 30
    liquidation_symbols: tuple[str, ...] = ()
    volatility_resolution_s: int = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSettings:
    """The JetStream stream. -1 is "no limit" for counts and bytes, 0 for the age."""

    name: str = "MARKET_DATA"
    subjects: tuple[str, ...] = tuple(f"{data_type}.>" for data_type in PUBLISHED_TYPES)
    max_msgs: int = 5_000_000
    max_bytes: int = 2 * 1024**3
    max_age_s: int = 172_800
    max_consumers: int = 50
    replicas: int = 1
    storage: Literal["file", "memory"] = "file"
    discard: Literal["old"] = "old"
    duplicate_window_s: int = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishSettings:
    """The window of unacknowledged messages, and what is kept in memory while NATS is away."""

    max_pending: int = 1000
    buffer_bytes: int = 24 * 1024**2
    ack_timeout_s: float = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSettings:
    """TLS to NATS. Without `ca_file` the system's certificate authorities count."""

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    handshake_first: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsSettings:
    """The connection to NATS. Secrets are left out of `repr`; -1 reconnect attempts is "for ever"."""

    servers: tuple[str, ...] = ("nats://127.0.0.1:4222",)
    client_name: str = "unified-collector"
    max_reconnect_attempts: int = -1
    reconnect_time_wait_s: float = 2.0
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    creds_file: Path | None = None
    nkey_seed_file: Path | None = None
    tls: TlsSettings | None = None
    stream: StreamSettings = field(default_factory=StreamSettings)
    publish: PublishSettings = field(default_factory=PublishSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingSettings:
    """Whether a worker also writes what the wire says, and where."""

    enabled: bool = False
    directory: Path = Path("./var/captures")
    compression: Literal["zstd", "gzip"] = "zstd"
    rotate_mb: int = 256
    rotate_minutes: int = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSettings:
    """When a batch is stored: so many rows, so many bytes of payload, or so long after its first message."""

    rows: int = 20_000
    bytes: int = 4 * 1024**2
    seconds: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HotSettings:
    """The hot store. `location` is a directory (embedded engine) or a ClickHouse server's URL; `load` makes a relative
    one part of the folder of both.

    `cluster` names the server's cluster, "" for none. The login is the environment's.
    """

    location: str = "hot"
    cluster: str = ""
    port: int = 8085
    retention_days: int = 3
    batch: BatchSettings = field(default_factory=BatchSettings)
    memory: MemoryLimits = field(default_factory=lambda: MemoryLimits(soft_mb=600, hard_mb=900))


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdSettings:
    """The cold store. `location` is a directory of Parquet files or a ClickHouse server's URL."""

    enabled: bool = True
    location: str = "cold"
    cluster: str = ""
    port: int = 8086
    delay_minutes: int = 10
    memory: MemoryLimits = field(default_factory=lambda: MemoryLimits(soft_mb=600, hard_mb=900))


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageSettings:
    """Both stores, and the login of their ClickHouse servers, which is left out of `repr`.

    `enabled`: whether they run with the workers.
    """

    enabled: bool = False
    hot: HotSettings = field(default_factory=HotSettings)
    cold: ColdSettings = field(default_factory=ColdSettings)
    user: str = ""
    password: str = field(default="", repr=False)


def default_memory() -> dict[str, MemoryLimits]:
    """The memory limits of all five workers."""
    return {o.name: MemoryLimits(soft_mb=o.soft_mb, hard_mb=o.hard_mb) for o in OFFERS.values()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All of it. `exchanges` holds the enabled ones only, `memory` all five."""

    exchanges: dict[str, ExchangeSettings]
    memory: dict[str, MemoryLimits] = field(default_factory=default_memory)
    nats: NatsSettings = field(default_factory=NatsSettings)
    recording: RecordingSettings = field(default_factory=RecordingSettings)
    storage: StorageSettings = field(default_factory=StorageSettings)
    log_level: str = "INFO"
    bind_host: str = "127.0.0.1"
    health_port: int = 8087
    metrics_port: int = 9092
    actions_token_file: Path | None = None
