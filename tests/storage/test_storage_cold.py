"""Windows from hot to cold: all of it, once, verified, whatever comes late, comes again, breaks or is killed."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pyarrow as pa
import pytest
import yaml
from coldbox import DAY_S, HOUR_MS, OLD_MS, ColdBox, Served, in_files, in_tables, killed_round
from natsbox import NatsBox, nats_server
from pyarrow import parquet
from samples import event, one_of_each, trade
from storagebox import HotBox, publish

from marketprism.events import Trade
from marketprism.storage import parquet as parquet_store
from marketprism.storage import source
from marketprism.storage.asking import HotAwayError, HotHttp
from marketprism.storage.engine import Engine
from marketprism.storage.mover import ColdStore, Mover
from marketprism.storage.parquet import ParquetStore
from marketprism.storage.schema import TABLES, Layout, migrate
from marketprism.storage.server import ServerStore, _windows_table
from marketprism.storage.windows import Window

WINDOW = Window(OLD_MS // 1000, "trades")
NOW_S = OLD_MS / 1000 + 30 * DAY_S
_numbers = count(1)


@pytest.fixture
def hot(embedded: Engine, tmp_path: Path) -> Iterator[Served]:
    layout = Layout(f"hot_{os.getpid()}_{next(_numbers)}", "hot")
    migrate(embedded, layout)
    served = Served(embedded, layout, tmp_path)
    yield served
    served.close()
    embedded.command(f"DROP DATABASE `{layout.database}`")


@dataclass
class Box:
    """A cold store of one kind, and how to read what it holds."""

    store: ColdStore
    rows: Callable[..., list[dict[str, Any]]]
    root: Path

    def mover(self, hot: Served, *, now_s: float = NOW_S, retention_s: float = DAY_S) -> Mover:
        return Mover(hot.source, self.store, delay_s=600, retention_s=retention_s, clock=lambda: now_s)


@pytest.fixture(params=["parquet", "tables", "server"])
def cold(request: pytest.FixtureRequest, embedded: Engine, tmp_path: Path) -> Iterator[Box]:
    """Parquet files; the tables of a server, on the embedded engine; and on a server where there is one."""
    if request.param == "parquet":
        yield _files_box(embedded, tmp_path / "cold")
        return
    engine: Engine = request.getfixturevalue("embedded" if request.param == "tables" else "server")
    layout = Layout(f"cold_{os.getpid()}_{next(_numbers)}", "cold")
    yield Box(
        ServerStore(engine, layout, "hot"), lambda table="trades": in_tables(engine, layout, table), tmp_path
    )
    engine.command(f"DROP DATABASE `{layout.database}`")


@pytest.fixture
def files(embedded: Engine, tmp_path: Path) -> Box:
    """Parquet files only."""
    return _files_box(embedded, tmp_path / "cold")


def _files_box(engine: Engine, root: Path) -> Box:
    return Box(ParquetStore(root, engine, "hot"), lambda table="trades": in_files(engine, root, table), root)


def old_trades(first: int, last: int, **changed: Any) -> list[Trade]:
    """Trades of the window."""
    return [trade(i, ts_ms=OLD_MS + i, trade_ts_ms=OLD_MS + i, **changed) for i in range(first, last + 1)]


def moved(mover: Mover) -> tuple[int, int]:
    """A round: how many windows were moved and dropped by it. Nothing may fail."""
    before = (mover.counts.moved, mover.counts.dropped)
    mover.counts.failures.clear()
    mover.round()
    assert list(mover.counts.failures) == []
    return mover.counts.moved - before[0], mover.counts.dropped - before[1]


def test_every_column_of_every_table_arrives_exactly(hot: Served, cold: Box) -> None:
    hot.put([msgspec.structs.replace(p, ts_ms=OLD_MS + 5, collected_ts_ms=OLD_MS + 9) for p in one_of_each()])
    before = {t.name: hot.rows(t.name) for t in TABLES}
    assert all(before.values())
    mover = cold.mover(hot)
    assert moved(mover) == (len(TABLES), len(TABLES))
    assert {t.name: cold.rows(t.name) for t in TABLES} == before
    assert not any(hot.rows(t.name) for t in TABLES)
    assert moved(mover) == (0, 0)
    assert mover._manifests == {}  # nothing is kept of what is gone


def test_hot_keeps_for_the_retention_what_cold_has(hot: Served, cold: Box) -> None:
    hot.put(old_trades(1, 30))
    before = hot.rows()
    assert moved(cold.mover(hot, now_s=WINDOW.end_s + 599)) == (0, 0)
    mover = cold.mover(hot, now_s=WINDOW.end_s + 601)
    assert moved(mover) == (1, 0)
    assert moved(mover) == (0, 0)
    assert hot.rows() == cold.rows() == before
    assert moved(cold.mover(hot, now_s=WINDOW.end_s + DAY_S - 1)) == (0, 0)
    assert moved(cold.mover(hot, now_s=WINDOW.end_s + DAY_S)) == (0, 1)
    assert (hot.rows(), cold.rows()) == ([], before)


def test_late_rows_are_moved_too(hot: Served, cold: Box) -> None:
    mover = cold.mover(hot, retention_s=365 * DAY_S)
    hot.put(old_trades(1, 30))
    assert moved(mover) == (1, 0)
    hot.put(old_trades(31, 33), 31)
    assert moved(mover) == (1, 0)
    assert len(cold.rows()) == 33
    assert cold.rows() == hot.rows()


def test_rows_that_come_after_the_window_was_dropped_are_added_each_once(hot: Served, cold: Box) -> None:
    mover = cold.mover(hot)
    ids = hot.put(old_trades(1, 30))
    assert moved(mover) == (1, 1)
    hot.put(old_trades(25, 34), 25)  # the first six once more
    assert moved(mover) == (1, 1)
    assert hot.rows() == []
    found = [r["event_id"] for r in cold.rows()]
    assert sorted(found) == sorted({*ids, *found})
    assert len(found) == 34


def test_an_hour_with_more_events_than_fit_into_memory_at_once(
    hot: Served, files: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_store, "PART_ROWS", 7)
    hot.put(old_trades(1, 30))
    assert moved(files.mover(hot, now_s=WINDOW.end_s + 601)) == (1, 0)
    hot.put(old_trades(31, 33), 31)
    assert moved(files.mover(hot)) == (1, 1)  # all of them once more, and three
    hot.put(old_trades(25, 50), 25)
    assert moved(files.mover(hot)) == (1, 1)
    assert sorted(int(r["trade_id"]) for r in files.rows()) == list(range(1, 51))


def test_a_hot_store_made_anew_takes_nothing_from_cold(hot: Served, cold: Box) -> None:
    """It has the same names, the same block numbers and fewer rows."""
    mover = cold.mover(hot, retention_s=365 * DAY_S)
    hot.put(old_trades(1, 30))
    assert moved(mover) == (1, 0)
    (state,) = hot.source.windows().values()
    table = hot.layout.table("trades")
    hot.engine.command(f"CREATE TABLE {table[:-1]}_new` AS {table}")
    hot.engine.command(f"EXCHANGE TABLES {table[:-1]}_new` AND {table}")
    hot.engine.command(f"DROP TABLE {table[:-1]}_new`")
    for number in range(30):
        hot.put(old_trades(40, 40), 40 + number % 2)
    (anew,) = hot.source.windows().values()
    assert anew != state
    assert moved(mover) == (1, 0)
    assert len(cold.rows()) == 32


def test_rows_that_lie_twice_in_hot_are_once_in_cold(hot: Served, cold: Box) -> None:
    hot.put(old_trades(1, 10))
    rows = hot.engine.query(f"SELECT * EXCEPT (data_source) FROM {hot.layout.table('trades')}")
    hot.put_rows("trades", rows)
    assert moved(cold.mover(hot)) == (1, 1)
    assert len(cold.rows()) == 10


def test_rows_that_come_while_a_window_is_copied(
    hot: Served, cold: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    hot.put(old_trades(1, 30))
    digest = hot.source.digest

    def late(window: Window) -> Any:
        monkeypatch.undo()
        hot.put(old_trades(31, 31), 31)
        return digest(window)

    monkeypatch.setattr(hot.source, "digest", late)
    mover = cold.mover(hot)
    assert moved(mover) == (0, 0)
    assert len(hot.rows()) == 31
    assert moved(mover) == (1, 1)
    assert len(cold.rows()) == 31


def test_rows_that_come_after_the_verification_stop_the_drop(
    hot: Served, cold: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    hot.put(old_trades(1, 30))
    drop = hot.source.drop

    def late(window: Window, state: str) -> bool:
        monkeypatch.undo()
        hot.put(old_trades(31, 31), 31)
        return drop(window, state)

    monkeypatch.setattr(hot.source, "drop", late)
    mover = cold.mover(hot)
    assert moved(mover) == (1, 0)
    assert len(hot.rows()) == 31
    assert moved(mover) == (1, 1)
    assert (hot.rows(), len(cold.rows())) == ([], 31)


def test_any_text_in_any_field_survives_the_pages(
    hot: Served, cold: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names and ids are values, never SQL; pages end anywhere, also between events of one millisecond."""
    monkeypatch.setattr(source, "PAGE_ROWS", 2)
    texts = [
        "'",
        '"',
        "\\",
        "\\'",
        "\\N",
        "\t",
        "\n",
        "\0",
        "%",
        "{start:Int64}",
        "'); DROP TABLE trades; --",
        "é漢",
        "",
    ]
    payloads = [trade(i, trade_id=t, symbol=t or "X", ts_ms=OLD_MS) for i, t in enumerate(texts)]
    for number, payload in enumerate(payloads):
        hot.put([payload], number)
    rows = hot.engine.query(f"SELECT * EXCEPT (data_source) FROM {hot.layout.table('trades')}")
    for number, text in enumerate(texts):
        renamed = pa.array([f"{text}:{number}"] * len(rows))
        one = rows.set_column(rows.column_names.index("event_id"), "event_id", renamed)
        hot.put_rows("trades", one)
    before = hot.rows()
    assert len(before) == len(texts) * (len(texts) + 1)
    assert moved(cold.mover(hot)) == (1, 1)
    assert cold.rows() == before


