"""Processes as the kernel's process table shows them: the stand-in for systemd and cgroups.

Memory is the resident set size (RSS, as in `ps`, shared library pages included), CPU is percent of one core.
Figures of a cgroup (cgroups.py) have the same form, with the working set as their memory.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import psutil

MB = 1024 * 1024

_CPU_WINDOW_S = 2.0


class RunState(StrEnum):
    """What the supervisor is doing with a worker."""

    RUNNING = "running"
    STOPPING = "stopping"
    WAITING = "waiting"  # ended, will be started again
    FAILED = "failed"  # given up
    ENDED = "ended"  # stopped on request


@dataclass(frozen=True, slots=True)
class Figures:
    """One reading of one process. `frozen`: stopped by a signal (SIGSTOP) or a tracer."""

    cpu_percent: float
    memory_bytes: int
    frozen: bool = False
    cpu_seconds: float = 0.0  # since the process began
    threads: int = 0


@dataclass(frozen=True, slots=True)
class LastExit:
    """How a worker ended last. `code`: negative for a signal. `words`: the last thing it said about it, or ""."""

    reason: str
    code: int | None
    at_s: float
    ran_s: float
    words: str


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A worker as its supervisor sees it; `exchanges` has several names in single-process mode only, none for a store.

    `soft_mb`, `hard_mb`: 0 where there is no limit. `said`: its own line for systemd, or "".
    """

    name: str
    exchanges: tuple[str, ...]
    state: RunState
    pid: int | None
    uptime_s: float
    restarts: Mapping[str, int]
    last_exit: LastExit | None
    soft_mb: int
    hard_mb: int
    figures: Figures | None
    said: str = ""


@dataclass(slots=True)
class CpuMeter:
    """Percent of one core, from CPU seconds read now and then."""

    window_start_s: float
    window_cpu_s: float
    cpu_percent: float = 0.0

    @classmethod
    def begin(cls, cpu_s: float) -> CpuMeter:
        """Start at `cpu_s` seconds used."""
        return cls(time.monotonic(), cpu_s)

    def update(self, cpu_s: float) -> float:
        """CPU over windows of about two seconds, so that frequent readings do not jump."""
        elapsed = time.monotonic() - self.window_start_s
        if elapsed >= _CPU_WINDOW_S or self.cpu_percent == 0.0 < elapsed:
            self.cpu_percent = 100.0 * (cpu_s - self.window_cpu_s) / elapsed
        if elapsed >= _CPU_WINDOW_S:
            self.window_start_s += elapsed
            self.window_cpu_s = cpu_s
        return self.cpu_percent


@dataclass(slots=True)
class _Tracked:
    process: psutil.Process
    cpu: CpuMeter


@dataclass(slots=True)
class ProcessTable:
    """Reads figures of processes by pid, remembering CPU times between readings."""

    _tracked: dict[int, _Tracked] = field(default_factory=dict)

    def read(self, pid: int) -> Figures | None:
        """Figures of process `pid`; None when it is gone (or a zombie)."""
        try:
            tracked = self._tracked.get(pid) or self._track(pid)
            with tracked.process.oneshot():
                status = tracked.process.status()
                times = tracked.process.cpu_times()
                rss_bytes = tracked.process.memory_info().rss
                threads = tracked.process.num_threads()
        except psutil.NoSuchProcess:
            self.forget(pid)
            return None
        cpu_s = times.user + times.system
        frozen = status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
        return Figures(tracked.cpu.update(cpu_s), rss_bytes, frozen, cpu_s, threads)

    def forget(self, pid: int) -> None:
        """Drop what is remembered of an ended process, because pids are used again."""
        self._tracked.pop(pid, None)

    def _track(self, pid: int) -> _Tracked:
        process = psutil.Process(pid)
        times = process.cpu_times()
        tracked = self._tracked[pid] = _Tracked(process, CpuMeter.begin(times.user + times.system))
        return tracked


class MemoryVerdict(StrEnum):
    """What a memory reading calls for."""

    NOTHING = "nothing"
    WARN = "warn"
    STOP = "stop"


@dataclass(slots=True)
class MemoryWatch:
    """The stand-in for MemoryHigh and MemoryMax: warns at soft, again only after falling below 90 % of it."""

    soft_bytes: int
    hard_bytes: int
    above_soft: bool = False

    def judge(self, rss_bytes: int) -> MemoryVerdict:
        """Take one reading."""
        if rss_bytes > self.hard_bytes:
            return MemoryVerdict.STOP
        was_above = self.above_soft
        if rss_bytes > self.soft_bytes:
            self.above_soft = True
        elif rss_bytes < 0.9 * self.soft_bytes:
            self.above_soft = False
        return MemoryVerdict.WARN if self.above_soft and not was_above else MemoryVerdict.NOTHING
