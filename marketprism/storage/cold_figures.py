"""The cold store in figures: /health, /stats and /metrics, with the earlier system's fields and names."""

import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import psutil
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from marketprism.storage.mover import Failure
from marketprism.storage.schema import TABLES

if TYPE_CHECKING:
    from marketprism.storage.cold import Cold

LATE_MINUTES = 15
ERRORS_SHOWN = 20
HOUR_S = 3600
_PROCESS = psutil.Process()


def health(cold: "Cold") -> dict[str, Any]:
    """The body of /health. `unhealthy`: nothing can be moved; `degraded`: some windows fail, or are late."""
    mover = cold.mover
    away = sorted({mover.hot_trouble, mover.cold_trouble} - {""}) if mover else [cold.trouble]
    late = [
        f"{table}: {minutes:.0f} minutes late"
        for table, minutes in _lags(cold).items()
        if minutes > LATE_MINUTES
    ]
    failing = list(mover.failing) if mover else []
    return {
        "status": "unhealthy" if away else "degraded" if late or failing else "healthy",
        "hot_clickhouse": "healthy" if mover and not mover.hot_trouble else "unhealthy",
        "cold_clickhouse": "healthy" if mover and not mover.cold_trouble else "unhealthy",
        "replication": {
            "enabled": True,
            "cleanup_enabled": True,
            "impl": "parquet" if cold.options.target.embedded else "clickhouse",
            "cross_instance": not cold.options.target.embedded,
            "dependency_warnings": [],
        },
        "reasons": away + failing[:ERRORS_SHOWN] + late,
    }


def status(cold: "Cold") -> str:
    """One line for a person."""
    counts, due = cold.counts, sum(_backlog(cold).values())
    text = f"{counts.moved:,} hours moved since the start, {due:,} to go"
    reasons = health(cold)["reasons"]
    return f"degraded: {reasons[0]}; {text}" if reasons else text


def stats(cold: "Cold") -> dict[str, Any]:
    """The body of /stats."""
    counts, failures = cold.counts, list(cold.counts.failures)
    last = failures[-1] if failures else None
    return {
        "enabled": True,
        "interval_seconds": cold.options.interval_s,
        "last_run_utc": _utc(counts.last_run_s),
        "last_success_utc": _utc(counts.last_success_s),
        "success_windows": counts.moved,
        "failed_windows": counts.failed,
        "dropped_windows": counts.dropped,
        "moved_rows": counts.rows,
        "lag_minutes": {table: round(minutes, 1) for table, minutes in _lags(cold).items()},
        "backlog_windows": _backlog(cold),
        "cleanup_enabled": True,
        "cleanup_delay_minutes": cold.options.retention_s // 60,
        "last_error": last.message if last else None,
        "last_error_utc": _utc(last.time_s) if last else None,
        "errors_count_1h": _within_an_hour(failures),
        "recent_errors": [
            {"time_utc": _utc(f.time_s), "table": f.table, "message": f.message}
            for f in failures[-ERRORS_SHOWN:]
        ],
        "stats_version": 2,
        "server_time_utc": _utc(time.time()),
    }


def metrics(cold: "Cold") -> tuple[bytes, str]:
    """Text and content type of /metrics."""
    registry = CollectorRegistry()
    registry.register(_Collector(cold))
    return generate_latest(registry), CONTENT_TYPE_LATEST


class _Collector:
    def __init__(self, cold: "Cold") -> None:
        self._cold = cold

    def collect(self) -> Iterator[Metric]:
        prefix = "marketprism_cold"
        for name, (text, value) in self._counters().items():
            yield CounterMetricFamily(f"{prefix}_{name}", text, value)
        for name, (text, value) in self._gauges().items():
            yield GaugeMetricFamily(f"{prefix}_{name}", text, value)
        yield _by_table(
            f"{prefix}_replication_lag_minutes",
            "How long the oldest due window has been so",
            _lags(self._cold),
        )
        yield _by_table(f"{prefix}_backlog_windows", "Hours of the table that are due", _backlog(self._cold))

    def _counters(self) -> dict[str, tuple[str, float]]:
        counts = self._cold.counts
        return {
            "success_windows": ("Windows moved and verified", counts.moved),
            "failed_windows": ("Attempts to move or drop a window that failed", counts.failed),
            "dropped_windows": ("Windows dropped from hot, after their retention", counts.dropped),
            "moved_rows": ("Rows moved", counts.rows),
        }

    def _gauges(self) -> dict[str, tuple[str, float]]:
        counts, failures = self._cold.counts, list(self._cold.counts.failures)
        return {
            "process_rss_bytes": ("Resident memory", _PROCESS.memory_info().rss),
            "process_cpu_percent": ("CPU since the last reading", _PROCESS.cpu_percent()),
            "replication_enabled": ("Always 1", 1),
            "errors_count_1h_total": ("Errors of the last hour", _within_an_hour(failures)),
            "last_success_timestamp_seconds": ("When a window was last moved", counts.last_success_s),
            "last_error_timestamp_seconds": (
                "When something last failed",
                failures[-1].time_s if failures else 0,
            ),
        }


def _by_table(name: str, text: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=["table"])
    for table, value in values.items():
        family.add_metric([table], value)
    return family


def _lags(cold: "Cold") -> dict[str, float]:
    return {t.name: cold.mover.lag_minutes(t.name) if cold.mover else 0.0 for t in TABLES}


def _backlog(cold: "Cold") -> dict[str, int]:
    due = cold.mover.backlog if cold.mover else {}
    return {t.name: due.get(t.name, 0) for t in TABLES}


def _within_an_hour(failures: list[Failure]) -> int:
    return sum(f.time_s > time.time() - HOUR_S for f in failures)


def _utc(time_s: float) -> str | None:
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="seconds") if time_s else None
