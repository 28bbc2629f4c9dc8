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
from typing import IO, Annotated, Any, Literal

import msgspec
import zstandard

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_CHUNK_BYTES = 1 << 16
_T_MAX_NS = 2**63 - 1  # in the year 2262: a time beyond it is none


class Frame(msgspec.Struct, gc=False, omit_defaults=True):
    """One line of a recording."""

    t: Annotated[int, msgspec.Meta(ge=0, le=_T_MAX_NS)]
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
    """The frames of a recording with their line numbers. Raises `UnreadableError`, last of all where no line is one.

    A damaged line, or the point at which a compressed file breaks off, is a `Damage`.
    """
    number = 0
    damage: Damage | None = None
    frames = 0
    try:
        with open_compressed(path) as lines:
            for line in lines:
                number += 1
                if not line.strip():
                    continue
                frame = _parse(number, line)
                if isinstance(frame, Damage):
                    damage = damage or frame
                else:
                    frames += 1
                yield number, frame
    except BROKEN as e:
        if number == 0:
            raise UnreadableError(f"{path}: {_why(e)}") from None
        yield number + 1, Damage(number + 1, f"the file breaks off: {e}")
    if damage is not None and not frames:
        raise UnreadableError(f"{path}: not a recording: line {damage.line}: {damage.reason}")


def _parse(number: int, line: bytes) -> Frame | Damage:
    try:
        return _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        return Damage(number, str(e))


# What reading a file may raise that is missing, forbidden, cut off or not what its first bytes say.
BROKEN = (OSError, EOFError, zlib.error, zstandard.ZstdError)


def _why(error: Exception) -> str:
    if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
        return f"cannot be read: {error.strerror or error}"
    return f"not a recording: {error}"


def open_compressed(path: Path) -> IO[bytes]:
    """Open for reading, whatever the compression. Raises one of BROKEN, also while it is read."""
    with path.open("rb") as file:
        magic = file.read(4)
    if magic.startswith(_GZIP):
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if magic == _ZSTD:
        return io.BufferedReader(_Zstd(path), _CHUNK_BYTES)
    return path.open("rb")


class _Zstd(io.RawIOBase):
    """The content of a zstd file. Unlike the library's own reader it tells where a file breaks off."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._between = True  # two frames, or at the end
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer. Raises EOFError, ZstdError or OSError."""
        while not self._ready:
            if self._frame.eof:
                self._next_frame(self._frame.unused_data)
                continue
            data = self._file.read(_CHUNK_BYTES)
            if not data:
                if self._between:
                    return 0
                raise EOFError("compressed data ends in the middle")
            self._feed(data)
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def close(self) -> None:
        """Close the file too."""
        self._file.close()
        super().close()

    def _next_frame(self, rest: bytes) -> None:
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._between = True
        if rest:
            self._feed(rest)

    def _feed(self, data: bytes) -> None:
        self._between = False
        self._ready = memoryview(self._frame.decompress(data))


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
        self._raw: IO[bytes] | None = None  # what it is written to
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
        if self._file is not None and self._raw is not None:
            self._file.flush()
            self._raw.flush()

    def close(self) -> None:
        """Finish the current file."""
        if self._file is not None and self._raw is not None:
            self._file.close()
            self._raw.close()
            self._file = self._raw = None

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
        self._raw = raw = path.open("xb")
        self._file = (
            gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=3)
            if self._compression == "gzip"
            else zstandard.ZstdCompressor(level=3).stream_writer(raw)
        )
        self.path = path
        self._since_ns = now_ns
        self._written_bytes = 0
