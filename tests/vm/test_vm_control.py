"""The control plane on a real systemd: its restart, the journal, orders, MemoryHigh=, and what it costs."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from machine import EXCHANGES, METRICS, Machine, worker

CONTROL = "marketprism-control.service"
MAIN_LOG = "/var/log/marketprism/collector_main.log"
TOKEN = "a token for this machine only"
MB = 2**20
OKX = "okx_spot"

# Asks until it finds a file, and writes down how that went.
ASK_ON = """\
import collections, json, os, time, urllib.error, urllib.request
went = collections.Counter()
open("/host/asking", "w").close()
while not os.path.exists("/host/enough"):
    try:
        urllib.request.urlopen("http://127.0.0.1:8087/live", timeout=30).read()
        went["answered"] += 1
    except urllib.error.URLError as e:
        went[type(e.reason).__name__] += 1
    except Exception as e:
        went[type(e).__name__] += 1
json.dump(went, open("/host/went.new", "w"))
os.rename("/host/went.new", "/host/went")
"""

# Kills a worker, and says after how long /health told it.
KILL = """\
import json, os, sys, time, urllib.error, urllib.request
os.kill(int(sys.argv[2]), 9)
begun = time.monotonic()
while True:
    try:
        body = urllib.request.urlopen("http://127.0.0.1:8087/health").read()
    except urllib.error.HTTPError as e:
        body = e.read()
    if json.loads(body)["processes"][sys.argv[1]]["status"] == "unhealthy":
        break
    time.sleep(0.1)
