"""`query`, `book` and `quality` as commands: a hot store as a process, hours of it in files, and their answers."""

import csv
import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from natsbox import NatsBox, nats_server
from samples import event, one_of_each, trades
from storagebox import ROOT, HotBox, publish
from storedbook import BEGIN_MS, Market

from marketprism.events import Event, OrderBookDelta
from marketprism.storage.asking import HotHttp, ReadingError

pytestmark = pytest.mark.skipif(nats_server() is None, reason="no nats-server: run scripts/setup")
ODD = 'it\'s \\ a "symbol"\t{x:String}\n; DROP TABLE trades --'


class Command:
    """`marketprism …` against a hot store."""

    def __init__(self, hot: HotBox) -> None:
        self.hot = hot

    def __call__(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "marketprism", *words, "--config", str(self.hot.folder / "hot.yaml")]
        return subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, timeout=60, check=False)

    def right(self, *words: str) -> bytes:
        """What it printed; it must have done it."""
        done = self(*words)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def wrong(self, *words: str) -> str:
        """The one line it said instead of doing it."""
        done = self(*words)
        said = [line for line in done.stderr.decode().splitlines() if "warnings; see" not in line]
        assert (done.returncode, len(said)) == (1, 1), done.stderr.decode()
        return said[0]


@pytest.fixture(scope="module")
def market() -> Market:
    """Four minutes around a full hour."""
    made = Market()
    made.change([["10", "1"]], [["11", "1.5"]], publish=False)
    made.whole()
    for n in range(1, 240):
        made.now_ms += 1000
        made.change([["10", str(n)]], [])
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, market: Market) -> Iterator[Command]:
    """A hot store that holds a bit of everything."""
    folder = tmp_path_factory.mktemp("query")
    nats = NatsBox(folder)
    nats.start()
    hot = HotBox(folder / "storage", nats.url, batch={"seconds": 0.05})
    config = hot.folder / "hot.yaml"
    document = yaml.safe_load(config.read_text())
    document["storage"]["cold"] = {"location": str(folder / "cold")}
    config.write_text(yaml.safe_dump(document))
    publish(nats.url, [*trades(2, 3000), *(event(p, "1") for p in one_of_each())])
    publish(nats.url, [_event(identity, payload) for _, identity, payload in market.events])
    hot.start()
    hot.wait_stored("trades", 3000)
    hot.wait_stored("orderbook_deltas", len(market.events) + 1)
    hot.wait_stored("gaps", 1)
    yield Command(hot)
    hot.kill()
    nats.kill()


def _event(identity: str, payload: Any) -> Event:
    assert isinstance(payload, OrderBookDelta)
    return Event.of(
        f"orderbook_delta.{payload.exchange}.{payload.market_type}.{payload.symbol}", identity, payload
    )


TRADES = "SELECT trade_id, price, quantity FROM marketprism_hot.trades WHERE trade_id < '12' ORDER BY trade_id LIMIT 3"


def test_an_answer_comes_in_every_form(run: Command, tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet as pq

    table = run.right("query", TRADES).decode()
    assert "trade_id" in table
    assert "84232.2" in table
    rows = list(csv.DictReader(io.StringIO(run.right("query", TRADES, "--format", "csv").decode())))
    assert [row["trade_id"] for row in rows] == ["1", "10", "100"]
    lines = run.right("query", TRADES, "--format", "json").splitlines()
    assert [json.loads(line)["trade_id"] for line in lines] == ["1", "10", "100"]
    arrow = pa.ipc.open_stream(run.right("query", TRADES, "--format", "arrow")).read_all()
    file = tmp_path / "trades.parquet"
    assert run.right("query", TRADES, "--format", "parquet", "--output", str(file)) == b""
    parquet = pq.read_table(file)
    for found in (arrow, parquet):
        assert found["trade_id"].to_pylist() == ["1", "10", "100"]
        assert str(found["price"][0].as_py()) == "84232.200000000000000000"
        assert found["quantity"].type == pa.decimal128(38, 18)
    assert [f.name for f in tmp_path.iterdir()] == ["trades.parquet"]


def test_a_value_is_never_read_as_sql(run: Command) -> None:
    echo = "SELECT {x:String} AS x, count() AS n FROM marketprism_hot.trades WHERE symbol = {x:String}"
    for value in (ODD, "BTC-USDT", "' OR 1 = 1 --", "\\'", "%27", "a&param_y=b"):
        (line,) = run.right("query", echo, "--format", "json", "--param", f"x={value}").splitlines()
        found = json.loads(line)
        assert (found["x"], int(found["n"])) == (value, 3000 if value == "BTC-USDT" else 0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("SELEC 1",), "SELEC"),
        (("SELECT nothing FROM marketprism_hot.trades",), "nothing"),
        (("DROP TABLE marketprism_hot.trades",), "expected a SELECT"),
        (("SELECT {x:String}",), "x"),
        (("SELECT 1", "--param", "x"), "NAME=VALUE"),
        (("SELECT 1", "--cold"), "no cold store"),
        (("SELECT 1", "--output", "/nowhere/x"), "/nowhere"),
        (("SELECT throwIf(number = 9) FROM numbers(10)", "--format", "csv"), "throwIf"),
    ],
)
def test_what_cannot_be_answered_is_told_in_a_line(run: Command, words: tuple[str, ...], said: str) -> None:
    assert said in run.wrong("query", *words)


