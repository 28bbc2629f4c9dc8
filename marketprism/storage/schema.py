"""The tables as data, the statements that make them, and the versions of all that.

Names and columns of the earlier system's tables are kept; figures have become exact and wide, and there are more of
them. A column that has no source any more, or a second name for one, is an ALIAS: readable, not stored.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from marketprism.storage.engine import Engine, EngineError

Tier = Literal["hot", "cold"]

DECIMAL = "Decimal(38, 18)"
"""Twenty digits before the point and eighteen after it. What does not fit is not stored, and told."""
WIDE = "Decimal(76, 38)"
"""For rates and what is computed from them: Deribit tells 0.00007240372720958078, and less of it in quiet times."""
TIME = "DateTime64(3, 'UTC')"
WORD = "LowCardinality(String)"
TEXT = "String"
COUNT = "UInt64"
FLAG = "Bool"

_CODECS = {
    TIME: "DoubleDelta, ZSTD(1)",
    COUNT: "Delta, ZSTD(1)",
    DECIMAL: "ZSTD(1)",
    WIDE: "ZSTD(1)",
    TEXT: "ZSTD(1)",
    WORD: "ZSTD(1)",
}


@dataclass(frozen=True, slots=True)
class Column:
    """A column. `source` is the payload's field it holds ("": not of the payload); `nullable`: may be unknown.

    `default` is an expression for a column we send no values for, `alias` one for a column that is not stored.
    """

    name: str
    type: str
    source: str = ""
    nullable: bool = False
    default: str = ""
    alias: str = ""

    def ddl(self) -> str:
        """Its definition in CREATE TABLE."""
        wrapped = self.type if not self.nullable else f"Nullable({self.type})"
        if self.nullable and self.type == WORD:
            wrapped = "LowCardinality(Nullable(String))"
        if self.alias:
            return f"`{self.name}` {wrapped} ALIAS {self.alias}"
        default = f" DEFAULT {self.default}" if self.default else ""
        codec = f" CODEC({_CODECS[self.type]})" if self.type in _CODECS else ""
        return f"`{self.name}` {wrapped}{default}{codec}"


@dataclass(frozen=True, slots=True)
class Table:
    """A table: the data type it keeps, and its own columns beside those that all have."""

    name: str
    data_type: str
    own: tuple[Column, ...]

    @property
    def columns(self) -> tuple[Column, ...]:
        """All of them, in order."""
        return (*COMMON, *self.own)

    @property
    def stored(self) -> tuple[Column, ...]:
        """Those that lie on disk."""
        return tuple(c for c in self.columns if not c.alias)


KEY = ("exchange", "market_type", "symbol", "timestamp")
"""The primary key: one instrument over a time range lies together."""
ORDER = (*KEY, "event_id")
"""What makes a row one of a kind: a second row of the same values is the same event."""

COMMON = (
    Column("timestamp", TIME, "ts_ms"),  # the exchange's clock; where it tells no time, ours
    Column("exchange", WORD, "exchange"),
    Column("market_type", WORD, "market_type"),
    Column("symbol", WORD, "symbol"),
    Column("instrument_id", WORD, "instrument_id"),
    Column("collected_at", TIME, "collected_ts_ms"),
    Column("created_at", TIME, default="now64(3)"),
    Column("has_event_time", FLAG),  # false: the exchange told no time
    Column("event_id", TEXT),
    Column("stream_seq", COUNT),
    Column("data_source", WORD, default="'marketprism'"),
)


def _known(name: str, type_: str, source: str = "") -> Column:
    return Column(name, type_, source or name)


def _maybe(name: str, type_: str, source: str = "") -> Column:
    return Column(name, type_, source or name, nullable=True)


def _other_name(name: str, of: str, type_: str = WIDE) -> Column:
    return Column(name, type_, alias=of)


def _ratios(word: str) -> tuple[Column, ...]:
    return (
        _known("long_short_ratio", WIDE),
        _maybe(f"long_{word}_ratio", WIDE),
        _maybe(f"short_{word}_ratio", WIDE),
        _known("period", WORD),
    )


_LEVELS = (_known("bids", TEXT), _known("asks", TEXT))  # JSON: [["price", "quantity"], …], the text as sent

TABLES: tuple[Table, ...] = (
    Table(
        "trades",
        "trade",
        (
            _known("trade_id", TEXT),
            _known("price", DECIMAL),
            _maybe("quantity", DECIMAL),
            _known("exchange_quantity", DECIMAL),
            _maybe("quantity_unit", WORD),
            _known("side", WORD),
            _known("trade_time", TIME, "trade_ts_ms"),
            _maybe("first_trade_id", TEXT),
            _maybe("last_trade_id", TEXT),
            _maybe("trade_seq", COUNT),
            Column("is_maker", FLAG, alias="side = 'sell'"),  # the buyer was the maker
        ),
    ),
    Table(
        "orderbooks",
        "orderbook",
        (
            _maybe("last_update_id", COUNT),
            *_LEVELS,
            _known("depth_levels", COUNT),
            _maybe("quantity_unit", WORD),
            Column("bids_count", "UInt32"),
            Column("asks_count", "UInt32"),
            Column("best_bid_price", DECIMAL, nullable=True),
            Column("best_ask_price", DECIMAL, nullable=True),
            Column("best_bid_quantity", DECIMAL, nullable=True),
            Column("best_ask_quantity", DECIMAL, nullable=True),
        ),
    ),
    Table(
        "orderbook_deltas",
        "orderbook_delta",
        (
            _known("update_type", WORD),
            _maybe("first_update_id", COUNT),
            _maybe("last_update_id", COUNT),
            _maybe("prev_update_id", COUNT),
            *_LEVELS,
            _maybe("quantity_unit", WORD),
            _maybe("checksum", "Int64"),
            _maybe("exact_from", DECIMAL),
            _maybe("exact_to", DECIMAL),
        ),
    ),
    Table(
        "funding_rates",
        "funding_rate",
        (
            _known("funding_rate", WIDE, "current_funding_rate"),
            _maybe("estimated_funding_rate", WIDE),
            _maybe("funding_interval", WORD),
            _maybe("mark_price", WIDE),
            _maybe("index_price", WIDE),
            _maybe("premium_index", WIDE),
            _maybe("next_funding_time", TIME, "next_funding_ts_ms"),
            _other_name("funding_time", "timestamp", TIME),
        ),
    ),
    Table(
        "open_interests",
        "open_interest",
        (
            _known("open_interest", WIDE, "open_interest_value"),
            _maybe("open_interest_unit", WORD),
            _maybe("open_interest_base", WIDE),
            _maybe("open_interest_usd", WIDE),
            _maybe("mark_price", WIDE),
            _maybe("index_price", WIDE),
            _maybe("change_24h", WIDE),
            _maybe("change_24h_percent", WIDE),
            _other_name("open_interest_value", "open_interest"),
            Column("count", COUNT, nullable=True, alias="CAST(NULL, 'Nullable(UInt64)')"),
        ),
    ),
    Table(
        "liquidations",
        "liquidation",
        (
            _known("liquidation_id", TEXT),
            _known("side", WORD),
            _known("status", WORD),
            _known("price", DECIMAL),
            _maybe("quantity", DECIMAL),
            _known("exchange_quantity", DECIMAL),
            _maybe("quantity_unit", WORD),
            _maybe("filled_quantity", DECIMAL),
            _maybe("notional_value", DECIMAL),
            _maybe("average_price", DECIMAL),
            _maybe("bankruptcy_price", DECIMAL),
            _known("liquidation_time", TIME, "liquidation_ts_ms"),
            _known("aggregation_mode", WORD),
        ),
    ),
    Table("lsr_top_positions", "lsr_top_position", _ratios("position")),
    Table("lsr_top_accounts", "lsr_top_account", _ratios("account")),
    Table("lsr_all_accounts", "lsr_all_account", _ratios("account")),
    Table(
        "volatility_indices",
        "volatility_index",
        (
            _known("index_value", WIDE, "vol_index"),
            _known("underlying_asset", WORD, "currency"),
            _maybe("open", WIDE),
            _maybe("high", WIDE),
            _maybe("low", WIDE),
            _maybe("resolution_s", COUNT),
            Column("maturity_date", "Date", nullable=True, alias="CAST(NULL, 'Nullable(Date)')"),
        ),
    ),
    Table(
        "gaps",
        "gap",
        (
            _known("affected_data_type", WORD),
            _known("cause", WORD),
            _maybe("last_id_before", TEXT),
            _maybe("first_id_after", TEXT),
            _maybe("last_time_before", TIME, "last_ts_ms_before"),
            _maybe("first_time_after", TIME, "first_ts_ms_after"),
            _maybe("missing", COUNT),
            _known("detail", TEXT),
        ),
    ),
)
BY_NAME = {t.name: t for t in TABLES}
BY_DATA_TYPE = {t.data_type: t for t in TABLES}


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the tables are: the database, hot or cold, and the cluster they are made on ("": no cluster)."""

    database: str
    tier: Tier
    cluster: str = ""

    @property
    def on_cluster(self) -> str:
        """What makes a statement the whole cluster's."""
        return f" ON CLUSTER `{self.cluster}`" if self.cluster else ""

    @property
    def parts(self) -> str:
        """Where the engine lists what lies on disk, of all shards."""
        return f"cluster('{self.cluster}', system.parts)" if self.cluster else "system.parts"

    def table(self, name: str) -> str:
        """A table's full name for reading and inserting."""
        return f"`{self.database}`.`{name}`"

    def local(self, name: str) -> str:
        """The full name of what lies on disk, for ALTER and DELETE: behind a cluster's table there is one a shard."""
        return f"`{self.database}`.`{name}{'_local' if self.cluster else ''}`"


