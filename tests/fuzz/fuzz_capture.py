"""Recordings: any bytes, compressed or not, are frames, damage, or one line that says why it is no recording.

The first byte chooses the exchange; the rest is the file.
"""

import gzip
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp

import zstandard
from captures import FOLDER

from marketprism.capture import Damage, Frame, UnreadableError, read
from marketprism.events import Event, decode, encode
from marketprism.replay import Replay, load_instruments
from marketprism.venues import VENUES
from marketprism.worker.options import replay_options

_EXCHANGES = sorted(VENUES)
_path = Path(mkdtemp(prefix="fuzz-capture-")) / "capture"


def one(data: bytes) -> None:
    """Read and replay one recording, and take it for a list of instruments."""
    exchange = _EXCHANGES[data[0] % len(_EXCHANGES)] if data else _EXCHANGES[0]
    _path.write_bytes(data[1:])
    venue = VENUES[exchange](replay_options(exchange, None))
    with suppress(UnreadableError):
        for number, frame in read(_path):
            assert number > 0
            assert isinstance(frame, Frame | Damage)
        Replay(venue, [_path], _judge).run()
    with suppress(UnreadableError):
        load_instruments(VENUES[exchange](replay_options(exchange, None)), _path)
    _path.unlink()


def _judge(event: Event) -> None:
    payload = encode(event.data)
    assert encode(decode(payload)) == payload


def seeds() -> Iterator[bytes]:
    """Beginnings of the recordings: plain, compressed, and cut off."""
    for path in sorted(FOLDER.glob("*.jsonl.gz")):
        number = next((n for n, e in enumerate(_EXCHANGES) if path.name.startswith(e.split("_")[0])), 0)
        with gzip.open(path) as file:
            text = b"".join(file.readline() for _ in range(12))
        for content in (text, gzip.compress(text), gzip.compress(text)[:-20], zstandard.compress(text)):
            yield bytes([number]) + content
