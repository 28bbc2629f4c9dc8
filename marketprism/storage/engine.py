"""One client of ClickHouse: its engine in this process on a directory of ours (chDB), or a server by URL.

Both speak the same SQL through one library, clickhouse-connect. Values go into statements as parameters, written
`{name:Type}`, and the engine reads them; no statement is ever put together from values.
"""

import io
import os
import re
import sys
from collections.abc import Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import pyarrow as pa
    from clickhouse_connect.driver.client import Client

Parameters = Mapping[str, Any]
"""Values for the `{name:Type}` of a statement."""
SettingValues = Mapping[str, str | int]

CONNECT_TIMEOUT_S = 5
ANSWER_TIMEOUT_S = 300
READ_MEMORY_BYTES = 200_000_000
READ_SECONDS = 120
INSTALL = (
    "the stores' engine is not installed; on Debian: apt install ./marketprism-embedded_VERSION_amd64.deb, "
    "from the sources: scripts/setup --embedded, else: pip install 'marketprism[embedded]'"
)
NO_SPACE = 243
_CODE = re.compile(r"Code: (\d+)")

# Rows sent twice are one row wherever the engine may read them (docs/reading-data.md).
_ALWAYS: SettingValues = {
    "final": 1,
    "do_not_merge_across_partitions_select_final": 1,  # a table's partition follows from its key
    "output_format_arrow_string_as_string": 1,
    "output_format_arrow_compression_method": "none",
    "distributed_foreground_insert": 1,  # a cluster has a row before its insert ends
    "max_insert_threads": 1,  # one part a partition
    "max_partitions_per_insert_block": 0,  # what comes late may be of many hours
    # No machine code made at run time: the units forbid memory that is writable and executable.
    "compile_expressions": 0,
    "compile_aggregate_expressions": 0,
    "compile_sort_description": 0,
}
_READING: SettingValues = {
    "max_memory_usage": READ_MEMORY_BYTES,
    "max_execution_time": READ_SECONDS,
    "readonly": 1,  # the last one: nothing can be set after it
}
# A merge has a granule or two of each of its parts in memory. With what is the default, 10 MB and 100 parts, seven
# parts of books took 120 MB; with this a merge takes up to 65 MB, however many parts wait.
_CONFIG = """\
<clickhouse>
    <background_pool_size>2</background_pool_size>
    <background_merges_mutations_concurrency_ratio>1</background_merges_mutations_concurrency_ratio>
    <background_common_pool_size>2</background_common_pool_size>
    <background_fetches_pool_size>1</background_fetches_pool_size>
    <background_schedule_pool_size>4</background_schedule_pool_size>
    <mark_cache_size>33554432</mark_cache_size>
    <index_mark_cache_size>8388608</index_mark_cache_size>
    <uncompressed_cache_size>0</uncompressed_cache_size>
    <merge_tree>
        <min_bytes_for_wide_part>1073741824</min_bytes_for_wide_part>
        <index_granularity_bytes>2097152</index_granularity_bytes>
        <max_parts_to_merge_at_once>16</max_parts_to_merge_at_once>
        <merge_max_block_size_bytes>2097152</merge_max_block_size_bytes>
        <max_bytes_to_merge_at_max_space_in_pool>2147483648</max_bytes_to_merge_at_max_space_in_pool>
    </merge_tree>
</clickhouse>
"""
# What the engine has freed goes back to the system after half a second, not five: 50 MB less while much is inserted.
_MALLOC = "dirty_decay_ms:500"


class EngineError(Exception):
    """Something the engine could not or would not do, in one line. `code` is ClickHouse's number, 0 without one."""

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True, slots=True)
class Target:
    """Which engine: the directory of an embedded one, or the http(s):// URL of a server.

    `cluster` names the cluster that the tables are made on, "" for none. The password is left out of `repr`.
    """

    location: str
    user: str = ""
    password: str = field(default="", repr=False)
    cluster: str = ""

    @property
    def embedded(self) -> bool:
        """Whether the engine runs in this process."""
        return not self.location.startswith(("http://", "https://"))


