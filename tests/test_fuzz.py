"""The fuzz harnesses (docs/fuzzing.md): committed inputs, inputs made of recordings, and a short run under atheris."""

import asyncio
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import ModuleType

import pytest
from natsbox import Cable, NatsBox, nats_server, until

from marketprism.config import load
from marketprism.events import Event, Gap
from marketprism.logs import LineFormatter
from marketprism.venues.base import Fetch
from marketprism.worker.collector import Collector
from marketprism.worker.outbox import Message
from marketprism.worker.publisher import Publisher, PublisherOptions
from marketprism.worker.stream import StreamOptions, ensure_stream

FUZZ = Path(__file__).parent / "fuzz"
ROOT = FUZZ.parents[1]
TARGETS = sorted(path.stem.removeprefix("fuzz_") for path in FUZZ.glob("fuzz_*.py"))
COMMITTED = [
    pytest.param(path.parent.name, path, id=f"{path.parent.name}-{path.name}")
    for folder in ("corpus", "regressions")
    for path in sorted((FUZZ / folder).glob("*/*"))
]
RUN_S = 4


@pytest.fixture(autouse=True)
def harnesses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FUZZ))


def harness(target: str) -> ModuleType:
    return import_module(f"fuzz_{target}")


def test_every_target_has_inputs_of_its_own() -> None:
    assert {path.name for path in (FUZZ / "corpus").iterdir()} == set(TARGETS)
    assert {path.name for path in (FUZZ / "regressions").iterdir()} <= set(TARGETS)


@pytest.mark.parametrize(("target", "path"), COMMITTED)
def test_a_committed_input(target: str, path: Path) -> None:
    harness(target).one(path.read_bytes())


