"""The life of a worker process: signals, memory limits, reloading, and what systemd is told of it."""

import asyncio
import logging
import signal
import time
from pathlib import Path

from marketprism import parent
from marketprism.config import Config, ConfigError, MemoryLimits, load
from marketprism.logs import act_as
from marketprism.memory import MB, Memory, give_back
from marketprism.notify import Notifier
from marketprism.worker.reload import plan
from marketprism.worker.worker import Worker

log = logging.getLogger(__name__)

STOP_S = 10
EX_TEMPFAIL = 75
READY_S = 20.0  # an exchange that is down must not fail the unit
LOOK_S = 0.25
STATUS_S = 5.0


async def run_workers(config: Config, names: list[str], runtime_dir: Path) -> int:
    """Run these exchanges in this process until told to stop. Returns the exit status."""
    process = Process(config, names, runtime_dir, Notifier.from_environment())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, process.stopping.set)
    loop.add_signal_handler(signal.SIGHUP, process.told_to_reload.set)
    status = await process.run()
    loop.remove_signal_handler(signal.SIGHUP)
    signal.signal(
        signal.SIGHUP, signal.SIG_IGN
    )  # a closing loop leaves the kernel's own: one now would end us
    return status


class Process:
    """One worker, or several that share a process."""

    def __init__(self, config: Config, names: list[str], runtime_dir: Path, notifier: Notifier) -> None:
        self.stopping = asyncio.Event()
        self.told_to_reload = asyncio.Event()
        self._config = config
        self._notifier = notifier
        self._memory = Memory(_limits(config, names))
        self._workers = [Worker(config.settings, name, self._memory, runtime_dir) for name in names]
        self._ready = False
        self._stuck = ""

    async def run(self) -> int:
        """Run until told to stop, near the hard memory limit, or broken. Returns the exit status."""
        if len(self._workers) == 1:
            act_as(self._workers[0].name)  # what is logged here is of this exchange, too
        running = [asyncio.create_task(w.run(), name=w.name) for w in self._workers]
        watching = asyncio.create_task(self._watch_memory())
        told = asyncio.create_task(self.stopping.wait())
        others = [asyncio.create_task(self._tell_systemd()), asyncio.create_task(self._reload_when_told())]
        tasks = {*running, *others, watching, told}
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        reason = "stopped" if told.done() else "memory" if watching.done() else "failed"
        parent.stop_within(STOP_S)
        self._notifier.stopping(f"stopping: {reason}")
        for worker in self._workers:
            worker.collector.stop()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        failed = next((e for t in tasks if not t.cancelled() and (e := t.exception()) is not None), None)
        if failed is not None:
            reason = "failed"
            log.critical("worker failed", exc_info=failed, extra={"event": "failed"})
        await asyncio.gather(*(w.stop(reason) for w in self._workers))
        log.info("stopped: %s", reason, extra={"event": "stopped"})
        return {"stopped": 0, "memory": EX_TEMPFAIL}.get(reason, 1)

    # -- memory ------------------------------------------------------------------------------------------------

    async def _watch_memory(self) -> None:
        """Warn at the soft limit and go on; return near the hard one, so that the worker stops in good order."""
        memory = self._memory
        while (verdict := memory.check()) != "hard":
            if verdict == "soft":
                self._warn()
            else:
                await asyncio.sleep(memory.pause_s)
        log.error(
            "memory %.0f MB is near the hard limit of %d MB: stopping in good order, to be started again",
            memory.read() / MB,
            memory.limits.hard_mb,
            extra={"event": "memory_hard"},
        )

    def _warn(self) -> None:
        memory = self._memory
        used_mb = memory.read() / MB
        give_back()
        for worker in self._workers:
            worker.vitals.warned()
        log.warning(
            "memory %.0f MB is above the soft limit of %d MB: %.0f MB given back, running on",
            used_mb,
            memory.limits.soft_mb,
            max(0.0, used_mb - memory.read() / MB),
            extra={"event": "memory_soft"},
        )

    # -- systemd -----------------------------------------------------------------------------------------------

    async def _tell_systemd(self) -> None:
        """READY when data flows, STATUS for a person, WATCHDOG while nothing is stuck that a restart would mend."""
        tell = self._notifier
        began_s = time.monotonic()
        told_s = pinged_s = -STATUS_S
        while True:
            now_s = time.monotonic()
            waited = now_s - began_s >= READY_S
            if not self._ready and (waited or all(w.delivering for w in self._workers)):
                self._ready = True
                tell.ready(self._status())
            if now_s - told_s >= STATUS_S:
                told_s = now_s
                tell.status(self._status())
            if (
                tell.watchdog_s is not None
                and now_s - pinged_s >= tell.watchdog_s / 4
                and not self._is_stuck()
            ):
                pinged_s = now_s
                tell.watchdog()
            await asyncio.sleep(LOOK_S)

    def _status(self) -> str:
        if len(self._workers) == 1:
            return self._workers[0].status()
        return "; ".join(f"{w.name}: {w.status()}" for w in self._workers)

    def _is_stuck(self) -> bool:
        stuck = next((s for w in self._workers if (s := w.stuck())), "")
        if stuck and not self._stuck:
            log.error("%s: no sign of life is given to systemd any more", stuck, extra={"event": "stuck"})
        self._stuck = stuck
        return bool(stuck)

    # -- reloading ---------------------------------------------------------------------------------------------

    async def _reload_when_told(self) -> None:
        while True:
            await self.told_to_reload.wait()
            self.told_to_reload.clear()
            if self._ready:  # before that systemd is still waiting for the start
                self._notifier.reloading()
            await self._reload()
            if self._ready:
                self._notifier.ready(self._status())

    async def _reload(self) -> None:
        """Read the configuration again and take from it what can be changed while running."""
        try:
            new = await asyncio.to_thread(load, self._config.path)
            plans = [plan(self._config, w.exchange, new) for w in self._workers]
        except ConfigError as e:
            text = "the configuration is broken, running on as before: %s"
            log.error(text, "; ".join(e.problems), extra={"event": "reload"})
            return
        limits = _limits(new, [w.name for w in self._workers])
        if limits != self._memory.limits:
            self._memory.limits = limits
            text = "reloaded: memory limits are %d and %d MB"
            log.info(text, limits.soft_mb, limits.hard_mb, extra={"event": "reload"})
        logging.getLogger("marketprism").setLevel(new.settings.log_level.upper())
        for worker, change in zip(self._workers, plans, strict=True):
            worker.change(change.exchange)
            log.info("reloaded: %s", change.text, extra={"event": "reload", "exchange": worker.name})


def _limits(config: Config, names: list[str]) -> MemoryLimits:
    limits = [config.settings.memory[n] for n in names]
    return MemoryLimits(soft_mb=sum(m.soft_mb for m in limits), hard_mb=sum(m.hard_mb for m in limits))
