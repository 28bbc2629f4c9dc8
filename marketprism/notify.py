"""What systemd is told of this process: sd_notify(3), a datagram to the socket that $NOTIFY_SOCKET names.

Without that variable all calls do nothing. What is sent is ASCII, one assignment a line; other characters are
written as escapes, since systemd throws away a whole datagram that is not clean UTF-8, WATCHDOG=1 and all. An error
is logged once until a datagram goes through again, and what may not be lost is kept until then.
"""

import logging
import os
import socket
import time
from collections import deque
from collections.abc import Mapping

log = logging.getLogger(__name__)

_KEPT_MAX = 16
_STATUS_MAX_CHARS = 500


class Notifier:
    """Tells systemd. Never waits: a full socket counts as an error."""

    def __init__(self, address: str = "", watchdog_s: float | None = None) -> None:
        """`address`: path of the socket, or @name of an abstract one; "": nobody listens.

        `watchdog_s`: how often systemd wants a sign of life at least; None: it wants none.
        """
        self.watchdog_s = watchdog_s
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        self._kept: deque[bytes] = deque(maxlen=_KEPT_MAX)
        self._failing = False

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> "Notifier":
        """By $NOTIFY_SOCKET, $WATCHDOG_USEC and $WATCHDOG_PID (sd_watchdog_enabled(3))."""
        usec, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", str(os.getpid()))
        ours = usec.isdecimal() and int(usec) > 0 and pid == str(os.getpid())
        return cls(environ.get("NOTIFY_SOCKET", ""), int(usec) / 1e6 if ours else None)

    @property
    def wanted(self) -> bool:
        """Whether anybody listens."""
        return bool(self._address)

    def ready(self, status: str) -> None:
        """Started, or reloaded."""
        self._send("READY=1", _status(status), keep=True)

    def reloading(self) -> None:
        """The configuration is being read again; `ready` has to follow."""
        usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={usec}", keep=True)

    def stopping(self, status: str) -> None:
        """The end has begun."""
        self._send("STOPPING=1", _status(status), keep=True)

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(_status(text))

    def watchdog(self) -> None:
        """A sign of life."""
        self._send("WATCHDOG=1")

    def close(self) -> None:
        """Release the socket."""
        self._socket.close()

    def _send(self, *assignments: str, keep: bool = False) -> None:
        if not self._address:
            return
        datagram = "\n".join(assignments).encode("ascii", "backslashreplace")
        try:
            while self._kept:  # each in a datagram of its own: READY=1 beside RELOADING=1 would be lost
                self._socket.sendto(self._kept[0], self._address)
                self._kept.popleft()
            self._socket.sendto(datagram, self._address)
            self._failing = False
        except OSError as e:
            if keep:
                self._kept.append(datagram)
            if not self._failing:
                log.error(
                    "systemd cannot be told %s: %s", assignments[0], e.strerror, extra={"event": "notify"}
                )
            self._failing = True


def _status(text: str) -> str:
    """A status on one line: a line end in it would begin another assignment."""
    return f"STATUS={' '.join(text.split())[:_STATUS_MAX_CHARS]}"
