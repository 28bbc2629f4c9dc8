"""From messages to the columns of a table. A figure is stored exactly as it was told, or not at all.

A message that cannot become a row is told apart from the others with its reason, and spoils none of them.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Context, Decimal, InvalidOperation
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import msgspec

from marketprism.events import PAYLOADS, Level
from marketprism.storage.schema import COUNT, DECIMAL, TIME, WIDE, Column, Table

if TYPE_CHECKING:
    import pyarrow as pa

TIME_END_MS = 4_102_444_800_000
"""2100: a later time is a mistake of whoever sent it."""
_TYPES: dict[str, Any] = {
    TIME: Annotated[int, msgspec.Meta(ge=0, lt=TIME_END_MS)],
    COUNT: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)],
    "Int64": Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)],
    DECIMAL: str,
    WIDE: str,
}
_DIGITS = {DECIMAL: (20, 18), WIDE: (38, 38)}
"""Before and after the point."""
_LEVELS = ("bids", "asks")
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


@dataclass(frozen=True, slots=True)
class Refused:
    """The number of a message in a batch, and why it cannot be stored."""

    index: int
    reason: str


class Rows:
    """Messages that are to go into one table at once: `add` keeps them, `arrow` reads them."""

    def __init__(self, table: Table) -> None:
        """For this table."""
        self.table = table
        self.bytes = 0
        """Length of the payloads so far."""
        self.payloads: list[bytes] = []
        self.ids: list[str] = []
        self.seqs: list[int] = []

    def __len__(self) -> int:
        """How many messages."""
        return len(self.payloads)

    def add(self, payload: bytes, event_id: str, stream_seq: int) -> None:
        """Take in a message; its id is "" where it has none."""
        self.payloads.append(payload)
        self.ids.append(event_id)
        self.seqs.append(stream_seq)
        self.bytes += len(payload)

    def arrow(self) -> "tuple[pa.Table, list[Refused]]":
        """The rows as columns, in the order they came, and those that were refused and left out."""
        decoded, reasons = self._decoded()
        try:
            table = self._table(decoded)
        except _MisfitError:  # of a figure, since the decoder saw to all else
            reasons |= _misfits(self.table, decoded)
            table = self._table({i: event for i, event in decoded.items() if i not in reasons})
        return table, [Refused(i, reasons[i]) for i in sorted(reasons)]

    def _decoded(self) -> tuple[dict[int, Any], dict[int, str]]:
        """By their numbers: what could be read, and why the others could not."""
        reader = _reader(self.table)
        decoded: dict[int, Any] = {}
        reasons: dict[int, str] = {}
        for i, payload in enumerate(self.payloads):
            try:
                decoded[i] = reader(payload)
            except _UNREADABLE as error:
                reasons[i] = f"expected a {self.table.data_type}: {' '.join(str(error).split())}"
        for i in [i for i in decoded if not self.ids[i]]:
            del decoded[i]
            reasons[i] = "expected a Nats-Msg-Id, got none: it could not be told from a repetition"
        return decoded, reasons

    def _table(self, decoded: dict[int, Any]) -> "pa.Table":
        import pyarrow as pa

        events = list(decoded.values())
        given: dict[str, list[Any]] = {
            "event_id": [self.ids[i] for i in decoded],
            "stream_seq": [self.seqs[i] for i in decoded],
        }
        if self.table.data_type == "orderbook":
            given |= _tops(events)
        return pa.table(
            {
                c.name: _array(c, given[c.name] if c.name in given else _values(c, events))
                for c in self.table.stored
                if not c.default
            }
        )


def _values(column: Column, events: list[Any]) -> list[Any]:
    """Of a column that follows from one field."""
    if column.name == "timestamp":
        return [e.collected_ts_ms if e.ts_ms is None else e.ts_ms for e in events]
    if column.name == "has_event_time":
        return [e.ts_ms is not None for e in events]
    values = list(map(attrgetter(column.source), events))
    return list(map(bytes, values)) if column.source in _LEVELS else values


def _array(column: Column, values: list[Any]) -> "pa.Array":
    import pyarrow as pa

    kind = _arrow_types()[column.type]
    if column.type in _DIGITS:
        return _figures(values, column.type).cast(kind)
    return pa.array(values, kind)


def _misfits(table: Table, decoded: dict[int, Any]) -> dict[int, str]:
    """Messages with a figure that is none, or that does not fit, and which one it is."""
    found: dict[int, str] = {}
    events = list(decoded.values())
    tops = _tops(events) if table.data_type == "orderbook" else {}
    for column in table.stored:
        if column.type in _DIGITS:
            values = tops[column.name] if column.name in tops else _values(column, events)
            for i, text in zip(decoded, values, strict=True):
                try:
                    _figures([text], column.type)
                except _MisfitError as error:
                    found[i] = f"{column.source or column.name}: {error}"
    return found


class _MisfitError(Exception):
    """A text that is no number, or one of too many digits."""


def _figures(texts: list[str | None], type_: str) -> "pa.Array":
    """Texts that Arrow reads as decimals of that type without loss. Raises _MisfitError.

    Arrow itself lets some that are too large overflow without a word (26.0.1: 1e30 as decimal128(38, 18)).
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    before, after = _DIGITS[type_]
    figures = pa.array(texts, pa.string())
    plain = pc.match_substring_regex(figures, rf"^-?[0-9]{{1,{before}}}(\.[0-9]{{1,{after}}})?$")
    if pc.all(plain, min_count=0).as_py():
        return figures
    return pa.array([None if text is None else _plain(text, before, after) for text in texts], pa.string())


