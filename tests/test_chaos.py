"""scripts/chaos: its judge can fail, its minimizer finds, and a short run of it finds nothing."""

import json
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from chaos.explain import Fired, unexplained
from chaos.judge import Verdict, awaited, judge
from chaos.liquidations import judge_liquidations
from chaos.minimize import minimize
from chaos.natsbox import nats_server
from chaos.run import LOG_LINES_AT_REST, log_problems
from chaos.schedule import (
    KINDS,
    AnyFault,
    ProcessFault,
    ScheduleError,
    begin_at,
    ends_s,
    kinds_at,
    random_faults,
    read,
    write,
)
from marketprism.simulator import WORKERS, Truth
from marketprism.simulator.faults import Fault
from marketprism.simulator.instruments import instrument
from marketprism.simulator.market import ASK, BID, BUY
from marketprism.simulator.truth import BookLog, Ledger, LiquidationRecord, TradeLog, TradeRow

ROOT = Path(__file__).parents[1]
WORKER, NAME = "binance_spot", "BTCUSDT"
T0_MS = 1_700_000_000_000
FIXED_SEED = 4
Payload = dict[str, Any]
needs_nats = pytest.mark.skipif(nats_server() is None, reason="no nats-server: run scripts/setup")

# --- the judge ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def truth() -> Truth:
    """Thirty trades with the ids 1 to 30, and a book whose best bid grows by a lot at each id from 101 to 130."""
    listed = instrument(WORKER, NAME)
    book, fills = BookLog(100, {100 * 2 + BID: 1, 110 * 2 + ASK: 5}, 3600), TradeLog(3600)
    for n in range(1, 31):
        fills.add(TradeRow(n, n, n, 105, n, T0_MS + n, BUY, 0))
        book.add(100 + n, 100 * 2 + BID, 1 + n)
        book.publish(100 + n, T0_MS + n)
    truth = Truth()
    truth.enter(Ledger(listed, book, fills, TradeLog(3600)))
    return truth


COMMON = {"exchange": "binance", "market_type": "spot", "instrument_id": NAME}
TICK, LOT = "0.01", "0.00001"


def trade(n: int, **more: Any) -> Payload:
    one: Payload = {"data_type": "trade", "trade_id": str(n), "first_trade_id": None, "last_trade_id": None}
    figures = {"price": "1.05000000", "exchange_quantity": f"0.{n:05}000", "side": "buy"}
    return COMMON | one | {"trade_seq": None, "ts_ms": T0_MS + n} | figures | more


def delta(n: int, **more: Any) -> Payload:
    ids = {"first_update_id": n, "prev_update_id": None, "last_update_id": n}
    levels = {"bids": [["1.00000000", f"0.{n - 99:05}000"]], "asks": []}
    kind = {"data_type": "orderbook_delta", "update_type": "delta", "exact_from": None, "exact_to": None}
    return COMMON | kind | ids | levels | {"ts_ms": T0_MS + n} | more


def snapshot(n: int, **more: Any) -> Payload:
    whole = {"update_type": "snapshot", "first_update_id": None, "asks": [["1.10000000", "0.00005000"]]}
    return delta(n) | whole | more


def gap(
    data_type: str, before: int | None, after: int | None, cause: str = "sequence", **more: Any
) -> Payload:
    ids = {"last_id_before": before and str(before), "first_id_after": after and str(after)}
    times = {"last_ts_ms_before": T0_MS, "first_ts_ms_after": T0_MS, "collected_ts_ms": T0_MS}
    return COMMON | {"data_type": "gap", "affected_data_type": data_type, "cause": cause} | ids | times | more


def verdict(truth: Truth, payloads: list[Payload], last: int = 30) -> Verdict:
    return judge(
        [("", json.dumps(one).encode()) for one in payloads], truth, {(WORKER, NAME): range(1, last + 1)}
    )


TRADES = [trade(n) for n in range(5, 31)]
BOOK = [snapshot(110), *(delta(n) for n in range(111, 131))]


def test_the_judge_accepts_what_is_right(truth: Truth) -> None:
    found = verdict(truth, TRADES + BOOK)
    assert found.faults == []
    assert (found.trades, found.fills, found.missing, found.books) == (26, 26, 0, 21)


def without(payloads: list[Payload], *indices: int) -> list[Payload]:
    return [one for n, one in enumerate(payloads) if n not in indices]


