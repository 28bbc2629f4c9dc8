"""The cold store as Parquet files on a path: one file a window, and beside it what is known of it.

    trades/day=2026-11-23/12.parquet      the events of 12:00 to 13:00, zstd
    trades/day=2026-11-23/12.json         how many, their checksum, from where, when

A file is complete or not there: it is written and read again elsewhere, then renamed.
"""

import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from marketprism.storage.engine import Engine, EngineError, SettingValues
from marketprism.storage.schema import Table
from marketprism.storage.windows import KEY, Digest, Manifest, Window, columns, digest_sql, plain_type

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

PART_ROWS = 400_000
"""The keys of so many events are held in memory at once."""
_PART = "cityHash64(event_id) % {parts:UInt64} = {part:UInt64}"
FILE_NAME = "%H"
"""By the beginning of the window."""
_SPARING: SettingValues = {
    "max_threads": 1,
    "input_format_parquet_memory_high_watermark": 64 * 1024**2,  # else gigabytes of a file are read ahead
    "output_format_parquet_parallel_encoding": 0,
    "output_format_parquet_row_group_size": 50_000,
}
GROUP_BYTES = 32 * 1024**2
"""Of rows in memory: so many are compressed together, and skipped together by who reads."""


class _File(msgspec.Struct, forbid_unknown_fields=True):
    """A manifest as it lies on disk."""

    table: str
    start: str
    rows: int
    checksum: str
    source: str
    state: str
    verified_at: str


class ParquetStore:
    """A directory of Parquet files, and an engine that reads them. Calls block; EngineError, OSError are raised."""

    def __init__(self, root: Path, engine: Engine, source: str) -> None:
        """`source` is noted in the manifests."""
        self._root = root.resolve()
        self._engine = engine
        self._source = source
        self._work = self._root / ".work"
        shutil.rmtree(self._work, ignore_errors=True)  # of one that was killed
        self._work.mkdir(mode=0o700, parents=True)
        self._staged = self._work / "staged.parquet"
        self._merged = self._work / "merged.parquet"

    @property
    def name(self) -> str:
        """For messages."""
        return str(self._root)

    def check(self) -> None:
        """Whether it can be written to."""
        (self._work / "check").write_bytes(b".")

    def manifest(self, window: Window) -> Manifest | None:
        """What is known of a window; None if nothing, or what it says cannot be read."""
        path = self.path(window).with_suffix(".json")
        if not path.exists():
            return None
        try:
            found = msgspec.json.decode(path.read_bytes(), type=_File)
            return Manifest(window, Digest(found.rows, int(found.checksum)), found.state)
        except (msgspec.MsgspecError, ValueError) as error:
            log.warning("%s: expected a manifest, got %s: it is made again", path, error)
            return None

    def record(self, manifest: Manifest) -> None:
        """Note what is known of a window, so that it is known after a power cut, too."""
        path = self.path(manifest.window)
        note = _File(
            table=manifest.window.table_name,
            start=manifest.window.start.isoformat(),
            rows=manifest.digest.rows,
            checksum=str(manifest.digest.checksum),
            source=self._source,
            state=manifest.state,
            verified_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        temporary = self._work / "manifest.json"
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(note), indent=2) + b"\n")
        _settle(temporary, path.with_suffix(".json"))

    def digest(self, window: Window) -> Digest:
        """Of what the window's file holds, read again; of nothing where there is no file."""
        path = self.path(window)
        return self._digest(window.table, path) if path.exists() else Digest()

    def stage(self, window: Window, pages: "Iterable[pa.Table]") -> Digest:
        """Write rows aside; returns what reading them again gives."""
        self._staged.unlink(missing_ok=True)
        _write(self._staged, pages)
        return self._digest(window.table, self._staged) if self._staged.exists() else Digest()

    def keep(self, window: Window, staged: Digest) -> Digest:
        """Make what was staged the window's, with what it held beside that. Returns its digest, verified.

        Of an event that is in both, what was staged holds.
        """
        path = self.path(window)
        others = self._others(window.table, path, staged) if path.exists() else Digest()
        if not others.rows:
            _settle(self._staged, path)
            return staged
        self._merge(window.table, path)
        merged = self._digest(window.table, self._merged)
        if merged != staged + others:
            raise EngineError(f"{path}: expected {staged + others} when rows were added, got {merged}")
        _settle(self._merged, path)
        return merged

    def path(self, window: Window) -> Path:
        """Where a window's rows are."""
        day = self._root / window.table_name / f"day={window.start:%Y-%m-%d}"
        return day / f"{window.start:{FILE_NAME}}.parquet"

    def close(self) -> None:
        """End the connection to the engine that reads."""
        self._engine.close()

    def _digest(self, table: Table, path: Path) -> Digest:
        return Digest.of(
            self._engine.query(digest_sql(table, _file(table, "path"), "1"), {"path": str(path)}, **_SPARING)
        )

    def _others(self, table: Table, path: Path, staged: Digest) -> Digest:
        """Of what the file holds and the staged one does not: a part of the events after the other."""
        where = f"{_PART} AND {KEY} NOT IN (SELECT {KEY} FROM {_file(table, 'staged')} WHERE {_PART})"
        sql = digest_sql(table, _file(table, "path"), where)
        files = {"path": str(path), "staged": str(self._staged)}
        found, parts = Digest(), 1 + staged.rows // PART_ROWS
        for part in range(parts):
            found += Digest.of(self._engine.query(sql, files | {"part": part, "parts": parts}, **_SPARING))
        return found

    def _merge(self, table: Table, path: Path) -> None:
        self._merged.unlink(missing_ok=True)
        names = columns(table)
        self._engine.command(
            f"INSERT INTO FUNCTION {_file(table, 'merged')} "
            f"SELECT {names} FROM {_file(table, 'staged')} UNION ALL "
            f"SELECT {names} FROM {_file(table, 'path')} WHERE {_not_staged(table)}",
            {"merged": str(self._merged), "staged": str(self._staged), "path": str(path)},
            output_format_parquet_compression_method="zstd",
            **_SPARING,
        )


def _file(table: Table, parameter: str) -> str:
    """The table function that reads and writes the file which a parameter names."""
    structure = ", ".join(f"`{c.name}` {plain_type(c)}" for c in table.stored).replace("'", "\\'")
    return f"file({{{parameter}:String}}, 'Parquet', '{structure}')"


def _not_staged(table: Table) -> str:
    return f"{KEY} NOT IN (SELECT {KEY} FROM {_file(table, 'staged')})"


def _write(path: Path, pages: "Iterable[pa.Table]") -> None:
    """A file of these rows; none if there are none."""
    from pyarrow import parquet as pq

    writer = None
    try:
        for group in _groups(pages):
            writer = writer or pq.ParquetWriter(path, group.schema, compression="zstd")
            writer.write_table(group)
    finally:
        if writer is not None:
            writer.close()


def _groups(pages: "Iterable[pa.Table]") -> "Iterator[pa.Table]":
    """The same rows in fewer tables."""
    import pyarrow as pa

    gathered: list[pa.Table] = []
    for page in pages:
        gathered.append(page)
        if sum(p.nbytes for p in gathered) >= GROUP_BYTES:
            yield pa.concat_tables(gathered)
            gathered = []
    if gathered:
        yield pa.concat_tables(gathered)


def _settle(temporary: Path, path: Path) -> None:
    """Put a file in its place, at once, so that a power cut leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _sync(temporary)
    temporary.rename(path)
    for folder in (path.parent, path.parent.parent, path.parent.parent.parent):
        _sync(folder)


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
