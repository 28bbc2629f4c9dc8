"""The hot store asked over HTTP: one process owns its directory, everybody else asks that one."""

import http.client
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

Values = Mapping[str, str | int]
"""Values for the `{name:Type}` of a statement."""

PIECE_BYTES = 1 << 16
TIMEOUT_S = 180  # longer than the hot store lets a query run
_ANY = ("0.0.0.0", "::", "")


class ReadingError(Exception):
    """What cannot be read, and what to do, in one line."""


class HotError(ReadingError):
    """The hot store would not, or could not."""


class HotAwayError(HotError):
    """Nobody answers there."""


class HotHttp:
    """The hot store's /query. Each call connects, blocks, and raises HotError."""

    def __init__(self, host: str, port: int) -> None:
        """Of the hot store's port; `host` is what it was told to listen on."""
        self._host = "127.0.0.1" if host in _ANY else host
        self._port = port

    def __str__(self) -> str:
        """For messages."""
        return f"{self._host}:{self._port}"

    def query(self, sql: str, values: Values) -> "pa.Table":
        """The rows of a SELECT. Raises HotError."""
        import pyarrow as pa

        # Read to its end, which is behind the end of the rows: the server would take it for a client that has gone.
        answer = b"".join(self.stream(sql, "ArrowStream", values))
        try:
            return pa.ipc.open_stream(answer).read_all()
        except pa.ArrowInvalid as error:
            raise HotError(
                f"the hot store at {self}: expected rows, got {len(answer)} bytes: {error}"
            ) from error

    def stream(self, sql: str, fmt: str, values: Values) -> Iterator[bytes]:
        """A SELECT's answer in one of ClickHouse's formats, piece by piece. Raises HotError, also in between."""
        with self._answer(sql, fmt, values) as answer:
            try:
                while piece := answer.read(PIECE_BYTES):
                    yield piece
            except (OSError, http.client.HTTPException) as error:
                raise HotError(f"the hot store at {self} broke off its answer: its log tells why") from error

    @contextmanager
    def _answer(self, sql: str, fmt: str, values: Values) -> Iterator[http.client.HTTPResponse]:
        names = {"format": fmt} | {f"param_{name}": value for name, value in values.items()}
        connection = http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_S)
        try:
            answer = asked(connection, f"/query?{urllib.parse.urlencode(names)}", sql.encode(), str(self))
            if answer.status != 200:
                raise HotError(" ".join(answer.read().decode(errors="replace").split()))
            yield answer
        finally:
            connection.close()


def asked(
    connection: http.client.HTTPConnection, path: str, body: bytes, where: str
) -> http.client.HTTPResponse:
    """The answer to a POST. Raises HotAwayError."""
    try:
        connection.request("POST", path, body)
        return connection.getresponse()
    except (OSError, http.client.HTTPException) as error:
        raise HotAwayError(
            f"no hot store at {where} ({error or type(error).__name__}): start it with: marketprism hot"
        ) from error
