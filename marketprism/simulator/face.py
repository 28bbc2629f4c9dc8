"""What all simulated exchanges have in common: connections, subscriptions, REST answers. Sans-I/O.

A face takes texts and the time and gives texts back. It opens no socket and reads no clock; the server does, and
tests drive a face without either.
"""

import random
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from marketprism.simulator.board import FaultBoard
from marketprism.simulator.faults import Fault
from marketprism.simulator.instruments import Instrument, instrument
from marketprism.simulator.market import Market, Pace, Underlyings
from marketprism.simulator.messages import Connection, MessageKind, Outgoing
from marketprism.simulator.options import STEP_S, STEPS_PER_WINDOW, SimulatorOptions
from marketprism.simulator.truth import Truth


class Refused(Exception):  # noqa: N818 - it is an answer, not an error of ours
    """A websocket upgrade is refused with this HTTP status and body."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(body)
        self.status = status
        self.body = body


@dataclass(frozen=True, slots=True)
class Reply:
    """One REST answer."""

    status: int
    body: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class World:
    """What the faces of one run share."""

    options: SimulatorOptions
    truth: Truth
    faults: FaultBoard
    underlyings: Underlyings


def dump(value: object) -> str:
    """JSON text."""
    return msgspec.json.encode(value).decode()


def parse(text: str) -> object:
    """The JSON value of a text. Raises msgspec.DecodeError."""
    return msgspec.json.decode(text)


def forget(recent: deque[int], now_ms: int, within_ms: int) -> None:
    """Drop the moments longer ago than that, and those that a clock set back has put into the future."""
    while recent and not now_ms - within_ms < recent[0] <= now_ms:
        recent.popleft()


class Face(ABC):
    """One exchange as one worker sees it."""

    book_request: tuple[
        str, str
    ]  # the end of the REST path that serves a book, and its key for the instrument
    messages_per_order = 1.0
    ping_interval_s: float | None = None
    connects: tuple[int, int]  # at most so many new connections in so many ms

    def __init__(self, worker: str, world: World) -> None:
        self.worker = worker
        self.options = world.options
        self.faults = world.faults
        self.truth = world.truth
        self.underlyings = world.underlyings
        self.rng = random.Random(f"{world.options.seed}/face/{worker}")
        self.instruments: dict[str, Instrument] = {}
        self.markets: dict[str, Market] = {}
        self.acts: dict[str, Callable[[Fault, int], list[Outgoing]]] = {
            "notice": lambda fault, now_ms: self.notice(now_ms),
            "price_run": self._run_prices,
        }
        self.connections: dict[Connection, None] = {}
        self.subscribers: dict[str, dict[Connection, None]] = {}
        self.steps = 0
        self._opened = 0
        self._opened_ms: deque[int] = deque()
        self._outgoing: list[Outgoing] = []

    def make_markets(self) -> list[Market]:
        """The markets of this worker's instruments, at the pace that gives the rate asked for."""
        names = self.options.symbols_of(self.worker)
        pace = Pace.of(self.options.rate, len(names), self.messages_per_order)
        self.instruments = {name: instrument(self.worker, name) for name in names}
        seed = self.options.seed
        self.markets = {
            name: Market(seed, one, self.underlyings, pace, index * 3 % STEPS_PER_WINDOW)
            for index, (name, one) in enumerate(self.instruments.items())
        }
        return list(self.markets.values())

    # -- what the server calls -----------------------------------------------------------------------------

    @abstractmethod
    def connect(self, path: str, query: Mapping[str, str], now_ms: int) -> Connection:
        """A client opens a websocket at this path. Raises Refused."""

    @abstractmethod
    def receive(self, connection: Connection, text: str, now_ms: int) -> list[Outgoing]:
        """A text frame came; what the exchange answers, in order."""

    @abstractmethod
    def rest(self, path: str, query: Mapping[str, str], now_ms: int) -> Reply:
        """A GET request."""

    def control_frame(self, connection: Connection, now_ms: int) -> None:
        """A ping came, or a pong nobody asked for."""
        connection.last_in_ms = now_ms

    def step(self, now_ms: int) -> list[Outgoing]:
        """Let STEP_S pass; what is to be sent."""
        self.steps += 1
        self.advance(now_ms)
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    @abstractmethod
    def advance(self, now_ms: int) -> None:
        """One step of the exchange; messages go out through send()."""

    @abstractmethod
    def notice(self, now_ms: int) -> list[Outgoing]:
        """The exchange's way to announce maintenance."""

    def act(self, fault: Fault, now_ms: int) -> list[Outgoing]:
        """Let one of the faults in `acts` happen at once; what is to be sent."""
        return self.acts[fault.name](fault, now_ms)

    def disconnect(self, connection: Connection) -> None:
        """The websocket is gone; being told twice is all right."""
        for topic in list(connection.topics):
            self.unsubscribe(connection, topic)
        self.connections.pop(connection, None)

    def _run_prices(self, fault: Fault, now_ms: int) -> list[Outgoing]:
        for name, market in self.markets.items():
            if fault.instrument in (None, name):
                market.run(max(1, int(fault.seconds / STEP_S)))
        return []

    # -- for the faces -------------------------------------------------------------------------------------

    def open(self, path: str, now_ms: int) -> Connection:
        """A new connection. Raises Refused with 429 when they come too fast."""
        count, within_ms = self.connects
        forget(self._opened_ms, now_ms, within_ms)
        if len(self._opened_ms) >= count:
            raise Refused(429, f"more than {count} connections in {within_ms / 1000:g} s")
        self._opened_ms.append(now_ms)
        self._opened += 1
        connection = Connection(path, self._opened, last_in_ms=now_ms, last_out_ms=now_ms)
        self.connections[connection] = None
        return connection

    def subscribe(self, connection: Connection, topic: str) -> None:
        """From now on the connection gets what is sent to the topic."""
        connection.topics[topic] = None
        self.subscribers.setdefault(topic, {})[connection] = None

    def unsubscribe(self, connection: Connection, topic: str) -> bool:
        """False if it was not subscribed."""
        present = topic in connection.topics
        connection.topics.pop(topic, None)
        listeners = self.subscribers.get(topic, {})
        listeners.pop(connection, None)
        if not listeners:
            self.subscribers.pop(topic, None)
        return present

    def send(self, topic: str, text: str, kind: MessageKind, instrument: str | None = None) -> None:
        """Send a text to everyone subscribed to the topic."""
        listeners = self.subscribers.get(topic)
        if listeners:
            self._outgoing.append(Outgoing(tuple(listeners), text, kind, self.worker, instrument, topic))

    def reply(self, connection: Connection, text: str) -> Outgoing:
        """A message to one connection."""
        return Outgoing((connection,), text, "reply", self.worker)

    def snapshot(self, connection: Connection, text: str, instrument: str) -> Outgoing:
        """A whole book to one connection."""
        return Outgoing((connection,), text, "snapshot", self.worker, instrument)

    def too_many(self, connection: Connection, now_ms: int, limit: int) -> bool:
        """Count one incoming message; True when there were more than `limit` in the last second."""
        connection.last_in_ms = now_ms
        recent = connection.incoming_ms
        forget(recent, now_ms, 1000)
        recent.append(now_ms)
        return len(recent) > limit
