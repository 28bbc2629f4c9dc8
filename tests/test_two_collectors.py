"""Two collectors of the same exchanges into one stream, as on two hosts: everything once, and no hole.

Each has a folder and a configuration of its own, and reaches the exchanges by cables of its own, which can be cut.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import nats
import pytest
import yaml
from natsbox import Cable, nats_server

from chaos.consumer import ConsumerBook
from chaos.judge import _span
from chaos.pipeline import ROOT, Pipeline, pipeline
from marketprism.simulator import SimulatorOptions

pytestmark = pytest.mark.skipif(nats_server() is None, reason="no nats-server: run scripts/setup")

EXCHANGES = ("binance_derivatives", "okx_spot", "deribit_derivatives")
BOOKS = 2 * len(EXCHANGES)
COVERED = "the stream holds all that was missed"


class Host:
    """A machine with a collector: what it runs, where it logs, its cables to the exchanges."""

    def __init__(self, p: Pipeline, name: str) -> None:
        self.folder = p.folder / name
        self.folder.mkdir()
        self._p = p
        self._config = self.folder / "config.yaml"
        self._cables: list[Cable] = []
        self._workers: dict[str, subprocess.Popen[bytes]] = {}
        document = yaml.safe_load(p.config.read_text())
        for exchange, api in p.simulator.simulator.urls.items():
            port = api["base_url"].rsplit(":", 1)[1]
            cable = Cable(int(port))
            self._cables.append(cable)
            near = {key: url.replace(f":{port}", f":{cable.port}") for key, url in api.items()}
            document["exchanges"][exchange]["api"].update(near)
            document["exchanges"][exchange]["orderbook"].pop("rest_base", None)
        self._config.write_text(yaml.safe_dump(document))

    def plug(self) -> None:
        """The exchanges can be reached."""
        for cable in self._cables:
            self._p.simulator.call(cable.plug())

    def cut(self) -> None:
        """They cannot; open connections break."""
        for cable in self._cables:
            self._p.simulator.call(cable.cut())

    def start(self) -> None:
        """Start the workers that do not run."""
        places = {"MARKETPRISM_RUNTIME_DIR": self.folder / "run", "MARKETPRISM_LOG_DIR": self.folder / "logs"}
        environment = os.environ | {key: str(path) for key, path in places.items()}
        for exchange in EXCHANGES:
            command = [sys.executable, "-m", "marketprism", "worker", exchange, "--config", str(self._config)]
            with (self.folder / "output.log").open("ab") as output:
                self._workers[exchange] = subprocess.Popen(
                    command, cwd=ROOT, env=environment, stdout=output, stderr=output
                )

    def send(self, number: signal.Signals) -> None:
        """Send all workers a signal."""
        for worker in self._workers.values():
            worker.send_signal(number)

    def stop(self, number: signal.Signals) -> None:
        """End all workers by a signal, and wait for their end."""
        self.send(number)
        for worker in self._workers.values():
            worker.wait(20)

    def said(self, text: str) -> int:
        """How often the log says so."""
        logs = (self.folder / "logs").glob("collector_*.log")
        return sum(log.read_text().count(text) for log in logs)

    def covered(self, rounds: int) -> None:
        """Wait until each book was begun this often while the stream held what was missed."""
        self._p.wait(
            lambda: self.said(COVERED) >= rounds * BOOKS, f"{self.folder.name}: covered {rounds} times"
        )


def ids(p: Pipeline) -> Counter[str]:
    """How often each message id is in the stream."""
    return asyncio.run(_ids(p))


async def _ids(p: Pipeline) -> Counter[str]:
    client = await nats.connect(p.nats.url)
    try:
        js = client.jetstream()
        last = (await js.stream_info("MARKET_DATA")).state.messages
        subscription = await js.subscribe(">", stream="MARKET_DATA", ordered_consumer=True)
        found: Counter[str] = Counter()
        while found.total() < last:
            message = await subscription.next_msg(timeout=10)
            found[(message.headers or {})["Nats-Msg-Id"]] += 1
        return found
    finally:
        await client.close()


def moved(p: Pipeline) -> None:
    """Wait until each book and each instrument's trades have gone on in the stream."""
    before = p.counts("*.*.*.*")
    names = [s for s in before if s.startswith(("trade.", "orderbook_delta."))]
    assert len(names) == 2 * BOOKS
    p.wait(lambda: all(n > before[s] for s, n in p.counts("*.*.*.*").items() if s in names), "all goes on")


