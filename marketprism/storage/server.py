"""The cold store as a ClickHouse server, or a cluster: the same tables as hot, and one of what is known of them."""

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from marketprism.storage.engine import Engine, EngineError
from marketprism.storage.schema import Layout, Table, create_table, migrate
from marketprism.storage.windows import KEY, WITHIN, Digest, Manifest, Window, columns, digest_sql

if TYPE_CHECKING:
    import pyarrow as pa


class ServerStore:
    """A database of cold tables. Calls block and raise EngineError."""

    def __init__(self, engine: Engine, layout: Layout, source: str) -> None:
        """Make the tables if need be. `source` is noted beside each window."""
        self._engine = engine
        self._layout = layout
        self._source = source
        self._windows = layout.table("windows")
        migrate(engine, layout)
        for statement in _windows_table(layout):
            engine.command(statement)

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self._engine.target.location.rpartition('@')[2]}/{self._layout.database}"

    def check(self) -> None:
        """Ask it for a sign of life."""
        self._engine.value("SELECT 1")

    def manifest(self, window: Window) -> Manifest | None:
        """What is known of a window; None if nothing."""
        found = self._engine.query(
            f"SELECT rows, checksum, state FROM {self._windows} "
            "WHERE table_name = {name:String} AND start = toDateTime({start:Int64}, 'UTC')",
            {"name": window.table_name, **window.bounds},
        ).to_pylist()
        if not found:
            return None
        (row,) = found
        return Manifest(window, Digest(row["rows"], int(row["checksum"])), row["state"])

    def record(self, manifest: Manifest) -> None:
        """Note what is known of a window."""
        self._engine.command(
            f"INSERT INTO {self._windows} (table_name, start, rows, checksum, state, source) SELECT "
            "{name:String}, toDateTime({start:Int64}, 'UTC'), {rows:UInt64}, {checksum:String}, {state:String}, "
            "{source:String}",
            {
                "name": manifest.window.table_name,
                "start": manifest.window.start_s,
                "rows": manifest.digest.rows,
                "checksum": str(manifest.digest.checksum),
                "state": manifest.state,
                "source": self._source,
            },
        )

    def digest(self, window: Window) -> Digest:
        """Of what the server holds of a window."""
        sql = digest_sql(window.table, self._layout.table(window.table_name), WITHIN)
        return Digest.of(self._engine.query(sql, window.bounds))

    def stage(self, window: Window, pages: "Iterable[pa.Table]") -> Digest:
        """Insert rows into a table aside; returns what the server then finds in it."""
        staged = _staged(window.table)
        for statement in create_table(staged, self._layout):
            self._engine.command(statement)
        self._engine.command(f"TRUNCATE TABLE {self._layout.local(staged.name)}{self._layout.on_cluster}")
        for page in pages:
            self._engine.insert(self._layout.table(staged.name), page)
        return Digest.of(self._engine.query(digest_sql(staged, self._layout.table(staged.name), "1")))

    def keep(self, window: Window, staged: Digest) -> Digest:
        """Make what was staged the window's, with what it held beside that. Returns its digest, verified.

        Of an event that is in both, what was staged holds: it is inserted later.
        """
        table, names = self._layout.table(window.table_name), columns(window.table)
        aside = self._layout.table(_staged(window.table).name)
        not_staged = f"{WITHIN} AND {KEY} GLOBAL NOT IN (SELECT {KEY} FROM {aside})"
        others = Digest.of(self._engine.query(digest_sql(window.table, table, not_staged), window.bounds))
        self._engine.command(
            f"INSERT INTO {table} ({names}) SELECT {names} FROM {aside}", distributed_foreground_insert=1
        )
        kept = self.digest(window)
        if kept != staged + others:
            raise EngineError(
                f"{self.name}, {window}: expected {staged + others} when rows were added, got {kept}"
            )
        return kept

    def close(self) -> None:
        """End the connection."""
        self._engine.close()


def _staged(table: Table) -> Table:
    return replace(table, name=f"{table.name}_staged")


def _windows_table(layout: Layout) -> Iterable[str]:
    engine = "ReplacingMergeTree(verified_at)"
    if layout.cluster:
        path = "/clickhouse/tables/{database}/{table}"
        engine = f"ReplicatedReplacingMergeTree('{path}', '{{shard}}-{{replica}}', verified_at)"
    yield (
        f"CREATE TABLE IF NOT EXISTS {layout.table('windows')}{layout.on_cluster}\n"
        "(table_name LowCardinality(String), start DateTime('UTC'), rows UInt64, checksum String, state String,\n"
        "source String, verified_at DateTime64(9, 'UTC') DEFAULT now64(9))\n"
        f"ENGINE = {engine}\nORDER BY (table_name, start)"
    )