@pytest.mark.parametrize("target", TARGETS)
def test_inputs_cut_off_anywhere(target: str) -> None:
    for path in sorted((FUZZ / "corpus" / target).iterdir()):
        data = path.read_bytes()
        for length in range(0, len(data), max(1, len(data) // 12)):
            harness(target).one(data[:length])


@pytest.mark.parametrize("target", TARGETS)
def test_inputs_made_of_the_recordings(target: str) -> None:
    seeds: Iterator[bytes] = harness(target).seeds()
    for seed in seeds:
        harness(target).one(seed)


def test_a_run_under_atheris(tmp_path: Path) -> None:
    if find_spec("atheris") is None:
        pytest.skip("atheris is not installed: it has wheels for Linux on x86_64 only")

    def run(target: str) -> subprocess.CompletedProcess[str]:
        folder = tmp_path / target
        folder.mkdir()
        command = [sys.executable, str(FUZZ / "run.py"), target, f"-max_total_time={RUN_S}", "-timeout=20"]
        command += [f"-artifact_prefix={folder}/", str(folder), str(FUZZ / "corpus" / target)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    with ThreadPoolExecutor(2) as pool:
        for target, done in zip(TARGETS, pool.map(run, TARGETS), strict=True):
            assert done.returncode == 0, f"{target}: {done.stderr[-3000:]}"


# -- the rule for what is malformed, end to end ----------------------------------------------------------------

FRAMES = {
    "binance_spot": b'{"stream":"btcusdt@depth@100ms","data":{"e":"depthUpdate","E":%d,"s":"BTCUSDT",'
    b'"U":%d,"u":%d,"b":[["10","%b"]],"a":[["11","1"]]}}',
    "binance_derivatives": b'{"stream":"btcusdt@depth@100ms","data":{"e":"depthUpdate","E":%d,"s":"BTCUSDT",'
    b'"pu":%d,"U":%d,"u":%d,"b":[["10","%b"]],"a":[["11","1"]]}}',
    "okx_derivatives": b'{"arg":{"channel":"books","instId":"BTC-USDT-SWAP"},"action":"update","data":[{"ts":"%d",'
    b'"prevSeqId":%d,"seqId":%d,"bids":[["10","%b","0","1"]],"asks":[["11","1","0","1"]],"checksum":0}]}',
    "deribit_derivatives": b'{"jsonrpc":"2.0","method":"subscription","params":{"channel":"book.BTC-PERPETUAL.100ms",'
    b'"data":{"type":"change","timestamp":%d,"prev_change_id":%d,"change_id":%d,"instrument_name":"BTC-PERPETUAL",'
    b'"bids":[["change",10.0,%b]],"asks":[["change",11.0,1.0]]}}}',
}
SYMBOLS = {
    "binance_spot": "BTCUSDT",
    "binance_derivatives": "BTCUSDT",
    "okx_derivatives": "BTC-USDT-SWAP",
    "deribit_derivatives": "BTC-PERPETUAL",
}
BOOKS = {
    "binance_spot": b'{"lastUpdateId":1,"bids":[["10","1"]],"asks":[["11","1"]]}',
    "binance_derivatives": b'{"lastUpdateId":1,"bids":[["10","1"]],"asks":[["11","1"]]}',
    "okx_derivatives": b'{"code":"0","msg":"","data":[{"bids":[["10","1","0","1"]],"asks":[["11","1","0","1"]],'
    b'"ts":"1","seqId":1}]}',
}
SECRET = "hunter2hunter2"
BAD = [
    b"\x00\xff not json\n" * 400,
    b'{"stream":"btcusdt@depth@100ms"' + b"x" * 5000,
    b'{"password":"' + SECRET.encode() + b'"',
    b"[" * 100_000,
]


class Collecting:
    """A collector without a network: frames are handed in, what it publishes is kept."""

    def __init__(self, exchange: str) -> None:
        document = f"exchanges: {{{exchange}: {{symbols: [{SYMBOLS[exchange]}], data_types: [orderbook]}}}}"
        self.exchange = exchange
        self.events: list[Event] = []
        with NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(document)
            file.flush()
            settings = load(Path(file.name), {}).settings.exchanges[exchange]
        self.collector = Collector(settings, lambda event, _: self.events.append(event), lambda: None)
        self.collector.opened(self.collector.venue.sockets()[0].name, "c")
        self.id = 1

    def follow(self, quantity: bytes = b"1") -> None:
        """The next change of the book."""
        ids = (self.id, self.id + 1)
        if self.exchange == "binance_spot":
            ids = (self.id + 1, self.id + 1)
        elif self.exchange == "binance_derivatives":
            ids = (self.id, self.id + 1, self.id + 1)
        self.id += 1
        self.hear(FRAMES[self.exchange] % (time.time_ns() // 10**6, *ids, quantity))

    def hear(self, data: bytes) -> None:
        self.collector.received("c", data, time.perf_counter_ns())

    def begin(self) -> None:
        """A live book."""
        if self.exchange == "deribit_derivatives":
            change = FRAMES[self.exchange] % (1, 0, 1, b"1")
            self.hear(change.replace(b'"prev_change_id":0,', b"").replace(b'"change"', b'"snapshot"', 1))
        else:
            self.follow()
            fetch = Fetch("depth", SYMBOLS[self.exchange], "/depth?limit=5")
            self.collector.answered(fetch, 200, BOOKS[self.exchange], "")
        assert self.live

    @property
    def live(self) -> bool:
        book = self.collector.venue.markets[SYMBOLS[self.exchange]].book
        assert book is not None
        return book.live

    @property
    def gaps(self) -> list[str]:
        return [e.data.cause for e in self.events if isinstance(e.data, Gap)]


@pytest.mark.parametrize("exchange", FRAMES)
def test_a_malformed_frame_is_counted_and_logged_once_a_minute_with_a_short_excerpt(
    exchange: str, caplog: pytest.LogCaptureFixture
) -> None:
    c = Collecting(exchange)
    c.begin()
    caplog.clear()
    for _ in range(50):
        for bad in BAD:
            c.hear(bad)
    assert c.collector.errors["malformed"] >= 150  # an unknown stream of Binance may say what it likes
    told = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert [r.__dict__["event"] for r in told] == ["malformed"]
    line = LineFormatter().format(told[0])
    assert line.isprintable()
    assert len(line) < 600
    assert "not as documented" in line
    assert c.live, "what is no frame of the book says nothing of the book"


@pytest.mark.parametrize("exchange", FRAMES)
def test_the_excerpt_shows_no_secret(exchange: str, caplog: pytest.LogCaptureFixture) -> None:
    c = Collecting(exchange)
    c.hear(BAD[2])
    (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert SECRET in record.getMessage()
    assert SECRET not in LineFormatter().format(record)


@pytest.mark.parametrize("exchange", FRAMES)
def test_a_figure_that_is_none_in_a_book_leads_to_a_gap_and_a_new_book(exchange: str) -> None:
    c = Collecting(exchange)
    c.begin()
    c.follow()
    assert c.gaps == []
    c.follow(b"-1")
    assert c.gaps == ["malformed"]
    assert c.collector.errors["malformed"] == 1
    assert not c.live


@pytest.mark.parametrize("exchange", FRAMES)
def test_a_frame_of_a_book_that_cannot_be_read_leads_to_a_gap_by_its_number(exchange: str) -> None:
    c = Collecting(exchange)
    c.begin()
    c.follow(b'1"1')
    c.follow()
    assert c.collector.errors["malformed"] == 1
    assert c.gaps == ["sequence"]
    assert not c.live


# -- a NATS server that says anything --------------------------------------------------------------------------

GREETING = b'INFO {"max_payload":1048576,"headers":true}\r\n'
EVIL = {
    "garbage": GREETING + b"\x00\xff\xfe\r\n",
    "an error without a reason": GREETING + b"PONG\r\nPONG\r\n-ERR \r\n",
    "news that are no object": GREETING + b"PONG\r\nPONG\r\nINFO 5\r\n",
    "an endless line": GREETING + b"PONG\r\nPONG\r\n" + b"x" * (1 << 22),
    "an endless message": GREETING + b"PONG\r\nPONG\r\nMSG a 1 99999999999\r\n" + b"x" * (1 << 25),
    "a greeting that is none": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "a greeting that is a list": b"INFO []\r\n",
    "an endless greeting": b"INFO " + b"x" * (1 << 22),
    "a limit that is a text": b'INFO {"max_payload":"x"}\r\n',
    "addresses that are none": b'INFO {"max_payload":1048576,"connect_urls":5}\r\n',
}


@pytest.mark.skipif(nats_server() is None, reason="nats-server is not installed")
@pytest.mark.parametrize("said", EVIL.values(), ids=EVIL)
def test_a_server_that_says_anything_costs_one_line_and_a_new_connection(
    said: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It says so once and keeps the connection open; from then on a real server is behind the address."""

    async def run(box: NatsBox) -> None:
        cable = Cable(box.port)
        evil = True
        kept: list[asyncio.StreamWriter] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal evil
            if not evil:
                await cable._relay(reader, writer)
                return
            evil = False
            kept.append(writer)
            with suppress(OSError):
                writer.write(said)
                await writer.drain()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        options = PublisherOptions((url,), "test", reconnect_time_wait_s=0.01)
        wanted = StreamOptions(subjects=("trade.>",))
        publisher = Publisher(options, lambda _: None, prepare=lambda client: ensure_stream(client, wanted))
        publisher.publish(Message("trade.okx.spot.S", "id:1", b"{}", False, 1, 0))
        try:
            await publisher.connect()
            await until(lambda: publisher.counters.acknowledged == 1, 30, "the message stored")
        finally:
            await publisher.close()
            for writer in kept:
                writer.transport.abort()
            server.close()

    with NatsBox(tmp_path) as box:
        asyncio.run(run(box))
    told = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(told) == 1, [r.getMessage() for r in told]
    assert told[0].exc_info is None
    assert len(told[0].getMessage()) < 600
