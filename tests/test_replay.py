"""Replay: the command line's contract, connections that follow or overlap, REST bodies, recorded figures."""

import contextlib
import gzip
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from captures import capture, of

from marketprism.cli import main
from marketprism.events import (
    Event,
    FundingRate,
    Gap,
    Liquidation,
    LsrAllAccount,
    LsrTopAccount,
    LsrTopPosition,
    OpenInterest,
    OrderBookDelta,
    Trade,
)
from marketprism.replay import Replay
from marketprism.venues import VENUES
from marketprism.worker.options import replay_options

ROOT = Path(__file__).parents[1]
T0 = 1_760_000_000_000_000_000
SPOT = "wss://stream.binance.com:9443/stream"
OKX = "wss://ws.okx.com:8443/ws/v5/public"


def ws(second: float, message: Any, url: str = SPOT, **other: Any) -> dict[str, Any]:
    raw = message if isinstance(message, str) else json.dumps(message, separators=(",", ":"))
    return {"t": T0 + round(second * 1e9), "via": "ws", "url": url, "raw": raw} | other


def body(second: float, url: str, answer: Any) -> dict[str, Any]:
    return {"t": T0 + round(second * 1e9), "via": "rest", "url": url, "raw": json.dumps(answer)}


def save(path: Path, lines: Iterable[dict[str, Any] | str]) -> Path:
    text = "".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines)
    path.write_bytes(gzip.compress(text.encode()))
    return path


def run(exchange: str, *paths: Path, symbols: tuple[str, ...] | None = None) -> tuple[list[Event], Replay]:
    events: list[Event] = []
    replay = Replay(VENUES[exchange](replay_options(exchange, symbols)), list(paths), events.append)
    replay.run()
    return events, replay


def process(*args: object, seed: int = 0) -> subprocess.CompletedProcess[bytes]:
    env = {**os.environ, "PYTHONHASHSEED": str(seed)}
    command = [sys.executable, "-m", "marketprism", "replay", *map(str, args)]
    return subprocess.run(command, capture_output=True, cwd=ROOT, env=env, timeout=60, check=False)


def cli(*args: object) -> subprocess.CompletedProcess[bytes]:
    """The same within this process, which takes less time."""
    out, err = io.TextIOWrapper(io.BytesIO()), io.TextIOWrapper(io.BytesIO())
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(["replay", *map(str, args)])
        except SystemExit as e:
            status = int(e.code or 0)
    contents = []
    for stream in (out, err):
        stream.flush()
        buffer = stream.buffer
        assert isinstance(buffer, io.BytesIO)
        contents.append(buffer.getvalue())
    return subprocess.CompletedProcess([], status, *contents)


def trade(number: int, symbol: str = "BTCUSDT") -> dict[str, Any]:
    data = {
        "e": "trade",
        "E": 5,
        "s": symbol,
        "t": number,
        "p": "1.50",
        "q": "2",
        "T": 1_760_000_000_000,
        "m": True,
    }
    return {"stream": f"{symbol.lower()}@trade", "data": data}


def depth(first: int, last: int, bids: Any = (), symbol: str = "BTCUSDT") -> dict[str, Any]:
    data = {
        "e": "depthUpdate",
        "E": 1_760_000_000_000 + last,
        "s": symbol,
        "U": first,
        "u": last,
        "b": bids,
        "a": [],
    }
    return {"stream": f"{symbol.lower()}@depth@100ms", "data": data}


DEPTH_URL = "https://api.binance.com/api/v3/depth?symbol=BTCUSDT&limit=1000"


def rest_depth(last: int) -> dict[str, Any]:
    return {"lastUpdateId": last, "bids": [["99", "1"]], "asks": [["101", "1"]]}


# -- the command line ------------------------------------------------------------------------------------------


