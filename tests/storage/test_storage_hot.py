"""The hot store as a process on a real NATS: everything stored once, whatever dies or fails meanwhile."""

import asyncio
import os
import random
import resource
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil
import pytest
from nats import connect
from natsbox import Cable, NatsBox, nats_server
from samples import NOW_MS, event, one_of_each, trade, trades
from storagebox import HotBox, dead_letters, publish, publish_raw

from chaos.pipeline import pipeline
from marketprism.events import Event, encode
from marketprism.simulator import SimulatorOptions
from marketprism.storage.schema import TABLES

pytestmark = pytest.mark.skipif(nats_server() is None, reason="no nats-server: run scripts/setup")


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[NatsBox]:
    box = NatsBox(tmp_path)
    box.start()
    yield box
    box.kill()


@pytest.fixture
def hot(nats: NatsBox, tmp_path: Path) -> Iterator[HotBox]:
    box = HotBox(tmp_path / "storage", nats.url, batch={"rows": 1000, "seconds": 0.05})
    yield box
    box.kill()


def test_every_type_is_stored_and_what_is_none_is_put_aside(nats: NatsBox, hot: HotBox) -> None:
    """Also: poison stops nobody, and a store that starts late skips nothing."""
    good = trades(2, 50)
    publish(nats.url, [event(payload, "1") for payload in one_of_each()])
    publish_raw(
        nats.url,
        [
            ("trade.binance.spot.BTC-USDT", b"not JSON", {"Nats-Msg-Id": "bad:1"}),
            ("trade.binance.spot.BTC-USDT", encode(trade(90)), None),
            ("trade.binance.spot.BTC-USDT", encode(trade(91, price="1e30")), {"Nats-Msg-Id": "bad:3"}),
            ("gap.a.b.c", encode(trade(92)), {"Nats-Msg-Id": "bad:4"}),
        ],
    )
    publish(nats.url, good)
    hot.start()
    hot.wait_healthy()
    hot.wait_stored("trades", 50)
    for table in TABLES:
        hot.wait_stored(table.name, 1)
    assert hot.stored("trades") == (50, 50)
    letters = asyncio.run(dead_letters(nats.url))
    reasons = {(subject, headers["Marketprism-Reason"][:17]) for subject, _, headers in letters}
    assert reasons == {
        ("dead.trade", "expected a trade:"),
        ("dead.trade", "expected a Nats-M"),
        ("dead.trade", "price: expected a"),
        ("dead.gap", "expected a gap: I"),
    }
    assert {payload for _, payload, _ in letters} >= {b"not JSON", encode(trade(91, price="1e30"))}
    assert hot.get("/stats")["message_stats"]["trade"]["dead"] == 3
    assert hot.stop() == 0


