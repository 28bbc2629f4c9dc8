"""A hot store as a process, to be asked, killed and started again; and events to store."""

import asyncio
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nats
import yaml
from nats.js.api import StreamConfig

from chaos.natsbox import free_port
from marketprism.events import PAYLOADS, Event, encode

ROOT = Path(__file__).parents[2]
NOW_MS = 1_795_417_150_231


class HotBox:
    """`marketprism hot` on a directory and a free port of its own."""

    def __init__(
        self, folder: Path, nats_url: str, *, keep_cold: bool = True, host: str = "127.0.0.1", **hot: Any
    ) -> None:
        """Prepare; `hot` are keys of `storage.hot`. `keep_cold`: whether there is a cold store, too."""
        self.folder = folder
        self.host = host
        self.port = free_port()
        self.socket = folder / "run" / "hot.sock"
        self._process: subprocess.Popen[bytes] | None = None
        self._document: dict[str, Any] = {
            "exchanges": {"binance_spot": {"symbols": ["BTCUSDT"]}},
            "monitoring": {"bind_host": host},
            "storage": {
                "hot": {"location": str(folder / "hot"), "port": self.port, **hot},
                "cold": {"enabled": keep_cold},
            },
        }
        folder.mkdir(exist_ok=True)
        self.point_at(nats_url)

    def point_at(self, nats_url: str) -> None:
        """Which NATS it reads from after the next start."""
        self._document["nats"] = {"servers": [nats_url]}
        (self.folder / "hot.yaml").write_text(yaml.safe_dump(self._document))

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self._process is not None
        return self._process.pid

    def start(self, *prefix: str) -> None:
        """Start it, by another program if need be; it may take seconds until it stores."""
        environment = os.environ | {"MARKETPRISM_RUNTIME_DIR": str(self.folder / "run")}
        for name in ("MARKETPRISM_NATS_URL", "NATS_URL", "MARKETPRISM_LOG_DIR"):
            environment.pop(name, None)
        config = str(self.folder / "hot.yaml")
        command = [*prefix, sys.executable, "-m", "marketprism", "hot", "--config", config]
        with (self.folder / "hot.log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def log(self) -> str:
        """What it said."""
        return (self.folder / "hot.log").read_text()

    def kill(self) -> None:
        """kill -9, and wait for its end."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> int:
        """SIGTERM, and wait for its end."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(20)
        self._process = None
        return status

    def get(self, path: str) -> dict[str, Any]:
        """/health or /stats; {} while nobody answers."""
        try:
            try:
                answer = urllib.request.urlopen(f"http://{self.host}:{self.port}{path}", timeout=5)
            except urllib.error.HTTPError as error:
                answer = error
            with answer:
                return dict(json.load(answer))
        except (OSError, ValueError):
            return {}

    def query(self, sql: str, fmt: str = "JSONEachRow", **parameters: str) -> tuple[int, bytes]:
        """Status and body of /query."""
        names = urllib.parse.urlencode({"format": fmt} | {f"param_{k}": v for k, v in parameters.items()})
        request = urllib.request.Request(f"http://{self.host}:{self.port}/query?{names}", sql.encode())
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError as error:
            raise AssertionError(f"no answer to {sql!r}: {error}\n{self.log()[-3000:]}") from error

    def rows(self, sql: str, **parameters: str) -> list[dict[str, Any]]:
        """The rows of a SELECT."""
        status, body = self.query(sql, **parameters)
        assert status == 200, body
        return [json.loads(line) for line in body.splitlines()]

    def stored(self, table: str) -> tuple[int, int]:
        """Rows as they lie on disk, and different ids among them."""
        lying = self.rows(
            "SELECT toInt32(sum(rows)) AS n FROM system.parts WHERE active AND database = 'marketprism_hot' "
            "AND table = {table:String}",
            table=table,
        )
        ids = self.rows(f"SELECT toInt32(uniqExact(event_id)) AS n FROM marketprism_hot.{table}")
        return lying[0]["n"], ids[0]["n"]

    def change(self, statement: str, **more: Any) -> tuple[int, dict[str, Any] | str]:
        """Status and answer of /change, over the socket of this user."""
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(self.socket))
        connection.request("POST", "/change", json.dumps({"statement": statement, **more}))
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, json.loads(text) if text.startswith("{") else text

    def wait(self, condition: Callable[[], bool], what: str, timeout_s: float = 30) -> None:
        """Return once the condition holds; AssertionError with the log if it does not in time."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            ended = self._process is not None and self._process.poll() is not None
            assert not ended, f"hot ended: {self.log()[-3000:]}"
            assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s\n{self.log()[-3000:]}"
            time.sleep(0.05)

    def wait_healthy(self) -> None:
        """Until it stores."""
        self.wait(lambda: self.get("/health").get("status") == "healthy", "healthy", 90)

    def wait_stored(self, table: str, rows: int) -> None:
        """Until so many different events are in a table."""
        self.wait_healthy()
        self.wait(lambda: self.stored(table)[1] >= rows, f"{rows} events in {table}", 90)


def publish(url: str, events: list[Event], **stream: Any) -> None:
    """Into MARKET_DATA, which is made if need be; `stream` are settings of it."""
    publish_raw(url, [(e.subject, encode(e.data), {"Nats-Msg-Id": e.id}) for e in events], **stream)


def publish_raw(url: str, messages: list[tuple[str, bytes, dict[str, str] | None]], **stream: Any) -> None:
    """The same, of anything."""
    asyncio.run(_publish(url, messages, {"duplicate_window": 120, **stream}))


async def _publish(
    url: str, messages: list[tuple[str, bytes, dict[str, str] | None]], stream: dict[str, Any]
) -> None:
    client = await nats.connect(url)
    js = client.jetstream()
    subjects = [f"{data_type}.>" for data_type in PAYLOADS]
    await js.add_stream(StreamConfig(name="MARKET_DATA", subjects=subjects, **stream))
    for done in range(0, len(messages), 500):
        acks = [await js.publish_async(s, p, headers=h) for s, p, h in messages[done : done + 500]]
        await asyncio.gather(*acks)
    await client.close()


async def dead_letters(url: str) -> list[tuple[str, bytes, dict[str, str]]]:
    """What is in the dead-letter stream: subject, payload, headers."""
    client = await nats.connect(url)
    js = client.jetstream()
    left = (await js.stream_info("MARKET_DATA_DEAD")).state.messages
    found = []
    if left:
        subscription = await js.subscribe("dead.>", ordered_consumer=True)
        for _ in range(left):
            message = await subscription.next_msg(timeout=5)
            found.append((message.subject, message.data, dict(message.headers or {})))
    await client.close()
    return found
