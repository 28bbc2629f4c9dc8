"""The Debian package on a machine with systemd, from `apt install` to a purge. The tests go on from each other."""

import asyncio
import itertools
import json
import os
import pickle
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from deb_package import ROOT, Package, package, packages
from machine import EXCHANGES, RATE, CannotRunError, Machine, worker

from chaos.explain import Fired, unexplained
from chaos.judge import WORKER_OF, Verdict, judge
from chaos.natsbox import NatsBox
from chaos.pipeline import stored
from chaos.schedule import KINDS, ProcessFault

INSTALL_S = 240  # a promise of 60 s on a machine that nobody shares
START_S = 180
HEAL_S = 120
FILL_S = 300  # what a minute's trades take over REST, and to be held against the truth
SUITE = os.environ.get("SYSTEMD_VM_SUITE", "bookworm")  # read by scripts/systemd-vm, too
STOPPED = "deribit_derivatives"
STORED = "okx_spot"  # one exchange is enough work for the machine's one CPU beside the engine
STORES = ("marketprism-hot.service", "marketprism-cold.service")
LATER = "99.0.0"
APT = "DEBIAN_FRONTEND=noninteractive apt-get -y -qq -o Dpkg::Use-Pty=0"
SIMULATOR = f"""\
[Service]
Type=exec
ExecStart=/usr/lib/marketprism/bin/python -I /host/exchanges.py {RATE}
"""


class Bare(Machine):
    """A machine without MarketPrism."""

    def _install(self) -> None:
        self.run("rm -rf /usr/lib/marketprism && systemctl unmask nats-server.service")
        self.run("systemctl start nats-server.service")  # as Debian's package does when it is installed


@pytest.fixture(scope="module")
def deb() -> Package:
    return package(SUITE)