def test_many_hours_and_tables_the_oldest_first(hot: Served, cold: Box) -> None:
    hours = [OLD_MS + i * HOUR_MS for i in (-30, 0, 1, 25)]
    hot.put([trade(i, ts_ms=at, trade_ts_ms=at) for i, at in enumerate(hours)])
    mover = cold.mover(hot)
    mover.round()
    assert (mover.counts.moved, mover.counts.dropped) == (4, 4)
    assert len(cold.rows()) == 4


def test_who_has_much_to_drop_looks_for_what_is_due_in_between(hot: Served, files: Box) -> None:
    hot.put([trade(i, ts_ms=OLD_MS + i * HOUR_MS, trade_ts_ms=OLD_MS + i * HOUR_MS) for i in range(3)])
    times = count(int(NOW_S), 70)  # each look at the clock is more than a minute later
    mover = Mover(hot.source, files.store, delay_s=0, retention_s=0, clock=lambda: next(times))
    assert moved(mover) == (3, 1)
    hot.put(old_trades(4, 4), 4)
    assert moved(mover) == (1, 1)


def test_lag_and_backlog(hot: Served, files: Box, tmp_path: Path) -> None:
    """An hour of months ago that was stored just now is not late since then."""
    hot.put(old_trades(1, 3))
    (files.root / "trades").write_text("in the way")
    (held,) = hot.source.windows().values()
    assert held.since_s > WINDOW.end_s + DAY_S
    mover = files.mover(hot, now_s=held.since_s + 20 * 60)
    mover.round()
    assert mover.backlog == {"trades": 1}
    assert mover.lag_minutes("trades") == 20
    assert mover.lag_minutes("gaps") == 0
    assert len(mover.failing) == 1
    assert "trades 2026-01-01 07:00" in mover.failing[0]
    assert len(hot.rows()) == 3
    (files.root / "trades").unlink()
    mover.round()
    assert (mover.backlog, mover.lag_minutes("trades"), mover.failing) == ({}, 0, [])


