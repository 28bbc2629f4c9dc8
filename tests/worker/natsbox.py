"""A real nats-server with JetStream for tests, and a cable to it that can be cut."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

START_TIMEOUT_S = 10.0


def nats_server() -> str | None:
    """Path of nats-server: beside the interpreter, else on PATH."""
    beside = Path(sys.executable).parent / "nats-server"
    return str(beside) if beside.exists() else shutil.which("nats-server")


def free_port() -> int:
    """A port nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def until(condition: Callable[[], bool], timeout_s: float = 10.0, what: str = "condition") -> None:
    """Return once the condition holds; AssertionError if it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s"
        await asyncio.sleep(0.005)


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
            [binary, "-c", str(self.folder / "nats.conf")], stdout=log, stderr=log
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
            self._process.wait()
            self._process = None

    def __enter__(self) -> "NatsBox":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class Cable:
    """A TCP relay to the server. It can lose the replies, pass only so many bytes, and be cut."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self.port = free_port()
        self.deaf = False
        """Replies are read and thrown away."""
        self.passed_bytes = 0
        self.limit_bytes: int | None = None
        """What goes beyond is thrown away on the way to the server."""

    @property
    def url(self) -> str:
        """Address of the near end."""
        return f"nats://127.0.0.1:{self.port}"

    async def plug(self) -> None:
        """Accept connections."""
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", self.port)

    async def cut(self) -> None:
        """Break every connection and accept no more."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _relay(self, near_reader: asyncio.StreamReader, near_writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        self._writers += [near_writer, far_writer]
        await asyncio.gather(self._up(near_reader, far_writer), self._down(far_reader, near_writer))

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if self.limit_bytes is not None:
                    data = data[: max(0, self.limit_bytes - self.passed_bytes)]
                self.passed_bytes += len(data)
                writer.write(data)
            writer.close()

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if not self.deaf:
                    writer.write(data)
            writer.close()
