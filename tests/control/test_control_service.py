"""`marketprism control` as systemd starts it: with open sockets, beside a systemd that answers or does not."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fake_systemd import fake_systemd

from marketprism.control.systemd import unit_name

# The sockets become descriptors 3 and 4, as with systemd, and the pid is that of the program.
AS_SYSTEMD_DOES = """
import os, sys
a, b = os.dup(int(sys.argv[1])), os.dup(int(sys.argv[2]))
high = [os.dup2(fd, 200 + n) for n, fd in enumerate((a, b))]
for n, fd in enumerate(high):
    os.dup2(fd, 3 + n)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2", LISTEN_FDNAMES="health:metrics")
os.execv(sys.executable, [sys.executable, "-m", "marketprism", "control", "--config", sys.argv[3]])
"""


class Control:
    """The program, and how to ask it."""

    def __init__(self, folder: Path, process: subprocess.Popen[str], ports: list[int]) -> None:
        self.folder = folder
        self.process = process
        self._health, self._metrics = ports

    def ask(self, path: str) -> tuple[int, str]:
        port = self._metrics if path == "/metrics" else self._health
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode()

    def stop(self) -> str:
        """What it has said."""
        self.process.send_signal(signal.SIGTERM)
        said, _ = self.process.communicate(timeout=30)
        return said


@contextmanager
def control(folder: Path, config: str = "system: {}\n", **environ: str) -> Iterator[Control]:
    (folder / "config.yaml").write_text(config)
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.bind(str(folder / "notify"))
    notify.settimeout(30)
    environment = {
        **os.environ,
        "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={folder}/none",
        "MARKETPRISM_RUNTIME_DIR": str(folder / "run"),
        "MARKETPRISM_LOG_DIR": str(folder / "log"),
        "STATE_DIRECTORY": str(folder),
        "NOTIFY_SOCKET": str(folder / "notify"),
        "WATCHDOG_USEC": "30000000",
        **environ,
    }
    fds = [sock.fileno() for sock in sockets]
    process = subprocess.Popen(
        [sys.executable, "-c", AS_SYSTEMD_DOES, *map(str, fds), str(folder / "config.yaml")],
        env=environment,
        pass_fds=fds,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        told = b""
        while b"READY=1" not in told:
            told = notify.recv(4096)
        yield Control(folder, process, [sock.getsockname()[1] for sock in sockets])
        told = b""
        while b"WATCHDOG=1" not in told:
            told = notify.recv(4096)
    finally:
        process.kill()
        process.communicate()
        for sock in (*sockets, notify):
            sock.close()


def test_without_sockets_it_says_what_it_needs(tmp_path: Path) -> None:
    environ = os.environ | {"MARKETPRISM_RUNTIME_DIR": str(tmp_path), "MARKETPRISM_LOG_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "marketprism", "control"]
    found = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert found.returncode == 1
    lines = [line for line in found.stderr.splitlines() if "warnings; see" not in line]
    assert len(lines) == 1
    assert "expected the sockets health and metrics from systemd" in lines[0]
    assert "marketprism launcher" in lines[0]


def test_without_systemd_it_does_not_claim_health(tmp_path: Path) -> None:
    with control(tmp_path) as found:
        status, text = found.ask("/health")
        assert status == 503
        assert "cannot reach the system bus: No such file or directory" in json.loads(text)["reasons"]
        assert found.ask("/live") == (200, '{"live": true}')
        assert "marketprism_uptime_seconds" in found.ask("/metrics")[1]
        found.stop()
        assert found.process.returncode == 0
        main = (tmp_path / "log" / "collector_main.log").read_text()
        assert "[control] [INFO] control plane stopped" in main
        assert (tmp_path / "log" / "unified-collector.log").readlink() == Path("collector_main.log")


def test_a_broken_configuration_and_a_bad_token_do_not_stop_it(tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "control.token").write_text("short\n")
    with control(tmp_path, config="exchanges: [\n", CREDENTIALS_DIRECTORY=str(credentials)) as found:
        assert found.ask("/live")[0] == 200
        said = found.stop()
    assert "config.yaml" in said
    assert "actions are off: expected a token of at least 16 characters" in said
    assert "short" not in said
    assert "Traceback" not in said


def test_beside_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first answer on it knows the workers."""
    started = ("t", int(time.monotonic() * 1e6))

    def first_answer(address: str) -> tuple[int, str]:
        with control(tmp_path, DBUS_SYSTEM_BUS_ADDRESS=address) as found:
            return found.ask("/health")

    async def run() -> None:
        async with fake_systemd(tmp_path, monkeypatch) as fake:
            fake.add(unit_name("okx_spot"), ExecMainStartTimestampMonotonic=started)
            address = os.environ["DBUS_SYSTEM_BUS_ADDRESS"]
            status, text = await asyncio.to_thread(first_answer, address)
        found = json.loads(text)["processes"]["okx_spot"]
        assert (found["state"], found["pid"], found["memory_soft_mb"]) == ("running", 4711, 120)
        assert (status, found["status"]) == (200, "degraded")  # nothing has been heard of it yet

    asyncio.run(run())
