"""scripts/bench works and tells what it should. How fast anything is, is not tested here."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.environments import EnvironmentUnavailableError, cryptofeed_python, plot_python
from benchmarks.load import Load, symbol_names
from benchmarks.readings import Counts, Histogram, exchange_figures, parse
from benchmarks.replay import exchange_of
from benchmarks.report import scale_lines
from benchmarks.scale import scale
from benchmarks.soak import slope_per_h
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
    assert found["load"] == {"rate": 40.0}
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


def test_storage_takes_a_backlog_and_finds_what_is_published(tmp_path: Path) -> None:
    pytest.importorskip("chdb", reason="storage needs the extra: pip install 'marketprism[embedded]'")
    told = bench(
        "storage", "--events", "3000", "--seconds", "3", "--json", tmp_path / "storage.json", timeout_s=300
    )
    assert told.returncode == 0, told.stderr
    found = json.loads((tmp_path / "storage.json").read_text())
    assert found["inserted"]["lying"] == found["inserted"]["events"] == 3000
    assert found["backlog"]["lying"] == found["backlog"]["events"] == 3000
    assert [p["name"] for p in found["backlog"]["processes"]] == ["nats", "hot"]
    assert found["found"]["events"] > 0
    assert 0 < found["found"]["p50_s"] <= found["found"]["p99_s"] <= found["found"]["max_s"]
    assert told.stdout.count("target at most") == 3


def check_figures(run: dict[str, Any]) -> None:
    assert run["exchanges"].keys() == EXCHANGES
    for e in run["exchanges"].values():
        check_latency(e["written"])
        if e["acknowledged"]["count"]:
            check_latency(e["acknowledged"])
        assert e["gaps"] == 0
    assert {p["name"] for p in run["workers"]} == EXCHANGES
    assert [p["name"] for p in run["others"]] == ["nats", "simulate", "launcher"]
    for p in (*run["workers"], *run["others"]):
        assert p["pss_end_mb"] > 0
        assert 0 < p["rss_start_mb"] <= p["rss_max_mb"]
    assert run["cpu_us_per_message"] > 0


def check_latency(found: dict[str, Any]) -> None:
    assert found["count"] > 0
    assert found["mean_ms"] > 0
    assert 0 < found["p50_ms"] <= found["p99_ms"] <= found["p999_ms"]


def test_a_sweep_ends_where_a_rate_does_not_hold(tmp_path: Path) -> None:
    sweep = ("live", "--sweep", "--exchange", "binance_spot", "--rate", "2000", "--seconds", "2")
    told = bench(*sweep, "--json", tmp_path / "sweep.json")
    assert told.returncode == 0, told.stderr
    steps = json.loads((tmp_path / "sweep.json").read_text())["steps"]
    assert [step["rate"] for step in steps] == [2000, 20_000, 40_000, 80_000, 160_000][: len(steps)]
    assert steps[-1]["strain"]
    assert all(step["strain"] == "" for step in steps[:-1])
    assert all(step["run"]["exchanges"].keys() == {"binance_spot"} for step in steps)
    assert steps[-1]["strain"] in told.stdout


def test_the_floor_gets_what_the_worker_gets(tmp_path: Path) -> None:
    floor = ("floor", "--rate", "200", "--seconds", "6", "--slices", "1", "--json", tmp_path / "floor.json")
    told = bench(*floor)
    assert told.returncode == 0, told.stderr
    (rate,) = json.loads((tmp_path / "floor.json").read_text())["rates"]
    assert [v["variant"] for v in rate["variants"]] == ["raw", "nats-py"]
    for variant in rate["variants"]:
        (only,) = variant["slices"]
        assert only["floor_messages_per_s"] == pytest.approx(only["messages_per_s"], rel=0.5)
        assert only["floor_us"] > 0
        assert variant["ratio"] == pytest.approx(only["ours_us"] / only["floor_us"])
        assert variant["unacknowledged"] < 50  # what was under way when it was asked
        assert f"200 messages/s, {variant['variant']}" in told.stdout


def test_one_worker_keeps_what_it_is_told() -> None:
    found = scale(2, (Load(60, exchange="binance_spot", symbols=3, levels=200),))
    (row,) = found.rows
    assert row.run.exchanges.keys() == {"binance_spot"}
    assert row.run.together.messages_per_s > 0
    assert row.run.together.gaps == 0
    assert "| binance_spot, 3, 200 " in "\n".join(scale_lines(found))


def test_made_up_symbols_are_many_and_different() -> None:
    assert symbol_names("okx_spot", 2) == ["AAA-USDT", "AAB-USDT"]
    assert len(set(symbol_names("binance_spot", 500))) == 500


def environment(make: Callable[[], Path]) -> None:
    """Make it, or skip: it comes from a package registry."""
    try:
        make()
    except EnvironmentUnavailableError as error:
        pytest.skip(f"an environment of the benchmarks cannot be made here: {error}")


def test_a_soak_tells_slopes_descriptors_and_threads_and_is_drawn(tmp_path: Path) -> None:
    told = bench("soak", "--seconds", "4", "--rate", "40", "--json", tmp_path / "soak.json")
    assert told.returncode == 0, told.stderr
    found = json.loads((tmp_path / "soak.json").read_text())
    assert {s["name"] for s in found["workers"]} == EXCHANGES
    for series in (*found["workers"], *found["others"]):
        assert len(series["rss_mb"]) == len(found["at_s"])
        assert series["slope_mb_per_h"] is not None
        assert min(series["descriptors"]) > 0
        assert min(series["threads"]) > 0
    assert found["messages"] > 0
    assert "descriptors" in told.stdout
    environment(plot_python)
    told = bench("plot", "--out", tmp_path)
    assert told.returncode == 0, told.stderr
    assert (tmp_path / "performance.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_to_draw_is_said_in_one_line(tmp_path: Path) -> None:
    environment(plot_python)
    told = bench("plot", "--out", tmp_path)
    assert told.returncode == 1
    assert told.stderr.count("\n") == 1
    assert "holds no sweep.json" in told.stderr


def test_a_slope_is_per_hour_and_has_an_error() -> None:
    slope, error = slope_per_h([0, 900, 1800, 2700], [10, 11, 12, 13])
    assert (slope, error) == (pytest.approx(4), pytest.approx(0))
    slope, error = slope_per_h([0, 1, 2, 3], [0, 1, 0, 1])
    # by hand: slope 0.2 a second, residues' sum of squares 0.8, error sqrt(0.8 / 2 / 5)
    assert (slope, error) == (pytest.approx(720), pytest.approx(3600 * 0.08**0.5))
    assert slope_per_h([0, 1], [1, 2]) == (None, None)


def test_peers_see_the_same_book(tmp_path: Path) -> None:
    environment(cryptofeed_python)
    told = bench("peers", captured(tmp_path), "--repetitions", "1", "--json", tmp_path / "peers.json")
    assert told.returncode == 0, told.stderr
    (found,) = json.loads((tmp_path / "peers.json").read_text())["captures"]
    assert (found["frames"], found["passes"]) == (10, 500)
    # trades come to it as aggTrade; the first depth message is older than the book it asks for
    assert found["peer_callbacks"] == {"Trade": 5, "OrderBook": 5}
    assert found["peer_warnings"] == 0
    assert found["tops_equal"] == found["books"] == 1
    assert found["ratio"] == pytest.approx(found["peer_us"][0] / found["book_us"][0])
    assert "cryptofeed 2.4.1" in told.stdout


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


def captured(folder: Path) -> Path:
    writer = Writer(folder, "binance_spot")
    for frame in frames():
        writer.write(frame)
    writer.close()
    assert writer.path is not None
    return writer.path


def test_replay_measures_what_is_published(tmp_path: Path) -> None:
    told = bench("replay", captured(tmp_path), "--repetitions", "2", "--json", tmp_path / "replay.json")
    assert told.returncode == 0, told.stderr
    (found,) = json.loads((tmp_path / "replay.json").read_text())["captures"]
    assert found["exchange"] == "binance_spot"
    assert found["left_out"] == {"bookTicker": 5}
    assert found["frames"] == 10
    assert {c["channel"]: c["frames"] for c in found["channels"]} == {"depth@100ms": 5, "trade": 5}
    # 5 trades, 1 whole book, 4 changes
    assert found["events"] >= 10
    for best, median in (found["decode_us"], found["book_us"]):
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
marketprism_acknowledge_latency_seconds_bucket{exchange="okx_spot",le="0.005"} 10
marketprism_acknowledge_latency_seconds_bucket{exchange="okx_spot",le="+Inf"} 10
marketprism_acknowledge_latency_seconds_sum{exchange="okx_spot"} 0.03
"""


