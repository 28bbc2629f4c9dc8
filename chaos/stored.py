"""What the stores hold, hot and cold together, against the stream and against what the simulator knows happened."""

import asyncio
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from random import Random
from typing import Any

import nats
from nats.js.api import AckPolicy, ConsumerConfig

from chaos.consumer import ConsumerBook
from chaos.explain import Fired
from chaos.judge import WORKER_OF, Due, Payload, RealBook, Verdict, differences, judge_payloads
from chaos.liquidations import judge_liquidations
from marketprism.simulator import Truth
from marketprism.simulator.instruments import Grid
from marketprism.storage import quality, verbs
from marketprism.storage.asking import ReadingError
from marketprism.storage.reading import Span, Tier, select
from marketprism.storage.rebuild import BookAt
from marketprism.storage.schema import TABLES

PIECE_MS = 20_000
"""Read at once: at ten times the usual rate these are some ten megabytes."""
MARGIN_MS = 86_400_000
"""Before the first instant and after the last one there may be events, too: series of the past hours."""
HOLES_MS = 120_000
_EARLY_MS = 1_000  # the last message before a gap may have been a while before it


@dataclass
class StoredVerdict:
    """What was compared, beside `of_truth`: trades, fills and liquidations against the truth.

    `rows`: different events by table; `both`: those that hot and cold have; `unknown`: instants in a told gap.
    """

    of_truth: Verdict = field(default_factory=Verdict)
    rows: Counter[str] = field(default_factory=Counter)
    hot: int = 0
    cold: int = 0
    both: int = 0
    messages: int = 0
    instants: int = 0
    unknown: int = 0
    problems: list[str] = field(default_factory=list)

    def blame(self, text: str) -> None:
        """Note a contradiction (the first hundred)."""
        if len(self.problems) < 100:
            self.problems.append(text)


@dataclass(frozen=True, slots=True)
class Compared:
    """Against what: the stream's ids by data type, the truth, what was due until when, and the faults."""

    ids: dict[str, set[str]]
    truth: Truth
    due: Due
    due_ms: int
    fired: Sequence[Fired]


def judge_stored(tiers: Sequence[Tier], span: Span, compared: Compared, verdict: StoredVerdict) -> None:
    """Each message of the stream is stored once and nothing else; each trade and liquidation is as it happened."""
    for table in TABLES:
        held = [_ids(tier, table.name, span) for tier in tiers]
        for where, ids in zip(("hot", "cold"), held, strict=True):
            if twice := [i for i, n in ids.items() if n > 1]:
                verdict.blame(f"{table.name}: {len(twice)} events are twice in {where}, such as {twice[0]}")
        _compare_ids(table.name, compared.ids.get(table.data_type, set()), held, verdict)
    payloads = [*trades(tiers, span, compared.truth), *gaps(tiers, span)]
    verdict.of_truth = judge_payloads(payloads, compared.truth, compared.due)
    payloads += liquidations(tiers, span, compared.truth)
    judge_liquidations(payloads, compared.truth, compared.fired, compared.due_ms, verdict.of_truth)
    verdict.problems += verdict.of_truth.faults


def _ids(tier: Tier, table: str, span: Span) -> Counter[str]:
    return Counter(
        identity
        for piece in _pieces(span)
        for identity in select(tier, table, piece, "event_id").column(0).to_pylist()
    )


def _pieces(span: Span) -> Iterator[Span]:
    yield Span(span.start_ms - MARGIN_MS, span.start_ms)
    yield from span.pieces(PIECE_MS)
    yield Span(span.end_ms, span.end_ms + MARGIN_MS)


def _compare_ids(
    table: str, published: set[str], held: Sequence[Collection[str]], verdict: StoredVerdict
) -> None:
    hot, cold = map(set, held)
    stored = hot | cold
    verdict.rows[table] = len(stored)
    verdict.hot += len(hot)
    verdict.cold += len(cold)
    verdict.both += len(hot & cold)
    verdict.messages += len(published)
    for ids, what in ((published - stored, "published, not stored"), (stored - published, "never published")):
        if ids:
            verdict.blame(f"{table}: {len(ids)} events {what}, such as {sorted(ids)[:3]}")