def test_a_hot_store_that_is_away_is_told(run: Command) -> None:
    away = HotHttp("127.0.0.1", 1)
    with pytest.raises(ReadingError, match="start it with: marketprism hot"):
        away.query("SELECT 1", {})


def test_a_book_is_printed_and_quality_too(run: Command, market: Market, tmp_path: Path) -> None:
    """First all hot; then, with the first hour in a file only, the same."""
    at, spans = "2026-11-23T07:01:20.500Z", ("--from", "2026-11-23T06:58", "--to", "2026-11-23T07:02")
    asked = ("book", "--exchange", "binance_spot", "--symbol", "BTCUSDT", "--at", at)
    first = json.loads(run.right(*asked, "--format", "json"))
    assert (first["bids"], first["asks"]) == ([["10", "200"]], [["11", "1.5"]])
    assert (first["ts_ms"], first["last_update_id"]) == (BEGIN_MS + 200_000, 103 + 3 * 200)
    assert "last change 2026-11-23 07:01:20.000" in run.right(*asked).decode()
    picture = tmp_path / "q.png"
    before = _of(run.right("quality", *spans, "--format", "json", "--png", str(picture)))
    assert picture.read_bytes().startswith(b"\x89PNG")
    book = before["orderbook_delta"]
    assert (book["events"], book["gaps"], book["book_live_ms"], book["book_breaks"]) == (241, [], 240_000, 0)
    assert (before["trade"]["duplicates"], before["trade"]["events"]) == (0, 3000)

    _move_away(run.hot, "orderbook_deltas")
    assert json.loads(run.right(*asked, "--format", "json")) == first
    assert _of(run.right("quality", *spans, "--format", "json")) == before
    assert b"orderbook_delta" in run.right("quality", *spans)
    count = "SELECT count() AS n, max(is_maker) AS m FROM marketprism_cold."
    assert json.loads(run.right("query", f"{count}trades", "--cold", "--format", "json"))["n"] in (0, "0")
    rows = "SELECT toInt32(count()) AS n FROM marketprism_cold.orderbook_deltas"
    assert json.loads(run.right("query", rows, "--cold", "--format", "json")) == {"n": 121}
    assert "--market-type" not in run.wrong(*asked[:-1], "2026-11-01")
    file = "file('/etc/hostname', 'LineAsString')"
    assert "not served here" in run.wrong("query", f"SELECT * FROM {file}", "--cold")
    assert "expected a SELECT" in run.wrong("query", f"INSERT INTO FUNCTION {file} SELECT 'x'", "--cold")


def _of(said: bytes) -> dict[str, Any]:
    return {line["data_type"]: line for line in json.loads(said)["data"]}


def _move_away(hot: HotBox, table: str) -> None:
    """The hour of BEGIN_MS into a file where the cold store has it, and out of the hot one."""
    import pyarrow as pa
    from pyarrow import parquet as pq

    where = "timestamp < toDateTime64('2026-11-23 07:00:00', 3, 'UTC') AND symbol = 'BTC-USDT'"
    status, body = hot.query(f"SELECT * FROM marketprism_hot.{table} WHERE {where}", "ArrowStream")
    assert status == 200
    folder = hot.folder.parent / "cold" / table / "day=2026-11-23"
    folder.mkdir(parents=True)
    pq.write_table(pa.ipc.open_stream(body).read_all(), folder / "06.parquet", compression="zstd")
    hour = {"hour": "2026-11-23 06:00:00"}
    done = hot.change(f"ALTER TABLE marketprism_hot.{table} DROP PARTITION {{hour:String}}", parameters=hour)
    assert done == (200, {"done": True})


def test_a_value_goes_through_the_client_as_it_is(run: Command) -> None:
    found = HotHttp("0.0.0.0", run.hot.port).query("SELECT toInt32(1) AS a, {b:String} AS b", {"b": ODD})
    assert found.to_pylist() == [{"a": 1, "b": ODD}]


def test_who_asks_and_goes_away_is_no_defect(run: Command) -> None:
    """Before the answer, in the middle of it, and just before its last byte; the next ones get theirs."""
    before = run.hot.log().count("Traceback")
    for rows, read in ((10, 0), (10_000_000, 0), (10_000_000, 100_000)):
        for _ in range(3):
            body = f"SELECT number FROM numbers({rows})".encode()
            with socket.create_connection(("127.0.0.1", run.hot.port)) as asking:
                head = f"POST /query?format=JSONEachRow HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
                asking.sendall(head.encode() + body)
                if read:
                    asking.recv(read)
        assert run.hot.rows("SELECT toInt32(count()) AS n FROM numbers(7)") == [{"n": 7}]
    assert run.hot.log().count("Traceback") == before == 0
