"""Real recordings with frames dropped, repeated, swapped and cut: no wrong book, each hole told, no trade twice.

The unspoiled recording says what is true: its books (proven elsewhere against the exchanges' own words) answer the
requests for whole books and judge what is published.
"""

import gzip
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

import msgspec
import pytest
from captures import capture
from drive import Drive

from chaos.consumer import ConsumerBook
from marketprism.events import OrderBookDelta, Trade
from marketprism.venues.base import MS, Fetch

Best = tuple[Any, Any]


@dataclass
class Truth:
    """What the unspoiled recording publishes."""

    frames: list[dict[str, Any]] = field(default_factory=list)
    best: dict[tuple[str, Any], Best] = field(default_factory=dict)
    books: dict[str, ConsumerBook] = field(default_factory=lambda: defaultdict(ConsumerBook))
    windows: dict[str, tuple[bool, bool]] = field(default_factory=dict)
    trades: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))


def lines(name: str, many: int) -> Iterator[dict[str, Any]]:
    with gzip.open(capture(name), "rt") as file:
        for n, line in enumerate(file):
            if n >= many:
                return
            frame = json.loads(line)
            if not frame.get("out") and not any(x in frame["raw"][:60] for x in ("bookTicker", "kline")):
                yield frame


def identity(d: OrderBookDelta) -> Any:
    return d.last_update_id if d.last_update_id is not None else (d.ts_ms, d.checksum)


class Run:
    """One pass over the frames, spoiled or not."""

    def __init__(self, exchange: str, frames: list[dict[str, Any]], truth: Truth) -> None:
        self.drive = Drive(exchange)
        self.truth = truth
        self.frames = frames
        self.deltas = 0
        self.frames_given = 0
        self.bodies: dict[str, dict[str, Any]] = {}

    def open(self) -> None:
        self.drive.now_ns = self.frames[0]["t"]
        self.drive.open()

    def give(self, frame: dict[str, Any]) -> None:
        d = self.drive
        d.now_ns = frame["t"] - MS
        if frame["via"] == "ws":
            d.frame(frame["raw"])
        else:
            key = d.venue.key_of(frame["url"])
            assert key is not None
            self.bodies[key[1]] = frame
        self.frames_given += 1
        if self.frames_given % 5 == 0:
            d.tick(0)

    def answer_recorded(self) -> None:
        """Hand over the recorded bodies that were asked for."""
        for fetch in list(self.drive.asked("depth")):
            body = self.bodies.get(fetch.instrument)
            if body is not None:
                self.drive.fetches.remove(fetch)
                self.drive.respond(Fetch(*fetch.key, body["url"]), body["raw"])


def learn(exchange: str, name: str, many: int) -> Truth:
    truth = Truth(list(lines(name, many)))
    run = Run(exchange, truth.frames, truth)

    def keep(data: OrderBookDelta, book: ConsumerBook) -> None:
        truth.best[data.instrument_id, identity(data)] = book.best()

    run.drive.judge.on_book = keep
    run.open()
    for frame in truth.frames:
        run.give(frame)
        run.answer_recorded()
    assert run.drive.gaps() == []
    for t in run.drive.of(Trade):
        truth.trades[t.instrument_id].append(int(t.trade_id))
    return truth


def spoil(frames: list[dict[str, Any]], rng: Random) -> Iterator[tuple[int, dict[str, Any]]]:
    """(index into the unspoiled frames, frame)."""
    held: tuple[int, dict[str, Any]] | None = None
    for n, original in enumerate(frames):
        frame = original
        chance = rng.random()
        if frame["via"] == "ws" and chance < 0.01:
            continue
        if frame["via"] == "ws" and chance < 0.015:
            frame = {**frame, "raw": frame["raw"][: rng.randrange(len(frame["raw"]))]}
        if held is not None:
            yield n, frame
            yield held
            held = None
        elif frame["via"] == "ws" and chance > 0.99:
            held = n, frame
        else:
            yield n, frame
        if chance > 0.985:
            yield n, frame
    if held is not None:
        yield held


class Reference:
    """The true book as of a frame, to answer a request for it."""

    def __init__(self, exchange: str, truth: Truth) -> None:
        self.run = Run(exchange, truth.frames, truth)
        self.run.open()
        self.given = 0

    def book(self, instrument: str, until: int) -> ConsumerBook | None:
        while self.given <= until:
            self.run.give(self.run.frames[self.given])
            self.run.answer_recorded()
            self.given += 1
        book = self.run.drive.judge.books.get(instrument)
        return book if book is not None and book.begun else None


def binance_body(book: ConsumerBook, limit: int = 100) -> dict[str, Any]:
    bids = [list(book.bids[p]) for p in sorted(book.bids, reverse=True)][:limit]
    asks = [list(book.asks[p]) for p in sorted(book.asks)][:limit]
    return {"lastUpdateId": book.last_id, "bids": bids, "asks": asks}


