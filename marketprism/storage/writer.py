"""Batches into tables, each event once, whatever comes twice; one at a time, in a thread of its own."""

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

from marketprism.storage import overrun
from marketprism.storage.engine import Engine, EngineError
from marketprism.storage.schema import TABLES, Layout, Table

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")

SPANS = 16
"""Time ranges that are looked through for what is stored already; a batch of live data has one."""
SPAN_GAP_MS = 10_000


class ChangedError(Exception):
    """What a change relied upon is not so any more; `found` is what is there now."""

    def __init__(self, found: list[Any]) -> None:
        super().__init__("rows came in between")
        self.found = found


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of a batch. `of`: rows by exchange and market type, those that were stored already included."""

    inserted: int
    repeated: int
    of: Counter[tuple[str, str]]


class Writer:
    """The only one who changes the hot tables. Calls are carried out one after the other."""

    def __init__(self, engine: Engine, layout: Layout) -> None:
        """Write to the tables of `layout`."""
        self._engine = engine
        self._layout = layout
        self._thread = ThreadPoolExecutor(1, "writer")

    async def store(self, table: Table, rows: "pa.Table") -> Stored:
        """Insert what is not stored yet. Raises EngineError: then call it again."""
        return await self._do(self._store, self._layout.table(table.name), rows)

    async def change(
        self, statement: str, parameters: dict[str, Any], guard: str = "", expected: list[Any] | None = None
    ) -> None:
        """Carry out a statement while nothing is inserted, if the one row of `guard` is what is expected.

        Raises ChangedError where it is not, and EngineError.
        """
        await self._do(self._change, statement, parameters, guard, expected)

    async def expire(self, days: int) -> int:
        """Drop the hours that ended so many days ago; returns how many. Raises EngineError."""
        return await self._do(self._expire, days)

    async def tell_overrun(self, table: Table, begin: overrun.Begin, last_seq: int) -> None:
        """Note in `gaps` what the stream dropped before it was stored. Raises EngineError."""
        await self._do(overrun.tell, self._engine, self._layout, table, begin, last_seq)

    async def check(self) -> None:
        """Ask the engine for a sign of life. Raises EngineError."""
        await self._do(self._engine.value, "SELECT 1")

    def close(self) -> None:
        """Wait for what is being written."""
        self._thread.shutdown()

    async def _do(self, call: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)

    def _store(self, table: str, rows: "pa.Table") -> Stored:
        new = self._new(table, _once(rows)) if rows.num_rows else rows
        if new.num_rows:
            self._engine.insert(table, new)
        return Stored(new.num_rows, rows.num_rows - new.num_rows, _by_market(rows))

    def _new(self, table: str, rows: "pa.Table") -> "pa.Table":
        """Those that are not stored."""
        import pyarrow.compute as pc

        stored = self._stored(table, rows)
        return rows.filter(pc.invert(pc.is_in(rows["event_id"], stored))) if len(stored) else rows

    def _stored(self, table: str, rows: "pa.Table") -> "pa.Array":
        """The ids stored in the times of these rows."""
        spans = _spans(rows["timestamp"].cast("int64").unique().to_pylist())
        within = " OR ".join(
            f"timestamp BETWEEN fromUnixTimestamp64Milli({{from{i}:Int64}}, 'UTC') "
            f"AND fromUnixTimestamp64Milli({{to{i}:Int64}}, 'UTC')"
            for i in range(len(spans))
        )
        bounds = {
            f"{name}{i}": time
            for i, span in enumerate(spans)
            for name, time in zip(("from", "to"), span, strict=True)
        }
        found = self._engine.query(f"SELECT event_id FROM {table} WHERE {within} SETTINGS final = 0", bounds)
        return found["event_id"].combine_chunks()

    def _expire(self, days: int) -> int:
        ours = {self._layout.local(table.name) for table in TABLES}
        rows = self._engine.query(
            f"SELECT DISTINCT concat('`', database, '`.`', `table`, '`') AS name, partition "
            f"FROM {self._layout.parts} WHERE active AND database = {{database:String}} "
            "AND toDateTimeOrZero(partition, 'UTC') <= now() - toIntervalDay({days:UInt32}) - toIntervalHour(1)",
            {"database": self._layout.database, "days": days},
        ).to_pylist()
        old = [row for row in rows if row["name"] in ours]
        for row in old:
            self._engine.command(
                f"ALTER TABLE {row['name']}{self._layout.on_cluster} DROP PARTITION {{hour:String}}",
                {"hour": row["partition"]},
            )
        return len(old)

    def _change(
        self, statement: str, parameters: dict[str, Any], guard: str, expected: list[Any] | None
    ) -> None:
        if guard:
            rows = self._engine.query(guard, parameters).to_pylist()
            if len(rows) != 1:
                raise EngineError(f"expected one row of the guard, got {len(rows)}")
            found = list(rows[0].values())
            if found != expected:
                raise ChangedError(found)
        self._engine.command(statement, parameters)


def _by_market(rows: "pa.Table") -> Counter[tuple[str, str]]:
    found = rows.group_by(["exchange", "market_type"]).aggregate([([], "count_all")])
    return Counter(
        {
            (exchange, market_type): n
            for exchange, market_type, n in zip(*found.to_pydict().values(), strict=True)
        }
    )


def _once(rows: "pa.Table") -> "pa.Table":
    """Without what came twice in this batch."""
    ids = rows["event_id"].to_pylist()
    if len(set(ids)) == len(ids):
        return rows
    first = {event_id: i for i, event_id in reversed(list(enumerate(ids)))}
    return rows.take(sorted(first.values()))


def _spans(times_ms: list[int]) -> list[tuple[int, int]]:
    """Few ranges that hold all of the times, cut where the gaps are longest."""
    times_ms.sort()
    gaps = [(b - a, i) for i, (a, b) in enumerate(pairwise(times_ms), 1)]
    cuts = sorted(i for gap, i in sorted(gaps)[-(SPANS - 1) :] if gap > SPAN_GAP_MS)
    edges = [0, *cuts, len(times_ms)]
    return [(times_ms[a], times_ms[b - 1]) for a, b in pairwise(edges)]
