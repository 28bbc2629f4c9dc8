"""The control plane as a service of systemd: what `marketprism control` runs."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from marketprism import __version__, logs
from marketprism.control import server
from marketprism.control.actions import Actions, TokenError, read_token
from marketprism.control.activation import inherited
from marketprism.control.events import Events
from marketprism.control.journal import Journal
from marketprism.control.kept import Kept
from marketprism.control.plane import ControlPlane
from marketprism.control.shared import SharedMetrics
from marketprism.control.systemd import STORES, Systemd, unit_name
from marketprism.notify import Notifier

_LOOK_EVERY_S = 1.0
_TELL_EVERY_S = 5.0
_NEEDED = ("health", "metrics")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ControlOptions:
    """Where things are. `exchanges`: all that there can be a worker of. `state_dir`: outlives a reboot."""

    exchanges: tuple[str, ...]
    runtime_dir: Path
    state_dir: Path
    log_dir: Path
    actions_token_file: Path | None = None
    log_level: str = "INFO"


async def run(options: ControlOptions) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit status: 0, or 1 where it cannot start, said in one line."""
    try:
        sockets = inherited()
        metrics_dir = options.runtime_dir / "metrics"
        metrics_dir.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        print(f"marketprism control: {exc.filename or 'socket'}: {exc.strerror}", file=sys.stderr)
        return 1
    if missing := [name for name in _NEEDED if name not in sockets]:
        print(
            f"marketprism control: expected the sockets {' and '.join(_NEEDED)} from systemd, got no "
            f"{' and no '.join(missing)}; start it with: systemctl start marketprism-control "
            "(without systemd, `marketprism launcher` serves health and metrics itself)",
            file=sys.stderr,
        )
        return 1
    sinks = logs.setup(logs.CONTROL_PROCESS, options.log_dir, options.log_level)
    return await Service(options, SharedMetrics(metrics_dir), sinks).run(sockets)


class Service:
    """Keeps up with systemd and the journal, and serves what is known."""

    def __init__(self, options: ControlOptions, shared: SharedMetrics, sinks: logs.Sinks) -> None:
        self._actions = _actions(options.actions_token_file)
        self._kept = Kept(options.state_dir / "control.json")
        events = Events()
        units = [unit_name(exchange) for exchange in options.exchanges]
        others = [*(f"marketprism-{name}.service" for name in ("control", "nats")), *STORES.values()]
        self._journal = Journal(self._kept, events, sinks.write_line, [*units, *others])
        self._systemd = Systemd(self._kept, shared, events)
        self._plane = ControlPlane(self._systemd, shared)
        self._notifier = Notifier.from_environment()
        self._stop = asyncio.Event()

    async def run(self, sockets: Mapping[str, list[socket.socket]]) -> int:
        """Serve on `sockets` until told to stop. Returns the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stop.set)
        async with asyncio.TaskGroup() as group:
            keeping_up = [group.create_task(each) for each in (self._systemd.run(), self._journal.run())]
            await self._systemd.asked.wait()  # who asks us meanwhile waits, and is told the truth
            keeping_up.append(group.create_task(self._watch()))
            runners = [
                *[
                    await server.serve(server.health_app(self._plane, self._actions), s)
                    for s in sockets["health"]
                ],
                *[await server.serve(server.metrics_app(self._plane), s) for s in sockets["metrics"]],
            ]
            self._notifier.ready(self._status())
            log.info("control plane %s, pid %d", __version__, os.getpid(), extra={"event": "started"})
            await self._stop.wait()
            self._notifier.stopping("stopping")
            for runner in runners:
                await runner.cleanup()
            for task in keeping_up:
                task.cancel()
        self._keep()
        self._kept.save(now=True)
        log.info("control plane stopped", extra={"event": "stopped"})
        return 0

    async def _watch(self) -> None:
        """Look at all of it once a second; only a look that succeeds is a sign of life."""
        told_s = float("-inf")
        while True:
            try:
                self._systemd.sample()
                self._plane.sample()
                self._keep()
                self._kept.save()
                if time.monotonic() - told_s >= _TELL_EVERY_S:
                    told_s = time.monotonic()
                    self._plane.tell_changes()
                    self._notifier.status(self._status())
                self._notifier.watchdog()
            except Exception:
                log.exception("watching the workers failed; trying again")
            await asyncio.sleep(_LOOK_EVERY_S)

    def _keep(self) -> None:
        self._systemd.keep()
        self._journal.keep()

    def _status(self) -> str:
        words = self._plane.statuses()
        healthy = sum(word == "healthy" for word in words.values())
        ill = "".join(f", {name} {word}" for name, word in words.items() if word != "healthy")
        return f"{healthy}/{len(words)} processes healthy{ill}"


def _actions(token_file: Path | None) -> Actions:
    """A token that cannot be used turns actions off; health and metrics are worth more than them."""
    try:
        return Actions(read_token(token_file))
    except TokenError as exc:
        log.error("actions are off: %s", exc)
        return Actions()
