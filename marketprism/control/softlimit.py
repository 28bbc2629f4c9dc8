"""MemoryHigh= made into the warning it is meant to be.

The kernel does not warn at memory.high, it slows the process down, until it hardly moves. So at the first sign of that
the limit is taken away from outside, the alert unit is started, and after the worker's restart the limit is put back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from marketprism.control import cgroups
from marketprism.control.inotify import Inotify
from marketprism.control.kept import Kept
from marketprism.control.processes import MB
from marketprism.control.units import UnitsError, UnitState

_KEPT = "lifted"
_NEAR = 0.9  # of the limit

log = logging.getLogger(__name__)


class Setter(Protocol):
    """What of systemd is needed here."""

    async def set_memory_high(self, unit: str, limit_bytes: int | None) -> None: ...

    async def order(self, method: str, unit: str) -> None: ...


@dataclass(slots=True)
class Lifted:
    """A limit taken away: what it was, whose it was, and when, in seconds of CLOCK_MONOTONIC."""

    memory_high: int
    pid: int
    at_s: float = 0.0


@dataclass(slots=True)
class Watched:
    """A worker's cgroup under watch. `high`: how often it was slowed down; `told`: its person knows."""

    name: str
    unit: str
    state: UnitState
    high: int = 0
    busy: bool = False
    told: bool = False


class SoftLimits:
    """Watches the memory.events of every worker, and keeps in mind whose limit is lifted."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept
        self._lifted = {
            unit: Lifted(int(found["memory_high"]), int(found["pid"]))
            for unit, found in kept.get(_KEPT, {}).items()
        }
        self._watched: dict[Path, Watched] = {}
        self._units: Setter | None = None
        self._inotify: Inotify | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def use(self, units: Setter) -> None:
        """Talk to systemd over this connection from now on."""
        self._units = units

    def limit(self, unit: str, state: UnitState) -> int | None:
        """The unit's soft limit in bytes, also while it is lifted; None: it has none."""
        lifted = self._lifted.get(unit)
        return lifted.memory_high if lifted else state.memory_high

    async def update(self, name: str, unit: str, state: UnitState) -> None:
        """Take the news of a unit: put its limit back when its process has ended, watch the new one's cgroup.

        Raises OSError where it cannot be watched, UnitsError where systemd refuses.
        """
        await self._put_back(name, unit, state)
        if state.cgroup and state.main_pid:
            self._watch(name, unit, state)

    async def _put_back(self, name: str, unit: str, state: UnitState) -> None:
        lifted = self._lifted.get(unit)
        if lifted is None or self._units is None or state.asked_s < lifted.at_s:
            return
        if state.memory_high is None:
            if state.main_pid == lifted.pid:
                return
            await self._units.set_memory_high(unit, lifted.memory_high)
            log.info("%s: MemoryHigh= is %.0f MB again", name, lifted.memory_high / MB)
        # Done; or `systemctl daemon-reload` has done it, with the configuration's limit.
        del self._lifted[unit]
        self._keep()

    def _watch(self, name: str, unit: str, state: UnitState) -> None:
        file = cgroups.ROOT / state.cgroup.lstrip("/") / "memory.events"
        before = self._watched.get(file)
        if before is not None and before.state.main_pid == state.main_pid:
            before.state = state
            return
        if not file.exists():  # the memory controller is off
            return
        if self._inotify is None:
            self._inotify = Inotify(self._changed)
        self._inotify.watch(file)
        self._watched[file] = Watched(name, unit, state, told=unit in self._lifted)
        self._changed(file)  # it may have been slowed down before anybody looked

    def _changed(self, file: Path) -> None:
        found = self._watched[file]
        high = cgroups.flat(file).get("high", 0)
        slowed, found.high = high > found.high, high
        lifted = self._lifted.get(found.unit)
        done = lifted is not None and time.monotonic() - lifted.at_s < 1.0  # what is told now was before
        if slowed and not done and not found.busy and self._is_short(file.parent, found):
            found.busy = True
            task = asyncio.create_task(self._lift(found))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _is_short(self, cgroup: Path, found: Watched) -> bool:
        """Whether it needs more than its limit; page cache, of log files say, the kernel takes back on its own."""
        limit = self.limit(found.unit, found.state)
        return limit is not None and cgroups.working_set_bytes(cgroup) > _NEAR * limit

    async def _lift(self, found: Watched) -> None:
        """First the limit, since every moment counts; then the words."""
        assert self._units is not None  # set before the first state came
        soft_bytes = self.limit(found.unit, found.state) or 0
        try:
            await self._units.set_memory_high(found.unit, None)
        except UnitsError as exc:
            log.error("%s is slowed down at its soft limit, which cannot be lifted: %s", found.name, exc)
            return
        finally:
            found.busy = False
        self._lifted[found.unit] = Lifted(soft_bytes, found.state.main_pid, time.monotonic())
        self._keep()
        if not found.told:
            found.told = True
            text = "%s is above its soft memory limit of %.0f MB; it runs on, MemoryHigh= is lifted until it restarts"
            log.warning(
                text, found.name, soft_bytes / MB, extra={"event": "memory_soft", "exchange": found.name}
            )
            await self._alert(found.name)

    async def _alert(self, name: str) -> None:
        assert self._units is not None
        try:
            await self._units.order("StartUnit", f"marketprism-alert@memory_soft:{name}.service")
        except UnitsError as exc:
            log.warning("no alert was sent: %s", exc)

    def _keep(self) -> None:
        kept = {
            unit: {"memory_high": found.memory_high, "pid": found.pid} for unit, found in self._lifted.items()
        }
        self._kept.put(_KEPT, kept)
        self._kept.save(now=True)
