"""A process's memory against its limits: warn at the soft one, stop in good order before the hard one.

Why not leave it to the kernel: above MemoryHigh it slows a process down until that can neither work nor stop, and at
MemoryMax it kills it. So both limits are kept here, and the kernel's are the last line.
"""

import ctypes
import gc
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from marketprism.config import MemoryLimits

MB = 2**20
SAMPLE_S = 0.25
SAMPLE_ABOVE_SOFT_S = 0.05
DRAIN_AT = 0.93  # of the hard limit: room to drain in
DRAIN_S = 0.5  # what a drain takes: memory that grows steadily must not reach the hard limit in it
REARM_AT = 0.9  # of the soft limit: below it the next warning may come
_HALF_S = 0.5  # of the time over which growth is measured

Verdict = Literal["", "soft", "hard"]
Read = Callable[[], int]


class Memory:
    """Memory in use, held against limits that may be changed at any time."""

    def __init__(self, limits: MemoryLimits, read: Read | None = None) -> None:
        """`read()` gives the bytes in use; without it: see `memory_of_this_process`."""
        self.limits = limits
        self.soft_exceeded = False
        self.read = read or memory_of_this_process()
        self._samples: deque[tuple[float, int]] = deque()

    def check(self, now_s: float | None = None) -> Verdict:
        """Look: "" all is well, "soft" the first time above the soft limit, "hard" near the hard one.

        "soft" always comes first, so that nothing is stopped without a warning and what could be given back was.
        """
        now_s = time.monotonic() if now_s is None else now_s
        used = self.read()
        soft, hard = self.limits.soft_mb * MB, self.limits.hard_mb * MB
        growth = self._growth(used, now_s)
        if used >= soft and not self.soft_exceeded:
            self.soft_exceeded = True
            return "soft"
        if used >= DRAIN_AT * hard or (used >= soft and used + growth * DRAIN_S >= hard):
            return "hard"
        if used < REARM_AT * soft:
            self.soft_exceeded = False
        return ""

    @property
    def pause_s(self) -> float:
        """When to look again."""
        return SAMPLE_ABOVE_SOFT_S if self.soft_exceeded else SAMPLE_S

    def _growth(self, used: int, now_s: float) -> float:
        """Bytes a second, of steady growth only: the lesser of two halves of a second. A burst is in one of them."""
        samples = self._samples
        samples.append((now_s, used))
        while len(samples) > 1 and samples[1][0] <= now_s - 2 * _HALF_S:
            samples.popleft()
        began_s, first = samples[0]
        middle_s, middle = next((s for s in reversed(samples) if s[0] <= now_s - _HALF_S), samples[0])
        if middle_s <= began_s:
            return 0.0
        return max(0.0, min((used - middle) / (now_s - middle_s), (middle - first) / (middle_s - began_s)))


def memory_of_this_process() -> Read:
    """The working set of its cgroup where it is alone in one that counts memory, else its resident set (RSS)."""
    return _cgroup_reader() or _rss_reader()


def give_back() -> None:
    """Return to the kernel what is free and held. Takes some milliseconds."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def _cgroup_reader(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> Read | None:
    """cgroup v2: what is charged without the page cache not used lately, as the kernel can drop that (kubelet's way).

    A launcher's worker or a shell's is not alone in its cgroup: what is charged there says nothing of it.
    """
    try:
        lines = membership.read_text().splitlines()
        path = next((line[3:] for line in lines if line.startswith("0::")), None)
        if path is None:
            return None
        folder = root / path.lstrip("/")
        if folder.joinpath("cgroup.procs").read_text().split() != [str(os.getpid())]:
            return None
        current = os.open(folder / "memory.current", os.O_RDONLY | os.O_CLOEXEC)
        stat = os.open(folder / "memory.stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None

    def read() -> int:
        inactive = os.pread(stat, 8192, 0).partition(b"\ninactive_file ")[2].split(None, 1)[:1]
        return int(os.pread(current, 32, 0)) - int(inactive[0] if inactive else 0)

    return read


def _rss_reader() -> Read:
    statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    return lambda: int(os.pread(statm, 100, 0).split()[1]) * page_bytes
