"""The table of all keys: what each may hold, what it does, and which setting it sets.

A path may hold `<exchange>`, `<type>`, `<polled>` or `<ratio>` for each exchange section or data type, `{a,b}`
for several keys, and `*` for any key. Checks, warnings and docs/configuration.md all follow from this table.
"""

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from marketprism.config import kinds
from marketprism.config.kinds import Kind, fixed, flag, no_effect, one_of, seconds, text, url, whole
from marketprism.config.offers import DATA_TYPES, OFFERS, POLL_INTERVAL_S, RATIO_TYPES, Offer

_PLACEHOLDERS = {
    "<exchange>": tuple(OFFERS),
    "<type>": DATA_TYPES,
    "<polled>": tuple(POLL_INTERVAL_S),
    "<pushed>": tuple(t for t in DATA_TYPES if t not in POLL_INTERVAL_S),
    "<ratio>": RATIO_TYPES,
}


@dataclass(frozen=True, slots=True)
class Key:
    """One row. `sets` is `Class.field` of settings.py, `effect` one sentence for the operator ("": none).

    `kind` may depend on the exchange. `default` is for the docs where the field's own default does not tell.
    `instead` names the key to use in place of a deprecated one.
    """

    path: str
    kind: Kind | Callable[[Offer], Kind]
    sets: str = ""
    effect: str = ""
    default: str = ""
    instead: str = ""

    def kind_at(self, path: str) -> Kind:
        """The kind at an expanded path."""
        if isinstance(self.kind, Kind):
            return self.kind
        return self.kind(OFFERS[path.split(".")[1]])


_HTTP = url("http", "https", example="https://host")
_WS = url("ws", "wss", example="wss://host/path")
_PERIODS = one_of("5m", "15m", "30m", "1h", "2h", "4h", "6h", "12h", "1d")
_LEVELS = one_of("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", fold=str.upper)
_LIQUIDATION_OFFERS = tuple(o for o in OFFERS.values() if "liquidation" in o.data_types)
_EX = "exchanges.<exchange>"
_BOOK = f"{_EX}.orderbook"
_STREAM = "nats.jetstream.streams.MARKET_DATA"

