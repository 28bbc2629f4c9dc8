"""The processes that quickstart starts, and stops in order."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from marketprism.quickstart import stop

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None, use_errno=True)
_FAMILY_ENV = "MARKETPRISM_QUICKSTART_PID"  # inherited, so that we know all that descends from us
_POLL_S = 0.05
_LOG_LINES_SHOWN = 12


class QuickstartError(Exception):
    """Quickstart cannot go on; the text is for a person."""


class StopRequestedError(Exception):
    """Ctrl-C or SIGTERM came while something was being waited for."""


@dataclass(frozen=True, slots=True)
class Child:
    """A running process in a session of its own, out of reach of Ctrl-C; what it prints is in `log`."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Raises QuickstartError with the child's last words when it has ended."""
        code = self.process.poll()
        if code is not None:
            raise QuickstartError(
                f"{self.name} ended {_how(code)}. The end of {self.log}:\n{_tail(self.log)}"
            )


def start(
    name: str,
    argv: Sequence[str | Path],
    log: Path,
    cwd: Path,
    env: Mapping[str, str],
    *,
    batch: bool = False,
) -> Child:
    """Start `argv` with its output in `log`. It dies with this process, even when that is killed with -9.

    `batch`: it takes no core from whoever wakes it up (SCHED_BATCH, sched(7)). A NATS server that does throws each
    worker off its core in the middle of a write: with it the time from socket to NATS was 0.13 ms, without 0.38.
    Raises QuickstartError when the program cannot be run.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env={**os.environ, **env, _FAMILY_ENV: str(os.getpid())},
                start_new_session=True,
                preexec_fn=_before_exec(os.getpid(), batch),  # noqa: PLW1509 - this process has one thread
            )
        except OSError as exc:
            raise QuickstartError(f"cannot start {name} ({argv[0]}): {exc.strerror}") from exc
    return Child(name, process, log)


def _before_exec(parent_pid: int, batch: bool) -> Callable[[], None]:
    def prepare() -> None:
        stop.unblock()
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent_pid:  # it died before prctl took hold
            os._exit(1)
        if batch:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))

    return prepare


def wait_until(ready: Callable[[], bool], what: str, children: Sequence[Child], timeout_s: float) -> None:
    """Wait for `ready`.

    Raises QuickstartError when a child ends or after `timeout_s`, StopRequestedError on Ctrl-C.
    """
    deadline = time.monotonic() + timeout_s
    while not ready():
        for child in children:
            child.check()
        if time.monotonic() > deadline:
            last = children[-1]
            raise QuickstartError(
                f"{what}: not after {timeout_s:.0f} s. The end of {last.log}:\n{_tail(last.log)}"
            )
        if stop.requested_within(_POLL_S):
            raise StopRequestedError


def stop_all(children: Sequence[Child], patience_s: float = 20.0) -> None:
    """Stop the last started first: with SIGTERM, and after `patience_s` or a second Ctrl-C with SIGKILL.

    What a child leaves behind, as the launcher may its workers, ends before the next child is stopped.
    """
    hurried = False
    for index in reversed(range(len(children))):
        spared = {other.process.pid for other in children[:index]}
        hurried = _stop_one(children[index], spared, 0 if hurried else patience_s) or hurried


def _stop_one(child: Child, spared: set[int], patience_s: float) -> bool:
    """True when Ctrl-C came again."""
    deadline = time.monotonic() + patience_s
    child.process.terminate()
    hurried = _hurried(lambda: child.process.poll() is None, deadline)
    child.process.kill()
    child.process.wait()
    hurried = _hurried(lambda: bool(_family(spared)), 0 if hurried else deadline) or hurried
    for left in _family(spared):
        with contextlib.suppress(psutil.NoSuchProcess):
            left.kill()
    return hurried


def _hurried(going_on: Callable[[], bool], deadline: float) -> bool:
    """Wait while `going_on`, until `deadline`; True when Ctrl-C cut that short."""
    while going_on() and time.monotonic() < deadline:
        if stop.requested_within(_POLL_S):
            return True
    return False


def _family(spared: set[int]) -> list[psutil.Process]:
    """Every living process that descends from a child of ours, whoever its parent is now, but the `spared`."""
    return [process for process in psutil.process_iter() if process.pid not in spared and _is_ours(process)]


def _is_ours(process: psutil.Process) -> bool:
    try:
        return process.environ().get(_FAMILY_ENV) == str(os.getpid())
    except (psutil.Error, OSError):  # it ended meanwhile, or belongs to somebody else
        return False


def _how(code: int) -> str:
    return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit status {code}"


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-_LOG_LINES_SHOWN:]
    return "\n".join(f"    {line}" for line in lines) or "    (nothing)"
