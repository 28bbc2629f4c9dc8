"""The launcher, as a real process over real worker processes on real (free) ports."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

PROGRAM = Path(__file__).parent / "control" / "launcher_program.py"
LINE = re.compile(r"^\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] \[[a-z_]+\] \[[A-Z]+\] .+$")
FAST = {"delays_s": [0.0, 0.2, 0.2, 0.3], "memory_cooldown_s": 0.5, "stop_wait_s": 1.5}


def until(condition: Callable[[], Any], what: str, timeout_s: float = 8.0) -> Any:
    """Wait until `condition` gives something true, and return that."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    pytest.fail(f"not within {timeout_s} s: {what}")


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Rig:
    """A launcher in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.process: subprocess.Popen[str] | None = None

    def start(self, exchanges: list[str], **options: Any) -> None:
        options = {"exchanges": exchanges, "restart": FAST} | options
        (self.directory / "options.json").write_text(json.dumps(options))
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(self.directory)],
            stderr=(self.directory / "stderr").open("w"),
            text=True,
        )

    def order(self, name: str, **order: Any) -> None:
        """What the fake worker `name` shall do from now on."""
        new = self.directory / f"{name}.new"
        new.write_text(json.dumps(order))
        new.replace(self.directory / f"{name}.json")

    def state(self) -> dict[str, int]:
        def read() -> dict[str, int] | None:
            try:
                found: dict[str, int] = json.loads((self.directory / "run" / "launcher.json").read_text())
            except (OSError, ValueError):
                return None
            assert self.process is not None
            return found if found["pid"] == self.process.pid else None  # not what a killed one left

        return until(read, "the launcher's state file")  # type: ignore[no-any-return]

    def get(self, path: str, port: str = "health_port", accept: str = "*/*") -> tuple[int, str]:
        url = f"http://127.0.0.1:{self.state()[port]}{path}"
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": accept})) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as exc:
            return exc.code, exc.read().decode()

    def health(self) -> dict[str, Any]:
        return json.loads(self.get("/health")[1])  # type: ignore[no-any-return]

    def entry(self, name: str) -> dict[str, Any]:
        return self.health()["processes"][name]  # type: ignore[no-any-return]

    def wait_status(self, name: str, *statuses: str, timeout_s: float = 8.0) -> dict[str, Any]:
        def reached() -> dict[str, Any] | None:
            entry = self.entry(name)
            return entry if entry["status"] in statuses else None

        return until(reached, f"{name} {statuses}", timeout_s)  # type: ignore[no-any-return]

    def starts(self, name: str) -> list[tuple[int, float]]:
        """(pid, time) of every start of the fake worker."""
        file = self.directory / f"{name}.starts"
        lines = file.read_text().split("\n")[:-1] if file.exists() else []
        return [(int(pid), float(at)) for pid, at in (line.split() for line in lines)]

    def log(self, name: str = "collector_main.log") -> str:
        file = self.directory / "logs" / name
        return file.read_text() if file.exists() else ""

    def stop(self, timeout_s: float = 8.0) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def clean_up(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for file in self.directory.glob("*.starts"):
            for pid, _ in self.starts(file.stem):
                if alive(pid):
                    os.kill(pid, signal.SIGKILL)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.clean_up()


def test_health_metrics_logs_and_graceful_stop(rig: Rig) -> None:
    rig.order("okx_spot", say="BTC-USDT")
    rig.start(["okx_spot", "binance_spot"])
    entry = rig.wait_status("okx_spot", "healthy")
    rig.wait_status("binance_spot", "healthy")
    status, text = rig.get("/health")
    body = json.loads(text)
    assert (status, body["status"], body["mode"]) == (200, "healthy", "multiprocess")
    assert body["services"] == {
        name: {"status": "healthy", "count": 2} for name in ("nats", "websocket", "orderbook_manager")
    }
    assert list(body["processes"]) == ["okx_spot", "binance_spot"]
    assert list(entry)[:4] == ["status", "cpu_percent", "memory_mb", "uptime_seconds"]
    assert entry["memory_mb"] > 5
    assert (entry["live_books"], entry["expected_books"], entry["restarts"], entry["reasons"]) == (
        2,
        2,
        0,
        [],
    )
    until(lambda: rig.entry("okx_spot")["messages_per_second"] > 10, "a message rate")
    assert rig.entry("okx_spot")["gaps"] == 1
    assert rig.entry("okx_spot")["data_age_s"]["trade"] < 3
    assert rig.get("/ready")[0] == rig.get("/live")[0] == rig.get("/health/okx_spot")[0] == 200
    assert rig.get("/health/okx_spott")[0] == 404
    assert "<table>" in rig.get("/")[1]
    check_metrics(rig)
    check_logs(rig)
    os.kill(rig.state()["pid"], signal.SIGHUP)
    until((rig.directory / "okx_spot.reloaded").exists, "SIGHUP reached the worker")
    assert rig.stop() == 0
    assert not any(alive(pid) for name in ("okx_spot", "binance_spot") for pid, _ in rig.starts(name))


def check_metrics(rig: Rig) -> None:
    text = rig.get("/metrics", "metrics_port")[1]
    families = {family.name: family for family in parse_text(text)}
    assert all(family.documentation and family.type != "unknown" for family in families.values())
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families.values()
        for sample in family.samples
    }
    okx = (("process", "okx_spot"),)
    assert samples["marketprism_process_status", (*okx, ("status", "healthy"))] == 1
    assert samples["marketprism_process_status", (*okx, ("status", "unhealthy"))] == 0
    assert samples["marketprism_process_memory_mb", okx] > 5
    assert samples["marketprism_process_uptime_seconds", okx] > 0
    assert ("marketprism_process_cpu_percent", okx) in samples
    assert samples["marketprism_process_restarts_total", (*okx, ("reason", "memory"))] == 0
    assert ("marketprism_cpu_usage_percent", ()) in samples
    assert samples["marketprism_memory_usage_bytes", ()] > 10_000_000
    assert samples["marketprism_uptime_seconds", ()] > 0
    assert samples["marketprism_websocket_messages_received_total", (("exchange", "okx_spot"),)] > 0
    open_text = rig.get("/metrics", "metrics_port", "application/openmetrics-text; version=1.0.0")[1]
    assert open_text.endswith("# EOF\n")
    open_families = list(parse_openmetrics(open_text))  # type: ignore[no-untyped-call]
    assert "marketprism_process_restarts" in {family.name for family in open_families}


def check_logs(rig: Rig) -> None:
    main, own = rig.log(), rig.log("collector_okx_spot.log")
    assert all(LINE.match(line) for line in (main + own).splitlines())
    assert "[okx_spot] [INFO] OrderBook updated: BTC-USDT" in own
    assert "OrderBook updated" not in main
    assert "unhealthy" not in main, "a normal start alarms nobody"
    assert "[okx_spot] [INFO] gap in BTC-USDT" in main
    assert "[launcher] [INFO] okx_spot started, pid" in main
    link = rig.directory / "logs" / "unified-collector.log"
    assert os.readlink(link) == "collector_main.log"


def test_killed_worker_is_replaced_at_once_and_never_shown_healthy(rig: Rig) -> None:
    rig.start(["okx_spot", "binance_spot"])
    first = rig.wait_status("okx_spot", "healthy")
    other = rig.wait_status("binance_spot", "healthy")["pid"]
    counted = rig.directory / "run" / "metrics"
    os.kill(first["pid"], signal.SIGKILL)
    until(lambda: rig.entry("okx_spot")["pid"] != first["pid"], "the end is noticed", 3.0)
    again = rig.wait_status("okx_spot", "healthy")
    assert again["pid"] != first["pid"]
    assert again["restarts"] == 1
    assert again["last_exit"]["reason"] == "signal"
    assert rig.entry("binance_spot")["pid"] == other
    assert "killed by SIGKILL" in rig.log()
    assert not list(counted.glob(f"*_{first['pid']}.db")), "files of the dead are folded into one"
    text = rig.get("/metrics", "metrics_port")[1]
    assert 'marketprism_process_restarts_total{process="okx_spot",reason="signal"} 1.0' in text


def test_frozen_and_stuck_workers_are_told_within_three_seconds(rig: Rig) -> None:
    rig.start(["okx_spot", "binance_spot"], restart=FAST | {"watchdog_s": 4.0})
    frozen = rig.wait_status("okx_spot", "healthy")["pid"]
    rig.wait_status("binance_spot", "healthy")
    os.kill(frozen, signal.SIGSTOP)
    rig.order("binance_spot", stuck=True)
    assert rig.wait_status("okx_spot", "unhealthy", timeout_s=3.0)["reasons"] == ["frozen"]
    assert rig.wait_status("binance_spot", "unhealthy", timeout_s=3.1)["reasons"] == ["stuck"]
    assert rig.get("/health")[0] == rig.get("/health/okx_spot")[0] == rig.get("/ready")[0] == 503
    os.kill(frozen, signal.SIGCONT)
    rig.wait_status("okx_spot", "healthy")
    rig.order("binance_spot")
    until(lambda: len(rig.starts("binance_spot")) == 2, "the watchdog's restart")
    assert rig.wait_status("binance_spot", "healthy")["last_exit"]["reason"] == "watchdog"


@pytest.mark.parametrize(
    ("order", "reason", "status"),
    [
        ({"gauges": {"live_books": 1}}, "books_not_live", "degraded"),
        ({"book_age_s": 30}, "books_stale", "degraded"),
        ({"trade_age_s": 90}, "stale_trade", "degraded"),
        ({"gauges": {"websocket_connected": 2}}, "websocket_down", "degraded"),
        ({"gauges": {"nats_connected": 0}}, "nats_disconnected", "unhealthy"),
    ],
)
def test_trouble_a_worker_reports_is_shown_within_three_seconds(
    shared_rig: Rig, order: dict[str, Any], reason: str, status: str
) -> None:
    shared_rig.order("okx_spot")
    shared_rig.wait_status("okx_spot", "healthy")
    shared_rig.order("okx_spot", **order)
    assert shared_rig.wait_status("okx_spot", status, timeout_s=3.0)["reasons"] == [reason]


@pytest.fixture(scope="module")
def shared_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    made = Rig(tmp_path_factory.mktemp("shared"))
    made.start(["okx_spot"])
    yield made
    made.clean_up()


def test_crash_loop_follows_the_rules_and_is_given_up_loudly(rig: Rig) -> None:
    rig.order("okx_spot", **{"raise": "no such room"})
    rules = FAST | {"delays_s": [0.0, 0.2, 0.2, 0.4], "give_up_after": 4}
    rig.start(["okx_spot", "binance_spot"], restart=rules)
    entry = until(lambda: (e := rig.entry("okx_spot"))["state"] == "failed" and e, "given up", 12.0)
    assert entry["reasons"] == ["given_up"]
    assert (entry["status"], entry["restarts"]) == ("unhealthy", 4)
    assert entry["last_exit"]["words"] == "RuntimeError: no such room"
    assert rig.wait_status("binance_spot", "healthy")["restarts"] == 0
    assert rig.health()["status"] == "unhealthy"
    begun = [at for _, at in rig.starts("okx_spot")]
    assert len(begun) == 5
    assert begun[4] - begun[3] >= 0.4
    assert "[launcher] [ERROR] okx_spot ended: exit code 1" in rig.log()
    assert "GIVEN UP after 4 restarts" in rig.log()
    assert "Traceback (most recent call last)" in rig.log("collector_okx_spot.log")
    assert rig.stop() == 0


def test_soft_memory_limit_warns_once_and_hard_limit_restarts(rig: Rig) -> None:
    rig.start(["okx_spot"], memory=[120, 200])
    pid = rig.wait_status("okx_spot", "healthy")["pid"]
    rig.order("okx_spot", allocate_mb=110)
    until(lambda: "above its soft limit of 120 MB" in rig.log(), "the warning")
    assert rig.wait_status("okx_spot", "degraded")["reasons"] == ["memory_soft"]
    assert rig.entry("okx_spot")["pid"] == pid
    assert rig.log().count("above its soft limit") == 1
    rig.order("okx_spot", allocate_mb=260)
    until(lambda: "above its hard limit of 200 MB" in rig.log(), "the hard limit")
    rig.order("okx_spot")
    until(lambda: len(rig.starts("okx_spot")) == 2, "the restart")
    entry = rig.wait_status("okx_spot", "healthy")
    assert entry["last_exit"]["reason"] == "memory"
    assert entry["last_exit"]["code"] == 0, "stopped gracefully"
    assert "(memory); restart 1 of at most 10 in a row, in 0.5 s" in rig.log()
    assert 'restarts_total{process="okx_spot",reason="memory"} 1.0' in rig.get("/metrics", "metrics_port")[1]


def test_exit_75_cools_down_and_exit_78_is_final(rig: Rig) -> None:
    rig.order("okx_spot", exit=75)
    rig.order("binance_spot", exit=78)
    rig.start(["okx_spot", "binance_spot", "okx_derivatives"])
    until(lambda: len(rig.starts("okx_spot")) >= 2, "the restart after 75")
    begun = [at for _, at in rig.starts("okx_spot")]
    assert begun[1] - begun[0] >= 0.5
    assert rig.entry("okx_spot")["last_exit"]["reason"] == "memory"
    assert rig.entry("binance_spot")["reasons"] == ["bad_configuration"]
    assert len(rig.starts("binance_spot")) == 1
    assert rig.log().count("binance_spot is not started again, its configuration is wrong") == 1


def test_launcher_ends_with_78_when_no_worker_can_run(rig: Rig) -> None:
    rig.order("okx_spot", exit=78)
    rig.start(["okx_spot"])
    assert rig.process is not None
    assert rig.process.wait(8) == 78


def test_a_worker_that_cannot_be_started_is_told(rig: Rig) -> None:
    rig.start(["okx_spot"], command=["/nonexistent/python"], restart=FAST | {"give_up_after": 1})
    entry = until(lambda: (e := rig.entry("okx_spot"))["state"] == "failed" and e, "given up")
    assert entry["last_exit"]["reason"] == "spawn"
    assert "No such file or directory" in entry["last_exit"]["words"]


def test_worker_that_ignores_the_stop_is_killed_with_its_children(rig: Rig) -> None:
    rig.order("okx_spot", ignore_term=True, child=True)
    rig.start(["okx_spot"])
    pid = rig.wait_status("okx_spot", "healthy")["pid"]
    until((rig.directory / "child.pid").exists, "the grandchild")
    child = int((rig.directory / "child.pid").read_text())
    begun = time.monotonic()
    assert rig.stop() == 0
    assert time.monotonic() - begun >= FAST["stop_wait_s"]  # type: ignore[operator]
    assert not alive(pid)
    assert not alive(child)
    assert "okx_spot did not stop within 1.5 s; killing it" in rig.log()


def test_no_worker_outlives_a_killed_launcher(rig: Rig) -> None:
    rig.start(["okx_spot", "binance_spot"])
    pids = [rig.wait_status(name, "healthy")["pid"] for name in ("okx_spot", "binance_spot")]
    assert rig.process is not None
    rig.process.kill()
    rig.process.wait()
    until(lambda: not any(alive(pid) for pid in pids), "the workers are gone", 3.0)
    rig.start(["okx_spot"])  # and a new launcher is not kept out by what the dead one left
    rig.wait_status("okx_spot", "healthy")
    assert rig.stop() == 0


def test_taken_port_names_the_holder(rig: Rig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        rig.start(["okx_spot"], health_port=port)
        assert rig.process is not None
        assert rig.process.wait(8) == 1
    said = (rig.directory / "stderr").read_text()
    assert said.count("\n") == 1
    assert f"port {port} (health) is taken by" in said
    assert f"pid {os.getpid()}" in said
    assert not rig.starts("okx_spot")


def test_second_launcher_is_refused(rig: Rig, tmp_path: Path) -> None:
    rig.start(["okx_spot"])
    pid = rig.state()["pid"]
    second = Rig(tmp_path / "second")
    second.directory.mkdir()
    second.start(["okx_spot"], runtime_dir=str(rig.directory / "run"))
    assert second.process is not None
    assert second.process.wait(8) == 1
    said = (second.directory / "stderr").read_text()
    assert said.count("\n") == 1
    assert f"another launcher (pid {pid})" in said


def test_single_process_mode_shows_every_exchange(rig: Rig) -> None:
    rig.start(["okx_spot", "binance_spot"], single_process=True)
    entries = [rig.wait_status(name, "healthy") for name in ("okx_spot", "binance_spot")]
    assert rig.health()["mode"] == "single"
    assert {entry["process"] for entry in entries} == {"all"}
    assert len({entry["pid"] for entry in entries}) == 1
    assert entries[0]["memory_soft_mb"] == 8000
    assert rig.stop() == 0
