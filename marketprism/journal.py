"""Log records to journald with fields of their own, by its native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL).

A field is `NAME=value`, or the name, its length and the value where that holds a line end. A record too large for a
datagram goes as a sealed memory file. So `journalctl EVENT=gap EXCHANGE=okx_spot` finds what it says.
"""

import errno
import fcntl
import logging
import os
import socket
import struct
from collections.abc import Callable

SOCKET = "/run/systemd/journal/socket"
PRIORITY = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2, "ALERT": 1}  # sd-daemon(3)
EXTRA = ("event", "exchange", "symbol")  # of a record's `extra`: they become fields of the same name

_TOO_LARGE = (errno.EMSGSIZE, errno.ENOBUFS)
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


class JournalHandler(logging.Handler):
    """Hands records to journald without ever waiting for it; what it does not take goes to `fallback`."""

    def __init__(
        self,
        identifier: str,
        exchange: Callable[[], str | None],
        fallback: logging.Handler,
        path: str = SOCKET,
    ) -> None:
        """`exchange()`: whose record this is, where the record itself does not say."""
        super().__init__()
        self._identifier = identifier
        self._exchange = exchange
        self._fallback = fallback
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._send(b"".join(_field(name, value) for name, value in self._fields(record).items()))
        except OSError:
            self._fallback.handle(record)

    def close(self) -> None:
        self._socket.close()
        self._fallback.close()
        super().close()

    def _fields(self, record: logging.LogRecord) -> dict[str, str]:
        fields = {
            "MESSAGE": self.format(record),
            "PRIORITY": str(PRIORITY.get(record.levelname, 6)),
            "SYSLOG_IDENTIFIER": self._identifier,
            "LOGGER": record.name,
            "CODE_FILE": record.pathname,
            "CODE_LINE": str(record.lineno),
            "CODE_FUNC": record.funcName,
            "EXCHANGE": self._exchange() or "",
        }
        fields |= {name.upper(): str(getattr(record, name)) for name in EXTRA if hasattr(record, name)}
        return {name: value for name, value in fields.items() if value}

    def _send(self, datagram: bytes) -> None:
        try:
            self._socket.sendto(datagram, self._path)
        except OSError as e:
            if e.errno not in _TOO_LARGE:
                raise
            self._send_file(datagram)

    def _send_file(self, data: bytes) -> None:
        """As an empty datagram with a file descriptor; journald takes sealed files only."""
        fd = os.memfd_create("journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with os.fdopen(os.dup(fd), "wb") as file:
                file.write(data)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", fd))
            self._socket.sendmsg([], [rights], 0, self._path)
        finally:
            os.close(fd)


def _field(name: str, value: str) -> bytes:
    data = value.encode("utf-8", "backslashreplace")
    if b"\n" not in data:
        return b"%b=%b\n" % (name.encode(), data)
    return b"%b\n%b%b\n" % (name.encode(), struct.pack("<Q", len(data)), data)
