"""scripts/chaos --storage: what it says of stored rows is true, and a short run of it finds nothing."""

import random
import re
import subprocess
import sys
from typing import Any

import pytest
from natsbox import nats_server
from samples import trade
from storagebox import ROOT
from storedbook import Stored, decode_levels

from chaos.schedule import PROCESS_FAULTS, STORE_FAULTS, random_faults, random_process_faults
from chaos.stored import Compared, StoredVerdict, judge_instants, judge_quality, judge_stored
from marketprism.events import Gap, OrderBookDelta
from marketprism.simulator import WORKERS, Truth
from marketprism.simulator.instruments import instrument
from marketprism.simulator.market import ASK, BID, BUY
from marketprism.simulator.truth import BookLog, Ledger, TradeLog, TradeRow
from marketprism.storage.reading import Span

NAME = ("binance_spot", "BTCUSDT")
T0_MS = 1_795_417_200_000
SPAN = Span(T0_MS, T0_MS + 30_000)


@pytest.fixture(scope="module")
def truth() -> Truth:
    """A trade a second with the ids 1 to 29, and a book whose best bid grows at each id from 101 to 129."""
    listed = instrument(*NAME)
    book, fills = BookLog(100, {100 * 2 + BID: 1, 110 * 2 + ASK: 5}, 3600), TradeLog(3600)
    book.publish(100, T0_MS)
    for n in range(1, 30):
        fills.add(TradeRow(n, n, n, 105, n, T0_MS + 1000 * n, BUY, 0))
        book.add(100 + n, 100 * 2 + BID, 1 + n)
        book.publish(100 + n, T0_MS + 1000 * n)
    truth = Truth()
    truth.enter(Ledger(listed, book, fills, TradeLog(3600)))
    return truth


def at(n: int) -> dict[str, Any]:
    return {"ts_ms": T0_MS + 1000 * n, "collected_ts_ms": T0_MS + 1000 * n + 5, "instrument_id": NAME[1]}


def traded(n: int, **changed: Any) -> Any:
    figures = {"price": "1.05000000", "exchange_quantity": f"0.{n:05}000", "side": "buy"}
    return n, f"trade:{n}", trade(n, **at(n), **figures | changed)


def booked(n: int, **changed: Any) -> Any:
    """The book at id 100 + n: whole every ten."""
    whole = n % 10 == 0
    fields: dict[str, Any] = {
        "exchange": "binance",
        "market_type": "spot",
        "symbol": "BTC-USDT",
        "update_type": "snapshot" if whole else "delta",
        "bids": decode_levels(f'[["1.00000000","0.{n + 1:05}000"]]'.encode()),
        "asks": decode_levels(b'[["1.10000000","0.00005000"]]') if whole else [],
        "first_update_id": None,
        "last_update_id": 100 + n,
        "prev_update_id": None if whole else 99 + n,
        "quantity_unit": "base",
    }
    return 1000 + n, f"book:{n}", OrderBookDelta(**at(n), **fields | changed)


TRADES = [traded(n) for n in range(1, 30)]
BOOKS = [booked(n) for n in range(30)]


def gap(affected: str, before: int, after: int, **times: Any) -> Any:
    fields = {
        "exchange": "binance",
        "market_type": "spot",
        "symbol": "BTC-USDT",
        "affected_data_type": affected,
        "cause": "restart",
        "last_id_before": str(before),
        "first_id_after": str(after),
    }
    return 1000.5, f"gap:{before}", Gap(**at(0) | fields | times)


def judged(
    stored: Stored, truth: Truth, trades: list[Any], books: list[Any], gaps: list[Any] | None = None
) -> StoredVerdict:
    """What is said of these rows, half of which are in a file and half of those in both places."""
    published = {
        "trade": {identity for _, identity, _ in TRADES if _held(identity, trades, gaps)},
        "orderbook_delta": {identity for _, identity, _ in BOOKS if _held(identity, books, gaps)},
        "gap": {identity for _, identity, _ in gaps or []},
    }
    stored.insert("trade", trades)
    stored.insert("orderbook_delta", books)
    stored.insert("gap", [(1500, identity, data) for _, identity, data in gaps or []])
    for table, drop in (("trades", False), ("orderbook_deltas", True)):
        stored.move(table, T0_MS, drop=drop)
    verdict = StoredVerdict()
    due = {NAME: range(1, 30)}
    compared = Compared(published, truth, due, SPAN.end_ms, [])
    judge_stored(stored.tiers, SPAN, compared, verdict)
    judge_instants(stored.tiers, SPAN, 12, 1, compared, verdict)
    judge_quality(stored.tiers, SPAN, verdict)
    return verdict


