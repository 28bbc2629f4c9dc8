"""What /metrics says: the workers' own figures, and those of their processes, made anew at every scrape."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import psutil
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

from marketprism.control import earlier
from marketprism.control.health import Health, Whole
from marketprism.control.processes import MB, Figures, WorkerView
from marketprism.control.restarts import REASONS
from marketprism.control.shared import SharedMetrics, unit_of

STATUSES = ("healthy", "degraded", "unhealthy")

_REQUEST_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


class Totals:
    """Counters that never fall, from readings that begin anew with every process."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, ...], float] = {}
        self._last: dict[tuple[str, ...], float] = {}

    def note(self, key: tuple[str, ...], reading: float) -> None:
        """`reading` of `key` now; a smaller one than before is of a new process."""
        last = self._last.get(key, 0.0)
        grown = reading - last if reading >= last else reading
        self.values[key] = self.values.get(key, 0.0) + grown
        self._last[key] = reading

    def family(self, name: str, text: str, labels: list[str], unit: str = "") -> Metric:
        """All of it as one counter."""
        family = CounterMetricFamily(name, text, labels=labels, unit=unit)
        for key, value in self.values.items():
            family.add_metric(list(key), value)
        return family


@dataclass(slots=True)
class Requests:
    """How long our own answers took, by path and method."""

    _buckets: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    _sums_s: dict[tuple[str, str], float] = field(default_factory=dict)

    def note(self, endpoint: str, method: str, took_s: float) -> None:
        """One answer; `endpoint` is the route's pattern, so that nobody can make up new ones."""
        key = (endpoint, method)
        buckets = self._buckets.setdefault(key, [0] * (len(_REQUEST_BUCKETS_S) + 1))
        buckets[bisect_left(_REQUEST_BUCKETS_S, took_s)] += 1
        self._sums_s[key] = self._sums_s.get(key, 0.0) + took_s

    def family(self) -> Metric:
        """As a histogram."""
        family = HistogramMetricFamily(
            "marketprism_request_duration_seconds",
            "How long an answer of the control plane took.",
            labels=["endpoint", "method"],
            unit="seconds",
        )
        bounds = [*(str(bound) for bound in _REQUEST_BUCKETS_S), "+Inf"]
        for key, counts in self._buckets.items():
            so_far = [sum(counts[: n + 1]) for n in range(len(counts))]
            family.add_metric(list(key), list(zip(bounds, so_far, strict=True)), self._sums_s[key])
        return family


@dataclass(frozen=True, slots=True)
class LiveState:
    """What the supervisor knows at this moment.

    `cpu_seconds`: by process, over all its restarts. `more`: what only this supervisor knows.
    """

    workers: tuple[WorkerView, ...]
    health: Health
    whole: Whole
    cpu_seconds: Totals
    requests: Requests
    more: Iterable[Metric]


class LiveMetrics:
    """Metric families of the processes themselves, made anew at every scrape."""

    def __init__(self, state: Callable[[], LiveState]) -> None:
        self._state = state

    def collect(self) -> Iterable[Metric]:
        """The families, for a registry."""
        state = self._state()
        figures = _figures(state)
        yield InfoMetricFamily(
            "marketprism_system",
            "What this collector is.",
            {"version": state.whole.version, "mode": state.whole.mode},
        )
        yield from _sums(state, figures)
        yield from _by_process(state, figures)
        yield state.cpu_seconds.family(
            "marketprism_process_cpu_seconds", "CPU time used, restarts included.", ["process"], "seconds"
        )
        yield from _judged(state.health)
        yield _restarts(state)
        yield state.requests.family()
        yield from state.more


def _sums(state: LiveState, figures: Mapping[str, Figures]) -> Iterable[Metric]:
    memory_bytes = sum(found.memory_bytes for found in figures.values())
    yield _gauge(
        "cpu_usage_percent",
        "CPU of all MarketPrism collector processes together, percent of one core.",
        sum(found.cpu_percent for found in figures.values()),
    )
    yield _gauge(
        "memory_usage_bytes", "Memory of all MarketPrism collector processes together.", memory_bytes
    )
    yield _gauge(
        "memory_usage_percent",
        "Memory of all MarketPrism collector processes together, percent of the machine's.",
        100.0 * memory_bytes / psutil.virtual_memory().total,
    )
    yield _gauge("uptime_seconds", "Seconds since the control plane started.", state.whole.uptime_s)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"marketprism_{name}", text, value, unit=unit_of(name))


