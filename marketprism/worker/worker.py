"""A collector whose events go to NATS, and how it is."""

import asyncio
import gc
import logging
import signal
import time
from collections import Counter
from collections.abc import Iterable
from functools import partial

from marketprism import parent
from marketprism.config import MemoryLimits, Settings
from marketprism.events import AnyPayload, Event, Gap, OrderBook, OrderBookDelta, Payload, Trade, encode
from marketprism.logs import RateLimitedLog, act_as
from marketprism.venues.base import MS, Instrument, Out
from marketprism.worker.backfill import Backfill
from marketprism.worker.collector import Collector
from marketprism.worker.holdback import Holdback
from marketprism.worker.options import publisher_options, stream_preparation
from marketprism.worker.publisher import Hole, LinkError, Message, Publisher
from marketprism.worker.recorder import recorder
from marketprism.worker.vitals import Figures, Memory, Vitals

log = logging.getLogger(__name__)

FLUSH_S = 1.0
MEMORY_S = 0.25
BACKFILL_S = 2.0
DRAIN_S = 5.0  # with the former: of the ten seconds a stop may take
STOP_S = 10
EX_TEMPFAIL = 75
RESUME_RETRY_S = 1.0


class Worker:
    """One exchange, running."""

    def __init__(self, settings: Settings, name: str, memory: Memory) -> None:
        """`memory` is the process's, which may run other workers too."""
        self.name = name
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
        self._backfill = Backfill(self._publish, flush, partial(self.publisher.stored_since, self._stream))
        self._holdback = Holdback(self._publish, flush, self._last_ids)
        self.collector = Collector(
            settings.exchanges[name], self._publish, flush, self._recorder, self._backfill.take
        )
        self._memory = memory
        self._log = RateLimitedLog(log)
        self._counts: Counter[type[Payload]] = Counter()
        self._last_s: dict[type[Payload], float] = {}
        self._gaps: Counter[tuple[str, str]] = Counter()
        # First and last event that NATS had no room for, by subject.
        self._lost: dict[str, tuple[AnyPayload, AnyPayload]] = {}

    async def run(self) -> None:
        """Collect and publish until cancelled. Whatever ends it otherwise is a defect and is raised."""
        act_as(self.name)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._flush_regularly())
            tasks.create_task(self._holdback.run())
            tasks.create_task(self._backfill.run())
            await self.publisher.connect()
            await self.collector.run(before_feeds=self._resume)

    async def stop(self) -> None:
        """Publish what is still owed and wait until NATS has it all."""
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
        self.vitals.flush(self.figures())

    async def _resume(self) -> None:
        """Where an earlier run stopped, by the stream's own word; without it a restart would be a silent hole."""
        venue = self.collector.venue
        while True:
            try:
                last = await self._last_ids(venue.resume_subjects())
                break
            except LinkError as e:
                self._log.warning("resume", "waiting for NATS before collecting: %s", e, event="waiting")
                await asyncio.sleep(RESUME_RETRY_S)
        venue.resume(payload for _, payload in last.values())
        # What is there now stays: without it a full collection takes a thousandth of the 30 ms it would.
        gc.collect()
        gc.freeze()

    async def _last_ids(self, subjects: Iterable[str]) -> dict[str, tuple[str, bytes]]:
        return await self.publisher.last_ids(self._stream, subjects)

    async def _flush_regularly(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            if not self.publisher.alive:  # nothing would ever be published again: only a restart helps
                raise RuntimeError("the publisher has ended")
            self.vitals.flush(self.figures())
            self._log.flush()
            self.collector.log.flush()
            if self._recorder is not None:
                self._recorder.flush()

    # -- events ------------------------------------------------------------------------------------------------

    def _publish(self, event: Event, read_ns: int) -> None:
        data = event.data
        kind = type(data)
        if (kind is Gap or self._holdback.doubts) and self._held_back(event, read_ns):
            return
        message = Message(event.subject, event.id, encode(data), kind is OrderBook, data.ts_ms, read_ns)
        if self.publisher.publish(message, more=True):  # the collector flushes
            self._counts[kind] += 1
            self._last_s[kind] = data.collected_ts_ms / 1000
        elif not message.droppable:
            first, _ = self._lost.get(event.subject, (data, data))
            self._lost[event.subject] = first, data
        if isinstance(data, Gap):
            self._tell(data)

    def _held_back(self, event: Event, read_ns: int) -> bool:
        """Whether the stream is asked first, since another collector may have published what is missing here."""
        return self._holdback.takes(event, read_ns) or self._backfill.takes_gap(event, read_ns)

    def _tell(self, gap: Gap) -> None:
        self._gaps[gap.affected_data_type, gap.cause] += 1
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
            out.append(overflow_gap(instrument, data_type, hole, self._lost.pop(hole.subject, None), now_ns))
            if data_type == "orderbook_delta":
                books.append(instrument.id)
        self.collector.handle(out + venue.republish(books, now_ns))

    # -- how it is ---------------------------------------------------------------------------------------------

    def figures(self) -> Figures:
        """The worker's state now."""
        venue, feeds = self.collector.venue, self.collector.feeds.values()
        books = [m.book for m in venue.markets.values() if m.book is not None]
        heard_s = [b.heard_ns / 1e9 for b in books if b.live]
        counters = self.publisher.counters
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
            gauges={
                "live_books": sum(b.live for b in books),
                "expected_books": len(books),
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
    return Event(i.subject("gap"), i.event_id("gap", f"{data_type}:{hole.first_id}:{hole.last_id}"), gap)


def _ids_around(first: AnyPayload, last: AnyPayload) -> tuple[str | None, str | None]:
    """The ids before and after what is missing, where they are running numbers."""
    if isinstance(first, Trade) and isinstance(last, Trade):
        low = first.trade_seq or first.first_trade_id or first.trade_id
        high = last.trade_seq or last.last_trade_id or last.trade_id
        return str(int(low) - 1), str(int(high) + 1)
    if isinstance(first, OrderBookDelta):
        before = (
            first.prev_update_id if first.prev_update_id is not None else (first.first_update_id or 0) - 1
        )
        return (str(before) if before >= 0 else None), None
    return None, None


async def run_workers(settings: Settings, names: list[str]) -> int:
    """Run these exchanges in this process until told to stop. Returns the exit status."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    reload_text = "SIGHUP: a changed configuration takes effect when the worker is started again"
    loop.add_signal_handler(signal.SIGHUP, log.warning, reload_text)
    limits = [settings.memory[n] for n in names]
    soft_mb, hard_mb = sum(m.soft_mb for m in limits), sum(m.hard_mb for m in limits)
    memory = Memory(MemoryLimits(soft_mb=soft_mb, hard_mb=hard_mb))
    workers = [Worker(settings, name, memory) for name in names]
    running = [asyncio.create_task(w.run(), name=w.name) for w in workers]
    watching = asyncio.create_task(watch_memory(memory, workers))
    waiting = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait([*running, watching, waiting], return_when=asyncio.FIRST_COMPLETED)
    finally:
        parent.stop_within(STOP_S)
        for worker in workers:
            worker.collector.stop()
        for task in (*running, waiting):
            task.cancel()
        await asyncio.wait(running)
        await asyncio.gather(*(w.stop() for w in workers))
    failed = next((t for t in running if not t.cancelled() and t.exception() is not None), None)
    if failed is not None:
        log.critical("worker failed", exc_info=failed.exception(), extra={"event": "failed"})
        return 1
    if watching.done():
        return EX_TEMPFAIL
    watching.cancel()
    log.info("stopped", extra={"event": "stopped"})
    return 0


async def watch_memory(memory: Memory, workers: list[Worker]) -> None:
    """Warn at the soft limit and go on; return near the hard one, so that the worker stops in good order."""
    while True:
        await asyncio.sleep(MEMORY_S)
        verdict = memory.check()
        if verdict == "soft":
            for worker in workers:
                worker.vitals.warned()
            text = "memory %.0f MB is above the soft limit of %d MB"
            log.warning(text, memory.rss_mb(), memory.limits.soft_mb, extra={"event": "memory_soft"})
        elif verdict == "hard":
            text = (
                "memory %.0f MB is near the hard limit of %d MB: stopping in good order, to be started again"
            )
            log.error(text, memory.rss_mb(), memory.limits.hard_mb, extra={"event": "memory_hard"})
            return
