"""What `marketprism query`, `book` and `quality` do: read, print, and tell in one line what cannot be read."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from marketprism.config import OFFERS, Settings
from marketprism.storage import quality, rebuild
from marketprism.storage.asking import ReadingError, Values
from marketprism.storage.engine import EngineError
from marketprism.storage.reading import Reading, Span, Tier

FORMATS = {
    "table": "PrettyCompact",
    "csv": "CSVWithNames",
    "json": "JSONEachRow",
    "arrow": "ArrowStream",
    "parquet": "Parquet",
}
"""What `query` answers in, and what ClickHouse calls it. json: an object a line."""
_BINARY = ("arrow", "parquet")


def guarded(verb: str, work: Callable[[], None]) -> int:
    """Do it; what cannot be done is told on stderr. Returns the exit status."""
    try:
        work()
    except BrokenPipeError:  # `| head`: the caller's matter
        raise
    except (ReadingError, EngineError, OSError) as error:
        print(f"marketprism {verb}: {error}", file=sys.stderr)
        return 1
    return 0


@dataclass(frozen=True, slots=True)
class Query:
    """One SELECT, of the hot store or of the cold one. `params` are `NAME=VALUE`."""

    sql: str
    form: str
    output: Path | None
    params: Iterable[str]
    cold: bool

    def run(self, settings: Settings) -> None:
        """Print the answer, or write it to a file: whole or not at all. Raises ReadingError, EngineError, OSError."""
        if self.output is None and self.form in _BINARY and sys.stdout.isatty():
            raise ReadingError(f"{self.form} is nothing for a terminal: add --output FILE")
        values = dict(map(_param, self.params))
        with Reading(settings) as reading, _target(self.output) as target:
            for piece in self._answer(reading, values):
                target.write(piece)

    def _answer(self, reading: Reading, values: Values) -> Iterator[bytes]:
        fmt = FORMATS[self.form]
        if not self.cold:
            return reading.hot.stream(self.sql, fmt, values)
        if reading.cold is None:
            raise ReadingError("there is no cold store (yet): storage.cold.location says where it would be")
        return reading.cold.stream(self.sql, fmt, values)


@dataclass(frozen=True, slots=True)
class Book:
    """The book of one instrument at an instant. `exchange` may be a section of the configuration."""

    exchange: str
    symbol: str
    at_ms: int
    market_type: str | None
    depth: int
    form: str

    def run(self, settings: Settings) -> None:
        """Print it. Raises ReadingError, EngineError, OSError."""
        with Reading(settings) as reading:
            book = self.found(reading.tiers)
        print(_json(book.told()) if self.form == "json" else rebuild.text(book))

    def found(self, tiers: Sequence[Tier]) -> rebuild.BookAt:
        """The book itself. Raises ReadingError, EngineError."""
        offer = OFFERS.get(self.exchange)
        exchange = offer.exchange if offer else self.exchange
        market_type = self.market_type or (offer.market_type if offer else None)
        instrument = rebuild.find(tiers, exchange, self.symbol, market_type, self.at_ms)
        return rebuild.book_at(tiers, instrument, self.at_ms, self.depth or None)


@dataclass(frozen=True, slots=True)
class Quality:
    """How whole a time span is. `png` is where the picture goes."""

    span: Span
    form: str
    png: Path | None

    def run(self, settings: Settings) -> None:
        """Print it. Raises ReadingError, EngineError, OSError."""
        with Reading(settings) as reading:
            lines = quality.report(reading.tiers, self.span)
        if not lines:
            raise ReadingError("nothing is stored of that time")
        if self.png is not None:
            self.png.write_bytes(quality.timeline(lines, self.span))
        print(
            _json(quality.told(lines, self.span)) if self.form == "json" else quality.text(lines, self.span)
        )


def _json(found: object) -> str:
    return json.dumps(found, indent=2, ensure_ascii=False)


def _param(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (equals and name.isidentifier()):
        raise ReadingError(f"--param: expected NAME=VALUE, got {text!r}")
    return name, value


@contextmanager
def _target(output: Path | None) -> Iterator[BinaryIO]:
    if output is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    unfinished = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            yield file
        unfinished.replace(output)
    finally:
        unfinished.unlink(missing_ok=True)
