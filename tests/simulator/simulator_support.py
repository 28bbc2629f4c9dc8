"""Drives the simulator's faces without sockets, on a made-up clock."""

import json
from typing import Any

from marketprism.simulator.face import Connection, Face, Outgoing, World
from marketprism.simulator.faults import FaultBoard
from marketprism.simulator.market import Underlyings
from marketprism.simulator.options import SimulatorOptions
from marketprism.simulator.server import _FACES
from marketprism.simulator.truth import Truth

START_MS = 1_790_000_000_000
Book = tuple[dict[str, str], dict[str, str]]


class Rig:
    """One face with its truth and faults, and a clock that moves only here."""

    def __init__(self, worker: str, **settings: Any) -> None:
        self.worker = worker
        self.options = SimulatorOptions(**settings)
        self.truth = Truth()
        self.faults = FaultBoard()
        world = World(self.options, self.truth, self.faults, Underlyings(self.options.seed))
        self.face: Face = _FACES[worker](worker, world)
        self.now_ms = START_MS

    def connect(self, path: str, **query: str) -> Connection:
        return self.face.connect(path, query, self.now_ms)

    def say(self, connection: Connection, message: object) -> list[str]:
        """Send text or JSON; the answers that came through."""
        text = message if isinstance(message, str) else json.dumps(message)
        return self._through(connection, self.face.receive(connection, text, self.now_ms))

    def ask(self, connection: Connection, message: object) -> list[Any]:
        return [json.loads(text) for text in self.say(connection, message)]

    def steps(self, count: int, connection: Connection | None = None) -> list[str]:
        """Let count steps of 10 ms pass; what the connection (or anyone) got."""
        got: list[str] = []
        for _ in range(count):
            self.now_ms += 10
            got += self._through(connection, self.face.step(self.now_ms))
        return got

    def messages(self, count: int, connection: Connection | None = None) -> list[Any]:
        return [json.loads(text) for text in self.steps(count, connection)]

    def get(self, path: str, **query: str) -> Any:
        """The body of a REST answer with status 200."""
        reply = self.face.rest(path, query, self.now_ms)
        assert reply.status == 200, reply.body
        return json.loads(reply.body)

    def _through(self, connection: Connection | None, outgoing: list[Outgoing]) -> list[str]:
        passed = [message for one in outgoing for message in self.faults.through(one)]
        return [one.text for one in passed if connection is None or connection in one.connections]


def apply_levels(side: dict[str, str], levels: list[list[str]]) -> None:
    """Price text by price text; a zero quantity removes."""
    for price, quantity, *_ in levels:
        if float(quantity):
            side[price] = quantity
        else:
            side.pop(price, None)
