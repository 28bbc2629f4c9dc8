"""How a worker is: figures for the control plane.

Counting happens in plain integers where the work is done. Once a second the differences go to prometheus-client's
multiprocess files, so that nothing of it lies on the way of a message.
"""

import logging
import time
from bisect import bisect_left
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Literal

from prometheus_client import Counter, Gauge, Histogram

log = logging.getLogger(__name__)

LATENCY_BUCKETS_S = (
    *(5e-5, 1e-4, 1.5e-4, 2e-4, 2.5e-4, 3.5e-4, 5e-4, 7.5e-4, 1e-3, 2e-3, 5e-3),
    *(1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 1.0),
)

_LIVE: Literal["livemostrecent"] = "livemostrecent"
DATA = Counter("marketprism_data_count", "Events handed to NATS, by data type.", ["exchange", "data_type"])
GAPS = Counter("marketprism_gaps", "Gaps published.", ["exchange", "data_type", "cause"])
ERRORS = Counter("marketprism_errors", "Errors by kind.", ["exchange", "error_type"])
FRAMES = Counter("marketprism_websocket_messages_received", "Websocket messages received.", ["exchange"])
RECONNECTS = Counter("marketprism_websocket_reconnections", "Websocket connections begun anew.", ["exchange"])
RESYNCS = Counter("marketprism_orderbook_resyncs", "Books lost and begun anew.", ["exchange", "cause"])
AUDITS = Counter(
    "marketprism_book_audits", "Live books checked against the exchange's own word.", ["exchange", "result"]
)
REQUESTS = Counter(
    "marketprism_snapshot_requests", "REST requests by HTTP status, or no_answer.", ["exchange", "status"]
)
PUBLISHED = Counter(
    "marketprism_nats_messages_published", "Messages acknowledged by JetStream.", ["exchange"]
)
PUBLISH_ERRORS = Counter("marketprism_nats_publish_errors", "Publishing errors.", ["exchange", "error_type"])
SKIPPED = Counter(
    "marketprism_orderbooks_skipped", "orderbook events skipped under back-pressure.", ["exchange"]
)
WARNINGS = Counter("marketprism_memory_warnings", "Times the soft memory limit was exceeded.", ["exchange"])
LATENCY = Histogram(
    "marketprism_publish_latency_seconds",
    "From reading the socket to having written the event to NATS.",
    ["exchange"],
    buckets=LATENCY_BUCKETS_S,
)
ACKNOWLEDGED = Histogram(
    "marketprism_acknowledge_latency_seconds",
    "From reading the socket to JetStream's acknowledgement.",
    ["exchange"],
    buckets=LATENCY_BUCKETS_S,
)
_GAUGES = {
    "live_books": "Order books that are live.",
    "expected_books": "Order books that should be live.",
    "websocket_connected": "Open websocket connections.",
    "websocket_expected": "Websockets that should be connected.",
    "channels_missing": "Wanted channels that the exchange has not subscribed, though asked.",
    "nats_connected": "Whether messages flow to NATS.",
    "publish_backlog_messages": "Messages taken in and not acknowledged.",
    "publish_backlog_bytes": "Memory held for messages taken in and not acknowledged.",
    "worker_heartbeat_timestamp_seconds": "When the worker's loop last turned, Unix time.",
    "last_book_timestamp_seconds": "When the book that is silent for longest was last heard of, Unix time.",
    "memory_soft_exceeded": "Whether memory is above the soft limit.",
}
GAUGES = {
    name: Gauge(f"marketprism_{name}", text, ["exchange"], multiprocess_mode=_LIVE)
    for name, text in _GAUGES.items()
}
LAST_DATA = Gauge(
    "marketprism_last_data_timestamp_seconds",
    "When data of this type was last published, Unix time.",
    ["exchange", "data_type"],
    multiprocess_mode=_LIVE,
)
EXPECTED_DATA = Gauge(
    "marketprism_data_expected",
    "1: data of this type is to be collected.",
    ["exchange", "data_type"],
    multiprocess_mode=_LIVE,
)


