"""Workers and stores as systemd runs them: marketprism-worker@EXCHANGE.service, as marketprism.target wants them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from prometheus_client.core import Metric

from marketprism.control import cgroups
from marketprism.control.events import Events
from marketprism.control.kept import Kept
from marketprism.control.metrics import Totals
from marketprism.control.plane import ActionError, Verb
from marketprism.control.processes import MB, Figures, LastExit, ProcessTable, RunState, WorkerView
from marketprism.control.restarts import REASONS, REQUESTED, exit_reason
from marketprism.control.shared import SharedMetrics
from marketprism.control.softlimit import SoftLimits
from marketprism.control.units import Units, UnitsError, UnitState

TARGET = "marketprism.target"
WORKER_PREFIX = "marketprism-worker@"
STORES = {"hot": "marketprism-hot.service", "cold": "marketprism-cold.service"}

_ASK_EVERY_S = 10.0  # changes are told; this is for what was missed
_SAMPLE_S = 1.0
_RECONNECT_S = 1.0
_KEPT = "workers"
_METHODS = {
    Verb.START: "StartUnit",
    Verb.STOP: "StopUnit",
    Verb.RESTART: "RestartUnit",
    Verb.RELOAD: "ReloadUnit",
}
_REASONS = {
    "watchdog": "watchdog",
    "oom-kill": "oom",
    "timeout": "timeout",
}  # of Result=; else by exit status

log = logging.getLogger(__name__)


def unit_name(worker: str) -> str:
    """The unit of a worker, or of a store."""
    return STORES.get(worker) or f"{WORKER_PREFIX}{worker}.service"


def worker_name(unit: str) -> str:
    """The worker or store that a unit is of; "" for other units."""
    if unit.startswith(WORKER_PREFIX):
        return unit.removeprefix(WORKER_PREFIX).removesuffix(".service")
    return next((store for store, of_store in STORES.items() if of_store == unit), "")


@dataclass(slots=True)
class _Worker:
    """One instance and what is remembered of it. `counted`: NRestarts= as counted already; `at_start`: at its start."""

    name: str
    state: UnitState | None = None
    meter: cgroups.CgroupMeter | None = None
    figures: Figures | None = None
    restarts: Counter[str] = field(default_factory=Counter)
    counted: int = 0
    at_start: int = 0
    last_exit: LastExit | None = None

    @property
    def unit(self) -> str:
        return unit_name(self.name)

    def take(self, state: UnitState) -> None:
        """Newer word of systemd."""
        if state.exit_code is not None and (self.state is None or state.exited_s != self.state.exited_s):
            self.last_exit = _last_exit(state)
        new = state.restarts - self.counted if state.restarts >= self.counted else state.restarts
        if new:
            reason = self.last_exit.reason if self.last_exit else "error"
            self.restarts[reason if reason in REASONS else "error"] += new
        if self.state is None or self.state.started_s < state.started_s:
            if self.state is not None and self.state.started_s and state.restarts <= self.at_start:
                self.restarts[REQUESTED] += 1  # systemd counts its own only, and before it starts
            self.at_start = state.restarts
        self.counted = state.restarts
        self.state = state


def _last_exit(state: UnitState) -> LastExit:
    assert state.exit_code is not None  # asked by the caller
    reason = _REASONS.get(state.result) or exit_reason(state.exit_code)
    at_s = time.time() - (time.monotonic() - state.exited_s)
    return LastExit(reason, state.exit_code, at_s, state.exited_s - state.started_s, state.status_text)


def run_state(state: UnitState) -> RunState:
    """systemd's words in ours."""
    if state.active == "activating" and state.sub == "auto-restart":
        return RunState.WAITING
    return {
        "active": RunState.RUNNING,
        "reloading": RunState.RUNNING,
        "activating": RunState.RUNNING,
        "deactivating": RunState.STOPPING,
        "failed": RunState.FAILED,
    }.get(state.active, RunState.ENDED)


