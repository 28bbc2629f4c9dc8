"""A whole /metrics, with every series that there can be: worker figures through their files, all else made here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.core import Metric

from marketprism.control.events import Events
from marketprism.control.health import HealthRules
from marketprism.control.kept import Kept
from marketprism.control.plane import ControlPlane, Verb
from marketprism.control.processes import MB, Figures, RunState, WorkerView
from marketprism.control.shared import SharedMetrics
from marketprism.control.systemd import Systemd

# The worker's own code, in a process of its own, as prometheus-client's multiprocess files need it.
WORKER = """
from marketprism.worker import vitals
worker = vitals.Vitals("okx_spot")
worker.warned()
worker.latency.observe(1_000_000)
worker.acknowledged.observe(2_000_000)
one = {"trade": 1}
worker.flush(vitals.Figures(
    data={"trade": 7, "orderbook": 12345, "orderbook_delta": 5}, gaps={("trade", "ids"): 1}, errors={"malformed": 2},
    frames=3, reconnections=1, resyncs={"crossed": 1}, audits={"verified": 1}, requests={"200": 1}, published=9,
    publish_errors={"connect": 1}, skipped=1, last_data_s={"trade": 1.7e9, "orderbook_delta": 1.7e9},
    expected_data={"trade"}, gauges=dict.fromkeys(vitals.GAUGES, 1.0),
))
"""


@dataclass(slots=True)
class Supervised:
    """One worker under a systemd that has not been asked."""

    systemd: Systemd
    name: str = "control"
    mode: str = "multiprocess"

    def workers(self) -> tuple[WorkerView, ...]:
        figures = Figures(32.5, 145 * MB, False, 12.0, 3)
        return (
            WorkerView(
                name="okx_spot",
                exchanges=("okx_spot",),
                state=RunState.RUNNING,
                pid=4711,
                uptime_s=3600.0,
                restarts={"memory": 2},
                last_exit=None,
                soft_mb=120,
                hard_mb=160,
                figures=figures,
            ),
        )

    def own_figures(self) -> Figures:
        return Figures(1.0, 40 * MB, False, 2.0, 1)

    def trouble(self) -> str:
        return ""

    def families(self) -> Iterable[Metric]:
        return self.systemd.families()

    async def act(self, verb: Verb, worker: str) -> None:
        raise NotImplementedError


def plane(directory: Path) -> ControlPlane:
    """A control plane over it; `directory` gets the files."""
    metrics = directory / "metrics"
    metrics.mkdir()
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(metrics)}
    subprocess.run([sys.executable, "-c", WORKER], env=environment, check=True)
    shared, events = SharedMetrics(metrics), Events()
    events.note("okx_spot", "WARNING", "gap")
    events.drop("okx_spot", 3)
    systemd = Systemd(Kept(directory / "control.json"), shared, events)
    systemd._memory_events.note(("okx_spot", "high"), 1)
    systemd._throttled.note(("okx_spot",), 0.5)
    patient = HealthRules(stuck_s=3600.0)  # what the worker left gets no newer
    made = ControlPlane(Supervised(systemd), shared, patient)
    made.requests.note("/health", "GET", 0.002)
    made.sample()
    return made
