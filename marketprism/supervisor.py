"""One supervised worker process: start it, watch its memory and heartbeat, stop it, start it again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass

from marketprism import logs
from marketprism.control.events import Events
from marketprism.control.health import report_of
from marketprism.control.processes import (
    MB,
    Figures,
    LastExit,
    MemoryVerdict,
    MemoryWatch,
    ProcessTable,
    RunState,
    WorkerView,
)
from marketprism.control.restarts import (
    REASONS,
    REQUESTED,
    RestartPolicy,
    RestartRules,
    describe_exit,
    exit_reason,
)
from marketprism.control.shared import Readings
from marketprism.parent import send_signal

_TAIL_LINES = 20
_LINE_BYTES = 16 * 1024

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What to run. `log`: the worker's own file, for what it prints raw. `environment` is all it gets."""

    name: str
    exchanges: tuple[str, ...]
    command: list[str]
    environment: Mapping[str, str]
    soft_mb: int
    hard_mb: int
    log: logs.RotatingFile
    restart: RestartRules


class Worker:
    """One supervised worker process: start, watch, stop, start again."""

    def __init__(self, spec: WorkerSpec, sinks: logs.Sinks, events: Events) -> None:
        self.spec = spec
        self.state = RunState.WAITING
        self.last_exit: LastExit | None = None
        self._sinks = sinks
        self._events = events
        self._policy = RestartPolicy(spec.restart)
        self._memory = MemoryWatch(spec.soft_mb * MB, spec.hard_mb * MB)
        self._restarts = dict.fromkeys(REASONS, 0)
        self._process: asyncio.subprocess.Process | None = None
        self._figures: Figures | None = None
        self._started_s = 0.0
        self._ordered: str | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._held = False  # stopped on request
        self._asked = asyncio.Event()  # to start now
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)

    def view(self) -> WorkerView:
        """This moment, for the control plane."""
        return WorkerView(
            name=self.spec.name,
            exchanges=self.spec.exchanges,
            state=self.state,
            pid=self._process.pid if self._process else None,
            uptime_s=time.monotonic() - self._started_s if self._process else 0.0,
            restarts=dict(self._restarts),
            last_exit=self.last_exit,
            soft_mb=self.spec.soft_mb,
            hard_mb=self.spec.hard_mb,
            figures=self._figures,
        )

    async def supervise(self, stop: asyncio.Event, ended: Callable[[int], None]) -> None:
        """Run the worker until `stop` is set; `ended(pid)` after each end of a process.

        One that is given up, or stopped on request, stays down until it is asked for again.
        """
        while not stop.is_set():
            self._held = False
            self._asked.clear()
            self.last_exit = last = await self._run_once(stop, ended)
            if not stop.is_set():
                await self._pause(self._delay_s(last), stop)
            if not stop.is_set():
                asked = self._asked.is_set() or last.reason == REQUESTED
                self._restarts[REQUESTED if asked else last.reason] += 1
        if self.state is not RunState.FAILED:
            self.state = RunState.ENDED

    def _delay_s(self, last: LastExit) -> float | None:
        """How long to wait with the next start; None: until somebody asks for it."""
        if last.reason == REQUESTED:
            log.info("%s ended on request", self.spec.name, extra={"event": "stopped"})
            delay_s: float | None = 0.0
        else:
            delay_s = self._policy.after_exit(last.reason, last.ran_s)
            self._tell_exit(last, delay_s)
            if delay_s is None:
                self.state = RunState.FAILED
        if self._held:
            self.state = RunState.ENDED
        return delay_s

    async def _pause(self, delay_s: float | None, stop: asyncio.Event) -> None:
        """Wait so long (None: for ever), unless somebody asks for something else before."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await _either(self._asked, stop)
        if self._held:
            await _either(self._asked, stop)

    def start(self) -> None:
        """On request: start it now, also one that was given up or waits."""
        self._held = False
        self._policy.in_a_row = 0
        if self._process is None:
            self._asked.set()

    def stop(self) -> None:
        """On request: stop it, and leave it so until somebody asks for it."""
        self._held = True
        self._asked.clear()
        if self._process is None:
            self.state = RunState.ENDED
        self.order_stop(REQUESTED, signal.SIGTERM)

    def restart(self) -> None:
        """On request: stop it and start it at once."""
        self.start()
        self.order_stop(REQUESTED, signal.SIGTERM)

    async def _run_once(self, stop: asyncio.Event, ended: Callable[[int], None]) -> LastExit:
        """Start the process, wait for its end, and say how it ended."""
        self._tail.clear()
        self._memory.above_soft = False
        self._ordered = None
        self._started_s = time.monotonic()
        try:
            process = await self._spawn()
        except OSError as exc:
            return LastExit("spawn", None, time.time(), 0.0, str(exc))
        self._process = process
        self.state = RunState.RUNNING
        log.info("%s started, pid %d", self.spec.name, process.pid, extra={"event": "started"})
        if stop.is_set():  # it came while the process was being started
            self.order_stop(None, signal.SIGTERM)
        return await self._until_end(process, ended)

    async def _until_end(self, process: asyncio.subprocess.Process, ended: Callable[[int], None]) -> LastExit:
        pumps = [asyncio.create_task(pump) for pump in self._pumps(process)]
        code = await process.wait()
        ran_s = time.monotonic() - self._started_s
        self.state = RunState.WAITING
        self._process = self._figures = None
        _kill_group(process.pid)  # whatever the worker started and left behind
        await asyncio.wait(pumps, timeout=1.0)
        for pump in pumps:
            pump.cancel()
        ended(process.pid)
        return LastExit(exit_reason(code, self._ordered), code, time.time(), ran_s, self._last_words())

    async def _spawn(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *self.spec.command,
            env=self.spec.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )

    def _pumps(self, process: asyncio.subprocess.Process) -> Iterator[Coroutine[None, None, None]]:
        assert process.stdout is not None  # asked for above
        assert process.stderr is not None
        yield _pump(process.stdout, self._take_stdout)
        yield _pump(process.stderr, self._take_stderr)

    def _take_stdout(self, line: str) -> None:
        if logs.is_line(line):
            self._sinks.write_line(line)
            self._events.note_line(line)
        else:
            self.spec.log.write_line(logs.redact(line))

    def _take_stderr(self, line: str) -> None:
        line = logs.redact(line)
        self.spec.log.write_line(line)
        self._tail.append(line)

    def _last_words(self) -> str:
        return next((line.strip()[:300] for line in reversed(self._tail) if line.strip()), "")

    def _tell_exit(self, last: LastExit, delay_s: float | None) -> None:
        """Say in one line what ended how and what comes next."""
        name, limit = self.spec.name, self.spec.restart.give_up_after
        how = "could not be started"
        if last.code is not None:
            how = f"ended: {describe_exit(last.code)} after {last.ran_s:.0f} s"
        words = f"; its last words: {last.words}" if last.words else ""
        if last.reason == "config":
            log.error("%s is not started again, its configuration is wrong (%s)%s", name, how, words)
        elif delay_s is None:
            advice = "the other workers run on; mend the cause, then restart the launcher"
            log.error("%s %s; GIVEN UP after %d restarts in a row, %s%s", name, how, limit, advice, words)
        else:
            when = f"in {delay_s:g} s" if delay_s else "at once"
            count = f"restart {self._policy.in_a_row} of at most {limit} in a row"
            log.warning("%s %s (%s); %s, %s%s", name, how, last.reason, count, when, words)

    def sample(self, table: ProcessTable) -> None:
        """Take a reading of the process and hold it against the memory limits."""
        if self._process is None:
            return
        self._figures = table.read(self._process.pid)
        if self._figures is not None and self.state is RunState.RUNNING:
            self._check_memory(self._figures.memory_bytes)

    def _check_memory(self, used_bytes: int) -> None:
        name, used_mb = self.spec.name, used_bytes / MB
        verdict = self._memory.judge(used_bytes)
        if verdict is MemoryVerdict.WARN:
            log.warning(
                "%s uses %.0f MB, above its soft limit of %d MB; it runs on", name, used_mb, self.spec.soft_mb
            )
        elif verdict is MemoryVerdict.STOP:
            log.error(
                "%s uses %.0f MB, above its hard limit of %d MB; stopping it",
                name,
                used_mb,
                self.spec.hard_mb,
            )
            self.order_stop("memory", signal.SIGTERM)

    def check_watchdog(self, readings: Readings, now_s: float) -> None:
        """As WatchdogSec= would: a worker whose loop has been stuck this long is aborted and started again."""
        ages = [report_of(readings, exchange, now_s).heartbeat_age_s for exchange in self.spec.exchanges]
        oldest_s = max((age_s for age_s in ages if age_s is not None), default=0.0)
        if self.state is RunState.RUNNING and oldest_s > self.spec.restart.watchdog_s:
            log.error("%s gave no sign of life for %.0f s; aborting it", self.spec.name, oldest_s)
            self.order_stop("watchdog", signal.SIGABRT)

    def order_stop(self, reason: str | None, first_signal: signal.Signals) -> None:
        """Begin to stop the process; `reason` is remembered as the cause of its end."""
        if self._process is None or self.state is RunState.STOPPING:
            return
        self.state = RunState.STOPPING
        self._ordered = reason
        self.send(first_signal)
        self.send(signal.SIGCONT)  # as systemd.kill(5) does: a frozen process cannot stop gracefully
        self._stopping = asyncio.create_task(self._kill_after_wait(self._process))

    async def _kill_after_wait(self, process: asyncio.subprocess.Process) -> None:
        try:
            async with asyncio.timeout(self.spec.restart.stop_wait_s):
                await process.wait()
        except TimeoutError:
            log.error(
                "%s did not stop within %g s; killing it", self.spec.name, self.spec.restart.stop_wait_s
            )
            self.kill()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process, if one runs."""
        if self._process is not None:
            send_signal(self._process, number)

    def kill(self) -> None:
        """SIGKILL to the process and whatever it started."""
        if self._process is not None and self._process.returncode is None:
            _kill_group(self._process.pid)


async def _either(one: asyncio.Event, other: asyncio.Event) -> None:
    """Wait for the first of two events."""
    waiting = [asyncio.create_task(event.wait()) for event in (one, other)]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


async def _pump(stream: asyncio.StreamReader, take: Callable[[str], None]) -> None:
    """Hand over every line of `stream`; an endless line is cut, never kept whole."""
    pending = b""
    while chunk := await stream.read(65536):
        *lines, pending = (pending + chunk).split(b"\n")
        if len(pending) > _LINE_BYTES:
            lines, pending = [*lines, pending], b""
        for line in lines:
            take(line.decode("utf-8", "replace"))
    if pending:
        take(pending.decode("utf-8", "replace"))
