"""Where stored rows are read: the hot store over its /query, the cold one as Parquet files or from its server.

A row may be in both while its hour is being moved, and is never in neither. So both are asked, hot first, and rows are
told apart by `event_id`.
"""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from marketprism.config import Settings
from marketprism.storage.asking import HotHttp, ReadingError, Values
from marketprism.storage.checking import checked
from marketprism.storage.engine import Engine, Target, check_installed
from marketprism.storage.rows import TIME_END_MS
from marketprism.storage.schema import BY_NAME, COLD, HOT, Layout, Table
from marketprism.storage.windows import plain_type

if TYPE_CHECKING:
    import pyarrow as pa

DAYS_MAX = 400
"""A longer range is looked for in the files of all days."""


class Tier(Protocol):
    """One of the places where rows are."""

    def source(self, table: str, span: "Span") -> tuple[str, Values]:
        """What to write after FROM for the rows of a table, and the values that belong to it."""
        ...

    def query(self, sql: str, values: Values) -> "pa.Table":
        """The rows of a SELECT. Raises ReadingError, EngineError."""
        ...


@dataclass(frozen=True, slots=True)
class Span:
    """From `start_ms` on, and before `end_ms`; ms since the epoch."""

    start_ms: int
    end_ms: int

    def pieces(self, piece_ms: int) -> "Iterator[Span]":
        """The same in parts that begin at multiples of `piece_ms`."""
        start = self.start_ms
        while start < self.end_ms:
            end = min(start - start % piece_ms + piece_ms, self.end_ms)
            yield Span(start, end)
            start = end

    def days(self) -> list[date]:
        """The days it touches, UTC."""
        first, last = (
            datetime.fromtimestamp(ms / 1000, UTC).date() for ms in (self.start_ms, self.end_ms - 1)
        )
        return [first + timedelta(days=n) for n in range((last - first).days + 1)]


class Hot:
    """The hot store's tables, asked for over HTTP."""

    def __init__(self, http: HotHttp) -> None:
        """Ask there."""
        self._http = http

    def source(self, table: str, _: Span) -> tuple[str, Values]:
        """The table's name."""
        return HOT.table(table), {}

    def query(self, sql: str, values: Values) -> "pa.Table":
        """The rows of a SELECT. Raises ReadingError."""
        return self._http.query(sql, values)

    def stream(self, sql: str, fmt: str, values: Values) -> Iterator[bytes]:
        """A SELECT's answer in one of ClickHouse's formats, piece by piece. Raises ReadingError, also in between."""
        return self._http.stream(sql, fmt, values)


class Tables:
    """Tables of an engine at hand: a cold server, or in tests a hot store in this process."""

    def __init__(self, engine: Engine, layout: Layout) -> None:
        """Read from there."""
        self._engine = engine
        self._layout = layout

    def source(self, table: str, _: Span) -> tuple[str, Values]:
        """The table's name."""
        return self._layout.table(table), {}

    def query(self, sql: str, values: Values) -> "pa.Table":
        """The rows of a SELECT. Raises EngineError."""
        return self._engine.query(sql, values)

    def stream(self, sql: str, fmt: str, values: Values) -> Iterator[bytes]:
        """A SELECT's answer in one of ClickHouse's formats, piece by piece. Raises EngineError."""
        return self._engine.stream(checked(self._engine, sql), fmt, values)


class ParquetFiles:
    """The cold store's files, `<directory>/<table>/day=YYYY-MM-DD/*.parquet`, read by an engine of this process."""

    def __init__(self, engine: Engine, directory: Path) -> None:
        """Raises ReadingError for a path that the engine would take for a pattern."""
        self._engine = engine
        self._directory = directory.resolve()
        if odd := set(str(self._directory)) & set("*?{}[]|"):
            raise ReadingError(f"storage.cold.location: expected a path without {' '.join(sorted(odd))}")

    def source(self, table: str, span: Span) -> tuple[str, Values]:
        """The files of the days in question, as a table."""
        days = span.days() if span.end_ms - span.start_ms < DAYS_MAX * 86_400_000 else []
        which = "{" + ",".join(f"{day:%Y-%m-%d}" for day in days) + "}" if days else "*"
        values = {"_files": self._files(table, which), "_columns": _columns(BY_NAME[table])}
        return "file({_files:String}, 'Parquet', {_columns:String})", values

    def query(self, sql: str, values: Values) -> "pa.Table":
        """The rows of a SELECT. Raises EngineError."""
        return self._engine.query(sql, values)

    def stream(self, sql: str, fmt: str, values: Values) -> Iterator[bytes]:
        """A SELECT's answer, which finds the files as tables of `marketprism_cold`. Raises EngineError."""
        self._engine.command(f"CREATE DATABASE IF NOT EXISTS {COLD.database}")
        for table in BY_NAME.values():
            self._engine.command(f"CREATE OR REPLACE VIEW {COLD.table(table.name)} AS {self._view(table)}")
        return self._engine.stream(checked(self._engine, sql), fmt, values)

    def _view(self, table: Table) -> str:
        names = ", ".join(f"{c.alias} AS `{c.name}`" if c.alias else f"`{c.name}`" for c in table.columns)
        # A view takes no parameters of the statement that makes it.
        files, types = (_quoted(text) for text in (self._files(table.name, "*"), _columns(table)))
        return f"SELECT {names} FROM file({files}, 'Parquet', {types})"

    def _files(self, table: str, days: str) -> str:
        return f"{self._directory}/{table}/day={days}/*.parquet"


