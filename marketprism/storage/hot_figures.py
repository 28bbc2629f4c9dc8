"""The hot store in figures: /health, /stats and /metrics, with the earlier system's fields and names."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import psutil
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

if TYPE_CHECKING:
    from marketprism.storage.hot import Hot

_PROCESS = psutil.Process()


def health(hot: "Hot", version: str) -> dict[str, Any]:
    """The body of /health; `unhealthy` while data waits, with the reasons."""
    troubles = hot.troubles
    return {
        "status": "unhealthy" if troubles else "healthy",
        "timestamp": datetime.now(UTC).isoformat(),
        "service": "hot_storage",
        "version": version,
        "uptime": round(time.time() - hot.started_s, 1),
        "nats_connected": hot.bus is not None,
        "subscriptions": len(hot.consumers),
        "is_running": True,
        "reasons": troubles,
    }


def status(hot: "Hot") -> str:
    """One line for a person."""
    stored, waiting = (
        sum(c.counts.stored for c in hot.consumers),
        sum(c.counts.waiting for c in hot.consumers),
    )
    text = f"{stored:,} rows stored since the start, {waiting:,} messages to go"
    return f"degraded: {hot.troubles[0]}; {text}" if hot.troubles else text


def stats(hot: "Hot") -> dict[str, Any]:
    """The body of /stats."""
    connected = hot.bus is not None
    return {
        "timestamp": datetime.now(UTC).isoformat(),
        "service_status": {
            "is_running": True,
            "subscriptions_count": len(hot.consumers),
            "nats_connected": connected,
        },
        "message_stats": {
            c.table.data_type: {
                "received": c.counts.received,
                "redelivered": c.counts.redelivered,
                "stored": c.counts.stored,
                "repeated": c.counts.repeated,
                "dead": c.counts.dead,
                "batches": c.counts.batches,
                "failures": c.counts.failures,
                "overruns": c.counts.overruns,
                "waiting": c.counts.waiting,
            }
            for c in hot.consumers
        },
        "health_check": {
            "status": "unhealthy" if hot.troubles else "healthy",
            "nats_connected": connected,
            "subscriptions_active": len(hot.consumers) if connected else 0,
        },
    }


def metrics(hot: "Hot") -> tuple[bytes, str]:
    """Text and content type of /metrics."""
    registry = CollectorRegistry()
    registry.register(_Collector(hot))
    return generate_latest(registry), CONTENT_TYPE_LATEST


class _Collector:
    def __init__(self, hot: "Hot") -> None:
        self._hot = hot

    def collect(self) -> Iterator[Metric]:
        yield from self._totals()
        yield from self._by_type()
        yield from self._process()

    def _totals(self) -> Iterator[Metric]:
        """The sums, under both of the earlier system's prefixes."""
        hot = self._hot
        all_counts = [c.counts for c in hot.consumers]
        counters: dict[str, tuple[float, str]] = {
            "messages_received": (
                sum(c.received for c in all_counts),
                "Messages delivered, redelivered ones included",
            ),
            "messages_failed": (sum(c.dead for c in all_counts), "Messages put into the dead-letter stream"),
            "validation_errors": (sum(c.dead for c in all_counts), "The same"),
            "batch_inserts": (sum(c.batches for c in all_counts), "Batches inserted"),
            "batch_size": (sum(c.stored for c in all_counts), "Rows inserted"),
            "clickhouse_insert_errors": (
                sum(c.failures for c in all_counts),
                "Attempts to store that failed",
            ),
        }
        gauges: dict[str, tuple[float, str]] = {
            "subscriptions_active": (len(hot.consumers) if hot.bus else 0, "Data types being read"),
            "is_running": (1, "Always 1"),
            "nats_connected": (int(hot.bus is not None), "Whether NATS is connected"),
            "storing": (int(not hot.troubles), "0 while data waits, for whatever reason"),
            "last_message_time_seconds": (
                max(c.last_message_s for c in all_counts),
                "When a message last came",
            ),
            "last_error_time_seconds": (
                max(c.last_failure_s for c in all_counts),
                "When storing last failed",
            ),
        }
        for prefix in ("hot_storage", "marketprism_storage"):
            for name, (value, text) in counters.items():
                yield CounterMetricFamily(f"{prefix}_{name}", text, value)
            for name, (value, text) in gauges.items():
                yield GaugeMetricFamily(f"{prefix}_{name}", text, value)

    def _by_type(self) -> Iterator[Metric]:
        consumers = self._hot.consumers
        processed = CounterMetricFamily(
            "marketprism_storage_messages_processed",
            "Messages stored, those that were stored already included",
            labels=["data_type", "exchange", "market_type"],
        )
        for c in consumers:
            for (exchange, market_type), number in c.counts.of.items():
                processed.add_metric([c.table.data_type, exchange, market_type], number)
        yield processed
        gauges = {
            "batch_queue_size": "Messages gathered and not yet being stored",
            "batch_queue_bytes": "Their payload",
            "backlog_messages": "Messages in the stream behind the last one read",
        }
        for name, text in gauges.items():
            family = GaugeMetricFamily(f"marketprism_storage_{name}", text, labels=["data_type"])
            for c in consumers:
                value = {
                    "batch_queue_size": c.gathered[0],
                    "batch_queue_bytes": c.gathered[1],
                    "backlog_messages": c.counts.waiting,
                }[name]
                family.add_metric([c.table.data_type], value)
            yield family
        overruns = CounterMetricFamily(
            "marketprism_storage_overruns",
            "Times that the stream dropped what was not stored yet (told in gaps)",
            labels=["data_type"],
        )
        repeated = CounterMetricFamily(
            "marketprism_storage_repeated",
            "Messages not stored since they were already",
            labels=["data_type"],
        )
        for c in consumers:
            repeated.add_metric([c.table.data_type], c.counts.repeated)
            overruns.add_metric([c.table.data_type], c.counts.overruns)
        yield repeated
        yield overruns

    def _process(self) -> Iterator[Metric]:
        rss = _PROCESS.memory_info().rss
        yield GaugeMetricFamily("marketprism_storage_process_rss_bytes", "Resident memory", rss)
        yield GaugeMetricFamily(
            "marketprism_storage_process_cpu_percent", "CPU since the last reading", _PROCESS.cpu_percent()
        )
