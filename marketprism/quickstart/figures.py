"""What the running collector says of itself, over HTTP, and the figures a person wants to see of it."""

from __future__ import annotations

import http.client
import math
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import msgspec
from prometheus_client.parser import text_string_to_metric_families

HEALTH_URL = "http://127.0.0.1:8087/health"
METRICS_URL = "http://127.0.0.1:9092/metrics"
NATS_HEALTH_URL = "http://127.0.0.1:8222/healthz"
NATS_STREAMS_URL = "http://127.0.0.1:8222/jsz?streams=true"
HOT_URL, COLD_URL = "http://127.0.0.1:8085", "http://127.0.0.1:8086"

_TIMEOUT_S = 2.0
_LATENCY_BUCKET = "marketprism_publish_latency_seconds_bucket"
_SUMMED = {
    "marketprism_data_count_total": "events",
    "marketprism_gaps_total": "gaps",
    "marketprism_live_books": "live_books",
    "marketprism_expected_books": "expected_books",
    "marketprism_publish_latency_seconds_sum": "latency_sum_s",
    "marketprism_publish_latency_seconds_count": "latency_count",
}


class ProcessHealth(msgspec.Struct):
    """One entry of `processes` in /health, as far as it is shown."""

    status: str
    memory_mb: float | None = None
    reasons: list[str] = []


class Health(msgspec.Struct):
    """The answer of /health, as far as it is shown."""

    status: str
    processes: dict[str, ProcessHealth]


class _Stream(msgspec.Struct):
    name: str
    state: dict[str, msgspec.Raw]


class _Account(msgspec.Struct):
    stream_detail: list[_Stream] = []


class _Streams(msgspec.Struct):
    account_details: list[_Account] = []


class _TypeStats(msgspec.Struct):
    stored: int
    waiting: int


class _HotStats(msgspec.Struct):
    message_stats: dict[str, _TypeStats]


@dataclass(frozen=True, slots=True)
class Stored:
    """What the hot store has done since its start, and how many messages wait in the stream."""

    rows: int
    waiting: int