def test_output_and_exit_status(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jsonl.gz", [ws(0, trade(1)), ws(1, trade(2)), ws(2, trade(9, "ETHUSDT"))])
    done = cli("--exchange", "binance_spot", path)
    assert done.returncode == 0
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [set(line) for line in lines] == [{"subject", "id", "data"}] * 3
    assert lines[0]["subject"] == "trade.binance.spot.BTCUSDT"
    assert lines[0]["id"] == "trade:binance:spot:BTCUSDT:1"
    assert lines[0]["data"]["data_type"] == "trade"
    assert lines[0]["data"]["price"] == "1.50"
    assert lines[0]["data"]["collected_ts_ms"] == T0 // 1_000_000
    assert b"3 frames" in done.stderr
    done = cli("--exchange", "binance_spot", "--symbols", "ETHUSDT", path)
    assert [json.loads(line)["data"]["trade_id"] for line in done.stdout.splitlines()] == ["9"]


def test_two_runs_are_alike_to_the_byte() -> None:
    path = capture("binance_spot.many.202104.jsonl.gz")
    first, second = (process("--exchange", "binance_spot", path, seed=n) for n in (1, 2))
    assert first.returncode == second.returncode == 0
    assert len(first.stdout) > 100_000
    assert first.stdout == second.stdout


def test_a_damaged_line_is_named_and_passed_over(tmp_path: Path) -> None:
    path = save(tmp_path / "a.gz", [ws(0, trade(1)), '{"t":', ws(1, trade(2)), "xyz"])
    done = cli("--exchange", "binance_spot", path)
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 2
    named = [line for line in done.stderr.decode().splitlines() if str(path) in line]
    assert [line.startswith(f"{path}:{n}:") for line, n in zip(named, (2, 4), strict=True)] == [True, True]


def test_a_frame_that_is_no_message_is_no_damage(tmp_path: Path) -> None:
    path = save(tmp_path / "a.gz", [ws(0, trade(1)), ws(1, "no json"), ws(2, "pong"), ws(3, trade(2))])
    done = cli("--exchange", "binance_spot", path)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 2
    assert b"malformed 2" in done.stderr


@pytest.mark.parametrize("kind", ["missing", "directory", "text", "truncated at once", "forbidden"])
def test_an_unreadable_file(tmp_path: Path, kind: str) -> None:
    good = save(tmp_path / "good.gz", [ws(0, trade(1))])
    path = tmp_path / "bad"
    if kind == "directory":
        path.mkdir()
    elif kind == "text":
        path.write_text("# not a recording\n")
    elif kind == "truncated at once":
        path.write_bytes(good.read_bytes()[:12])
    elif kind == "forbidden":
        if os.geteuid() == 0:
            pytest.skip("root may read everything")
        path.touch(0)
    done = cli("--exchange", "binance_spot", good, path)
    assert done.returncode == 2
    assert done.stdout == b""
    assert done.stderr.decode().count("\n") == 1
    assert str(path) in done.stderr.decode()


def test_a_truncated_file_gives_what_it_holds(tmp_path: Path) -> None:
    path = save(tmp_path / "a.gz", [ws(n, trade(n)) for n in range(1, 3_000)])
    path.write_bytes(path.read_bytes()[:-500])
    done = cli("--exchange", "binance_spot", path)
    assert done.returncode == 1
    assert 1_000 < len(done.stdout.splitlines()) < 2_999
    assert str(path).encode() in done.stderr


def test_wrong_use() -> None:
    assert cli("--exchange", "nowhere", "x").returncode == 2
    assert cli("x").returncode == 2


def test_instruments_from_a_file(tmp_path: Path) -> None:
    row = {
        "instId": "BTC-USDT-SWAP",
        "instType": "SWAP",
        "ctVal": "0.01",
        "ctValCcy": "BTC",
        "ctMult": "1",
        "uly": "BTC-USDT",
    }
    info = {"code": "0", "msg": "", "data": [row]}
    message = {
        "arg": {"channel": "trades", "instId": "BTC-USDT-SWAP"},
        "data": [{"instId": "BTC-USDT-SWAP", "tradeId": "1", "px": "1", "sz": "7", "side": "buy", "ts": "5"}],
    }
    path = save(tmp_path / "a.gz", [ws(0, message, OKX)])
    url = "https://www.okx.com/api/v5/public/instruments?instType=SWAP"
    quantities = []
    files = {
        "plain.json": json.dumps(info, indent=2).encode(),
        "named.txt.gz": gzip.compress(f"{url} -> 1652458996.25: {json.dumps(info)}\n".encode()),
        "recording.gz": gzip.compress(json.dumps(body(0, url, info)).encode() + b"\n"),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        done = cli("--exchange", "okx_derivatives", "--instruments", tmp_path / name, path)
        assert done.returncode == 0, done.stderr
        quantities.append(json.loads(done.stdout)["data"]["quantity"])
    assert quantities == ["0.07"] * 3
    done = cli("--exchange", "okx_derivatives", path)
    data = json.loads(done.stdout)["data"]
    assert (data["quantity"], data["exchange_quantity"], data["quantity_unit"]) == (None, "7", "contracts")
    with_body = save(tmp_path / "b.gz", [ws(0, message, OKX), body(1, url, info)])
    done = cli("--exchange", "okx_derivatives", with_body)
    assert json.loads(done.stdout)["data"]["quantity"] == "0.07"


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"hello\n",
        b'{"code":"1","msg":"no","data":[]}',
        b"\x1f\x8bxx",
        b"\x28\xb5\x2f\xfdxx",
        gzip.compress(b"{}" * 9)[:-9],
    ],
    ids=["missing", "empty", "text", "refusal", "no gzip", "no zstd", "cut off"],
)
def test_instruments_that_are_none(tmp_path: Path, content: bytes | None) -> None:
    path = save(tmp_path / "a.gz", [ws(0, trade(1))])
    file = tmp_path / "instruments"
    if content is not None:
        file.write_bytes(content)
    done = cli("--exchange", "okx_spot", "--instruments", file, path)
    assert done.returncode == 2
    assert done.stderr.decode().count("\n") == 1
    assert str(file) in done.stderr.decode()


