"""Where and with what a figure was measured, so that it can be compared with another one."""

import os
import platform
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
NATS_SERVER = Path(sys.executable).with_name("nats-server")
_PACKAGES = (
    "marketprism",
    "msgspec",
    "picows",
    "websockets",
    "uvloop",
    "nats-py",
    "aiohttp",
    "prometheus-client",
)


@dataclass(frozen=True, slots=True)
class Machine:
    """All that bears on a figure.

    `load_before`: the machine's load average over a minute before the run. `loop_ms`: what the same pure Python loop
    takes at best, in milliseconds; builds of one version differ by a factor of two, and a build does not say so.
    """

    date: str
    commit: str
    cpu: str
    cores: int
    memory_gb: float
    system: str
    load_before: float
    python: str
    python_config_args: str
    loop_ms: float
    versions: dict[str, str]

    @classmethod
    def here(cls) -> "Machine":
        """This machine, now."""
        return cls(
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            commit=_commit(),
            cpu=_cpu(),
            cores=os.cpu_count() or 0,
            memory_gb=round(psutil.virtual_memory().total / 2**30, 1),
            system=f"{platform.system()} {platform.release()}, {_distribution()}",
            load_before=round(os.getloadavg()[0], 2),
            python=f"{platform.python_implementation()} {platform.python_version()}",
            python_config_args=sysconfig.get_config_var("CONFIG_ARGS") or "",
            loop_ms=round(min(_loop_ms() for _ in range(15)), 2),
            versions=dict(_versions()),
        )

    def lines(self) -> Iterator[str]:
        """For a person."""
        yield f"{self.date}, commit {self.commit}"
        yield f"{self.cpu}, {self.cores} cores, {self.memory_gb:g} GB, {self.system}"
        yield f"{self.python}, " + ", ".join(f"{name} {number}" for name, number in self.versions.items())
        yield f"load average before the run: {self.load_before:g}; the reference loop takes {self.loop_ms:g} ms at best"


def _commit() -> str:
    """The commit, and whether files differ from it."""
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--dirty=, changed"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return "unknown distribution"


def _loop_ms() -> float:
    began_ns = time.process_time_ns()
    levels: dict[float, tuple[str, str]] = {}
    for i in range(20_000):
        price = float(f"{60_000 + i % 700}.5")
        levels[price] = (str(i), "0.5")
        if i % 7 == 0:
            levels.pop(price, None)
    return (time.process_time_ns() - began_ns) / 1e6


def _versions() -> Iterator[tuple[str, str]]:
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            yield name, version(name)
    yield "nats-server", _nats_server()


def _nats_server() -> str:
    try:
        told = subprocess.run([NATS_SERVER, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "none"
    return told.rpartition("v")[2].strip()
