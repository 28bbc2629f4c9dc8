"""A store as a service: signals, memory limits, and what systemd is told of it."""

import asyncio
import logging
import signal
import time
from types import TracebackType
from typing import Protocol, Self

from marketprism import parent
from marketprism.config import MemoryLimits
from marketprism.memory import MB, Memory, give_back
from marketprism.notify import Notifier

log = logging.getLogger(__name__)

EX_TEMPFAIL = 75
STOP_S = 10
READY_S = 20.0  # NATS or a server that is down must not fail the unit
LOOK_S = 0.5
STATUS_S = 5.0


class Store(Protocol):
    """What is run: the hot store or the cold one."""

    @property
    def ready(self) -> bool:
        """Whether it does its work."""
        ...

    def status(self) -> str:
        """One line for a person; begins with `degraded` where something is in the way."""
        ...

    def stuck(self) -> str:
        """What has not moved for so long that only a restart helps; "" while nothing is."""
        ...


class Service:
    """From the start of a store to its end; `stopping` is set when that has come."""

    def __init__(self, store: Store, limits: MemoryLimits) -> None:
        """Nothing happens before `async with`."""
        self.stopping = asyncio.Event()
        self.exit_status = 0
        self._store = store
        self._memory = Memory(limits)
        self._notifier = Notifier.from_environment()
        self._stuck = ""
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stopping.set)
        jobs = (self._watch_memory(), self._tell_systemd(), self._end_in_time())
        self._tasks = [asyncio.create_task(job) for job in jobs]
        for task in self._tasks:
            task.add_done_callback(lambda _: self.stopping.set())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What ended by a defect is raised."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        for task in self._tasks:
            if not task.cancelled():
                task.result()

    async def _end_in_time(self) -> None:
        await self.stopping.wait()
        parent.stop_within(STOP_S)
        self._notifier.stopping("stopping: memory" if self.exit_status else "stopping")

    async def _watch_memory(self) -> None:
        """Warn at the soft limit and go on; return near the hard one, so that the store stops in good order."""
        memory = self._memory
        while (verdict := memory.check()) != "hard":
            if verdict == "soft":
                await self._warn()
            else:
                await asyncio.sleep(memory.pause_s)
        self.exit_status = EX_TEMPFAIL
        log.error(
            "memory %.0f MB is near the hard limit of %d MB: stopping in good order, to be started again",
            memory.read() / MB,
            memory.limits.hard_mb,
            extra={"event": "memory_hard"},
        )

    async def _warn(self) -> None:
        used_mb = self._memory.read() / MB
        await asyncio.to_thread(give_back)
        log.warning(
            "memory %.0f MB is above the soft limit of %d MB: %.0f MB given back, running on",
            used_mb,
            self._memory.limits.soft_mb,
            max(0.0, used_mb - self._memory.read() / MB),
            extra={"event": "memory_soft"},
        )

    async def _tell_systemd(self) -> None:
        """READY when the store does its work, STATUS for a person, WATCHDOG while nothing is stuck."""
        tell = self._notifier
        began_s = time.monotonic()
        told_s = pinged_s = -STATUS_S
        ready = False
        while not self.stopping.is_set():
            now_s = time.monotonic()
            if not ready and (self._store.ready or now_s - began_s >= READY_S):
                ready = True
                tell.ready(self._store.status())
            if now_s - told_s >= STATUS_S:
                told_s = now_s
                tell.status(self._store.status())
            if tell.watchdog_s and now_s - pinged_s >= tell.watchdog_s / 4 and not self._is_stuck():
                pinged_s = now_s
                tell.watchdog()
            await asyncio.sleep(LOOK_S)

    def _is_stuck(self) -> bool:
        stuck = self._store.stuck()
        if stuck and not self._stuck:
            log.error("%s: no sign of life is given to systemd any more", stuck, extra={"event": "stuck"})
        self._stuck = stuck
        return bool(stuck)
