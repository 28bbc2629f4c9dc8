"""The supervisor for a machine without systemd: starts the workers, watches them, and serves 8087 and 9092.

A worker's fault is its own: each has its process, restart count and log file. Workers live in sessions of
their own, so Ctrl-C reaches the launcher only, and they are tied to it by `parent.die_with_parent`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client.core import Metric

from marketprism import __version__, logs
from marketprism.control import health, ports, server
from marketprism.control.actions import Actions, TokenError, read_token
from marketprism.control.events import Events
from marketprism.control.plane import ActionError, ControlPlane, Verb
from marketprism.control.processes import Figures, ProcessTable, RunState, WorkerView
from marketprism.control.restarts import EX_CONFIG, RestartRules
from marketprism.control.shared import SharedMetrics
from marketprism.parent import PARENT_PID_ENV, Orphans
from marketprism.supervisor import Worker, WorkerSpec

ALL = "all"  # the one worker of single-process mode

# Soft and hard limits in MB (1048576 bytes) of resident memory.
DEFAULT_MEMORY_MB: Mapping[str, tuple[int, int]] = {
    "okx_derivatives": (150, 200),
    "okx_spot": (120, 160),
    "binance_derivatives": (100, 140),
    "binance_spot": (80, 120),
    "deribit_derivatives": (60, 100),
}

_HEALTH_LOG_EVERY_S = 2.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LauncherOptions:
    """What to run and where. Port 0 takes any free one (see `<runtime_dir>/launcher.json`)."""

    config: Path
    exchanges: tuple[str, ...]
    single_process: bool
    log_dir: Path
    runtime_dir: Path
    health_port: int = 8087
    metrics_port: int = 9092
    bind_host: str = "127.0.0.1"
    memory: Mapping[str, tuple[int, int]] = field(default_factory=lambda: dict(DEFAULT_MEMORY_MB))
    worker_command: Callable[[str], list[str]] | None = None
    restart: RestartRules = field(default_factory=RestartRules)
    health: health.HealthRules = field(default_factory=health.HealthRules)
    sample_s: float = 0.25
    actions_token_file: Path | None = None
    log_level: str = "INFO"
    log_max_bytes: int = logs.DEFAULT_MAX_BYTES
    log_backups: int = logs.DEFAULT_BACKUPS

    def command(self, name: str) -> list[str]:
        """The command line of worker `name` (an exchange, or ALL)."""
        if self.worker_command is not None:
            return self.worker_command(name)
        return [sys.executable, "-m", "marketprism", "worker", name, "--config", str(self.config)]

    def limits_mb(self, exchanges: tuple[str, ...]) -> tuple[int, int]:
        """Soft and hard limit of a process that runs these exchanges: the sum of theirs."""
        limits = [self.memory[exchange] for exchange in exchanges]
        return sum(soft for soft, _ in limits), sum(hard for _, hard in limits)


class StartError(Exception):
    """The launcher cannot start; the text is one line for a person."""


class Launcher:
    """All workers of one machine, and the control plane over them."""

    name = logs.MAIN_PROCESS

    def __init__(
        self, options: LauncherOptions, shared: SharedMetrics, sinks: logs.Sinks, actions: Actions
    ) -> None:
        self._options = options
        self._actions = actions
        self.mode = "single" if options.single_process else "multiprocess"
        self._shared = shared
        self._stop = asyncio.Event()
        self._table = ProcessTable()
        self._own_figures = Figures(0.0, 0)
        self._events = Events()
        self._workers = [Worker(spec, sinks, self._events) for spec in _specs(options)]
        self._plane = ControlPlane(self, shared, options.health)

    async def run(self, health_socket: socket.socket, metrics_socket: socket.socket) -> int:
        """Supervise until SIGTERM or SIGINT. 0, or EX_CONFIG when no worker can run as configured."""
        runners = [
            await server.serve(server.health_app(self._plane, self._actions), health_socket),
            await server.serve(server.metrics_app(self._plane), metrics_socket),
        ]
        self._catch_signals()
        watch = asyncio.create_task(self._watch())
        try:
            return await self._supervise()
        finally:
            watch.cancel()
            for runner in runners:
                await runner.cleanup()

    async def _supervise(self) -> int:
        async with asyncio.TaskGroup() as group:
            for worker in self._workers:
                group.create_task(self._guard(worker))
            await self._stop.wait()
            log.info("stopping %d workers", len(self._workers), extra={"event": "stopping"})
            for worker in self._workers:
                worker.order_stop(None, signal.SIGTERM)
        misconfigured = self._all_misconfigured()
        log.info("launcher stopped", extra={"event": "stopped"})
        return EX_CONFIG if misconfigured else 0

    async def _guard(self, worker: Worker) -> None:
        """Supervise one worker; even a defect of ours in doing so must not touch the others."""
        try:
            await worker.supervise(self._stop, self._ended)
        except Exception:
            log.exception("supervising %s failed; it is given up, the others run on", worker.spec.name)
            worker.kill()
            worker.state = RunState.FAILED

    def _stop_when_none_can_run(self) -> None:
        if not self._stop.is_set() and self._all_misconfigured():
            log.error(
                "no worker can run with %s; see the lines above and: marketprism check-config",
                self._options.config,
            )
            self._stop.set()

    def _all_misconfigured(self) -> bool:
        return all(
            worker.state is RunState.FAILED
            and worker.last_exit is not None
            and worker.last_exit.reason == "config"
            for worker in self._workers
        )

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop_signal, number)
        loop.add_signal_handler(signal.SIGHUP, self._forward_hangup)

    def _on_stop_signal(self, number: signal.Signals) -> None:
        if self._stop.is_set():
            log.warning("%s again: killing the workers", number.name)
            for worker in self._workers:
                worker.kill()
            return
        log.info("%s received", number.name, extra={"event": "stopping"})
        self._stop.set()

    def _forward_hangup(self) -> None:
        """To workers that are up only: one that is still starting has no handler yet and would die of it."""
        for worker in self._workers:
            with contextlib.suppress(ActionError):
                self._reload(worker)

    def _reload(self, worker: Worker) -> None:
        readings = self._shared.read()
        beats = [
            readings.value("marketprism_worker_heartbeat_timestamp_seconds", exchange)
            for exchange in worker.spec.exchanges
        ]
        if not all(beats):
            raise ActionError(f"{worker.spec.name} is still starting, so it cannot reload yet")
        worker.send(signal.SIGHUP)

    def _ended(self, pid: int) -> None:
        self._table.forget(pid)
        try:
            self._shared.retire(pid)
        except Exception:  # counts lost are bad, supervision lost is worse
            log.exception("cannot tidy the metrics files of pid %d", pid)

    async def _watch(self) -> None:
        """Sample memory often, look at health now and then; a fault here must not end it."""
        next_health_s = 0.0
        orphans = Orphans()
        while True:
            try:
                if os.getpid() == 1:
                    orphans.reap()
                self._sample()
                self._stop_when_none_can_run()
                if time.monotonic() >= next_health_s:
                    next_health_s = time.monotonic() + _HEALTH_LOG_EVERY_S
                    self._look_at_health()
            except Exception:
                log.exception("watching the workers failed; trying again")
            await asyncio.sleep(self._options.sample_s)

    def _sample(self) -> None:
        self._own_figures = self._table.read(os.getpid()) or self._own_figures
        for worker in self._workers:
            worker.sample(self._table)
        self._plane.sample()

    def _look_at_health(self) -> None:
        if self._stop.is_set():
            return
        readings = self._shared.read()
        for worker in self._workers:
            worker.check_watchdog(readings, time.time())
        self._plane.tell_changes()

    # -- as the control plane asks -----------------------------------------------------------------------------

    def workers(self) -> tuple[WorkerView, ...]:
        """All of them, at this moment."""
        return tuple(worker.view() for worker in self._workers)

    def own_figures(self) -> Figures:
        """The launcher's own."""
        return self._own_figures

    def trouble(self) -> str:
        """None: what the launcher knows of its children it knows first hand."""
        return ""

    def families(self) -> Iterable[Metric]:
        """What the workers say is key."""
        return self._events.families()

    async def act(self, verb: Verb, worker: str) -> None:
        """Start, stop, restart or reload a worker. Raises ActionError where there is nothing to do it to."""
        found = next(each for each in self._workers if each.spec.name == worker)
        if verb is Verb.RELOAD:
            if found.state is not RunState.RUNNING:
                raise ActionError(f"{worker} does not run ({found.state}), so it cannot reload")
            self._reload(found)
        else:
            {Verb.START: found.start, Verb.STOP: found.stop, Verb.RESTART: found.restart}[verb]()