HOT = Layout("marketprism_hot", "hot")
COLD = Layout("marketprism_cold", "cold")

PARTITION: dict[Tier, str] = {"hot": "toStartOfHour(timestamp)", "cold": "toYYYYMM(timestamp)"}
"""Hot: an hour is what cold moves at once, and a partition is dropped without rewriting anything."""


BY_TIME = "INDEX by_time timestamp TYPE minmax GRANULARITY 1"
"""For what asks for a time of all instruments: what is stored already, above all."""


def create_table(table: Table, layout: Layout) -> Iterator[str]:
    """The statements that make a table."""
    columns = ",\n    ".join([*(c.ddl() for c in table.columns), BY_TIME])
    engine = "ReplacingMergeTree"
    if layout.cluster:
        path = "/clickhouse/tables/{shard}/{database}/{table}"
        engine = f"ReplicatedReplacingMergeTree('{path}', '{{replica}}')"
    yield (
        f"CREATE TABLE IF NOT EXISTS {layout.local(table.name)}{layout.on_cluster}\n(\n    {columns}\n)\n"
        f"ENGINE = {engine}\n"
        f"PARTITION BY {PARTITION[layout.tier]}\n"
        f"PRIMARY KEY ({', '.join(KEY)})\n"
        f"ORDER BY ({', '.join(ORDER)})\n"
        f"SETTINGS fsync_after_insert = 1, fsync_part_directory = 1"
    )
    if layout.cluster:
        yield (
            f"CREATE TABLE IF NOT EXISTS {layout.table(table.name)}{layout.on_cluster} AS {layout.local(table.name)}\n"
            f"ENGINE = Distributed('{layout.cluster}', '{layout.database}', '{table.name}_local', "
            "cityHash64(exchange, market_type, symbol))"
        )


