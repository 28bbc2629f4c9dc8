"""Faults on demand: their catalog, one fault, and schedules of them, from a text or from a seed."""

import math
import random
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields

import yaml

from marketprism.simulator.options import WORKERS, SimulatorError, unknown

_ALL = frozenset(WORKERS)
_BINANCE = frozenset(one for one in WORKERS if one.startswith("binance"))
_OKX = frozenset(one for one in WORKERS if one.startswith("okx"))
_DERIBIT = frozenset(one for one in WORKERS if one.startswith("deribit"))
_USDM = frozenset({"binance_derivatives"})

_NONE: frozenset[str] = frozenset()
_BOOK = frozenset({"orderbook_delta"})
_TRADE = frozenset({"trade"})
_STREAMS = frozenset(
    {"orderbook_delta", "trade", "liquidation", "funding_rate", "open_interest", "volatility_index"}
)


@dataclass(frozen=True, slots=True)
class FaultKind:
    """One row of the catalog.

    summary: what happens, on one line. workers: where it can happen. lasting: it uses Fault.seconds.
    gap_expected: the data types (the first token of a subject) of which a collector may rightly publish a `gap`;
    empty where it must ride the fault out. lies: the exchange publishes what is not so and nothing tells it, so what a
    collector publishes is wrong, too, until it finds out.
    """

    summary: str
    workers: frozenset[str]
    lasting: bool
    gap_expected: frozenset[str]
    lies: bool = False


def _kind(
    summary: str,
    gap_expected: frozenset[str] = _NONE,
    *,
    workers: frozenset[str] = _ALL,
    lasting: bool = False,
    lies: bool = False,
) -> FaultKind:
    return FaultKind(summary, workers, lasting, gap_expected, lies)


