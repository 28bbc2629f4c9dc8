"""The workers' shared metrics files, read for /health and /metrics, and live figures of the processes."""

from __future__ import annotations

import contextlib
import logging
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from marketprism.control.processes import MB, Figures, WorkerView
from marketprism.logs import RateLimitedLog

STATUSES = ("healthy", "degraded", "unhealthy")

_READ_AT_MOST_EVERY_S = 0.5
_RATE_WINDOW_S = 10.0
_MESSAGES = "marketprism_websocket_messages_received_total"

_DAMAGED = (RuntimeError, ValueError, struct.error)  # what prometheus-client raises, JSON and UTF-8 included
_log = RateLimitedLog(logging.getLogger(__name__))

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Readings:
    """One reading of all workers' metrics. A sample nobody wrote is None, never 0."""

    samples: Mapping[str, Mapping[Labels, float]]
    messages_per_second: Mapping[str, float]

    def value(self, name: str, exchange: str) -> float | None:
        """The sample of `name` whose only label is this exchange."""
        return self.samples.get(name, {}).get((("exchange", exchange),))

    def total(self, name: str, exchange: str) -> float:
        """Sum over all samples of `name` of this exchange, whatever their other labels."""
        return sum(
            value for labels, value in self.samples.get(name, {}).items() if ("exchange", exchange) in labels
        )

    def by_label(self, name: str, exchange: str, label: str) -> dict[str, float]:
        """`label`'s value → sample, for this exchange."""
        found: dict[str, float] = {}
        for labels, value in self.samples.get(name, {}).items():
            as_dict = dict(labels)
            if as_dict.get("exchange") == exchange and label in as_dict:
                found[as_dict[label]] = value
        return found


