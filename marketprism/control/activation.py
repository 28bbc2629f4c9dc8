"""Sockets that systemd has opened for us: sd_listen_fds_with_names(3). They stay open while we restart."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

_FIRST_FD = 3


def inherited(
    environ: Mapping[str, str] = os.environ, first_fd: int = _FIRST_FD
) -> dict[str, list[socket.socket]]:
    """Listening sockets by FileDescriptorName=; {} where nobody has handed us any.

    They are not for processes of ours. Raises OSError for a descriptor that is not a socket.
    """
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    found: dict[str, list[socket.socket]] = {}
    for fd, name in enumerate(names[: int(environ.get("LISTEN_FDS", "0"))], first_fd):
        os.set_inheritable(fd, False)
        found.setdefault(name, []).append(socket.socket(fileno=fd))
    return found