# -- rows as payloads ------------------------------------------------------------------------------------------

_COMMON = (
    "event_id, stream_seq, exchange, market_type, instrument_id, "
    "toUnixTimestamp64Milli(timestamp) AS ts_ms, toUnixTimestamp64Milli(collected_at) AS collected_ts_ms"
)


def _rows(tiers: Sequence[Tier], table: str, span: Span, what: str) -> Iterator[Payload]:
    """Each event of either tier once."""
    for piece in _pieces(span):
        found: dict[str, Payload] = {}
        for tier in tiers:
            rows = select(tier, table, piece, f"{_COMMON}, {what}").to_pylist()
            found |= {row["event_id"]: row for row in rows}
        yield from found.values()


def trades(tiers: Sequence[Tier], span: Span, truth: Truth) -> Iterator[Payload]:
    """Stored trades, with figures in the exchange's texts again."""
    what = "trade_id, first_trade_id, last_trade_id, trade_seq, price, exchange_quantity, side"
    for row in _rows(tiers, "trades", span, what):
        yield row | _texts(row, truth) | {"data_type": "trade"}


def liquidations(tiers: Sequence[Tier], span: Span, truth: Truth) -> Iterator[Payload]:
    """Stored liquidations, the same."""
    what = "side, price, exchange_quantity, toUnixTimestamp64Milli(liquidation_time) AS liquidation_ts_ms"
    for row in _rows(tiers, "liquidations", span, what):
        yield row | _texts(row, truth) | {"data_type": "liquidation"}


def gaps(tiers: Sequence[Tier], span: Span) -> Iterator[Payload]:
    """Stored gaps."""
    what = (
        "affected_data_type, cause, last_id_before, first_id_after, detail, "
        "toUnixTimestamp64Milli(last_time_before) AS last_ts_ms_before, "
        "toUnixTimestamp64Milli(first_time_after) AS first_ts_ms_after"
    )
    for row in _rows(tiers, "gaps", span, what):
        yield row | {"data_type": "gap"}


def _texts(row: Payload, truth: Truth) -> Payload:
    listed = truth.instrument(WORKER_OF[row["exchange"], row["market_type"]], row["instrument_id"])
    return {
        "price": listed.price_text(_steps(row["price"], listed.ticks)),
        "exchange_quantity": listed.quantity_text(_steps(row["exchange_quantity"], listed.lots)),
    }


def _steps(figure: Decimal, grid: Grid) -> int:
    steps = figure.scaleb(grid.decimals) / grid.unit
    assert steps == int(steps), f"{figure} is no multiple of {grid.text}"
    return int(steps)


# -- books at instants -----------------------------------------------------------------------------------------


def judge_instants(
    tiers: Sequence[Tier], span: Span, count: int, seed: int, compared: Compared, verdict: StoredVerdict
) -> None:
    """Books rebuilt at random instants, as `marketprism book` does, are the true ones, or in a told gap."""
    rng = Random(f"instants/{seed}")
    names, truth = sorted(compared.due), compared.truth
    asked = sorted((rng.choice(names), rng.randrange(span.start_ms, span.end_ms)) for _ in range(count))
    holes = _book_holes(tiers, Span(span.start_ms - HOLES_MS, span.end_ms))
    real = {name: RealBook(*name, truth) for name in names}
    for name, at_ms in asked:
        worker, instrument = name
        verdict.instants += 1
        where = f"{worker} {instrument}: book at {at_ms}"
        try:
            book = verbs.Book(worker, instrument, at_ms, None, 0, "json").found(tiers)
        except ReadingError as error:
            verdict.unknown += 1
            if not any(a <= at_ms <= b for a, b in holes.get(name, ())):
                verdict.blame(f"{where}: {error}")
            continue
        if said := _wrong(book, real[name], truth.id_at(worker, instrument, at_ms)):
            verdict.blame(f"{where}: {said}")


