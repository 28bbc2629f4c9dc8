"""Talking to systemd over D-Bus, and the workers as it runs them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from fake_systemd import KILLED, FakeSystemd, fake_systemd

from marketprism.control.events import Events
from marketprism.control.kept import Kept
from marketprism.control.plane import ActionError, Verb
from marketprism.control.processes import RunState
from marketprism.control.shared import SharedMetrics
from marketprism.control.systemd import Systemd, unit_name
from marketprism.control.units import Units, UnitsError

OKX = unit_name("okx_spot")
DERIBIT = unit_name("deribit_derivatives")


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def kept_up(folder: Path) -> AsyncIterator[Systemd]:
    systemd = Systemd(Kept(folder / "control.json"), SharedMetrics(folder), Events())
    running = asyncio.create_task(systemd.run())
    try:
        await asyncio.wait_for(systemd.asked.wait(), 20)
        yield systemd
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        systemd.keep()


@pytest.fixture
def with_systemd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[FakeSystemd], Awaitable[None]]], None]:
    """Runs a coroutine function beside a systemd."""

    def run(test: Callable[[FakeSystemd], Awaitable[None]]) -> None:
        async def beside() -> None:
            async with fake_systemd(tmp_path, monkeypatch) as fake:
                fake.add(OKX)
                await test(fake)

        asyncio.run(beside())

    return run


WithSystemd = Callable[[Callable[[FakeSystemd], Awaitable[None]]], None]


def test_a_units_state(with_systemd: WithSystemd) -> None:
    async def test(fake: FakeSystemd) -> None:
        units = await Units.connect(lambda _: None)
        state = await units.state(OKX)
        assert (state.active, state.main_pid, state.exit_code) == ("active", 4711, None)
        assert (state.memory_high, state.memory_max) == (120 << 20, None)
        fake.units[OKX] |= KILLED
        state = await units.state(OKX)
        assert (state.sub, state.exit_code, state.started_s, state.exited_s) == ("auto-restart", -9, 1.0, 5.0)
        units.close()

    with_systemd(test)


def test_orders(with_systemd: WithSystemd) -> None:
    async def test(fake: FakeSystemd) -> None:
        units = await Units.connect(lambda _: None)
        await units.order("RestartUnit", OKX)
        assert ("RestartUnit", [OKX, "replace"]) in fake.asked
        assert not any(method == "ResetFailedUnit" for method, _ in fake.asked)
        fake.units[OKX]["ActiveState"] = ("s", "failed")
        await units.order("StartUnit", OKX)
        assert fake.asked[-2:] == [("ResetFailedUnit", [OKX]), ("StartUnit", [OKX, "replace"])]
        await units.set_memory_high(OKX, None)
        method, (unit, runtime, [(name, value)]) = fake.asked[-1]
        assert (method, unit, runtime, name, value.value) == (
            "SetUnitProperties",
            OKX,
            True,
            "MemoryHigh",
            2**64 - 1,
        )
        fake.refuses = "Interactive authentication required."
        with pytest.raises(UnitsError, match=r"systemd refuses StopUnit: Interactive authentication"):
            await units.order("StopUnit", OKX)
        units.close()

    with_systemd(test)


def test_a_status_text_alone_is_no_news(with_systemd: WithSystemd) -> None:
    """Every worker has a new one every few seconds; asking for everything then would be most of our work."""

    async def test(fake: FakeSystemd) -> None:
        told: list[str] = []
        units = await Units.connect(told.append)
        await units.follow(OKX)
        await units.state(OKX)
        await fake.change(OKX, StatusText=("s", "live 1/2 books"))
        await fake.change(OKX, NRestarts=("u", 1))
        await until(lambda: told)
        await units.state(OKX)  # all that was sent before has arrived with its answer
        assert told == [OKX]
        units.close()

    with_systemd(test)


def test_no_bus_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/none")
    with pytest.raises(UnitsError, match="cannot reach the system bus: No such file or directory"):
        asyncio.run(Units.connect(lambda _: None))


def test_workers_are_those_of_the_target_and_those_that_run(
    tmp_path: Path, with_systemd: WithSystemd
) -> None:
    async def test(fake: FakeSystemd) -> None:
        fake.add(DERIBIT, ActiveState=("s", "inactive"), SubState=("s", "dead"), MainPID=("u", 0))
        async with kept_up(tmp_path) as systemd:
            okx = next(worker for worker in systemd.workers() if worker.name == "okx_spot")
            assert (okx.state, okx.pid, okx.soft_mb, okx.hard_mb) == (RunState.RUNNING, 4711, 120, 0)
            deribit = next(worker for worker in systemd.workers() if worker.name == "deribit_derivatives")
            assert (deribit.state, deribit.pid) == (RunState.ENDED, None)
            assert systemd.trouble() == ""

    with_systemd(test)


def test_a_store_that_runs_is_kept_up_with(tmp_path: Path, with_systemd: WithSystemd) -> None:
    async def test(fake: FakeSystemd) -> None:
        fake.add("marketprism-hot.service", StatusText=("s", "12 rows stored"))
        async with kept_up(tmp_path) as systemd:
            (hot,) = (view for view in systemd.workers() if not view.exchanges)
            assert (hot.name, hot.state, hot.pid, hot.said) == (
                "hot",
                RunState.RUNNING,
                4711,
                "12 rows stored",
            )
            await systemd.act(Verb.RESTART, "hot")
            assert ("RestartUnit", ["marketprism-hot.service", "replace"]) in fake.asked

    with_systemd(test)


def test_a_kill_is_told_counted_and_remembered(tmp_path: Path, with_systemd: WithSystemd) -> None:
    async def test(fake: FakeSystemd) -> None:
        async with kept_up(tmp_path) as systemd:
            await fake.change(OKX, **KILLED)
            await until(lambda: systemd.workers()[0].state is RunState.WAITING)
            await fake.change(OKX, NRestarts=("u", 1))  # systemd counts before it starts
            await until(lambda: systemd.workers()[0].restarts["signal"] == 1)
            await fake.change(
                OKX,
                ActiveState=("s", "active"),
                SubState=("s", "running"),
                MainPID=("u", 4712),
                NRestarts=("u", 1),
                ExecMainExitTimestampMonotonic=("t", 0),
                ExecMainStartTimestampMonotonic=("t", 9_000_000),
            )
            await until(lambda: systemd.workers()[0].pid == 4712)
            worker = systemd.workers()[0]
            assert worker.restarts["signal"] == sum(worker.restarts.values()) == 1
            assert worker.last_exit is not None
            assert (worker.last_exit.reason, worker.last_exit.code) == ("signal", -9)
        kept = Kept(tmp_path / "control.json")
        kept.put("workers", {"okx_spot": {"restarts": {"signal": 1}, "counted": 1, "last_exit": None}})
        kept.save(now=True)
        async with kept_up(tmp_path) as again:
            assert again.workers()[0].restarts["signal"] == 1

    with_systemd(test)


def test_a_restart_on_request_is_counted_as_that(tmp_path: Path, with_systemd: WithSystemd) -> None:
    """systemd sets its own count back to 0 then."""

    async def test(fake: FakeSystemd) -> None:
        fake.units[OKX]["NRestarts"] = ("u", 3)
        async with kept_up(tmp_path) as systemd:
            before = dict(systemd.workers()[0].restarts)
            await fake.change(
                OKX,
                MainPID=("u", 4800),
                NRestarts=("u", 0),
                ExecMainStartTimestampMonotonic=("t", 20_000_000),
            )
            await until(lambda: systemd.workers()[0].pid == 4800)
            after = systemd.workers()[0].restarts
            assert {reason for reason in after if after[reason] != before[reason]} == {"request"}

    with_systemd(test)


def test_orders_go_to_the_workers_unit(tmp_path: Path, with_systemd: WithSystemd) -> None:
    async def test(fake: FakeSystemd) -> None:
        async with kept_up(tmp_path) as systemd:
            await systemd.act(Verb.RELOAD, "okx_spot")
            assert fake.asked[-1] == ("ReloadUnit", [OKX, "replace"])
            fake.refuses = "no"
            with pytest.raises(ActionError, match="systemd refuses StopUnit: no"):
                await systemd.act(Verb.STOP, "okx_spot")

    with_systemd(test)


def test_a_lost_systemd_is_told_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        systemd = Systemd(Kept(tmp_path / "control.json"), SharedMetrics(tmp_path), Events())
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/bus")
        running = asyncio.create_task(systemd.run())
        await asyncio.wait_for(systemd.asked.wait(), 20)
        assert "cannot reach the system bus" in systemd.trouble()
        for _ in range(2):
            async with fake_systemd(tmp_path, monkeypatch) as fake:
                fake.add(OKX)
                await until(lambda: not systemd.trouble())
                assert [worker.name for worker in systemd.workers()] == ["okx_spot"]
            await until(systemd.trouble)
        running.cancel()

    asyncio.run(test())
