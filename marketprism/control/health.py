"""Is the data right, and who should know? The body of /health, from the workers' states and their metrics.

A worker is healthy only while everything it reports is fresh and complete. `reasons` tells what is missing by
fixed names, for programs; `explanations` tells the same in words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from marketprism.control.processes import MB, Figures, LastExit, RunState, WorkerView
from marketprism.control.shared import Readings

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
    explanations: list[str] = field(default_factory=list)

    def add(self, status: Status, reason: str, words: str) -> None:
        """Note `reason`, and the same in `words`; the worst status stays."""
        self.status = max(self.status, status)
        self.reasons.append(reason)
        self.explanations.append(words)


@dataclass(frozen=True, slots=True)
class ExchangeReport:
    """One exchange's figures at one moment; None: the worker has not said. `heartbeat_s` is Unix time."""

    heartbeat_s: float | None
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
    expected_data: frozenset[str]
    gaps: int
    gaps_last_hour: int
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
        heartbeat_s=value("worker_heartbeat_timestamp_seconds") or None,
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
        expected_data=frozenset(readings.by_label("marketprism_data_expected", exchange, "data_type")),
        gaps=int(readings.total("marketprism_gaps_total", exchange)),
        gaps_last_hour=readings.gaps_last_hour.get(exchange, 0),
        audits={result: int(count) for result, count in sorted(audits.items())},
        messages_per_second=readings.messages_per_second.get(exchange, 0.0),
    )


def assess(worker: WorkerView, report: ExchangeReport, rules: HealthRules) -> Findings:
    """Judge one exchange of one worker."""
    found = Findings()
    if worker.state is RunState.WAITING and worker.last_exit is None:
        found.add(Status.DEGRADED, "starting", "about to be started")
        return found
    if worker.state is not RunState.RUNNING:
        found.add(Status.UNHEALTHY, *_not_running(worker))
        return found
    _assess_heartbeat(found, worker, report, rules)
    if report.heartbeat_age_s is not None:
        _assess_feed(found, worker, report, rules)
        _assess_data(found, worker, report, rules)
    _assess_memory(found, worker, soft_exceeded=report.soft_exceeded)
    return found


def assess_store(store: WorkerView) -> Findings:
    """Judge a store, by systemd's word and its own."""
    found = Findings()
    if store.state is RunState.ENDED and store.last_exit is None:
        found.add(Status.DEGRADED, "starting", "has not been started yet")
        return found
    if store.state is not RunState.RUNNING:
        found.add(Status.UNHEALTHY, *_not_running(store))
        return found
    if store.figures and store.figures.frozen:
        found.add(Status.UNHEALTHY, "frozen", "the process is stopped by a signal")
    if not store.said:
        found.add(Status.DEGRADED, "starting", "has not begun to store yet")
    elif store.said.startswith("degraded: "):
        found.add(Status.DEGRADED, "waiting", store.said.removeprefix("degraded: "))
    _assess_memory(found, store)
    return found


def _assess_memory(found: Findings, worker: WorkerView, *, soft_exceeded: bool = False) -> None:
    used_bytes = worker.figures.memory_bytes if worker.figures else 0
    if soft_exceeded or 0 < worker.soft_mb * MB < used_bytes:
        words = f"uses {used_bytes / MB:.0f} MB, soft limit {worker.soft_mb} MB"
        found.add(Status.DEGRADED, "memory_soft", words)


def _not_running(worker: WorkerView) -> tuple[str, str]:
    ended = f"ended ({worker.last_exit.reason})" if worker.last_exit else "does not run"
    if worker.state is RunState.FAILED:
        if worker.last_exit and worker.last_exit.reason == "config":
            return "bad_configuration", "cannot run as configured; see: marketprism check-config"
        return "given_up", f"{ended} and is not started again by itself"
    if worker.state is RunState.WAITING:
        return "restarting", f"{ended}, is about to be started again"
    return "not_running", "is being stopped" if worker.state is RunState.STOPPING else "is stopped"