class Systemd:
    """Keeps up with systemd, and asks it for what is ordered."""

    name = "control"
    mode = "multiprocess"

    def __init__(self, kept: Kept, shared: SharedMetrics, events: Events) -> None:
        self.asked = asyncio.Event()  # systemd has been asked once, and has answered or not
        self._kept = kept
        self._shared = shared
        self._events = events
        self._limits = SoftLimits(kept)
        self._units: Units | None = None
        self._trouble = "systemd has not been asked yet"
        self._workers = self._remembered()
        self._changed: set[str] = set()
        self._news = asyncio.Event()
        self._table = ProcessTable()
        self._own = cgroups.own()
        self._own_meter = cgroups.CgroupMeter(self._own) if self._own else None
        self._own_figures = Figures(0.0, 0)
        self._memory_events = Totals()
        self._throttled = Totals()

    # -- as the control plane asks -----------------------------------------------------------------------------

    def workers(self) -> tuple[WorkerView, ...]:
        """All that the target wants, and those that run besides; stores, too."""
        return tuple(
            _view(found, self._limits) for found in self._workers.values() if found.state is not None
        )

    def own_figures(self) -> Figures:
        """The control plane's own, its helper processes included where cgroups tell."""
        return self._own_figures

    def trouble(self) -> str:
        """Why systemd cannot be asked."""
        return self._trouble

    def families(self) -> Iterable[Metric]:
        """What the kernel counts for a unit."""
        yield self._memory_events.family(
            "marketprism_process_memory_events",
            "Times that the kernel slowed the process down (high), or held (max) or killed it (oom_kill) for memory.",
            ["process", "event"],
        )
        yield self._throttled.family(
            "marketprism_process_cpu_throttled_seconds",
            "Time the process was kept from running by a CPU limit.",
            ["process"],
            "seconds",
        )
        yield from self._events.families()

    async def act(self, verb: Verb, worker: str) -> None:
        """Order it of systemd. Raises ActionError."""
        if self._units is None:
            raise ActionError(self._trouble)
        try:
            await self._units.order(_METHODS[verb], unit_name(worker))
        except UnitsError as exc:
            raise ActionError(str(exc)) from exc

    # -- keeping up --------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep up with systemd until cancelled; a lost connection is made anew."""
        while True:
            try:
                await self._follow()
            except (UnitsError, OSError) as exc:
                if str(exc) != self._trouble:
                    log.error("%s; trying again every second", exc)
                self._trouble = str(exc)
                self.asked.set()
            await asyncio.sleep(_RECONNECT_S)

    def sample(self) -> None:
        """Read all figures now. Call it about once a second."""
        if self._own_meter is not None:
            self._own_figures = self._own_meter.sample() or self._own_figures
        else:
            self._own_figures = self._table.read(os.getpid()) or self._own_figures
        for worker in self._workers.values():
            self._sample(worker)
        self._shared.retire_dead()

    def keep(self) -> None:
        """Note what must outlive the control plane."""
        self._kept.put(
            _KEPT,
            {
                found.name: {
                    "restarts": dict(found.restarts),
                    "counted": found.counted,
                    "last_exit": asdict(found.last_exit) if found.last_exit else None,
                }
                for found in self._workers.values()
            },
        )

    async def _follow(self) -> None:
        self._units = units = await Units.connect(self._on_change)
        self._limits.use(units)
        lost = asyncio.create_task(units.closed())
        try:
            while not lost.done():
                await self._ask_all(units)
                self._trouble = ""
                self.asked.set()
                await self._take_news(units, lost)
            raise UnitsError("the connection to systemd is lost")
        finally:
            self._units = None
            lost.cancel()
            units.close()

    def _on_change(self, unit: str) -> None:
        self._changed.add(unit)
        self._news.set()

    async def _take_news(self, units: Units, lost: asyncio.Task[None]) -> None:
        """Ask for every unit that is told to have changed, until it is time to ask for all."""
        until_s = time.monotonic() + _ASK_EVERY_S
        while not lost.done() and (left_s := until_s - time.monotonic()) > 0:
            news = asyncio.create_task(self._news.wait())
            await asyncio.wait([news, lost], timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            news.cancel()
            self._news.clear()
            while self._changed:
                await self._ask(units, self._changed.pop())

    async def _ask_all(self, units: Units) -> None:
        wanted = await units.wants(TARGET)
        listed = await units.listed(f"{WORKER_PREFIX}*.service", *STORES.values())
        found = [*wanted, *(unit for unit, active in listed.items() if active != "inactive")]
        names = {worker_name(unit) for unit in found} - {""}
        for gone in self._workers.keys() - names:
            del self._workers[gone]
        for name in sorted(names):
            self._workers.setdefault(name, _Worker(name))
            await units.follow(unit_name(name))
            await self._ask(units, unit_name(name))

    async def _ask(self, units: Units, unit: str) -> None:
        worker = self._workers.get(worker_name(unit))
        if worker is None:
            return
        state = await units.state(unit)
        worker.take(state)
        self._sample(worker)
        await self._guard(worker, state)

    async def _guard(self, worker: _Worker, state: UnitState) -> None:
        """Limits that cannot be tended must not cost the view of the unit."""
        try:
            await self._limits.update(worker.name, worker.unit, state)
        except (UnitsError, OSError) as exc:
            log.error("cannot tend the soft memory limit of %s: %s", worker.name, exc)

    def _sample(self, worker: _Worker) -> None:
        state = worker.state
        if state is None or not state.main_pid:
            worker.figures = worker.meter = None
        elif self._own_meter is None:  # no cgroup v2
            worker.figures = self._table.read(state.main_pid)
        else:
            directory = cgroups.ROOT / state.cgroup.lstrip("/")
            if worker.meter is None or worker.meter.directory != directory:
                worker.meter = cgroups.CgroupMeter(directory)
            worker.figures = worker.meter.sample()
            self._count(worker.name, worker.meter.reading)

    def _count(self, name: str, reading: cgroups.CgroupReading | None) -> None:
        if reading is not None:
            self._throttled.note((name,), reading.throttled_seconds)
            for event, count in reading.memory_events.items():
                self._memory_events.note((name, event), count)

    def _remembered(self) -> dict[str, _Worker]:
        found: dict[str, _Worker] = {}
        for name, kept in self._kept.get(_KEPT, {}).items():
            with contextlib.suppress(TypeError, KeyError):  # of another version: begin anew
                last = kept["last_exit"]
                found[name] = _Worker(
                    name,
                    restarts=Counter(kept["restarts"]),
                    counted=kept["counted"],
                    last_exit=LastExit(**last) if last else None,
                )
        return found


def _view(worker: _Worker, limits: SoftLimits) -> WorkerView:
    state = worker.state
    assert state is not None  # asked by the caller
    running = state.main_pid > 0
    return WorkerView(
        name=worker.name,
        exchanges=() if worker.name in STORES else (worker.name,),
        state=run_state(state),
        pid=state.main_pid or None,
        uptime_s=time.monotonic() - state.started_s if running else 0.0,
        restarts=dict.fromkeys(REASONS, 0) | dict(worker.restarts),
        last_exit=worker.last_exit,
        soft_mb=(limits.limit(worker.unit, state) or 0) // MB,
        hard_mb=(state.memory_max or 0) // MB,
        figures=worker.figures,
        said=state.status_text,
    )