class SharedMetrics:
    """The directory of prometheus-client's multiprocess files."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._families: list[Metric] = []
        self._readings = Readings({}, {})
        self._read_at_s = float("-inf")
        self._message_counts: deque[tuple[float, dict[str, float]]] = deque()

    def clear(self) -> None:
        """Make the directory and remove the files of an earlier run. Raises OSError."""
        self._directory.mkdir(parents=True, exist_ok=True)
        for file in self._directory.glob("*.db"):
            file.unlink()

    def retire(self, pid: int) -> None:
        """After a worker ended: forget its gauges, and keep its counts in one file for all the dead.

        Without this, counters would either fall at a restart or leave two more files to read at every one.
        """
        mark_process_dead(pid, str(self._directory))  # type: ignore[no-untyped-call]
        for kind in ("counter", "histogram"):
            file = self._directory / f"{kind}_{pid}.db"
            if file.exists():
                _add_up(file, self._directory / f"{kind}_0.db")
                file.unlink()
        self._read_at_s = float("-inf")

    def read(self) -> Readings:
        """What the workers last wrote, at most half a second old."""
        self._refresh()
        return self._readings

    def collect(self) -> Iterable[Metric]:
        """The metric families, for a registry."""
        self._refresh()
        return self._families

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._read_at_s < _READ_AT_MOST_EVERY_S:
            return
        self._read_at_s = now
        # A file just made is empty for a moment, and the library cannot read it then.
        files = [str(file) for file in self._directory.glob("*.db") if _size(file)]
        self._families = _merge(files)
        samples: dict[str, dict[Labels, float]] = {}
        for family in self._families:
            for sample in family.samples:
                samples.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
        self._readings = Readings(samples, self._rates(now, samples.get(_MESSAGES, {})))

    def _rates(self, now: float, counts: Mapping[Labels, float]) -> dict[str, float]:
        current = {dict(labels).get("exchange", ""): value for labels, value in counts.items()}
        self._message_counts.append((now, current))
        while now - self._message_counts[0][0] > _RATE_WINDOW_S and len(self._message_counts) > 2:
            self._message_counts.popleft()
        first_s, first = self._message_counts[0]
        elapsed = now - first_s
        if elapsed <= 0:
            return {}
        return {exchange: (value - first.get(exchange, 0.0)) / elapsed for exchange, value in current.items()}


def _merge(files: list[str]) -> list[Metric]:
    """All files together; a damaged one costs only its own figures."""
    try:
        return list(MultiProcessCollector.merge(files))  # type: ignore[no-untyped-call]
    except _DAMAGED:
        whole = [file for file in files if _is_whole(file)]
        return list(MultiProcessCollector.merge(whole))  # type: ignore[no-untyped-call]


def _is_whole(file: str) -> bool:
    try:
        MultiProcessCollector.merge([file])  # type: ignore[no-untyped-call]
    except _DAMAGED:
        _log.error(
            "damaged", "metrics file %s is damaged; its figures are missing until its worker restarts", file
        )
        return False
    return True


def _size(file: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return file.stat().st_size
    return 0


def _add_up(source: Path, target: Path) -> None:
    """Add every value in `source` to the same key in `target`."""
    if not _size(source):
        return
    sums = MmapedDict(str(target))  # type: ignore[no-untyped-call]
    for key, value, _, _ in MmapedDict.read_all_values_from_file(str(source)):  # type: ignore[no-untyped-call]
        sums.write_value(key, sums.read_value(key)[0] + value, 0.0)  # type: ignore[no-untyped-call]
    sums.close()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class LiveState:
    """What the supervisor knows at this moment. `statuses`: exchange → healthy, degraded or unhealthy."""

    workers: tuple[WorkerView, ...]
    statuses: Mapping[str, str]
    own_figures: Figures
    uptime_s: float


class LiveMetrics:
    """Metric families of the processes themselves, made anew at every scrape."""

    def __init__(self, state: Callable[[], LiveState]) -> None:
        self._state = state

    def collect(self) -> Iterable[Metric]:
        """The families, for a registry."""
        state = self._state()
        figures = _figures(state)
        yield GaugeMetricFamily(
            "marketprism_cpu_usage_percent",
            "CPU of all MarketPrism collector processes together, percent of one core",
            sum(found.cpu_percent for found in figures.values()),
        )
        yield GaugeMetricFamily(
            "marketprism_memory_usage_bytes",
            "Resident memory of all MarketPrism collector processes together",
            sum(found.rss_bytes for found in figures.values()),
        )
        yield GaugeMetricFamily(
            "marketprism_uptime_seconds", "Seconds since the control plane started", state.uptime_s
        )
        yield _per_process(
            "cpu_percent",
            "CPU of the process, percent of one core",
            {name: found.cpu_percent for name, found in figures.items()},
        )
        yield _per_process(
            "memory_mb",
            "Resident memory of the process, MB of 1048576 bytes",
            {name: found.rss_bytes / MB for name, found in figures.items()},
        )
        yield _per_process(
            "uptime_seconds",
            "Seconds since the process started, 0 while it does not run",
            {"launcher": state.uptime_s} | {worker.name: worker.uptime_s for worker in state.workers},
        )
        yield _statuses(state)
        yield _restarts(state)


def _figures(state: LiveState) -> dict[str, Figures]:
    return {"launcher": state.own_figures} | {
        worker.name: worker.figures or Figures(0.0, 0, frozen=False) for worker in state.workers
    }


def _per_process(name: str, text: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"marketprism_process_{name}", text, labels=["process"])
    for process, value in values.items():
        family.add_metric([process], value)
    return family


def _statuses(state: LiveState) -> Metric:
    family = GaugeMetricFamily(
        "marketprism_process_status",
        "1 for the status the worker has, 0 for the others",
        labels=["process", "status"],
    )
    for process, status in state.statuses.items():
        for candidate in STATUSES:
            family.add_metric([process, candidate], float(candidate == status))
    return family


def _restarts(state: LiveState) -> Metric:
    family = CounterMetricFamily(
        "marketprism_process_restarts",
        "Starts of the worker after the first, by cause",
        labels=["process", "reason"],
    )
    for worker in state.workers:
        for reason, count in worker.restarts.items():
            family.add_metric([worker.name, reason], count)
    return family


class Exposition:
    """The text of /metrics."""

    def __init__(self, shared: SharedMetrics, live: LiveMetrics) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(shared)
        self._registry.register(live)

    def render(self, accept: str) -> tuple[bytes, str]:
        """(body, content type): OpenMetrics when the Accept header asks for it, else Prometheus text."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type