def _wrong(book: BookAt, real: RealBook, true_id: int | None) -> str:
    if book.last_update_id != true_id:
        return f"is that of {book.last_update_id}, the true one of {true_id}"
    held = ConsumerBook()
    held.take(book.told() | {"update_type": "snapshot", "prev_update_id": None, "first_update_id": None})
    return differences(held, real, book.last_update_id)


def _book_holes(tiers: Sequence[Tier], span: Span) -> dict[tuple[str, str], list[tuple[int, int]]]:
    """From each told gap of a book to the next snapshot."""
    whole: dict[tuple[str, str], list[Payload]] = {}
    for row in _rows(tiers, "orderbook_deltas", span, "update_type"):
        if row["update_type"] == "snapshot":
            whole.setdefault(_name(row), []).append(row)
    found: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for gap in gaps(tiers, span):
        if gap["affected_data_type"] == "orderbook_delta":
            after = [
                row["ts_ms"] for row in whole.get(_name(gap), ()) if row["stream_seq"] > gap["stream_seq"]
            ]
            since_ms = min(gap["last_ts_ms_before"] or gap["ts_ms"], gap["ts_ms"]) - _EARLY_MS
            found.setdefault(_name(gap), []).append((since_ms, min(after, default=span.end_ms)))
    return found


def _name(row: Payload) -> tuple[str, str]:
    return WORKER_OF[row["exchange"], row["market_type"]], row["instrument_id"]


def judge_quality(tiers: Sequence[Tier], span: Span, verdict: StoredVerdict) -> None:
    """What `marketprism quality` says of it: nothing twice, and no book breaks without a gap."""
    for line in quality.report(tiers, span):
        if line.duplicates:
            verdict.blame(f"quality: {line.name}: {line.duplicates} duplicates")
        if line.book is not None and line.book.breaks:
            verdict.blame(f"quality: {line.name}: {line.book.breaks} breaks without a gap")


# -- the stream ------------------------------------------------------------------------------------------------


def published(url: str) -> dict[str, set[str]]:
    """The ids of all messages of the stream, by data type."""
    return asyncio.run(_published(url))


async def _published(url: str) -> dict[str, set[str]]:
    client = await nats.connect(url)
    found: dict[str, set[str]] = {}
    try:
        js = client.jetstream()
        config = ConsumerConfig(ack_policy=AckPolicy.NONE, mem_storage=True, headers_only=True)
        consumer = await js.add_consumer("MARKET_DATA", config)
        subscription = await js.pull_subscribe_bind(stream="MARKET_DATA", consumer=consumer.name)
        left = consumer.num_pending or 0
        while left > 0:
            for message in await subscription.fetch(min(1000, left), timeout=10):
                data_type = message.subject.partition(".")[0]
                found.setdefault(data_type, set()).add((message.headers or {})["Nats-Msg-Id"])
                left -= 1
    finally:
        await client.close()
    return found


def waiting(url: str) -> dict[str, Any]:
    """Messages that hot has not acknowledged, by data type, where there are any; and what it could not store."""
    return asyncio.run(_waiting(url))


async def _waiting(url: str) -> dict[str, Any]:
    client = await nats.connect(url)
    try:
        js = client.jetstream()
        found = {}
        for table in TABLES:
            info = await js.consumer_info("MARKET_DATA", f"marketprism_hot_{table.data_type}")
            found[table.data_type] = (info.num_pending or 0) + (info.num_ack_pending or 0)
        found["dead"] = (await js.stream_info("MARKET_DATA_DEAD")).state.messages
        return {name: n for name, n in found.items() if n}
    finally:
        await client.close()