def test_killed_between_insert_and_acknowledgement(nats: NatsBox, hot: HotBox) -> None:
    """The acknowledgements are lost on the way, then the store is killed: all comes again, and nothing lies twice."""
    publish(nats.url, trades(1, 1))
    cable = Cable(nats.port)
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    asyncio.run_coroutine_threadsafe(cable.plug(), loop).result()
    hot.point_at(cable.url)
    hot.start()
    hot.wait_healthy()
    hot.wait_stored("trades", 1)
    cable.limit_bytes = cable.passed_bytes  # from now on nothing it says arrives; it has asked for 129
    publish(nats.url, trades(2, 100))
    hot.wait_stored("trades", 100)
    hot.kill()
    asyncio.run_coroutine_threadsafe(cable.cut(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    hot.point_at(nats.url)
    hot.start()
    hot.wait_healthy()
    hot.wait(lambda: hot.get("/stats")["message_stats"]["trade"]["repeated"] >= 99, "all delivered again", 60)
    assert hot.stored("trades") == (100, 100)


def test_a_backlog_is_read_without_a_pause(nats: NatsBox, tmp_path: Path) -> None:
    """A request for so many bytes ends without a word where they are used up exactly (nats-server 2.9.10): not seen
    before it runs out after 30 s."""

    def sized(number: int) -> Event:
        """Of 1024 bytes, as the server counts them."""
        bare = event(trade(number, trade_id=str(number)), str(number))
        headers = f"NATS/1.0\r\nNats-Msg-Id: {bare.id}\r\n\r\n"
        reply = (
            f"$JS.ACK.MARKET_DATA.marketprism_hot_trade.1.{number}.{number}.{time.time_ns()}.{5000 - number}"
        )
        missing = 1024 - len(bare.subject) - len(headers) - len(reply) - len(encode(bare.data))
        return event(trade(number, trade_id="0" * missing + str(number)), str(number))

    publish(nats.url, [sized(i) for i in range(1, 5001)])
    box = HotBox(tmp_path / "storage", nats.url, batch={"bytes": 1024**2, "seconds": 0.05})
    box.start()
    try:
        box.wait_healthy()
        box.wait(lambda: box.get("/stats")["message_stats"]["trade"]["stored"] == 5000, "all read", 25)
    finally:
        box.kill()


def test_what_somebody_else_took_from_the_stream_is_read_again(nats: NatsBox, hot: HotBox) -> None:
    """To acknowledge the last message is to acknowledge all before it, so a missing one must be noticed."""

    async def take() -> int:
        connection = await connect(nats.url)
        subscription = await connection.jetstream().pull_subscribe_bind(
            "marketprism_hot_trade", stream="MARKET_DATA"
        )
        taken = await subscription.fetch(5, timeout=20)
        await connection.close()
        return len(taken)

    hot.start()
    publish(nats.url, trades(1, 10))
    hot.wait_stored("trades", 10)
    with ThreadPoolExecutor(1) as thread:
        taken = thread.submit(asyncio.run, take())
        for first in range(11, 4000, 100):  # what waits is given to one and the other in turn
            publish(nats.url, trades(first, first + 99))
            if taken.done():
                break
        assert taken.result()
    publish(nats.url, trades(4000, 4010))
    hot.wait(lambda: "does another store read this stream?" in hot.log(), "told")
    hot.wait_stored("trades", first + 99 + 11)
    assert hot.stored("trades") == (first + 99 + 11, first + 99 + 11)


def test_killed_at_random(nats: NatsBox, hot: HotBox) -> None:
    """kill -9 of the store and of NATS while a backlog is stored: every event once, by plain counting."""
    chance = random.Random(6)
    publish(nats.url, trades(1, 12_000))
    for round_ in range(4):
        hot.start()
        hot.wait_healthy()
        time.sleep(chance.uniform(0.0, 0.4))
        hot.kill()
        if round_ == 1:
            nats.kill()
            nats.start()
        publish(nats.url, trades(12_000 + 500 * round_, 12_500 + 500 * round_))
    hot.start()
    hot.wait_stored("trades", 14_000)
    hot.wait(lambda: hot.get("/stats")["message_stats"]["trade"]["waiting"] == 0, "drained")
    assert hot.stored("trades") == (14_000, 14_000)


def test_an_event_published_twice_is_stored_once(nats: NatsBox, hot: HotBox) -> None:
    """A second collector may tell again what is older than the stream's window for duplicates."""
    hot.start()
    publish(nats.url, trades(1, 20), duplicate_window=0.1)
    hot.wait_healthy()
    hot.wait_stored("trades", 20)
    publish(nats.url, trades(11, 30), duplicate_window=0.1)
    hot.wait_stored("trades", 30)
    hot.wait(lambda: hot.get("/stats")["message_stats"]["trade"]["repeated"] == 10, "told again")
    assert hot.stored("trades") == (30, 30)


def test_nothing_is_lost_while_the_engine_fails_and_it_is_told(nats: NatsBox, hot: HotBox) -> None:
    """A disk without room: no file may grow any more, then it may again."""
    publish(nats.url, trades(1, 10))
    hot.start()
    hot.wait_healthy()
    hot.wait_stored("trades", 10)
    process = psutil.Process(hot.pid)
    process.rlimit(resource.RLIMIT_FSIZE, (16, resource.RLIM_INFINITY))
    publish(nats.url, trades(11, 3000))
    hot.wait(lambda: hot.get("/health").get("status") == "unhealthy", "told")
    assert hot.get("/health")["reasons"]
    process.rlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    hot.wait_healthy()
    hot.wait_stored("trades", 3000)
    assert hot.stored("trades") == (3000, 3000)
    assert hot.stop() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_disk_that_fills_up(nats: NatsBox, tmp_path: Path) -> None:
    """A disk of its own, and somebody else fills it: one line says so, and once there is room it goes on by itself."""
    box = HotBox(tmp_path / "storage", nats.url, location=str(tmp_path / "disk"), batch={"seconds": 0.05})
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size=48m tmpfs {disk} && exec "$@"'
    if subprocess.run(["unshare", "-m", "sh", "-c", mount, "sh", "true"], check=False).returncode:
        pytest.skip("mount namespaces are not allowed here")
    publish(nats.url, trades(1, 10))
    box.start("unshare", "-m", "sh", "-c", mount, "sh")
    try:
        box.wait_stored("trades", 10)
        filler = Path(f"/proc/{box.pid}/root{disk}/filler")
        fill(filler)
        publish(nats.url, [*trades(11, 3000), *(event(payload, "1") for payload in one_of_each())])
        box.wait(lambda: "the disk is full" in str(box.get("/health").get("reasons")), "told")
        time.sleep(3)  # a few attempts
        assert box.stored("trades")[1] < 3000
        assert box.log().count("the disk is full") == 1
        assert "Traceback" not in box.log()
        filler.unlink()
        box.wait_stored("trades", 3000)
        for table in TABLES:
            box.wait_stored(table.name, 1)
        assert box.stored("trades") == (3000, 3000)
    finally:
        box.kill()


def fill(filler: Path) -> None:
    """Write until the disk takes no more."""
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def test_what_is_old_is_dropped_where_there_is_no_cold_store(nats: NatsBox, tmp_path: Path) -> None:
    now_ms = int(time.time() * 1000)
    old = [event(trade(i, ts_ms=now_ms - i * 3_600_000), str(i)) for i in (1, 23, 30, 200)]
    publish(nats.url, old)
    kept = HotBox(tmp_path / "kept", nats.url, retention_days=1)
    location = str(tmp_path / "kept" / "hot")
    dropped = HotBox(tmp_path / "dropped", nats.url, location=location, retention_days=1, keep_cold=False)
    try:
        for _ in range(2):
            kept.start()
            kept.wait_stored("trades", 4)
            kept.stop()
        dropped.start()
        dropped.wait_healthy()
        dropped.wait(lambda: dropped.stored("trades") == (2, 2), "dropped")
        assert [r["trade_id"] for r in dropped.rows("SELECT trade_id FROM marketprism_hot.trades")] == [
            "1",
            "23",
        ]
    finally:
        kept.kill()
        dropped.kill()


def test_what_the_stream_dropped_before_it_was_stored_is_told(nats: NatsBox, hot: HotBox) -> None:
    """Away for so long that the stream's limits took what had not been read. Being told twice is one row."""
    publish(nats.url, [*trades(1, 20), *(event(payload, "1") for payload in one_of_each())], max_msgs=40)
    hot.start()
    hot.wait_stored("trades", 20)
    hot.wait_stored("gaps", 1)
    assert hot.stop() == 0
    publish(nats.url, trades(100, 200), max_msgs=40)
    hot.start()
    hot.wait_healthy()
    told = "marketprism_hot.gaps WHERE cause = 'stream_limit'"
    hot.wait(
        lambda: hot.rows(f"SELECT toInt32(count()) AS n FROM {told}") == [{"n": len(TABLES)}], "all told", 60
    )
    hot.wait_stored("trades", 60)
    (gap,) = hot.rows(
        "SELECT exchange, market_type, symbol, instrument_id, toInt32(stream_seq) AS stream_seq, "
        "toInt32(toUnixTimestamp64Milli(assumeNotNull(last_time_before)) - {now:Int64}) AS since_ms, "
        f"first_time_after > now() - 600 AS until_lately FROM {told} AND affected_data_type = 'trade'",
        now=str(NOW_MS),
    )
    assert gap == {
        "exchange": "binance",
        "market_type": "spot",
        "symbol": "BTC-USDT",
        "instrument_id": "BTCUSDT",
        "stream_seq": 91,
        "since_ms": 2,
        "until_lately": True,
    }
    assert "the stream dropped what was not stored yet, 31 to 91" in hot.log()
    hot.kill()
    hot.start()
    hot.wait_healthy()
    assert hot.rows(f"SELECT toInt32(count()) AS n FROM {told}") == [{"n": len(TABLES)}]


def test_queries_from_an_own_address_are_local(nats: NatsBox, tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: which address would be ours?
        except OSError:
            pytest.skip("this machine has no address but loopback")
        host = probe.getsockname()[0]
    publish(nats.url, trades(1, 1))
    box = HotBox(tmp_path / "storage", nats.url, host=host)
    box.start()
    try:
        box.wait_stored("trades", 1)
    finally:
        box.kill()


def test_while_nats_is_away_it_waits_and_goes_on(nats: NatsBox, hot: HotBox) -> None:
    hot.start()
    publish(nats.url, trades(1, 10))
    hot.wait_stored("trades", 10)
    nats.kill()
    hot.wait(lambda: not hot.get("/health").get("nats_connected", True), "NATS is missed")
    assert hot.get("/health")["status"] == "unhealthy"
    nats.start()
    publish(nats.url, trades(11, 20))
    hot.wait_stored("trades", 20)
    assert hot.stored("trades") == (20, 20)


def test_queries_read_tables_and_nothing_else(nats: NatsBox, hot: HotBox, tmp_path: Path) -> None:
    nasty = "it's \"x\"'; DROP TABLE t -- \\ \\n \t \n {s:String}"
    publish(nats.url, [event(trade(1, symbol=nasty), "1"), *trades(2, 3)])
    hot.start()
    hot.wait_healthy()
    hot.wait_stored("trades", 3)
    sql = "SELECT symbol FROM marketprism_hot.trades WHERE symbol = {s:String}"
    assert hot.rows(sql, s=nasty) == [{"symbol": nasty}]
    for hostile in ("x' OR 1=1 --", "\\' OR 1=1 --", "{s:String}", "x' UNION SELECT '1", "\\"):
        assert hot.rows(sql, s=hostile) == []
    secret, target = tmp_path / "secret", tmp_path / "written"
    secret.write_text("x")
    for statement in (
        f"SELECT file('{secret}')",
        f"SELECT `file`('{secret}')",
        f"SELECT * FROM file('{secret}', 'LineAsString')",
        f"SELECT * FROM `{secret}`",
        "SELECT * FROM python('engine')",
        "SELECT * FROM url('http://127.0.0.1:1/x', 'LineAsString')",
        "SELECT * FROM s3('http://127.0.0.1:1/bucket/x', 'LineAsString')",
        "SELECT * FROM remote('127.0.0.1:1', system.one)",
        f"SELECT 1 INTO OUTFILE '{target}'",
        f"SELECT 1 /* */ INTO/**/OUTFILE '{target}' FORMAT CSV",
        f"(SELECT 1) INTO OUTFILE '{target}'",
        f"EXPLAIN SELECT 1 INTO OUTFILE '{target}'",
        "DROP TABLE marketprism_hot.trades",
        "INSERT INTO marketprism_hot.trades (symbol) VALUES ('x')",
        "KILL QUERY WHERE 1",
        "SYSTEM SHUTDOWN",
        "SET readonly = 0",
        "SELECT 1 SETTINGS readonly = 0",
        "SELECT 1; DROP TABLE marketprism_hot.trades",
        "",
        "\0",
    ):
        status, body = hot.query(statement)
        assert status == 400, (statement, body)
        assert body.count(b"\n") == 1
    assert not target.exists()
    assert hot.stored("trades") == (3, 3)
    assert hot.query("SELECT 1 AS a", "CSVWithNames") == (200, b'"a"\n1\n')
    assert hot.query("SELECT 1", "Null")[0] == 400
    assert hot.rows("SELECT count() AS n FROM marketprism_hot.trades WHERE symbol = 'INTO OUTFILE '")


def test_changes_go_over_a_socket_of_this_user_only(nats: NatsBox, hot: HotBox) -> None:
    publish(nats.url, trades(1, 10))
    hot.start()
    hot.wait_healthy()
    hot.wait_stored("trades", 10)
    assert stat.S_IMODE(hot.socket.stat().st_mode) == 0o600
    guard = "SELECT toString(count()) FROM marketprism_hot.trades WHERE symbol = {s:String}"
    order = {"guard": guard, "parameters": {"s": "BTC-USDT"}}
    truncate = "TRUNCATE TABLE marketprism_hot.trades"
    assert hot.change(truncate, expected=["9"], **order) == (409, {"done": False, "found": ["10"]})
    assert hot.stored("trades") == (10, 10)
    assert hot.change(truncate, expected=["10"], **order) == (200, {"done": True})
    assert hot.rows("SELECT 1 FROM marketprism_hot.trades") == []
    assert hot.change("NONSENSE")[0] == 400
    assert hot.change("SELECT 1", unknown=1)[0] == 400


def test_a_second_store_of_the_same_directory_says_so_in_one_line(nats: NatsBox, hot: HotBox) -> None:
    publish(nats.url, trades(1, 1))
    hot.start()
    hot.wait_healthy()
    document = (hot.folder / "hot.yaml").read_text().replace(f"port: {hot.port}", "port: 0")
    (hot.folder / "second.yaml").write_text(document)
    command = [sys.executable, "-m", "marketprism", "hot", "--config", str(hot.folder / "second.yaml")]
    second = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert second.returncode == 1
    assert "another process has it open" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_server_that_is_away_is_waited_for(nats: NatsBox, tmp_path: Path) -> None:
    box = HotBox(tmp_path / "storage", nats.url, location="http://127.0.0.1:1")
    box.start()
    try:
        box.wait(lambda: "ClickHouse at" in str(box.get("/health").get("reasons")), "told")
        assert box.get("/health")["status"] == "unhealthy"
        assert box.query("SELECT 1")[0] == 400
        assert box.stop() == 0
    finally:
        box.kill()


def test_the_collector_needs_none_of_it() -> None:
    code = (
        "import marketprism.worker.worker, marketprism.launcher, sys; "
        "print([m for m in ('chdb', 'pyarrow', 'clickhouse_connect') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_simulator_to_table(tmp_path: Path) -> None:
    """Simulator, workers, NATS and the hot store, which is killed on the way: the tables equal the stream."""
    with pipeline(tmp_path, SimulatorOptions(seed=6, rate=200)) as p:
        hot = HotBox(tmp_path / "storage", p.nats.url, batch={"seconds": 0.2})
        hot.start()
        p.run("launcher")
        p.wait(lambda: p.health().get("status") == "healthy", "all five workers healthy", 40)
        try:
            hot.wait_healthy()
            hot.wait_stored("orderbook_deltas", 500)
            hot.kill()
            hot.start()
            hot.wait_healthy()
            time.sleep(2)  # the markets' time
            p.stop_workers()
            for table in TABLES:
                held = p.count(f"{table.data_type}.>")
                hot.wait(lambda t=table.name, n=held: hot.stored(t)[1] >= n, f"{held} in {table.name}", 60)
                assert hot.stored(table.name) == (held, held), table.name
            deltas = [msgspec.json.decode(data) for _, data in p.messages("orderbook_delta.okx.>")]
            rows = hot.rows(
                "SELECT bids, asks FROM marketprism_hot.orderbook_deltas WHERE exchange = 'okx' ORDER BY stream_seq"
            )
            assert [[d["bids"], d["asks"]] for d in deltas] == [
                [msgspec.json.decode(r["bids"]), msgspec.json.decode(r["asks"])] for r in rows
            ]
        finally:
            hot.kill()
