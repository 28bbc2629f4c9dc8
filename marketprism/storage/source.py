"""The hot store as cold sees it: read over its HTTP port, changed over the socket of its user."""

import http.client
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marketprism.storage.asking import TIMEOUT_S, HotAwayError, HotError, HotHttp, asked
from marketprism.storage.schema import BY_NAME, Layout
from marketprism.storage.windows import WITHIN, Digest, Window, columns, digest_sql

if TYPE_CHECKING:
    import pyarrow as pa

PAGE_ROWS = 20_000
PAGE_BYTES = 16 * 1024**2

# Blocks of rows are numbered as they are inserted, and merging keeps the highest number. So a window's state becomes
# another one whenever a row comes in, and else stays. The table's UUID tells apart a store that was made anew.
_STATES = (
    "SELECT p.name AS name, p.hour AS hour, concat(toString(t.uuid), ':', toString(sum(p.block))) AS state, "
    "min(p.since) AS since FROM ("
    "SELECT `table` AS name, partition AS hour, max(max_block_number) AS block, min(modification_time) AS since "
    "FROM {parts} "
    "WHERE active AND database = {{database:String}} GROUP BY `table`, partition, hostName()"
    ") AS p INNER JOIN system.tables AS t ON t.name = p.name "
    "WHERE t.database = {{database:String}} GROUP BY p.name, p.hour, t.uuid"
)
_INSTRUMENT = (
    "exchange = {exchange:String} AND market_type = {market_type:String} AND symbol = {symbol:String}"
)
_AFTER = "(timestamp, event_id) > (fromUnixTimestamp64Milli({after_ms:Int64}, 'UTC'), {after_id:String})"


@dataclass(frozen=True, slots=True)
class Held:
    """What hot says of a window: its state, and since when it holds rows of it (Unix time; a merge makes it later)."""

    state: str
    since_s: float


class HotSource:
    """The hot store's windows. Calls block and raise HotError."""

    def __init__(self, http: HotHttp, change_socket: Path, layout: Layout) -> None:
        """Not connected: each call connects."""
        self._http = http
        self._socket = change_socket
        self._layout = layout
        self._suffix = "_local" if layout.cluster else ""
        parts = f"cluster('{layout.cluster}', system.parts)" if layout.cluster else "system.parts"
        self._states = _STATES.format(parts=parts)

    @property
    def name(self) -> str:
        """For manifests and messages."""
        return f"{self._http}/{self._layout.database}"

    def windows(self) -> dict[Window, Held]:
        """All that it holds."""
        rows = self._http.query(
            f"SELECT name, toUnixTimestamp(toDateTimeOrZero(hour, 'UTC')) AS start_s, state, "
            f"toUnixTimestamp(since) AS since_s FROM ({self._states})",
            {"database": self._layout.database},
        )
        tables = {f"{name}{self._suffix}": name for name in BY_NAME}
        return {
            Window(row["start_s"], tables[row["name"]]): Held(row["state"], row["since_s"])
            for row in rows.to_pylist()
            if row["name"] in tables
        }

    def digest(self, window: Window) -> Digest:
        """Of the rows it holds now."""
        sql = digest_sql(window.table, self._layout.table(window.table_name), WITHIN)
        return Digest.of(self._http.query(sql, window.bounds))

    def pages(self, window: Window) -> "Iterator[pa.Table]":
        """The rows, instrument by instrument in the order of their times, few at once."""
        found = self._http.query(
            "SELECT exchange, market_type, symbol, count() AS rows, sum(byteSize(*)) AS bytes "
            f"FROM {self._layout.table(window.table_name)} WHERE {WITHIN} "
            "GROUP BY exchange, market_type, symbol ORDER BY exchange, market_type, symbol",
            window.bounds,
        )
        for row in found.to_pylist():
            rows, size = row.pop("rows"), row.pop("bytes")
            yield from self._pages(window, row, min(PAGE_ROWS, max(1, PAGE_BYTES * rows // size)))

    def drop(self, window: Window, state: str) -> bool:
        """Remove a window, all of it, if its state is still that one; returns whether it was."""
        order = {
            "guard": f"SELECT state FROM ({self._states}) WHERE name = {{name:String}} AND hour = {{hour:String}}",
            "expected": [state],
            "statement": f"ALTER TABLE {self._layout.local(window.table_name)}{self._layout.on_cluster} "
            "DROP PARTITION {hour:String}",
            "parameters": {
                "database": self._layout.database,
                "name": f"{window.table_name}{self._suffix}",
                "hour": f"{window.start:%Y-%m-%d %H:%M:%S}",
            },
        }
        status, answer = self._order(json.dumps(order).encode())
        if status not in (200, 409):
            raise HotError(f"{self._socket}: {' '.join(answer.split())}")
        return status == 200

    def _order(self, body: bytes) -> tuple[int, str]:
        """Status and answer of /change, for which the socket's user stands."""
        connection = http.client.HTTPConnection("localhost", timeout=TIMEOUT_S)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(TIMEOUT_S)
        try:
            connection.sock.connect(str(self._socket))
            answer = asked(connection, "/change", body, str(self._socket))
            return answer.status, answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise HotAwayError(
                f"{self._socket}: {error}: is marketprism hot running, as this user?"
            ) from error
        finally:
            connection.close()

    def _pages(self, window: Window, instrument: dict[str, str], rows: int) -> "Iterator[pa.Table]":
        sql = (
            f"SELECT {columns(window.table)} FROM {self._layout.table(window.table_name)} "
            f"WHERE {_INSTRUMENT} AND {WITHIN} AND {_AFTER} ORDER BY timestamp, event_id LIMIT {{rows:UInt64}}"
        )
        after: dict[str, Any] = {"after_ms": window.start_s * 1000 - 1, "after_id": ""}
        while True:
            page = self._http.query(sql, {**instrument, **window.bounds, **after, "rows": rows})
            if page.num_rows:
                yield page
            if page.num_rows < rows:
                return
            last = page.select(["timestamp", "event_id"]).slice(page.num_rows - 1)
            after = {
                "after_ms": last["timestamp"].cast("int64")[0].as_py(),
                "after_id": last["event_id"][0].as_py(),
            }
