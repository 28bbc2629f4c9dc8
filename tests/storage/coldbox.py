"""A hot store in this process, served as `marketprism hot` serves it; and what cold has of it."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml
from samples import event
from storagebox import ROOT, HotBox

from chaos.natsbox import free_port
from marketprism.events import Payload, encode
from marketprism.storage import web
from marketprism.storage.asking import HotHttp
from marketprism.storage.engine import Engine
from marketprism.storage.rows import Rows
from marketprism.storage.schema import BY_DATA_TYPE, BY_NAME, Layout
from marketprism.storage.source import HotSource
from marketprism.storage.writer import Writer

HOUR_MS = 3_600_000
OLD_MS = 1_767_225_600_000 + 7 * HOUR_MS  # 2026-01-01 07:00 UTC: longer ago than any retention
DAY_S = 86_400


class Served:
    """The tables of `layout` behind a port and a socket, until closed."""

    def __init__(self, engine: Engine, layout: Layout, folder: Path) -> None:
        """Serve."""
        self.engine = engine
        self.layout = layout
        self.socket = folder / "hot.sock"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._readers, self._writer = web.Readers(), Writer(engine, layout)
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(listener.getsockname()[1])
        self._runners = [
            self._do(web.serve(web.public_app(self, self._readers), listener)),
            self._do(web.serve(web.private_app(self._writer), web.private_socket(self.socket))),
        ]
        self._readers.use(engine)
        self.source = HotSource(HotHttp("127.0.0.1", self.port), self.socket, layout)

    def close(self) -> None:
        """Stop serving."""
        for runner in self._runners:
            self._do(runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._readers.close()
        self._writer.close()

    def put(self, payloads: list[Payload], first_id: int = 1) -> list[str]:
        """Store events as the hot process does; returns their ids. Equal ids are equal events."""
        ids: list[str] = []
        batches: dict[str, Rows] = {}
        for number, payload in enumerate(payloads, first_id):
            data_type = str(payload.__struct_config__.tag)
            ids.append(event(payload, str(number)).id)
            rows = batches.setdefault(data_type, Rows(BY_DATA_TYPE[data_type]))
            rows.add(encode(payload), ids[-1], number)
        for rows in batches.values():
            columns, refused = rows.arrow()
            assert not refused
            self._do(self._writer.store(rows.table, columns))
        return ids

    def put_rows(self, table: str, rows: pa.Table) -> None:
        """Store rows as they are, also those that are there."""
        self.engine.insert(self.layout.table(table), rows)

    def rows(self, table: str = "trades") -> list[dict[str, Any]]:
        """What it holds."""
        return self.engine.query(f"SELECT {_all(table)} FROM {self.layout.table(table)} {_ORDER}").to_pylist()

    def _do(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def health(self) -> dict[str, Any]:
        """Not asked for here."""
        raise NotImplementedError

    stats = metrics = health


_ORDER = "ORDER BY exchange, market_type, symbol, timestamp, event_id"


def _all(table: str) -> str:
    return ", ".join(c.name for c in BY_NAME[table].stored)


def in_files(engine: Engine, root: Path, table: str = "trades") -> list[dict[str, Any]]:
    """The rows of all of a table's Parquet files, with whatever is in them twice."""
    if not list(root.glob(f"{table}/*/*.parquet")):
        return []
    sql = f"SELECT {_all(table)} FROM file({{path:String}}, 'Parquet') {_ORDER}"
    return engine.query(sql, {"path": f"{root}/{table}/*/*.parquet"}).to_pylist()


def in_tables(engine: Engine, layout: Layout, table: str = "trades") -> list[dict[str, Any]]:
    """The rows of a cold table."""
    return engine.query(f"SELECT {_all(table)} FROM {layout.table(table)} {_ORDER}").to_pylist()


def killed_round(served: Served, root: Path, step: int) -> int:
    """Exit status of a round that kills itself at that step (tests/storage/killed.py)."""
    arguments = [str(served.port), str(served.socket), served.layout.database, str(root), str(step)]
    command = [sys.executable, str(Path(__file__).with_name("killed.py")), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, timeout=60, check=False).returncode


class ColdBox:
    """`marketprism cold` beside a HotBox, moving to Parquet files."""

    def __init__(self, hot: HotBox, **cold: Any) -> None:
        """Prepare; `cold` are keys of `storage.cold`."""
        self.folder = hot.folder
        self.root = hot.folder / "cold"
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        document = yaml.safe_load((hot.folder / "hot.yaml").read_text())
        document["storage"]["cold"] = {
            "location": str(self.root),
            "port": self.port,
            "delay_minutes": 0,
            **cold,
        }
        (self.folder / "cold.yaml").write_text(yaml.safe_dump(document))

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it."""
        environment = os.environ | {"MARKETPRISM_RUNTIME_DIR": str(self.folder / "run")}
        environment.pop("MARKETPRISM_LOG_DIR", None)
        command = [sys.executable, "-m", "marketprism", "cold", "--config", str(self.folder / "cold.yaml")]
        with (self.folder / "cold.log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)

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
        status = self._process.wait(40)
        self._process = None
        return status

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of one of its pages; 0 while nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, "{}"

    def wait(self, condition: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
        """Return once the condition holds; AssertionError with the log if it does not in time."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            log = (self.folder / "cold.log").read_text()[-3000:]
            assert self._process is not None
            assert self._process.poll() is None, f"cold ended: {log}"
            assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s\n{log}"
            time.sleep(0.1)
