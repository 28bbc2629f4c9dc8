"""Trades that REST brought: only those are published that the stream does not hold.

Another collector may have published them live, perhaps longer ago than the stream's duplicate window reaches, or summed
up, as OKX does on a websocket and not over REST. A gap of trades is told only if they are not there either. What
follows them of the same subject waits, too: see `venues.trades` for why trades are published in order.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import inf

import msgspec

from marketprism.events import Event, Gap, Trade, decode
from marketprism.logs import RateLimitedLog
from marketprism.worker.nats_link import LinkError

MARGIN_S = 60  # between the exchange's clock and that of NATS

Look = Callable[[Iterable[str]], Awaitable[Mapping[str, tuple[str, bytes]]]]
"""Message id and payload of the last message of each subject. Raises LinkError."""

Read = Callable[[str, float], Awaitable[list[bytes]]]
"""The payloads of a subject stored since (seconds since the epoch). Raises LinkError."""


@dataclass(slots=True)
class Waiting:
    """A trade or a gap of trades."""

    event: Event
    read_ns: int
    late: bool  # the stream may hold it; if not, it only follows such a one


class Backfill:
    """Trades and gaps of trades that wait until the stream has been asked, and what follows them, by subject."""

    def __init__(
        self,
        publish: Callable[[Event, int], None],
        flush: Callable[[], None],
        look: Look,
        read: Read,
        log: RateLimitedLog,
    ) -> None:
        """`publish(event, read_ns)` gets what is let go, and may ask `takes` about it; `flush()`: that is all of it."""
        self.waiting: dict[str, list[Waiting]] = {}
        self._publish = publish
        self._flush = flush
        self._look = look
        self._read = read
        self._log = log
        self._wake = asyncio.Event()
        self._releasing = False

    def takes(self, event: Event, read_ns: int) -> bool:
        """Whether this event waits. Asked for each gap, and for each event while something waits."""
        if self._releasing:
            return False
        if event.kind is Gap:
            gap = event.data
            assert isinstance(gap, Gap)
            if gap.affected_data_type != "trade":
                return False
            if numbers(gap):
                self.take(event, read_ns)
                return True
        queue = self.waiting.get(_subject(event))
        if queue is None:
            return False
        queue.append(Waiting(event, read_ns, late=False))
        return True

    def take(self, event: Event, read_ns: int) -> None:
        """A trade that REST brought, or a gap of trades."""
        self.waiting.setdefault(_subject(event), []).append(Waiting(event, read_ns, late=True))
        self._wake.set()

    async def run(self) -> None:
        """Publish what is missing; returns only by cancellation."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._decide()

    async def finish(self, timeout_s: float) -> None:
        """The end: decide what waits. After `timeout_s` all is published, and the ids have to keep out the rest."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._decide()
        for subject, queue in list(self.waiting.items()):
            self._let_go(subject, len(queue), set())

    async def _decide(self) -> None:
        # What comes while the stream is asked waits for the next round.
        counts = {subject: len(queue) for subject, queue in self.waiting.items()}
        ends = await self._ends(counts)
        for subject, count in counts.items():
            data = [w.event.data for w in self.waiting[subject][:count]]
            first = min((n.start for d in data if (n := numbers(d))), default=inf)
            held = await self._held(subject, data) if ends.get(subject, 0) > first else set()
            self._let_go(subject, count, held)

    async def _ends(self, subjects: Iterable[str]) -> dict[str, float]:
        """The number after that of each subject's last trade in the stream; infinity where it has none.

        Nobody publishes a trade without having published or told all that is before it (`venues.trades`). So a stream
        that ends before a trade does not hold it.
        """
        try:
            found = await self._look(subjects)
        except LinkError as e:
            self._log.warning("last trades", "the stream's last trades could not be read: %s", e)
            return {}
        return {subject: _stored(payload).stop or inf for subject, (_, payload) in found.items()}

    async def _held(self, subject: str, waiting: Iterable[object]) -> set[int]:
        """The running numbers of the trades in the stream that may be among these."""
        since_s = min(_since_ms(d) for d in waiting) / 1000 - MARGIN_S
        try:
            payloads = await self._read(subject, since_s)
        except LinkError as e:
            self._log.warning(subject, "%s: what the stream holds could not be read: %s", subject, e)
            return set()
        held: set[int] = set()
        for payload in payloads:
            held.update(_stored(payload))
        return held

    def _let_go(self, subject: str, count: int, held: set[int]) -> None:
        queue = self.waiting.pop(subject)
        if any(w.late for w in queue[count:]):
            queue, self.waiting[subject] = queue[:count], queue[count:]
            self._wake.set()
        self._releasing = True
        for w in queue:
            if not (held and (n := numbers(w.event.data)) and held.issuperset(n)):
                self._publish(w.event, w.read_ns)
        self._releasing = False
        self._flush()


def _stored(payload: bytes) -> range:
    """The running numbers of a stored trade; empty for what an earlier system or a stranger stored."""
    try:
        data = decode(payload)
        return numbers(data) if isinstance(data, Trade) else range(0)
    except (msgspec.DecodeError, ValueError):
        return range(0)


def numbers(data: object) -> range:
    """The running numbers that a trade sums up, or that a gap tells as missing; empty for a gap without."""
    if isinstance(data, Gap) and data.missing is not None:
        return range(int(data.last_id_before or 0) + 1, int(data.first_id_after or 0))
    if not isinstance(data, Trade):
        return range(0)
    last = data.trade_seq or int(data.trade_id)
    first = int(data.first_trade_id) if data.exchange == "okx" and data.first_trade_id else last
    return range(first, last + 1)


def _since_ms(data: object) -> int:
    if isinstance(data, Gap):
        return data.last_ts_ms_before or data.collected_ts_ms
    assert isinstance(data, Trade)
    return data.trade_ts_ms


def _subject(event: Event) -> str:
    return event.subject.replace("gap.", "trade.", 1) if event.kind is Gap else event.subject