def _assess_heartbeat(
    found: Findings, worker: WorkerView, report: ExchangeReport, rules: HealthRules
) -> None:
    if worker.figures and worker.figures.frozen:
        found.add(Status.UNHEALTHY, "frozen", "the process is stopped by a signal")
    elif report.heartbeat_age_s is None:
        if worker.uptime_s > rules.start_grace_s:
            words = f"no sign of life {worker.uptime_s:.0f} s after its start"
            found.add(Status.UNHEALTHY, "no_heartbeat", words)
        else:
            found.add(Status.DEGRADED, "starting", "has not begun to collect yet")
    elif worker.figures is None or report.heartbeat_age_s > rules.stuck_s:
        found.add(Status.UNHEALTHY, "stuck", f"its loop last turned {report.heartbeat_age_s:.1f} s ago")


def _assess_feed(found: Findings, worker: WorkerView, report: ExchangeReport, rules: HealthRules) -> None:
    nothing_at_all = Status.DEGRADED if worker.uptime_s < rules.start_grace_s else Status.UNHEALTHY
    if report.sockets < report.expected_sockets:
        words = f"{report.sockets} of {report.expected_sockets} websockets connected"
        found.add(Status.DEGRADED if report.sockets else nothing_at_all, "websocket_down", words)
    if report.missing_channels:
        words = f"{report.missing_channels} channels not subscribed by the exchange"
        found.add(Status.DEGRADED, "channels_missing", words)
    if report.live_books < report.expected_books:
        words = f"{report.live_books} of {report.expected_books} books live"
        found.add(Status.DEGRADED if report.live_books else nothing_at_all, "books_not_live", words)
    elif report.expected_books and report.book_age_s is not None and report.book_age_s > rules.book_stale_s:
        found.add(Status.DEGRADED, "books_stale", f"a book was last heard of {report.book_age_s:.0f} s ago")
    if report.nats_connected is False:
        found.add(Status.UNHEALTHY, "nats_disconnected", "messages do not flow to NATS")
    elif report.nats_connected is None:
        found.add(Status.DEGRADED, "nats_disconnected", "has not said whether NATS is connected")


def _assess_data(found: Findings, worker: WorkerView, report: ExchangeReport, rules: HealthRules) -> None:
    never = dict.fromkeys(report.expected_data, worker.uptime_s)
    for kind, age_s in sorted((never | dict(report.data_age_s)).items()):
        if age_s > rules.data_stale_s.get(kind, float("inf")):
            found.add(Status.DEGRADED, f"stale_{kind}", f"no {kind} published for {age_s:.0f} s")


def process_entry(worker: WorkerView, report: ExchangeReport, found: Findings) -> Json:
    """One entry of `processes`: the four compatible fields first."""
    return store_entry(worker, found) | {
        "services": {name: {"status": word.word} for name, word in services(report).items()},
        "timestamp": report.heartbeat_s,
        "process": worker.name,
        "live_books": report.live_books,
        "expected_books": report.expected_books,
        "websockets": report.sockets,
        "expected_websockets": report.expected_sockets,
        "missing_channels": report.missing_channels,
        "gaps": report.gaps,
        "gaps_last_hour": report.gaps_last_hour,
        "audits": dict(report.audits),
        "messages_per_second": round(report.messages_per_second, 1),
        "data_age_s": {kind: round(age_s, 1) for kind, age_s in report.data_age_s.items()},
        "heartbeat_age_s": None if report.heartbeat_age_s is None else round(report.heartbeat_age_s, 1),
    }


