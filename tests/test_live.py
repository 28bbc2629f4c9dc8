"""The main job, whole: simulator → launcher and five workers → JetStream, held against the simulator's truth."""

import os
import signal
import time
from pathlib import Path

import pytest
from natsbox import nats_server

from chaos.pipeline import Pipeline, pipeline
from marketprism.simulator import SimulatorOptions

pytestmark = pytest.mark.skipif(nats_server() is None, reason="no nats-server: run scripts/setup")
# How long the markets run; set it higher for a long look by hand.
SECONDS = float(os.environ.get("MARKETPRISM_LIVE_SECONDS", "15"))


def healthy(p: Pipeline) -> bool:
    return p.health().get("status") == "healthy"


def audits(p: Pipeline) -> dict[str, dict[str, int]]:
    """How often each exchange's live books were checked, by result."""
    return {name: entry["audits"] for name, entry in p.health()["processes"].items()}


def test_five_exchanges_live_equal_the_truth(tmp_path: Path) -> None:
    with pipeline(tmp_path, SimulatorOptions(seed=11, rate=120)) as p:
        launcher = p.run("launcher")
        p.wait(lambda: healthy(p), "all five workers healthy", 40)
        time.sleep(SECONDS)  # the markets' time: the more of it, the more is compared
        assert healthy(p), p.health()
        p.wait(lambda: all(a["verified"] for a in audits(p).values()), "a verified book of each exchange", 30)
        assert not any(a["contradicted"] for a in audits(p).values()), audits(p)
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(20) == 0
        verdict = p.verdict()
        assert verdict.faults == []
        assert verdict.gaps == []
        assert verdict.trades > 30 * SECONDS
        assert verdict.books > 50 * SECONDS
        print(verdict.trades, "trades", verdict.fills, "fills", verdict.books, "books compared")


def test_faults_are_told_and_mended(tmp_path: Path) -> None:
    """Each fault of an exchange or of ours ends in right books and either no loss or a told one."""
    with pipeline(tmp_path, SimulatorOptions(seed=12, rate=120)) as p:
        p.run("launcher")
        p.wait(lambda: healthy(p), "all five workers healthy", 40)
        for worker, fault in (
            ("binance_spot", "drop_next_book_update"),
            ("binance_derivatives", "cross"),
            ("okx_spot", "drop_next_book_update"),
            ("okx_derivatives", "okx_reset"),
            ("deribit_derivatives", "drop_next_book_update"),
        ):
            p.simulator.inject(fault, worker)
        time.sleep(3)
        p.simulator.inject("drop_next_trade", "binance_spot")
        p.simulator.inject("rate_limit", "binance_derivatives")
        for worker in ("binance_derivatives", "okx_spot", "deribit_derivatives"):
            p.simulator.inject("disconnect", worker)
        time.sleep(2)
        os.kill(p.health()["processes"]["okx_derivatives"]["pid"], signal.SIGKILL)
        p.nats.kill()
        time.sleep(4)  # away; the workers hold what comes in
        p.nats.start()
        p.wait(lambda: healthy(p), "healthy again after all faults", 60)
        time.sleep(3)
        assert healthy(p), p.health()
        verdict = p.verdict()
    assert verdict.faults == [], p.output()[-6000:]
    told = {(g["exchange"], g["market_type"], g["affected_data_type"], g["cause"]) for g in verdict.gaps}
    assert {
        ("binance", "spot", "orderbook_delta", "sequence"),
        ("binance", "perpetual", "orderbook_delta", "crossed"),
        ("binance", "perpetual", "orderbook_delta", "disconnect"),
        ("okx", "spot", "orderbook_delta", "sequence"),
        ("okx", "spot", "orderbook_delta", "disconnect"),
        ("okx", "perpetual", "orderbook_delta", "restart"),
        ("deribit", "perpetual", "orderbook_delta", "sequence"),
        ("deribit", "perpetual", "orderbook_delta", "disconnect"),
    } <= told, told
    # What REST can give back is not a gap.
    assert not any(data_type == "trade" for _, _, data_type, _ in told), told
