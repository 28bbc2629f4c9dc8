"""CPU and memory of the processes under measurement, from /proc."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

MB = 2**20


@dataclass(frozen=True, slots=True)
class ProcessFigures:
    """One process over the window. CPU in percent of one core; memory in MB (2**20 bytes).

    RSS counts pages that processes share (libraries) in each of them; PSS divides them among the sharers.
    `sleeps_per_s`: how often the process went to sleep by itself; as often it had to be woken up.
    """

    name: str
    cpu_percent: float
    rss_start_mb: float
    rss_end_mb: float
    rss_max_mb: float
    pss_end_mb: float
    sleeps_per_s: float


class Observed:
    """One process from `begin` to `end`, looked at in between. Raises psutil.NoSuchProcess once it is gone."""

    def __init__(self, pid: int, name: str) -> None:
        self.name = name
        self._process = psutil.Process(pid)
        self._cpu_s = _cpu_s(self._process)
        self._sleeps = _sleeps(pid)
        self._rss: list[int] = []
        self.look()

    def look(self) -> None:
        """Note the memory now."""
        self._rss.append(self._process.memory_info().rss)

    def end(self, seconds: float) -> ProcessFigures:
        """The figures of the `seconds` since the beginning."""
        self.look()
        cpu_s = _cpu_s(self._process) - self._cpu_s
        sleeps = _sleeps(self._process.pid) - self._sleeps
        return ProcessFigures(
            name=self.name,
            cpu_percent=100 * cpu_s / seconds,
            rss_start_mb=self._rss[0] / MB,
            rss_end_mb=self._rss[-1] / MB,
            rss_max_mb=max(self._rss) / MB,
            pss_end_mb=self._process.memory_full_info().pss / MB,
            sleeps_per_s=sleeps / seconds,
        )


def observe(pids: Mapping[int, str]) -> list[Observed]:
    """Begin with all of them."""
    return [Observed(pid, name) for pid, name in pids.items()]


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _sleeps(pid: int) -> int:
    """Voluntary context switches of all its threads (psutil counts the first one's only)."""
    statuses = (status.read_text() for status in Path(f"/proc/{pid}/task").glob("*/status"))
    return sum(int(text.rpartition("\nvoluntary_ctxt_switches:")[2].split()[0]) for text in statuses)


def machine_busy_s() -> float:
    """CPU seconds that the whole machine has spent on anything, other tenants' share (steal) included."""
    t = psutil.cpu_times()
    return float(t.user + t.nice + t.system + t.irq + t.softirq + t.steal)


def memory_together_mb(processes: Sequence[ProcessFigures]) -> float:
    """The sum of the highest RSS of each: an upper bound of what they held at one moment."""
    return sum(process.rss_max_mb for process in processes)


def run_ns(pid: int) -> int:
    """CPU time of all threads of a process, ns: finer than the hundredths of a second of /proc/PID/stat."""
    return sum(int(file.read_text().split()[0]) for file in Path(f"/proc/{pid}/task").glob("*/schedstat"))
