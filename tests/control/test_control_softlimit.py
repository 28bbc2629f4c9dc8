"""A worker's cgroup watched, and its MemoryHigh= lifted and put back. With a real kernel's events: tests/vm."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from marketprism.control import cgroups, softlimit
from marketprism.control.inotify import Inotify
from marketprism.control.kept import Kept
from marketprism.control.processes import MB
from marketprism.control.units import UnitsError, UnitState

UNIT = "marketprism-worker@okx_spot.service"
ALERT = ("StartUnit", "marketprism-alert@memory_soft:okx_spot.service")
STATE = UnitState(
    asked_s=0.0,
    active="active",
    sub="running",
    loaded=True,
    main_pid=4711,
    restarts=0,
    result="success",
    status_text="",
    cgroup="/okx_spot",
    memory_high=120 * MB,
    memory_max=160 * MB,
    exit_code=None,
    started_s=1.0,
    exited_s=0.0,
)


class Orders:
    """Where orders for systemd go."""

    def __init__(self) -> None:
        self.limits: list[int | None] = []
        self.started: list[tuple[str, str]] = []
        self.refuses = False

    async def set_memory_high(self, unit: str, limit_bytes: int | None) -> None:
        assert unit == UNIT
        if self.refuses:
            raise UnitsError("systemd refuses SetUnitProperties: no")
        self.limits.append(limit_bytes)

    async def order(self, method: str, unit: str) -> None:
        self.started.append((method, unit))


class Kernel:
    """A worker's cgroup as files, which inotify tells of as it does of the kernel's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "okx_spot"
        self.folder.mkdir()
        self._high = 0
        self.uses(50)
        self.slows_down(times=0)

    def uses(self, mb: int, cache_mb: int = 0) -> None:
        (self.folder / "memory.current").write_text(f"{(mb + cache_mb) * MB}\n")
        (self.folder / "memory.stat").write_text(f"anon {mb * MB}\ninactive_file {cache_mb * MB}\n")

    def slows_down(self, times: int = 1) -> None:
        self._high += times
        (self.folder / "memory.events").write_text(f"low 0\nhigh {self._high}\nmax 0\noom 0\noom_kill 0\n")


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    monkeypatch.setattr(cgroups, "ROOT", tmp_path)
    return Kernel(tmp_path)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)


def watch(folder: Path, test: Callable[[softlimit.SoftLimits, Orders], Awaitable[None]]) -> Orders:
    orders = Orders()

    async def run() -> None:
        limits = softlimit.SoftLimits(Kept(folder / "control.json"))
        limits.use(orders)
        await test(limits, orders)

    asyncio.run(run())
    return orders


async def settled() -> None:
    """After this, what was written before has been told: it is written to another file, and that is told."""
    told = asyncio.Event()
    marker = cgroups.ROOT / "marker"
    marker.write_text("")
    inotify = Inotify(lambda _: told.set())
    inotify.watch(marker)
    marker.write_text("now")
    await asyncio.wait_for(told.wait(), 20)
    inotify.close()
    await asyncio.sleep(0)


