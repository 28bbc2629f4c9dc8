"""The main job, whole: simulator → launcher and five workers → JetStream, held against the simulator's truth."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
from judge import judge
from natsbox import nats_server, until
from pipeline import Pipeline, pipeline

from marketprism.simulator import SimulatorOptions

pytestmark = pytest.mark.skipif(nats_server() is None, reason="no nats-server: run scripts/setup")
# How long the markets run; set it higher for a long look by hand.
SECONDS = float(os.environ.get("MARKETPRISM_LIVE_SECONDS", "15"))


def healthy(p: Pipeline) -> bool:
    return p.health().get("status") == "healthy"


def wait_for(condition: object, timeout_s: float, p: Pipeline, what: str) -> None:
    try:
        asyncio.run(until(condition, timeout_s, what))  # type: ignore[arg-type]
    except AssertionError as e:
        raise AssertionError(f"{e}\n{p.output()[-4000:]}") from None


def test_five_exchanges_live_equal_the_truth(tmp_path: Path) -> None:
    with pipeline(tmp_path, SimulatorOptions(seed=11, rate=120)) as p:
        launcher = p.run("launcher")
        wait_for(lambda: healthy(p), 40, p, "all five workers healthy")
        time.sleep(SECONDS)  # the markets' time: the more of it, the more is compared
        assert healthy(p), p.health()
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(20) == 0
        verdict = judge(p.messages(), p.simulator.simulator.truth)
        assert verdict.faults == []
        assert verdict.gaps == []
        assert verdict.trades > 30 * SECONDS
        assert verdict.books > 50 * SECONDS
        print(verdict.trades, "trades", verdict.fills, "fills", verdict.books, "books compared")
