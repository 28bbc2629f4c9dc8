"""`scripts/bench storage`: rows/s into the engine, how fast the hot store takes a backlog, its memory, and how soon an
event is found."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import yaml

from benchmarks.filling import events, fill
from benchmarks.inserting import Inserted, inserted
from benchmarks.live import Bar, wait
from benchmarks.load import Load
from benchmarks.machine import Machine
from benchmarks.pipeline import free_ports, pipeline, start_marketprism, start_nats
from benchmarks.processes import ProcessFigures, machine_busy_s, observe
from marketprism.quickstart import children
from marketprism.quickstart.children import Child, QuickstartError
from marketprism.quickstart.figures import fetch
from marketprism.storage.asking import HotHttp
from marketprism.storage.schema import TABLES

ROWS_PER_S = 50_000
RSS_MB = 600.0
FOUND_S = 5.0
_START_TIMEOUT_S = 90.0
_LOOK_EVERY_S = 0.2
_SETTLE_S = 5.0
_LYING = (
    "SELECT sum(rows) AS n FROM system.parts WHERE active AND database = 'marketprism_hot' "
    "AND table != 'schema_versions'"
)


@dataclass(frozen=True, slots=True)
class Backlog:
    """A stream of `events` taken in. `seconds`: from the first row to the last; `slowest_per_s`: of any ten seconds.

    `lying`: rows on disk at the end, which must be as many as events. `other_cpu_percent`: what the machine did beside.
    """

    events: int
    payload_bytes: float
    seconds: float
    rows_per_s: float
    slowest_per_s: float
    lying: int
    processes: list[ProcessFigures]
    other_cpu_percent: float


@dataclass(frozen=True, slots=True)
class Found:
    """From the stream's clock to the first answer of /query with that event in it, at `rate` messages a second and
    exchange; asked every `asked_every_s`."""

    rate: float
    seconds: float
    events: int
    asked_every_s: float
    p50_s: float
    p99_s: float
    max_s: float
    processes: list[ProcessFigures]
    other_cpu_percent: float


@dataclass(frozen=True, slots=True)
class StorageResult:
    """All that `storage` found."""

    machine: Machine
    inserted: Inserted
    backlog: Backlog
    found: Found
    bars: list[Bar]


@dataclass(frozen=True, slots=True)
class _Hot:
    child: Child
    port: int

    def stats(self) -> dict[str, Any]:
        body = fetch(f"http://127.0.0.1:{self.port}/stats")
        return {} if body is None else dict(msgspec.json.decode(body))

    def stored(self) -> int:
        """Messages dealt with since its start."""
        of = self.stats().get("message_stats", {}).values()
        return sum(one["stored"] + one["repeated"] + one["dead"] for one in of)

    def rows(self, sql: str, **values: str | int) -> list[dict[str, Any]]:
        return list(HotHttp("127.0.0.1", self.port).query(sql, values).to_pylist())


def storage(count: int, rate: float, seconds: float) -> StorageResult:
    """All three measurements. Raises QuickstartError, StopRequestedError, FillingError."""
    machine = Machine.here()
    alone = inserted(count)
    backlog = _backlog(count)
    found = _found(Load(rate=rate), seconds)
    peak = max(p.rss_max_mb for p in (*backlog.processes, *found.processes) if p.name == "hot")
    bars = [
        Bar(
            "a row inserted",
            1e6 / alone.rows_per_s,
            1e6 / ROWS_PER_S,
            "us",
            alone.rows_per_s >= ROWS_PER_S,
        ),
        Bar("memory of the hot store (RSS)", peak, RSS_MB, "MB", peak <= RSS_MB),
        Bar("published to found, p99", found.p99_s, FOUND_S, "s", found.p99_s <= FOUND_S),
    ]
    return StorageResult(machine, alone, backlog, found, bars)


def _backlog(count: int) -> Backlog:
    """The stream is full before the hot store starts: what it takes then is all it can."""
    with TemporaryDirectory(prefix="marketprism-bench-") as name:
        folder, running = Path(name), list[Child]()
        (port,) = free_ports(1)
        try:
            start_nats(running, folder, port)
            payload_bytes = 0

            def counted() -> Iterator[tuple[str, bytes, str]]:
                nonlocal payload_bytes
                for event in events(count):
                    payload_bytes += len(event[1])
                    yield event

            fill(port, counted())
            with _hot(running, folder, f"nats://127.0.0.1:{port}") as hot:
                return _drained(hot, running, count, payload_bytes / count)
        finally:
            children.stop_all(running)


def _drained(hot: _Hot, running: list[Child], count: int, payload_bytes: float) -> Backlog:
    children.wait_until(lambda: hot.stored() > 0, "the first row", running, _START_TIMEOUT_S)
    observed = observe({child.process.pid: child.name for child in running})
    began_s, busy_s, seen = time.monotonic(), machine_busy_s(), [(0.0, hot.stored())]
    while seen[-1][1] < count:
        wait(_LOOK_EVERY_S)
        seen.append((time.monotonic() - began_s, hot.stored()))
        hot.child.check()
        for process in observed:
            process.look()
    elapsed_s, busy_s = seen[-1][0], machine_busy_s() - busy_s
    figures = [process.end(elapsed_s) for process in observed]
    return Backlog(
        events=count,
        payload_bytes=payload_bytes,
        seconds=elapsed_s,
        rows_per_s=(count - seen[0][1]) / elapsed_s,
        slowest_per_s=_slowest(seen),
        lying=int(hot.rows(_LYING)[0]["n"]),
        processes=figures,
        other_cpu_percent=max(0.0, 100 * busy_s / elapsed_s - sum(p.cpu_percent for p in figures)),
    )


def _slowest(seen: list[tuple[float, int]], window_s: float = 10.0) -> float:
    """Rows a second of the slowest window; of the whole where that is shorter."""
    rates = []
    for i, (at_s, rows) in enumerate(seen):
        later = next(((s, n) for s, n in seen[i + 1 :] if s - at_s >= window_s), None)
        if later is not None:
            rates.append((later[1] - rows) / (later[0] - at_s))
    whole = (seen[-1][1] - seen[0][1]) / (seen[-1][0] - seen[0][0])
    return min(rates, default=whole)


def _found(load: Load, seconds: float) -> Found:
    """The whole pipeline, and somebody who asks for what is new again and again."""
    with (
        pipeline(load) as running,
        TemporaryDirectory(prefix="marketprism-bench-") as name,
        _hot(running.running, Path(name), running.nats_url) as hot,
    ):
        wait(_SETTLE_S)
        return _asked(hot, running.running, load, seconds)


def _asked(hot: _Hot, running: list[Child], load: Load, seconds: float) -> Found:
    last = {t.name: 0 for t in TABLES}
    observed = observe({child.process.pid: child.name for child in running if child.name == "hot"})
    began_s, busy_s, took_s = time.monotonic(), machine_busy_s(), list[float]()
    while time.monotonic() - began_s < seconds:
        wait(_LOOK_EVERY_S)
        took_s += [s for s in _new(hot, last) if s <= time.monotonic() - began_s]
        for process in observed:
            process.look()
    elapsed_s, busy_s = time.monotonic() - began_s, machine_busy_s() - busy_s
    figures = [process.end(elapsed_s) for process in observed]
    if not took_s:
        raise QuickstartError(f"nothing was stored in {seconds:g} s")
    took_s.sort()
    return Found(
        rate=load.rate,
        seconds=elapsed_s,
        events=len(took_s),
        asked_every_s=_LOOK_EVERY_S,
        p50_s=took_s[len(took_s) // 2],
        p99_s=took_s[int(len(took_s) * 0.99)],
        max_s=took_s[-1],
        processes=figures,
        other_cpu_percent=max(0.0, 100 * busy_s / elapsed_s - sum(p.cpu_percent for p in figures)),
    )


def _new(hot: _Hot, last: dict[str, int]) -> list[float]:
    """How long ago the events came in that were not there when this was last asked.

    A worker publishes within milliseconds of `collected_at`, so that is taken for the time of publication; what is
    told too late this way makes the figure worse, not better.
    """
    asked = " UNION ALL ".join(
        f"SELECT '{name}' AS name, stream_seq AS seq, toUnixTimestamp64Milli(collected_at) AS at_ms "
        f"FROM marketprism_hot.{name} WHERE stream_seq > {{{name}:UInt64}}"
        for name in last
    )
    rows = hot.rows(asked, **last)
    now_ms = time.time() * 1000
    for row in rows:
        last[row["name"]] = max(last[row["name"]], row["seq"])
    return [(now_ms - row["at_ms"]) / 1000 for row in rows]


@contextmanager
def _hot(running: list[Child], folder: Path, nats_url: str) -> Iterator[_Hot]:
    """`marketprism hot` as it is shipped, on a directory of its own; stopped with the others."""
    (port,) = free_ports(1)
    config = folder / "hot.yaml"
    document = {
        "exchanges": {"binance_spot": {"symbols": ["BTCUSDT"]}},
        "nats": {"servers": [nats_url]},
        "storage": {"hot": {"location": str(folder / "hot"), "port": port}},
    }
    config.write_text(yaml.safe_dump(document))
    env = {"MARKETPRISM_RUNTIME_DIR": str(folder / "run"), "MARKETPRISM_NATS_URL": nats_url}
    start_marketprism(running, folder, env, "hot", "--config", str(config))
    hot = _Hot(running[-1], port)
    children.wait_until(_is_reading(hot), "the hot store", running, _START_TIMEOUT_S)
    try:
        yield hot
    finally:
        children.stop_all([running.pop()])


def _is_reading(hot: _Hot) -> Callable[[], bool]:
    return lambda: bool(hot.stats().get("service_status", {}).get("nats_connected"))
