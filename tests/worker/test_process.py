"""The life of a worker process as systemd sees it: ready, watched, reloaded, stopped, out of memory."""

import asyncio
import json
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from natsbox import nats_server, until
from systemd_socket import Systemd

from chaos.pipeline import Pipeline, pipeline
from marketprism.config import load
from marketprism.notify import Notifier
from marketprism.simulator import SimulatorOptions
from marketprism.worker import process
from marketprism.worker.process import Process

pytestmark = pytest.mark.skipif(nats_server() is None, reason="no nats-server: run scripts/setup")

LEAK = Path(__file__).parents[1] / "leak.py"
PAIRS = {
    "binance_spot": ("BTCUSDT", "ETHUSDT"),
    "binance_derivatives": ("BTCUSDT", "ETHUSDT"),
    "okx_spot": ("BTC-USDT", "ETH-USDT"),
    "okx_derivatives": ("BTC-USDT-SWAP", "ETH-USDT-SWAP"),
    "deribit_derivatives": ("BTC-PERPETUAL", "ETH-PERPETUAL"),
}


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    listening = Systemd(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", listening.address)
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    yield listening
    listening.close()


def state(p: Pipeline, exchange: str) -> dict[str, Any]:
    """What the worker's state file says; {} before it is written first."""
    try:
        return dict(json.loads((p.folder / "run" / f"{exchange}.state.json").read_text()))
    except FileNotFoundError:
        return {}


def trades(p: Pipeline, base: str) -> dict[str, int]:
    """How many trades of this coin the stream holds, by subject."""
    return {s: n for s, n in p.counts("trade.>").items() if s.rsplit(".", 1)[1].startswith(base)}


def subjects(p: Pipeline, kind: str) -> set[str]:
    return set(p.counts(f"{kind}.>"))


def in_process(
    p: Pipeline, systemd: Systemd, exchange: str, act: Callable[[Process], Awaitable[None]]
) -> int:
    """Run a worker in this process while `act` does something to it; returns the exit status."""

    p.change(
        exchange, memory={"soft_mb": 4000, "hard_mb": 5000}
    )  # the tests before this one count as its own

    async def run() -> int:
        config = load(p.config, environ={})
        (p.folder / "run").mkdir(exist_ok=True)
        running = Process(config, [exchange], p.folder / "run", Notifier(systemd.address, watchdog_s=0.4))
        task = asyncio.create_task(running.run())
        try:
            await act(running)
        finally:
            running.stopping.set()
            status = await task
            signal.alarm(0)  # the stop's own time limit is for a process that ends then
        return status

    return asyncio.run(run())


def test_ready_when_a_book_is_live_then_signs_of_life_and_the_end(tmp_path: Path, systemd: Systemd) -> None:
    with pipeline(tmp_path, SimulatorOptions(seed=61)) as p:
        worker = p.run("worker", "okx_spot")
        ready = systemd.hear("READY=1")
        assert ready[1].startswith(("STATUS=live ", "STATUS=degraded: live 1/2"))
        systemd.hear("WATCHDOG=1")
        p.wait(lambda: systemd.heard()[0].startswith("STATUS=live 2/2 books, "), "a status for a person")
        now = state(p, "okx_spot")
        assert (now["live_books"], now["expected_books"], now["nats"]) == (2, 2, "ok")
        assert now["pid"] == worker.pid
        assert set(now["last_data_ts_ms"]) == {"orderbook", "orderbook_delta", "trade"}
        worker.send_signal(signal.SIGTERM)
        assert systemd.hear("STOPPING=1") == ["STOPPING=1", "STATUS=stopping: stopped"]
        assert worker.wait(15) == 0
        left = state(p, "okx_spot")
        assert left["ended"]
        assert left["last_exit"]["reason"] == "stopped"


def test_an_exchange_that_is_down_does_not_keep_its_worker_from_being_ready(
    tmp_path: Path, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "READY_S", 1.0)
    with pipeline(tmp_path, SimulatorOptions(seed=62)) as p:
        p.simulator.stop()

        async def act(_: Process) -> None:
            ready = await asyncio.to_thread(systemd.hear, "READY=1")
            assert ready[1].startswith("STATUS=degraded: live 0/2 books")
            await asyncio.to_thread(systemd.hear, "WATCHDOG=1")  # a restart would not help

        assert in_process(p, systemd, "okx_spot", act) == 0


def test_a_dead_feed_ends_the_signs_of_life(
    tmp_path: Path, systemd: Systemd, caplog: pytest.LogCaptureFixture
) -> None:
    with pipeline(tmp_path, SimulatorOptions(seed=63)) as p:

        async def act(running: Process) -> None:
            await asyncio.to_thread(systemd.hear, "READY=1")
            (feed,) = running._workers[0].collector._feeding.values()
            feed.cancel()
            await until(lambda: "the feed public has ended: no sign of life" in caplog.text, 10, "it is told")
            systemd.waiting()
            await asyncio.sleep(1)
            assert "WATCHDOG=1" not in systemd.waiting()

        in_process(p, systemd, "okx_spot", act)


def test_a_publisher_that_stands_still_ends_the_signs_of_life_until_it_goes_on(
    tmp_path: Path, systemd: Systemd, caplog: pytest.LogCaptureFixture
) -> None:
    with pipeline(tmp_path, SimulatorOptions(seed=64)) as p:

        async def act(running: Process) -> None:
            await asyncio.to_thread(systemd.hear, "READY=1")
            running._workers[0]._ack_patience_s = 1.0  # below the publisher's own, which would mend it
            p.nats.signal(signal.SIGSTOP)
            try:
                await until(lambda: "nothing was acknowledged in" in caplog.text, 10, "it is told")
                systemd.waiting()
                await asyncio.sleep(1)
                assert "WATCHDOG=1" not in systemd.waiting()
            finally:
                p.nats.signal(signal.SIGCONT)
            await asyncio.to_thread(systemd.hear, "WATCHDOG=1")

        assert in_process(p, systemd, "okx_spot", act) == 0


def test_a_reload_adds_and_removes_symbols_and_touches_nothing_else(tmp_path: Path, systemd: Systemd) -> None:
    with pipeline(tmp_path, SimulatorOptions(seed=65)) as p:
        for exchange, (first, _) in PAIRS.items():
            p.change(exchange, symbols=[first])
        worker = p.run("worker", "all")
        systemd.hear("READY=1")
        p.wait(lambda: len(subjects(p, "orderbook_delta")) == 5, "five books")
        connections = p.output().count("connected: ")

        for exchange, both in PAIRS.items():
            p.change(exchange, symbols=list(both))
        worker.send_signal(signal.SIGHUP)
        assert systemd.hear("RELOADING=1")[1].startswith("MONOTONIC_USEC=")
        systemd.hear("READY=1")
        p.wait(lambda: len(subjects(p, "orderbook_delta")) == 10, "ten books")
        p.wait(lambda: len(subjects(p, "trade")) == 10, "ten instruments' trades")
        assert "reloaded: symbols +ETH-USDT" in p.output()

        for exchange, (_, second) in PAIRS.items():
            p.change(exchange, symbols=[second])
        worker.send_signal(signal.SIGHUP)
        systemd.hear("READY=1")
        p.wait(lambda: "reloaded: symbols -BTC-USDT" in p.output(), "the first ones are gone")
        gone, there = trades(p, "BTC"), trades(p, "ETH")
        assert len(gone) == len(there) == 5
        p.wait(lambda: all(n > there[s] + 20 for s, n in trades(p, "ETH").items()), "the others go on")
        assert trades(p, "BTC") == gone

        for exchange, both in PAIRS.items():
            p.change(exchange, symbols=list(both))
        worker.send_signal(signal.SIGHUP)
        systemd.hear("READY=1")
        p.wait(lambda: all(n > gone[s] + 20 for s, n in trades(p, "BTC").items()), "the first ones are back")

        p.config.write_text("exchanges: [")
        worker.send_signal(signal.SIGHUP)
        p.wait(lambda: "the configuration is broken, running on as before" in p.output(), "it is told")
        systemd.hear("READY=1")

        said = p.output()
        assert said.count("connected: ") == connections
        assert "disconnect" not in said
        assert "Traceback" not in said
        # Told to stop while what was missed is still being looked for.
        verdict = p.verdict()
        assert worker.returncode == 0
        assert verdict.faults == []


def test_what_only_a_restart_takes_is_named(tmp_path: Path, systemd: Systemd) -> None:
    with pipeline(tmp_path, SimulatorOptions(seed=66)) as p:
        worker = p.run("worker", "okx_spot")
        systemd.hear("READY=1")
        unknown = ["BTC-USDT", "ETH-USDT", "BTC-NIX"]
        p.change("okx_spot", symbols=unknown, data_types=["trade"], memory={"soft_mb": 300, "hard_mb": 400})
        worker.send_signal(signal.SIGHUP)
        p.wait(lambda: "only a restart takes exchanges.okx_spot.data_types" in p.output(), "it is told")
        assert "memory limits are 300 and 400 MB" in p.output()
        p.wait(
            lambda: state(p, "okx_spot").get("memory", {}).get("hard_bytes") == 400 * 2**20, "the new limits"
        )
        p.wait(lambda: "okx_spot lists no instrument 'BTC-NIX'" in p.output(), "the unknown one is told")
        p.wait(lambda: state(p, "okx_spot")["expected_books"] == 2, "it is not waited for")


def test_a_reload_that_comes_during_the_stop_spoils_nothing(tmp_path: Path, systemd: Systemd) -> None:
    with pipeline(tmp_path, SimulatorOptions(seed=68)) as p:
        worker = p.run("worker", "okx_spot")
        systemd.hear("READY=1")
        worker.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 15
        while worker.poll() is None:
            worker.send_signal(signal.SIGHUP)
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert worker.returncode == 0


def test_nats_away_the_stop_is_bounded_and_says_what_is_left(tmp_path: Path, systemd: Systemd) -> None:
    with pipeline(tmp_path, SimulatorOptions(seed=67)) as p:
        worker = p.run("worker", "binance_spot")
        systemd.hear("READY=1")
        p.nats.kill()
        p.wait(lambda: state(p, "binance_spot").get("nats", "ok") != "ok", "NATS is missed")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(12) == 0  # not SIGALRM, which ends what hangs
        assert "messages that NATS did not acknowledge" in p.output()
        assert state(p, "binance_spot")["last_exit"]["reason"] == "stopped"


@pytest.mark.parametrize("mb_a_second", [1, 50])
def test_a_leak_ends_in_a_stop_in_good_order_with_nothing_lost(
    tmp_path: Path, systemd: Systemd, mb_a_second: int
) -> None:
    """Without a cgroup of its own, so by its resident memory."""
    with pipeline(tmp_path, SimulatorOptions(seed=68)) as p:
        first = p.run("worker", "deribit_derivatives")
        systemd.hear("READY=1")
        p.wait(lambda: state(p, "deribit_derivatives").get("live_books") == 2, "live books")
        used_mb = state(p, "deribit_derivatives")["memory"]["current_bytes"] / 2**20
        first.send_signal(signal.SIGTERM)
        assert first.wait(15) == 0

        hard_mb = round(used_mb + 15 + 40 * (mb_a_second > 1))
        p.change("deribit_derivatives", memory={"soft_mb": round(used_mb + 5), "hard_mb": hard_mb})
        trigger = tmp_path / "leak"
        worker = p.run("worker", "deribit_derivatives", program=(sys.executable, str(LEAK), str(trigger)))
        systemd.hear("READY=1")
        before = p.count("trade.>")
        p.wait(lambda: p.count("trade.>") > before + 20, "trades")
        (tmp_path / "rate").write_text(str(mb_a_second * 2**20))
        (tmp_path / "rate").rename(trigger)
        assert systemd.hear("STOPPING=1", 60)[1] == "STATUS=stopping: memory"
        assert worker.wait(15) == 75
        said = (tmp_path / "output.log").read_text()
        assert said.count("above the soft limit") == 1
        assert said.count("near the hard limit") == 1
        assert "did not acknowledge" not in said
        left = state(p, "deribit_derivatives")
        assert left["last_exit"]["reason"] == "memory"
        assert left["memory"]["current_bytes"] < hard_mb * 2**20
        assert p.verdict().faults == []
