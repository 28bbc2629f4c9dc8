"""The control plane over whoever supervises the workers: what /health and /metrics say, and what may be ordered."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from enum import StrEnum
from typing import Any, Protocol

from prometheus_client.core import Metric

from marketprism import __version__
from marketprism.control.health import Health, HealthRules, Whole, body, judge
from marketprism.control.metrics import Exposition, LiveMetrics, LiveState, Requests, Totals
from marketprism.control.processes import Figures, WorkerView
from marketprism.control.shared import SharedMetrics

log = logging.getLogger(__name__)


class Verb(StrEnum):
    """What may be asked of a worker."""

    START = "start"
    STOP = "stop"
    RESTART = "restart"
    RELOAD = "reload"


class ActionError(Exception):
    """An order was not carried out; the text is one line for a person."""


class Supervision(Protocol):
    """Who runs the workers: systemd, or the launcher.

    `name`: the process that serves, as metrics and logs call it. `mode`: multiprocess or single.
    """

    name: str
    mode: str

    def workers(self) -> tuple[WorkerView, ...]:
        """Every worker there should be, as of now."""
        ...

    def own_figures(self) -> Figures:
        """Of the process that serves."""
        ...

    def trouble(self) -> str:
        """Why `workers` may be out of date, in words; "" when it is not."""
        ...

    def families(self) -> Iterable[Metric]:
        """Metrics that only this supervision knows."""
        ...

    async def act(self, verb: Verb, worker: str) -> None:
        """Carry out an order for a worker of `workers`. Raises ActionError."""
        ...


class ControlPlane:
    """One supervision judged, told, and served."""

    def __init__(
        self, supervision: Supervision, shared: SharedMetrics, rules: HealthRules | None = None
    ) -> None:
        self.requests = Requests()
        self._supervision = supervision
        self._shared = shared
        self._rules = rules or HealthRules()
        self._started_s = time.monotonic()
        self._cpu = Totals()
        self._statuses: dict[str, str] = {}
        self._exposition = Exposition(shared, LiveMetrics(self._state))

    def health(self) -> dict[str, Any]:
        """The body of /health."""
        return body(self._judge(), self._supervision.workers(), self._whole(), time.time())

    def statuses(self) -> dict[str, str]:
        """Exchange or store → healthy, degraded or unhealthy."""
        return self._judge().statuses()

    def metrics(self, accept: str) -> tuple[bytes, str]:
        """Text and content type of /metrics for this Accept header."""
        return self._exposition.render(accept)

    def names(self) -> list[str]:
        """The workers that orders can be given to."""
        return [worker.name for worker in self._supervision.workers()]

    async def act(self, verb: Verb, worker: str) -> None:
        """Carry out an order for one of `names`, and tell of it. Raises ActionError."""
        log.info("%s of %s ordered over HTTP", verb, worker, extra={"event": "action"})
        await self._supervision.act(verb, worker)

    def sample(self) -> None:
        """Add up what a process takes with it when it ends. Call it about once a second."""
        self._cpu.note((self._supervision.name,), self._supervision.own_figures().cpu_seconds)
        for worker in self._supervision.workers():
            if worker.figures is not None:
                self._cpu.note((worker.name,), worker.figures.cpu_seconds)

    def tell_changes(self) -> None:
        """Log every change of status since the last call, but not that a worker starts."""
        for name, entry in self._judge().everything().items():
            before, now = self._statuses.get(name), entry["status"]
            if now != before and "starting" not in entry["reasons"]:
                self._statuses[name] = now
                _tell_status(name, before, now, entry["explanations"])

    def _judge(self) -> Health:
        found = self._supervision
        return judge(found.workers(), self._shared.read(), self._rules, time.time(), found.trouble())

    def _whole(self) -> Whole:
        found, uptime_s = self._supervision, time.monotonic() - self._started_s
        return Whole(found.name, found.mode, __version__, uptime_s, found.own_figures())

    def _state(self) -> LiveState:
        return LiveState(
            workers=self._supervision.workers(),
            health=self._judge(),
            whole=self._whole(),
            cpu_seconds=self._cpu,
            requests=self.requests,
            more=self._supervision.families(),
        )


def _tell_status(name: str, before: str | None, now: str, explanations: list[str]) -> None:
    level = {"healthy": logging.INFO, "degraded": logging.WARNING}.get(now, logging.ERROR)
    was = f" (was {before})" if before else ""
    why = f": {', '.join(explanations)}" if explanations else ""
    log.log(level, "%s is %s%s%s", name, now, was, why, extra={"event": "health"})
