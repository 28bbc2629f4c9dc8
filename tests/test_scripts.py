"""The scripts a person runs, their lock files, and the parts of scripts/quickstart."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import tomllib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from marketprism.quickstart import __main__ as quickstart
from marketprism.quickstart import children, figures
from marketprism.quickstart.children import Child, QuickstartError
from marketprism.quickstart.figures import Counts, Health, ProcessHealth, Reading
from marketprism.quickstart.view import View, table

ROOT = Path(__file__).parents[1]
SCRIPTS = [*sorted((ROOT / "scripts").iterdir()), ROOT / ".ci" / "run", ROOT / "packaging" / "make-venv"]
BASH_SCRIPTS = [
    path for path in SCRIPTS if path.is_file() and path.read_bytes().startswith(b"#!/usr/bin/env bash")
]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))


def _run(*argv: str | Path, cwd: Path = ROOT, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv,
        cwd=cwd,
        timeout=timeout_s,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def _wait(condition: Callable[[], object], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


# --- scripts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", BASH_SCRIPTS, ids=lambda path: path.name)
def test_bash_accepts_the_script(script: Path) -> None:
    assert os.access(script, os.X_OK)
    assert _run("bash", "-n", script).stderr == ""


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", BASH_SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    assert _run("shellcheck", script).stdout == ""


@pytest.mark.skipif(not (ROOT / ".venv/.marketprism-setup").exists(), reason="scripts/setup has not run here")
def test_setup_is_quick_when_nothing_is_to_do() -> None:
    assert _run("scripts/setup", timeout_s=600).returncode == 0
    began = time.monotonic()
    again = _run("scripts/setup")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert time.monotonic() - began < 1
    assert os.access(ROOT / ".venv/bin/marketprism", os.X_OK)


def test_setup_refuses_an_unknown_argument_in_one_line() -> None:
    refused = _run("scripts/setup", "--devel")
    assert refused.returncode == 1
    assert refused.stderr == "setup: expected no argument, --embedded or --dev, got: --devel\n"


# --- setup: the order book in C ------------------------------------------------------------------------------------


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A tree in which scripts/setup has nothing left to do but the order book in C."""
    for name in ("pyproject.toml", "README.md", "requirements", "scripts/setup", "marketprism/_book.c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, tmp_path / name)
    locks = sorted((tmp_path / "requirements").glob("*.txt"))
    digest = hashlib.sha256()
    for path in (tmp_path / "pyproject.toml", *locks, tmp_path / "scripts/setup"):
        digest.update(path.read_bytes())
    programs = tmp_path / ".venv/bin"
    programs.mkdir(parents=True)
    for name, command in (("python", sys.executable), ("nats-server", "true"), ("marketprism", "true")):
        (programs / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (programs / name).chmod(0o755)
    (tmp_path / ".venv/.marketprism-setup").write_text(f"runtime\n{tmp_path}\n{digest.hexdigest()}  -\n")
    return tmp_path


def _library(root: Path) -> Path:
    return root / "marketprism" / f"_book{sysconfig.get_config_var('EXT_SUFFIX')}"


COMPILER = shutil.which((sysconfig.get_config_var("CC") or "cc").split()[0])
HEADER = Path(sysconfig.get_path("include"), "Python.h")
compiles = pytest.mark.skipif(not (COMPILER and HEADER.exists()), reason="no C compiler, or no Python.h")
SLOW_BOOK = "setup: the order book runs in Python, ten times slower than in C: "


@compiles
def test_setup_builds_the_book_when_it_is_new(installed: Path) -> None:
    assert _run("scripts/setup", cwd=installed).stderr == ""
    first = _library(installed).stat().st_mtime_ns
    assert _run("scripts/setup", cwd=installed).stderr == ""
    assert _library(installed).stat().st_mtime_ns == first
    (installed / "marketprism/_book.c").touch()
    assert _run("scripts/setup", cwd=installed).stderr == ""
    assert _library(installed).stat().st_mtime_ns > first
    _library(installed).unlink()
    assert _run("scripts/setup", cwd=installed).stderr == ""
    assert _library(installed).exists()


def test_setup_without_a_compiler_says_so_once(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = installed / "tools"
    tools.mkdir()
    for name in ("bash", "cat", "dirname", "flock", "rm", "sha256sum"):
        (tools / name).symlink_to(str(shutil.which(name)))
    with monkeypatch.context() as without:
        without.setenv("PATH", str(tools))
        told = _run("scripts/setup", cwd=installed)
        assert told.returncode == 0
        assert told.stderr.startswith(SLOW_BOOK + "no compiler")
        assert "apt install gcc python3-dev" in told.stderr
        assert told.stderr.count("\n") == 1
        again = _run("scripts/setup", cwd=installed)
        assert (again.returncode, again.stderr) == (0, "")
    assert not _library(installed).exists()
    if COMPILER and HEADER.exists():  # installed since
        assert _run("scripts/setup", cwd=installed).stderr == ""
        assert _library(installed).exists()


@compiles
def test_setup_goes_on_where_the_book_cannot_be_built(installed: Path) -> None:
    _library(installed).write_text("of an older _book.c")
    os.utime(_library(installed), (0, 0))
    (installed / "marketprism/_book.c").write_text("#error no\n")
    told = _run("scripts/setup", cwd=installed)
    log = installed / ".venv/.marketprism-book.log"
    assert (told.returncode, told.stderr) == (0, f"{SLOW_BOOK}building that failed, see {log}\n")
    assert "#error no" in log.read_text()
    assert not _library(installed).exists()


def test_main_py_without_the_packages_is_one_line() -> None:
    # -S: no site-packages, as with a Python that scripts/setup has not prepared.
    told = _run(sys.executable, "-S", "main.py", "--mode", "launcher")
    assert told.returncode == 1
    assert "Run scripts/setup once" in told.stderr
    assert told.stderr.count("\n") == 1


def test_main_py_refuses_an_unknown_mode() -> None:
    refused = _run(sys.executable, "main.py", "--mode", "collector")
    assert refused.returncode == 2
    assert "invalid choice: 'collector'" in refused.stderr
    assert "Traceback" not in refused.stderr


def _nats_server() -> Path | None:
    beside_python = Path(sys.executable).with_name("nats-server")
    on_path = shutil.which("nats-server")
    return beside_python if beside_python.exists() else Path(on_path) if on_path else None


@pytest.mark.skipif(_nats_server() is None, reason="no nats-server; scripts/setup brings one")
def test_the_nats_server_accepts_its_configuration(tmp_path: Path) -> None:
    server = _nats_server()
    assert server is not None
    checked = _run(server, "-t", "-c", ROOT / "config/nats/nats-server.conf", cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr


# --- lock files ----------------------------------------------------------------------------------------------------


def _pins(lock: Path) -> dict[str, str]:
    found = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", lock.read_text(), re.MULTILINE)
    return {name.lower().replace("_", "-"): version for name, version in found}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_a_lock_pins_with_hashes_and_names_no_place(lock: Path) -> None:
    text = lock.read_text()
    requirements = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]
    assert requirements
    assert all("==" in entry and "--hash=sha256:" in entry for entry in requirements)
    assert not re.search(r"https?://|file:|--index|--find-links", text)


@pytest.mark.parametrize(("lock", "extra"), [("runtime", None), ("dev", None), ("dev", "dev")])
def test_every_dependency_is_locked(lock: str, extra: str | None) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["optional-dependencies"][extra] if extra else project["dependencies"]
    names = {re.split(r"[<>=!~; \[]", requirement)[0].lower().replace("_", "-") for requirement in wanted}
    assert names <= _pins(ROOT / f"requirements/{lock}.txt").keys()


def test_the_locks_agree() -> None:
    runtime, dev = (_pins(ROOT / f"requirements/{name}.txt") for name in ("runtime", "dev"))
    assert runtime.items() <= dev.items()


# --- quickstart: ports ---------------------------------------------------------------------------------------------


def test_a_taken_port_names_its_holder(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as free:
        numbers = taken.getsockname()[1], free.getsockname()[1]
        free.close()
        monkeypatch.setattr(quickstart, "PORTS", {numbers[0]: "metrics", numbers[1]: "health"})
        with pytest.raises(QuickstartError) as error:
            quickstart.check_ports(storage=False)
    assert f"port {numbers[0]} (metrics) is taken by" in str(error.value)
    assert f"pid {os.getpid()}" in str(error.value)
    assert psutil.Process().name() in str(error.value)
    assert str(numbers[1]) not in str(error.value)


# --- quickstart: all of it -----------------------------------------------------------------------------------------


@pytest.mark.skipif(_nats_server() is None, reason="no nats-server; scripts/setup brings one")
def test_quickstart_shows_data_of_every_exchange_and_leaves_nothing_running() -> None:
    """The one test that needs the fixed ports: they are what quickstart is about."""
    storage = find_spec("chdb") is not None
    try:
        quickstart.check_ports(storage=storage)
    except QuickstartError as taken:
        pytest.skip(str(taken))
    argv = [sys.executable, "-m", "marketprism.quickstart", "--seconds", "12", "--no-view"]
    argv += [] if storage else ["--no-storage"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        _, told = process.communicate(timeout=150)
    assert process.returncode == 0, told
    assert "data flows" in told
    assert ("data is stored" in told) == storage
    assert "all stopped" in told
    marker = f"MARKETPRISM_QUICKSTART_PID={process.pid}\0".encode()
    assert [pid for pid in psutil.pids() if marker in _environment(pid)] == []
    quickstart.check_ports(storage=storage)


def _environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes() + b"\0"
    except OSError:
        return b""


# --- quickstart: children ------------------------------------------------------------------------------------------


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[[str, str], Child]]:
    running: list[Child] = []

    def start(name: str, code: str) -> Child:
        child = children.start(name, [sys.executable, "-c", code], tmp_path / f"{name}.log", tmp_path, {})
        running.append(child)
        return child

    yield start
    children.stop_all(running, patience_s=0)


Start = Callable[[str, str], Child]
_STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(99)"
_TELLS_WHEN_STOPPED = (
    "import signal, sys, time, pathlib\n"
    "def stop(*_): open('order', 'a').write(sys.argv[0] or 'NAME'); sys.exit(0)\n"
    "signal.signal(signal.SIGTERM, stop); print('up', flush=True); time.sleep(99)"
)


def test_a_child_that_ends_shows_its_last_words(started: Start) -> None:
    child = started("worker", "import sys; print('first'); sys.exit('no such exchange: okex')")
    with pytest.raises(
        QuickstartError, match=r"worker ended with exit status 1(.|\n)*no such exchange: okex"
    ):
        children.wait_until(lambda: False, "never", [child], 10)


def test_waiting_ends_with_the_reason(started: Start) -> None:
    child = started("slow", _STUBBORN)
    with pytest.raises(QuickstartError, match="health on port 8087: not after 0 s"):
        children.wait_until(lambda: False, "health on port 8087", [child], 0.1)


def test_a_program_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(QuickstartError, match=r"cannot start NATS \(/none/nats-server\): No such file"):
        children.start("NATS", ["/none/nats-server"], tmp_path / "log", tmp_path, {})


def test_stopping_is_graceful_and_in_reverse_order(started: Start, tmp_path: Path) -> None:
    pair = [started(name, _TELLS_WHEN_STOPPED.replace("sys.argv[0] or 'NAME'", f"{name!r}")) for name in "ab"]
    _wait(lambda: all(child.log.read_text() == "up\n" for child in pair))
    children.stop_all(pair, patience_s=10)
    assert [child.process.returncode for child in pair] == [0, 0]
    assert (tmp_path / "order").read_text() == "ba"


def test_a_stubborn_child_and_its_own_children_are_killed(started: Start) -> None:
    code = (
        "import subprocess, sys\n"
        f"p = subprocess.Popen([sys.executable, '-c', {_STUBBORN!r}])\n"
        "print(p.pid, flush=True); p.wait()"
    )
    child = started("stubborn", code)
    _wait(lambda: "up" in child.log.read_text())
    grandchild = psutil.Process(int(re.findall(r"\d+", child.log.read_text())[0]))
    children.stop_all([child], patience_s=0.2)
    _wait(lambda: not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE)


def test_no_child_outlives_a_killed_quickstart(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys, time; from marketprism.quickstart import children\n"
        "here = pathlib.Path(sys.argv[1])\n"
        "child = children.start('c', [sys.executable, '-c', 'import time; time.sleep(99)'], here / 'log', here, {})\n"
        "print(child.process.pid, flush=True); time.sleep(99)"
    )
    argv = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
    _wait(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


# --- quickstart: figures and view ----------------------------------------------------------------------------------

_METRICS = """\
# TYPE marketprism_data_count_total counter
marketprism_data_count_total{exchange="okx_spot",data_type="trade"} 300.0
marketprism_data_count_total{exchange="okx_spot",data_type="orderbook"} 100.0
# TYPE marketprism_gaps_total counter
marketprism_gaps_total{exchange="okx_spot",data_type="trade",cause="disconnect"} 2.0
# TYPE marketprism_live_books gauge
marketprism_live_books{exchange="okx_spot"} 1.0
# TYPE marketprism_expected_books gauge
marketprism_expected_books{exchange="okx_spot"} 2.0
# TYPE marketprism_publish_latency_seconds histogram
marketprism_publish_latency_seconds_bucket{exchange="okx_spot",le="0.0001"} 90.0
marketprism_publish_latency_seconds_bucket{exchange="okx_spot",le="0.0002"} 98.0
marketprism_publish_latency_seconds_bucket{exchange="okx_spot",le="0.0004"} 100.0
marketprism_publish_latency_seconds_bucket{exchange="okx_spot",le="+Inf"} 100.0
marketprism_publish_latency_seconds_sum{exchange="okx_spot"} 0.01
marketprism_publish_latency_seconds_count{exchange="okx_spot"} 100.0
# TYPE marketprism_process_cpu_percent gauge
marketprism_process_cpu_percent{process="okx_spot"} 3.0
"""


def _readings() -> list[Reading]:
    health = Health(
        "healthy",
        {
            "okx_spot": ProcessHealth("healthy", 61.4),
            "deribit_derivatives": ProcessHealth("degraded", reasons=["stale_trade"]),
        },
    )
    before = {"okx_spot": Counts(events=200, latency_buckets={})}
    return [
        Reading(100.0, health, before, "", None),
        Reading(
            104.0,
            health,
            figures.parse_metrics(_METRICS),
            "MARKET_DATA 400 messages, 0.1 MB",
            figures.Stored(1390, 12),
        ),
    ]


def test_rows_show_rates_and_latencies_of_the_window() -> None:
    deribit, okx = figures.rows(_readings())
    assert (okx.exchange, okx.status, okx.events, okx.events_per_s) == ("okx_spot", "healthy", 400, 50.0)
    assert (okx.live_books, okx.expected_books, okx.gaps, okx.memory_mb) == (1, 2, 2, 61.4)
    assert okx.latency_mean_ms == pytest.approx(0.1)
    assert okx.latency_p99_ms == pytest.approx(0.3)
    assert (deribit.exchange, deribit.events, deribit.latency_mean_ms, deribit.memory_mb) == (
        "deribit_derivatives",
        0,
        None,
        None,
    )


def test_data_flows_when_every_exchange_has_published() -> None:
    reading = _readings()[-1]
    assert not quickstart.flows(reading)
    del reading.health.processes["deribit_derivatives"]
    assert quickstart.flows(reading)


def test_the_table_is_aligned() -> None:
    title, *lines = table(_readings(), "simulated exchanges", 12.3)
    assert title == "MarketPrism · simulated exchanges · 12 s · healthy · MARKET_DATA 400 messages, 0.1 MB"
    assert lines.pop() == "hot store: 1,390 rows, 12 messages to go"
    assert len({len(line.removesuffix("  stale_trade")) for line in lines}) == 1
    assert lines[2].split() == [
        "okx_spot",
        "healthy",
        "50.0",
        "400",
        "1/2",
        "2",
        "0.10",
        "ms",
        "0.30",
        "ms",
        "61",
        "MB",
    ]


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_is_refreshed_in_place() -> None:
    out = _Terminal()
    view = View(out, "simulated exchanges", "logs", stores=True)
    view.draw(_readings(), 1)
    lines = out.getvalue().count("\n")
    view.draw(_readings(), 2)
    assert out.getvalue().count(f"\x1b[{lines}F") == 1
    assert "marketprism_hot" in out.getvalue()


def test_elsewhere_lines_are_added_every_few_seconds() -> None:
    out = io.StringIO()
    view = View(out, "simulated exchanges", "logs", stores=False)
    for second in range(15):
        view.draw(_readings(), second)
    assert "\x1b" not in out.getvalue()
    assert out.getvalue().count("MarketPrism ·") == 3
    assert out.getvalue().count("Ctrl-C stops everything.") == 1
    assert "marketprism_hot" not in out.getvalue()


def test_nobody_answering_is_no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    monkeypatch.setattr(figures, "HEALTH_URL", f"http://127.0.0.1:{port}/health")
    assert figures.read() is None