@dataclass(slots=True)
class Counts:
    """One exchange's samples. `latency_buckets`: upper bound in seconds → how many up to it."""

    events: float = 0
    gaps: float = 0
    live_books: float = 0
    expected_books: float = 0
    latency_sum_s: float = 0
    latency_count: float = 0
    latency_buckets: dict[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything asked for at one moment (`at_s`: monotonic clock). `stored`: None without a hot store."""

    at_s: float
    health: Health
    counts: Mapping[str, Counts]
    streams: str
    stored: Stored | None


@dataclass(frozen=True, slots=True)
class Row:
    """What is shown of one exchange. Latencies in milliseconds; None: nothing measured yet."""

    exchange: str
    status: str
    events: int
    events_per_s: float
    live_books: int
    expected_books: int
    gaps: int
    latency_mean_ms: float | None
    latency_p99_ms: float | None
    memory_mb: float | None
    reasons: tuple[str, ...]


def fetch(url: str) -> bytes | None:
    """The body at `url`, whatever the HTTP status; None when nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:
            return bytes(response.read())
    except (
        urllib.error.HTTPError
    ) as refused:  # /health answers 503 when something is wrong: the body tells what
        return refused.read()
    except (OSError, http.client.HTTPException):
        return None


def nats_is_up() -> bool:
    """The NATS server and its JetStream are ready."""
    return b'"ok"' in (fetch(NATS_HEALTH_URL) or b"")


def stores_are_up() -> bool:
    """Both answer, and the hot one stores."""
    return b'"healthy"' in (fetch(f"{HOT_URL}/health") or b"") and fetch(f"{COLD_URL}/health") is not None


def read() -> Reading | None:
    """Ask for everything now; None when the control plane does not answer (yet)."""
    health, metrics = fetch(HEALTH_URL), fetch(METRICS_URL)
    if health is None or metrics is None:
        return None
    try:
        decoded = msgspec.json.decode(health, type=Health)
    except msgspec.MsgspecError:
        return None
    return Reading(
        time.monotonic(),
        decoded,
        parse_metrics(metrics.decode()),
        _streams(fetch(NATS_STREAMS_URL)),
        _stored(fetch(f"{HOT_URL}/stats")),
    )


def parse_metrics(text: str) -> dict[str, Counts]:
    """Exchange → its counts, from the Prometheus text format."""
    found: dict[str, Counts] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            exchange = sample.labels.get("exchange")
            if exchange is not None:
                _add(
                    found.setdefault(exchange, Counts(latency_buckets={})),
                    sample.name,
                    sample.labels,
                    sample.value,
                )
    return found


def _add(counts: Counts, name: str, labels: Mapping[str, str], value: float) -> None:
    if name == _LATENCY_BUCKET and counts.latency_buckets is not None:
        counts.latency_buckets[float(labels["le"])] = value
    elif name in _SUMMED:
        setattr(counts, _SUMMED[name], getattr(counts, _SUMMED[name]) + value)


def _stored(body: bytes | None) -> Stored | None:
    try:
        found = msgspec.json.decode(body or b"", type=_HotStats).message_stats.values()
    except msgspec.MsgspecError:
        return None
    return Stored(sum(each.stored for each in found), sum(each.waiting for each in found))


def _streams(body: bytes | None) -> str:
    """How much JetStream holds, in words."""
    try:
        accounts = msgspec.json.decode(body or b"{}", type=_Streams).account_details
    except msgspec.MsgspecError:
        return ""
    streams = [stream for account in accounts for stream in account.stream_detail]
    return ", ".join(filter(None, map(_describe_stream, streams)))


def _describe_stream(stream: _Stream) -> str:
    messages, size = (int(bytes(stream.state.get(key, msgspec.Raw(b"0")))) for key in ("messages", "bytes"))
    if not messages:
        return ""
    return f"{stream.name} {messages:,} messages, {size / 1e6:,.1f} MB"


def rows(readings: Sequence[Reading]) -> list[Row]:
    """The newest reading; rates and latencies are taken over the span of `readings`."""
    first, last = readings[0], readings[-1]
    names = sorted(last.health.processes | dict.fromkeys(last.counts))
    return [_row(name, first, last) for name in names]


def _row(exchange: str, first: Reading, last: Reading) -> Row:
    process = last.health.processes.get(exchange)
    now, before = (reading.counts.get(exchange, Counts()) for reading in (last, first))
    span_s = last.at_s - first.at_s
    measured = now.latency_count - before.latency_count
    return Row(
        exchange=exchange,
        status=process.status if process else "?",
        events=int(now.events),
        events_per_s=max(now.events - before.events, 0) / span_s if span_s > 0 else 0.0,
        live_books=int(now.live_books),
        expected_books=int(now.expected_books),
        gaps=int(now.gaps),
        latency_mean_ms=1e3 * (now.latency_sum_s - before.latency_sum_s) / measured if measured > 0 else None,
        latency_p99_ms=_quantile_ms(0.99, now.latency_buckets or {}, before.latency_buckets or {}),
        memory_mb=process.memory_mb if process else None,
        reasons=tuple(process.reasons) if process else (),
    )


def _quantile_ms(quantile: float, now: Mapping[float, float], before: Mapping[float, float]) -> float | None:
    """Linear within the bucket that holds the quantile, as Prometheus's histogram_quantile does it."""
    counted = [(bound, now[bound] - before.get(bound, 0)) for bound in sorted(now)]
    if not counted or counted[-1][1] <= 0:
        return None
    rank = quantile * counted[-1][1]
    for (lower, below), (upper, up_to) in pairwise([(0.0, 0.0), *counted]):
        if up_to >= rank:
            return 1e3 * (
                lower if math.isinf(upper) else lower + (upper - lower) * (rank - below) / (up_to - below)
            )
    return None