def store_entry(store: WorkerView, found: Findings) -> Json:
    """One entry of `stores`: what there is to say of any process."""
    figures = store.figures or Figures(0.0, 0)
    return {
        "status": found.status.word,
        "cpu_percent": round(figures.cpu_percent, 1),
        "memory_mb": round(figures.memory_bytes / MB, 1),
        "uptime_seconds": int(store.uptime_s),
        "reasons": found.reasons,
        "explanations": found.explanations,
        "state": store.state.value,
        "says": store.said,
        "pid": store.pid,
        "restarts": sum(store.restarts.values()),
        "last_exit": _exit_entry(store.last_exit),
        "memory_soft_mb": store.soft_mb or None,
        "memory_hard_mb": store.hard_mb or None,
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


def services(report: ExchangeReport) -> dict[str, Status]:
    """What a worker stands on, by the earlier system's names; one it has not told of is missing."""
    found: dict[str, Status] = {}
    if report.nats_connected is not None:
        found["nats"] = Status.HEALTHY if report.nats_connected else Status.UNHEALTHY
    for name, there, expected in (
        ("websocket", report.sockets, report.expected_sockets),
        ("orderbook_manager", report.live_books, report.expected_books),
    ):
        if expected:
            found[name] = (
                Status.HEALTHY if there >= expected else Status.DEGRADED if there else Status.UNHEALTHY
            )
    return found


def services_entry(by_exchange: Iterable[Mapping[str, Status]]) -> dict[str, Json]:
    """The services of the whole: healthy or unhealthy where all workers say so, else degraded.

    `count`: how many workers told of it. NATS is always named, "unknown" while nobody has told.
    """
    told: dict[str, list[Status]] = {"nats": []}
    for found in by_exchange:
        for name, status in found.items():
            told.setdefault(name, []).append(status)
    return {name: {"status": _together(found), "count": len(found)} for name, found in told.items()}


def _together(found: list[Status]) -> str:
    if not found:
        return "unknown"
    return (found[0] if len(set(found)) == 1 else Status.DEGRADED).word


@dataclass(frozen=True, slots=True)
class Health:
    """All judged. `entries` is what `processes` shows, by exchange; `services` and `stores` are shown as they are."""

    status: Status
    entries: Mapping[str, Json]
    services: Mapping[str, Json]
    stores: Mapping[str, Json]
    reasons: list[str]

    def statuses(self) -> dict[str, str]:
        """Exchange or store → status word."""
        return {name: str(entry["status"]) for name, entry in self.everything().items()}

    def everything(self) -> dict[str, Json]:
        """The entries of exchanges and stores."""
        return {**self.entries, **self.stores}


def judge(
    workers: Iterable[WorkerView], readings: Readings, rules: HealthRules, now_s: float, trouble: str = ""
) -> Health:
    """Judge all workers at Unix time `now_s`; the whole is as ill as its illest part, and a store that is ill makes it
    degraded: what it does not take waits in the stream.

    `trouble`: why the workers' states may be out of date, in words, or "".
    """
    entries: dict[str, Json] = {}
    stores: dict[str, Json] = {}
    found_services: list[dict[str, Status]] = []
    overall = Status.DEGRADED if trouble else Status.HEALTHY
    reasons = [trouble] if trouble else []
    for worker in workers:
        if not worker.exchanges:
            found = assess_store(worker)
            stores[worker.name] = store_entry(worker, found)
            overall = max(overall, min(found.status, Status.DEGRADED))
            reasons += [f"{worker.name}: {words}" for words in found.explanations]
        for exchange in worker.exchanges:
            report = report_of(readings, exchange, now_s)
            found = assess(worker, report, rules)
            entries[exchange] = process_entry(worker, report, found)
            overall = max(overall, found.status)
            reasons += [f"{exchange}: {words}" for words in found.explanations]
            found_services.append(services(report))
    if not entries:
        overall, reasons = Status.UNHEALTHY, [*reasons, "there is no worker"]
    return Health(overall, entries, services_entry(found_services), stores, reasons)


@dataclass(frozen=True, slots=True)
class Whole:
    """What is served beside the workers. `name`: of the process that serves; `mode`: multiprocess or single."""

    name: str
    mode: str
    version: str
    uptime_s: float
    own_figures: Figures


def body(health: Health, workers: Iterable[WorkerView], whole: Whole, now_s: float) -> Json:
    """The whole answer of /health."""
    figures = [worker.figures for worker in workers if worker.figures] + [whole.own_figures]
    return {
        "status": health.status.word,
        "uptime_seconds": int(whole.uptime_s),
        "mode": whole.mode,
        "processes": health.entries,
        "services": health.services,
        "stores": health.stores,
        "reasons": health.reasons,
        "timestamp": round(now_s, 3),
        "version": whole.version,
        "summary": {
            "total_processes": len(health.everything()),
            "healthy_processes": sum(word == "healthy" for word in health.statuses().values()),
            "total_cpu_percent": round(sum(found.cpu_percent for found in figures), 1),
            "total_memory_mb": round(sum(found.memory_bytes for found in figures) / MB, 1),
            f"{whole.name}_memory_mb": round(whole.own_figures.memory_bytes / MB, 1),
        },
    }