RECORDINGS = [
    ("binance_spot", "binance_spot.many.202104.jsonl.gz", 10_000),
    ("binance_derivatives", "binance_derivatives.many.202104.jsonl.gz", 10_000),
    ("binance_spot", "binance_spot.btcusdt.20240808.jsonl.gz", 6_000),
    ("binance_derivatives", "binance_derivatives.btcusdt.20240808.jsonl.gz", 6_000),
]


@pytest.mark.parametrize(("exchange", "name", "many"), RECORDINGS)
def test_spoiled_binance(exchange: str, name: str, many: int) -> None:
    truth = learn(exchange, name, many)
    assert truth.best
    assert truth.trades
    for seed in (1, 2):
        reference = Reference(exchange, truth)
        run = Run(exchange, truth.frames, truth)
        judged = check_against(truth, run)
        run.open()
        for n, frame in spoil(truth.frames, Random(seed)):
            run.give(frame)
            for fetch in list(run.drive.asked("depth")):
                book = reference.book(fetch.instrument, n)
                if book is not None:
                    run.drive.fetches.remove(fetch)
                    run.drive.respond(Fetch(*fetch.key, "/depth?limit=100"), binance_body(book))
        refuse_backfill(run.drive)
        check_trades(run.drive, truth)
        assert run.drive.gaps(), "nothing was lost: the test tests nothing"
        assert judged[0] > len(truth.best) / 4


def check_against(truth: Truth, run: Run) -> list[int]:
    """Compare the best prices of each published book with the unspoiled ones; returns a count that grows."""
    judged = [0]

    def compare(data: OrderBookDelta, book: ConsumerBook) -> None:
        best = truth.best.get((data.instrument_id, identity(data)))
        if best is not None and all(book.best()):
            judged[0] += 1
            assert book.best() == best, (data.instrument_id, data.last_update_id)

    run.drive.judge.on_book = compare
    return judged


def refuse_backfill(d: Drive) -> None:
    while d.asked("trades"):
        d.answer("trades", b"", 404)
    d.finish()
    while d.asked("trades"):
        d.answer("trades", b"", 404)


def check_trades(d: Drive, truth: Truth) -> None:
    """Each trade of the recording is published once (see Judge) or told; nothing told was published."""
    published: dict[str, set[int]] = defaultdict(set)
    told: dict[str, set[int]] = defaultdict(set)
    for t in d.of(Trade):
        published[t.instrument_id].add(int(t.trade_id))
    for g in d.gaps("trade"):
        hole = set(range(int(g.last_id_before or 0) + 1, int(g.first_id_after or 0)))
        assert not hole & told[g.instrument_id]
        told[g.instrument_id] |= hole
    for instrument, ids in truth.trades.items():
        here = published[instrument]
        assert not here & told[instrument]
        if here:
            assert {i for i in ids if min(here) <= i <= max(here)} <= here | told[instrument]


@pytest.mark.parametrize("name", ["okx.many.202107.conn1.jsonl.gz", "okx.books.202205.jsonl.gz"])
def test_spoiled_okx(name: str) -> None:
    truth = learn("okx_derivatives", name, 10_000)
    for seed in (1, 2):
        reference = Reference("okx_derivatives", truth)
        run = Run("okx_derivatives", truth.frames, truth)

        def crc(data: OrderBookDelta, book: ConsumerBook) -> None:
            assert book.crc32() == data.checksum

        run.drive.judge.on_book = crc
        run.open()
        for n, frame in spoil(truth.frames, Random(seed)):
            run.give(frame)
            for message in run.drive.sent():
                if message != "ping" and message["op"] == "subscribe":
                    for arg in message["args"]:
                        book = reference.book(arg["instId"], n)
                        if book is not None:
                            run.drive.frame(okx_snapshot(arg, book, frame["t"] // MS))
        refuse_backfill(run.drive)
        check_trades(run.drive, truth)
        assert {g.cause for g in run.drive.gaps()} <= {"checksum", "crossed", "malformed", "sequence"}
        assert run.drive.gaps()


def okx_snapshot(arg: dict[str, str], book: ConsumerBook, ts_ms: int) -> dict[str, Any]:
    sides = {
        "bids": [[*book.bids[p], "0", "1"] for p in sorted(book.bids, reverse=True)],
        "asks": [[*book.asks[p], "0", "1"] for p in sorted(book.asks)],
    }
    row = {**sides, "ts": str(ts_ms), "checksum": book.crc32()}
    return {"arg": arg, "action": "snapshot", "data": [row]}


def test_spoiled_deribit() -> None:
    truth = learn("deribit_derivatives", "deribit.options.202104.jsonl.gz", 10_000)
    lost = 0
    for seed in range(20):
        run = Run("deribit_derivatives", truth.frames, truth)
        check_against(truth, run)
        run.open()
        for _, frame in spoil(truth.frames, Random(seed)):
            run.give(frame)
        lost += len(run.drive.gaps())
    assert lost
    assert msgspec.json.encode(run.drive.gaps())
