"""The processes that quickstart starts, and stops in order."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from marketprism.quickstart import stop

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None, use_errno=True)
_POLL_S = 0.05
_LOG_LINES_SHOWN = 12


class QuickstartError(Exception):
    """Quickstart cannot go on; the text is for a person."""


class StopRequestedError(Exception):
    """Ctrl-C or SIGTERM came while something was being waited for."""


@dataclass(frozen=True, slots=True)
class Child:
    """A running process, leader of its own process group; what it prints is in `log`."""

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


def start(name: str, argv: Sequence[str | Path], log: Path, cwd: Path, env: Mapping[str, str]) -> Child:
    """Start `argv` with its output in `log`. It dies with this process, even when that is killed with -9.

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
                env={**os.environ, **env},
                start_new_session=True,
                preexec_fn=_before_exec(os.getpid()),  # noqa: PLW1509 - this process has one thread
            )
        except OSError as exc:
            raise QuickstartError(f"cannot start {name} ({argv[0]}): {exc.strerror}") from exc
    return Child(name, process, log)


def _before_exec(parent_pid: int) -> Callable[[], None]:
    def prepare() -> None:
        stop.unblock()
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent_pid:  # it died before prctl took hold
            os._exit(1)

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
    """Stop the last started first: with SIGTERM, and after `patience_s` or a second Ctrl-C with SIGKILL."""
    hurried = False
    for child in reversed(children):
        hurried = _stop_one(child, 0 if hurried else patience_s) or hurried


def _stop_one(child: Child, patience_s: float) -> bool:
    """True when Ctrl-C came again."""
    deadline = time.monotonic() + patience_s
    hurried = False
    if child.process.poll() is None:
        child.process.terminate()
    while child.process.poll() is None and time.monotonic() < deadline and not hurried:
        hurried = stop.requested_within(_POLL_S)
    _kill_group(child.process.pid)
    child.process.wait()
    return hurried


def _kill_group(group: int) -> None:
    """Whatever is left of a child's group: nothing, when it stopped well."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def _how(code: int) -> str:
    return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit status {code}"


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-_LOG_LINES_SHOWN:]
    return "\n".join(f"    {line}" for line in lines) or "    (nothing)"
