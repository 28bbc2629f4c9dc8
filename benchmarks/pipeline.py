"""The whole pipeline on loopback, each part its own process: NATS, the simulated exchanges, launcher, workers."""

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import yaml

from benchmarks.load import Load, symbol_names
from benchmarks.machine import NATS_SERVER, ROOT
from marketprism.quickstart import children
from marketprism.quickstart.children import Child
from marketprism.quickstart.figures import fetch

SHIPPED_CONFIG = ROOT / "config/collector/unified_data_collection.yaml"
_START_TIMEOUT_S = 90.0
_MEMORY = {"soft_mb": 1000, "hard_mb": 2000}  # of a worker with more symbols than shipped


class _Process(msgspec.Struct):
    process: str
    pid: int | None
    live_books: int
    expected_books: int
    websockets: int
    expected_websockets: int

    @property
    def is_complete(self) -> bool:
        return 0 < self.live_books == self.expected_books and 0 < self.websockets == self.expected_websockets


class Health(msgspec.Struct):
    """The answer of /health, as far as it is used; `processes` is by exchange."""

    status: str
    processes: dict[str, _Process]


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A running pipeline. `running`: NATS, the simulator, the launcher."""

    running: list[Child]
    health_url: str
    metrics_url: str
    nats_url: str
    config: Path

    def health(self) -> Health | None:
        """What /health says; None while nobody answers."""
        body = fetch(self.health_url)
        return None if body is None else msgspec.json.decode(body, type=Health)

    def metrics(self) -> str:
        """The text of /metrics. Raises OSError when nobody answers."""
        body = fetch(self.metrics_url)
        if body is None:
            raise OSError(f"{self.metrics_url} does not answer")
        return body.decode()

    def workers(self) -> dict[int, str]:
        """Process id → name of each worker process."""
        health = self.health()
        found = health.processes.values() if health is not None else ()
        return {entry.pid: entry.process for entry in found if entry.pid is not None}

    def others(self) -> dict[int, str]:
        """Process id → name of what runs beside the workers."""
        return {child.process.pid: child.name for child in self.running}

    def is_healthy(self) -> bool:
        """Whether nothing is wrong. A book that is silent for long is; with hundreds of symbols one may be."""
        health = self.health()
        return health is not None and health.status == "healthy"

    def is_complete(self) -> bool:
        """Whether every worker has all its sockets and books."""
        health = self.health()
        return health is not None and all(p.is_complete for p in health.processes.values())


@contextmanager
def pipeline(load: Load, *, single_process: bool = False) -> Iterator[Pipeline]:
    """Start everything on free ports in a temporary directory, wait until it is complete; stop it at the end.

    Raises children.QuickstartError when something does not start.
    """
    with TemporaryDirectory(prefix="marketprism-bench-") as name:
        folder = Path(name)
        nats, health, metrics = free_ports(3)
        nats_url = f"nats://127.0.0.1:{nats}"
        env = {
            "MARKETPRISM_NATS_URL": nats_url,
            "MARKETPRISM_RUNTIME_DIR": str(folder / "run"),
            "MARKETPRISM_LOG_DIR": str(folder / "logs"),
        }
        running: list[Child] = []
        urls = f"http://127.0.0.1:{health}/health", f"http://127.0.0.1:{metrics}/metrics"
        try:
            start_nats(running, folder, nats)
            config = _start_simulator(running, folder, env, load, health, metrics)
            mode = ("--single-process",) if single_process else ()
            start_marketprism(running, folder, env, "launcher", "--config", str(config), *mode)
            started = Pipeline(running, *urls, nats_url, config)
            children.wait_until(started.is_complete, "all sockets and books", running, _START_TIMEOUT_S)
            yield started
        finally:
            children.stop_all(running)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def start_nats(running: list[Child], folder: Path, port: int) -> None:
    """As config/nats/nats-server.conf has it, but for the ports and the place."""
    config = folder / "nats.conf"
    store = f'jetstream {{ store_dir: "{folder}/store" }}'
    config.write_text(f"listen: 127.0.0.1:{port}\nmax_payload: 8MB\n{store}\n")
    argv = [NATS_SERVER, "-c", config]
    running.append(children.start("nats", argv, folder / "nats.log", folder, {}, batch=True))
    children.wait_until(lambda: _greets(port), "NATS", running, _START_TIMEOUT_S)


def _greets(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
        return connection.recv(4) == b"INFO"
    return False


def _start_simulator(
    running: list[Child], folder: Path, env: dict[str, str], load: Load, health: int, metrics: int
) -> Path:
    """The configuration that leads to the simulated exchanges."""
    document = yaml.safe_load(SHIPPED_CONFIG.read_text())
    document["monitoring"] |= {"health_check": {"port": health}, "metrics": {"port": metrics}}
    for name, exchange in document["exchanges"].items():
        _shape(exchange, name, load)
    shipped, config = folder / "shipped.yaml", folder / "simulated.yaml"
    shipped.write_text(yaml.safe_dump(document))
    command = [sys.executable, "-m", "benchmarks.simulator", msgspec.json.encode(load).decode()]
    log = folder / "simulate.log"
    running.append(children.start("simulate", [*command, shipped, config], log, ROOT, env))

    def is_written() -> bool:
        return config.exists() and config.stat().st_size > 0

    children.wait_until(is_written, "the simulated exchanges", running, _START_TIMEOUT_S)
    return config


def _shape(exchange: dict[str, Any], name: str, load: Load) -> None:
    """Change the shipped settings of an exchange into those of the load."""
    if load.exchange not in (None, name):
        exchange["enabled"] = False
        return
    if load.symbols is not None:
        exchange |= {"symbols": symbol_names(name, load.symbols), "memory": _MEMORY}
    if load.levels is not None:
        exchange["orderbook"]["depth_limit"] = load.levels
        exchange["memory"] = _MEMORY


def start_marketprism(running: list[Child], folder: Path, env: dict[str, str], verb: str, *argv: str) -> None:
    command = [sys.executable, "-m", "marketprism", verb, *argv]
    running.append(children.start(verb, command, folder / f"{verb}.log", ROOT, env))
