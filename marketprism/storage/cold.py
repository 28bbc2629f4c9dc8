"""The cold store: hours that are over go from hot to Parquet files, or to a second server (`marketprism cold`)."""

import asyncio
import logging
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marketprism.config import StorageSettings
from marketprism.logs import RateLimitedLog
from marketprism.storage import cold_figures, web
from marketprism.storage.asking import HotHttp
from marketprism.storage.engine import Engine, EngineError, Target
from marketprism.storage.mover import ColdStore, Counts, Mover
from marketprism.storage.parquet import ParquetStore
from marketprism.storage.schema import COLD, HOT, Layout
from marketprism.storage.server import ServerStore
from marketprism.storage.service import Service
from marketprism.storage.source import HotSource

log = logging.getLogger(__name__)

SOCKET_NAME = "hot.sock"  # hot's
INTERVAL_S = 10
RECONNECT_S = 2.0
STUCK_S = 900.0
DRAIN_S = 8.0
MINUTE_S = 60
DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class ColdOptions:
    """All that the cold store needs to know. `hot_host` is where the hot store serves queries."""

    storage: StorageSettings
    hot_host: str
    listener: socket.socket
    runtime_dir: Path
    interval_s: int = INTERVAL_S

    @property
    def target(self) -> Target:
        """Where the data goes; `embedded` stands for Parquet files."""
        cold = self.storage.cold
        return Target(cold.location, self.storage.user, self.storage.password, cold.cluster)

    @property
    def delay_s(self) -> int:
        """How long after its hour a window is moved."""
        return self.storage.cold.delay_minutes * MINUTE_S

    @property
    def retention_s(self) -> int:
        """How long after its hour a window stays in hot."""
        return self.storage.hot.retention_days * DAY_S


class Cold:
    """The store, running."""

    def __init__(self, options: ColdOptions) -> None:
        """Not connected to anything yet."""
        self.options = options
        self.mover: Mover | None = None
        self.trouble = "the cold store is not open yet"
        self._log = RateLimitedLog(log)

    @property
    def counts(self) -> Counts:
        """What happened since the start."""
        return self.mover.counts if self.mover else Counts()

    async def run(self, stopping: asyncio.Event) -> bool:
        """Move windows until told to stop; False: it is still within one.

        Raises EngineError, OSError for what only a person can put right.
        """
        store = await self._open(stopping)
        if store is None:
            return True
        self.mover = mover = Mover(
            self._hot(), store, delay_s=self.options.delay_s, retention_s=self.options.retention_s
        )
        log.info("moving to %s", store.name, extra={"event": "started"})
        moving = asyncio.create_task(self._rounds(mover, stopping))
        told = asyncio.create_task(stopping.wait())
        await asyncio.wait((moving, told), return_when=asyncio.FIRST_COMPLETED)
        mover.stop()
        told.cancel()
        await asyncio.wait((moving,), timeout=DRAIN_S)
        if not moving.done():
            return False
        moving.result()  # a defect
        await asyncio.to_thread(store.close)
        return True

    async def _rounds(self, mover: Mover, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            await asyncio.to_thread(mover.round)
            await _wait(stopping, self.options.interval_s)

    async def _open(self, stopping: asyncio.Event) -> ColdStore | None:
        """The store; None if told to stop before. A server that is away is waited for."""
        while not stopping.is_set():
            try:
                return await asyncio.to_thread(_store, self.options, self._hot().name)
            except EngineError as error:
                if self.options.target.embedded or error.code:
                    raise
                self.trouble = str(error)
                self._log.warning("engine", "waiting: %s", error, event="waiting")
            await _wait(stopping, RECONNECT_S)
        return None

    def _hot(self) -> HotSource:
        hot, host = self.options.storage.hot, self.options.hot_host
        return HotSource(
            HotHttp(host, hot.port),
            self.options.runtime_dir / SOCKET_NAME,
            Layout(HOT.database, HOT.tier, hot.cluster),
        )

    # -- how it is ---------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether windows can be moved, as soon as hot has some."""
        return self.mover is not None

    def status(self) -> str:
        """One line for a person."""
        return cold_figures.status(self)

    def stuck(self) -> str:
        """The mover, where it has done no step for long. A server that hangs is not helped by our restart."""
        still_s = time.monotonic() - self.mover.turned_s if self.mover else 0.0
        return "moving windows" if still_s > STUCK_S and self.options.target.embedded else ""

    def health(self) -> dict[str, Any]:
        """The body of /health."""
        return cold_figures.health(self)

    def stats(self) -> dict[str, Any]:
        """The body of /stats."""
        return cold_figures.stats(self)

    def metrics(self) -> tuple[bytes, str]:
        """Text and content type of /metrics."""
        return cold_figures.metrics(self)


async def run(options: ColdOptions) -> int:
    """Run the cold store until told to stop. Returns the exit status. Raises EngineError, OSError."""
    cold = Cold(options)
    served = await web.serve(web.public_app(cold), options.listener)
    try:
        async with Service(cold, options.storage.cold.memory) as service:
            finished = await cold.run(service.stopping)
    finally:
        await served.cleanup()
    log.info("stopped", extra={"event": "stopped"})
    if not finished:  # the next start does the window again; a thread cannot be ended otherwise
        logging.shutdown()
        os._exit(service.exit_status)
    return service.exit_status


def _store(options: ColdOptions, source: str) -> ColdStore:
    target = options.target
    if not target.embedded:
        return ServerStore(Engine(target), Layout(COLD.database, COLD.tier, target.cluster), source)
    root = Path(target.location)
    return ParquetStore(root, Engine(Target(str(root / ".engine"))), source)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