class Engine:
    """A connection, for one thread at a time. Calls block."""

    def __init__(self, target: Target, *, reading: bool = False) -> None:
        """Connect. `reading`: nothing can be changed through this one. Raises EngineError."""
        self.target = target
        self._reading = reading
        self._client = _connect(target, dict(_ALWAYS) | (dict(_READING) if reading else {}))

    def reader(self) -> "Engine":
        """Another connection to the same engine, which can only read. Raises EngineError."""
        return Engine(self.target, reading=True)

    def query(self, sql: str, parameters: Parameters | None = None, **settings: str | int) -> "pa.Table":
        """The rows of a SELECT. Raises EngineError.

        Reads as with FINAL: rows sent twice come once. `settings` are the engine's, for this statement only
        (`final=0`: rows as they lie).
        """
        import pyarrow as pa

        answer = self._guarded("raw_query", sql, parameters, settings=settings, fmt="ArrowStream")
        try:
            return pa.ipc.open_stream(answer).read_all()
        except pa.ArrowInvalid as error:
            raise EngineError(f"expected a SELECT, got {sql[:80]!r}") from error

    def value(self, sql: str, parameters: Parameters | None = None, **settings: str | int) -> Any:
        """The one value of a SELECT of one row and one column. Raises EngineError."""
        return self.query(sql, parameters, **settings).column(0)[0].as_py()

    def stream(
        self, sql: str, fmt: str, parameters: Parameters | None = None
    ) -> Generator[bytes, None, None]:
        """A SELECT's answer in one of ClickHouse's formats, piece by piece.

        TabSeparated, CSV, JSONEachRow, RowBinary and Native come as they are computed; of the others an embedded
        engine makes the whole answer first. Raises EngineError, also between pieces.
        """
        answer = self._guarded("raw_stream", sql, parameters, fmt=fmt)
        with cast(io.IOBase, answer) as pieces:
            while piece := self._piece(pieces):
                yield piece

    def insert(self, table: str, rows: "pa.Table") -> None:
        """Add rows to `database.table`; columns go by name, those left out get their default. Raises EngineError."""
        self._guarded("insert_arrow", table, rows)

    def command(self, sql: str, parameters: Parameters | None = None, **settings: str | int) -> None:
        """Carry out a statement that has no rows to give. Raises EngineError."""
        self._guarded("command", sql, parameters, settings=settings)

    def close(self) -> None:
        """End the connection; an embedded engine closes its directory with its last one."""
        self._client.close()

    def _piece(self, pieces: io.IOBase) -> bytes:
        try:
            return cast(bytes, pieces.read(1 << 16))
        except Exception as error:
            raise _told(error, self.target) from error

    def _guarded(self, method: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return getattr(self._client, method)(*args, **kwargs)
        except Exception as error:
            self._forget_answer()
            raise _told(error, self.target) from error

    def _forget_answer(self) -> None:
        """Of a SELECT that failed while it ran: chDB 4.4.0 gives the rows it had, or none, to the next one."""
        if self.target.embedded:
            with suppress(Exception):
                self._client.raw_query("SELECT 1", fmt="ArrowStream")


def check_installed() -> None:
    """Raise EngineError, with what to install, where the engine's packages are missing."""
    try:
        import clickhouse_connect  # noqa: F401

        _spare_pandas()
        _spare_pool()
    except ImportError as error:
        raise EngineError(INSTALL) from error


def _spare_pandas() -> None:
    """Have Arrow look for pandas now, and find none: it would load 50 MB with its first array, for nothing."""
    import pyarrow as pa

    hidden = _Hidden()
    sys.meta_path.insert(0, hidden)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(hidden)


def _spare_pool() -> None:
    """Have Arrow share the heap of all else: a pool of its own holds 40 MB more for batches of 4 MB."""
    import pyarrow as pa

    pa.set_memory_pool(pa.system_memory_pool())


class _Hidden(MetaPathFinder):
    def find_spec(self, name: str, *_: object) -> None:
        if name == "pandas":
            raise ImportError(name)


def _connect(target: Target, settings: dict[str, str | int]) -> "Client":
    check_installed()
    import clickhouse_connect

    try:
        if target.embedded:
            return _embedded(Path(target.location), settings)
        return clickhouse_connect.get_client(
            dsn=target.location,
            secure=target.location.startswith("https://"),
            username=target.user or None,
            password=target.password,
            settings=settings,
            autogenerate_session_id=False,  # a session takes one statement at a time
            connect_timeout=CONNECT_TIMEOUT_S,
            send_receive_timeout=ANSWER_TIMEOUT_S,
        )
    except ImportError as error:
        raise EngineError(INSTALL) from error
    except Exception as error:
        raise _told(error, target) from error


def _embedded(directory: Path, settings: dict[str, str | int]) -> "Client":
    import clickhouse_connect

    os.environ.setdefault("JE_MALLOC_CONF", _MALLOC)  # read when the library is loaded, which is below
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    config = directory / "engine.xml"
    if not config.exists() or config.read_text(encoding="utf-8") != _CONFIG:
        config.write_text(_CONFIG, encoding="utf-8")
    return clickhouse_connect.get_client(
        interface="chdb",
        path=str(directory / "engine"),
        settings=settings,
        chdb_options={"config-file": str(config.resolve())},
    )


def _told(error: Exception, target: Target) -> EngineError:
    """Any error of the libraries below in one line, without the server's stack and version."""
    if isinstance(error, EngineError):
        return error
    text = " ".join(str(error).split()) or type(error).__name__
    code = _CODE.search(text)
    where = f"embedded engine in {target.location}" if target.embedded else f"ClickHouse at {_shown(target)}"
    if (code and int(code[1]) == NO_SPACE) or "No space left on device" in text:
        text = "the disk is full: make room, and it goes on by itself"
    elif "Error initializing EmbeddedServer" in text or "already locked" in text.lower():
        text = "another process has it open: only one can (marketprism query asks that one)"
    return EngineError(f"{where}: {text[:600]}", int(code[1]) if code else 0)


def _shown(target: Target) -> str:
    return target.location.rpartition("@")[2]