def _held(identity: str, rows: list[Any], gaps: list[Any] | None) -> bool:
    """What a gap tells of was never published; all else was."""
    return not gaps or identity in {name for _, name, _ in rows}


def test_what_is_right_is_accepted(stored: Stored, truth: Truth) -> None:
    found = judged(stored, truth, TRADES, BOOKS)
    assert found.problems == []
    assert (found.messages, found.rows["trades"], found.rows["orderbook_deltas"]) == (59, 29, 30)
    assert (found.hot, found.cold, found.both) == (29, 59, 29)
    assert (found.instants, found.unknown, found.of_truth.trades) == (12, 0, 29)


@pytest.mark.parametrize(
    ("trades", "books", "says"),
    [
        (TRADES[:4] + TRADES[5:], BOOKS, "trades: 1 events published, not stored, such as ['trade:5']"),
        (TRADES[:4] + TRADES[5:], BOOKS, "1 trades missing without a word, first 5"),
        ([*TRADES, (99, "trade:99", TRADES[0][2])], BOOKS, "trades: 1 events never published"),
        ([*TRADES, (99, "trade:99", TRADES[0][2])], BOOKS, "trade 1 published twice"),
        ([*TRADES, (99, "trade:1", TRADES[1][2])], BOOKS, "trades: 1 events are twice in hot"),
        ([traded(1, price="1.06"), *TRADES[1:]], BOOKS, "trade 1 is not as it happened"),
        (TRADES, BOOKS[:4] + BOOKS[5:], "book at"),
        (TRADES, BOOKS[:4] + BOOKS[5:], "1 breaks without a gap"),
        (TRADES, BOOKS[:12], "is that of 111, the true one of"),
        (TRADES, [*BOOKS[:10], booked(10, asks=[]), *BOOKS[11:]], "1 absent"),
    ],
)
def test_each_defect_is_found(
    stored: Stored, truth: Truth, trades: list[Any], books: list[Any], says: str
) -> None:
    found = judged(stored, truth, trades, books).problems
    assert [line for line in found if says in line], found


def test_a_told_gap_is_no_defect(stored: Stored, truth: Truth) -> None:
    gaps = [
        gap("trade", 4, 6),
        gap(
            "orderbook_delta",
            103,
            110,
            last_ts_ms_before=T0_MS + 3000,
            first_ts_ms_after=T0_MS + 10_000,
            ts_ms=T0_MS + 9000,
        ),
    ]
    found = judged(stored, truth, TRADES[:4] + TRADES[5:], BOOKS[:4] + BOOKS[10:], gaps)
    assert found.problems == []
    assert found.of_truth.missing == 1
    assert 0 < found.unknown < 9


def test_stores_are_killed_only_where_there_are_any() -> None:
    for seed in range(20):
        assert not {f.name for f in random_faults(seed, 300, WORKERS, 1)} & set(STORE_FAULTS)
    names = {f.name for seed in range(20) for f in random_process_faults(seed, 300, WORKERS, 5)}
    assert names == set(PROCESS_FAULTS)


@pytest.mark.skipif(nats_server() is None, reason="no nats-server: run scripts/setup")
def test_all_is_stored_once_whatever_is_killed() -> None:
    seed = random.SystemRandom().randrange(10**6)
    argv = [
        "--storage",
        "50",
        "--exchanges",
        "okx_spot",
        "--seconds",
        "25",
        "--every",
        "3",
        "--minimize",
        "0",
    ]
    command = [sys.executable, "-m", "chaos", *argv, "--seed", str(seed)]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert told.returncode == 0, (
        f"again: scripts/chaos --seed {seed} {' '.join(argv)}\n{told.stdout}{told.stderr}"
    )
    figures = dict(
        re.findall(r"^(trades|  orderbook_deltas|books at instants) +([\d,]+)", told.stdout, re.MULTILINE)
    )
    assert len(figures) == 3
    assert all(int(n.replace(",", "")) > 10 for n in figures.values()), told.stdout
