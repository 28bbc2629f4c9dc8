"""The hot store: everything of the stream into the engine, each event once (`marketprism hot`)."""

import asyncio
import ctypes
import logging
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marketprism import __version__
from marketprism.config import StorageSettings
from marketprism.logs import RateLimitedLog
from marketprism.storage import hot_figures, web
from marketprism.storage.bus import Bus, BusError
from marketprism.storage.consumer import DEAD_STREAM, DEAD_SUBJECT, Consumer
from marketprism.storage.engine import Engine, EngineError, Target
from marketprism.storage.overrun import Begin, last_stored
from marketprism.storage.schema import HOT, TABLES, Layout, migrate
from marketprism.storage.service import Service
from marketprism.storage.writer import Writer

log = logging.getLogger(__name__)

SOCKET_NAME = "hot.sock"
RECONNECT_S = 2.0
TICK_S = 5.0
STUCK_S = 300.0
DRAIN_S = 5.0
RETENTION_S = 60.0


@dataclass(frozen=True, slots=True)
class HotOptions:
    """All that the hot store needs to know. `connect_options` are nats-py's, for login and TLS."""

    storage: StorageSettings
    servers: Sequence[str]
    connect_options: Mapping[str, Any]
    stream: str
    listener: socket.socket
    runtime_dir: Path

    @property
    def target(self) -> Target:
        """The engine of the hot tables."""
        hot = self.storage.hot
        return Target(hot.location, self.storage.user, self.storage.password, hot.cluster)

    @property
    def layout(self) -> Layout:
        """Where its tables are."""
        return Layout(HOT.database, HOT.tier, self.storage.hot.cluster)


class Hot:
    """The store, running."""

    def __init__(self, options: HotOptions) -> None:
        """Not connected to anything yet."""
        self._options = options
        self.consumers: list[Consumer] = []
        self.bus: Bus | None = None
        self.started_s = time.time()
        self.engine_trouble = "the engine is not open yet"
        self.nats_trouble = "not connected to NATS yet"
        self._stored_seq = 0  # how far in the stream, when it was opened
        self._overruns: dict[Consumer, tuple[Begin, int]] = {}  # to be told: what follows, and what was had
        self._turned: dict[str, float] = {}  # what goes round and round, and when it did last
        self._log = RateLimitedLog(log)

    async def open(self, stopping: asyncio.Event) -> Engine | None:
        """The engine, with its tables there; None if told to stop before. A server that is away is waited for.

        Raises EngineError for what only a person can put right.
        """
        while not stopping.is_set():
            try:
                engine, self._stored_seq = await asyncio.to_thread(_open, self._options)
                self.engine_trouble = ""
                return engine
            except EngineError as error:
                if self._options.target.embedded or error.code:
                    raise
                self.engine_trouble = str(error)
                self._log.warning("engine", "waiting: %s", error, event="waiting")
            with suppress(TimeoutError):
                async with asyncio.timeout(RECONNECT_S):
                    await stopping.wait()
        return None

    async def run(self, writer: Writer, stopping: asyncio.Event) -> None:
        """Store until told to stop. Whatever ends it otherwise is a defect and is raised."""
        batch = self._options.storage.hot.batch
        self.consumers = [Consumer(table, self._options.stream, batch, writer, self._log) for table in TABLES]
        storing = [asyncio.create_task(c.run(), name=c.name) for c in self.consumers]
        others = [
            asyncio.create_task(job)
            for job in (
                self._keep_connected(),
                self._keep_checking(writer),
                self._keep_overruns(writer),
                _wait(stopping),
            )
        ]
        if not self._options.storage.cold.enabled:  # else cold drops what it holds
            others.append(asyncio.create_task(self._keep_retention(writer)))
        try:
            await asyncio.wait([*storing, *others], return_when=asyncio.FIRST_COMPLETED)
            for consumer in self.consumers:
                consumer.stop()
            await asyncio.wait(storing, timeout=DRAIN_S)  # what does not get done is delivered again
        finally:
            for task in (*storing, *others):
                task.cancel()
            await asyncio.wait([*storing, *others])
        for task in (*storing, *others):
            if not task.cancelled():
                task.result()

    async def _keep_connected(self) -> None:
        while True:
            bus = Bus()
            self._turns("reading from NATS")
            try:
                await self._attach(bus)
                self.bus, self.nats_trouble = bus, ""
                log.info("reading stream %s", self._options.stream, extra={"event": "connected"})
                await self._watch(bus)
                self.nats_trouble = bus.why or "the connection was lost"
            except BusError as error:
                self.nats_trouble = str(error)
            finally:
                self.bus = None
                await bus.close()
            self._log.warning("nats", "waiting for NATS: %s", self.nats_trouble, event="waiting")
            await asyncio.sleep(RECONNECT_S)

    async def _attach(self, bus: Bus) -> None:
        options = self._options
        await bus.open(options.servers, "marketprism-hot", options.connect_options)
        await bus.dead_letters(DEAD_STREAM, [f"{DEAD_SUBJECT}.>"])
        begin = await bus.begin(options.stream)
        had = max(self._stored_seq, *(c.reached[0] for c in self.consumers))
        if 0 < had <= begin.last_seq and had + 1 < begin.first_seq:  # of a stream made anew nothing is known
            self._overruns |= dict.fromkeys(self.consumers, (begin, had))
        for consumer in self.consumers:
            await consumer.attach(bus)

    async def _watch(self, bus: Bus) -> None:
        """Until the connection is lost."""
        while not bus.lost.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await bus.lost.wait()
            for consumer in self.consumers:
                await consumer.keep_asking()
            self._turns("reading from NATS")
            self._log.flush()

    async def _keep_checking(self, writer: Writer) -> None:
        """Notice an engine that is away also while there is nothing to store."""
        while True:
            self._turns("the engine")
            try:
                await writer.check()
                self.engine_trouble = ""
            except EngineError as error:
                self.engine_trouble = str(error)
            await asyncio.sleep(TICK_S)

    async def _keep_overruns(self, writer: Writer) -> None:
        """Tell what the stream drops before it is stored."""
        while True:
            for consumer, (begin, had) in list(self._overruns.items()):
                try:
                    await writer.tell_overrun(consumer.table, begin, had)
                except EngineError as error:
                    self._log.warning("overrun", "cannot tell a gap: %s", error)
                    break
                del self._overruns[consumer]
                consumer.counts.overruns += 1
                text = "%s: the stream dropped what was not stored yet, %d to %d: told in gaps; see docs/storage.md"
                numbers = had + 1, begin.first_seq - 1
                self._log.error("dropped", text, consumer.table.name, *numbers, event="overrun")
            await asyncio.sleep(TICK_S)
            await self._look_for_overruns()

    async def _look_for_overruns(self) -> None:
        try:
            begin = await self.bus.begin(self._options.stream) if self.bus else None
        except BusError:
            return  # `_keep_connected` sees to it
        for consumer in self.consumers:
            had, waiting = consumer.reached
            if begin and waiting and had + 1 < begin.first_seq:
                self._overruns.setdefault(consumer, (begin, had))

    async def _keep_retention(self, writer: Writer) -> None:
        """Drop what is older than the configuration wants it kept."""
        days = self._options.storage.hot.retention_days
        while True:
            try:
                if hours := await writer.expire(days):
                    log.info("dropped %d hours of tables, older than %d days", hours, days)
            except EngineError as error:
                self._log.warning("retention", "cannot drop what is old: %s", error)
            await asyncio.sleep(RETENTION_S)

    def _turns(self, what: str) -> None:
        self._turned[what] = time.monotonic()

    # -- how it is ---------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether the engine is open and all of the stream is being read."""
        return self.bus is not None and not self.engine_trouble

    def status(self) -> str:
        """One line for a person."""
        return hot_figures.status(self)

    def stuck(self) -> str:
        """What has not moved for minutes. A server that hangs is not helped by our restart."""
        turned = self._turned | {c.name: c.busy_since_s for c in self.consumers if c.busy_since_s}
        if not self._options.target.embedded:
            return ""
        now_s = time.monotonic()
        return next((what for what, at_s in turned.items() if now_s - at_s > STUCK_S), "")

    @property
    def troubles(self) -> list[str]:
        """Why data waits, one line each; empty while all is well."""
        found = {self.nats_trouble, self.engine_trouble, *(c.trouble for c in self.consumers)}
        return sorted(found - {""})

    def health(self) -> dict[str, Any]:
        """The body of /health."""
        return hot_figures.health(self, __version__)

    def stats(self) -> dict[str, Any]:
        """The body of /stats."""
        return hot_figures.stats(self)

    def metrics(self) -> tuple[bytes, str]:
        """Text and content type of /metrics."""
        return hot_figures.metrics(self)


