"""What cold moves at once: an hour of a table; and the sum over rows that tells whether two places hold the same."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from marketprism.storage.schema import BY_NAME, ORDER, WORD, Column, Table

if TYPE_CHECKING:
    import pyarrow as pa

HOUR_S = 3600
WITHIN = (
    "timestamp >= toDateTime64({start:Int64}, 3, 'UTC') AND timestamp < toDateTime64({end:Int64}, 3, 'UTC')"
)
"""The rows of a window; goes with `Window.bounds`."""
KEY = f"sipHash128({', '.join(ORDER)})"
"""What tells an event from all others, short, so that those of an hour find room in memory."""


@dataclass(frozen=True, slots=True, order=True)
class Window:
    """An hour of event time of one table, which is a partition of the hot one."""

    start_s: int
    table_name: str

    @property
    def table(self) -> Table:
        """Its table."""
        return BY_NAME[self.table_name]

    @property
    def end_s(self) -> int:
        """The first second after it."""
        return self.start_s + HOUR_S

    @property
    def start(self) -> datetime:
        """When it begins."""
        return datetime.fromtimestamp(self.start_s, UTC)

    @property
    def bounds(self) -> dict[str, int]:
        """The values for `WITHIN`."""
        return {"start": self.start_s, "end": self.end_s}

    def __str__(self) -> str:
        """For people."""
        return f"{self.table_name} {self.start:%Y-%m-%d %H:%M}"


@dataclass(frozen=True, slots=True)
class Digest:
    """How many rows, and the sum of their hashes modulo 2^128: the same in whatever order they lie."""

    rows: int = 0
    checksum: int = 0

    def __add__(self, other: "Digest") -> "Digest":
        """Of the rows of both, where none is in both."""
        return Digest(self.rows + other.rows, (self.checksum + other.checksum) % 2**128)

    @classmethod
    def of(cls, answer: "pa.Table") -> "Digest":
        """From the answer to `digest_sql`."""
        (row,) = answer.to_pylist()
        return cls(int(row["rows"]), int(row["checksum"]))


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the cold store is known to hold of a window.

    `state` is that of the hot window when all of it was found here; "": what hot holds of it now is unknown.
    """

    window: Window
    digest: Digest
    state: str


def columns(table: Table) -> str:
    """The stored columns of a table, for SELECT and INSERT."""
    return ", ".join(f"`{c.name}`" for c in table.stored)


def digest_sql(table: Table, source: str, where: str) -> str:
    """The SELECT of the digest of the rows of `source` (a table, or a table function) that are `where`.

    It is computed where the rows are. All stored columns go into the hash.
    """
    fields = ", ".join(_hashed(c) for c in table.stored)
    return (
        "SELECT toString(count()) AS rows, toString(sum(reinterpretAsUInt128(sipHash128("
        f"{fields})))) AS checksum FROM {source} WHERE {where}"
    )


def plain_type(column: Column) -> str:
    """Its type outside of ClickHouse's tables."""
    inner = "String" if column.type == WORD else column.type
    return f"Nullable({inner})" if column.nullable else inner


def _hashed(column: Column) -> str:
    """A hash with NULL among its arguments would be NULL."""
    if not column.nullable:
        return f"`{column.name}`"
    empty = (
        "''"
        if plain_type(column) == "Nullable(String)"
        else f"defaultValueOfTypeName('{_quoted(column.type)}')"
    )
    return f"isNull(`{column.name}`), ifNull(`{column.name}`, {empty})"


def _quoted(type_: str) -> str:
    return type_.replace("'", "\\'")
