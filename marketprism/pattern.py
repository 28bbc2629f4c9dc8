"""JSON text with places to be filled in: an event is written at once, without an object in between.

`Pattern` is that of `_book.c` where it is built, else `PurePattern`, which gives the same text.
"""

import os
from contextlib import suppress
from typing import TypeAlias, final

import msgspec

Value: TypeAlias = int | str | bytes | None
_encode = msgspec.json.Encoder().encode


@final
class PurePattern:
    """What stands between the places, and before and behind them."""

    __slots__ = ("_parts",)

    def __init__(self, *parts: bytes) -> None:
        self._parts = parts

    def __call__(self, *values: Value) -> bytes:
        """The text with these values in the places: bytes are JSON already, others are encoded.

        Raises TypeError where there are not as many as places.
        """
        if len(values) != len(self._parts) - 1:
            raise TypeError(f"a pattern of {len(self._parts) - 1} places got {len(values)} values")
        text = bytearray(self._parts[0])
        for value, part in zip(values, self._parts[1:], strict=True):
            text += value if type(value) is bytes else _encode(value)
            text += part
        return bytes(text)


Pattern = PurePattern
if not os.environ.get("MARKETPRISM_PURE_PYTHON"):
    with suppress(ImportError):  # not built: no compiler here (scripts/setup says so)
        from marketprism._book import Pattern  # type: ignore[assignment]  # noqa: F401 - exported
