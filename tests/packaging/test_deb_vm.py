"""The Debian package on a machine with systemd, from `apt install` to a purge. The tests go on from each other."""

import itertools
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from deb_package import Package, package
from machine import EXCHANGES, EXTRA, SIMULATOR, CannotRunError, Machine, worker

INSTALL_S = 240  # a promise of 60 s on a machine that nobody shares
START_S = 180
HEAL_S = 120
STOPPED = "deribit_derivatives"
APT = "DEBIAN_FRONTEND=noninteractive apt-get -y -qq -o Dpkg::Use-Pty=0"


class Bare(Machine):
    """A machine without MarketPrism."""

    def _install(self) -> None:
        self.run("rm -rf /usr/lib/marketprism && systemctl unmask nats-server.service")
        self.run("systemctl start nats-server.service")  # as Debian's package does when it is installed


@pytest.fixture(scope="module")
def deb() -> Package:
    return package()


@pytest.fixture(scope="module")
def vm(deb: Package, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("vm")
    shutil.copy(deb.path, folder / "this.deb")
    shutil.copy(deb.as_version("99.0.0-1+deb12", folder).path, folder / "later.deb")
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


def test_started_it_is_healthy(vm: Machine) -> None:
    _simulate(vm)
    began_s = time.monotonic()
    vm.run("systemctl start marketprism.target", START_S)
    vm.wait("healthy", vm.healthy, HEAL_S)
    print(f"\nhealthy {time.monotonic() - began_s:.1f} s after the start")
    assert set(vm.pids()) == set(EXCHANGES)
    assert vm.attempt("systemctl is-active nats-server.service").text == "inactive\n"


def test_an_upgrade_restarts_what_runs_one_by_one(vm: Machine) -> None:
    vm.run(f"systemctl enable marketprism.target && systemctl stop {worker(STOPPED)}", 60)
    before, nats = vm.pids(), vm.show("marketprism-nats.service", "MainPID")
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
    config = yaml.safe_load(vm.run("cat /etc/marketprism/unified_data_collection.yaml"))
    assert config == vm.config
    vm.run(f"systemctl start {worker(STOPPED)}", START_S)
    vm.wait("healthy", vm.healthy, HEAL_S)


def test_removed_it_stops_and_keeps_what_it_collected(vm: Machine) -> None:
    vm.run(f"{APT} remove marketprism", INSTALL_S)
    assert vm.run("systemctl list-units --no-legend --state=active 'marketprism*'") == ""
    assert vm.attempt("pgrep -u marketprism").text == ""
    assert vm.run("find /var/lib/marketprism -name '*.blk'")
    assert vm.run("ls /etc/marketprism").split() == ["nats-server.conf", "unified_data_collection.yaml"]


def test_installed_again_it_goes_on(vm: Machine) -> None:
    vm.run(f"{APT} install /host/this.deb", INSTALL_S)
    vm.run("systemctl start marketprism.target", START_S)
    vm.wait("healthy", vm.healthy, HEAL_S)


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
    written: Path = vm.folder / "simulated.yaml"
    vm.wait("the simulator", lambda: written.exists() and yaml.safe_load(written.read_text()), 90)
    vm.config = yaml.safe_load(written.read_text())
    for exchange, symbol in EXTRA.items():
        vm.config["exchanges"][exchange]["symbols"].remove(symbol)
    vm.configure()


def _times(vm: Machine, name: str, exchanges: dict[str, int]) -> dict[str, int]:
    return {exchange: int(vm.show(worker(exchange), name)[name]) for exchange in exchanges}
