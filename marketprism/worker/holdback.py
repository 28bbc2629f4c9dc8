"""A gap of a book is told only if the stream has it, too.

What this worker missed, another collector may have published. So a gap is held back, with all that follows it of this
book, until the stream has been asked. Where it reaches as far as the new book there is no hole, and only what goes
beyond is published. Where it does not within `WAIT_S`, or cannot be asked, the gap is told.

Why the last message will do: nobody publishes of a book without having told, or seen covered, what it missed before.
So whoever wrote the last message answers for the way there.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from marketprism.events import Event, Gap, OrderBookDelta, decode
from marketprism.worker.nats_link import LinkError

log = logging.getLogger(__name__)

WAIT_S = 2.0  # how far another collector may be behind
LOOK_EVERY_S = 0.25
_ANEW_MS = 10_000  # ids may begin anew from a smaller one: a time so much later counts for more than an id
# Of these, nothing that was published is wrong. After the others (crossed, checksum, audit) a book must be begun anew.
_HELD = frozenset({"disconnect", "malformed", "overflow", "restart", "sequence"})

Look = Callable[[Iterable[str]], Awaitable[Mapping[str, tuple[str, bytes]]]]
"""Message id and payload of the last message of each subject. Raises LinkError."""


@dataclass(slots=True)
class Doubt:
    """A gap of one book, and what came after it."""

    gap: Gap
    deadline_s: float | None  # None: somebody goes on publishing, wait for the new book
    events: list[tuple[Event, int]] = field(default_factory=list)
    begun: OrderBookDelta | None = None  # the new book
    first: OrderBookDelta | None = None  # the first change of it
    settled: bool = False

    def add(self, event: Event, read_ns: int, now_s: float) -> None:
        """The next event of this book."""
        self.events.append((event, read_ns))
        data = event.data
        if isinstance(data, Gap):
            self.begun = self.first = None
        elif isinstance(data, OrderBookDelta):
            if self.begun is None:
                self.begun = data
                self.deadline_s = now_s + WAIT_S if self.deadline_s is None else self.deadline_s
            elif self.first is None and data.update_type == "delta":
                self.first = data

    def covered(self, last: OrderBookDelta | None) -> bool:
        """Whether a stream that ends with `last` holds what was missed."""
        if last is None:  # it holds nothing: then nothing is missing after it
            return self.gap.last_id_before is None
        if self.begun is None:
            if _beyond(last, self.gap):
                self.deadline_s = None
            return False
        return reaches(last, self.begun) or (self.first is not None and _joins(last, self.first))


class Holdback:
    """The books in doubt, by the subject of their changes."""

    def __init__(self, publish: Callable[[Event, int], None], flush: Callable[[], None], look: Look) -> None:
        """`publish(event, read_ns)` gets what is let go, and may ask `takes` about it; `flush()`: that is all of it."""
        self.doubts: dict[str, Doubt] = {}
        self._publish = publish
        self._flush = flush
        self._look = look
        self._wake = asyncio.Event()

    def takes(self, event: Event, read_ns: int) -> bool:
        """Whether this event is held back. Asked for each event while there is a doubt, and for each gap."""
        if event.kind is Gap:
            gap = event.data
            assert isinstance(gap, Gap)
            return self._takes_gap(event, gap, read_ns)
        doubt = self.doubts.get(event.subject)
        if doubt is None or doubt.settled:
            return False
        doubt.add(event, read_ns, time.monotonic())
        return True

    def _takes_gap(self, event: Event, gap: Gap, read_ns: int) -> bool:
        if gap.affected_data_type != "orderbook_delta" or gap.cause not in _HELD:
            return False
        if gap.last_id_before is None and gap.cause != "restart":
            return False  # without ids there is nothing to compare
        subject = event.subject.replace("gap.", "orderbook_delta.", 1)
        doubt = self.doubts.get(subject)
        if doubt is not None and doubt.settled:
            return False
        now_s = time.monotonic()
        if doubt is None:
            doubt = self.doubts[subject] = Doubt(gap, now_s + WAIT_S)
        doubt.add(event, read_ns, now_s)
        self._wake.set()
        return True

    async def run(self) -> None:
        """Ask the stream while there are doubts; returns only by cancellation."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self.doubts:
                await self._ask([s for s, d in self.doubts.items() if d.deadline_s is not None])
                await asyncio.sleep(LOOK_EVERY_S)

    def close(self) -> None:
        """The end: what cannot be asked any more is told. What somebody goes on publishing is not missing."""
        for subject, doubt in list(self.doubts.items()):
            if doubt.deadline_s is not None:
                self._tell(subject)

    async def _ask(self, subjects: list[str]) -> None:
        if not subjects:
            return
        try:
            found = await self._look(subjects)
        except LinkError:
            found = None
        now_s = time.monotonic()
        for subject in subjects:
            doubt = self.doubts.get(subject)
            if doubt is None:
                continue
            last = _last(found, subject)
            if found is not None and doubt.covered(last):
                self._drop(subject, last)
            elif doubt.deadline_s is not None and now_s >= doubt.deadline_s:
                self._tell(subject)

    def _drop(self, subject: str, last: OrderBookDelta | None) -> None:
        """No hole: publish what goes beyond the end of the stream."""
        gap = self.doubts[subject].gap
        if last is not None:
            text = "%s: the stream holds all that was missed after id %s: no gap"
            log.info(text, gap.instrument_id, gap.last_id_before, extra={"event": "covered"})
        self._let_go(
            subject, lambda data: isinstance(data, OrderBookDelta) and not (last and reaches(last, data))
        )

    def _tell(self, subject: str) -> None:
        self._let_go(subject, lambda _: True)

    def _let_go(self, subject: str, wanted: Callable[[object], bool]) -> None:
        doubt = self.doubts[subject]
        doubt.settled = True
        for event, read_ns in doubt.events:
            if wanted(event.data):
                self._publish(event, read_ns)
        del self.doubts[subject]
        self._flush()


