"""MarketPrism under systemd, on one machine from its first start to its last stop. The tests go on from each other."""

import time
from collections.abc import Iterator

import pytest
from machine import EXCHANGES, EXTRA, METRICS, Machine, worker

VICTIM = "okx_spot"
START_S = 120  # a promise of 30 s on a machine that nobody shares
HEAL_S = 120
MINUTE_S = 60


@pytest.fixture(autouse=True)
def _all_well(request: pytest.FixtureRequest) -> None:
    """Each test begins with all workers healthy, the first one excepted."""
    vm: Machine = request.getfixturevalue("vm")
    if request.function is not test_start_to_healthy:
        vm.wait("healthy before the test", vm.healthy, HEAL_S)


@pytest.fixture
def same_workers(vm: Machine) -> Iterator[None]:
    """No worker may be started anew while the test runs."""
    before = vm.pids()
    assert len(before) == len(EXCHANGES)
    yield
    assert vm.pids() == before


def test_start_to_healthy(vm: Machine) -> None:
    since = vm.now()
    began_s = time.monotonic()
    vm.run("systemctl start marketprism.target", START_S)  # returns when all have said READY
    ready_s = time.monotonic() - began_s
    vm.wait("healthy", vm.healthy, HEAL_S)
    print(f"\nready after {ready_s:.1f} s, healthy after {time.monotonic() - began_s:.1f} s")
    assert set(vm.pids()) == set(EXCHANGES)
    for exchange in EXCHANGES:
        entry = vm.health(exchange)
        assert entry["live_books"] == entry["expected_books"] == 2, entry
        connects = vm.records(f"_SYSTEMD_UNIT={worker(exchange)}", "EVENT=connect", since=since)
        assert {r["EXCHANGE"] for r in connects} == {exchange}
    said = vm.said(worker(VICTIM), since)
    assert f"Started {worker(VICTIM)}" in said
    assert "connected: ws://127.0.0.1" in said
    vm.wait("status", lambda: "live 2/2 books" in vm.show(worker(VICTIM), "StatusText")["StatusText"], 30)
    status = vm.show(worker(VICTIM), "MemoryHigh", "MemoryMax", "MemorySwapMax")
    memory = vm.config["exchanges"][VICTIM]["memory"]
    assert int(status["MemoryHigh"]) == memory["soft_mb"] << 20
    assert int(status["MemoryMax"]) == memory["hard_mb"] << 20
    assert status["MemorySwapMax"] == "0"
    metrics = vm.ask("/metrics", base=METRICS)
    assert metrics.status == 200
    for exchange in EXCHANGES:
        assert f'exchange="{exchange}"' in metrics.text


def test_killed_is_told_and_started_again(vm: Machine) -> None:
    since, before = vm.now(), vm.pids()
    vm.run(f"kill -9 {before[VICTIM]}")
    began_s = time.monotonic()
    vm.wait("told", lambda: vm.health(VICTIM).get("status") == "unhealthy", 10, every_s=0.1)
    print(f"\ntold after {time.monotonic() - began_s:.1f} s")
    vm.wait("started again", lambda: VICTIM in vm.pids(), 30)
    after = vm.pids()
    assert after.pop(VICTIM) != before.pop(VICTIM)
    assert after == before
    ended, started = _ended(vm, VICTIM, since), _starting(vm, VICTIM, since)
    assert ended["EXIT_CODE"] == "killed"
    assert started - float(ended["__MONOTONIC_TIMESTAMP"]) / 1e6 >= 5
    vm.wait("healthy", vm.healthy, HEAL_S)
    entry = vm.health(VICTIM)
    assert entry["restarts"] == 1
    assert entry["last_exit"]["reason"] == "signal"


def test_stuck_is_told_and_ended_by_the_watchdog(vm: Machine) -> None:
    since, before = vm.now(), vm.pids()
    vm.run(f"kill -STOP {before[VICTIM]}")
    began_s = time.monotonic()
    vm.wait("told", lambda: vm.health(VICTIM).get("status") == "unhealthy", 15, every_s=0.1)
    print(f"\ntold after {time.monotonic() - began_s:.1f} s")
    vm.wait("started again", lambda: vm.pids().get(VICTIM, before[VICTIM]) != before[VICTIM], 60, every_s=1)
    assert vm.show(worker(VICTIM), "NRestarts") == {"NRestarts": "2"}
    said = vm.said(worker(VICTIM), since)
    assert "Watchdog timeout" in said
    assert "Fatal Python error: Aborted" in said  # faulthandler's
    assert "SIGKILL" not in said
    after = vm.pids()
    del after[VICTIM], before[VICTIM]
    assert after == before
    vm.wait("healthy", vm.healthy, HEAL_S)
    assert vm.health(VICTIM)["last_exit"]["reason"] == "watchdog"


@pytest.mark.usefixtures("same_workers")
def test_nats_restarted(vm: Machine) -> None:
    since = vm.now()
    vm.run("systemctl stop marketprism-nats.service")
    assert vm.show("marketprism-nats.service", "Result") == {"Result": "success"}
    vm.wait("told", lambda: "nats_disconnected" in vm.health(VICTIM).get("reasons", []), 15)
    assert vm.ask("/health").status == 503
    vm.run("systemctl start marketprism-nats.service")
    vm.wait("healthy", vm.healthy, HEAL_S)
    # What the test before has led to may be told only now.
    gaps = [str(r["MESSAGE"]) for r in vm.records("EVENT=gap", since=since)]
    assert [text for text in gaps if ": restart," not in text] == []