class Latency:
    """A histogram filled with plain integers, handed on once a second."""

    def __init__(self, histogram: Histogram, exchange: str) -> None:
        self.count = 0
        self.sum_ns = 0
        self._bounds_ns = [round(b * 1e9) for b in LATENCY_BUCKETS_S]
        self._buckets = [0] * (len(self._bounds_ns) + 1)
        self._recent = [0] * (len(self._bounds_ns) + 1)  # since `p99_ms` was asked last
        self._histogram = histogram.labels(exchange)

    def observe(self, latency_ns: int, messages: int = 1) -> None:
        """Count messages that took so long. On the way of every message."""
        self.count += messages
        self.sum_ns += latency_ns * messages
        self._buckets[bisect_left(self._bounds_ns, latency_ns)] += messages

    def flush(self) -> None:
        """Hand the counts on; prometheus-client has no public way to add many observations at once."""
        for at, n in enumerate(self._buckets):
            if n:
                self._histogram._buckets[at].inc(n)
                self._recent[at] += n
        self._histogram._sum.inc(self.sum_ns / 1e9)
        self._buckets = [0] * len(self._buckets)
        self.count = self.sum_ns = 0

    def p99_ms(self) -> float | None:
        """What 99 of 100 messages since the last call did not exceed, by the bucket's bound; None: there were none."""
        recent, self._recent = self._recent, [0] * len(self._recent)
        seen, wanted = 0, 0.99 * sum(recent)
        for bound_s, n in zip((*LATENCY_BUCKETS_S, inf), recent, strict=True):
            seen += n
            if n and seen >= wanted:
                return bound_s * 1000
        return None


class Totals:
    """Brings a prometheus counter up to a running total."""

    def __init__(self) -> None:
        self._told: dict[tuple[object, ...], float] = {}

    def up_to(self, counter: Counter, labels: tuple[str, ...], total: float) -> None:
        """Add what has come since the last call."""
        key = (id(counter), *labels)
        told = self._told.get(key, 0)
        if total > told or key not in self._told:
            counter.labels(*labels).inc(max(0, total - told))
            self._told[key] = total


@dataclass(slots=True)
class Figures:
    """A worker's state at one moment. Counts are running totals."""

    data: Mapping[str, int] = field(default_factory=dict)
    gaps: Mapping[tuple[str, str], int] = field(default_factory=dict)
    errors: Mapping[str, int] = field(default_factory=dict)
    frames: int = 0
    reconnections: int = 0
    resyncs: Mapping[str, int] = field(default_factory=dict)
    audits: Mapping[str, int] = field(default_factory=dict)
    requests: Mapping[str, int] = field(default_factory=dict)
    published: int = 0
    publish_errors: Mapping[str, int] = field(default_factory=dict)
    skipped: int = 0
    last_data_s: Mapping[str, float] = field(default_factory=dict)
    expected_data: Collection[str] = ()
    gauges: Mapping[str, float] = field(default_factory=dict)


class Vitals:
    """One worker's figures, on their way to the metrics files."""

    def __init__(self, exchange: str) -> None:
        self.latency = Latency(LATENCY, exchange)
        self.acknowledged = Latency(ACKNOWLEDGED, exchange)
        self._exchange = exchange
        self._totals = Totals()
        for counter in (FRAMES, RECONNECTS, PUBLISHED, SKIPPED, WARNINGS):
            counter.labels(exchange)  # there from the start, at 0

    def warned(self) -> None:
        """The soft memory limit was exceeded."""
        WARNINGS.labels(self._exchange).inc()

    def flush(self, f: Figures) -> None:
        """Write everything. Once a second."""
        e, up_to = self._exchange, self._totals.up_to
        up_to(FRAMES, (e,), f.frames)
        up_to(RECONNECTS, (e,), f.reconnections)
        up_to(PUBLISHED, (e,), f.published)
        up_to(SKIPPED, (e,), f.skipped)
        for counter, totals in (
            (DATA, f.data),
            (ERRORS, f.errors),
            (RESYNCS, f.resyncs),
            (AUDITS, f.audits),
            (REQUESTS, f.requests),
        ):
            for label, total in totals.items():
                up_to(counter, (e, label), total)
        for (data_type, cause), total in f.gaps.items():
            up_to(GAPS, (e, data_type, cause), total)
        for kind, total in f.publish_errors.items():
            up_to(PUBLISH_ERRORS, (e, kind), total)
        for data_type, at_s in f.last_data_s.items():
            LAST_DATA.labels(e, data_type).set(at_s)
        for data_type in f.expected_data:
            EXPECTED_DATA.labels(e, data_type).set(1)
        for name, value in f.gauges.items():
            GAUGES[name].labels(e).set(value)
        GAUGES["worker_heartbeat_timestamp_seconds"].labels(e).set(time.time())
        self.latency.flush()
        self.acknowledged.flush()
