"""Is the data right, and who should know? The body of /health, from the workers' states and their metrics.

A worker is healthy only while everything it reports is fresh and complete; `reasons` tells what is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from marketprism.control.metrics import LiveState, Readings
from marketprism.control.processes import MB, Figures, LastExit, RunState, WorkerView

Json = dict[str, Any]


class Status(IntEnum):
    """Ordered, so that the worst of several is their maximum."""

    HEALTHY = 0
    DEGRADED = 1
    UNHEALTHY = 2

    @property
    def word(self) -> str:
        """As /health and the metrics spell it."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class HealthRules:
    """When a figure is a reason. All in seconds.

    stuck_s: a worker writes its heartbeat every second, and we read it up to 0.5 s late, so at 2.5 s a beat was
    missed for certain, and a stuck worker is told within 3 s. start_grace_s: how long a start may take before
    silence or having no live book is unhealthy. data_stale_s: polled data changes slowly, trades and books do
    not; liquidations may rightly be absent for hours.
    """

    stuck_s: float = 2.5
    start_grace_s: float = 60.0
    book_stale_s: float = 10.0
    data_stale_s: Mapping[str, float] = field(
        default_factory=lambda: {
            "orderbook": 60.0,
            "orderbook_delta": 60.0,
            "trade": 60.0,
            "funding_rate": 900.0,
            "open_interest": 900.0,
            "lsr_top_position": 900.0,
            "lsr_all_account": 900.0,
            "lsr_top_account": 900.0,
            "volatility_index": 900.0,
        }
    )


@dataclass(slots=True)
class Findings:
    """The status so far and why."""

    status: Status = Status.HEALTHY
    reasons: list[str] = field(default_factory=list)

    def add(self, status: Status, reason: str) -> None:
        """Note `reason`; the worst status stays."""
        self.status = max(self.status, status)
        self.reasons.append(reason)


@dataclass(frozen=True, slots=True)
class ExchangeReport:
    """One exchange's figures at one moment; None: the worker has not said."""

    heartbeat_age_s: float | None
    live_books: int
    expected_books: int
    book_age_s: float | None
    sockets: int
    expected_sockets: int
    missing_channels: int
    nats_connected: bool | None
    soft_exceeded: bool
    data_age_s: Mapping[str, float]
    gaps: int
    audits: Mapping[str, int]  # by result
    messages_per_second: float


def report_of(readings: Readings, exchange: str, now_s: float) -> ExchangeReport:
    """Gather what `exchange` wrote into the shared metrics; `now_s` is Unix time."""

    def value(name: str) -> float | None:
        return readings.value(f"marketprism_{name}", exchange)

    def age(name: str) -> float | None:
        at_s = value(name)
        return max(0.0, now_s - at_s) if at_s else None

    last_data = readings.by_label("marketprism_last_data_timestamp_seconds", exchange, "data_type")
    audits = readings.by_label("marketprism_book_audits_total", exchange, "result")
    nats = value("nats_connected")
    return ExchangeReport(
        heartbeat_age_s=age("worker_heartbeat_timestamp_seconds"),
        live_books=int(value("live_books") or 0),
        expected_books=int(value("expected_books") or 0),
        book_age_s=age("last_book_timestamp_seconds"),
        sockets=int(value("websocket_connected") or 0),
        expected_sockets=int(value("websocket_expected") or 0),
        missing_channels=int(value("channels_missing") or 0),
        nats_connected=None if nats is None else nats > 0,
        soft_exceeded=bool(value("memory_soft_exceeded")),
        data_age_s={kind: max(0.0, now_s - at_s) for kind, at_s in sorted(last_data.items()) if at_s},
        gaps=int(readings.total("marketprism_gaps_total", exchange)),
        audits={result: int(count) for result, count in sorted(audits.items())},
        messages_per_second=readings.messages_per_second.get(exchange, 0.0),
    )


def assess(worker: WorkerView, report: ExchangeReport, rules: HealthRules) -> Findings:
    """Judge one exchange of one worker."""
    found = Findings()
    if worker.state is RunState.WAITING and worker.last_exit is None:
        found.add(Status.DEGRADED, "starting")
        return found
    if worker.state is not RunState.RUNNING:
        found.add(Status.UNHEALTHY, _not_running(worker))
        return found
    _assess_heartbeat(found, worker, report, rules)
    if report.heartbeat_age_s is not None:
        _assess_feed(found, worker, report, rules)
        _assess_data(found, report, rules)
    if report.soft_exceeded or (worker.figures and worker.figures.rss_bytes > worker.soft_mb * MB):
        found.add(Status.DEGRADED, "memory_soft")
    return found


def _not_running(worker: WorkerView) -> str:
    if worker.state is RunState.FAILED:
        return "bad_configuration" if worker.last_exit and worker.last_exit.reason == "config" else "given_up"
    return "restarting" if worker.state is RunState.WAITING else "not_running"


def _assess_heartbeat(
    found: Findings, worker: WorkerView, report: ExchangeReport, rules: HealthRules
) -> None:
    if worker.figures and worker.figures.frozen:
        found.add(Status.UNHEALTHY, "frozen")
    elif report.heartbeat_age_s is None:
        late = worker.uptime_s > rules.start_grace_s
        found.add(Status.UNHEALTHY if late else Status.DEGRADED, "no_heartbeat" if late else "starting")
    elif worker.figures is None or report.heartbeat_age_s > rules.stuck_s:
        found.add(Status.UNHEALTHY, "stuck")


