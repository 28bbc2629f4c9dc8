"""The tie between a worker and the launcher that started it: no worker outlives its launcher.

Kept apart from the launcher so that a worker can use it without loading the launcher's web server.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal

PARENT_PID_ENV = "MARKETPRISM_PARENT_PID"

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def started_by_launcher() -> bool:
    """True when a launcher started this process and reads its standard output."""
    return PARENT_PID_ENV in os.environ


def die_with_parent() -> None:
    """Let the kernel send this process SIGTERM when its launcher dies, even by kill -9.

    Call it first thing in a worker; it does nothing without a launcher. prctl(2) holds only from the call
    on, so a launcher that died before it is noticed by the changed parent pid.

    Raises OSError when the kernel refuses.
    """
    expected = os.environ.get(PARENT_PID_ENV)
    if expected is None:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) was refused")
    if os.getppid() != int(expected):
        os.kill(os.getpid(), signal.SIGTERM)


def stop_within(seconds: int) -> None:
    """End this process after `seconds`, whatever it is doing then.

    Call it when a graceful stop begins, from the main thread. The kernel's default action on SIGALRM needs no
    Python to run, so it works in a stuck process, too, and without a launcher that would send SIGKILL.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)


def send_signal(child: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """Send a signal to a child, if it still runs.

    Not by its own send_signal: that asks the kernel for the exit status first, and so takes it away from asyncio,
    which then tells 255 for a child that ended in this moment.
    """
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, number)


class Orphans:
    """As process 1 of a container: ends of processes that lost their parent are waited for, or they pile up."""

    def __init__(self) -> None:
        self._ended = 0

    def reap(self) -> None:
        """Call it now and then. The event loop waits for its own children at once, so who is still there the second
        time is an orphan."""
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # no children
            found = None
        pid = found.si_pid if found else 0
        if pid and pid == self._ended:
            os.waitpid(pid, 0)
        self._ended = pid