@pytest.mark.parametrize("damage", ["removed", "cut", "other rows"])
def test_hot_keeps_what_cold_has_lost(damage: str, hot: Served, files: Box) -> None:
    hot.put(old_trades(1, 30))
    assert moved(files.mover(hot, now_s=WINDOW.end_s + 601)) == (1, 0)
    (path,) = files.root.glob("trades/*/*.parquet")
    if damage == "removed":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        table = parquet.read_table(path)
        parquet.write_table(table.slice(1), path)
    mover = files.mover(hot)
    mover.round()
    assert mover.counts.dropped == 0
    assert mover.failing
    assert len(hot.rows()) == 30
    if damage == "cut":  # nobody can say what it held: a person has to
        assert str(path) in mover.failing[0]
        path.unlink()
        mover.round()
    assert moved(mover) == (1, 1)
    assert (hot.rows(), len(files.rows())) == ([], 30)


def test_a_manifest_that_cannot_be_read_is_made_again(hot: Served, files: Box) -> None:
    hot.put(old_trades(1, 30))
    assert moved(files.mover(hot, now_s=WINDOW.end_s + 601)) == (1, 0)
    (path,) = files.root.glob("trades/*/*.json")
    path.write_text("{")
    assert moved(files.mover(hot)) == (1, 1)
    assert msgspec.json.decode(path.read_bytes())["rows"] == 30
    assert len(files.rows()) == 30


