"""A real nats-server with JetStream, to be killed, stopped and started again."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

START_TIMEOUT_S = 10.0


def nats_server() -> str | None:
    """Path of nats-server: beside the interpreter, else on PATH."""
    beside = Path(sys.executable).parent / "nats-server"
    return str(beside) if beside.exists() else shutil.which("nats-server")


def free_port() -> int:
    """A port nobody listened on a moment ago.

    From below those that the kernel gives to outgoing connections, so that a server that is away finds it free again.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


class NatsBox:
    """One server on a free port; `stop`, `kill` and `start` again keep port and store."""

    def __init__(self, folder: Path, config: str = "") -> None:
        """Prepare; `config` is added to the server's configuration file."""
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.configure(config)

    def configure(self, config: str, jetstream: str = "") -> None:
        """Write the configuration file; it counts from the next start."""
        store = f'store_dir: "{self.folder}/store"'
        text = f"listen: 127.0.0.1:{self.port}\njetstream {{ {store}\n{jetstream} }}\n{config}\n"
        (self.folder / "nats.conf").write_text(text)

    def start(self) -> None:
        """Start and wait until it greets."""
        binary = nats_server()
        assert binary is not None
        log = (self.folder / "nats.log").open("ab")
        self._process = subprocess.Popen(
            [binary, "-c", str(self.folder / "nats.conf")], stdout=log, stderr=log, start_new_session=True
        )
        log.close()
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._greets():
            assert self._process.poll() is None, (self.folder / "nats.log").read_text()
            assert time.monotonic() < deadline, "nats-server does not answer"
            time.sleep(0.01)

    def _greets(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
            return connection.recv(4) == b"INFO"
        return False

    def signal(self, number: signal.Signals) -> None:
        """Send the server a signal, SIGSTOP for instance."""
        assert self._process is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """kill -9, and wait for its end."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """Ask it to end, and wait."""
        if self._process is not None:
            self._process.terminate()
            self._process.send_signal(signal.SIGCONT)  # should it stand still
            self._process.wait()
            self._process = None

    def __enter__(self) -> "NatsBox":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
