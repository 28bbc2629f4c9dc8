"""Trades that REST brought: only those are published that the stream does not hold.

Another collector may have published them live, perhaps longer ago than the stream's duplicate window reaches, or summed
up, as OKX does on a websocket and not over REST. A gap of trades is told only if they are not there either.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress

import msgspec

from marketprism.events import Event, Gap, Trade, decode
from marketprism.worker.nats_link import LinkError

log = logging.getLogger(__name__)

MARGIN_S = 60  # between the exchange's clock and that of NATS

Read = Callable[[str, float], Awaitable[list[bytes]]]
"""The payloads of a subject stored since (seconds since the epoch). Raises LinkError."""


class Backfill:
    """Trades and gaps of trades that wait until the stream has been read."""

    def __init__(self, publish: Callable[[Event, int], None], flush: Callable[[], None], read: Read) -> None:
        """`publish(event, read_ns)` gets what is let go; `flush()`: that is all of it."""
        self._publish = publish
        self._flush = flush
        self._read = read
        self._waiting: dict[str, list[tuple[Event, int]]] = defaultdict(list)
        self._wake = asyncio.Event()
        self._releasing = False

    def takes_gap(self, event: Event, read_ns: int) -> bool:
        """Whether this is a gap whose trades may be in the stream; then it waits."""
        data = event.data
        known = isinstance(data, Gap) and data.affected_data_type == "trade" and data.missing is not None
        if not known or self._releasing or not numbers(data):
            return False
        self.take(event, read_ns)
        return True

    def take(self, event: Event, read_ns: int) -> None:
        """A trade that REST brought, or a gap of trades."""
        self._waiting[_subject(event)].append((event, read_ns))
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
        for subject, waiting in list(self._waiting.items()):
            self._let_go(subject, len(waiting), set())

    async def _decide(self) -> None:
        for subject in list(self._waiting):
            # What comes while the stream is read waits for the next round.
            count = len(self._waiting[subject])
            held = await self._held(subject, (e for e, _ in self._waiting[subject]))
            self._let_go(subject, count, held)

    async def _held(self, subject: str, events: Iterable[Event]) -> set[int]:
        """The running numbers of the trades in the stream that may be among these."""
        times_ms = [_since_ms(event.data) for event in events]
        try:
            payloads = await self._read(subject, min(times_ms) / 1000 - MARGIN_S)
        except LinkError as e:
            log.warning("%s: what the stream holds could not be read: %s", subject, e)
            return set()
        held: set[int] = set()
        for payload in payloads:
            try:
                data = decode(payload)
            except msgspec.DecodeError:
                continue  # of an earlier system
            if isinstance(data, Trade):
                held.update(numbers(data))
        return held

    def _let_go(self, subject: str, count: int, held: set[int]) -> None:
        waiting = self._waiting.pop(subject)
        if waiting[count:]:
            self._waiting[subject] = waiting[count:]
            self._wake.set()
        self._releasing = True
        for event, read_ns in waiting[:count]:
            if not held.issuperset(numbers(event.data)):
                self._publish(event, read_ns)
        self._releasing = False
        self._flush()


def numbers(data: object) -> range:
    """The running numbers that a trade sums up, or that a gap of trades tells as missing."""
    if isinstance(data, Gap):
        return range(int(data.last_id_before or 0) + 1, int(data.first_id_after or 0))
    assert isinstance(data, Trade)
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