def test_the_limit_is_lifted_once_and_the_alert_sent(
    tmp_path: Path, kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(limits: softlimit.SoftLimits, orders: Orders) -> None:
        await limits.update("okx_spot", UNIT, STATE)
        kernel.uses(121)
        kernel.slows_down(times=3)
        await until(lambda: orders.started)
        kernel.slows_down()
        await settled()
        lifted = replace(STATE, memory_high=None)
        await limits.update("okx_spot", UNIT, lifted)
        assert limits.limit(UNIT, lifted) == 120 * MB  # it is still what the configuration says

    orders = watch(tmp_path, test)
    assert orders.limits == [None]
    assert orders.started == [ALERT]
    [record] = caplog.records
    assert record.__dict__["event"] == "memory_soft"
    assert "okx_spot is above its soft memory limit of 120 MB" in record.getMessage()


def test_page_cache_alone_lifts_nothing(tmp_path: Path, kernel: Kernel) -> None:
    """The kernel takes it back; log files fill a worker's cgroup up to the limit every day."""

    async def test(limits: softlimit.SoftLimits, orders: Orders) -> None:
        await limits.update("okx_spot", UNIT, STATE)
        kernel.uses(50, cache_mb=70)
        kernel.slows_down()
        await settled()
        assert orders.limits == []
        kernel.uses(118, cache_mb=2)
        kernel.slows_down()
        await until(lambda: orders.limits)

    assert watch(tmp_path, test).limits == [None]


def test_one_that_was_slowed_down_before_we_looked(tmp_path: Path, kernel: Kernel) -> None:
    async def test(limits: softlimit.SoftLimits, orders: Orders) -> None:
        kernel.uses(121)
        kernel.slows_down()
        await limits.update("okx_spot", UNIT, STATE)
        await until(lambda: orders.started)

    assert watch(tmp_path, test).limits == [None]


def test_it_is_put_back_after_the_restart_also_by_the_next_control_plane(
    tmp_path: Path, kernel: Kernel
) -> None:
    async def lift(limits: softlimit.SoftLimits, orders: Orders) -> None:
        await limits.update("okx_spot", UNIT, STATE)
        kernel.uses(121)
        kernel.slows_down()
        await until(lambda: orders.started)

    async def put_back(limits: softlimit.SoftLimits, orders: Orders) -> None:
        running = replace(STATE, memory_high=None, asked_s=1e12)
        await limits.update("okx_spot", UNIT, running)
        await until(lambda: orders.limits)  # once more, in case somebody has set it meanwhile
        await settled()
        assert orders.started == []  # its person knows
        await limits.update("okx_spot", UNIT, replace(running, main_pid=0))
        kernel.uses(50)
        await limits.update("okx_spot", UNIT, replace(STATE, main_pid=4712, asked_s=1e12))

    watch(tmp_path, lift)
    assert watch(tmp_path, put_back).limits == [None, 120 * MB]


def test_a_reload_of_systemd_puts_it_back_with_the_new_limit(tmp_path: Path, kernel: Kernel) -> None:
    async def test(limits: softlimit.SoftLimits, orders: Orders) -> None:
        await limits.update("okx_spot", UNIT, STATE)
        kernel.uses(121)
        kernel.slows_down()
        await until(lambda: orders.started)
        reloaded = replace(STATE, memory_high=140 * MB, asked_s=1e12)
        await limits.update("okx_spot", UNIT, reloaded)
        assert limits.limit(UNIT, reloaded) == 140 * MB
        await limits.update("okx_spot", UNIT, replace(reloaded, main_pid=4712))

    assert watch(tmp_path, test).limits == [None]


def test_a_refusal_is_told(tmp_path: Path, kernel: Kernel, caplog: pytest.LogCaptureFixture) -> None:
    async def test(limits: softlimit.SoftLimits, orders: Orders) -> None:
        orders.refuses = True
        await limits.update("okx_spot", UNIT, STATE)
        kernel.uses(121)
        kernel.slows_down()
        await until(lambda: caplog.records)

    assert watch(tmp_path, test).limits == []
    assert "cannot be lifted: systemd refuses SetUnitProperties: no" in caplog.text


def test_a_cgroup_is_read_and_one_that_is_gone_is_none(kernel: Kernel) -> None:
    kernel.uses(50, cache_mb=70)
    (kernel.folder / "cpu.stat").write_text("usage_usec 2500000\nthrottled_usec 250000\n")
    found = cgroups.read(kernel.folder)
    assert found is not None
    assert (found.memory_bytes, found.cpu_seconds, found.throttled_seconds) == (50 * MB, 2.5, 0.25)
    assert found.tasks == 0  # its controller is off
    meter = cgroups.CgroupMeter(kernel.folder)
    assert meter.sample() is not None
    (kernel.folder / "cpu.stat").unlink()
    assert meter.sample() is None
