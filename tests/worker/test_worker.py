"""A worker as a process: limits, restarts, recording, a configuration that names what does not exist."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from natsbox import nats_server, until

from chaos.judge import judge
from chaos.pipeline import ROOT, Pipeline, pipeline
from marketprism.config import MemoryLimits, load
from marketprism.events import Event, Gap
from marketprism.memory import Memory
from marketprism.simulator import SimulatorOptions
from marketprism.venues.base import MS, Out
from marketprism.worker.outbox import Outbox
from marketprism.worker.worker import Worker

pytestmark = pytest.mark.skipif(nats_server() is None, reason="no nats-server: run scripts/setup")


def replayed(worker: str, captures: list[Path]) -> list[dict[str, Any]]:
    """What `marketprism replay` prints for these recordings."""
    command = [sys.executable, "-m", "marketprism", "replay", "--exchange", worker, *map(str, captures)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def unbroken(p: Pipeline) -> bool:
    """Whether no trade is missing between the first and the last one of each of Deribit's instruments."""
    numbers: dict[str, set[int]] = defaultdict(set)
    for subject, body in p.messages():
        if subject.startswith("trade."):
            numbers[subject].add(json.loads(body)["trade_seq"])
    return all(max(n) - min(n) + 1 == len(n) for n in numbers.values())


def test_near_the_hard_limit_it_stops_in_good_order_with_75(tmp_path: Path) -> None:
    with pipeline(tmp_path, SimulatorOptions(seed=21)) as p:
        p.change("binance_spot", memory={"soft_mb": 16, "hard_mb": 24})
        worker = p.run("worker", "binance_spot")
        assert worker.wait(30) == 75
        said = p.output()
        assert "is near the hard limit of 24 MB: stopping in good order" in said
        assert "Traceback" not in said


def test_above_the_soft_limit_it_warns_once_and_goes_on(tmp_path: Path) -> None:
    with pipeline(tmp_path, SimulatorOptions(seed=22)) as p:
        p.change("binance_spot", memory={"soft_mb": 16, "hard_mb": 900})
        worker = p.run("worker", "binance_spot")
        p.wait(lambda: p.count("trade.>") > 50, "trades in the stream")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(15) == 0
        assert (tmp_path / "output.log").read_text().count("above the soft limit of 16 MB") == 1


def test_a_restart_loses_no_trade_and_tells_the_hole_in_the_books(tmp_path: Path) -> None:
    with pipeline(tmp_path, SimulatorOptions(seed=23)) as p:
        for _ in range(2):
            before = p.count("trade.>")
            worker = p.run("worker", "deribit_derivatives")
            p.wait(lambda n=before: p.count("trade.>") > n + 50, "new trades in the stream")
            p.wait(lambda: unbroken(p), "the trades between the runs, from REST")
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(15) == 0
        verdict = p.verdict()
        assert verdict.faults == []
        assert {(g["affected_data_type"], g["cause"]) for g in verdict.gaps} == {
            ("orderbook_delta", "restart")
        }


def test_a_worker_that_is_killed_while_a_hole_is_fetched_leaves_no_silent_one(tmp_path: Path) -> None:
    """Trades behind the hole that were in the stream already would be what the next run goes on from."""
    with pipeline(tmp_path, SimulatorOptions(seed=29)) as p:
        for _ in range(2):
            before = p.count("trade.>")
            worker = p.run("worker", "deribit_derivatives")
            p.wait(lambda n=before: p.count("trade.>") > n + 50, "new trades in the stream")
            refused = p.output().count("get_last_trades_by_instrument")
            p.simulator.inject("rate_limit", "deribit_derivatives")
            p.simulator.inject("drop_next_trade", "deribit_derivatives")
            p.wait(
                lambda n=refused: p.output().count("get_last_trades_by_instrument") > n,
                "REST refuses the trade that was lost",
            )
            before = p.count("orderbook_delta.>")
            p.wait(lambda n=before: p.count("orderbook_delta.>") > n + 10, "the worker goes on")
            worker.kill()
            worker.wait(15)
        p.run("worker", "deribit_derivatives")
        p.wait(lambda: unbroken(p), "all trades")
        assert p.verdict().faults == []


@pytest.mark.parametrize("exchange", ["okx_spot", "binance_derivatives"])  # sums up; numbers what it sums up
def test_nats_away_for_longer_than_the_buffer_is_a_told_gap(tmp_path: Path, exchange: str) -> None:
    with pipeline(tmp_path, SimulatorOptions(seed=24, rate=600)) as p:
        p.change_nats(publish={"buffer_bytes": 1 << 20})
        worker = p.run("worker", exchange)
        p.wait(lambda: p.count("trade.>") > 50, "trades in the stream")
        p.nats.kill()
        p.wait(lambda: "messages are lost" in p.output(), "the buffer is full")
        time.sleep(1)
        p.nats.start()
        p.wait(lambda: p.count("gap.>") >= 2, "the gaps in the stream")
        before = p.count("trade.>")
        p.wait(lambda: p.count("trade.>") > before + 50, "trades after it")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(15) == 0
        verdict = p.verdict()
        causes = {(g["affected_data_type"], g["cause"]) for g in verdict.gaps}
        assert ("orderbook_delta", "overflow") in causes
        assert verdict.faults == []


