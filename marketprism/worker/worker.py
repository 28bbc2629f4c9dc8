"""Ties feed, poller, publisher and vitals to one venue."""

import asyncio
import logging
import signal
import time
from collections import Counter
from dataclasses import replace

from marketprism import parent
from marketprism.capture import Frame
from marketprism.config import Settings
from marketprism.events import Event, Gap, OrderBook, Payload, encode
from marketprism.logs import RateLimitedLog, act_as
from marketprism.venues import VENUES
from marketprism.venues.base import MS, Fetch, Instrument, Note, Out, Reconnect, Send
from marketprism.worker.feed import Feed
from marketprism.worker.options import publisher_options, stream_preparation, venue_options
from marketprism.worker.poller import Poller
from marketprism.worker.publisher import Hole, LinkError, Message, Publisher
from marketprism.worker.recorder import recorder
from marketprism.worker.vitals import Figures, Memory, Vitals

log = logging.getLogger(__name__)

TICK_S = 0.1
FLUSH_S = 1.0
DRAIN_S = 7.0  # of the ten seconds a stop may take
STOP_S = 10
EX_TEMPFAIL = 75
RESUME_RETRY_S = 1.0


class Worker:
    """One exchange, running."""

    def __init__(self, settings: Settings, name: str) -> None:
        exchange = settings.exchanges[name]
        self.name = name
        self.venue = VENUES[name](venue_options(exchange))
        self.vitals = Vitals(name)
        self.publisher = Publisher(
            publisher_options(settings.nats, name),
            self._on_resume,
            self.vitals.latency.observe,
            stream_preparation(settings.nats),
        )
        self.poller = Poller(
            exchange.base_url, self.venue.budgets, self, depth_base_url=exchange.orderbook.rest_base
        )
        self.feeds: dict[str, Feed] = {}
        self._exchange = exchange
        self._stream = settings.nats.stream.name
        self._recorder = recorder(settings.recording, name)
        self._log = RateLimitedLog(log)
        self._ready = asyncio.Event()
        self._counts: Counter[type[Payload]] = Counter()
        self._last_s: dict[type[Payload], float] = {}
        self._gaps: Counter[tuple[str, str]] = Counter()
        self._errors: Counter[str] = Counter()
        self._frames = 0
        self._read_ns = 0  # of the frame or answer being handled

    # -- running -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Collect until cancelled. Whatever ends it otherwise is a defect and is raised."""
        act_as(self.name)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._flush_regularly())
            await self.publisher.connect()
            tasks.create_task(self.poller.run())
            tasks.create_task(self._tick_regularly())
            self._do(self.venue.start(time.time_ns()))
            await self._ready.wait()
            await self._resume()
            for socket in self.venue.sockets():
                self.feeds[socket.name] = Feed(socket, self, self.venue.send_interval_s)
            for feed in self.feeds.values():
                tasks.create_task(feed.run())
            self.poller.schedule(self.venue.polls())
            log.info(
                "collecting %d instruments over %d sockets",
                len(self.venue.markets),
                len(self.feeds),
                extra={"event": "started"},
            )

    async def stop(self) -> None:
        """Publish what is still owed and wait until NATS has it all."""
        self._do(self.venue.finish(time.time_ns()))
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
        while True:
            try:
                last = await self.publisher.last_ids(self._stream, self.venue.resume_subjects())
                break
            except LinkError as e:
                self._log.warning("resume", "waiting for NATS before collecting: %s", e, event="waiting")
                await asyncio.sleep(RESUME_RETRY_S)
        self.venue.resume(payload for _, payload in last.values())

    async def _tick_regularly(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._handle(self.venue.tick(time.time_ns()))

    async def _flush_regularly(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            self.vitals.flush(self.figures())
            self._log.flush()
            if self._recorder is not None:
                self._recorder.flush()

    # -- what happens ------------------------------------------------------------------------------------------

    def opened(self, socket: str, conn: str) -> None:
        """A connection is open (see `feed.Driver`)."""
        log.info("connected: %s", conn, extra={"event": "connect"})
        self._handle(self.venue.opened(socket, conn, time.time_ns()))

    def received(self, conn: str, data: bytes, read_ns: int) -> None:
        """A frame came in."""
        now_ns = time.time_ns()
        self._frames += 1
        self._read_ns = read_ns
        if self._recorder is not None:
            self._recorder.write(Frame(now_ns, "ws", conn, data.decode("utf-8", "replace")))
        self._do(self.venue.receive(conn, data, now_ns))

    def sent(self, conn: str, text: str) -> None:
        """A message of ours went out."""
        if self._recorder is not None:
            self._recorder.write(Frame(time.time_ns(), "ws", conn, text, out=True))

    def closed(self, conn: str, cause: str) -> None:
        """A connection is gone."""
        self._handle(self.venue.closed(conn, cause, time.time_ns()))

    def answered(self, fetch: Fetch, status: int, body: bytes, url: str) -> None:
        """A request was answered, or not (see `poller.Driver`)."""
        now_ns = time.time_ns()
        if self._recorder is not None and status == 200:
            self._recorder.write(Frame(now_ns, "rest", url, body.decode("utf-8", "replace")))
        self._handle(self.venue.response(fetch, status, body, now_ns))
        if self.venue.ready:
            self._ready.set()

    # -- what is done about it ---------------------------------------------------------------------------------

    def _handle(self, out: Out) -> None:
        """Carry out what does not come from a frame."""
        self._read_ns = time.perf_counter_ns()
        self._do(out)

    def _do(self, out: Out) -> None:
        for item in out:
            if type(item) is Event:
                self._publish(item)
            elif type(item) is Send:
                for feed in self.feeds.values():
                    feed.send(item.conn, item.text)
            elif type(item) is Fetch:
                self.poller.ask(item)
            elif type(item) is Reconnect:
                for feed in self.feeds.values():
                    feed.replace(item.conn, item.cause, item.overlap)
            elif type(item) is Note:
                self._note(item)

    def _publish(self, event: Event) -> None:
        data = event.data
        kind = type(data)
        message = Message(event.subject, event.id, encode(data), kind is OrderBook, data.ts_ms, self._read_ns)
        if self.publisher.publish(message):
            self._counts[kind] += 1
            self._last_s[kind] = data.collected_ts_ms / 1000
        if kind is Gap:
            self._tell_gap(data)  # type: ignore[arg-type]

    def _tell_gap(self, gap: Gap) -> None:
        self._gaps[gap.affected_data_type, gap.cause] += 1
        self._log.warning(
            f"gap:{gap.instrument_id}:{gap.affected_data_type}",
            "gap in %s of %s: %s, after id %s, before id %s %s",
            gap.affected_data_type,
            gap.instrument_id,
            gap.cause,
            gap.last_id_before,
            gap.first_id_after,
            gap.detail,
            event="gap",
            symbol=gap.symbol,
        )

    def _note(self, note: Note) -> None:
        if note.level != "info":
            self._errors[note.event] += 1
        level = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}[note.level]
        self._log.log(
            level,
            f"{note.event}:{note.instrument}",
            "%s",
            note.text,
            event=note.event,
            symbol=note.instrument,
        )

    def _on_resume(self, holes: list[Hole]) -> None:
        """NATS was away for longer than the buffer lasts: tell what is missing, and begin each book anew."""
        by_subject = {
            m.instrument.subject(t): (m.instrument, t)
            for m in self.venue.markets.values()
            for t in (*self._exchange.data_types, "orderbook_delta")
        }
        now_ns = time.time_ns()
        out: Out = []
        books: list[str] = []
        for hole in holes:
            found = by_subject.get(hole.subject)
            if found is None:
                log.error("hole in %s, which is no subject of ours: %s", hole.subject, hole)
                continue
            instrument, data_type = found
            out.append(overflow_gap(instrument, data_type, hole, now_ns))
            if data_type == "orderbook_delta":
                books.append(instrument.id)
        self._handle(out + self.venue.republish(books, now_ns))

    # -- how it is ---------------------------------------------------------------------------------------------

    def figures(self) -> Figures:
        """The worker's state now."""
        books = [m.book for m in self.venue.markets.values() if m.book is not None]
        heard_s = [b.heard_ns / 1e9 for b in books if b.live]
        counters = self.publisher.counters
        resyncs: Counter[str] = Counter()
        for book in books:
            resyncs.update(book.resyncs)
        return Figures(
            data={tag(kind): n for kind, n in self._counts.items()},
            gaps=self._gaps,
            errors=self._errors,
            frames=self._frames,
            reconnections=sum(f.reconnections for f in self.feeds.values()),
            resyncs=resyncs,
            requests=self.poller.requests,
            published=counters.acknowledged,
            publish_errors=counters.errors,
            skipped=counters.skipped,
            last_data_s={tag(kind): at_s for kind, at_s in self._last_s.items()},
            gauges={
                "live_books": sum(b.live for b in books),
                "expected_books": len(books),
                "websocket_connected": sum(f.connected for f in self.feeds.values()),
                "websocket_expected": len(self.venue.sockets()) if self.venue.ready else 1,
                "nats_connected": self.publisher.flowing,
                "publish_backlog_messages": self.publisher.unacknowledged,
                "publish_backlog_bytes": self.publisher.backlog_bytes,
                "last_book_timestamp_seconds": min(heard_s, default=0.0),
            },
        )


def tag(kind: type[Payload]) -> str:
    """The data type of a payload."""
    return str(kind.__struct_config__.tag)


def overflow_gap(i: Instrument, data_type: str, hole: Hole, now_ns: int) -> Event:
    """The gap that tells what the publisher had no room for."""
    gap = Gap(
        exchange=i.exchange,
        market_type=i.market_type,
        symbol=i.symbol,
        instrument_id=i.id,
        ts_ms=hole.last_ts_ms,
        collected_ts_ms=now_ns // MS,
        affected_data_type=data_type,
        cause="overflow",
        last_ts_ms_before=hole.first_ts_ms,
        first_ts_ms_after=hole.last_ts_ms,
        missing=hole.count,
        detail=f"first lost message {hole.first_id}, last {hole.last_id}",
    )
    return Event(i.subject("gap"), i.event_id("gap", f"{data_type}:{hole.first_id}:{hole.last_id}"), gap)


async def run_workers(settings: Settings, names: list[str]) -> int:
    """Run these exchanges in this process until told to stop. Returns the exit status."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    loop.add_signal_handler(
        signal.SIGHUP, lambda: log.info("SIGHUP: restart the worker to change its configuration")
    )
    workers = [Worker(settings, name) for name in names]
    limits = [settings.memory[n] for n in names]
    memory = Memory(
        replace(limits[0], soft_mb=sum(m.soft_mb for m in limits), hard_mb=sum(m.hard_mb for m in limits))
    )
    running = [asyncio.create_task(w.run(), name=w.name) for w in workers]
    watching = asyncio.create_task(watch_memory(memory, workers))
    waiting = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait([*running, watching, waiting], return_when=asyncio.FIRST_COMPLETED)
    finally:
        parent.stop_within(STOP_S)
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
        await asyncio.sleep(0.25)
        verdict = memory.check()
        if verdict == "soft":
            for worker in workers:
                worker.vitals.warned()
            log.warning(
                "memory %.0f MB is above the soft limit of %d MB",
                memory.rss_mb(),
                memory.limits.soft_mb,
                extra={"event": "memory_soft"},
            )
        elif verdict == "hard":
            log.error(
                "memory %.0f MB is near the hard limit of %d MB: stopping in good order, to be started again",
                memory.rss_mb(),
                memory.limits.hard_mb,
                extra={"event": "memory_hard"},
            )
            return
