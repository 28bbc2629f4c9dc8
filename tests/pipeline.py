"""The real pipeline on loopback for tests: nats-server, the simulator in this process, workers as processes."""

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nats
import nats.errors
import yaml
from judge import Verdict, judge
from natsbox import NatsBox, free_port

from marketprism.simulator import Simulator, SimulatorOptions, write_config

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "config" / "collector" / "unified_data_collection.yaml"


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
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def inject(self, fault: str, worker: str, instrument: str | None = None) -> None:
        """One fault, on the simulator's own thread."""

        async def act() -> None:
            self.simulator.inject(fault, worker, instrument)

        self.call(act())

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

    def run(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start `marketprism …` against this configuration."""
        environment = os.environ | {
            "MARKETPRISM_RUNTIME_DIR": str(self.folder / "run"),
            "MARKETPRISM_LOG_DIR": str(self.folder / "logs"),
        }
        environment.pop("MARKETPRISM_NATS_URL", None)
        environment.pop("NATS_URL", None)
        command = [sys.executable, "-m", "marketprism", *arguments, "--config", str(self.config)]
        with (self.folder / "output.log").open("ab") as output:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
        self._processes.append(process)
        return process

    def health(self) -> dict[str, Any]:
        """The launcher's own word; {} while it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health_port}/health", timeout=5) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as e:
            return dict(json.load(e))
        except OSError:
            return {}

    def output(self) -> str:
        """What the processes said on their standard streams, and in their logs."""
        files = [self.folder / "output.log", *sorted((self.folder / "logs").glob("*.log"))]
        return "\n".join(f"== {f.name}\n{f.read_text()}" for f in files if f.exists())

    def wait(self, condition: Callable[[], bool], what: str, timeout_s: float = 30) -> None:
        """Return once the condition holds; AssertionError, with what the processes said, if it does not in time."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s\n{self.output()[-4000:]}"
            time.sleep(0.1)

    def count(self, subject: str) -> int:
        """How many messages the stream holds of a subject with wildcards; 0 while there is none."""
        return asyncio.run(self._count(subject))

    async def _count(self, subject: str) -> int:
        try:
            client = await nats.connect(self.nats.url, allow_reconnect=False, max_reconnect_attempts=0)
        except (OSError, TimeoutError, nats.errors.Error):
            return 0
        try:
            info = await client.jetstream().stream_info("MARKET_DATA", subjects_filter=subject)
            return sum((info.state.subjects or {}).values())
        except (TimeoutError, nats.errors.Error):
            return 0
        finally:
            await client.close()

    def messages(self) -> list[tuple[str, bytes]]:
        """The whole stream, in its order."""
        return asyncio.run(self._messages())

    async def _messages(self) -> list[tuple[str, bytes]]:
        client = await nats.connect(self.nats.url)
        try:
            js = client.jetstream()
            last = (await js.stream_info("MARKET_DATA")).state.messages
            found: list[tuple[str, bytes]] = []
            subscription = await js.subscribe(">", stream="MARKET_DATA", ordered_consumer=True)
            while len(found) < last:
                message = await subscription.next_msg(timeout=10)
                found.append((message.subject, message.data))
            return found
        finally:
            await client.close()

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
        self.stop_workers()
        self.simulator.stop()
        self.nats.stop()


@contextmanager
def pipeline(
    folder: Path, options: SimulatorOptions, changes: dict[str, Any] | None = None
) -> Iterator[Pipeline]:
    """A pipeline that is stopped whatever happens."""
    everything = Pipeline(folder, options)
    try:
        everything.start()
        yield everything
    finally:
        everything.stop()