async def run(options: HotOptions) -> int:
    """Run the hot store until told to stop. Returns the exit status. Raises EngineError, OSError."""
    hot = Hot(options)
    _share_arenas()
    async with Service(hot, options.storage.hot.memory) as service:
        await _serve(hot, options, service.stopping)
    log.info("stopped", extra={"event": "stopped"})
    return service.exit_status


async def _serve(hot: Hot, options: HotOptions, stopping: asyncio.Event) -> None:
    readers = web.Readers()
    served = [await web.serve(web.public_app(hot, readers), options.listener)]
    try:
        engine = await hot.open(stopping)
        if engine is not None:
            readers.use(engine)
            writer = Writer(engine, options.layout)
            private = web.private_socket(options.runtime_dir / SOCKET_NAME)
            served.append(await web.serve(web.private_app(writer), private))
            log.info("storing into %s", options.target.location, extra={"event": "started"})
            await hot.run(writer, stopping)
            await asyncio.to_thread(writer.close)
    finally:
        for runner in served:
            await runner.cleanup()
    await asyncio.to_thread(readers.close)
    if engine is not None:
        engine.close()


def _share_arenas() -> None:
    """One heap for all threads (glibc's M_ARENA_MAX): what one of them frees another one can have. 40 MB less."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-8, 1)


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


def _open(options: HotOptions) -> tuple[Engine, int]:
    """The engine, and the number in the stream up to which it has something."""
    engine = Engine(options.target)
    try:
        if had := migrate(engine, options.layout):
            log.info("tables of version %d are there", had)
        stored_seq = last_stored(engine, options.layout)
    except EngineError:
        engine.close()
        raise
    return engine, stored_seq