EFFECTIVE = (
    Key("system.logging.level", _LEVELS, "Settings.log_level", "Least severe lines that are logged."),
    # --- exchanges
    Key(f"{_EX}.enabled", flag(), "", "Whether this exchange has a worker.", "true"),
    Key(
        f"{_EX}.exchange",
        lambda o: one_of(o.name, o.exchange),
        "",
        "Checked only: the section's own name, or binance, okx, deribit.",
        "the section's name",
    ),
    Key(
        f"{_EX}.market_type",
        lambda o: one_of(o.market_type),
        "",
        "Checked only: spot for the two spot sections, else perpetual.",
        "by section",
    ),
    Key(
        f"{_EX}.api.base_url",
        _HTTP,
        "ExchangeSettings.base_url",
        "REST server; http:// or https://.",
        "the exchange's own",
    ),
    Key(
        f"{_EX}.api.ws_url",
        _WS,
        "ExchangeSettings.ws_url",
        "Websocket server; ws:// or wss://.",
        "the exchange's own",
    ),
    Key(
        f"{_EX}.symbols",
        lambda o: kinds.list_of(kinds.symbol(o), f"a list of symbols, each {o.symbol_example}"),
        "ExchangeSettings.symbols",
        "Instruments to collect, in the exchange's own spelling; Deribit also takes a currency (BTC).",
        "BTC and ETH",
    ),
    Key(
        f"{_EX}.data_types",
        lambda o: kinds.list_of(kinds.data_type(o), f"a list of data types, of {', '.join(o.data_types)}"),
        "ExchangeSettings.data_types",
        "What to collect, of what the exchange offers (see below).",
        "all it offers",
    ),
    Key(
        f"{_EX}.memory.soft_mb",
        whole(16, 65_536),
        "MemoryLimits.soft_mb",
        "Above this many MB the worker warns, and runs on.",
        "see below",
    ),
    Key(
        f"{_EX}.memory.hard_mb",
        whole(16, 65_536),
        "MemoryLimits.hard_mb",
        "At this many MB the worker stops gracefully and is started again; more than soft_mb.",
        "see below",
    ),
    Key(
        f"{_BOOK}.method",
        one_of("websocket", "snapshot"),
        "OrderBookSettings.method",
        "`websocket` keeps exact books from every change; `snapshot` polls REST, as the earlier system did.",
    ),
    Key(
        f"{_BOOK}.depth_limit",
        kinds.book_depth,
        "OrderBookSettings.depth_limit",
        "Levels asked for in the REST snapshot a book starts from: Binance spot up to 5000, USD-M up to 1000, "
        "OKX 400. No effect on Deribit, which sends whole books.",
    ),
    Key(
        f"{_BOOK}.snapshot_interval",
        seconds(0.05, 86_400),
        "OrderBookSettings.snapshot_interval_s",
        "Seconds between two `orderbook` messages of a symbol.",
    ),
    Key(
        f"{_BOOK}.snapshot_depth",
        kinds.published_depth,
        "OrderBookSettings.snapshot_depth",
        "Levels a side in an `orderbook` message.",
    ),
    Key(
        f"{_BOOK}.update_frequency",
        lambda o: one_of(*o.update_frequencies_ms),
        "OrderBookSettings.update_frequency_ms",
        "Speed of the exchange's depth stream in ms: Binance spot 100 or 1000, USD-M 0, 100 or 500, others 100.",
    ),
    Key(
        f"{_BOOK}.checkpoint_interval",
        seconds(1, 86_400),
        "OrderBookSettings.checkpoint_interval_s",
        "Seconds between two whole books in `orderbook_delta`, from which a late consumer can start.",
    ),
    Key(
        f"{_BOOK}.audit_interval",
        seconds(0, 86_400),
        "OrderBookSettings.audit_interval_s",
        "Seconds from one live book checked against another word of the exchange to the next; 0: none.",
    ),
    Key(
        f"{_BOOK}.buffer_max_size",
        whole(1, 1_000_000),
        "OrderBookSettings.buffer_max_size",
        "Changes of a book kept while its snapshot is awaited.",
        "5000 (Binance), 2000 (others)",
    ),
    Key(
        f"{_BOOK}.request_timeout",
        seconds(0.05, 60),
        "OrderBookSettings.request_timeout_s",
        "Seconds a polled book may take (`method: snapshot`).",
    ),
    Key(
        f"{_BOOK}.rest_base",
        _HTTP,
        "OrderBookSettings.rest_base",
        "REST server for books alone.",
        "api.base_url",
        instead="api.base_url",
    ),
    Key(
        "exchanges.deribit_derivatives.volatility_index.resolution",
        kinds.resolution(),
        "ExchangeSettings.volatility_resolution_s",
        "Length of a volatility candle: 1, 60, 3600, 43200 (seconds) or 1D. Goes before the key below.",
    ),
    # --- data types
    Key(
        "data_types.<type>.enabled",
        flag(),
        "",
        "false: no exchange collects this type.",
        "true",
    ),
    Key(
        "data_types.<polled>.interval",
        seconds(1, 86_400),
        "",
        "Seconds between two requests of this type.",
        "funding_rate, open_interest 30; ratios 20; volatility_index 60",
    ),
    Key(
        "data_types.<ratio>.api_config.period",
        _PERIODS,
        "ExchangeSettings.lsr_period",
        "Period of a ratio's points; one for all ratios.",
    ),
    Key(
        "data_types.<ratio>.api_config.limit",
        whole(1, 100),
        "ExchangeSettings.lsr_limit",
        "Points asked for in a request; one for all ratios.",
    ),
    Key(
        "data_types.liquidation.symbols",
        kinds.list_of(
            kinds.any_symbol(_LIQUIDATION_OFFERS), "a list of symbols, or [] for all", empty_ok=True
        ),
        "ExchangeSettings.liquidation_symbols",
        "Whose liquidations are published, of any exchange; `[]` is all symbols.",
        "each exchange's symbols",
    ),
    Key(
        "data_types.volatility_index.api_config.resolution",
        kinds.resolution(),
        "ExchangeSettings.volatility_resolution_s",
        "Length of a volatility candle: 1, 60, 3600, 43200 (seconds) or 1D.",
    ),
    # --- NATS
    Key(
        "nats.servers",
        kinds.list_of(kinds.nats_url(), "a list of URLs such as nats://127.0.0.1:4222"),
        "NatsSettings.servers",
        "NATS servers: nats://, tls://, ws:// or wss://, without credentials.",
    ),
    Key(
        "nats.client_name",
        text("a name", r"\S{1,60}"),
        "NatsSettings.client_name",
        "How the connection is named in NATS.",
    ),
    Key(
        "nats.reconnect_time_wait",
        seconds(0.05, 300),
        "NatsSettings.reconnect_time_wait_s",
        "Seconds between two attempts to reach a lost NATS.",
    ),
    Key(
        "nats.creds_file",
        kinds.readable_file(),
        "NatsSettings.creds_file",
        "NATS credentials file (JWT and seed).",
        "$CREDENTIALS_DIRECTORY/nats.creds if there is one",
    ),
    Key(
        "nats.nkey_seed_file",
        kinds.readable_file(),
        "NatsSettings.nkey_seed_file",
        "File with an NKey seed.",
    ),
    Key(
        "nats.tls.ca_file",
        kinds.readable_file(),
        "TlsSettings.ca_file",
        "PEM file of the authority that signed the server's certificate; any key of `nats.tls` turns TLS on.",
        "the system's authorities",
    ),
    Key("nats.tls.cert_file", kinds.readable_file(), "TlsSettings.cert_file", "Our own certificate, PEM."),
    Key("nats.tls.key_file", kinds.readable_file(), "TlsSettings.key_file", "Its key, PEM."),
    Key(
        "nats.tls.handshake_first",
        flag(),
        "TlsSettings.handshake_first",
        "TLS before the server's greeting, as the server's `handshake_first`.",
    ),
    Key(
        "nats.publish.timeout",
        seconds(0.1, 300),
        "PublishSettings.ack_timeout_s",
        "Seconds until a message without acknowledgement is sent again.",
    ),
    Key(
        "nats.publish.max_pending",
        whole(1, 100_000),
        "PublishSettings.max_pending",
        "Messages that may wait for their acknowledgement.",
    ),
    Key(
        "nats.publish.buffer_bytes",
        whole(2**20, 2**34),
        "PublishSettings.buffer_bytes",
        "Bytes kept in memory while NATS is away; beyond it, data is lost and published as `gap`.",
    ),
    Key(
        f"{_STREAM}.subjects",
        kinds.list_of(kinds.subject_name(), "a list of NATS subjects", empty_ok=True),
        "StreamSettings.subjects",
        "More subjects for the stream; MarketPrism's own are always in it.",
        "`<type>.>` of every published type",
    ),
    Key(
        f"{_STREAM}.max_msgs",
        whole(1, 2**53, also=-1),
        "StreamSettings.max_msgs",
        "Messages the stream keeps.",
    ),
    Key(
        f"{_STREAM}.max_bytes",
        whole(2**20, 2**53, also=-1),
        "StreamSettings.max_bytes",
        "Bytes the stream keeps.",
    ),
    Key(
        f"{_STREAM}.max_age",
        whole(1, 2**31, also=0),
        "StreamSettings.max_age_s",
        "Seconds the stream keeps a message.",
    ),
    Key(
        f"{_STREAM}.max_consumers",
        whole(1, 100_000, also=-1),
        "StreamSettings.max_consumers",
        "Consumers the stream may have.",
    ),
    Key(
        f"{_STREAM}.replicas",
        one_of(1, 2, 3, 4, 5),
        "StreamSettings.replicas",
        "Copies in a NATS cluster, 1 to 5.",
    ),
    Key(
        f"{_STREAM}.storage",
        one_of("file", "memory"),
        "StreamSettings.storage",
        "`file` or `memory`.",
    ),
    Key(
        f"{_STREAM}.duplicate_window",
        whole(1, 86_400),
        "StreamSettings.duplicate_window_s",
        "Seconds within which a message of the same id is stored once; at most max_age.",
    ),
    # --- the rest
    Key(
        "monitoring.bind_host",
        kinds.host(),
        "Settings.bind_host",
        "Address that /health and /metrics listen on; 0.0.0.0 is every interface.",
    ),
    Key(
        "monitoring.health_check.port",
        whole(0, 65_535),
        "Settings.health_port",
        "Port of /health; 0 is any free one.",
    ),
    Key(
        "monitoring.metrics.port",
        whole(0, 65_535),
        "Settings.metrics_port",
        "Port of /metrics; 0 is any free one.",
    ),
    Key(
        "monitoring.actions_token_file",
        kinds.readable_file(),
        "Settings.actions_token_file",
        "File with the token for orders to workers over HTTP; without one there are no such orders.",
        "$CREDENTIALS_DIRECTORY/control.token if there is one",
    ),
    Key(
        "recording.enabled",
        flag(),
        "RecordingSettings.enabled",
        "Also write everything the exchanges send to capture files.",
    ),
    Key(
        "recording.directory",
        text("a directory"),
        "RecordingSettings.directory",
        "Where; from the working directory if relative.",
    ),
    Key(
        "recording.compression",
        one_of("zstd", "gzip"),
        "RecordingSettings.compression",
        "`zstd` or `gzip`.",
    ),
    Key(
        "recording.rotate_mb",
        whole(1, 65_536),
        "RecordingSettings.rotate_mb",
        "A new file after this many MB …",
    ),
    Key(
        "recording.rotate_minutes",
        whole(1, 10_080),
        "RecordingSettings.rotate_minutes",
        "… or minutes.",
    ),
    # --- storage
    Key(
        "storage.enabled",
        flag(),
        "StorageSettings.enabled",
        "Whether marketprism.target starts the stores, too; they need the package marketprism-embedded.",
    ),
    Key(
        "storage.hot.location",
        kinds.store(),
        "HotSettings.location",
        "Where the hot store is: a directory (embedded engine), or a ClickHouse server's URL; "
        "from `$MARKETPRISM_STATE_DIR`, or else `var/storage`, if relative.",
        "hot",
    ),
    Key(
        "storage.hot.cluster",
        text("a cluster's name", r"\w{1,60}"),
        "HotSettings.cluster",
        "The server's cluster that the tables are made on.",
        "none",
    ),
    Key(
        "storage.hot.port",
        whole(0, 65_535),
        "HotSettings.port",
        "Port of the hot store's /health, /metrics and /query; 0 is any free one.",
    ),
    Key(
        "storage.hot.retention_days",
        whole(1, 36_500),
        "HotSettings.retention_days",
        "Days the hot store keeps; with a cold store, only what that one holds is removed.",
    ),
    Key(
        "storage.hot.batch.rows",
        whole(1, 1_000_000),
        "BatchSettings.rows",
        "Rows of a table that are inserted at once; a batch is inserted when it has so many …",
    ),
    Key(
        "storage.hot.batch.bytes",
        whole(2**16, 2**30),
        "BatchSettings.bytes",
        "… or so many bytes of payload …",
    ),
    Key(
        "storage.hot.batch.seconds",
        seconds(0.05, 60),
        "BatchSettings.seconds",
        "… or so many seconds after its first message.",
    ),
    Key(
        "storage.hot.memory.soft_mb",
        whole(64, 65_536),
        "MemoryLimits.soft_mb",
        "Above this many MB the hot store warns, and runs on.",
        "600",
    ),
    Key(
        "storage.hot.memory.hard_mb",
        whole(64, 65_536),
        "MemoryLimits.hard_mb",
        "At this many MB the hot store stops gracefully and is started again; more than soft_mb.",
        "900",
    ),
    Key(
        "storage.cold.enabled",
        flag(),
        "ColdSettings.enabled",
        "Whether there is a cold store; without one, data ends with the hot store's retention.",
    ),
    Key(
        "storage.cold.location",
        kinds.store(),
        "ColdSettings.location",
        "Where the cold store is: a directory of Parquet files, or a ClickHouse server's URL.",
        "cold",
    ),
    Key(
        "storage.cold.cluster",
        text("a cluster's name", r"\w{1,60}"),
        "ColdSettings.cluster",
        "The server's cluster that the tables are made on.",
        "none",
    ),
    Key(
        "storage.cold.port",
        whole(0, 65_535),
        "ColdSettings.port",
        "Port of the cold store's /health and /metrics; 0 is any free one.",
    ),
    Key(
        "storage.cold.delay_minutes",
        whole(0, 1440),
        "ColdSettings.delay_minutes",
        "How long after its end an hour is moved to the cold store; what comes later is moved when it comes.",
    ),
    Key(
        "storage.cold.memory.soft_mb",
        whole(64, 65_536),
        "MemoryLimits.soft_mb",
        "Above this many MB the cold store warns, and runs on.",
        "600",
    ),
    Key(
        "storage.cold.memory.hard_mb",
        whole(64, 65_536),
        "MemoryLimits.hard_mb",
        "At this many MB the cold store stops gracefully and is started again; more than soft_mb.",
        "900",
    ),
)