def _plain(text: str, before: int, after: int) -> str:
    """A number written another way, such as 1e-7, written out."""
    try:
        if not _NUMBER.fullmatch(text):
            raise InvalidOperation
        number = Decimal(text)
        exact = number.quantize(Decimal(1).scaleb(-after), context=_WIDE_CONTEXT)
        if exact != number or abs(exact) >= Decimal(10) ** before:
            raise InvalidOperation
    except InvalidOperation as error:
        raise _MisfitError(
            f"expected a number of at most {before} digits before the point and {after} after it, got {text!r:.80}"
        ) from error
    return f"{exact:f}"


_NUMBER = re.compile(r"[+-]?[0-9]{1,200}(\.[0-9]{0,200})?([eE][+-]?[0-9]{1,4})?")
_WIDE_CONTEXT = Context(prec=100)
_levels = msgspec.json.Decoder(list[Level]).decode


def _tops(events: list[Any]) -> dict[str, list[Any]]:
    """The columns of `orderbooks` that are computed from the levels."""
    found: dict[str, list[Any]] = {}
    for side, word in (("bids", "bid"), ("asks", "ask")):
        levels = [_levels(getattr(e, side)) for e in events]
        found[f"{side}_count"] = [len(some) for some in levels]
        found[f"best_{word}_price"] = [some[0].price if some else None for some in levels]
        found[f"best_{word}_quantity"] = [some[0].quantity if some else None for some in levels]
    return found


@cache
def _reader(table: Table) -> Callable[[bytes], Any]:
    """From a payload to a struct of what is kept of it; levels are looked at, and stay the text they are."""
    decode = _decoder(table).decode
    if not any(c.source in _LEVELS for c in table.own):
        return decode

    def read(payload: bytes) -> Any:
        event = decode(payload)
        _levels(event.bids)
        _levels(event.asks)
        return event

    return read


@cache
def _decoder(table: Table) -> msgspec.json.Decoder[Any]:
    """For what is kept of a payload; levels stay the text they are."""
    hints = get_type_hints(PAYLOADS[table.data_type], include_extras=True)
    kept = [c for c in table.stored if c.source]
    fields = [(c.source, _type(c, hints[c.source])) for c in kept]
    struct = msgspec.defstruct(
        table.name, fields, tag=table.data_type, tag_field="data_type", gc=False, frozen=True, kw_only=True
    )
    return msgspec.json.Decoder(struct)


def _type(column: Column, hint: Any) -> Any:
    if column.source in _LEVELS:
        return msgspec.Raw
    wanted = _TYPES.get(column.type, hint)
    return wanted | None if column.nullable or column.name == "timestamp" else wanted


@cache
def _arrow_types() -> "dict[str, pa.DataType]":
    import pyarrow as pa

    return {
        TIME: pa.timestamp("ms", "UTC"),
        COUNT: pa.uint64(),
        DECIMAL: pa.decimal128(38, 18),
        WIDE: pa.decimal256(76, 38),
        "UInt32": pa.uint32(),
        "Int64": pa.int64(),
        "Bool": pa.bool_(),
        "String": pa.string(),
        "LowCardinality(String)": pa.string(),
    }