# -- REST bodies -----------------------------------------------------------------------------------------------


def ids(events: list[Event]) -> list[int | None]:
    return [d.last_update_id for d in of(events, OrderBookDelta)]


def test_a_body_comes_at_its_time_if_asked_for_by_then(tmp_path: Path) -> None:
    lines = [
        ws(0, depth(8, 9)),
        ws(1, depth(10, 11)),
        body(2, DEPTH_URL, rest_depth(9)),
        ws(3, depth(12, 12)),
    ]
    events, _ = run("binance_spot", save(tmp_path / "a.gz", lines))
    deltas = of(events, OrderBookDelta)
    assert ids(events) == [9, 11, 12]
    assert [d.collected_ts_ms - T0 // 1_000_000 for d in deltas] == [2_000, 2_000, 3_000]


def test_a_body_that_came_too_early_comes_when_asked_for(tmp_path: Path) -> None:
    lines = [
        body(0, DEPTH_URL, rest_depth(5)),
        body(1, DEPTH_URL, rest_depth(9)),
        ws(2, depth(10, 11)),
        ws(3, depth(12, 12)),
    ]
    events, _ = run("binance_spot", save(tmp_path / "a.gz", lines))
    assert ids(events) == [9, 11, 12]
    assert of(events, OrderBookDelta)[0].collected_ts_ms == T0 // 1_000_000 + 2_000


def test_two_bodies_the_first_too_old(tmp_path: Path) -> None:
    lines = [
        ws(0, depth(8, 9)),
        body(1, DEPTH_URL, rest_depth(5)),
        *(ws(2 + n / 10, depth(10 + n, 10 + n)) for n in range(50)),
        body(8, DEPTH_URL, rest_depth(20)),
        ws(9, depth(60, 60)),
    ]
    events, _ = run("binance_spot", save(tmp_path / "a.gz", lines))
    assert ids(events)[0] == 20
    assert ids(events)[-1] == 60
    assert of(events, Gap) == []


def test_backfill_that_was_recorded_is_used_and_what_was_not_is_told(tmp_path: Path) -> None:
    url = "https://api.binance.com/api/v3/historicalTrades?symbol=BTCUSDT&fromId=2&limit=2"
    rows = [
        {"id": n, "price": "1", "qty": "1", "time": 1_760_000_000_000, "isBuyerMaker": True} for n in (2, 3)
    ]
    lines = [ws(0, trade(1)), ws(1, trade(4)), ws(2, trade(5)), body(3, url, rows), ws(4, trade(7))]
    events, _ = run("binance_spot", save(tmp_path / "a.gz", lines))
    assert [t.trade_id for t in of(events, Trade)] == ["1", "2", "3", "4", "5", "7"]
    assert [(g.last_id_before, g.first_id_after) for g in of(events, Gap)] == [("5", "7")]


def test_a_late_answer_to_a_hole_is_still_taken(tmp_path: Path) -> None:
    url = "https://api.binance.com/api/v3/historicalTrades?symbol=BTCUSDT&fromId=2&limit=2"
    rows = [{"id": 2, "price": "1", "qty": "1", "time": 1_760_000_000_000, "isBuyerMaker": True}]
    lines = [ws(0, trade(1)), *(ws(n, trade(2 + n)) for n in range(1, 200)), body(200, url, rows)]
    events, _ = run("binance_spot", save(tmp_path / "a.gz", lines))
    assert [g.missing for g in of(events, Gap)] == [1]  # the trades behind it do not wait for so long
    assert of(events, Trade)[-1].trade_id == "2"
    assert len(of(events, Trade)) == 201


# -- connections -----------------------------------------------------------------------------------------------


def okx_book(prev: int | None, last: int, bids: Any = (), instrument: str = "BTC-USDT") -> dict[str, Any]:
    row = {
        "asks": [],
        "bids": bids,
        "ts": str(1_760_000_000_000 + last),
        "seqId": last,
        "prevSeqId": -1 if prev is None else prev,
    }
    action = "snapshot" if prev is None else "update"
    return {"arg": {"channel": "books", "instId": instrument}, "action": action, "data": [row]}


def okx_trade(number: int) -> dict[str, Any]:
    row = {"instId": "BTC-USDT", "tradeId": str(number), "px": "1", "sz": "7", "side": "buy", "ts": "5"}
    return {"arg": {"channel": "trades", "instId": "BTC-USDT"}, "data": [row]}


BID = [["99", "1", "0", "1"]]


def test_two_recordings_of_parallel_connections_with_the_same_url(tmp_path: Path) -> None:
    messages = [okx_book(None, 10, BID), *(okx_book(n, n + 1, BID) for n in range(10, 30))]
    both = []
    for number, missing in ((0, 15), (1, 20)):
        lines = [ws(n + number / 10, m, OKX) for n, m in enumerate(messages) if n != missing]
        both.append(save(tmp_path / f"{number}.gz", lines))
    events, replay = run("okx_spot", *both)
    assert ids(events) == list(range(10, 31))
    assert set(replay._conns.values()) == {f"{OKX}@0", f"{OKX}@1"}
    assert of(events, Gap) == []


def test_a_recording_in_several_files_is_one_connection(tmp_path: Path) -> None:
    messages = [okx_book(None, 10, BID), *(okx_book(n, n + 1, BID) for n in range(10, 30))]
    lines = [ws(n, m, OKX) for n, m in enumerate(messages)]
    files = [save(tmp_path / f"{n}.gz", part) for n, part in enumerate((lines[:7], lines[7:8], lines[8:]))]
    for order in (files, files[::-1]):
        events, _ = run("okx_spot", *order)
        assert ids(events) == list(range(10, 31))
        assert of(events, Gap) == []


def test_two_connections_each_in_two_files(tmp_path: Path) -> None:
    messages = [okx_book(None, 10, BID), *(okx_book(n, n + 1, BID) for n in range(10, 30))]
    files = []
    for number in (0, 1):
        lines = [ws(n + number / 10, m, OKX) for n, m in enumerate(messages)]
        files += [save(tmp_path / f"{number}a.gz", lines[:10]), save(tmp_path / f"{number}b.gz", lines[10:])]
    events, replay = run("okx_spot", *files)
    assert ids(events) == list(range(10, 31))
    assert of(events, Gap) == []
    assert len(replay.venue.connections) <= 2


def test_a_connection_that_was_replaced_with_overlap(tmp_path: Path) -> None:
    old, new = f"{OKX}#public.20250101T000000.1", f"{OKX}#public.20250101T000000.2"
    lines = [ws(n, okx_book(None if n == 0 else 9 + n, 10 + n, BID), old) for n in range(10)]
    lines += [ws(5.5, okx_book(None, 15, BID), new)]
    lines += [ws(n + 0.1, okx_book(9 + n, 10 + n, BID), new) for n in range(6, 20)]
    lines.sort(key=lambda line: int(line["t"]))
    events, replay = run("okx_spot", save(tmp_path / "a.gz", lines))
    assert ids(events) == list(range(10, 30))
    assert of(events, Gap) == []
    assert list(replay.venue.connections) == [f"{new}@0"]


def test_a_connection_that_was_lost(tmp_path: Path) -> None:
    for old, new in ((f"{OKX}#1", f"{OKX}#2"), (f"{OKX}#public.a.1", f"{OKX}#public.a.2")):
        lines = [
            ws(0, okx_book(None, 10, BID), old),
            ws(1, okx_book(10, 11, BID), old),
            ws(1, okx_trade(1), old),
        ]
        lines += [
            ws(60, okx_book(None, 50, BID), new),
            ws(61, okx_book(50, 51, BID), new),
            ws(62, okx_trade(2), new),
        ]
        events, _ = run("okx_spot", save(tmp_path / "a.gz", lines))
        assert ids(events) == [10, 11, 50, 51]
        assert [(g.cause, g.last_id_before) for g in of(events, Gap)] == [("disconnect", "11")]


def test_frames_of_the_same_instant_at_the_end_of_a_connection(tmp_path: Path) -> None:
    lines = [
        ws(0, okx_trade(1), f"{OKX}#1"),
        ws(1, okx_trade(2), f"{OKX}#1"),
        ws(1, okx_trade(3), f"{OKX}#1"),
    ]
    lines += [ws(2, okx_trade(4), f"{OKX}#2")]
    events, _ = run("okx_spot", save(tmp_path / "a.gz", lines))
    assert [t.trade_id for t in of(events, Trade)] == ["1", "2", "3", "4"]


def test_connections_with_different_instruments_end_without_a_gap(tmp_path: Path) -> None:
    """Recordings end when they end, each connection with its own last frame."""
    for urls in ((f"{OKX}#public.a.1", f"{OKX}#public-2.a.1"), (f"{OKX}#1", f"{OKX}#2")):
        lines = []
        for n in range(10):
            for url, instrument in zip(urls, ("BTC-USDT", "ETH-USDT"), strict=True):
                lines.append(
                    ws(
                        n + (url == urls[1]) / 2,
                        okx_book(None if n == 0 else 9 + n, 10 + n, BID, instrument),
                        url,
                    )
                )
        lines.append(ws(60, "ping", urls[0], out=True))
        events, _ = run("okx_spot", save(tmp_path / "a.gz", lines))
        assert of(events, Gap) == []
        assert len(of(events, OrderBookDelta)) == 20


def test_what_was_sent_is_passed_over(tmp_path: Path) -> None:
    lines = [ws(0, trade(1)), ws(1, trade(2), out=True), ws(2, trade(2))]
    events, _ = run("binance_spot", save(tmp_path / "a.gz", lines))
    assert [t.collected_ts_ms - T0 // 1_000_000 for t in of(events, Trade)] == [0, 2_000]


def test_time_that_steps_back_in_a_recording(tmp_path: Path) -> None:
    lines = [ws(3600, trade(1)), *(ws(n, trade(2 + n)) for n in range(5))]
    events, _ = run("binance_spot", save(tmp_path / "a.gz", lines))
    assert len(of(events, Trade)) == 6


def test_rest_alone(tmp_path: Path) -> None:
    url = "https://fapi.binance.com/fapi/v1/openInterest?symbol=BTCUSDT"
    lines = [
        body(0, url, {"symbol": "BTCUSDT", "openInterest": "5", "time": 7}),
        body(1, "https://x/unknown", {}),
    ]
    events, _ = run("binance_derivatives", save(tmp_path / "a.gz", lines))
    assert [e.subject for e in events] == ["open_interest.binance.perpetual.BTCUSDT"]


# -- real bodies and samples -----------------------------------------------------------------------------------


def gct(tmp_path: Path, venue: str, *paths: str) -> Path:
    """Recorded REST bodies, wrapped into a recording."""
    with gzip.open(capture(f"rest/{venue}.gct_rest_recorded.json.gz"), "rt") as file:
        recorded = json.load(file)
    host = "https://fapi.binance.com" if venue == "binance_derivatives" else "https://api.binance.com"
    lines = [
        body(n, f"{host}{path}?{entry['queryString']}", entry["data"])
        for path in paths or sorted(recorded)
        for n, entry in enumerate(recorded[path])
        if entry["data"] is not None
    ]
    return save(tmp_path / "gct.gz", lines)


def test_recorded_figures_of_usdm(tmp_path: Path) -> None:
    events, _ = run("binance_derivatives", gct(tmp_path, "binance_derivatives"))
    (interest,) = of(events, OpenInterest)
    assert (interest.open_interest_value, interest.open_interest_unit) == ("83782.317", "base")
    assert interest.ts_ms == 1702244985273
    rates = {r.instrument_id: r for r in of(events, FundingRate)}
    assert rates["BTCUSDT"].current_funding_rate == "0.00001226"
    assert rates["BTCUSDT"].mark_price == "26780.82240476"
    assert rates["EOSUSDT"].next_funding_ts_ms == 1602835200000
    for kind, share in ((LsrTopPosition, "position"), (LsrTopAccount, "account"), (LsrAllAccount, "account")):
        rows: list[Any] = of(events, kind)
        assert len(rows) > 3, kind
        for row in rows:
            long, short = (float(getattr(row, f"{side}_{share}_ratio")) for side in ("long", "short"))
            assert long + short == pytest.approx(1, abs=2e-4)
            assert long / short == pytest.approx(float(row.long_short_ratio), rel=5e-3)
            assert row.symbol.startswith("BTC")
    assert all(e.subject.count(".") == 3 and not e.subject.endswith(".") for e in events)
    assert len({e.id for e in events}) == len(events)


def test_recorded_bodies_of_spot_disturb_nothing(tmp_path: Path) -> None:
    events, replay = run("binance_spot", gct(tmp_path, "binance_spot"))
    assert events == []
    assert replay.damaged == []


def sample(tmp_path: Path, name: str, url: str) -> Path:
    """Single messages, one a line or in a dictionary, wrapped into a recording."""
    text = capture(f"samples/{name}").read_text()
    messages: list[Any] = [json.loads(x) for x in text.splitlines()] if name.endswith("l") else []
    messages = messages or list(json.loads(text).values())
    messages = [m["message"] if isinstance(m, dict) and "test" in m else m for m in messages]
    return save(tmp_path / f"{name}.gz", [ws(n, m, url) for n, m in enumerate(messages)])


SAMPLES = [
    ("binance_derivatives", "binance_derivatives.cryptomsgparser_binance.samples.jsonl"),
    ("binance_derivatives", "binance_derivatives.nautilus_binance.samples.json"),
    ("binance_derivatives", "binance_derivatives.tardis_mapper.samples.jsonl"),
    ("binance_spot", "binance_spot.tardis_mapper.samples.jsonl"),
    ("deribit_derivatives", "deribit.arbobs_20260923_captured_frames.jsonl"),
    ("deribit_derivatives", "deribit.cryptomsgparser_deribit.samples.jsonl"),
    ("deribit_derivatives", "deribit.nautilus_deribit.samples.json"),
    ("deribit_derivatives", "deribit.ssc2ce_testnet_btc-perpetual.raw.jsonl"),
    ("deribit_derivatives", "deribit.tardis_mapper.samples.jsonl"),
    ("okx_derivatives", "okx.cryptomsgparser_okx.samples.jsonl"),
    ("okx_derivatives", "okx.nautilus_okx.samples.json"),
    ("okx_derivatives", "okx.tardis_mapper.samples.jsonl"),
    ("okx_derivatives", "okx.tickvault_20260824_btc-usdt_books.updates_excerpt.jsonl"),
]


@pytest.mark.parametrize(("exchange", "name"), SAMPLES)
def test_samples_are_read_without_a_false_word(tmp_path: Path, exchange: str, name: str) -> None:
    events, replay = run(exchange, sample(tmp_path, name, "wss://x/ws"))
    assert replay.damaged == []
    liquidations = of(events, Liquidation)
    for x in liquidations:
        assert x.side in ("buy", "sell")
        assert float(x.exchange_quantity) > 0
    for t in of(events, Trade):
        assert t.ts_ms
        assert t.ts_ms < 2**42
    counted = {
        "liquidations": len(liquidations),
        "trades": len(of(events, Trade)),
        "malformed": replay.notes["malformed"],
    }
    print(name, counted)