print(json.dumps([time.monotonic() - begun, time.time()]))
"""

STARTING = "MESSAGE_ID=7d4958e842da4a758f6c1cdc7b36dcc5"  # systemd's: a unit is being started

# In a worker's cgroup, what it does counts as the worker's.
AS_WORKER = "echo $$ >/sys/fs/cgroup/marketprism.slice/{unit}/cgroup.procs && exec {command}"


@pytest.fixture(scope="module")
def running(vm: Machine) -> None:
    """All is up, and orders are allowed with a token."""
    vm.put("/etc/credstore/marketprism.control.token", TOKEN + "\n")
    vm.run("systemctl start marketprism.target", 120)


@pytest.fixture(autouse=True)
def _all_well(vm: Machine, running: None) -> None:
    """Each test begins with all workers healthy."""
    vm.wait("healthy before the test", vm.healthy, 90)


def metric(vm: Machine, name: str, **labels: str) -> float:
    """A sample of /metrics; 0 where there is none."""
    text = vm.ask("/metrics", base=METRICS).text
    wanted = {f'{label}="{value}"' for label, value in labels.items()}
    found = re.findall(rf"^{name}{{([^}}]*)}} (\S+)$", text, re.MULTILINE)
    return sum(float(value) for given, value in found if wanted <= set(given.split(",")))


def main_log(vm: Machine) -> list[str]:
    return vm.run(f"cat {MAIN_LOG}").splitlines()


def others(pids: dict[str, int]) -> dict[str, int]:
    return {exchange: pid for exchange, pid in pids.items() if exchange != OKX}


def reloads(vm: Machine) -> list[str]:
    return [line for line in main_log(vm) if f"[{OKX}] [INFO] reloaded" in line]


def test_files_of_living_workers_are_left_alone(vm: Machine) -> None:
    pids = vm.pids()
    vm.wait("a look", lambda: metric(vm, "marketprism_process_uptime_seconds", process="control") > 3, 30)
    files = vm.run("ls /run/marketprism/metrics").split()
    assert {f"counter_{pid}.db" for pid in pids.values()} <= set(files)
    received = "marketprism_websocket_messages_received_total"
    before = {exchange: metric(vm, received, exchange=exchange) for exchange in EXCHANGES}
    assert all(before.values()), before
    vm.wait("more of each", lambda: all(metric(vm, received, exchange=e) > n for e, n in before.items()), 20)


def test_the_main_log_has_the_key_events_of_all(vm: Machine) -> None:
    lines = main_log(vm)
    for speaker in (*EXCHANGES, "control", "systemd"):
        assert any(f"] [{speaker}] [" in line for line in lines), speaker
    assert all(
        re.match(r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] \[[\w.@-]+\] \[[A-Z]+\] ", line) for line in lines
    )
    assert vm.run("readlink /var/log/marketprism/unified-collector.log").strip() == "collector_main.log"


def test_its_restart_refuses_nobody_and_misses_nothing(vm: Machine) -> None:
    """What is said meanwhile is counted once, over a rotation of the journal, too."""
    before = len(reloads(vm))
    Path(vm.folder, "ask_on.py").write_text(ASK_ON)
    vm.run("systemd-run --quiet --unit=ask-on python3 /host/ask_on.py")
    vm.wait("questions", (vm.folder / "asking").exists, 30)
    vm.run(f"systemctl restart --no-block {CONTROL}")
    vm.run(f"systemctl reload {worker(OKX)} && journalctl --sync && journalctl --rotate")
    vm.wait("the event", lambda: len(reloads(vm)) > before, 90)
    (vm.folder / "enough").touch()
    vm.wait("the end of it", (vm.folder / "went").exists, 60)
    went = json.loads((vm.folder / "went").read_text())
    assert went.pop("answered") > 0
    assert "ConnectionRefusedError" not in went
    assert sum(went.values()) <= 1, went  # an answer that was under way
    counted = metric(vm, "marketprism_log_records_total", process=OKX, event="reload")
    vm.run("journalctl --rotate && journalctl --vacuum-files=1")
    vm.run(f"systemctl reload {worker(OKX)}")
    vm.wait("the next one", lambda: len(reloads(vm)) > before + 1, 30)
    assert len(reloads(vm)) == before + 2
    assert metric(vm, "marketprism_log_records_total", process=OKX, event="reload") == counted + 1


def test_a_killed_worker_is_told_at_once(vm: Machine) -> None:
    """Before it is started again, which is after five seconds. (How fast: a machine like this one cannot tell.)"""
    Path(vm.folder, "kill.py").write_text(KILL)
    before, since = vm.pids(), vm.now()
    took_s, told_at_s = json.loads(vm.run(f"timeout 30 python3 /host/kill.py {OKX} {before[OKX]}", 40))
    print(f"told after {took_s:.2f} s")
    vm.wait("healthy", vm.healthy, 90)
    (again,) = vm.records(STARTING, f"UNIT={worker(OKX)}", since=since)
    assert told_at_s < int(again["__REALTIME_TIMESTAMP"]) / 1e6
    after = vm.health(OKX)
    assert (after["restarts"], after["last_exit"]["reason"], after["last_exit"]["code"]) == (1, "signal", -9)
    assert metric(vm, "marketprism_log_records_total", process=OKX, event="unit_failed") == 1
    assert others(vm.pids()) == others(before)


def test_a_journal_that_is_gone_is_told(vm: Machine) -> None:
    vm.run(f"systemctl stop {CONTROL}")
    vm.run(f"systemctl reload {worker(OKX)} && journalctl --sync && journalctl --rotate")
    vm.run("journalctl --vacuum-files=1 --vacuum-size=1 && systemctl reload " + worker(OKX))
    vm.run(f"systemctl start {CONTROL}", 90)
    vm.wait("told", lambda: any("the journal since" in line for line in main_log(vm)[-40:]), 30)


def test_a_flood_of_lines(vm: Machine) -> None:
    # journald's own limit grows with the free space, and a busy host may be slower than that.
    vm.put(
        "/etc/systemd/journald.conf.d/flood.conf",
        "[Journal]\nRateLimitIntervalSec=10s\nRateLimitBurst=1000\n",
    )
    vm.run("systemctl restart systemd-journald", 60)
    lines = len(main_log(vm))
    command = AS_WORKER.format(unit=worker(OKX), command="seq 30000 | systemd-cat --identifier=flood")
    Path(vm.folder, "flood.sh").write_text(command.replace("exec ", ""))
    vm.run("bash /host/flood.sh", 60)

    def lost() -> float:
        vm.run(
            f"systemctl reload {worker(OKX)}"
        )  # journald tells it with the first record it lets through again
        return metric(vm, "marketprism_log_records_dropped_total", process=OKX)

    dropped = vm.wait("the loss", lost, 240, 5.0)
    assert dropped > 1000
    assert vm.health(OKX)
    assert len(main_log(vm)) < lines + 50
    vm.run("rm /etc/systemd/journald.conf.d/flood.conf && systemctl restart systemd-journald", 60)


def test_orders_need_the_token(vm: Machine) -> None:
    before = vm.pids()[OKX]
    path = f"/workers/{OKX}/restart"
    assert [vm.ask(path, "POST", token=token).status for token in ("", "not the token at all")] == [401, 401]
    assert vm.ask("/workers/nonsense/restart", "POST", token=TOKEN).status == 404
    assert vm.pids()[OKX] == before


def test_orders_are_carried_out(vm: Machine) -> None:
    before, reloaded = vm.pids(), len(reloads(vm))
    # After a flood the journal takes no line of that unit for 30 s. So the order is given again, well after the last.
    ordered_s = time.monotonic() - 60

    def carried_out() -> bool:
        nonlocal ordered_s
        if len(reloads(vm)) > reloaded:
            return True
        if time.monotonic() - ordered_s > 31:
            assert vm.ask(f"/workers/{OKX}/reload", "POST", token=TOKEN).status == 202
            ordered_s = time.monotonic()
        return False

    vm.wait("the reload", carried_out, 120, 1)
    assert vm.pids() == before
    assert vm.ask(f"/workers/{OKX}/stop", "POST", token=TOKEN).status == 202
    vm.wait("its end", lambda: vm.health(OKX)["explanations"] == ["is stopped"], 30)
    assert vm.ask("/health").status == 503
    assert vm.ask(f"/workers/{OKX}/start", "POST", token=TOKEN).status == 202
    vm.wait("healthy", vm.healthy, 90)
    assert others(vm.pids()) == others(before)


def test_its_user_may_do_no_more_than_that(vm: Machine) -> None:
    for verb in ("restart systemd-journald", "stop marketprism.target", "daemon-reload"):
        answer = vm.attempt(f"setpriv --reuid=marketprism --clear-groups systemctl --no-ask-password {verb}")
        assert answer.status != 0, verb
        assert "authentication" in answer.text or "denied" in answer.text.lower(), answer.text


def test_memory_high_is_lifted_and_put_back(vm: Machine) -> None:
    """Not by a leak of the worker here, but by what else is in its cgroup."""
    since, soft = vm.now(), 120 * MB
    assert vm.show(worker(OKX), "MemoryHigh") == {"MemoryHigh": str(soft)}
    hog = 'python3 -c "import time; held = bytearray(100 << 20); time.sleep(600)"'
    Path(vm.folder, "hog.sh").write_text(AS_WORKER.format(unit=worker(OKX), command=hog))
    vm.run("systemd-run --quiet --unit=hog bash /host/hog.sh")
    vm.wait("the limit lifted", lambda: vm.show(worker(OKX), "MemoryHigh") == {"MemoryHigh": "infinity"}, 30)
    vm.wait("told", lambda: vm.records(f"_SYSTEMD_UNIT={CONTROL}", "EVENT=memory_soft", since=since), 10)
    assert "memory_soft" in vm.health(OKX)["reasons"]
    assert vm.health(OKX)["memory_soft_mb"] == 120  # the limit is still what it is
    alert = f"marketprism-alert@memory_soft:{OKX}.service"
    vm.wait("the alert", lambda: vm.records(f"_SYSTEMD_UNIT={alert}", "PRIORITY=1", since=since), 30)
    assert vm.ask(f"/workers/{OKX}/restart", "POST", token=TOKEN).status == 202
    vm.wait("the limit again", lambda: vm.show(worker(OKX), "MemoryHigh") == {"MemoryHigh": str(soft)}, 30)
    vm.wait("healthy", vm.healthy, 60)
    assert len(vm.records(f"_SYSTEMD_UNIT={CONTROL}", "EVENT=memory_soft", since=since)) == 1
    vm.configure(lambda config: config["exchanges"][OKX]["memory"].update(soft_mb=130))
    assert vm.show(worker(OKX), "MemoryHigh") == {"MemoryHigh": str(130 * MB)}  # not what was put back
    vm.wait("the new limit", lambda: vm.health(OKX)["memory_soft_mb"] == 130, 30)


def test_what_it_costs(vm: Machine) -> None:
    """Printed; of CPU time on this machine only the share of it all says something."""
    units = [CONTROL, *(worker(exchange) for exchange in EXCHANGES)]
    stat = "; ".join(f"head -n 1 '/sys/fs/cgroup/marketprism.slice/{unit}/cpu.stat'" for unit in units)
    used = [
        dict(zip(units, (int(n) / 1e6 for n in text.split()[1::2]), strict=True))
        for text in (vm.run(stat), vm.run(f"sleep 30; {stat}", 60))
    ]
    share = {unit: used[1][unit] - used[0][unit] for unit in units}
    print({unit: f"{seconds / 0.3:.1f} %" for unit, seconds in share.items()})
    pid = vm.show(CONTROL, "MainPID")["MainPID"]
    rss = int(re.findall(r"VmRSS:\s+(\d+) kB", vm.run(f"cat /proc/{pid}/status"))[0]) / 1024
    print(f"control plane: {rss:.0f} MB RSS")
    assert rss < 60