def test_figures_lie_between_two_readings() -> None:
    written = {0.001: 20.0, 0.002: 20.0, float("inf"): 20.0}
    before = Counts(at_s=100, messages=20, events=20, acknowledged=20, written_sum_s=0.02, written=written)
    figures = exchange_figures(before, parse(METRICS)["okx_spot"])
    assert figures.messages_per_s == figures.events_per_s == 2
    assert figures.written.count == 20
    assert figures.written.mean_ms == pytest.approx(1.5)
    assert figures.written.p50_ms == pytest.approx(1.5)
    assert figures.written.below_ms == pytest.approx(2)
    assert figures.acknowledged.count == 10
    assert figures.acknowledged.mean_ms == pytest.approx(3)
    assert figures.acknowledged.below_ms == pytest.approx(5)
    assert figures.unacknowledged == 1


def test_a_quantile_beyond_the_last_bound_is_told_as_that_bound() -> None:
    histogram = Histogram(((0.1, 1.0), (float("inf"), 2.0)), 5.0)
    assert histogram.quantile_ms(0.99) == pytest.approx(100)
    assert histogram.below_ms() == float("inf")
    assert Histogram((), 0.0).quantile_ms(0.5) is None


def test_no_word_from_a_worker_is_no_figure() -> None:
    with pytest.raises(ValueError, match="no metrics"):
        exchange_figures(Counts(at_s=1), Counts(at_s=1))
