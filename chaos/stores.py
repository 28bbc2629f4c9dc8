"""The hot and the cold store as processes beside the pipeline, to be killed and started again."""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import yaml

from chaos.natsbox import free_port
from chaos.pipeline import Pipeline

SHORTENED = (sys.executable, "-m", "chaos.shortened")
STREAM_BYTES = 32 * 1024**3
"""All of a run is compared with what is stored: nothing may leave the stream meanwhile."""
CHECKPOINT_S = 30
STOPPED_WITHIN_S = 30
NAMES = ("hot", "cold")
_APART = "-stores"


class Stores:
    """Both stores of one pipeline, in its folder and on free ports."""

    def __init__(self, pipeline: Pipeline) -> None:
        """Write them into the pipeline's configuration, which must be there."""
        self._pipeline = pipeline
        self._ports = {name: free_port() for name in NAMES}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        document = yaml.safe_load(pipeline.config.read_text())
        folder = pipeline.folder / "stores"
        document["storage"] = {
            "hot": {"location": str(folder / "hot"), "port": self._ports["hot"], "retention_days": 1},
            "cold": {"location": str(folder / "cold"), "port": self._ports["cold"], "delay_minutes": 0},
        }
        stream = document["nats"].setdefault("jetstream", {}).setdefault("streams", {})
        stream.setdefault("MARKET_DATA", {}).update(max_bytes=STREAM_BYTES, max_msgs=100_000_000)
        for exchange in document["exchanges"].values():
            exchange.setdefault("orderbook", {})["checkpoint_interval"] = CHECKPOINT_S
        pipeline.config.write_text(yaml.safe_dump(document))

    def start(self, name: str) -> None:
        """Start one of them."""
        self._processes[name] = self._pipeline.spawn(name, program=SHORTENED, apart=_APART)

    def kill(self, name: str) -> None:
        """kill -9, and wait for its end."""
        self._processes[name].kill()
        self._processes[name].wait()

    def stop(self, name: str) -> list[str]:
        """SIGTERM; a line if it did not end well. Once is enough."""
        process = self._processes.pop(name, None)
        if process is None:
            return []
        process.terminate()
        try:
            status = process.wait(STOPPED_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        return [f"{name} ended with status {status}"] if status else []

    def page(self, name: str, path: str) -> dict[str, Any]:
        """/health or /stats of one; {} while it does not answer."""
        try:
            try:
                answer = urllib.request.urlopen(f"http://127.0.0.1:{self._ports[name]}{path}", timeout=10)
            except urllib.error.HTTPError as error:
                answer = error  # 503: unhealthy
            with answer:
                return dict(json.load(answer))
        except (OSError, ValueError):
            return {}

    @property
    def ill(self) -> dict[str, Any]:
        """Who is not healthy, and why."""
        found = {name: self.page(name, "/health") for name in NAMES}
        return {n: h.get("reasons", "no answer") for n, h in found.items() if h.get("status") != "healthy"}

    def undone(self, since_s: float) -> dict[str, Any]:
        """Windows that cold has still to move, by table, as of a look at hot after that time."""
        stats = self.page("cold", "/stats")
        looked_s = datetime.fromisoformat(
            stats.get("last_run_utc") or "1970-01-01T00:00:00+00:00"
        ).timestamp()
        if looked_s < since_s:
            return {"not looked since": since_s}
        return {table: n for table, n in stats["backlog_windows"].items() if n}

    def output(self) -> str:
        """What they said."""
        return self._pipeline.output(_APART)


@contextmanager
def stores(pipeline: Pipeline) -> Iterator[Stores]:
    """Both, started, and stopped whatever happens."""
    both = Stores(pipeline)
    try:
        for name in NAMES:
            both.start(name)
        yield both
    finally:
        for name in NAMES:
            both.stop(name)
