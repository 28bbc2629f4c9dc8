"""Metric names of the earlier system, beside ours, wherever they tell the same thing.

Some of them end in `_count` though they are no histogram; names are kept as dashboards know them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from marketprism.control.shared import Readings, unit_of


@dataclass(frozen=True, slots=True)
class Earlier:
    """`name` was there before; its values are the sums of our `source`, by those labels that it keeps.

    `labels`: our label → its name there. `where`: only samples with these label values count.
    """

    name: str
    text: str
    source: str
    labels: Mapping[str, str]
    where: tuple[tuple[str, str], ...] = ()


_BOOKS = (("data_type", "orderbook_delta"),)
_BY_EXCHANGE = {"exchange": "exchange"}
NAMES = (
    Earlier("active_symbols_count", "Order books that are live.", "live_books", {}),
    Earlier(
        "orderbook_updates_total", "Changes of books published.", "data_count_total", _BY_EXCHANGE, _BOOKS
    ),
    Earlier(
        "last_orderbook_update_timestamp",
        "When a change of a book was last published, Unix time.",
        "last_data_timestamp_seconds",
        _BY_EXCHANGE,
        _BOOKS,
    ),
    Earlier(
        "collector_last_success_timestamp_seconds",
        "When data of this type was last published, Unix time.",
        "last_data_timestamp_seconds",
        {"exchange": "exchange", "data_type": "data_type"},
    ),
    Earlier("orderbook_resync_count", "Books lost and begun anew.", "orderbook_resyncs_total", _BY_EXCHANGE),
    Earlier(
        "orderbook_reconnections_count",
        "Websocket connections begun anew.",
        "websocket_reconnections_total",
        _BY_EXCHANGE,
    ),
    Earlier(
        "orderbook_queue_drops_total",
        "orderbook events left out for want of room.",
        "orderbooks_skipped_total",
        _BY_EXCHANGE,
    ),
    Earlier("memory_warnings_count", "Times a soft memory limit was exceeded.", "memory_warnings_total", {}),
    Earlier(
        "nats_messages_published_labeled_total",
        "Events published, by data type.",
        "data_count_total",
        {"exchange": "exchange", "data_type": "data_type"},
    ),
    Earlier(
        "collector_errors_total",
        "Errors by kind.",
        "errors_total",
        {"exchange": "exchange", "error_type": "code"},
    ),
    Earlier("error_count_total", "Errors of all kinds.", "errors_total", {"exchange": "process"}),
)


def families(readings: Readings) -> Iterable[Metric]:
    """The earlier names with the values of this reading; one without a value is left out."""
    for earlier in NAMES:
        values = _values(earlier, readings)
        if values:
            yield _family(earlier, values)


def _values(earlier: Earlier, readings: Readings) -> dict[tuple[str, ...], float]:
    found: dict[tuple[str, ...], float] = {}
    for labels, value in readings.samples.get(f"marketprism_{earlier.source}", {}).items():
        ours = dict(labels)
        if all(ours.get(label) == wanted for label, wanted in earlier.where):
            key = tuple(ours.get(label, "") for label in earlier.labels)
            found[key] = found.get(key, 0.0) + value
    return found


def _family(earlier: Earlier, values: Mapping[tuple[str, ...], float]) -> Metric:
    kind = CounterMetricFamily if earlier.name.endswith("_total") else GaugeMetricFamily
    name, labels = f"marketprism_{earlier.name}", list(earlier.labels.values())
    family = kind(name, earlier.text, labels=labels, unit=unit_of(name))
    for key, value in values.items():
        family.add_metric(list(key), value)
    return family