@pytest.mark.parametrize(
    ("stream", "word"),
    [
        (without(TRADES, 3) + BOOK, "1 trades missing without a word, first 8"),
        (TRADES[:-2] + BOOK, "2 trades missing without a word, first 29, last 30"),
        (BOOK, "not one trade was published"),
        ([*without(TRADES, 3, 4), gap("trade", 7, 9), *BOOK], "1 trades missing without a word, first 9"),
        ([*without(TRADES, 3), gap("orderbook_delta", 7, 9), *BOOK], "1 trades missing"),
        ([*TRADES, trade(9), *BOOK], "trade 9 published twice"),
        ([*TRADES, trade(31, trade_id="77"), *BOOK], "trade 77 never happened"),
        ([*without(TRADES, 2), trade(7, price="1.06000000"), *BOOK], "trade 7 is not as it happened"),
        ([*without(TRADES, 2), trade(7, side="sell"), *BOOK], "trade 7 is not as it happened"),
        ([*without(TRADES, 2), trade(7, exchange_quantity="0.00008000"), *BOOK], "not as it happened"),
        (TRADES + without(BOOK, 4), "book at 115: the chain breaks without a gap"),
        ([*TRADES, *BOOK[:4], delta(114, bids=[["1.00000000", "0.1"]])], "book at 114: 1 bids wrong"),
        ([*TRADES, snapshot(110, asks=[])], "book at 110: 0 asks wrong, 1 absent"),
        ([*TRADES, snapshot(110, asks=[["1.1", "0.00005"], ["1.2", "1"]])], "book at 110: 1 asks wrong"),
        ([*TRADES, snapshot(99)], "book at 99: not known to the truth"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_judge_finds_each_kind_of_defect(truth: Truth, stream: list[Payload], word: str) -> None:
    faults = verdict(truth, stream).faults
    assert len(faults) == 1
    assert word in faults[0]


def test_a_told_hole_is_no_defect(truth: Truth) -> None:
    trades = [*without(TRADES, 3, 4, 5), gap("trade", 7, 11)]
    books = [*BOOK[:5], gap("orderbook_delta", 114, 117), snapshot(117), *BOOK[8:]]
    found = verdict(truth, trades + books)
    assert found.faults == []
    assert found.missing == 3
    assert len(found.gaps) == 2


def test_a_told_hole_of_aggregates_is_counted_in_fills() -> None:
    worker = "binance_derivatives"
    fills, aggregates = TradeLog(3600), TradeLog(3600)
    for n in range(1, 31):
        fills.add(TradeRow(n, n, n, 105, n, T0_MS + n, BUY, 0))
    for n in range(1, 16):  # 501 sums up 1 and 2
        aggregates.add(TradeRow(500 + n, 2 * n - 1, 2 * n, 105, 4 * n - 1, T0_MS + 2 * n, BUY, 0))
    truth = Truth()
    book = BookLog(100, {100 * 2 + BID: 1, 110 * 2 + ASK: 5}, 3600)
    truth.enter(Ledger(instrument(worker, NAME), book, fills, aggregates))
    own = {"market_type": "perpetual"}
    trades = [
        trade(
            500 + n,
            first_trade_id=str(2 * n - 1),
            last_trade_id=str(2 * n),
            exchange_quantity=f"{(4 * n - 1) / 1000:.3f}",
            price="1.05",
            **own,
        )
        for n in (*range(3, 7), *range(10, 16))
    ]
    due = {(worker, NAME): range(1, 31)}

    def held(*payloads: Payload) -> tuple[int, list[str]]:
        messages = [("", json.dumps(one).encode()) for one in payloads]
        return awaited(messages, due, truth), [
            f for f in judge(messages, truth, due).faults if "missing" in f
        ]

    assert held(*trades, gap("trade", 506, 510, **own)) == (0, [])
    left, faults = held(*trades, gap("trade", 506, 509, **own))
    assert left == 2
    assert ["2 trades missing without a word, first 17, last 18" in f for f in faults] == [True]


LIQUIDATION = {"data_type": "liquidation", "side": "sell", "price": "1.2", "exchange_quantity": "3"}
SWAP = {"exchange": "okx", "market_type": "perpetual", "instrument_id": "BTC-USDT-SWAP", "symbol": "BTC-USDT"}


@pytest.mark.parametrize(
    ("stream", "faults", "word"),
    [
        ([20_000], [], ""),
        ([], [], "missing without a word"),
        ([20_000, 20_000], [], "there twice"),
        ([20_000, 25_000], [], "never happened"),
        ([(15_000, 25_000)], [], ""),
        ([(35_000, 45_000)], [], "missing without a word"),
        ([], ["silence"], ""),
        ([], ["disconnect"], "missing without a word"),
    ],
)
def test_liquidations_are_there_once_or_told(stream: list[Any], faults: list[str], word: str) -> None:
    truth, listed = Truth(), instrument("okx_derivatives", "BTC-USDT-SWAP")
    ledger = Ledger(listed, BookLog(1, {}, 3600), TradeLog(3600), TradeLog(3600))
    ledger.liquidations.append(LiquidationRecord("sell", "1.2", "3", T0_MS + 20_000))
    truth.enter(ledger)
    payloads: list[Payload] = [SWAP | {"data_type": "trade", "collected_ts_ms": T0_MS}]
    for one in stream:
        if isinstance(one, int):
            payloads.append(SWAP | LIQUIDATION | {"liquidation_ts_ms": T0_MS + one})
        else:
            times = {"last_ts_ms_before": T0_MS + one[0], "first_ts_ms_after": T0_MS + one[1]}
            payloads.append(SWAP | {"data_type": "gap", "affected_data_type": "liquidation"} | times)
    played = [fired(name, "okx_derivatives", 10, 12) for name in faults]
    found = Verdict()
    judge_liquidations(payloads, truth, played, T0_MS + 60_000, found)
    assert [word in one for one in found.faults] == ([True] if word else [])


def test_a_gap_without_ids_covers_by_its_times(truth: Truth) -> None:
    hole = without(TRADES, 3, 4)
    times = {"last_ts_ms_before": T0_MS + 7, "first_ts_ms_after": T0_MS + 10}
    assert verdict(truth, [*hole, gap("trade", None, None, **times), *BOOK]).faults == []
    times["first_ts_ms_after"] = T0_MS + 8
    assert "first 9" in verdict(truth, [*hole, gap("trade", None, None, **times), *BOOK]).faults[0]


# --- gaps and faults ----------------------------------------------------------------------------------------------


def fired(name: str, worker: str, from_s: float = -1.0, to_s: float = 1.0) -> Fired:
    fault: AnyFault = (Fault if name in KINDS.keys() - {"kill_worker", "nats_away"} else ProcessFault)(
        name, worker
    )
    return Fired(fault, int(T0_MS + from_s * 1000), int(T0_MS + to_s * 1000))


def test_at_a_high_rate_more_may_be_told() -> None:
    overflow = gap("trade", 1, 3, "overflow"), fired("nats_away", "nats")
    restart = gap("trade", 1, 3, "restart"), fired("kill_worker", WORKER)
    for told, fault in (overflow, restart):
        assert unexplained([told], [fault], kinds_at(120))
        assert unexplained([told], [fault], kinds_at(1200)) == []


@pytest.mark.parametrize(
    ("told", "fault", "explained"),
    [
        (gap("orderbook_delta", 1, 3), fired("drop_next_book_update", WORKER), True),
        (gap("orderbook_delta", 1, 3), fired("drop_next_book_update", "okx_spot"), False),
        (gap("trade", 1, 3), fired("drop_next_book_update", WORKER), False),
        (gap("orderbook_delta", 1, 3), fired("duplicate_book_update", WORKER), False),
        (gap("orderbook_delta", 1, 3), fired("drop_next_book_update", WORKER, 5, 6), False),
        (gap("orderbook_delta", 1, 3), fired("drop_next_book_update", WORKER, -200, -199), False),
        (gap("orderbook_delta", 1, 3, "restart"), fired("kill_worker", WORKER), True),
        (gap("orderbook_delta", 1, 3, "restart"), fired("kill_worker", "okx_spot"), False),
        (gap("orderbook_delta", 1, 3, "restart"), fired("disconnect", WORKER), False),
        (gap("orderbook_delta", 1, 3, "sequence"), fired("kill_worker", WORKER), False),
        (gap("trade", 1, 3, "restart"), fired("kill_worker", WORKER), False),
        (gap("orderbook_delta", 1, 3, "overflow"), fired("nats_away", "nats"), False),
    ],
)
def test_a_gap_needs_a_fault_that_explains_it(told: Payload, fault: Fired, explained: bool) -> None:
    assert (unexplained([told], [fault], KINDS) == []) is explained


def test_logs_are_searched_and_bounded() -> None:
    assert log_problems("INFO all is well\n" * LOG_LINES_AT_REST, []) == []
    assert len(log_problems("INFO all is well\n" * (LOG_LINES_AT_REST + 1), [])) == 1
    said = "x\nTraceback (most recent call last):\n  y\nKeyError: 1\n[ERROR] internal error on a frame\n"
    assert log_problems(said, []) == ["log: Traceback: KeyError: 1", "log: [ERROR] internal error on a frame"]


# --- schedules and the minimizer ----------------------------------------------------------------------------------


def test_a_seed_gives_the_same_schedule_again(tmp_path: Path) -> None:
    faults = random_faults(7, 120, WORKERS, 2)
    assert faults == random_faults(7, 120, WORKERS, 2) != random_faults(8, 120, WORKERS, 2)
    assert {type(one) for one in faults} == {Fault, ProcessFault}
    write(tmp_path / "schedule.json", faults)
    assert read(tmp_path / "schedule.json") == faults


def test_a_schedule_begins_earlier_and_is_otherwise_the_same() -> None:
    faults = [Fault("disconnect", "okx_spot", 50), ProcessFault("nats_away", "nats", 55.5, 3)]
    moved = begin_at(faults, 2)
    assert [one.at_s for one in moved] == [2, 7.5]
    assert ends_s(moved) == 10.5
    assert begin_at(moved, 4) == moved


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "expected a JSON list of faults"),
        ("{}", "expected a JSON list of faults, got dict"),
        ("[{}]", "fault 1: expected a name, a worker and at_s"),
        ('[{"name": "nix", "worker": "nats"}]', "fault 1: expected one of "),
        (
            '[{"name": "nats_away", "worker": "okx_spot"}]',
            "fault 1: nats_away: expected one of nats, got 'okx_spot'",
        ),
        ('[{"name": "nats_away", "worker": "nats", "for": 3}]', "fault 1: "),
        ('[{"name": "okx_reset", "worker": "binance_spot"}]', "fault 1: okx_reset"),
    ],
)
def test_a_wrong_schedule_is_one_line(tmp_path: Path, text: str, word: str) -> None:
    (tmp_path / "wrong.json").write_text(text)
    with pytest.raises(ScheduleError) as error:
        read(tmp_path / "wrong.json")
    assert word in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("culprits", [{13}, {3, 4}, {0, 31}, {5, 17, 29}, set(range(32))])
