"""What systemd hears of a process: the receiving end of $NOTIFY_SOCKET."""

import socket
import time
from pathlib import Path


class Systemd:
    """Listens in systemd's place."""

    def __init__(self, address: str | Path) -> None:
        self.address = str(address)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._socket.settimeout(5)

    def heard(self, timeout_s: float = 5) -> list[str]:
        """The lines of the next datagram. Raises TimeoutError."""
        self._socket.settimeout(timeout_s)
        return self._socket.recv(65536).decode().split("\n")

    def hear(self, word: str, timeout_s: float = 30) -> list[str]:
        """The next datagram that begins with this line; those before it are dropped. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while True:
            lines = self.heard(max(0.01, deadline - time.monotonic()))
            if lines[0] == word:
                return lines

    def waiting(self) -> list[str]:
        """The first lines of all that has come and was not asked for."""
        self._socket.setblocking(False)
        words = []
        while True:
            try:
                words.append(self._socket.recv(65536).decode().split("\n")[0])
            except BlockingIOError:
                return words

    def close(self) -> None:
        self._socket.close()
