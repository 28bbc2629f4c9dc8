"""The contract: what a venue is told, and the few things it may ask for.

A venue knows no socket, no clock and nothing to wait for. Whoever drives it (worker, replay, fuzzing, benchmark)
tells it what happened and when, and does what it asks:

    start(now) → opened(socket, conn, now) → receive(conn, data, now)* → closed(conn, cause, now)
    response(fetch, status, body, now) for each `Fetch`; tick(now) about ten times a second

Each returns what came of it, in order: events to publish, requests to carry out, notes to log. `now_ns` is
nanoseconds since the epoch and may step back a little; `conn` names one connection and is never used again.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import count
from typing import Literal, TypeAlias, TypeVar

import msgspec

from marketprism.events import Event, MarketType, Unit, subject

MS = 1_000_000  # nanoseconds
SECOND = 1_000_000_000


class Send(msgspec.Struct, frozen=True):
    """Send this text on this connection."""

    conn: str
    text: str


class Fetch(msgspec.Struct, frozen=True):
    """GET this path of the exchange's REST API and hand the answer to `response`.

    (kind, instrument) say what it is, whatever host, version or parameters a recording has it under.
    """

    kind: str
    instrument: str  # "" where the answer is for all
    path: str  # with query
    weight: int = 1  # against the exchange's budget named `budget`
    budget: str = "ip"

    @property
    def key(self) -> tuple[str, str]:
        """What a recorded body is matched by."""
        return self.kind, self.instrument


class Reconnect(msgspec.Struct, frozen=True):
    """Replace this connection. `overlap`: the old one still works, keep it until the new one delivers."""

    conn: str
    cause: str
    overlap: bool = False


class Note(msgspec.Struct, frozen=True):
    """Something a person should be able to read in the log."""

    level: Literal["info", "warning", "error"]
    event: str  # a word to search for
    text: str
    instrument: str = ""


Request: TypeAlias = Send | Fetch | Reconnect
Output: TypeAlias = Event | Send | Fetch | Reconnect | Note
Out: TypeAlias = list[Output]


@dataclass(frozen=True, slots=True)
class Socket:
    """A websocket the venue wants: one connection at a time, two while one replaces the other."""

    name: str
    url: str


@dataclass(frozen=True, slots=True)
class Poll:
    """A REST call to be made again and again; `fetch(now_ns)` is the call."""

    fetch: Callable[[int], Fetch]
    interval_s: float

    @classmethod
    def of(cls, fetch: Fetch, interval_s: float) -> "Poll":
        """A call that is the same each time."""
        return cls(lambda _: fetch, interval_s)


@dataclass(frozen=True, slots=True)
class Budget:
    """At most `capacity` of weight within any `per_s` seconds."""

    name: str
    capacity: int
    per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to collect and how; the checked configuration in the venue's own terms."""

    name: str  # okx_derivatives
    exchange: str  # okx
    market_type: MarketType
    ws_url: str
    symbols: tuple[str, ...] | None  # None: every instrument that turns up (replay)
    data_types: frozenset[str]
    book_method: Literal["websocket", "snapshot"] = "websocket"
    depth_limit: int = 500
    snapshot_depth: int = 100
    snapshot_interval_ms: int = 1_000
    checkpoint_interval_ms: int = 300_000
    update_frequency_ms: int = 100
    book_buffer: int = 5_000
    intervals_s: dict[str, float] = field(default_factory=dict)  # by data type
    lsr_period: str = "5m"
    lsr_limit: int = 30
    liquidation_symbols: tuple[str, ...] = ()  # none: all symbols of the exchange
    volatility_resolution_s: int = 60
    audit_interval_ms: int = 0  # from one check of a live book to the next; 0: none

    def wants(self, data_type: str) -> bool:
        """Whether this data type is to be collected."""
        return data_type in self.data_types


class Instrument(msgspec.Struct, frozen=True, gc=False):
    """An instrument as its exchange describes it; without a description, as far as its name is unambiguous."""

    id: str
    exchange: str
    market_type: MarketType
    symbol: str
    unit: Unit | None = None  # of the exchange's own quantities; None: not known
    # Base coin in a contract; where `inverse`, quote currency in a contract (or in one unit of `unit="quote"`).
    contract_size: Decimal | None = None
    inverse: bool = False

    def subject(self, data_type: str) -> str:
        """Where events of this type and instrument are published."""
        return subject(data_type, self.exchange, self.market_type, self.symbol)

    def event_id(self, data_type: str, identity: object) -> str:
        """The message id of an event that the exchange identifies by `identity`."""
        return f"{data_type}:{self.exchange}:{self.market_type}:{self.id}:{identity}"

    def base_quantity(self, quantity: str, price: str) -> str | None:
        """The exchange's quantity in base coin, None where the contract size is not known.

        Exact, but for inverse contracts: a division, to 12 significant digits.
        """
        if self.unit == "base":
            return quantity
        if self.unit is None or self.contract_size is None:
            return None
        amount = Decimal(quantity) * self.contract_size
        if not self.inverse:
            return plain(amount)
        at = Decimal(price)
        return plain(Decimal(f"{amount / at:.12g}")) if at else None


