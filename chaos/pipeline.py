"""The real pipeline on loopback: nats-server, the simulator in this process, workers as processes."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nats
import nats.errors
import yaml
from nats.js.api import AckPolicy, ConsumerConfig

from chaos.explain import Fired
from chaos.judge import Verdict, judge
from chaos.natsbox import NatsBox, free_port
from marketprism.simulator import Fault, Simulator, SimulatorOptions, write_config

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "config" / "collector" / "unified_data_collection.yaml"
CALL_S = 180  # on a machine that is busy with all this
MARKETPRISM = (sys.executable, "-m", "marketprism")


class SimulatorThread:
    """The simulator on a loop of its own, so that its truth can be asked directly."""

    def __init__(self, options: SimulatorOptions) -> None:
        self.simulator = Simulator(options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def start(self) -> None:
        """Start serving."""
        self._thread.start()
        self.call(self.simulator.start())

    def call(self, coroutine: Any) -> Any:
        """Run a coroutine on the simulator's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(CALL_S)

    def inject(self, fault: str, worker: str, instrument: str | None = None) -> None:
        """One fault, on the simulator's own thread."""

        async def act() -> None:
            self.simulator.inject(fault, worker, instrument)

        self.call(act())

    def inject_fault(self, fault: Fault) -> None:
        """A fault with all it can say, now."""

        async def act() -> None:
            self.simulator.inject_fault(fault)

        self.call(act())

    def fired(self) -> list[Fired]:
        """What was injected, from when it was armed and again from when it took effect, for as long as it lasts."""
        return [
            Fired(
                one.fault,
                int(one.at_s * 1000),
                int((one.at_s + one.fault.seconds) * 1000),
                one.state == "fired",
            )
            for one in list(self.simulator.injected)
        ]

    def fills(self, workers: Collection[str]) -> dict[tuple[str, str], set[int]]:
        """Of each (worker, instrument) of these workers: the numbers of all fills until now."""

        async def ask() -> dict[tuple[str, str], set[int]]:
            truth = self.simulator.truth
            return {
                (w, i): {f.seq for f in truth.fills(w, i)} for w, i in truth.instruments() if w in workers
            }

        return dict(self.call(ask()))

    def stop(self) -> None:
        """Stop serving; once is enough."""
        if self._loop.is_closed() or not self._thread.is_alive():
            return
        self.call(self.simulator.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


class Pipeline:
    """Everything, in a folder of its own and on free ports."""

    def __init__(self, folder: Path, options: SimulatorOptions) -> None:
        self.folder = folder
        self.nats = NatsBox(folder)
        self.simulator = SimulatorThread(options)
        self.config = folder / "config.yaml"
        self.health_port, self.metrics_port = free_port(), free_port()
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start NATS and the simulator, and write the configuration that leads to them."""
        self.nats.start()
        self.simulator.start()
        write_config(CONFIG, self.config, self.simulator.simulator.urls)
        document = yaml.safe_load(self.config.read_text())
        document["nats"]["servers"] = [self.nats.url]
        monitoring = document.setdefault("monitoring", {})
        monitoring.setdefault("health_check", {})["port"] = self.health_port
        monitoring.setdefault("metrics", {})["port"] = self.metrics_port
        self.config.write_text(yaml.safe_dump(document))

    def change(self, exchange: str, **keys: Any) -> None:
        """Change keys of an exchange in the configuration; those of its `orderbook` one by one."""
        document = yaml.safe_load(self.config.read_text())
        section = document["exchanges"][exchange]
        section.setdefault("orderbook", {}).update(keys.pop("orderbook", {}))
        section.update(keys)
        self.config.write_text(yaml.safe_dump(document))

    def change_nats(self, **keys: Any) -> None:
        """Change keys of the `nats` section."""
        document = yaml.safe_load(self.config.read_text())
        document["nats"].update(keys)
        self.config.write_text(yaml.safe_dump(document))

    def run(self, *arguments: str, program: Sequence[str] = MARKETPRISM) -> subprocess.Popen[bytes]:
        """Start `marketprism …`, or another program in its place, to be stopped with the workers."""
        process = self.spawn(*arguments, program=program)
        self._processes.append(process)
        return process

    def spawn(
        self, *arguments: str, program: Sequence[str] = MARKETPRISM, apart: str = ""
    ) -> subprocess.Popen[bytes]:
        """Start it against this configuration; the caller sees to its end. `apart`: what its logs' names end in."""
        environment = os.environ | {
            "MARKETPRISM_RUNTIME_DIR": str(self.folder / "run"),
            "MARKETPRISM_LOG_DIR": str(self.folder / f"logs{apart}"),
        }
        environment.pop("MARKETPRISM_NATS_URL", None)
        environment.pop("NATS_URL", None)
        command = [*program, *arguments, "--config", str(self.config)]
        with (self.folder / f"output{apart}.log").open("ab") as output:
            return subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
            )

    def health(self) -> dict[str, Any]:
        """The launcher's own word; {} while it does not answer, or not as it should."""
        try:
            try:
                answer = urllib.request.urlopen(f"http://127.0.0.1:{self.health_port}/health", timeout=5)
            except urllib.error.HTTPError as e:
                answer = e  # 503: something is unhealthy
            with answer:
                return dict(json.load(answer))
        except (OSError, ValueError):
            return {}

    def output(self, apart: str = "") -> str:
        """What the processes said on their standard streams, and in their logs."""
        files = [self.folder / f"output{apart}.log", *sorted((self.folder / f"logs{apart}").glob("*.log"))]
        return "\n".join(f"== {f.name}\n{f.read_text()}" for f in files if f.exists())

    def wait(self, condition: Callable[[], bool], what: str, timeout_s: float = 30) -> None:
        """Return once the condition holds; AssertionError, with what the processes said, if it does not in time."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s\n{self.output()[-4000:]}"
            time.sleep(0.1)

    def count(self, subject: str) -> int:
        """How many messages the stream holds of a subject with wildcards; 0 while there is none."""
        return sum(self.counts(subject).values())

    def counts(self, subject: str) -> dict[str, int]:
        """The same by subject; {} while there is no stream."""
        return asyncio.run(self._counts(subject))

    async def _counts(self, subject: str) -> dict[str, int]:
        try:
            client = await nats.connect(self.nats.url, allow_reconnect=False, max_reconnect_attempts=0)
        except (OSError, TimeoutError, nats.errors.Error):
            return {}
        try:
            info = await client.jetstream().stream_info("MARKET_DATA", subjects_filter=subject)
            return info.state.subjects or {}
        except (TimeoutError, nats.errors.Error):
            return {}
        finally:
            await client.close()

    def messages(self, subject: str = ">") -> list[tuple[str, bytes]]:
        """What the stream holds of a subject with wildcards, in its order."""
        return asyncio.run(stored(self.nats.url, subject))

    def verdict(self) -> Verdict:
        """Stop the workers and the markets, and hold the stream against the truth."""
        self.stop_workers()
        self.simulator.stop()  # the truth must stand still while it is read
        return judge(self.messages(), self.simulator.simulator.truth)

    def stop_workers(self) -> None:
        """Stop the launcher or the workers in good order."""
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def stop(self) -> None:
        """Stop what was started, workers first."""
        try:
            self.stop_workers()
            self.simulator.stop()
        finally:
            self.nats.stop()


async def stored(url: str, subject: str = ">") -> list[tuple[str, bytes]]:
    """(subject, payload) of what the stream of a server holds, in its order."""
    client = await nats.connect(url)
    try:
        js = client.jetstream()
        config = ConsumerConfig(filter_subject=subject, ack_policy=AckPolicy.NONE, mem_storage=True)
        consumer = await js.add_consumer("MARKET_DATA", config)
        subscription = await js.pull_subscribe_bind(stream="MARKET_DATA", consumer=consumer.name)
        left = consumer.num_pending
        found: list[tuple[str, bytes]] = []
        while len(found) < left:
            batch = await subscription.fetch(min(1000, left - len(found)), timeout=10)
            found += [(message.subject, message.data) for message in batch]
        return found
    finally:
        await client.close()


@contextmanager
def pipeline(folder: Path, options: SimulatorOptions) -> Iterator[Pipeline]:
    """A pipeline that is stopped whatever happens."""
    everything = Pipeline(folder, options)
    try:
        everything.start()
        yield everything
    finally:
        everything.stop()
