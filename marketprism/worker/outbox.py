"""What the publisher holds: messages waiting, messages in flight, and the holes where there was no room.

Only bookkeeping: no socket, no clock, no await. Every message taken in stays here until it is acknowledged,
so the bytes counted here bound the publisher's memory.
"""

from collections import deque
from dataclasses import dataclass, field

import msgspec

OVERHEAD_BYTES = 400
"""What a held message costs beside its payload: its struct, strings, stamps and slots (CPython 3.11)."""


class Message(msgspec.Struct, gc=False):
    """One message to publish.

    `id` becomes `Nats-Msg-Id`; `droppable` is true only for `orderbook` snapshots, which the next one
    replaces; `ts_ms` is the event time, told in a hole; `received_ns` is `time.perf_counter_ns()` when the
    socket was read; `essential` is true for gaps, for which some room is kept: without them a hole would be silent.
    """

    subject: str
    id: str
    payload: bytes
    droppable: bool
    ts_ms: int | None
    received_ns: int
    essential: bool = False


class Hole(msgspec.Struct):
    """What was refused on one subject, from the first message to the last one."""

    subject: str
    first_id: str
    last_id: str
    first_ts_ms: int | None
    last_ts_ms: int | None
    count: int


@dataclass(slots=True)
class Counters:
    """Running totals in messages; `errors` counts occurrences by kind."""

    published: int = 0
    acknowledged: int = 0
    duplicates: int = 0
    resent: int = 0
    skipped: int = 0
    refused: int = 0
    errors: dict[str, int] = field(default_factory=dict)


class Outbox:
    """Messages in order, bounded by `buffer_bytes`; a sixth of that at most is in flight at a time."""

    def __init__(self, buffer_bytes: int) -> None:
        self.counters = Counters()
        self.backlog: deque[Message] = deque()
        self.flight: dict[int, Message] = {}
        """Written and not acknowledged, by token; tokens rise with the order of sending."""
        self.rejected: set[int] = set()
        """Tokens in flight to which the stream said no."""
        self.holes: dict[str, Hole] = {}
        self.held_bytes = 0
        self._flight_bytes = 0
        self._token = 0
        self._resend_left = 0
        self._buffer_bytes = buffer_bytes
        self._full_bytes = buffer_bytes - buffer_bytes // 8  # the rest is for essential messages
        self._half_bytes = buffer_bytes // 2
        self._low_bytes = buffer_bytes // 4
        self._flight_limit_bytes = buffer_bytes // 6

    def take(self, message: Message) -> bool:
        """Take a message in at the end; False if it was skipped or refused.

        A droppable message is skipped beyond half of the buffer. Another one is refused when the buffer is full (an
        eighth is left for essential ones), and from then on all of its subject, until `take_holes`.
        """
        held_bytes = self.held_bytes + len(message.payload) + OVERHEAD_BYTES
        if held_bytes > self._half_bytes and message.droppable:
            self.counters.skipped += 1
            return False
        most_bytes = self._buffer_bytes if message.essential else self._full_bytes
        if held_bytes > most_bytes or (self.holes and message.subject in self.holes):
            self.refuse(message)
            return False
        self.held_bytes = held_bytes
        self.counters.published += 1
        self.backlog.append(message)
        return True

    def pass_through(self, message: Message, window: int) -> int:
        """Take a message in and put it in flight at once: its token; 0 where it must wait its turn or there is no room.

        What `take` and `launch` do, in one step, for when nothing waits.
        """
        flight = self.flight
        size = len(message.payload)
        held_bytes = self.held_bytes + size + OVERHEAD_BYTES
        if (
            self.backlog
            or self.holes
            or len(flight) >= window
            or self._flight_bytes >= self._flight_limit_bytes
            or held_bytes > self._half_bytes
        ):
            return 0
        self.held_bytes = held_bytes
        self._flight_bytes += size
        self.counters.published += 1
        self._token = token = self._token + 1
        flight[token] = message
        return token

    def refuse(self, message: Message) -> None:
        """Widen the hole of the message's subject by it; a droppable message leaves none."""
        if message.droppable:
            self.counters.skipped += 1
            return
        self.counters.refused += 1
        hole = self.holes.get(message.subject)
        if hole is None:
            hole = Hole(message.subject, message.id, message.id, None, None, 0)
            self.holes[message.subject] = hole
        hole.count += 1
        hole.last_id = message.id
        if message.ts_ms is not None:
            hole.last_ts_ms = message.ts_ms
            hole.first_ts_ms = message.ts_ms if hole.first_ts_ms is None else hole.first_ts_ms

    def take_holes(self) -> list[Hole]:
        """Hand the holes over; their subjects are open again."""
        holes, self.holes = self.holes, {}
        return list(holes.values())

    @property
    def may_resume(self) -> bool:
        """There are holes, and the buffer has drained to a quarter."""
        return bool(self.holes) and self.held_bytes <= self._low_bytes

    def can_launch(self, window: int) -> bool:
        """Something waits, and the window of unacknowledged messages has room."""
        return (
            bool(self.backlog) and len(self.flight) < window and self._flight_bytes < self._flight_limit_bytes
        )

    def launch(self) -> tuple[int, Message, bool]:
        """Put the first waiting message in flight: its token, itself, and whether it was sent before."""
        message = self.backlog.popleft()
        resend = self._resend_left > 0
        if resend:
            self._resend_left -= 1
            self.counters.resent += 1
        self._token += 1
        self.flight[self._token] = message
        self._flight_bytes += len(message.payload)
        return self._token, message, resend

    def land(self, token: int) -> Message | None:
        """Let go of a message in flight that is done with; None if it is not in flight."""
        message = self.flight.pop(token, None)
        if message is None:
            return None
        if self.rejected:
            self.rejected.discard(token)
        size = len(message.payload)
        self._flight_bytes -= size
        self.held_bytes -= size + OVERHEAD_BYTES
        return message

    def requeue(self) -> None:
        """Put all that is in flight back to the head of the backlog, in the order it was sent."""
        self.backlog.extendleft(reversed(self.flight.values()))
        self._resend_left += len(self.flight)
        self.flight.clear()
        self.rejected.clear()
        self._flight_bytes = 0

    def unsure(self) -> dict[str, dict[str, int]]:
        """Per subject the messages in flight the stream may hold: token by id, in order of sending."""
        found: dict[str, dict[str, int]] = {}
        for token, message in self.flight.items():
            if token not in self.rejected:
                # The first of two equal ids counts: what lies between them is then sent again, never taken for stored.
                found.setdefault(message.subject, {}).setdefault(message.id, token)
        return found

    @property
    def all_answered(self) -> bool:
        """Something was rejected, and nothing else is in flight any more."""
        return 0 < len(self.rejected) == len(self.flight)

    @property
    def oldest(self) -> int | None:
        """Token of the oldest message in flight."""
        return next(iter(self.flight), None)

    @property
    def newest(self) -> int:
        """Token given last."""
        return self._token

    @property
    def unacknowledged(self) -> int:
        """Messages taken in and not acknowledged: waiting or in flight."""
        return len(self.flight) + len(self.backlog)