CATALOG: dict[str, FaultKind] = {
    # books
    "drop_next_book_update": _kind("the next book update is lost on its way: a sequence gap", _BOOK),
    "reorder_book_updates": _kind("the next two book updates of an instrument change places", _BOOK),
    "duplicate_book_update": _kind("the next book update comes twice"),
    "cross": _kind("the next book update carries a bid above the best ask", _BOOK),
    "orphan_deletes": _kind("the next book update deletes a level a side that nobody has"),
    "wrong_level": _kind(
        "the next book update gives the third best bid a wrong quantity, under right ids", _BOOK, lies=True
    ),
    "price_run": _kind(
        "within `seconds` the price travels past every level of the book; the next run comes back",
        _BOOK,
        lasting=True,
    ),
    # trades
    "drop_next_trade": _kind("the next trade message is lost on its way", _TRADE),
    "duplicate_trade": _kind("the next trade message comes twice"),
    "late_trade": _kind("the next two trade messages of a channel change places", _TRADE),
    # the wire
    "disconnect": _kind("all websockets of the worker are aborted", _STREAMS),
    "disconnect_mid_snapshot": _kind(
        "the next book snapshot, in-band or over REST, stops in its middle with a reset", _STREAMS
    ),
    "disconnect_mid_frame": _kind(
        "the next book update stops in the middle of its frame with a reset", _STREAMS
    ),
    "silence": _kind(
        "open websockets of the worker stay open and get nothing for `seconds`; 0: never again",
        _STREAMS,
        lasting=True,
    ),
    "half_open": _kind(
        "the peer of open websockets is gone without a word: it reads, writes and answers nothing; "
        "a reset after `seconds`, 0: never",
        _STREAMS,
        lasting=True,
    ),
    "slow": _kind("frames trickle at 5 kB a second and websocket, the rest waits", lasting=True),
    "garbage": _kind("the next book or trade message is not JSON", _STREAMS),
    "truncated": _kind("the next book or trade message is JSON cut off in its middle", _STREAMS),
    "binary": _kind("the next book or trade message is a binary frame that is no text", _STREAMS),
    "clock_ahead": _kind("the exchange's clock is 2 s ahead", lasting=True),
    "clock_behind": _kind("the exchange's clock is 2 s behind", lasting=True),
    "notice": _kind("the exchange announces maintenance: serverShutdown, notice 64008 or platform_state"),
    # REST
    "rate_limit": _kind("the next REST request is answered 429 with Retry-After 1"),
    "rate_limit_ban": _kind(
        "the next REST request is answered 429 with Retry-After `seconds`; who asks again before gets 418 for as long",
        workers=_BINANCE,
        lasting=True,
    ),
    # Binance
    "binance_rest_at_edge": _kind(
        "the next REST book ends where a diff ends: U == L + 1, on USD-M pu == L", workers=_BINANCE
    ),
    "binance_rest_inside": _kind(
        "the next REST book ends inside a diff, where one has begun: U <= L < u", workers=_BINANCE
    ),
    "binance_rest_stale": _kind(
        "the next REST book is 10 s old, older than the first diff held: L < U - 1", workers=_BINANCE
    ),
    "binance_24h_cut": _kind(
        "open websockets reach the end of their 24 h in `seconds` and are closed",
        _STREAMS,
        workers=_BINANCE,
        lasting=True,
    ),
    "binance_wrong_route": _kind(
        "the next websocket is acknowledged and stays silent, as on a path that does not carry its streams",
        _STREAMS,
        workers=_USDM,
    ),
    # OKX
    "okx_reset": _kind(
        "the next `books` update restarts the sequence at a smaller seqId (maintenance)", workers=_OKX
    ),
    "okx_keepalive": _kind("a `books` update without levels and seqId == prevSeqId", workers=_OKX),
    "okx_checksum_zero": _kind("`books` messages carry checksum 0", workers=_OKX, lasting=True),
    "okx_checksum_absent": _kind("`books` messages carry no checksum", workers=_OKX, lasting=True),
    "okx_no_snapshot": _kind(
        "who subscribes to `books` gets no snapshot: REST has it", workers=_OKX, lasting=True
    ),
    "okx_error_60011": _kind("the next operation is answered 60011, please log in", _STREAMS, workers=_OKX),
    "okx_error_60012": _kind("the next operation is answered 60012, invalid request", _STREAMS, workers=_OKX),
    "okx_operations_spent": _kind(
        "open websockets have spent their 480 operations of this hour: 60014", _STREAMS, workers=_OKX
    ),
    "okx_no_pong": _kind("the next text `ping` is not answered", _STREAMS, workers=_OKX),
    # Deribit
    "deribit_ack_subset": _kind(
        "the next channel asked for is missing from the answer and stays silent", _STREAMS, workers=_DERIBIT
    ),
    "deribit_no_snapshot": _kind(
        "the next book channel asked for is taken as held already: changes without a snapshot",
        _BOOK,
        workers=_DERIBIT,
    ),
    "deribit_error_13778": _kind(
        "the next subscribe call is refused whole with 13778, as with a raw channel",
        _STREAMS,
        workers=_DERIBIT,
    ),
    "deribit_heartbeat_close": _kind(
        "a test_request whose answer is lost: closed with 4000 after `seconds`",
        _STREAMS,
        workers=_DERIBIT,
        lasting=True,
    ),
    "deribit_id_jump": _kind("the counter of change ids leaps ahead by 10^9", workers=_DERIBIT),
    "deribit_exponents": _kind(
        "numbers of book changes have exponents: 8.42005e+04, 1e-05", workers=_DERIBIT, lasting=True
    ),
    "deribit_locked": _kind("platform_state says locked: true", workers=_DERIBIT, lasting=True),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault to inject.

    at_s: seconds after the start of its schedule. seconds: how long a lasting one lasts; 0 has no end, unless the
    catalog says otherwise; the others ignore it. count: how often one that waits for its chance strikes.
    instrument: the exchange's own id, None for any; what strikes a whole connection ignores it.
    Raises SimulatorError for a name, a worker or a number that cannot be.
    """

    name: str
    worker: str
    at_s: float = 0.0
    seconds: float = 0.0
    count: int = 1
    instrument: str | None = None

    def __post_init__(self) -> None:
        if self.name not in CATALOG:
            raise unknown("fault", self.name, CATALOG)
        if self.worker not in WORKERS:
            raise unknown("worker", self.worker, WORKERS)
        workers = CATALOG[self.name].workers
        if self.worker not in workers:
            raise SimulatorError(f"{self.name}: expected {' or '.join(sorted(workers))}, got {self.worker!r}")
        for key in ("at_s", "seconds"):
            value = getattr(self, key)
            if type(value) not in (int, float) or not 0 <= value < math.inf:
                raise SimulatorError(f"{self.name}: {key}: expected a number of at least 0, got {value!r}")
        if type(self.count) is not int or self.count < 1:
            raise SimulatorError(
                f"{self.name}: count: expected a whole number of at least 1, got {self.count!r}"
            )
        if not isinstance(self.instrument, str | None):
            raise SimulatorError(f"{self.name}: instrument: expected a text, got {self.instrument!r}")


_KEYS = tuple(one.name for one in fields(Fault))
_NEEDED = tuple(one.name for one in fields(Fault) if one.default is MISSING)
_SHORTEST_S, _LONGEST_S = 1.0, 6.0


def fault_of(item: object) -> Fault:
    """The fault an object (as JSON or YAML gives it) stands for. Raises SimulatorError with one line."""
    if not isinstance(item, dict):
        raise SimulatorError(f"expected an object with {' and '.join(_NEEDED)}, got {item!r:.60}")
    for key in item:
        if key not in _KEYS:
            raise unknown("key", key, _KEYS)
    for key in _NEEDED:
        if not isinstance(item.get(key), str):
            raise SimulatorError(f"{key}: expected a text, got {item.get(key)!r:.60}")
    return Fault(**item)


def as_object(fault: Fault) -> dict[str, object]:
    """What fault_of() reads back, without what is at its default."""
    values = {one.name: getattr(fault, one.name) for one in fields(Fault)}
    return {one.name: values[one.name] for one in fields(Fault) if values[one.name] != one.default}


def parse_schedule(text: str) -> list[Fault]:
    """The faults of a YAML or JSON list of objects with the fields of Fault, in order of at_s.

    Raises SimulatorError with one line that names the item, counted from 1.
    """
    try:
        items = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        where = " ".join(str(error).split())
        raise SimulatorError(f"expected a YAML or JSON list of faults: {where}") from None
    if not isinstance(items, list):
        raise SimulatorError(f"expected a YAML or JSON list of faults, got {items!r:.60}")
    schedule = []
    for number, item in enumerate(items, start=1):
        try:
            schedule.append(fault_of(item))
        except SimulatorError as error:
            raise SimulatorError(f"item {number}: {error}") from None
    return sorted(schedule, key=lambda fault: fault.at_s)


def schedule_text(schedule: Sequence[Fault]) -> str:
    """The schedule as parse_schedule() reads it, a fault a line."""
    lines = (
        yaml.safe_dump(as_object(one), default_flow_style=True, width=1000, sort_keys=False)
        for one in schedule
    )
    return "".join(f"- {line}" for line in lines)


def random_schedule(seed: int, seconds: float, workers: Sequence[str], every_s: float) -> list[Fault]:
    """Faults of all kinds but lies at random moments, one in every_s on average, for so many seconds.

    The same arguments give the same schedule. Lasting faults last 1 to 6 s. Raises SimulatorError where the workers
    or every_s cannot be.
    """
    if not workers or not 0 < every_s < math.inf:
        raise SimulatorError(
            f"expected a worker and more than 0 s between faults, got {workers!r}, {every_s!r}"
        )
    rng = random.Random(f"{seed}/faults")
    schedule: list[Fault] = []
    at_s = rng.expovariate(1.0 / every_s)
    while at_s < seconds:
        worker = rng.choice(workers)
        name = rng.choice(
            [name for name, kind in CATALOG.items() if worker in kind.workers and not kind.lies]
        )
        lasts_s = round(rng.uniform(_SHORTEST_S, _LONGEST_S), 1) if CATALOG[name].lasting else 0.0
        schedule.append(Fault(name, worker, round(at_s, 3), lasts_s))
        at_s += rng.expovariate(1.0 / every_s)
    return schedule
