"""Figures of a unit from its files under /sys/fs/cgroup, cgroup v2 (kernel: admin-guide/cgroup-v2.rst).

Memory is the working set: memory.current less inactive_file, since page cache that can be dropped at once is nobody's
need. That is what kubelet and cAdvisor call a container's memory, too.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path

from marketprism.control.processes import CpuMeter, Figures

ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class CgroupReading:
    """One reading. `memory_events`: counts by the kernel's names (high, max, oom, oom_kill …)."""

    cpu_seconds: float
    throttled_seconds: float
    memory_bytes: int
    tasks: int
    memory_events: dict[str, int] = field(default_factory=dict)


def read(directory: Path) -> CgroupReading | None:
    """The cgroup's figures, 0 for what its controllers do not count; None when it is gone."""
    cpu = flat(directory / "cpu.stat")
    if not cpu:
        return None
    return CgroupReading(
        cpu_seconds=cpu.get("usage_usec", 0) / 1e6,
        throttled_seconds=cpu.get("throttled_usec", 0) / 1e6,
        memory_bytes=working_set_bytes(directory),
        tasks=number(directory / "pids.current"),
        memory_events=flat(directory / "memory.events"),
    )


def working_set_bytes(directory: Path) -> int:
    """Memory that the kernel cannot have back for the asking; 0 when it cannot be read."""
    used_bytes = number(directory / "memory.current")
    return max(0, used_bytes - flat(directory / "memory.stat").get("inactive_file", 0))


def flat(file: Path) -> dict[str, int]:
    """A file of `key value` lines; {} when it cannot be read."""
    found: dict[str, int] = {}
    with contextlib.suppress(OSError):  # the controller is off, or the unit has just ended
        for line in file.read_text().splitlines():
            key, _, value = line.partition(" ")
            found[key] = int(value)
    return found


def number(file: Path) -> int:
    """A file of one number; 0 when it cannot be read."""
    try:
        return int(file.read_text())
    except OSError:  # as in flat
        return 0


def own() -> Path | None:
    """The cgroup of this process; None where there is no cgroup v2."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        hierarchy, _, path = line.split(":", 2)
        if hierarchy == "0" and (ROOT / "cgroup.controllers").exists():
            return ROOT / path.lstrip("/")
    return None


class CgroupMeter:
    """A unit's cgroup, read again and again; CPU as percent of one core."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.reading: CgroupReading | None = None
        self._cpu: CpuMeter | None = None

    def sample(self) -> Figures | None:
        """Read it now; None when it is gone."""
        self.reading = found = read(self.directory)
        if found is None:
            return None
        if self._cpu is None:
            self._cpu = CpuMeter.begin(found.cpu_seconds)
        percent = self._cpu.update(found.cpu_seconds)
        return Figures(percent, found.memory_bytes, False, found.cpu_seconds, found.tasks)
