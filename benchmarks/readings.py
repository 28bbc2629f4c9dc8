"""What the workers count, read from /metrics, and what lies between two readings."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from prometheus_client.parser import text_string_to_metric_families

_WRITTEN = "marketprism_publish_latency_seconds"
_ACKNOWLEDGED = "marketprism_acknowledge_latency_seconds"
_HISTOGRAMS = {f"{_WRITTEN}_bucket": "written", f"{_ACKNOWLEDGED}_bucket": "acknowledgement"}
_SUMMED = {
    "marketprism_websocket_messages_received_total": "messages",
    "marketprism_data_count_total": "events",
    "marketprism_nats_messages_published_total": "acknowledged",
    "marketprism_gaps_total": "gaps",
    "marketprism_orderbooks_skipped_total": "skipped",
    "marketprism_errors_total": "errors",
    "marketprism_worker_heartbeat_timestamp_seconds": "at_s",
    f"{_WRITTEN}_sum": "written_sum_s",
    f"{_ACKNOWLEDGED}_sum": "acknowledgement_sum_s",
}


@dataclass(slots=True)
class Counts:
    """One exchange's running totals.

    `at_s`: when the worker wrote them, Unix time. Of the two latencies, from the read of the socket to the write to
    NATS and to its acknowledgement: the sum, and upper bound in seconds → how many up to it.
    """

    at_s: float = 0.0
    messages: float = 0.0
    events: float = 0.0
    acknowledged: float = 0.0
    gaps: float = 0.0
    skipped: float = 0.0
    errors: float = 0.0
    written_sum_s: float = 0.0
    acknowledgement_sum_s: float = 0.0
    written: dict[float, float] = field(default_factory=dict)
    acknowledgement: dict[float, float] = field(default_factory=dict)


def parse(text: str) -> dict[str, Counts]:
    """Exchange → its counts, from the Prometheus text format."""
    found: dict[str, Counts] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.labels.get("exchange")
            if name is None:
                continue
            counts = found.setdefault(name, Counts())
            if sample.name in _HISTOGRAMS:
                buckets: dict[float, float] = getattr(counts, _HISTOGRAMS[sample.name])
                buckets[float(sample.labels["le"])] = sample.value
            elif sample.name in _SUMMED:
                field_name = _SUMMED[sample.name]
                setattr(counts, field_name, getattr(counts, field_name) + sample.value)
    return found


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many messages took how long: (upper bound in seconds, how many of them up to it), bounds rising."""

    counted: tuple[tuple[float, float], ...]
    sum_s: float

    @classmethod
    def between(cls, before: Counts, after: Counts, name: str) -> "Histogram":
        """What came between two readings; `name` is that of a latency in Counts."""
        earlier: dict[float, float] = getattr(before, name)
        later: dict[float, float] = getattr(after, name)
        counted = tuple((b, later[b] - earlier.get(b, 0.0)) for b in sorted(later))
        return cls(counted, getattr(after, f"{name}_sum_s") - getattr(before, f"{name}_sum_s"))

    @classmethod
    def together(cls, parts: Sequence["Histogram"]) -> "Histogram":
        """Several with the same bounds as one."""
        sums: dict[float, float] = {}
        for part in parts:
            for bound, n in part.counted:
                sums[bound] = sums.get(bound, 0.0) + n
        return cls(tuple(sorted(sums.items())), sum(part.sum_s for part in parts))

    @property
    def count(self) -> int:
        """How many messages."""
        return int(self.counted[-1][1]) if self.counted else 0

    def mean_ms(self) -> float | None:
        """Exact; None without a message."""
        return 1e3 * self.sum_s / self.count if self.count else None

    def quantile_ms(self, quantile: float) -> float | None:
        """Linear within its bucket, as Prometheus has it; the last finite bound where it lies beyond that.

        None without a message.
        """
        rank = quantile * self.count
        for (lower, below), (upper, up_to) in pairwise([(0.0, 0.0), *self.counted]):
            if up_to >= rank and up_to > below:
                share = 0.0 if math.isinf(upper) else (upper - lower) * (rank - below) / (up_to - below)
                return 1e3 * (lower + share)
        return None

    def below_ms(self) -> float | None:
        """The bound that no message exceeded; infinite where one exceeded the last. None: no message."""
        return next((1e3 * bound for bound, n in self.counted if n >= self.count > 0), None)


@dataclass(frozen=True, slots=True)
class Latency:
    """A histogram in five figures, milliseconds; None: nothing was measured. `below_ms`: no message took longer."""

    count: int
    mean_ms: float | None
    p50_ms: float | None
    p99_ms: float | None
    p999_ms: float | None
    below_ms: float | None
    buckets: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, pairs: Sequence[tuple[Counts, Counts]], name: str) -> "Latency":
        """What came between the readings, all exchanges as one."""
        found = Histogram.together([Histogram.between(*pair, name) for pair in pairs])
        quantiles = (found.quantile_ms(q) for q in (0.5, 0.99, 0.999))
        return cls(found.count, found.mean_ms(), *quantiles, found.below_ms(), found.counted)


@dataclass(frozen=True, slots=True)
class ExchangeFigures:
    """One exchange over the window; rates per second of the worker's own clock.

    `written`, `acknowledged`: from the read of the socket to the write to NATS, and to JetStream's acknowledgement.
    `gaps`, `errors` and `skipped` count since the start of the worker, latencies only within the window.
    `unacknowledged`: events of the window less acknowledgements in it; a backlog that grows shows here.
    """

    messages_per_s: float
    events_per_s: float
    written: Latency
    acknowledged: Latency
    gaps: int
    errors: int
    skipped: int
    unacknowledged: int


def exchange_figures(before: Counts, after: Counts) -> ExchangeFigures:
    """What one exchange did between two readings. Raises ValueError where its worker wrote nothing between them."""
    span_s = after.at_s - before.at_s
    if span_s <= 0:
        raise ValueError("the worker wrote no metrics during the window")
    return _figures([(before, after)], span_s)


def all_figures(before: Mapping[str, Counts], after: Mapping[str, Counts]) -> ExchangeFigures:
    """All exchanges together; rates are sums."""
    pairs = [(before[name], after[name]) for name in after]
    spans_s = [later.at_s - earlier.at_s for earlier, later in pairs]
    return _figures(pairs, sum(spans_s) / len(spans_s))


def _figures(pairs: Sequence[tuple[Counts, Counts]], span_s: float) -> ExchangeFigures:
    events = sum(after.events - before.events for before, after in pairs)
    return ExchangeFigures(
        messages_per_s=sum(after.messages - before.messages for before, after in pairs) / span_s,
        events_per_s=events / span_s,
        written=Latency.of(pairs, "written"),
        acknowledged=Latency.of(pairs, "acknowledgement"),
        gaps=int(sum(after.gaps for _, after in pairs)),
        errors=int(sum(after.errors for _, after in pairs)),
        skipped=int(sum(after.skipped for _, after in pairs)),
        unacknowledged=int(events - sum(after.acknowledged - before.acknowledged for before, after in pairs)),
    )