def whole(p: Pipeline) -> bool:
    """Whether of each instrument all trades are in the stream between the first and the last one."""
    numbers: dict[str, set[int]] = defaultdict(set)
    for subject, body in p.messages():
        if subject.startswith("trade."):
            numbers[subject].update(_span(json.loads(body)))
    return all(max(n) - min(n) + 1 == len(n) for n in numbers.values())


def holes(p: Pipeline) -> list[str]:
    """The gaps told of what is numbered."""
    told = [json.loads(body) for subject, body in p.messages() if subject.startswith("gap.")]
    return [str(gap) for gap in told if gap["affected_data_type"] != "liquidation"]


def test_the_judge_knows_whose_gap_it_is() -> None:
    """Two collectors that both begin anew: the later gap of the one is no end of the other's book."""
    book = ConsumerBook()
    common = {"exchange": "binance", "first_update_id": None, "exact_from": None, "exact_to": None}
    common |= {"bids": [], "asks": [], "ts_ms": 1}
    assert book.take(common | {"update_type": "snapshot", "prev_update_id": None, "last_update_id": 40})
    book.gap("30")
    assert not book.take(common | {"update_type": "snapshot", "prev_update_id": None, "last_update_id": 35})
    assert book.take(common | {"update_type": "delta", "prev_update_id": 40, "last_update_id": 41})
    assert not book.broken
    book.gap("41")
    assert not book.take(common | {"update_type": "delta", "prev_update_id": 41, "last_update_id": 42})


def test_one_goes_on_while_the_other_is_cut_killed_restarted_or_late(tmp_path: Path) -> None:
    with pipeline(tmp_path, SimulatorOptions(seed=31, rate=60)) as p:
        first, second = Host(p, "first"), Host(p, "second")
        try:
            for host in (first, second):
                host.plug()
            first.start()
            p.wait(
                lambda: len(p.counts("orderbook_delta.>")) == len(p.counts("trade.>")) == BOOKS, "all begun"
            )
            second.start()
            second.covered(1)
            for host, rounds in ((first, 1), (second, 2)):
                host.cut()
                moved(p)
                host.plug()
                host.covered(rounds)
            second.stop(signal.SIGKILL)
            moved(p)
            second.start()
            second.covered(3)
            first.send(signal.SIGSTOP)
            moved(p)
            first.send(signal.SIGCONT)
            moved(p)
            assert holes(p) == []

            first.cut()
            second.cut()  # nobody listens: that is a hole, and told
            told = "gap in orderbook_delta"
            p.wait(lambda: first.said(told) + second.said(told) >= BOOKS, "the holes are told")
            first.plug()
            second.plug()
            moved(p)
            p.wait(lambda: whole(p), "the trades of that time, by REST", 60)
        finally:
            for host in (first, second):
                host.stop(signal.SIGTERM)
        verdict = p.verdict()
        assert verdict.faults == [], (first.folder / "output.log").read_text()[-6000:]
        assert verdict.missing == 0  # trades came by REST
        assert [i for i, n in ids(p).items() if n > 1] == []
        subjects = p.counts("*.*.*.*")
        for data_type in ("funding_rate", "open_interest", "lsr_top_position", "volatility_index"):
            assert any(s.startswith(f"{data_type}.") for s in subjects), data_type
        print(verdict.trades, "trades", verdict.books, "books compared")
