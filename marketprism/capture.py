"""Recordings of what the wire said: one frame a line, in order of receipt, gzip or zstd.

    {"t": <receive time, ns since epoch>, "via": "ws" | "rest", "url": …, "out": true, "raw": "<text>"}

`url` names the connection or the request; a fragment (`#2`) tells connections of one URL apart. `out` is there only
for what the collector sent.
"""

import gzip
import io
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import msgspec
import zstandard

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"


class Frame(msgspec.Struct, gc=False, omit_defaults=True):
    """One line of a recording."""

    t: int
    via: Literal["ws", "rest"]
    url: str
    raw: str
    out: bool = False


@dataclass(frozen=True, slots=True)
class Damage:
    """A line that cannot be read."""

    line: int
    reason: str


class UnreadableError(Exception):
    """A file that cannot be read at all; the message names it and says why."""


_decode = msgspec.json.Decoder(Frame).decode
_encode = msgspec.json.Encoder().encode


def read(path: Path) -> Iterator[tuple[int, Frame | Damage]]:
    """The frames of a recording with their line numbers. Raises `UnreadableError`.

    A damaged line, or the point at which a compressed file breaks off, is a `Damage`.
    """
    number = 0
    try:
        with _open(path) as lines:
            for line in lines:
                number += 1
                if line.strip():
                    yield number, _parse(number, line)
    except OSError as e:
        if number == 0:
            raise UnreadableError(f"{path}: cannot be read: {e.strerror or e}") from None
        yield number + 1, Damage(number + 1, f"the file breaks off: {e}")
    except (EOFError, zlib.error, zstandard.ZstdError) as e:
        if number == 0:
            raise UnreadableError(f"{path}: not a recording: {e}") from None
        yield number + 1, Damage(number + 1, f"the file breaks off: {e}")


def _parse(number: int, line: bytes) -> Frame | Damage:
    try:
        return _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        return Damage(number, str(e))


def _open(path: Path) -> IO[bytes]:
    """Open for reading, whatever the compression."""
    file = path.open("rb")
    magic = file.read(4)
    file.seek(0)
    if magic.startswith(_GZIP):
        return gzip.open(file, "rb")  # type: ignore[return-value]
    if magic == _ZSTD:
        reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True, closefd=True)
        return io.BufferedReader(reader)
    return file


class Writer:
    """Writes a recording, a new file whenever the current one is large or old enough."""

    def __init__(
        self,
        directory: Path,
        prefix: str,
        *,
        compression: Literal["gzip", "zstd"] = "zstd",
        rotate_bytes: int = 256 << 20,
        rotate_s: float = 3600.0,
    ) -> None:
        """Raises OSError where the directory cannot be made."""
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._prefix = prefix
        self._compression = compression
        self._rotate_bytes = rotate_bytes
        self._rotate_ns = int(rotate_s * 1e9)
        self._file: gzip.GzipFile | zstandard.ZstdCompressionWriter | None = None
        self._written_bytes = 0
        self._since_ns = 0
        self.path: Path | None = None

    def write(self, frame: Frame) -> None:
        """Append a frame. Raises OSError, for example on a full disk."""
        line = _encode(frame) + b"\n"
        if self._file is None or self._written_bytes >= self._rotate_bytes or self._old(frame.t):
            self._next(frame.t)
        assert self._file is not None
        self._file.write(line)
        self._written_bytes += len(line)

    def flush(self) -> None:
        """Hand everything to the operating system."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Finish the current file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _old(self, now_ns: int) -> bool:
        return now_ns - self._since_ns >= self._rotate_ns

    def _next(self, now_ns: int) -> None:
        self.close()
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now_ns / 1e9))
        suffix = "gz" if self._compression == "gzip" else "zst"
        n, path = 0, self._directory / f"{self._prefix}.{stamp}.jsonl.{suffix}"
        while path.exists():  # two within a second
            n += 1
            path = self._directory / f"{self._prefix}.{stamp}-{n}.jsonl.{suffix}"
        raw = path.open("xb")
        self._file = (
            gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=3)
            if self._compression == "gzip"
            else zstandard.ZstdCompressor(level=3).stream_writer(raw)
        )
        self.path = path
        self._since_ns = now_ns
        self._written_bytes = 0
