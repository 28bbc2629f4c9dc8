"""What the exchanges' faces, the faults and the sockets hand each other."""

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

MessageKind = Literal["book", "trade", "snapshot", "other", "reply"]
Wire = Literal["text", "binary", "cut"]


@dataclass(eq=False, slots=True)
class Connection:
    """One client's websocket as a face sees it.

    `ends_ms` is when the exchange ends it, if it does. `closing` is set when the exchange hangs up; code 0 aborts.
    """

    path: str
    number: int
    topics: dict[str, None] = field(default_factory=dict)
    incoming_ms: deque[int] = field(default_factory=deque)
    last_in_ms: int = 0
    last_out_ms: int = 0
    ends_ms: int | None = None
    closing: tuple[int, str] | None = None


@dataclass(eq=False, slots=True)
class Outgoing:
    """One message to all of `connections`; its text is built once. Not to be changed once made.

    wire: how it travels: as a text frame, as a binary frame, or cut in its middle by a reset.
    """

    connections: tuple[Connection, ...]
    text: str
    kind: MessageKind
    worker: str
    instrument: str | None = None
    topic: str = ""
    wire: Wire = "text"