_LOGIN = kinds.secret(
    "set MARKETPRISM_NATS_USER and MARKETPRISM_NATS_PASSWORD in the environment, or use nats.creds_file"
)
REFUSED = (
    Key("nats.{user,username}", _LOGIN),
    Key("nats.password", _LOGIN),
    Key("nats.token", kinds.secret("set MARKETPRISM_NATS_TOKEN in the environment, or use nats.creds_file")),
    Key(
        "nats.{nkey,nkey_seed,seed}", kinds.secret("put it into a file and name that in nats.nkey_seed_file")
    ),
)

FIXED = (
    Key("nats.enabled", fixed(True)),
    Key("nats.max_reconnect_attempts", fixed(-1, "a lost NATS is never given up")),
    *(Key(f"nats.streams.{t}", fixed(f"{t}.{{exchange}}.{{market_type}}.{{symbol}}")) for t in DATA_TYPES),
    Key(
        "nats.publish.naming.normalize_{subject_exchange,subject_market_type,payload_exchange,payload_market_type}",
        fixed(True),
    ),
    Key("nats.publish.naming.compat_old_subjects", fixed(False)),
    Key("nats.publish.naming.compat_publish_mode", fixed("jetstream", "nothing goes over core NATS alone")),
    Key("nats.jetstream.enabled", fixed(True)),
    Key(f"{_STREAM}.name", fixed("MARKET_DATA")),
    Key(f"{_STREAM}.retention", fixed("limits")),
    Key(f"{_STREAM}.discard", fixed("old")),
    Key(f"{_BOOK}.validation_enabled", fixed(True)),
    Key("monitoring.{metrics,health_check}.enabled", fixed(True)),
    Key("monitoring.metrics.path", fixed("/metrics")),
    Key("monitoring.health_check.path", fixed("/health")),
)