_DIGITS_MAX = 40  # before or behind the point: a figure of more is none


def plain(number: Decimal) -> str:
    """A decimal as text without an exponent and without trailing zeros. Raises ValueError on an absurd one."""
    if not number.is_finite() or abs(number.adjusted()) > _DIGITS_MAX:
        raise ValueError(f"figure out of range: {number}")
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


EXCERPT_CHARS = 120
NAME_MAX_BYTES = 256  # of a channel, as it stands in a frame
_NAMES_MAX = 10_000  # remembered; an exchange has fewer, garbage has more


def excerpt(error: Exception) -> str:
    """What an error says, cut short: it may quote all that came in."""
    return str(error)[:EXCERPT_CHARS]


Found = TypeVar("Found")


class Routes(dict[bytes, Found]):
    """What takes the frames of a channel, looked up once for each name as it stands in a frame. Bounded."""

    def __init__(self, find: Callable[[bytes], Found]) -> None:
        """`find(name)` tells what takes frames of this name."""
        self._find = find

    def __missing__(self, name: bytes) -> Found:
        """The first frame of this name. Raises ValueError on one of absurd length."""
        if len(name) > NAME_MAX_BYTES:
            raise ValueError(f"a name of {len(name)} bytes")
        if len(self) >= _NAMES_MAX:
            self.clear()
        found = self[name] = self._find(name)
        return found