def _assess_feed(found: Findings, worker: WorkerView, report: ExchangeReport, rules: HealthRules) -> None:
    nothing_at_all = Status.DEGRADED if worker.uptime_s < rules.start_grace_s else Status.UNHEALTHY
    if report.sockets < report.expected_sockets:
        found.add(Status.DEGRADED if report.sockets else nothing_at_all, "websocket_down")
    if report.missing_channels:
        found.add(Status.DEGRADED, "channels_missing")
    if report.live_books < report.expected_books:
        found.add(Status.DEGRADED if report.live_books else nothing_at_all, "books_not_live")
    elif report.expected_books and report.book_age_s is not None and report.book_age_s > rules.book_stale_s:
        found.add(Status.DEGRADED, "books_stale")
    if not report.nats_connected:
        found.add(
            Status.UNHEALTHY if report.nats_connected is False else Status.DEGRADED, "nats_disconnected"
        )


def _assess_data(found: Findings, report: ExchangeReport, rules: HealthRules) -> None:
    for kind, age_s in report.data_age_s.items():
        if age_s > rules.data_stale_s.get(kind, float("inf")):
            found.add(Status.DEGRADED, f"stale_{kind}")


def process_entry(worker: WorkerView, report: ExchangeReport, found: Findings) -> Json:
    """One entry of `processes`: the four compatible fields first."""
    figures = worker.figures or Figures(0.0, 0, frozen=False)
    return {
        "status": found.status.word,
        "cpu_percent": round(figures.cpu_percent, 1),
        "memory_mb": round(figures.rss_bytes / MB, 1),
        "uptime_seconds": int(worker.uptime_s),
        "reasons": found.reasons,
        "state": worker.state.value,
        "process": worker.name,
        "pid": worker.pid,
        "restarts": sum(worker.restarts.values()),
        "last_exit": _exit_entry(worker.last_exit),
        "memory_soft_mb": worker.soft_mb,
        "memory_hard_mb": worker.hard_mb,
        "live_books": report.live_books,
        "expected_books": report.expected_books,
        "websockets": report.sockets,
        "expected_websockets": report.expected_sockets,
        "missing_channels": report.missing_channels,
        "gaps": report.gaps,
        "audits": dict(report.audits),
        "messages_per_second": round(report.messages_per_second, 1),
        "data_age_s": {kind: round(age_s, 1) for kind, age_s in report.data_age_s.items()},
        "heartbeat_age_s": None if report.heartbeat_age_s is None else round(report.heartbeat_age_s, 1),
    }


def _exit_entry(last: LastExit | None) -> Json | None:
    if last is None:
        return None
    return {
        "reason": last.reason,
        "code": last.code,
        "at": int(last.at_s),
        "after_seconds": int(last.ran_s),
        "words": last.words,
    }


def nats_status(connected: Iterable[bool | None]) -> str:
    """The bus as the workers see it: every one must be connected to call it healthy."""
    known = [value for value in connected if value is not None]
    if not known:
        return "unknown"
    if all(known):
        return "healthy"
    return "degraded" if any(known) else "unhealthy"


@dataclass(frozen=True, slots=True)
class Health:
    """All exchanges judged. `entries` is what `processes` shows, by exchange."""

    status: Status
    entries: Mapping[str, Json]
    nats: str

    def statuses(self) -> dict[str, str]:
        """Exchange → status word."""
        return {exchange: str(entry["status"]) for exchange, entry in self.entries.items()}


def judge(workers: Iterable[WorkerView], readings: Readings, rules: HealthRules, now_s: float) -> Health:
    """Judge all workers at Unix time `now_s`; the whole is as ill as its illest part."""
    entries: dict[str, Json] = {}
    overall = Status.HEALTHY
    connected: list[bool | None] = []
    for worker in workers:
        for exchange in worker.exchanges:
            report = report_of(readings, exchange, now_s)
            found = assess(worker, report, rules)
            entries[exchange] = process_entry(worker, report, found)
            overall = max(overall, found.status)
            connected.append(report.nats_connected)
    return Health(overall, entries, nats_status(connected))


def body(health: Health, state: LiveState, version: str, mode: str, now_s: float) -> Json:
    """The whole answer of /health. `mode`: multiprocess or single."""
    figures = [worker.figures for worker in state.workers if worker.figures] + [state.own_figures]
    return {
        "status": health.status.word,
        "uptime_seconds": int(state.uptime_s),
        "mode": mode,
        "processes": health.entries,
        "services": {"nats": {"status": health.nats}},
        "timestamp": round(now_s, 3),
        "version": version,
        "summary": {
            "total_processes": len(health.entries),
            "healthy_processes": sum(word == "healthy" for word in health.statuses().values()),
            "total_cpu_percent": round(sum(found.cpu_percent for found in figures), 1),
            "total_memory_mb": round(sum(found.rss_bytes for found in figures) / MB, 1),
            "launcher_memory_mb": round(state.own_figures.rss_bytes / MB, 1),
        },
    }