@pytest.mark.usefixtures("same_workers")
def test_exchanges_away_for_a_minute(vm: Machine) -> None:
    since = vm.now()
    vm.run("systemctl stop simulator.service")
    end_s = time.monotonic() + MINUTE_S
    vm.wait("told", lambda: all(vm.health(e).get("status") == "unhealthy" for e in EXCHANGES), MINUTE_S)
    time.sleep(max(0.0, end_s - time.monotonic()))
    assert not vm.healthy()
    vm.run("systemctl start simulator.service")
    vm.wait("healthy", vm.healthy, HEAL_S)
    assert {r["EXCHANGE"] for r in vm.records("EVENT=disconnect", since=since)} == set(EXCHANGES)


@pytest.mark.usefixtures("same_workers")
def test_a_reload_adds_symbols(vm: Machine) -> None:
    since = vm.now()

    def add(config: dict[str, dict[str, dict[str, list[str]]]]) -> None:
        for exchange, symbol in EXTRA.items():
            config["exchanges"][exchange]["symbols"].append(symbol)

    vm.configure(add)
    vm.run("systemctl reload marketprism.target", HEAL_S)
    for exchange in EXTRA:
        vm.wait(f"{exchange}: three books", lambda e=exchange: vm.health(e).get("live_books") == 3, HEAL_S)
    vm.wait("healthy", vm.healthy, HEAL_S)
    assert vm.records("EVENT=connect", since=since) == []
    assert vm.records("EVENT=gap", since=since) == []
    assert {r["EXCHANGE"] for r in vm.records("EVENT=reload", since=since)} == set(EXCHANGES)


@pytest.mark.usefixtures("same_workers")
def test_a_broken_configuration_changes_nothing(vm: Machine) -> None:
    since = vm.now()
    files = (
        "cd /run/systemd/generator && find . -path '*marketprism*' | sort && grep -r . marketprism*/*.conf"
    )
    before = vm.run(files)
    right = vm.config["exchanges"][VICTIM]["memory"]
    vm.configure(lambda c: c["exchanges"][VICTIM].update(memory={"soft_mb": 100, "hard_mb": "a lot"}))
    try:
        assert vm.run(files) == before
        told = [str(r["MESSAGE"]) for r in vm.records("SYSLOG_IDENTIFIER=marketprism-generator", since=since)]
        assert any("hard_mb" in line for line in told), told
        vm.run("systemctl reload marketprism.target", HEAL_S)
        told = [str(r["MESSAGE"]) for r in vm.records("EVENT=reload", since=since)]
        assert len([t for t in told if "running on as before" in t and "hard_mb" in t]) == len(EXCHANGES), (
            told
        )
        vm.wait("healthy", vm.healthy, HEAL_S)
    finally:
        vm.configure(lambda c: c["exchanges"][VICTIM].update(memory=right))


def test_restart_of_the_target(vm: Machine) -> None:
    since, before = vm.now(), vm.pids()
    began_s = time.monotonic()
    vm.run("systemctl restart marketprism.target", START_S)
    vm.wait("healthy", vm.healthy, HEAL_S)
    print(f"\nhealthy {time.monotonic() - began_s:.1f} s after the order")
    after = vm.pids()
    assert set(after) == set(EXCHANGES)
    assert not set(after.values()) & set(before.values())
    assert vm.records("EVENT=unsent", since=since) == []


def test_stop_of_the_target(vm: Machine) -> None:
    since = vm.now()
    began_s = time.monotonic()
    vm.run("systemctl stop marketprism.target", 30)  # returns before the services have stopped
    left = "find /sys/fs/cgroup/marketprism.slice -name cgroup.procs -exec cat {} + 2>/dev/null"
    vm.wait("no process is left", lambda: vm.attempt(left).text == "", HEAL_S)
    print(f"\nstopped after {time.monotonic() - began_s:.1f} s")
    vm.wait("nor one outside", lambda: vm.attempt("ps -u marketprism -o pid,args").text.count("\n") == 1, 30)
    assert vm.ask("/health").status == 0
    for exchange in EXCHANGES:
        state = vm.show(worker(exchange), "Result", "ActiveState")
        assert state == {"Result": "success", "ActiveState": "inactive"}
    assert vm.records("SYSLOG_IDENTIFIER=marketprism-alert", since=since) == []
    # NATS goes last, so that all of it could be handed over.
    stopped = [r["UNIT"] for r in vm.records("MESSAGE_ID=9d1aaa27d60140bd96365438aad20286", since=since)]
    nats = stopped.index("marketprism-nats.service")
    assert all(stopped.index(worker(e)) < nats for e in EXCHANGES), stopped


def _ended(vm: Machine, exchange: str, since: str) -> dict[str, str]:
    """systemd's record of how the worker's process ended (SD_MESSAGE_UNIT_PROCESS_EXIT)."""
    message = "MESSAGE_ID=98e322203f7a4ed290d09fe03c09fe15"
    return vm.records(message, f"UNIT={worker(exchange)}", since=since)[0]


def _starting(vm: Machine, exchange: str, since: str) -> float:
    """When systemd began to start it again, in seconds of the monotonic clock (SD_MESSAGE_UNIT_STARTING)."""
    message = "MESSAGE_ID=7d4958e842da4a758f6c1cdc7b36dcc5"
    return (
        float(vm.records(message, f"UNIT={worker(exchange)}", since=since)[0]["__MONOTONIC_TIMESTAMP"]) / 1e6
    )