def _specs(options: LauncherOptions) -> Iterator[WorkerSpec]:
    environment = os.environ | {
        PARENT_PID_ENV: str(os.getpid()),
        "PROMETHEUS_MULTIPROC_DIR": str(metrics_dir(options.runtime_dir)),
        "MARKETPRISM_RUNTIME_DIR": str(options.runtime_dir),
        "MARKETPRISM_LOG_DIR": str(options.log_dir),
    }
    alone = {name: (name,) for name in options.exchanges}
    for name, exchanges in ({ALL: options.exchanges} if options.single_process else alone).items():
        soft_mb, hard_mb = options.limits_mb(exchanges)
        yield WorkerSpec(
            name=name,
            exchanges=exchanges,
            command=options.command(name),
            environment=environment,
            soft_mb=soft_mb,
            hard_mb=hard_mb,
            log=logs.RotatingFile(
                logs.log_path(options.log_dir, name), options.log_max_bytes, options.log_backups
            ),
            restart=options.restart,
        )


def metrics_dir(runtime_dir: Path) -> Path:
    """Where the workers' shared metrics files are."""
    return runtime_dir / "metrics"


async def run(options: LauncherOptions) -> int:
    """Run the launcher to its end and give its exit status: 0 stopped, 1 cannot start, 78 bad configuration.

    What prevents the start (a second launcher, a taken port, an unwritable runtime directory) is one line on
    standard error. Installs signal handlers, so call it from the main thread.
    """
    with contextlib.ExitStack() as held:
        try:
            actions = Actions(read_token(options.actions_token_file))
            lock = held.enter_context(_locked(options.runtime_dir))
            health_socket = held.enter_context(ports.bind(options.bind_host, options.health_port, "health"))
            metrics_socket = held.enter_context(
                ports.bind(options.bind_host, options.metrics_port, "metrics")
            )
            shared = SharedMetrics(metrics_dir(options.runtime_dir))
            shared.clear()
            _publish_state(lock, health_socket, metrics_socket)
        except (StartError, TokenError, ports.PortError) as exc:
            print(f"marketprism launcher: {exc}", file=sys.stderr)
            return 1
        except OSError as exc:
            print(f"marketprism launcher: cannot use {options.runtime_dir}: {exc.strerror}", file=sys.stderr)
            return 1
        sinks = logs.setup(
            logs.MAIN_PROCESS, options.log_dir, options.log_level, options.log_max_bytes, options.log_backups
        )
        _tell_start(options, health_socket, metrics_socket)
        return await Launcher(options, shared, sinks, actions).run(health_socket, metrics_socket)


