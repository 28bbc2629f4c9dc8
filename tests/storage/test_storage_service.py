"""What systemd is told of a store, and what ends it: the service around a store that does nothing."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAM = """\
import asyncio, sys
from marketprism.config import MemoryLimits
from marketprism.storage.service import Service

class Store:
    ready = True
    def status(self): return "all well"
    def stuck(self): return sys.argv[2]

async def main():
    async with Service(Store(), MemoryLimits(soft_mb=1, hard_mb=int(sys.argv[1]))) as service:
        await service.stopping.wait()
        await asyncio.sleep(0.1)  # as a store does that still has something to put away
    return service.exit_status

sys.exit(asyncio.run(main()))
"""


class Told:
    """What a process tells systemd."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(20)
        self.lines: list[str] = []

    def until(self, line: str, times: int = 1) -> None:
        """Read on until this is told, so often in all."""
        while self.lines.count(line) < times:
            self.lines += self._socket.recv(4096).decode().splitlines()


@contextmanager
def service(
    folder: Path, *, hard_mb: int = 4000, stuck: str = ""
) -> Iterator[tuple[subprocess.Popen[str], Told]]:
    told = Told(folder / "notify")
    environment = os.environ | {"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "2000000"}
    environment.pop("WATCHDOG_PID", None)
    command = [sys.executable, "-c", PROGRAM, str(hard_mb), stuck]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process, told
        finally:
            process.kill()


def test_ready_status_signs_of_life_and_a_stop_on_request(tmp_path: Path) -> None:
    with service(tmp_path) as (process, told):
        told.until("READY=1")
        told.until("STATUS=all well")
        told.until("WATCHDOG=1")
        process.send_signal(signal.SIGTERM)
        told.until("STOPPING=1")
        assert process.wait(20) == 0


def test_a_stuck_store_gives_no_sign_of_life(tmp_path: Path) -> None:
    with service(tmp_path, stuck="the engine") as (process, told):
        told.until("READY=1")
        told.until(
            "STATUS=all well", 3
        )  # ready's own, and one each five seconds: two and a half times the limit
        assert "WATCHDOG=1" not in told.lines
        process.terminate()
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert "the engine: no sign of life is given to systemd any more" in process.stderr.read()


def test_near_its_hard_limit_it_ends_in_good_order_to_be_started_again(tmp_path: Path) -> None:
    with service(tmp_path, hard_mb=2) as (process, told):
        told.until("STATUS=stopping: memory")
        assert process.wait(20) == 75