def test_a_hot_store_that_is_away(hot: Served, cold: Box, tmp_path: Path) -> None:
    away = source.HotSource(HotHttp("127.0.0.1", 1), tmp_path / "none", hot.layout)
    mover = Mover(away, cold.store, delay_s=0, retention_s=0)
    mover.round()
    assert "start it with: marketprism hot" in mover.hot_trouble
    assert mover.cold_trouble == ""
    with pytest.raises(HotAwayError, match="as this user"):
        away.drop(WINDOW, "")


def test_killed_at_every_step_nothing_is_lost_or_twice(hot: Served, files: Box) -> None:
    for step in count(1):
        at_ms = OLD_MS + step * HOUR_MS
        ids = set(hot.put([trade(i, ts_ms=at_ms, trade_ts_ms=at_ms) for i in range(50)], step * 1000))
        status = killed_round(hot, files.root, step)
        held = [r["event_id"] for r in files.rows()]
        assert ids <= {*held, *(r["event_id"] for r in hot.rows())}, f"lost at step {step}"
        assert len(held) == len(set(held)), f"twice at step {step}"
        if status == 0:
            break
        assert status == -signal.SIGKILL
        moved(files.mover(hot, retention_s=0))
        assert hot.rows() == []
        assert len(files.rows()) == step * 50
    assert step > 12
    assert hot.rows() == []
    assert len(files.rows()) == step * 50


def test_the_table_of_windows_is_what_clickhouse_reads(embedded: Engine) -> None:
    """A cluster's statements, too, which no test can carry out."""
    for cluster in ("", "all"):
        for statement in _windows_table(Layout("cold", "cold", cluster)):
            assert "ReplacingMergeTree" in embedded.value(
                "SELECT formatQuery({sql:String})", {"sql": statement}
            )