def test_a_recording_made_while_running_replays_to_the_same_trades(tmp_path: Path) -> None:
    with pipeline(tmp_path, SimulatorOptions(seed=25)) as p:
        workers = ("binance_spot", "okx_derivatives", "deribit_derivatives")
        flags = ("--seconds", "6", "--compression", "gzip")
        recorders = [p.run("record", w, "--directory", str(tmp_path / w), *flags) for w in workers]
        assert [r.wait(30) for r in recorders] == [0, 0, 0], p.output()
        p.simulator.stop()
        for worker in workers:
            events = replayed(worker, sorted((tmp_path / worker).iterdir()))
            messages = [(e["subject"], json.dumps(e["data"]).encode()) for e in events]
            verdict = judge(messages, p.simulator.simulator.truth)
            assert verdict.faults == []
            assert verdict.gaps == []
            assert verdict.trades > 50
            assert verdict.books > 20
            # Descriptions were recorded too: quantities are known in base coin.
            assert all(e["data"]["quantity"] for e in events if e["subject"].startswith("trade."))


def test_an_instrument_that_does_not_exist_is_named_and_the_others_run(tmp_path: Path) -> None:
    with pipeline(tmp_path, SimulatorOptions(seed=26)) as p:
        p.change("okx_spot", symbols=["BTC-USDT", "BTC-NIX"])
        p.run("worker", "okx_spot")
        p.wait(lambda: p.count("trade.>") > 20, "trades in the stream")
        assert "okx_spot lists no instrument 'BTC-NIX': it is not collected" in p.output()


def test_books_by_polling_as_the_earlier_system_did(tmp_path: Path) -> None:
    with pipeline(tmp_path, SimulatorOptions(seed=27)) as p:
        p.change(
            "binance_derivatives",
            orderbook={"method": "snapshot", "snapshot_interval": 1, "snapshot_depth": 20},
        )
        p.run("worker", "binance_derivatives")
        p.wait(lambda: p.count("orderbook.>") >= 4, "polled books in the stream")
        assert p.count("orderbook_delta.>") == 0
        books = [json.loads(b) for s, b in p.messages() if s.startswith("orderbook.")]
        assert all(len(b["bids"]) == 20 and b["ts_ms"] and b["last_update_id"] for b in books)


def test_a_publisher_that_has_ended_ends_the_worker(tmp_path: Path) -> None:
    with pipeline(tmp_path, SimulatorOptions(seed=28)) as p:
        settings = load(p.config, environ={}).settings
        limits = MemoryLimits(soft_mb=8000, hard_mb=9000)

        async def run() -> None:
            worker = Worker(settings, "okx_spot", Memory(limits), tmp_path)
            task = asyncio.create_task(worker.run())
            await until(lambda: worker.publisher.counters.acknowledged > 0, 20, "messages flow")
            await worker.publisher.close()
            with pytest.raises(ExceptionGroup) as failed:
                await asyncio.wait_for(task, 10)
            assert failed.group_contains(RuntimeError, match="the publisher has ended")

        asyncio.run(run())


def test_what_there_was_no_room_for_is_told_by_its_lowest_and_highest_number(tmp_path: Path) -> None:
    """REST may have brought old trades among the new ones."""
    with pipeline(tmp_path, SimulatorOptions(seed=30)) as p:
        settings = load(p.config, environ={}).settings
    worker = Worker(settings, "okx_spot", Memory(MemoryLimits(soft_mb=8000, hard_mb=9000)), tmp_path)
    worker.publisher._outbox = Outbox(0)
    market = worker.collector.venue.market("BTC-USDT")
    assert market is not None
    out: Out = []
    now_ns = time.time_ns()
    for number in (8, 9, 3, 4):
        market.trades.last_id = None  # as if it had been told already
        worker.collector.venue.trade(
            market, number, number, str(number), "1", "2", "buy", now_ns // MS, now_ns, out
        )
    for event in out:
        assert isinstance(event, Event)
        worker._publish(event, 0)
    worker._on_resume(worker.publisher._outbox.take_holes())
    (waiting,) = worker._backfill.waiting[market.trade_subject]
    gap = waiting.event.data
    assert isinstance(gap, Gap)
    assert (gap.last_id_before, gap.first_id_after, gap.missing) == ("2", "10", 4)