def _by_process(state: LiveState, figures: Mapping[str, Figures]) -> Iterable[Metric]:
    workers = {worker.name: worker for worker in state.workers}
    yield _per_process(
        "process_cpu_percent",
        "CPU of the process, percent of one core.",
        {name: found.cpu_percent for name, found in figures.items()},
    )
    yield _per_process(
        "process_memory_mb",
        "Memory of the process, MB of 1048576 bytes.",
        {name: found.memory_bytes / MB for name, found in figures.items()},
    )
    yield _per_process(
        "process_uptime_seconds",
        "Seconds since the process started, 0 while it does not run.",
        {state.whole.name: state.whole.uptime_s} | {name: found.uptime_s for name, found in workers.items()},
    )
    yield _per_process(
        "thread_count", "Threads of the process.", {name: found.threads for name, found in figures.items()}
    )
    yield _per_process(
        "process_memory_soft_limit_bytes",
        "Above it the process is told of, and runs on.",
        {name: found.soft_mb * MB for name, found in workers.items() if found.soft_mb},
    )
    yield _per_process(
        "process_memory_hard_limit_bytes",
        "Near it the process stops itself and is started again.",
        {name: found.hard_mb * MB for name, found in workers.items() if found.hard_mb},
    )


def _figures(state: LiveState) -> dict[str, Figures]:
    return {state.whole.name: state.whole.own_figures} | {
        worker.name: worker.figures or Figures(0.0, 0) for worker in state.workers
    }


def _per_process(name: str, text: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"marketprism_{name}", text, labels=["process"], unit=unit_of(name))
    for process, value in values.items():
        family.add_metric([process], value)
    return family


def _judged(health: Health) -> Iterable[Metric]:
    whole = GaugeMetricFamily(
        "marketprism_collector_status",
        "1 for the status that /health gives the whole collector, 0 for the others.",
        labels=["status"],
    )
    processes = GaugeMetricFamily(
        "marketprism_process_status",
        "1 for the status the worker has, 0 for the others.",
        labels=["process", "status"],
    )
    for status in STATUSES:
        whole.add_metric([status], float(status == health.status.word))
        for process, found in health.statuses().items():
            processes.add_metric([process, status], float(status == found))
    yield whole
    yield processes
    gaps = GaugeMetricFamily(
        "marketprism_gaps_last_hour", "Gaps published in the hour before.", labels=["exchange"]
    )
    for exchange, entry in health.entries.items():
        gaps.add_metric([exchange], entry["gaps_last_hour"])
    yield gaps


def _restarts(state: LiveState) -> Metric:
    family = CounterMetricFamily(
        "marketprism_process_restarts",
        "Starts of the worker after the first, by cause.",
        labels=["process", "reason"],
    )
    for worker in state.workers:
        for reason in REASONS:  # all of them from the start: a rate does not see a series begin
            family.add_metric([worker.name, reason], worker.restarts.get(reason, 0))
    return family


class Exposition:
    """The text of /metrics."""

    def __init__(self, shared: SharedMetrics, live: LiveMetrics) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._shared = shared
        self._registry.register(shared)
        self._registry.register(self)
        self._registry.register(live)
        for own in (ProcessCollector, PlatformCollector, GCCollector):
            own(registry=self._registry)

    def collect(self) -> Iterable[Metric]:
        """The earlier system's names for what the workers say."""
        return earlier.families(self._shared.read())

    def render(self, accept: str) -> tuple[bytes, str]:
        """(body, content type): OpenMetrics when the Accept header asks for it, else Prometheus text."""
        # prometheus-client's own choice fails on a version that is no number, and claims any that is one.
        if "application/openmetrics-text" in accept:
            return openmetrics.generate_latest(self._registry), openmetrics.CONTENT_TYPE_LATEST  # type: ignore[no-untyped-call]
        return generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4