@pytest.mark.skipif(nats_server() is None, reason="no nats-server: run scripts/setup")
def test_as_a_process_with_a_full_disk_and_no_hot_at_first(tmp_path: Path, embedded: Engine) -> None:
    nats = NatsBox(tmp_path)
    nats.start()
    hot = HotBox(tmp_path / "storage", nats.url, batch={"seconds": 0.05})
    cold = ColdBox(hot)
    try:
        publish(nats.url, [event(p, str(i)) for i, p in enumerate(old_trades(1, 500))])
        cold.start()
        cold.wait(
            lambda: (
                cold.get("/health")[0] == 503 and "start it with: marketprism hot" in cold.get("/health")[1]
            ),
            "told that hot is away",
        )
        _fill_disk(cold, 4096)
        hot.start()
        hot.wait_stored("trades", 500)
        cold.wait(lambda: "File too large" in cold.get("/health")[1], "told that nothing can be written")
        assert hot.stored("trades") == (500, 500)
        _fill_disk(cold, resource.RLIM_INFINITY)
        cold.wait(lambda: len(in_files(embedded, cold.root)) == 500, "moved")
        cold.wait(lambda: hot.stored("trades") == (0, 0), "dropped")
        cold.wait(lambda: json.loads(cold.get("/health")[1])["status"] == "healthy", "healthy")
        _check_pages(cold)
        assert cold.stop() == 0
    finally:
        cold.kill()
        hot.kill()
        nats.kill()


def _fill_disk(cold: ColdBox, room_bytes: int) -> None:
    """No file can grow beyond that."""
    psutil.Process(cold.pid).rlimit(psutil.RLIMIT_FSIZE, (room_bytes, resource.RLIM_INFINITY))


def _check_pages(cold: ColdBox) -> None:
    """The earlier system's fields and names."""
    health, stats = (json.loads(cold.get(f"/{page}")[1]) for page in ("health", "stats"))
    assert health["hot_clickhouse"] == health["cold_clickhouse"] == "healthy"
    assert health["replication"].keys() == {
        "enabled",
        "cleanup_enabled",
        "impl",
        "cross_instance",
        "dependency_warnings",
    }
    assert (stats["success_windows"], stats["dropped_windows"], stats["moved_rows"]) == (1, 1, 500)
    assert stats["failed_windows"] >= 1
    assert stats["errors_count_1h"] >= 1
    assert stats["last_error"] == stats["recent_errors"][-1]["message"]
    assert stats["lag_minutes"]["trades"] == 0
    status, metrics = cold.get("/metrics")
    assert status == 200
    for line in (
        "marketprism_cold_success_windows_total 1.0",
        'marketprism_cold_replication_lag_minutes{table="trades"} 0.0',
        'marketprism_cold_backlog_windows{table="trades"} 0.0',
        "marketprism_cold_replication_enabled 1.0",
    ):
        assert line in metrics


def test_what_is_wrong_is_said_in_one_line(tmp_path: Path) -> None:
    for cold, hot, says in (
        ({"enabled": False}, {"port": 1}, (78, "storage.cold.enabled")),
        ({}, {"port": 0}, (78, "storage.hot.port")),
        ({"location": "/proc/none", "port": 0}, {"port": 1}, (1, "/proc/none")),
    ):
        document = {
            "exchanges": {"binance_spot": {"symbols": ["BTCUSDT"]}},
            "storage": {"hot": hot, "cold": cold},
        }
        (tmp_path / "cold.yaml").write_text(yaml.safe_dump(document))
        command = [sys.executable, "-m", "marketprism", "cold", "--config", str(tmp_path / "cold.yaml")]
        environment = {k: v for k, v in os.environ.items() if k != "MARKETPRISM_LOG_DIR"}
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, env=environment
        )
        assert (run.returncode, says[1] in run.stderr) == (says[0], True), run.stderr
        assert "Traceback" not in run.stderr