def test_the_minimizer_finds_the_culprits(culprits: set[int]) -> None:
    asked: list[tuple[int, ...]] = []

    def fails(items: list[int]) -> bool:
        asked.append(tuple(items))
        return culprits <= set(items)

    assert minimize(range(32), fails) == sorted(culprits)
    assert len(set(asked)) == len(asked) < 400


def test_the_minimizer_stops_in_time_with_the_best_so_far() -> None:
    left = iter([True] * 6)
    found = minimize(range(64), lambda items: 40 in items, lambda: next(left, False))
    assert 40 in found
    assert 1 < len(found) < 64


def test_the_minimizer_keeps_all_where_nothing_smaller_fails() -> None:
    assert minimize(range(5), lambda items: False) == list(range(5))


# --- the whole ----------------------------------------------------------------------------------------------------


def chaos(*argv: str, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "chaos", *argv]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False)


@needs_nats
@pytest.mark.parametrize("seed", [FIXED_SEED, random.SystemRandom().randrange(10**6)], ids=["fixed", "fresh"])
def test_all_promises_are_kept_under_random_faults(seed: int) -> None:
    told = chaos("--short", "--seed", str(seed), "--minimize", "0")
    assert told.returncode == 0, f"again: scripts/chaos --short --seed {seed}\n{told.stdout}{told.stderr}"
    compared = dict(re.findall(r"^(trades|books) +([\d,]+)", told.stdout, re.MULTILINE))
    assert all(int(n.replace(",", "")) > 200 for n in compared.values())
    assert len(compared) == 2


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["--exchanges", "okx_spot,okex"], "expected names out of binance_spot"),
        (["--seconds", "0"], "expected a number above 0, got 0"),
        (["--schedule", "/none.json"], "/none.json: No such file or directory"),
    ],
)
def test_what_cannot_be_run_is_told(argv: list[str], word: str) -> None:
    told = chaos(*argv)
    assert told.returncode == 2
    assert word in told.stderr
    assert "Traceback" not in told.stderr


