"""The shared metrics files: read, kept over a worker's death, and damaged."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from marketprism.control.metrics import Totals
from marketprism.control.shared import SharedMetrics

WRITER = """
import os, sys
from prometheus_client import Counter, Gauge, Histogram
Counter("marketprism_data_count_total", "Events", ["exchange", "data_type"]).labels("okx_spot", "trade").inc(7)
Gauge("marketprism_live_books", "Books", ["exchange"], multiprocess_mode="livemostrecent").labels("okx_spot").set(2)
latency = Histogram("marketprism_publish_latency_seconds", "Latency", ["exchange"], buckets=[0.1, 1])
latency.labels("okx_spot").observe(0.5)
print(os.getpid())
"""


def write_metrics(directory: Path) -> int:
    """A worker that writes its metrics and ends; its pid."""
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(directory)}
    ended = subprocess.run(
        [sys.executable, "-c", WRITER], env=environment, capture_output=True, text=True, check=True
    )
    return int(ended.stdout)


def test_counts_outlive_a_worker_and_gauges_do_not(tmp_path: Path) -> None:
    shared = SharedMetrics(tmp_path)
    first, second = write_metrics(tmp_path), write_metrics(tmp_path)
    readings = shared.read()
    assert readings.total("marketprism_data_count_total", "okx_spot") == 14
    assert readings.value("marketprism_live_books", "okx_spot") == 2
    shared.retire(first)
    shared.retire(second)
    readings = shared.read()
    assert readings.by_label("marketprism_data_count_total", "okx_spot", "data_type") == {"trade": 14}
    assert readings.total("marketprism_publish_latency_seconds_count", "okx_spot") == 2
    assert readings.value("marketprism_live_books", "okx_spot") is None
    assert sorted(file.name for file in tmp_path.glob("*.db")) == ["counter_0.db", "histogram_0.db"]


def test_a_total_goes_on_where_a_new_process_begins_at_nothing() -> None:
    totals = Totals()
    for reading in (5.0, 7.0, 1.0, 4.0):  # the third is of a new process
        totals.note(("okx_spot",), reading)
    assert totals.values == {("okx_spot",): 11.0}


def test_unknown_figures_are_none_not_zero(tmp_path: Path) -> None:
    assert SharedMetrics(tmp_path).read().value("marketprism_live_books", "okx_spot") is None


def test_files_are_read_at_most_twice_a_second(tmp_path: Path) -> None:
    shared = SharedMetrics(tmp_path)
    assert shared.read() is shared.read()


def test_empty_and_damaged_files_cost_only_themselves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_metrics(tmp_path)
    (tmp_path / "counter_99999.db").touch()
    (tmp_path / "gauge_livemostrecent_99998.db").write_bytes(b"\x40\x00\x00\x00" + b"\xff" * 60)
    assert SharedMetrics(tmp_path).read().total("marketprism_data_count_total", "okx_spot") == 7
    assert "gauge_livemostrecent_99998.db is damaged" in caplog.text


def test_clear_removes_what_an_earlier_run_left(tmp_path: Path) -> None:
    directory = tmp_path / "run" / "metrics"
    shared = SharedMetrics(directory)
    shared.clear()
    write_metrics(directory)
    shared.clear()
    assert not list(directory.iterdir())


def test_reading_five_workers_files_is_cheap(tmp_path: Path) -> None:
    for _ in range(5):
        write_metrics(tmp_path)
    shared = SharedMetrics(tmp_path)
    begun = time.process_time()
    shared.read()
    assert time.process_time() - begun < 0.1