def chunks(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """The items, `size` at a time."""
    return (items[i : i + size] for i in range(0, len(items), size))


def place(names: Iterable[str], places: Mapping[str, str], socket: str, room: int) -> dict[str, str]:
    """Each name's socket of those called `socket`, `socket-2` …, of which each has `room` for so many.

    `places` holds where names have been so far: they stay there, and the others go to the first that has room. Names
    on other sockets are kept.
    """
    names = list(names)
    numbered = (socket if n == 0 else f"{socket}-{n + 1}" for n in count())
    ours = {name: at for name in names if (at := places.get(name))}
    others = {name: at for name, at in places.items() if at.split("-")[0] != socket}
    load = Counter(ours.values())
    at = next(numbered)
    for name in names:
        if name in ours:
            continue
        while load[at] >= room:
            at = next(numbered)
        ours[name] = at
        load[at] += 1
    return others | ours


def elapsed(now_ns: int, since_ns: int, period_ns: int) -> bool:
    """Whether `period_ns` has passed; a clock that stepped back counts as passed, so that no timer hangs."""
    return not 0 <= now_ns - since_ns < period_ns


class Connection:
    """An open connection as the venue sees it: when it last spoke, and what it has not answered yet."""

    __slots__ = (
        "asked",
        "asked_ns",
        "conn",
        "heard_ns",
        "judged",
        "missing",
        "opened_ns",
        "pause_ns",
        "probed_ns",
        "seen",
        "socket",
        "unsubscribing",
    )

    def __init__(self, conn: str, socket: str, now_ns: int) -> None:
        self.conn = conn
        self.socket = socket
        self.opened_ns = self.heard_ns = now_ns
        self.probed_ns: int | None = None  # when we asked whether it still lives
        self.asked: dict[int | str, tuple[str, ...]] = {}  # request id → channels not yet acknowledged
        self.asked_ns = now_ns  # when the last of them was
        self.missing: set[str] = set()  # channels that were refused, not given or not acknowledged in time
        self.pause_ns = ASK_AGAIN_NS  # before they are asked for again
        # Request id → channels; those that are wanted still, or again, are subscribed once they are gone.
        self.unsubscribing: dict[int, tuple[str, ...]] = {}
        self.seen: set[bytes] = set()  # channels that have delivered, as they stand in the frames
        self.judged = False  # whether all deliver that should

    def ask(self, request_id: int | str, channels: Iterable[str], now_ns: int) -> None:
        """These channels are being subscribed."""
        self.asked[request_id] = tuple(channels)
        self.asked_ns = now_ns

    def acknowledged(self, request_id: int | str, given: Iterable[str] | None = None) -> tuple[str, ...]:
        """A subscription was answered; `given`: not all of its channels were. Returns those that are subscribed."""
        asked = self.asked.pop(request_id, ())
        if given is None:
            subscribed = asked
        else:
            given = set(given)
            subscribed = tuple(name for name in asked if name in given)
            self.missing.update(name for name in asked if name not in given)
        self.missing.difference_update(subscribed)
        if not self.missing:
            self.pause_ns = ASK_AGAIN_NS
        return subscribed

    def widened(self, now_ns: int) -> None:
        """Channels were added: whether all deliver is judged from now on."""
        self.opened_ns = now_ns
        self.judged = False

    def forget(self, channels: Iterable[str]) -> None:
        """These channels are no longer wanted."""
        gone = set(channels)
        self.missing -= gone
        self.seen -= {name.encode() for name in gone}
        self.asked = {
            i: left for i, names in self.asked.items() if (left := tuple(n for n in names if n not in gone))
        }

    def saw(self, channel: bytes) -> None:
        """This channel has delivered."""
        if len(self.seen) < _NAMES_MAX:
            self.seen.add(channel)


PROBE_AFTER_NS = 20 * SECOND  # OKX drops a connection after 30 s without traffic (OKX docs-v5)
DEAD_AFTER_NS = 10 * SECOND
ASK_AGAIN_NS, ASK_AGAIN_MAX_NS = 10 * SECOND, 300 * SECOND
SILENT_AFTER_NS = 60 * SECOND
ALL_SILENT_AFTER_NS = 20 * SECOND  # several books cannot all be quiet for so long
ALL_SILENT_MAX_NS = 1800 * SECOND


def check_alive(
    connections: Iterable[Connection], now_ns: int, probe: Callable[[], str], probe_after_ns: int, out: Out
) -> None:
    """Probe each silent connection, and replace the one that does not answer (a half-open socket)."""
    for c in connections:
        if c.probed_ns is not None:
            if c.heard_ns > c.probed_ns:
                c.probed_ns = None
            elif elapsed(now_ns, c.probed_ns, DEAD_AFTER_NS):
                c.probed_ns = now_ns
                out.append(Reconnect(c.conn, "no answer to a keepalive"))
        elif elapsed(now_ns, c.heard_ns, probe_after_ns):
            c.probed_ns = now_ns
            out.append(Send(c.conn, probe()))


def check_acks(c: Connection, now_ns: int, out: Out) -> list[str]:
    """Say which subscriptions were not acknowledged. Returns the channels to be asked for again now."""
    if c.asked and elapsed(now_ns, c.asked_ns, DEAD_AFTER_NS):
        late = sorted(name for names in c.asked.values() for name in names)
        c.asked.clear()
        c.missing.update(late)
        text = f"{len(late)} subscriptions not acknowledged, to be asked for again: {shown(late)}"
        out.append(Note("error", "unacknowledged", text))
    if not c.missing or c.asked or not elapsed(now_ns, c.asked_ns, c.pause_ns):
        return []
    c.pause_ns = min(2 * c.pause_ns, ASK_AGAIN_MAX_NS)
    c.missing = {name for name in c.missing if name.encode() not in c.seen}  # an answer may be lost, too
    return sorted(c.missing)


def check_silent(
    c: Connection,
    expected: Callable[[Connection], Iterable[str]],
    vain: dict[str, int],
    now_ns: int,
    out: Out,
) -> None:
    """Say once which subscribed channels of a connection have never delivered: an ack proves nothing.

    One that has delivered none of them is replaced; where it is one of many, the symbol may rightly be quiet. All
    may be, too: `vain` counts by socket how often that was of no use, and the pause doubles each time.
    """
    if c.judged or not elapsed(now_ns, c.opened_ns, SILENT_AFTER_NS if c.seen else ALL_SILENT_AFTER_NS):
        return
    names = sorted(expected(c))
    silent = [name for name in names if name.encode() not in c.seen]
    after_ns = SILENT_AFTER_NS
    if names and silent == names:
        first_ns = SILENT_AFTER_NS if c.seen or len(names) == 1 else ALL_SILENT_AFTER_NS
        after_ns = min(first_ns << vain.get(c.socket, 0), ALL_SILENT_MAX_NS)
    if not elapsed(now_ns, c.opened_ns, after_ns):
        return
    c.judged = True
    if silent:
        text = f"{len(silent)} subscribed channels sent nothing in {after_ns // SECOND} s: {shown(silent)}"
        out.append(Note("warning", "silent", text))
    if names and silent == names:
        vain[c.socket] = vain.get(c.socket, 0) + 1
        out.append(Reconnect(c.conn, "no subscribed channel sent anything", overlap=True))
    else:
        vain.pop(c.socket, None)


def shown(names: Sequence[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