def reaches(held: OrderBookDelta, data: OrderBookDelta) -> bool:
    """Whether a book in the state that `held` leads to knows all that `data` tells."""
    if held.last_update_id is None or data.last_update_id is None:
        return False
    if held.last_update_id == data.last_update_id:
        return True
    later_ms = (held.ts_ms or held.collected_ts_ms) - (data.ts_ms or data.collected_ts_ms)
    if later_ms < -_ANEW_MS:
        return False
    if held.exchange == "okx":  # after a reset a greater id may be from before: its time tells
        return later_ms > _ANEW_MS or (later_ms >= 0 and held.last_update_id > data.last_update_id)
    return held.last_update_id > data.last_update_id


def _joins(held: OrderBookDelta, delta: OrderBookDelta) -> bool:
    """Whether a change that is newer than `held` begins no later than that ends."""
    if held.last_update_id is None or delta.prev_update_id is None:
        return False
    if held.exchange == "okx":
        return delta.prev_update_id == held.last_update_id
    return delta.prev_update_id <= held.last_update_id


def _beyond(last: OrderBookDelta, gap: Gap) -> bool:
    """Whether the stream goes on after what this worker published last."""
    if last.last_update_id is None or gap.last_id_before is None:
        return False
    if last.exchange == "okx":
        later = (last.ts_ms or 0) >= (gap.last_ts_ms_before or 0)
        return later and str(last.last_update_id) != gap.last_id_before
    return last.last_update_id > int(gap.last_id_before)


def _last(found: Mapping[str, tuple[str, bytes]] | None, subject: str) -> OrderBookDelta | None:
    """The last message of a subject, if it is one of ours."""
    if found is None or subject not in found:
        return None
    try:
        data = decode(found[subject][1])
    except msgspec.DecodeError:
        return None
    return data if isinstance(data, OrderBookDelta) else None