def _first(layout: Layout) -> Iterator[str]:
    for table in TABLES:
        yield from create_table(table, layout)


MIGRATIONS: tuple[Callable[[Layout], Iterator[str]], ...] = (_first,)
"""Each gives the statements from one version to the next; all may be carried out twice. Append, never change."""


def migrate(engine: Engine, layout: Layout) -> int:
    """Bring a database to the newest version, from none at all if need be. Returns the version it had.

    Raises EngineError, also where the database holds tables that are not ours or is newer than this program.
    """
    tables = _tables(engine, layout)
    if "schema_versions" not in tables:
        _refuse_foreign(tables, layout)
        for statement in _versions_table(layout):
            engine.command(statement)
    had = version(engine, layout)
    if had > len(MIGRATIONS):
        raise EngineError(
            f"database {layout.database} has version {had}, this MarketPrism knows {len(MIGRATIONS)}: update it"
        )
    for number, steps in enumerate(MIGRATIONS[had:], had + 1):
        for statement in steps(layout):
            engine.command(statement)
        engine.command(
            f"INSERT INTO {layout.table('schema_versions')} (version) VALUES ({{version:UInt32}})",
            {"version": number},
        )
    return had


def version(engine: Engine, layout: Layout) -> int:
    """The version a database has; 0: not there yet. Raises EngineError."""
    if "schema_versions" not in _tables(engine, layout):
        return 0
    return int(engine.value(f"SELECT max(version) FROM {layout.table('schema_versions')}"))


def _versions_table(layout: Layout) -> Iterator[str]:
    yield f"CREATE DATABASE IF NOT EXISTS `{layout.database}`{layout.on_cluster}"
    engine = "MergeTree"
    if layout.cluster:
        path = "/clickhouse/tables/{database}/{table}"
        engine = f"ReplicatedMergeTree('{path}', '{{shard}}-{{replica}}')"
    yield (
        f"CREATE TABLE IF NOT EXISTS {layout.table('schema_versions')}{layout.on_cluster}\n"
        f"(version UInt32, applied_at {TIME} DEFAULT now64(3))\nENGINE = {engine}\nORDER BY version"
    )


def _tables(engine: Engine, layout: Layout) -> set[str]:
    rows = engine.query(
        "SELECT name FROM system.tables WHERE database = {database:String}", {"database": layout.database}
    )
    return set(rows.column("name").to_pylist())


def _refuse_foreign(tables: set[str], layout: Layout) -> None:
    """An earlier system's tables have the same names and other columns."""
    foreign = sorted(tables & BY_NAME.keys())
    if foreign:
        raise EngineError(
            f"database {layout.database} holds tables that this MarketPrism did not make ({', '.join(foreign)}): "
            f"rename it (RENAME DATABASE {layout.database} TO {layout.database}_earlier) and start again"
        )