@pytest.fixture
def running(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [
        sys.executable,
        "-m",
        "chaos",
        "--seconds",
        "60",
        "--exchanges",
        "okx_spot",
        "--keep",
        str(tmp_path),
    ]
    # A shell starts what runs in the background deaf to Ctrl-C, and we may be such.
    hearing = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=hearing,  # noqa: PLW1509 - no thread here
    ) as process:
        yield process
        process.send_signal(signal.SIGINT)  # what it started ends with it
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()


@needs_nats
def test_ctrl_c_stops_all_that_was_started(running: subprocess.Popen[str], tmp_path: Path) -> None:
    assert running.stdout is not None
    for line in running.stdout:
        if " okx_spot" in line and "faults in" not in line:  # a fault: so everything runs
            break
    deadline = time.monotonic() + 30
    while not any("nats-server" in words[0] for words in _running_on(tmp_path)):  # a fault may have killed it
        assert time.monotonic() < deadline, _running_on(tmp_path)
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    assert "stopped" in running.stdout.read()
    assert running.wait(30) == 130
    assert _running_on(tmp_path) == []


def _running_on(folder: Path) -> list[list[str]]:
    """The command lines of processes of a run that is kept there, its own left out."""
    found = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return [words for words in found if "--keep" not in words and any(str(folder) in word for word in words)]
