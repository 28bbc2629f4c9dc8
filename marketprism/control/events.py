"""What the processes log, counted: key events, warnings and errors, whoever hears of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, Metric

_SERIES_MAX = 400  # a process that makes up events must not fill the metrics
_OTHER = "other"


class Events:
    """Counters of log records. An event is what `extra={"event": …}` says; "": the record does not say."""

    def __init__(self) -> None:
        self.records: Counter[tuple[str, str, str]] = Counter()
        self.dropped: Counter[str] = Counter()

    def note(self, process: str, level: str, event: str = "") -> None:
        """One record of `process`; `level` as logging names it."""
        key = (process, level, event)
        known = key in self.records or len(self.records) < _SERIES_MAX
        self.records[key if known else (_OTHER, level, _OTHER)] += 1

    def note_line(self, line: str) -> None:
        """One line of logs.LineFormatter, which does not say its event."""
        _, speaker, level = line.split("] [", 2)
        self.note(speaker, level.partition("]")[0])

    def drop(self, process: str, count: int) -> None:
        """Records of `process` that nobody will ever see."""
        self.dropped[process] += count

    def families(self) -> Iterable[Metric]:
        """For /metrics."""
        records = CounterMetricFamily(
            "marketprism_log_records",
            "Key events, warnings and errors logged.",
            labels=["process", "level", "event"],
        )
        for key, count in self.records.items():
            records.add_metric(list(key), count)
        yield records
        dropped = CounterMetricFamily(
            "marketprism_log_records_dropped",
            "Log records lost to journald's rate limit.",
            labels=["process"],
        )
        for process, count in self.dropped.items():
            dropped.add_metric([process], count)
        yield dropped