@pytest.fixture(scope="module")
def vm(deb: Package, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("vm")
    shutil.copy(deb.path, folder / "this.deb")
    deb.as_version(f"{LATER}-1", folder).path.rename(folder / "later.deb")
    shutil.copy(Path(__file__).with_name("exchanges.py"), folder)
    # The tests alone: of more than those it would want to build packages.
    shutil.copytree(ROOT / "packaging/debian/tests", folder / "tree/debian/tests")
    try:
        machine = Bare(folder)
    except CannotRunError as e:
        pytest.skip(str(e))
    yield machine
    machine.power_off()


def test_installing_starts_nothing_and_says_how(vm: Machine) -> None:
    began_s = time.monotonic()
    said = vm.run(f"{APT} install /host/this.deb", INSTALL_S)
    print(f"\ninstalled after {time.monotonic() - began_s:.1f} s")
    assert "Start it: systemctl start marketprism.target" in said.strip().splitlines()[-1]
    assert vm.run("systemctl list-units --no-legend --state=active 'marketprism*'") == ""
    assert vm.attempt("systemctl is-enabled marketprism.target").text == "disabled\n"
    assert vm.run("marketprism check-config", 60).endswith(", 0 warnings\n")
    verified = vm.run("systemd-analyze verify marketprism.target marketprism-worker@okx_spot.service", 60)
    assert "marketprism" not in verified


def test_the_autopkgtest(vm: Machine) -> None:
    """By its own program: `healthy`, with exchanges of its own, and data that nobody needs after it."""
    vm.run(
        "autopkgtest --test-name=healthy --ignore-restrictions=breaks-testbed,isolation-machine"
        " --output-dir=/tmp/autopkgtest /host/this.deb /host/tree -- null",
        INSTALL_S + START_S + HEAL_S,
    )
    assert vm.run("cat /tmp/autopkgtest/summary").split() == ["healthy", "PASS"]
    vm.run("systemctl stop simulator.service")
    vm.wait("no process is left", lambda: vm.attempt("pgrep -u marketprism").text == "", HEAL_S)
    vm.run("rm -r /var/lib/marketprism/* /tmp/autopkgtest")


def test_started_it_is_healthy(vm: Machine) -> None:
    _simulate(vm)
    began_s = time.monotonic()
    vm.run("systemctl start marketprism.target", START_S)
    vm.wait("healthy", vm.healthy, HEAL_S)
    print(f"\nhealthy {time.monotonic() - began_s:.1f} s after the start")
    assert set(vm.pids()) == set(EXCHANGES)
    assert vm.attempt("systemctl is-active nats-server.service").text == "inactive\n"


def test_systemd_knows_all_that_the_units_say(vm: Machine) -> None:
    said = vm.records("_PID=1")
    assert [
        r["MESSAGE"] for r in said if "marketprism" in str(r["MESSAGE"]) and "nknown" in str(r["MESSAGE"])
    ] == []


@pytest.mark.skipif(SUITE == "bookworm", reason="Debian 12's systemd cannot wait for it")
def test_a_reload_returns_when_it_is_done(vm: Machine) -> None:
    unit = worker(STOPPED)
    assert vm.show(unit, "Type", "ExecReload") == {"Type": "notify-reload"}
    since = vm.now()
    vm.run(f"systemctl reload {unit}", 60)
    assert vm.records(f"_SYSTEMD_UNIT={unit}", "EVENT=reload", since=since)
    assert vm.show(unit, "ActiveState") == {"ActiveState": "active"}


def test_an_upgrade_restarts_what_runs_one_by_one_and_loses_nothing(vm: Machine) -> None:
    vm.run(f"systemctl enable marketprism.target && systemctl stop {worker(STOPPED)}", 60)
    before, nats = vm.pids(), vm.show("marketprism-nats.service", "MainPID")
    began_ms = _now_ms(vm)
    said = vm.run(f"{APT} install /host/later.deb", INSTALL_S + START_S)
    after = vm.pids()
    assert set(after) == set(before) == set(EXCHANGES) - {STOPPED}
    assert not set(after.values()) & set(before.values())
    assert vm.show("marketprism-nats.service", "MainPID") == nats
    assert [f"restarting {worker(e)}" in said for e in sorted(after)] == [True] * len(after)
    stops, starts = (
        _times(vm, "ActiveExitTimestampMonotonic", after),
        _times(vm, "ActiveEnterTimestampMonotonic", after),
    )
    order = sorted(after, key=lambda exchange: starts[exchange])
    for earlier, later in itertools.pairwise(order):
        assert starts[earlier] <= stops[later], f"{later} was away together with {earlier}"
    assert {e: _state(vm, e)["version"] for e in after} == dict.fromkeys(after, LATER)
    config = yaml.safe_load(vm.run("cat /etc/marketprism/unified_data_collection.yaml"))
    assert config == vm.config
    vm.run(f"systemctl start {worker(STOPPED)}", START_S)
    vm.wait("healthy", vm.healthy, HEAL_S)
    away = [Fired(ProcessFault("kill_worker", e), began_ms, _now_ms(vm)) for e in EXCHANGES]
    verdict = vm.wait("every trade, or a word about it", lambda: _faultless(vm), FILL_S, 5)
    print(f"\n{verdict.trades} trades, {verdict.books} states of books, {len(verdict.gaps)} gaps")
    assert {g["exchange"] + g["market_type"] for g in verdict.gaps} == {w[0] + w[1] for w in WORKER_OF}
    assert verdict.missing == 0  # of trades: REST has them all
    assert unexplained(verdict.gaps, away, KINDS) == []


def test_removed_it_stops_and_keeps_what_it_collected(vm: Machine) -> None:
    vm.run(
        f"kill -STOP {vm.pids()[STOPPED]}"
    )  # it has to be killed, and its alert starts while all else stops
    vm.run(f"{APT} remove marketprism", INSTALL_S)
    active = "systemctl list-units --no-legend --state=active 'marketprism*'"
    vm.wait("nothing of it runs", lambda: vm.run(f"{active}; pgrep -u marketprism || true") == "", 30)
    assert vm.run("find /var/lib/marketprism -name '*.blk'")
    assert vm.run("ls /etc/marketprism").split() == ["nats-server.conf", "unified_data_collection.yaml"]


def test_installed_again_it_goes_on(vm: Machine) -> None:
    vm.run(f"{APT} install /host/this.deb", INSTALL_S)
    vm.run("systemctl start marketprism.target", START_S)
    vm.wait("healthy", vm.healthy, HEAL_S)


@pytest.fixture(scope="module")
def engine(vm: Machine) -> str:
    """The package of the stores' engine, in the machine; the engine's tests go on from each other."""
    _, *more = packages(SUITE)
    if not more:
        pytest.skip("it is large; scripts/build-deb --stores builds it")
    shutil.copy(more[0].path, vm.folder / "engine.deb")
    return "/host/engine.deb"


def test_with_the_engine_installed_the_stores_keep_what_is_published(vm: Machine, engine: str) -> None:
    vm.run("systemctl stop marketprism.target marketprism.slice", 60)
    began_s = time.monotonic()
    said = vm.run(f"{APT} install {engine}", INSTALL_S)
    print(f"\ninstalled after {time.monotonic() - began_s:.1f} s")
    assert "storage.enabled: true" in said.strip().splitlines()[-1]
    vm.configure(_stored)
    began_s = time.monotonic()
    vm.run("systemctl start marketprism.target", START_S)
    vm.wait("healthy", vm.healthy, HEAL_S)
    vm.wait("trades", lambda: _stored_trades(vm) > 0, HEAL_S, 2)
    print(f"\nhealthy and stored {time.monotonic() - began_s:.1f} s after the start")
    stores = vm.ask("/health").json()["stores"]
    assert {name: store["status"] for name, store in stores.items()} == {"hot": "healthy", "cold": "healthy"}


def test_the_engine_installed_anew_restarts_the_stores_alone(vm: Machine, engine: str) -> None:
    workers, stores, stored = vm.pids(), _store_pids(vm), _stored_trades(vm)
    vm.run(f"{APT} install --reinstall {engine}", INSTALL_S + START_S)
    assert not set(_store_pids(vm)) & {*stores, 0}
    assert vm.pids() == workers
    vm.wait("healthy", vm.healthy, HEAL_S)
    vm.wait("more trades", lambda: _stored_trades(vm) > stored, HEAL_S, 2)


@pytest.mark.usefixtures("engine")
def test_the_engine_removed_stops_the_stores_alone(vm: Machine) -> None:
    workers, since = vm.pids(), vm.now()
    vm.run(f"{APT} remove marketprism-embedded", INSTALL_S)
    assert _store_pids(vm) == [0, 0]
    assert {vm.show(unit, "Result")["Result"] for unit in STORES} == {"success"}
    assert vm.pids() == workers
    assert vm.records("SYSLOG_IDENTIFIER=marketprism-alert", since=since) == []
    assert vm.run("find /usr/lib/marketprism -name 'chdb*'") == ""
    assert vm.run("ls /var/lib/marketprism/hot")


def test_purged_it_leaves_nothing(vm: Machine) -> None:
    vm.run(f"{APT} purge marketprism", INSTALL_S)
    left = vm.run(
        "find / -xdev -path /host -prune -o -path /var/log/journal -prune -o -path /usr/share -prune"
        " -o -name '*marketprism*' -print; find /run -name '*marketprism*' -not -path '/run/log/*'"
    ).split()
    assert [path for path in left if not path.startswith(("/sys/", "/proc/"))] == []
    assert vm.attempt("getent passwd marketprism").status != 0
    assert vm.run("systemctl list-units --all --no-legend 'marketprism*'") == ""


def _simulate(vm: Machine) -> None:
    """The exchanges, simulated by what was installed; the configuration leads to them."""
    vm.put("/etc/systemd/system/simulator.service", SIMULATOR)
    vm.run("systemctl daemon-reload && systemctl start simulator.service", 60)
    written = vm.folder / "simulated.yaml"
    vm.wait("the simulator", written.exists, 90)
    vm.config = yaml.safe_load(written.read_text())
    vm.configure()


def _stored(config: dict[str, Any]) -> None:
    config["exchanges"] = {STORED: config["exchanges"][STORED]}
    config["storage"] = {"enabled": True}


def _stored_trades(vm: Machine) -> int:
    count = "SELECT count() FROM marketprism_hot.trades"
    answer = vm.attempt(f"marketprism query '{count}' --format csv", 120)
    return int(answer.text.splitlines()[-1]) if answer.status == 0 else 0


def _store_pids(vm: Machine) -> list[int]:
    return [int(vm.show(unit, "MainPID")["MainPID"]) for unit in STORES]


def _faultless(vm: Machine) -> Verdict | None:
    """The stream of this moment against the truth; None where a hole may still be filled, or told."""
    # The server's files are read by one of the host, which is many times faster than reading in there.
    vm.run("rm -rf /host/store && cp -r /var/lib/marketprism/var/nats /host/store", HEAL_S)
    (vm.folder / "truth").unlink(missing_ok=True)
    vm.run("systemctl kill --signal=USR1 simulator.service")
    vm.wait("the truth", (vm.folder / "truth").exists, 30)
    with NatsBox(vm.folder) as copy:
        messages = asyncio.run(stored(copy.url))
    verdict = judge(messages, pickle.loads((vm.folder / "truth").read_bytes()))
    print("\n".join(verdict.faults))
    return None if verdict.faults else verdict


def _state(vm: Machine, exchange: str) -> dict[str, object]:
    state: dict[str, object] = json.loads(vm.run(f"cat /run/marketprism/{exchange}.state.json"))
    return state


def _now_ms(vm: Machine) -> int:
    return int(vm.run("date +%s%3N"))


def _times(vm: Machine, name: str, exchanges: dict[str, int]) -> dict[str, int]:
    return {exchange: int(vm.show(worker(exchange), name)[name]) for exchange in exchanges}
