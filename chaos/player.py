"""Carries out a schedule: exchange faults through the simulator, process faults by signals."""

import heapq
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import count
from typing import ClassVar

from chaos.explain import Fired
from chaos.pipeline import Pipeline
from chaos.schedule import AnyFault, ProcessFault, line
from chaos.stores import Stores

ORPHANS_GONE_S = 15.0
"""Workers whose launcher was killed stop in good order, for which they have ten seconds."""


class Player:
    """One run's faults. `fired`: those of processes; `problems`: what went wrong meanwhile."""

    def __init__(
        self,
        pipeline: Pipeline,
        stores: Stores | None,
        launcher: subprocess.Popen[bytes],
        say: Callable[[str], None],
    ) -> None:
        self.fired: list[Fired] = []
        self.problems: list[str] = []
        self._pipeline = pipeline
        self._stores = stores
        self._launcher = launcher
        self._say = say

    def play(self, faults: Iterable[AnyFault]) -> None:
        """Let each fault happen at its time; returns when the last one is over."""
        began = time.monotonic()
        serial = count()
        due = [(fault.at_s, next(serial), self._steps(fault)) for fault in faults]
        heapq.heapify(due)
        while due:
            at_s, _, steps = heapq.heappop(due)
            time.sleep(max(0.0, began + at_s - time.monotonic()))
            again_s = next(steps, None)
            if again_s is not None:
                heapq.heappush(due, (at_s + again_s, next(serial), steps))

    def _steps(self, fault: AnyFault) -> Iterator[float]:
        """Begins the fault, yields how long to leave it so, and ends it."""
        self._say(line(fault))
        if not isinstance(fault, ProcessFault):
            self._pipeline.simulator.inject_fault(fault)  # which knows when it is over
            return
        began_ms = _now_ms()
        yield from self._ACTS[fault.name](self, fault)
        self.fired.append(Fired(fault, began_ms, _now_ms()))

    # -- our processes -----------------------------------------------------------------------------------------

    def _kill_worker(self, fault: ProcessFault) -> Iterator[float]:
        pid = self._pid(fault.worker)
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        yield 0.0

    def _stop_worker(self, fault: ProcessFault) -> Iterator[float]:
        pid = self._pid(fault.worker)
        if pid is None:
            return
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            yield fault.seconds
            os.kill(pid, signal.SIGCONT)

    def _kill_launcher(self, fault: ProcessFault) -> Iterator[float]:
        pids = [
            entry["pid"] for entry in self._pipeline.health().get("processes", {}).values() if entry["pid"]
        ]
        self._launcher.kill()
        self._launcher.wait()
        deadline = time.monotonic() + ORPHANS_GONE_S
        while any(_runs(pid) for pid in pids) and time.monotonic() < deadline:
            yield 0.2
        left = [pid for pid in pids if _runs(pid)]
        if left:
            self.problems.append(f"workers {left} outlived their launcher by {ORPHANS_GONE_S:g} s")
        self._launcher = self._pipeline.run("launcher")

    def _kill_nats(self, fault: ProcessFault) -> Iterator[float]:
        self._pipeline.nats.kill()
        self._pipeline.nats.start()
        yield 0.0

    def _nats_away(self, fault: ProcessFault) -> Iterator[float]:
        self._pipeline.nats.kill()
        yield fault.seconds
        self._pipeline.nats.start()

    def _stop_nats(self, fault: ProcessFault) -> Iterator[float]:
        self._pipeline.nats.signal(signal.SIGSTOP)
        yield fault.seconds
        self._pipeline.nats.signal(signal.SIGCONT)

    def _kill_store(self, fault: ProcessFault) -> Iterator[float]:
        assert self._stores is not None
        self._stores.kill(fault.worker)
        yield fault.seconds
        self._stores.start(fault.worker)

    def _pid(self, worker: str) -> int | None:
        """The worker's process; None where it does not run, as after another fault."""
        pid = self._pipeline.health().get("processes", {}).get(worker, {}).get("pid")
        if pid is None:
            self._say(f"  {worker} does not run now: nothing to do")
        return pid

    _ACTS: ClassVar[Mapping[str, Callable[["Player", ProcessFault], Iterator[float]]]] = {
        "kill_worker": _kill_worker,
        "stop_worker": _stop_worker,
        "kill_launcher": _kill_launcher,
        "kill_nats": _kill_nats,
        "nats_away": _nats_away,
        "stop_nats": _stop_nats,
        "kill_hot": _kill_store,
        "hot_away": _kill_store,
        "kill_cold": _kill_store,
    }


def _runs(pid: int) -> bool:
    """Whether a process lives (one that has ended and waits for its parent does not)."""
    with suppress(OSError), open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] != "Z"
    return False


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