def _columns(table: Table) -> str:
    """Names and types of what is stored of a table, as file() wants to hear them."""
    return ", ".join(f"`{c.name}` {plain_type(c)}" for c in table.stored)


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


class Reading:
    """Both stores. Use it in a `with`, since reading Parquet needs an engine for as long as that."""

    def __init__(self, settings: Settings) -> None:
        """Nothing is opened yet. Raises EngineError where the packages are missing."""
        check_installed()
        self._settings = settings
        self._open = ExitStack()
        self._cold: Tables | ParquetFiles | None = None
        self.hot = Hot(HotHttp(settings.bind_host, settings.storage.hot.port))

    def __enter__(self) -> "Reading":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @property
    def tiers(self) -> list[Tier]:
        """Hot first: what is moved in between is then seen twice, not never."""
        cold = self.cold
        return [self.hot] if cold is None else [self.hot, cold]

    @property
    def cold(self) -> Tables | ParquetFiles | None:
        """The cold store, None where there is none (yet). Raises EngineError, ReadingError."""
        storage = self._settings.storage
        where = Target(storage.cold.location, storage.user, storage.password, storage.cold.cluster)
        if self._cold is None and storage.cold.enabled:
            if not where.embedded:
                engine = self._engine(where, reading=True)
                self._cold = Tables(engine, Layout(COLD.database, COLD.tier, storage.cold.cluster))
            elif Path(where.location).is_dir():
                folder = self._open.enter_context(tempfile.TemporaryDirectory(prefix="marketprism-"))
                self._cold = ParquetFiles(self._engine(Target(folder)), Path(where.location))
        return self._cold

    def _engine(self, target: Target, *, reading: bool = False) -> Engine:
        engine = Engine(target, reading=reading)
        self._open.callback(engine.close)
        return engine


_WITHIN = (
    "timestamp >= fromUnixTimestamp64Milli({start_ms:Int64}, 'UTC') "
    "AND timestamp < fromUnixTimestamp64Milli({end_ms:Int64}, 'UTC')"
)


def select(
    tier: Tier,
    table: str,
    span: Span,
    what: str,
    *,
    where: str = "1",
    then: str = "",
    values: Values | None = None,
) -> "pa.Table":
    """`SELECT what FROM table WHERE where`, of one tier and a span of `timestamp`; `then` is GROUP BY and the like.

    Raises ReadingError, EngineError.
    """
    source, of_source = tier.source(table, span)
    sql = f"SELECT {what} FROM {source} WHERE {_WITHIN} AND ({where}) {then}"
    all_values = {"start_ms": span.start_ms, "end_ms": span.end_ms, **of_source, **(values or {})}
    return tier.query(sql, all_values)


def moment_ms(text: str) -> int:
    """A point in time in ms since the epoch: ISO 8601, UTC unless it says otherwise, or that number itself.

    Raises ValueError with what was expected.
    """
    try:
        ms = int(text) if text.isascii() and text.isdigit() else _iso_ms(text)
    except ValueError:
        ms = -1
    if not 0 <= ms < TIME_END_MS:
        raise ValueError(
            f"expected a time such as 2026-11-23T06:59:10.231 (UTC) or ms since 1970, got {text!r:.60}"
        )
    return ms


def _iso_ms(text: str) -> int:
    moment = datetime.fromisoformat(text)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (moment - datetime.fromtimestamp(0, UTC)) // timedelta(milliseconds=1)


def shown(ms: int) -> str:
    """A point in time for people, UTC."""
    return datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m-%d %H:%M:%S") + f".{ms % 1000:03d}"
