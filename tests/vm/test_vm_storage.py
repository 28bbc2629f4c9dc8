"""The stores under systemd: what the simulator publishes can be queried, whatever is killed, each event once."""

import json
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from machine import HOME, Machine

HOT, COLD = "marketprism-hot.service", "marketprism-cold.service"
START_S = 240  # the engine needs ten seconds of a machine of its own to open
HEAL_S = 240
EXCHANGE = "okx_spot"  # one is enough work for the machine's one CPU beside the engine
# What lies on disk, and how many different events that is: the engine reads each once in any case.
COUNT = (
    "SELECT count() AS different, max(stream_seq) AS newest, (SELECT toInt32(sum(rows)) FROM system.parts "
    "WHERE active AND database = {db:String} AND table = {table:String}) AS lying FROM marketprism_hot.trades"
)

PUBLISHED = """\
import asyncio
import nats

async def ask():
    client = await nats.connect("nats://127.0.0.1:4222")
    info = await client.jetstream().stream_info("MARKET_DATA", "trade.>")
    print(sum(info.state.subjects.values()))
    await client.close()

asyncio.run(ask())
"""


@pytest.fixture(scope="module")
def stores(vm: Machine) -> Machine:
    """The machine with the engine at hand: the libraries of this Python, over the machine's own."""
    pytest.importorskip("chdb", reason="storage needs the extra: pip install 'marketprism[embedded]'")
    if sys.version_info[:2] != (3, 11):
        pytest.skip("the machine has Python 3.11, this is another one")
    libraries = Path(sysconfig.get_path("platlib"))
    site = f"/{HOME}/lib/python3.11/site-packages"
    vm.run(f"mkdir /{HOME}/embedded && mount -t hostfs none /{HOME}/embedded -o {libraries}")
    vm.put(f"{site}/embedded.pth", f"/{HOME}/embedded\n")
    vm.configure(_only_one_exchange)
    return vm


def count(vm: Machine) -> dict[str, int]:
    """Of the trades in the hot store."""
    values = "--param db=marketprism_hot --param table=trades"
    answer = vm.attempt(f"marketprism query '{COUNT}' {values} --format json", 120)
    assert answer.status == 0, answer.text
    return dict(json.loads(answer.text.splitlines()[-1]))


def store(vm: Machine, name: str) -> dict[str, Any]:
    """What the control plane says of a store."""
    answer = vm.ask("/health")
    return dict(answer.json()["stores"].get(name, {})) if answer.status else {}


def test_without_the_engine_the_target_starts_and_the_store_says_what_is_missing(vm: Machine) -> None:
    since = vm.now()
    vm.configure(_only_one_exchange)
    vm.run("systemctl start marketprism.target", START_S)
    vm.wait("given up", lambda: vm.show(HOT, "ActiveState")["ActiveState"] == "failed", 60)
    assert vm.show(HOT, "ExecMainStatus", "NRestarts") == {"ExecMainStatus": "78", "NRestarts": "0"}
    assert "apt install ./marketprism-embedded_" in vm.said(HOT, since)
    assert vm.pids().keys() == {EXCHANGE}
    assert "apt install ./marketprism-embedded_" in vm.run("marketprism check-config")
    vm.run("systemctl stop marketprism.target marketprism.slice; systemctl reset-failed", 60)


def test_start_to_stored(stores: Machine) -> None:
    stores.run("systemctl start marketprism.target", START_S)
    stores.wait("healthy", stores.healthy, HEAL_S)
    for name, unit in (("hot", HOT), ("cold", COLD)):
        found = store(stores, name)
        assert (found["status"], found["restarts"]) == ("healthy", 0), found
        limits = stores.show(unit, "MemoryHigh", "MemoryMax", "MemorySwapMax")
        assert limits == {"MemoryHigh": str(600 << 20), "MemoryMax": str(900 << 20), "MemorySwapMax": "0"}
        print(f"\n{name}: {found['memory_mb']} MB, says: {found['says']}")
    stores.wait("trades", lambda: count(stores)["lying"] > 0, HEAL_S, every_s=2)
    ready = {
        unit: stores.show(unit, "ActiveEnterTimestampMonotonic", "ExecMainStartTimestampMonotonic")
        for unit in (HOT, COLD)
    }
    for unit, found in ready.items():
        began, done = (
            int(found[f"{name}TimestampMonotonic"]) / 1e6 for name in ("ExecMainStart", "ActiveEnter")
        )
        print(f"{unit}: ready after {done - began:.1f} s")


def test_killed_it_starts_again_and_each_event_is_there_once(stores: Machine) -> None:
    before = count(stores)
    pid = stores.show(HOT, "MainPID")["MainPID"]
    stores.run(f"kill -9 {pid}")
    stores.wait("told", lambda: store(stores, "hot").get("status") == "unhealthy", 15, every_s=0.1)
    stores.wait("healthy", stores.healthy, HEAL_S)
    found = store(stores, "hot")
    assert (found["restarts"], found["last_exit"]["reason"]) == (1, "signal")
    after = stores.wait("newer trades", lambda: _newer(stores, before), HEAL_S, every_s=2)
    assert after["lying"] == after["different"] > before["different"]


def test_a_stop_is_clean_and_all_that_was_published_is_stored(stores: Machine) -> None:
    stores.run("systemctl stop simulator.service")
    stores.run("systemctl stop 'marketprism-worker@*'", 60)
    published = _published(stores)
    stores.wait("all stored", lambda: count(stores)["different"] == published, HEAL_S, every_s=2)
    assert count(stores)["lying"] == published
    since = stores.now()
    stores.run("systemctl stop marketprism.target marketprism.slice", 60)
    for unit in (HOT, COLD):
        assert stores.show(unit, "Result", "ActiveState") == {"Result": "success", "ActiveState": "inactive"}
    assert stores.records("SYSLOG_IDENTIFIER=marketprism-alert", since=since) == []
    owner = "stat -c '%U %a' /var/lib/marketprism/hot"
    assert stores.run(owner).split() == ["marketprism", "700"]


def _only_one_exchange(config: dict[str, Any]) -> None:
    config["exchanges"] = {EXCHANGE: config["exchanges"][EXCHANGE]}
    config["storage"] = {"enabled": True}


def _newer(vm: Machine, before: dict[str, int]) -> dict[str, int] | None:
    found = count(vm)
    return found if found["newest"] > before["newest"] else None


def _published(vm: Machine) -> int:
    """Trades in the stream."""
    vm.put("/root/published.py", PUBLISHED)
    return int(vm.run(f"/{HOME}/bin/python /root/published.py", 60))
