"""Drives the simulator's faces without sockets, on a made-up clock, and the whole simulator over real ones."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from websockets.asyncio.client import ClientConnection, connect

from marketprism.simulator import Simulator
from marketprism.simulator.board import FaultBoard
from marketprism.simulator.face import Face, World
from marketprism.simulator.faults import Fault
from marketprism.simulator.market import Underlyings
from marketprism.simulator.messages import Connection, Outgoing
from marketprism.simulator.options import DEFAULT_SYMBOLS, SimulatorOptions
from marketprism.simulator.server import _FACES
from marketprism.simulator.truth import Truth

WAIT_S = 12.0
START_MS = 1_790_000_000_000
Book = tuple[dict[str, str], dict[str, str]]


class Rig:
    """One face with its truth and faults, and a clock that moves only here."""

    def __init__(self, worker: str, **settings: Any) -> None:
        self.worker = worker
        self.options = SimulatorOptions(**settings)
        self.truth = Truth()
        self.faults = FaultBoard(lambda: self.now_ms / 1000)
        world = World(self.options, self.truth, self.faults, Underlyings(self.options.seed))
        self.face: Face = _FACES[worker](worker, world)
        self.now_ms = START_MS

    def arm(self, name: str, **more: Any) -> None:
        """Arm a fault of this worker."""
        self.faults.arm(Fault(name, self.worker, **more))

    def act(self, name: str, **more: Any) -> list[str]:
        """Let a fault that a face carries out itself happen; what is sent."""
        return self._through(None, self.face.act(Fault(name, self.worker, **more), self.now_ms))

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


def go(
    work: Callable[[Simulator], Awaitable[None]], run: Callable[[Any], None] = asyncio.run, **settings: Any
) -> None:
    """Run work against a started simulator; run: asyncio's or uvloop's, which the command uses."""

    async def main() -> None:
        simulator = Simulator(SimulatorOptions(rest_latency_ms=1.0, **settings))
        await simulator.start()
        try:
            await asyncio.wait_for(work(simulator), WAIT_S)
        finally:
            await simulator.stop()

    run(main())


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[ClientConnection]:
    async with connect(url, max_size=None, max_queue=None, close_timeout=1) as client:
        yield client


async def fetch(url: str, **query: Any) -> Any:
    async with aiohttp.ClientSession() as session, session.get(url, params=query) as response:
        return await response.json()


def channels(worker: str) -> tuple[str, list[object]]:
    """(what to add to the ws_url, what to say) to get books and trades of all default instruments."""
    names = DEFAULT_SYMBOLS[worker]
    if worker.startswith("binance"):
        streams = [f"{name.lower()}@{channel}" for name in names for channel in ("depth@100ms", "trade")]
        route = "" if worker == "binance_spot" else "/public"
        return f"{route}/stream?streams={'/'.join(streams)}", []
    if worker.startswith("okx"):
        arguments = [
            {"channel": channel, "instId": name} for name in names for channel in ("books", "trades")
        ]
        return "", [{"op": "subscribe", "args": arguments}]
    wanted = [f"{kind}.{name}.100ms" for name in names for kind in ("book", "trades")]
    return "", [{"jsonrpc": "2.0", "id": 1, "method": "public/subscribe", "params": {"channels": wanted}}]


@asynccontextmanager
async def listening(simulator: Simulator, worker: str) -> AsyncIterator[ClientConnection]:
    suffix, requests = channels(worker)
    async with opened(simulator.urls[worker]["ws_url"] + suffix) as client:
        for request in requests:
            await client.send(json.dumps(request))
        yield client


async def until(client: ClientConnection, wanted: Callable[[Any], bool]) -> Any:
    """The next message that is wanted. Raises ConnectionClosed."""
    while True:
        text = await client.recv()
        message = json.loads(text) if text != "pong" else {}
        if message and wanted(message):
            return message
