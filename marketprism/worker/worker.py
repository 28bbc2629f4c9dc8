"""A collector whose events go to NATS, and how it is."""

import asyncio
import gc
import logging
import time
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from marketprism import __version__
from marketprism.config import ExchangeSettings, Settings
from marketprism.events import AnyPayload, Event, Gap, OrderBook, OrderBookDelta, Payload, Trade
from marketprism.logs import RateLimitedLog, act_as
from marketprism.memory import MB, Memory
from marketprism.venues.base import MS, Instrument, Out
from marketprism.worker.backfill import Backfill, numbers
from marketprism.worker.collector import Collector
from marketprism.worker.holdback import Holdback
from marketprism.worker.options import publisher_options, stream_preparation
from marketprism.worker.publisher import Hole, LinkError, Message, Publisher
from marketprism.worker.recorder import recorder
from marketprism.worker.state import StateFile
from marketprism.worker.vitals import Figures, Vitals

log = logging.getLogger(__name__)

FLUSH_S = 1.0
BACKFILL_S = 2.0
DRAIN_S = 5.0  # with the former: of the ten seconds a stop may take
RESUME_RETRY_S = 1.0
STUCK_S = 10.0
MINUTES_AN_HOUR = 60


class Worker:
    """One exchange, running."""

    def __init__(self, settings: Settings, name: str, memory: Memory, runtime_dir: Path) -> None:
        """`memory` is the process's, which may run other workers too. `runtime_dir` holds the state file."""
        self.name = name
        self.exchange = settings.exchanges[name]
        self.vitals = Vitals(name)
        self.publisher = Publisher(
            publisher_options(settings.nats, name),
            self._on_resume,
            self.vitals.latency.observe,
            self.vitals.acknowledged.observe,
            stream_preparation(settings.nats),
        )
        self._recorder = recorder(settings.recording, name)
        self._stream = settings.nats.stream.name
        flush = self.publisher.flush
        self._log = RateLimitedLog(log)
        stored_since = partial(self.publisher.stored_since, self._stream)
        self._backfill = Backfill(self._publish, flush, self._last_ids, stored_since, self._log)
        self._holdback = Holdback(self._publish, flush, self._last_ids)
        self.collector = Collector(self.exchange, self._publish, flush, self._recorder, self._publish_answer)
        self._memory = memory
        self._state = StateFile(runtime_dir, name)
        self._counts: Counter[type[Payload]] = Counter()
        self._last_s: dict[type[Payload], float] = {}
        self._gaps: Counter[tuple[str, str]] = Counter()
        self._gaps_by_minute: Counter[int] = Counter()
        self._told = time.monotonic(), 0  # when a status was asked for, and how much had been published
        self._turned_s = self._progress_s = time.monotonic()
        self._acknowledged = 0
        self._ack_patience_s = 2 * settings.nats.publish.ack_timeout_s
        # First and last event that NATS had no room for, by subject.
        self._lost: dict[str, tuple[Event, Event]] = {}

    async def run(self) -> None:
        """Collect and publish until cancelled. Whatever ends it otherwise is a defect and is raised."""
        act_as(self.name)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._flush_regularly())
            tasks.create_task(self._holdback.run())
            tasks.create_task(self._backfill.run())
            tasks.create_task(self._admit())
            await self.publisher.connect()
            await self.collector.run(before_feeds=self._resume)

    def change(self, exchange: ExchangeSettings) -> None:
        """Other symbols or poll intervals from now on; what goes on being wanted is not touched."""
        self.exchange = exchange
        self.collector.change(exchange)

    async def stop(self, reason: str) -> None:
        """Publish what is still owed and wait until NATS has it all. `reason` is left in the state file."""
        act_as(self.name)
        self._holdback.close()
        await self._backfill.finish(BACKFILL_S)
        left = await self.publisher.drain(DRAIN_S)
        if left:
            log.error(
                "stopped with %d messages that NATS did not acknowledge", left, extra={"event": "unsent"}
            )
        await self.publisher.close()
        if self._recorder is not None:
            self._recorder.close()
        figures = self.figures()
        self.vitals.flush(figures)
        self._state.end(reason, self._summary(figures))

    async def _resume(self) -> None:
        """Where an earlier run stopped, by the stream's own word; without it a restart would be a silent hole."""
        venue = self.collector.venue
        venue.resume(await self._last_payloads(venue.resume_subjects()))
        # What is there now stays: without it a full collection takes a thousandth of the 30 ms it would.
        gc.collect()
        gc.freeze()

    async def _admit(self) -> None:
        """Collect what a reload has added, when it is known what the stream holds of it."""
        collector = self.collector
        while True:
            await collector.arrived.wait()
            collector.arrived.clear()
            ids = collector.venue.arrivals()
            if ids:
                collector.admit(ids, await self._last_payloads(collector.venue.resume_subjects(ids)))

    async def _last_payloads(self, subjects: Iterable[str]) -> list[bytes]:
        """The last message of each subject, as soon as NATS can be asked."""
        subjects = list(subjects)
        while True:
            try:
                return [payload for _, payload in (await self._last_ids(subjects)).values()]
            except LinkError as e:
                self._log.warning("resume", "waiting for NATS before collecting: %s", e, event="waiting")
                await asyncio.sleep(RESUME_RETRY_S)

    async def _last_ids(self, subjects: Iterable[str]) -> dict[str, tuple[str, bytes]]:
        return await self.publisher.last_ids(self._stream, subjects)

    async def _flush_regularly(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            if not self.publisher.alive:  # nothing would ever be published again: only a restart helps
                raise RuntimeError("the publisher has ended")
            self._turned_s = time.monotonic()
            figures = self.figures()
            self.vitals.flush(figures)
            self._state.write(self._summary(figures))
            self._log.flush()
            self.collector.log.flush()
            if self._recorder is not None:
                self._recorder.flush()

    # -- events ------------------------------------------------------------------------------------------------

    def _publish(self, event: Event, read_ns: int) -> None:
        kind = event.kind
        asked_about = kind is Gap or self._holdback.doubts or self._backfill.waiting
        if asked_about and self._held_back(event, read_ns):
            return
        essential = kind is Gap
        message = Message(
            event.subject, event.id, event.payload, kind is OrderBook, event.ts_ms, read_ns, essential
        )
        if self.publisher.publish(message, more=True):  # the collector flushes
            self._counts[kind] += 1
            self._last_s[kind] = event.collected_ts_ms / 1000
        elif not message.droppable:
            ends = [*self._lost.get(event.subject, ()), event]
            if kind is Trade:  # REST may bring old ones
                ends.sort(key=lambda one: numbers(one.data).start)
            self._lost[event.subject] = ends[0], ends[-1]
        if kind is Gap:
            self._tell(event.data)

    def _held_back(self, event: Event, read_ns: int) -> bool:
        """Whether the stream is asked first, since another collector may have published what is missing here."""
        return self._holdback.takes(event, read_ns) or self._backfill.takes(event, read_ns)

    def _publish_answer(self, event: Event, read_ns: int) -> None:
        """What REST brought. Another collector may have published its trades."""
        if event.kind is Trade:
            self._backfill.take(event, read_ns)
        else:
            self._publish(event, read_ns)

    def _tell(self, gap: AnyPayload) -> None:
        assert isinstance(gap, Gap)
        self._gaps[gap.affected_data_type, gap.cause] += 1
        self._gaps_by_minute[int(time.time() // 60)] += 1
        known = (
            ("after id", gap.last_id_before),
            ("before id", gap.first_id_after),
            ("missing", gap.missing),
            ("", gap.detail or None),
        )
        parts = [gap.cause, *(f"{name} {value}".strip() for name, value in known if value is not None)]
        self._log.warning(
            f"gap:{gap.instrument_id}:{gap.affected_data_type}",
            "gap in %s of %s: %s",
            gap.affected_data_type,
            gap.instrument_id,
            ", ".join(parts),
            event="gap",
            symbol=gap.symbol,
        )

    def _on_resume(self, holes: list[Hole]) -> None:
        """NATS was away for longer than the buffer lasts: tell what is missing, and publish each book whole."""
        venue = self.collector.venue
        by_subject = {
            m.instrument.subject(t): (m.instrument, t)
            for m in venue.markets.values()
            for t in (*venue.options.data_types, "orderbook_delta")
        }
        now_ns = time.time_ns()
        out: Out = []
        books: list[str] = []
        for hole in holes:
            found = by_subject.get(hole.subject)
            if found is None:
                log.error("%d messages of %s were lost for want of room", hole.count, hole.subject)
                continue
            instrument, data_type = found
            ends = self._lost.pop(hole.subject, None)
            lost = (ends[0].data, ends[1].data) if ends else None
            out.append(overflow_gap(instrument, data_type, hole, lost, now_ns))
            if data_type == "orderbook_delta":
                books.append(instrument.id)
        self.collector.handle(out + venue.republish(books, now_ns))

    # -- how it is ---------------------------------------------------------------------------------------------

    @property
    def delivering(self) -> bool:
        """Whether it does what it is there for: a book is live or, where none is kept, something is published."""
        books = [m.book for m in self.collector.venue.markets.values() if m.book is not None]
        return any(b.live for b in books) if books else self.publisher.counters.acknowledged > 0

    def status(self) -> str:
        """One line for a person, over the time since the last one: `live 4/4 books, 812 msg/s, p99 0.6 ms, nats ok`."""
        (then_s, then), now_s, published = self._told, time.monotonic(), sum(self._counts.values())
        self._told = now_s, published
        rate = (published - then) / max(now_s - then_s, 1e-3)
        p99_ms = self.vitals.latency.p99_ms()
        live, expected = self._live_books()
        parts = [f"live {live}/{expected} books"] if expected else []
        parts += [f"{rate:.0f} msg/s", f"p99 {p99_ms:g} ms" if p99_ms else "p99 -", f"nats {self._nats()}"]
        fine = live == expected and self.delivering and self.publisher.flowing
        return ("" if fine else "degraded: ") + ", ".join(parts)

    def stuck(self) -> str:
        """What stands still although nothing outside is in the way, so that a restart would help; "": nothing."""
        now_s, acknowledged = time.monotonic(), self.publisher.counters.acknowledged
        if acknowledged != self._acknowledged or not (self.publisher.flowing and self.publisher.in_flight):
            self._acknowledged, self._progress_s = acknowledged, now_s
        if now_s - self._progress_s > self._ack_patience_s:
            return f"nothing was acknowledged in {now_s - self._progress_s:.0f} s, though NATS is connected"
        if now_s - self._turned_s > STUCK_S:
            return f"what is done every second was not done in {now_s - self._turned_s:.0f} s"
        return self.collector.stuck()

    def _live_books(self) -> tuple[int, int]:
        """How many books are live, and how many should be."""
        venue = self.collector.venue
        books = [m.book for m in venue.markets.values() if m.book is not None]
        return sum(b.live for b in books), len(books) + (venue.keeps_books and len(venue.coming))

    def _nats(self) -> str:
        return "ok" if self.publisher.flowing else self.publisher.last_error or "not connected"

    def _summary(self, f: Figures) -> dict[str, Any]:
        """What the state file tells."""
        minute = int(time.time() // 60)
        for over in [m for m in self._gaps_by_minute if m <= minute - MINUTES_AN_HOUR]:
            del self._gaps_by_minute[over]
        limits = self._memory.limits
        return {
            "version": __version__,
            "live_books": f.gauges["live_books"],
            "expected_books": f.gauges["expected_books"],
            "symbols": list(self.exchange.symbols),
            "last_data_ts_ms": {t: round(at_s * 1000) for t, at_s in f.last_data_s.items()},
            "gaps_last_hour": self._gaps_by_minute.total(),
            "memory": {
                "current_bytes": self._memory.read(),
                "soft_bytes": limits.soft_mb * MB,
                "hard_bytes": limits.hard_mb * MB,
                "soft_exceeded": self._memory.soft_exceeded,
            },
            "nats": self._nats(),
        }

    def figures(self) -> Figures:
        """The worker's state now."""
        venue, feeds = self.collector.venue, self.collector.feeds.values()
        books = [m.book for m in venue.markets.values() if m.book is not None]
        heard_s = [b.heard_ns / 1e9 for b in books if b.live]
        counters = self.publisher.counters
        live, expected = self._live_books()
        resyncs: Counter[str] = Counter()
        for book in books:
            resyncs.update(book.resyncs)
        return Figures(
            data={tag(kind): n for kind, n in self._counts.items()},
            gaps=self._gaps,
            errors=self.collector.errors,
            frames=self.collector.frames,
            reconnections=sum(f.reconnections for f in feeds),
            resyncs=resyncs,
            audits=venue.auditor.counts,
            requests=self.collector.poller.requests,
            published=counters.acknowledged,
            publish_errors=counters.errors,
            skipped=counters.skipped,
            last_data_s={tag(kind): at_s for kind, at_s in self._last_s.items()},
            expected_data=venue.options.data_types,
            gauges={
                "live_books": live,
                "expected_books": expected,
                "websocket_connected": sum(f.connected for f in feeds),
                "websocket_expected": len(venue.sockets()) if venue.ready else 1,
                "channels_missing": venue.missing_channels,
                "nats_connected": self.publisher.flowing,
                "publish_backlog_messages": self.publisher.unacknowledged,
                "publish_backlog_bytes": self.publisher.backlog_bytes,
                "last_book_timestamp_seconds": min(heard_s, default=0.0),
                "memory_soft_exceeded": self._memory.soft_exceeded,
            },
        )


def tag(kind: type[Payload]) -> str:
    """The data type of a payload."""
    return str(kind.__struct_config__.tag)


def overflow_gap(
    i: Instrument, data_type: str, hole: Hole, lost: tuple[AnyPayload, AnyPayload] | None, now_ns: int
) -> Event:
    """The gap that tells what there was no room for; `lost` is its first and its last event, where they are known."""
    before, after = _ids_around(*lost) if lost else (None, None)
    gap = Gap(
        exchange=i.exchange,
        market_type=i.market_type,
        symbol=i.symbol,
        instrument_id=i.id,
        ts_ms=hole.last_ts_ms,
        collected_ts_ms=now_ns // MS,
        affected_data_type=data_type,
        cause="overflow",
        last_id_before=before,
        first_id_after=after,
        last_ts_ms_before=hole.first_ts_ms,
        first_ts_ms_after=hole.last_ts_ms,
        missing=hole.count,
        detail=f"first lost message {hole.first_id}, last {hole.last_id}",
    )
    return Event.of(i.subject("gap"), i.event_id("gap", f"{data_type}:{hole.first_id}:{hole.last_id}"), gap)


def _ids_around(first: AnyPayload, last: AnyPayload) -> tuple[str | None, str | None]:
    """The ids before and after what is missing, where they are running numbers."""
    if isinstance(first, Trade) and isinstance(last, Trade):
        return str(numbers(first).start - 1), str(numbers(last).stop)
    if isinstance(first, OrderBookDelta):
        before = (
            first.prev_update_id if first.prev_update_id is not None else (first.first_update_id or 0) - 1
        )
        return (str(before) if before >= 0 else None), None
    return None, None