@contextlib.contextmanager
def _locked(runtime_dir: Path) -> Iterator[int]:
    """Hold `launcher.json` locked; yields its descriptor. Raises StartError when it is taken."""
    runtime_dir.mkdir(parents=True, exist_ok=True)
    path = runtime_dir / "launcher.json"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _lock(fd, path)
        yield fd
        os.truncate(fd, 0)
    finally:
        os.close(fd)


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        advice = "stop it, or set MARKETPRISM_RUNTIME_DIR to run a second one"
        raise StartError(
            f"another launcher ({_lock_owner(path)}) uses {path.parent} already; {advice}"
        ) from None


def _lock_owner(path: Path) -> str:
    try:
        return f"pid {json.loads(path.read_text())['pid']}"
    except (OSError, ValueError, KeyError):
        return "pid not known yet"


def _publish_state(lock: int, health_socket: socket.socket, metrics_socket: socket.socket) -> None:
    """Write who runs and on which ports, for people and scripts."""
    state = {
        "pid": os.getpid(),
        "health_port": health_socket.getsockname()[1],
        "metrics_port": metrics_socket.getsockname()[1],
    }
    os.truncate(lock, 0)
    os.pwrite(lock, json.dumps(state).encode() + b"\n", 0)


def _tell_start(
    options: LauncherOptions, health_socket: socket.socket, metrics_socket: socket.socket
) -> None:
    how = "in one process" if options.single_process else "in a process each"
    log.info(
        "launcher %s, pid %d: %s %s",
        __version__,
        os.getpid(),
        ", ".join(options.exchanges),
        how,
        extra={"event": "started"},
    )
    health_url = f"http://{options.bind_host}:{health_socket.getsockname()[1]}/health"
    metrics_url = f"http://{options.bind_host}:{metrics_socket.getsockname()[1]}/metrics"
    log.info("health %s, metrics %s, logs in %s", health_url, metrics_url, options.log_dir.resolve())
