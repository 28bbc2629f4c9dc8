"""scripts/bench works and tells what it should. How fast anything is, is not tested here."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.readings import Counts, Histogram, exchange_figures, parse
from benchmarks.replay import exchange_of
from marketprism.capture import Frame, Writer

ROOT = Path(__file__).parents[1]
MS = 1_000_000
T0 = 1_700_000_000_000 * MS
EXCHANGES = {"binance_spot", "binance_derivatives", "okx_spot", "okx_derivatives", "deribit_derivatives"}


def bench(*argv: str | Path, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *argv]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False)


def test_live_measures_the_whole_pipeline(tmp_path: Path) -> None:
    told = bench("live", "--rate", "40", "--seconds", "3", "--json", tmp_path / "live.json")
    assert told.returncode == 0, told.stderr
    found = json.loads((tmp_path / "live.json").read_text())
    assert found["rate"] == 40
    assert {"date", "commit", "cpu", "python", "python_config_args", "versions"} <= found["machine"].keys()
    (run,) = found["runs"]
    assert run["mode"] == "five processes"
    assert run["healthy_at_end"]
    check_figures(run)
    assert [bar["name"].split(",")[0] for bar in run["bars"]] == [
        "latency",
        "latency",
        "memory of the workers together (RSS)",
    ]
    assert told.stdout.count("target at most") == 3
    for name in EXCHANGES:
        assert f"| {name} " in told.stdout


def check_figures(run: dict[str, Any]) -> None:
    assert run["exchanges"].keys() == EXCHANGES
    for e in run["exchanges"].values():
        assert e["latency_count"] > 0
        assert e["mean_ms"] > 0
        assert 0 < e["p50_ms"] <= e["p99_ms"] <= e["p999_ms"]
        assert e["gaps"] == 0
    assert {p["name"] for p in run["workers"]} == EXCHANGES
    assert [p["name"] for p in run["others"]] == ["nats", "simulate", "launcher"]
    for p in (*run["workers"], *run["others"]):
        assert p["pss_end_mb"] > 0
        assert 0 < p["rss_start_mb"] <= p["rss_max_mb"]
    assert run["cpu_us_per_message"] > 0


def compact(message: object) -> str:
    return json.dumps(message, separators=(",", ":"))


def frames() -> Iterator[Frame]:
    """A Binance book that is spliced and changed four times, a trade each time, and a channel not collected."""
    url = "wss://stream.binance.com:9443/stream"
    book = {"lastUpdateId": 100, "bids": [["9.9", "1"]], "asks": [["10.1", "1"]]}
    for n in range(5):
        t = T0 + n * 100 * MS
        depth = {"e": "depthUpdate", "E": t // MS, "s": "BTCUSDT", "U": 100 + n, "u": 100 + n}
        sides: dict[str, Any] = {"b": [[f"9.{n}", "2"]], "a": []}
        trade = {"e": "trade", "s": "BTCUSDT", "t": n, "p": "10", "q": "1", "T": t // MS, "m": True}
        for stream, data in (("depth@100ms", depth | sides), ("trade", trade), ("bookTicker", {"u": 1})):
            yield Frame(t, "ws", url, compact({"stream": f"btcusdt@{stream}", "data": data}))
        if n == 0:
            rest = "https://api.binance.com/api/v3/depth?symbol=BTCUSDT&limit=1000"
            yield Frame(t + MS, "rest", rest, compact(book))


def test_replay_measures_what_is_published(tmp_path: Path) -> None:
    writer = Writer(tmp_path, "binance_spot")
    for frame in frames():
        writer.write(frame)
    writer.close()
    assert writer.path is not None
    told = bench("replay", writer.path, "--repetitions", "2", "--json", tmp_path / "replay.json")
    assert told.returncode == 0, told.stderr
    (found,) = json.loads((tmp_path / "replay.json").read_text())["captures"]
    assert found["exchange"] == "binance_spot"
    assert found["left_out"] == {"bookTicker": 5}
    assert found["frames"] == 10
    assert {c["channel"]: c["frames"] for c in found["channels"]} == {"depth@100ms": 5, "trade": 5}
    # 5 trades, 1 whole book, 4 changes
    assert found["events"] >= 10
    for best, median in (found["decode_us"], found["book_us"], found["encode_us"]):
        assert 0 < best <= median
    assert "bookTicker" in told.stdout


def test_what_cannot_be_measured_is_said_in_one_line(tmp_path: Path) -> None:
    nobody = tmp_path / "somebody.jsonl.gz"
    for flags in ([], ["--exchange", "okx_spot"]):
        told = bench("replay", nobody, *flags)
        assert told.returncode == 1
        assert told.stderr.count("\n") == 1
        assert str(nobody) in told.stderr


@pytest.mark.parametrize(
    ("name", "exchange"),
    [
        ("okx_spot.20260101T000000.jsonl.zst", "okx_spot"),
        ("okx.books.jsonl.gz", "okx_spot"),
        ("deribit.options.jsonl.gz", "deribit_derivatives"),
        ("mine.jsonl", None),
    ],
)
def test_a_recording_is_known_by_its_name(name: str, exchange: str | None) -> None:
    assert exchange_of(Path("/anywhere") / name) == exchange


METRICS = """\
marketprism_websocket_messages_received_total{exchange="okx_spot"} 40
marketprism_data_count_total{exchange="okx_spot",data_type="trade"} 30
marketprism_data_count_total{exchange="okx_spot",data_type="orderbook"} 10
marketprism_nats_messages_published_total{exchange="okx_spot"} 39
marketprism_worker_heartbeat_timestamp_seconds{exchange="okx_spot"} 110
marketprism_publish_latency_seconds_bucket{exchange="okx_spot",le="0.001"} 20
marketprism_publish_latency_seconds_bucket{exchange="okx_spot",le="0.002"} 40
marketprism_publish_latency_seconds_bucket{exchange="okx_spot",le="+Inf"} 40
marketprism_publish_latency_seconds_sum{exchange="okx_spot"} 0.05
"""


def test_figures_lie_between_two_readings() -> None:
    counted = {0.001: 20.0, 0.002: 20.0, float("inf"): 20.0}
    before = Counts(at_s=100, messages=20, events=20, acknowledged=20, latency_sum_s=0.02, buckets=counted)
    figures = exchange_figures(before, parse(METRICS)["okx_spot"])
    assert figures.messages_per_s == figures.events_per_s == 2
    assert figures.latency_count == 20
    assert figures.mean_ms == pytest.approx(1.5)
    assert figures.p50_ms == pytest.approx(1.5)
    assert figures.worst_ms == pytest.approx(2)
    assert figures.unacknowledged == 1


def test_a_quantile_beyond_the_last_bound_is_told_as_that_bound() -> None:
    histogram = Histogram(((0.1, 1.0), (float("inf"), 2.0)), 5.0)
    assert histogram.quantile_ms(0.99) == pytest.approx(100)
    assert histogram.worst_ms() == float("inf")
    assert Histogram((), 0.0).quantile_ms(0.5) is None


def test_no_word_from_a_worker_is_no_figure() -> None:
    with pytest.raises(ValueError, match="no metrics"):
        exchange_figures(Counts(at_s=1), Counts(at_s=1))