_STABILITY = "networking.websocket.stability"
_OLD_STREAM = "nats.jetstream.streams.ORDERBOOK_SNAP"
_DEPTHS = "{snapshot_depth,websocket_depth,api_weight,update_frequency}"
NO_EFFECT = tuple(
    Key(path, no_effect(why))
    for path, why in (
        ("system.{name,version,environment,debug,use_unified_websocket}", ""),
        ("system.logging.{format,file,max_size,backup_count}", "log files have fixed names"),
        ("system.observability.{ping_pong_verbose,ws_summary_enabled,ws_summary_interval_sec}", ""),
        ("system.observability.{warn_reconnects_per_interval,warn_heartbeat_failures_per_interval}", ""),
        ("system.observability.{metrics_enabled,metrics_path}", ""),
        ("system.observability.metrics_port", "use monitoring.metrics.port"),
        ("networking.websocket.{timeout,max_retries,retry_delay,ping_interval,ping_timeout,max_size}", ""),
        (
            "networking.websocket.{auto_reconnect,max_reconnect_attempts,reconnect_delay,max_reconnect_delay}",
            "",
        ),
        ("networking.websocket.{backoff_multiplier,connection_timeout,proactive_reconnect_enabled}", ""),
        ("networking.websocket.{proactive_reconnect_threshold,dual_connection_enabled,data_buffer_size}", ""),
        (f"{_STABILITY}.heartbeat.{{binance_spot,binance_derivatives,okx}}_interval", ""),
        (f"{_STABILITY}.heartbeat.{{timeout,max_consecutive_failures}}", ""),
        (f"{_STABILITY}.reconnection.{{enabled,initial_delay,max_delay,backoff_multiplier}}", ""),
        (f"{_STABILITY}.reconnection.{{max_attempts,connection_timeout,health_check_interval}}", ""),
        (f"{_STABILITY}.memory_management.{{enabled,max_orderbook_states,cleanup_interval}}", ""),
        (f"{_STABILITY}.memory_management.{{inactive_threshold,memory_check_interval}}", ""),
        (
            f"{_STABILITY}.memory_management.{{max_memory_mb,memory_warning_threshold}}",
            "use exchanges.<exchange>.memory",
        ),
        (f"{_STABILITY}.error_recovery.{{enabled,max_consecutive_errors,error_reset_interval}}", ""),
        (f"{_STABILITY}.error_recovery.{{checksum_failure_threshold,sequence_error_threshold}}", ""),
        (f"{_STABILITY}.error_recovery.{{auto_resync_enabled,resync_delay,max_resync_attempts}}", ""),
        (
            f"{_STABILITY}.performance_monitoring.{{enabled,monitoring_interval,latency_warning_threshold}}",
            "",
        ),
        (f"{_STABILITY}.performance_monitoring.{{throughput_warning_threshold,cpu_warning_threshold}}", ""),
        (f"{_STABILITY}.performance_monitoring.{{detailed_stats_interval,performance_history_size}}", ""),
        (f"{_STABILITY}.logging.{{enabled,log_level,structured_logging,log_performance,log_errors}}", ""),
        (f"{_STABILITY}.logging.{{log_connections,log_data_flow,sensitive_fields}}", ""),
        ("networking.http.{timeout,connector_limit,connector_limit_per_host,retry_attempts}", ""),
        ("networking.proxy.enabled", ""),
        (f"{_EX}.name", "the section's name counts"),
        (f"{_BOOK}.nats_publish_depth", "use snapshot_depth"),
        (f"{_BOOK}.publish_interval", "use snapshot_interval"),
        (f"{_BOOK}.{{buffer_timeout,internal_queue_maxsize,publish_queue_maxsize,ws_api_url}}", ""),
        (f"{_BOOK}.backlog_management.{{high_watermark,high_watermark_duration_sec,batch_enabled}}", ""),
        (
            f"{_BOOK}.backlog_management.{{batch_threshold,batch_size,batch_timeslice_ms,batch_yield_every}}",
            "",
        ),
        (f"{_BOOK}.backlog_management.event_age_{{resync_enabled,ms_threshold,duration_sec,min_qsize}}", ""),
        (
            "exchanges.deribit_derivatives.volatility_index.collection_interval_minutes",
            "use data_types.volatility_index.interval",
        ),
        ("exchanges.deribit_derivatives.volatility_index.{timeout,max_retries,retry_delay}", ""),
        ("nats.publish.{max_retries,batch_size,mirror_to_core}", ""),
        ("nats.publish.naming.metrics_market_type_mode", ""),
        (f"{_OLD_STREAM}.{{name,subjects,retention,max_msgs,max_bytes,max_age}}", "books are in MARKET_DATA"),
        (
            f"{_OLD_STREAM}.{{max_consumers,replicas,storage,discard,duplicate_window}}",
            "books are in MARKET_DATA",
        ),
        ("clickhouse.{host,port}", "use storage.hot.location"),
        ("clickhouse.database", "it is marketprism_hot"),
        (
            "clickhouse.{username,password}",
            "set MARKETPRISM_CLICKHOUSE_USER and MARKETPRISM_CLICKHOUSE_PASSWORD",
        ),
        ("clickhouse.tables.{orderbook_spot,orderbook_perpetual,trades_spot,trades_perpetual}", ""),
        ("clickhouse.tables.{funding_rates,open_interest}", ""),
        ("clickhouse.batch.{size,timeout}", "use storage.hot.batch"),
        ("clickhouse.batch.max_retries", "storing is never given up"),
        ("monitoring.health_check.interval", ""),
        ("monitoring.performance.{enabled,sample_rate,track_memory,track_cpu}", ""),
        ("error_handling.retry.{max_attempts,backoff_multiplier,max_backoff_seconds}", ""),
        ("error_handling.circuit_breaker.{enabled,failure_threshold,recovery_timeout}", ""),
        ("error_handling.alerts.{enabled,webhook_url,critical_errors}", ""),
        ("data_quality.validation.{enabled,strict_mode,max_price_deviation,max_timestamp_drift}", ""),
        ("data_quality.cleaning.{enabled,remove_duplicates,filter_invalid_prices,normalize_timestamps}", ""),
        ("data_quality.{deduplication_enabled,anomaly_detection_enabled,price_deviation_threshold}", ""),
        ("data_quality.{volume_threshold,completeness_target,latency_target}", ""),
        ("data_types.<type>.{method,real_time,historical}", ""),
        ("data_types.<pushed>.interval", "this type is pushed, not polled"),
        ("data_types.<type>.exchanges", "exchanges.<exchange>.data_types decides"),
        (
            "data_types.<type>.exchanges.<exchange>.{enabled,symbols,api_endpoint,base_url,period,limit}",
            "exchanges.<exchange> decides",
        ),
        ("data_types.liquidation.filters.{min_value_usd,max_value_usd}", ""),
        ("data_types.<type>.validation.{required_fields,price_range_check,quantity_range_check}", ""),
        ("data_types.<type>.validation.{ratio_range_check,index_range_check}", ""),
        ("data_types.<type>.validation.{min_ratio,max_ratio,min_index,max_index}", ""),
        ("data_types.<type>.alerts.{large_liquidation_threshold,extreme_ratio_threshold}", ""),
        ("data_types.<type>.alerts.high_volatility_threshold", ""),
        ("data_types.<polled>.api_config.{max_retries,retry_delay,timeout}", ""),
        (
            "data_types.volatility_index.api_config.collection_interval_minutes",
            "use data_types.volatility_index.interval",
        ),
        ("data_types.<type>.nats.{enabled,subject_template,publish_timeout,max_retries}", ""),
        ("storage.{buffer_size,batch_size,flush_interval}", "use storage.hot.batch"),
        ("storage.compression_enabled", "it always is"),
        (f"trading_strategies.*.depth_config.exchanges.*.*.{_DEPTHS}", ""),
        (
            "trading_strategies.*.performance_config.{reconnect_interval,max_latency_ms,error_tolerance,snapshot_interval}",
            "",
        ),
        ("logging.sampling.default.{count_interval,time_interval,always_log_errors,always_log_first}", ""),
        ("logging.sampling.data_types.<type>.{count_interval,time_interval}", ""),
    )
)

KEYS = (*EFFECTIVE, *REFUSED, *FIXED, *NO_EFFECT)


def expand(path: str) -> Iterator[str]:
    """All paths a pattern stands for; `*` stays."""
    parts = re.split(r"(<\w+>|\{[^}]*\})", path)
    choices = [
        _PLACEHOLDERS.get(part) or (part[1:-1].split(",") if part.startswith("{") else (part,))
        for part in parts
    ]
    return map("".join, itertools.product(*choices))


@dataclass(slots=True)
class Branch:
    """The table as a tree. `key` is set where a value may stand; both may be true (a list or a section)."""

    children: dict[str, "Branch"] = field(default_factory=dict)
    key: Key | None = None

    def child(self, name: str) -> "Branch | None":
        """The branch under a key of the file."""
        return self.children.get(name) or self.children.get("*")


def _tree() -> Branch:
    root = Branch()
    for key in KEYS:
        for path in expand(key.path):
            branch = root
            for name in path.split("."):
                branch = branch.children.setdefault(name, Branch())
            branch.key = key
    return root


TREE = _tree()
