"""The simulator's sockets: one loopback port a worker, carrying websocket, REST and the /sim pages.

A ticker lets the faces step every 10 ms and writes what they say: each message is framed once, and all frames of one
connection leave in one write.
"""

import asyncio
import contextlib
import os
import random
import socket
import struct
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from aiohttp import WSMsgType, web

from marketprism.simulator.binance import BinanceFace
from marketprism.simulator.board import FaultBoard, Injected
from marketprism.simulator.control import Control
from marketprism.simulator.deribit import DeribitFace
from marketprism.simulator.face import Face, Refused, Reply, World, dump
from marketprism.simulator.faults import Fault
from marketprism.simulator.market import Underlyings
from marketprism.simulator.messages import Connection, Outgoing
from marketprism.simulator.okx import OkxFace
from marketprism.simulator.options import STEP_S, WORKERS, SimulatorError, SimulatorOptions, unknown
from marketprism.simulator.truth import Truth

_FACES: dict[str, type[BinanceFace] | type[OkxFace] | type[DeribitFace]] = {
    "binance_spot": BinanceFace,
    "binance_derivatives": BinanceFace,
    "okx_spot": OkxFace,
    "okx_derivatives": OkxFace,
    "deribit_derivatives": DeribitFace,
}
_WS_PATHS = {
    "okx_spot": "/ws/v5/public",
    "okx_derivatives": "/ws/v5/public",
    "deribit_derivatives": "/ws/api/v2",
}
_SLICES_MAX = 10  # of a step
_CATCH_UP_STEPS = 50
_SLOW_CLIENT_BYTES = 16 * 2**20
_PONG_WITHIN_S = 60.0
_REST_LATENCY_SPREAD = (0.3, 2.2)
_OP_TEXT, _OP_BINARY, _OP_PING, _OP_PONG = 0x1, 0x2, 0x9, 0xA
_TRICKLE_BYTES = 50  # a step
_SKEW_MS = 2000
_WITHOUT_CLIENTS = ("price_run", "deribit_id_jump")  # the others strike open websockets, if there are any
_BINARY = bytes.fromhex("ff00fe80c3280d0a")  # no text in UTF-8
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 s


def frame(opcode: int, payload: bytes) -> bytes:
    """One unmasked websocket frame (RFC 6455, 5.2)."""
    size = len(payload)
    if size < 126:
        return bytes((0x80 | opcode, size)) + payload
    if size < 65_536:
        return bytes((0x80 | opcode, 126)) + size.to_bytes(2, "big") + payload
    return bytes((0x80 | opcode, 127)) + size.to_bytes(8, "big") + payload


def reset(transport: asyncio.Transport) -> None:
    """Close with RST instead of FIN, as a peer does that has crashed."""
    if transport.is_closing():
        return
    number = transport.get_extra_info("socket").fileno()
    with socket.socket(fileno=os.dup(number)) as same:  # uvloop's own stand-in sets no options
        same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()


@dataclass(eq=False, slots=True)
class _Client:
    """One open websocket.

    deaf: how many faults keep everything from it. gone: besides, nothing is read. cut: it ends with a reset.
    """

    connection: Connection
    response: web.WebSocketResponse
    transport: asyncio.Transport
    pending: list[bytes] = field(default_factory=list)
    pinged_s: float = 0.0
    ping_payload: bytes = b""
    deaf: int = 0
    gone: bool = False
    cut: bool = False

    def flush(self, *, slowly: bool = False) -> None:
        """Write what is pending; a client too slow to read is cut, as an exchange does."""
        if not self.pending or self.transport.is_closing():
            return
        if slowly and not self.cut:
            self._trickle()
            return
        self.transport.write(b"".join(self.pending))
        self.pending.clear()
        if self.cut:  # in the next turn of the loop: uvloop writes at the end of this one
            asyncio.get_running_loop().call_soon(reset, self.transport)
        elif self.transport.get_write_buffer_size() > _SLOW_CLIENT_BYTES:
            self.transport.abort()

    def _trickle(self) -> None:
        """Write the beginning of the first frame."""
        first = self.pending[0]
        self.transport.write(first[:_TRICKLE_BYTES])
        self.pending[:1] = [first[_TRICKLE_BYTES:]] if len(first) > _TRICKLE_BYTES else []


class _Port:
    """One worker's exchange on its port."""

    def __init__(self, face: Face, simulator: "Simulator") -> None:
        self.face = face
        self.worker = face.worker
        self.clients: dict[Connection, _Client] = {}
        self.waiting: deque[Outgoing] = deque()
        self.sent = 0
        self.rest_answers = 0
        self.port = 0
        self._simulator = simulator
        self._latency = random.Random(f"{simulator.options.seed}/latency/{face.worker}")
        self._runner: web.AppRunner | None = None
        self._closing: set[asyncio.Task[object]] = set()

    async def start(self) -> None:
        options = self._simulator.options
        wanted = options.port_of(self.worker)
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        listener = socket.socket(socket.AF_INET6 if ":" in options.host else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((options.host, wanted))
        except OSError as error:
            listener.close()
            where = f"{options.host}:{wanted}"
            raise SimulatorError(
                f"{self.worker}: cannot listen on {where}: {error.strerror}; choose another port"
            ) from None
        self.port = int(listener.getsockname()[1])
        await web.SockSite(self._runner, listener).start()

    async def stop(self) -> None:
        self.abort_all()
        if self._runner:
            await self._runner.cleanup()

    def abort_all(self) -> None:
        """Cut every websocket without a goodbye."""
        for client in self.clients.values():
            client.transport.abort()

    # -- faults of the wire --------------------------------------------------------------------------------

    def disconnect(self, seconds: float) -> None:
        """Cut every websocket that still has a peer."""
        for client in self.present():
            client.transport.abort()

    def silence(self, seconds: float) -> None:
        """The websockets open now stay open and get nothing for so long; 0: never again."""
        muted = self.present()
        for client in muted:
            client.deaf += 1
        if seconds:
            self._simulator.later(seconds, lambda: self._unmute(muted))

    def half_open(self, seconds: float) -> None:
        """The exchange forgets the websockets open now without a word; a reset follows after so long, 0: never."""
        lost = self.present()
        for client in lost:
            client.deaf, client.gone = client.deaf + 1, True
            client.pending.clear()
            if not client.transport.is_closing():
                client.transport.pause_reading()
            self.face.disconnect(client.connection)
        if seconds:
            self._simulator.later(seconds, lambda: self._reset(lost))

    def present(self) -> "list[_Client]":
        """Those that have not gone half-open."""
        return [client for client in self.clients.values() if not client.gone]

    def _unmute(self, clients: "list[_Client]") -> None:
        for client in clients:
            client.deaf -= 1

    def _reset(self, clients: "list[_Client]") -> None:
        for client in clients:
            reset(client.transport)

    # -- frames --------------------------------------------------------------------------------------------

    @property
    def now_ms(self) -> int:
        """This exchange's clock, in ms since the epoch."""
        faults, now_ms = self._simulator.faults, self._simulator.now_ms()
        if faults.busy:
            now_ms += _SKEW_MS * faults.active("clock_ahead", self.worker)
            now_ms -= _SKEW_MS * faults.active("clock_behind", self.worker)
        return now_ms

    def step(self) -> None:
        """One step of the face; its messages leave with the next slices."""
        self.send_slice(1)
        self.waiting.extend(self.face.step(self.now_ms))

    def send_slice(self, slices_left: int) -> None:
        """This slice's share of what the step has brought; frames wait for flush()."""
        for _ in range(-(-len(self.waiting) // slices_left)):
            self._pass(self.waiting.popleft())

    def dispatch(self, message: Outgoing) -> None:
        """Send this after all that the step has brought."""
        self.send_slice(1)
        self._pass(message)

    def _pass(self, message: Outgoing) -> None:
        """The seam every outgoing message passes: faults may lose, repeat or change it."""
        if self._simulator.faults.busy:
            for passed in self._simulator.faults.through(message):
                self._queue(passed)
        else:
            self._queue(message)

    def _queue(self, message: Outgoing) -> None:
        data = _BINARY if message.wire == "binary" else message.text.encode()
        data = frame(_OP_BINARY if message.wire == "binary" else _OP_TEXT, data)
        cut = message.wire == "cut"
        for connection in message.connections:
            client = self.clients.get(connection)
            if client and not client.deaf and not client.cut:
                client.pending.append(data[: len(data) // 2] if cut else data)
                client.cut = cut
                self.sent += 1

    def flush(self) -> None:
        """Write all pending frames, and hang up where the face says so."""
        faults = self._simulator.faults
        slowly = faults.busy and faults.active("slow", self.worker)
        for client in self.clients.values():
            client.flush(slowly=slowly)
            if client.connection.closing:
                self._hang_up(client)

    def _hang_up(self, client: _Client) -> None:
        code, reason = client.connection.closing or (0, "")
        client.connection.closing = None
        if client.gone:
            return
        if code == 0:
            client.transport.abort()
            return
        task: asyncio.Task[object] = asyncio.create_task(
            client.response.close(code=code, message=reason.encode())
        )
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def ping_all(self, now_s: float) -> None:
        """The exchange's own ping frames; who does not answer is cut."""
        interval = self.face.ping_interval_s
        if interval is None:
            return
        for client in self.present():
            if client.ping_payload and now_s - client.pinged_s > _PONG_WITHIN_S:
                client.transport.abort()
            elif not client.ping_payload and now_s - client.pinged_s >= interval:
                client.pinged_s = now_s
                client.ping_payload = str(int(now_s * 1000)).encode()
                self._control(client, _OP_PING, client.ping_payload)

    def _control(self, client: _Client, opcode: int, payload: bytes) -> None:
        if not client.deaf:
            client.pending.append(frame(opcode, payload))

    # -- requests ------------------------------------------------------------------------------------------

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.path.startswith("/sim/"):
            return await self._simulator.page(request)
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await self._websocket(request)
        return await self._rest(request)

    async def _rest(self, request: web.Request) -> web.StreamResponse:
        """State is taken when the request comes, the answer leaves later: diffs overtake it, as in life."""
        if request.method != "GET":
            return web.Response(status=405, text="only GET is served")
        reply = self.face.rest(request.path, request.query, self.now_ms)
        self.rest_answers += 1
        delay_s = (
            self._simulator.options.rest_latency_ms / 1000.0 * self._latency.uniform(*_REST_LATENCY_SPREAD)
        )
        await asyncio.sleep(delay_s)
        if self._is_cut(request, reply):
            return await _cut_response(request, reply)
        return _response(reply)

    def _is_cut(self, request: web.Request, reply: Reply) -> bool:
        faults, (path, key) = self._simulator.faults, self.face.book_request
        if not faults.busy or reply.status != 200 or not request.path.endswith(path):
            return False
        return faults.take("disconnect_mid_snapshot", self.worker, request.query.get(key)) is not None

    async def _websocket(self, request: web.Request) -> web.StreamResponse:
        try:
            connection = self.face.connect(request.path, request.query, self.now_ms)
        except Refused as refused:
            return web.Response(status=refused.status, text=refused.body)
        response = web.WebSocketResponse(autoping=False, compress=False, max_msg_size=2**20, timeout=1.0)
        try:
            await response.prepare(request)
            transport = request.transport
            if transport is not None:
                client = _Client(connection, response, transport, pinged_s=time.monotonic())
                self.clients[connection] = client
                await self._read(client)
        finally:
            self.face.disconnect(connection)
            self.clients.pop(connection, None)
        return response

    async def _read(self, client: _Client) -> None:
        async for message in client.response:
            if client.gone:
                continue
            now_ms = self.now_ms
            if message.type == WSMsgType.TEXT:
                for answer in self.face.receive(client.connection, message.data, now_ms):
                    self.dispatch(answer)
            elif message.type == WSMsgType.PING:
                self.face.control_frame(client.connection, now_ms)
                self._control(client, _OP_PONG, message.data)
            elif message.type == WSMsgType.PONG:
                self._pong(client, message.data, now_ms)
            if not self._simulator.faults.busy:
                client.flush()

    def _pong(self, client: _Client, payload: bytes, now_ms: int) -> None:
        if payload == client.ping_payload:
            client.ping_payload = b""
        else:
            self.face.control_frame(client.connection, now_ms)


class Simulator:
    """Five exchanges on loopback, and the truth about them."""

    def __init__(self, options: SimulatorOptions | None = None) -> None:
        self.options = options or SimulatorOptions()
        self.truth = Truth()
        self.faults = FaultBoard()
        world = World(self.options, self.truth, self.faults, Underlyings(self.options.seed))
        self.faces: dict[str, Face] = {worker: _FACES[worker](worker, world) for worker in WORKERS}
        self._ports = {worker: _Port(face, self) for worker, face in self.faces.items()}
        self._ticker: asyncio.Task[None] | None = None
        self._started_s = 0.0
        self._steps = 0
        self._skipped = 0
        self._timers: dict[asyncio.TimerHandle, None] = {}
        self._control = Control(self) if self.options.control_port is not None else None
        self._pages: dict[str, Callable[[web.Request], Awaitable[object]]] = {
            "/sim/status": self._status_page,
            "/sim/truth/trades": self._trades_page,
            "/sim/truth/liquidations": self._liquidations_page,
            "/sim/truth/book": self._book_page,
            "/sim/truth/update_ids": self._update_ids_page,
        }

    async def start(self) -> None:
        """Open the ports and let time run. Raises SimulatorError where a port cannot be had."""
        try:
            for port in self._ports.values():
                await port.start()
            if self._control:
                await self._control.start()
        except SimulatorError:
            await self.stop()
            raise
        self._started_s = time.monotonic()
        self._ticker = asyncio.create_task(self._tick(), name="simulator ticker")

    async def stop(self) -> None:
        """Cut all connections and close the ports; what a schedule still holds does not happen."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        if self._ticker:
            self._ticker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ticker
            self._ticker = None
        await asyncio.gather(*(port.stop() for port in self._ports.values()))
        if self._control:
            await self._control.stop()

    async def wait(self) -> None:
        """Run until cancelled. Raises what stopped the ticker, should anything."""
        if self._ticker:
            await asyncio.shield(self._ticker)

    @property
    def urls(self) -> dict[str, dict[str, str]]:
        """base_url and ws_url by worker, in the form of the configuration keys api.base_url and api.ws_url."""
        host = f"[{self.options.host}]" if ":" in self.options.host else self.options.host
        return {
            worker: {
                "base_url": f"http://{host}:{port.port}",
                "ws_url": f"ws://{host}:{port.port}{_WS_PATHS.get(worker, '')}",
            }
            for worker, port in self._ports.items()
        }

    def now_ms(self) -> int:
        """The exchanges' clock, in ms since the epoch."""
        return int(time.time() * 1000) + self.options.clock_skew_ms

    @property
    def control_url(self) -> str | None:
        """Where faults can be ordered, once started; None where nowhere."""
        return self._control.url if self._control else None

    @property
    def injected(self) -> list[Injected]:
        """(wall time, fault, "armed" or "fired"), in order: what was asked for and what really took effect."""
        return list(self.faults.log)

    def inject(self, name: str, worker: str, instrument: str | None = None) -> None:
        """Let a fault of faults.CATALOG happen once. Raises SimulatorError for an unknown one."""
        self.inject_fault(Fault(name, worker, instrument=instrument))

    def inject_fault(self, fault: Fault) -> None:
        """Let a fault happen now, or at its next chance. Raises SimulatorError for an instrument not listed."""
        port = self._ports[fault.worker]
        self._check(fault)
        wire = {"disconnect": port.disconnect, "silence": port.silence, "half_open": port.half_open}
        if fault.name not in wire and fault.name not in port.face.acts:
            self.faults.arm(fault)
            return
        self.faults.note(fault, "armed")
        strikes = bool(port.present()) or fault.name in _WITHOUT_CLIENTS
        if fault.name in wire:
            wire[fault.name](fault.seconds)
        else:
            for message in port.face.act(fault, port.now_ms):
                port.dispatch(message)
        if strikes:
            self.faults.note(fault, "fired")

    def play(self, schedule: Sequence[Fault]) -> None:
        """Let each fault happen at_s seconds from now. Raises SimulatorError, before any of them does, as above."""
        for fault in schedule:
            self._check(fault)
        for fault in schedule:
            self.later(fault.at_s, partial(self.inject_fault, fault))

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        """Do something after so long, unless the simulator is stopped before."""

        def due() -> None:
            del self._timers[timer]
            act()

        timer = asyncio.get_running_loop().call_later(seconds, due)
        self._timers[timer] = None

    def _check(self, fault: Fault) -> None:
        listed = self.faces[fault.worker].instruments
        if fault.instrument is not None and fault.instrument not in listed:
            raise unknown(f"instrument of {fault.worker}", fault.instrument, listed)

    def status(self) -> dict[str, object]:
        """Figures of the run by worker."""
        uptime_s = time.monotonic() - self._started_s if self._started_s else 0.0
        return {
            "seed": self.options.seed,
            "rate": self.options.rate,
            "uptime_s": round(uptime_s, 3),
            "steps": self._steps,
            "steps_skipped": self._skipped,
            "fired": self.faults.fired,
            "workers": {worker: self._worker_status(port) for worker, port in self._ports.items()},
        }

    def _worker_status(self, port: _Port) -> dict[str, object]:
        return {
            **self.urls[port.worker],
            "instruments": list(port.face.instruments),
            "connections": len(port.present()),
            "subscriptions": sum(len(connection.topics) for connection in port.clients),
            "messages_sent": port.sent,
            "rest_answers": port.rest_answers,
        }

    # -- time ----------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        origin = loop.time()
        while True:
            due = int((loop.time() - origin) / STEP_S)
            behind = due - self._steps - self._skipped
            if behind > _CATCH_UP_STEPS:
                self._skipped += behind - _CATCH_UP_STEPS
                behind = _CATCH_UP_STEPS
            for _ in range(behind):
                self._step()
            next_s = origin + (self._steps + self._skipped + 1) * STEP_S
            await self._send_until(next_s)

    async def _send_until(self, next_s: float) -> None:
        """Spread a step's messages over its time: an exchange sends them one by one, not in heaps."""
        loop = asyncio.get_running_loop()
        most = max(len(port.waiting) for port in self._ports.values())
        slices = min(max(most, 1), _SLICES_MAX)
        for left in range(slices, 0, -1):
            for port in self._ports.values():
                port.send_slice(left)
                port.flush()
            at_s = next_s - STEP_S * (left - 1) / slices
            await asyncio.sleep(max(0.0, at_s - loop.time()))

    def _step(self) -> None:
        self._steps += 1
        for port in self._ports.values():
            port.step()
            if self._steps % 100 == 0:
                port.ping_all(time.monotonic())

    # -- pages ---------------------------------------------------------------------------------------------

    async def page(self, request: web.Request) -> web.Response:
        """/sim/...: status and truth to read."""
        handler = self._pages.get(request.path)
        if handler is None:
            return web.Response(status=404, text=f"no such page; there are {', '.join(self._pages)}\n")
        try:
            answer = await handler(request)
        except KeyError as error:
            return _json(404, {"error": error.args[0]})
        except (SimulatorError, ValueError) as error:
            return _json(400, {"error": str(error)})
        return _json(200, answer)

    async def _status_page(self, request: web.Request) -> object:
        return self.status()

    async def _trades_page(self, request: web.Request) -> object:
        kind = request.query.get("kind", "trades")
        ask = {
            "trades": self.truth.trades,
            "fills": self.truth.fills,
            "aggregates": self.truth.aggregates,
        }.get(kind)
        if ask is None:
            raise SimulatorError(f"kind: expected trades, fills or aggregates, got {kind!r}")
        return [trade._asdict() for trade in ask(*_which(request))]

    async def _liquidations_page(self, request: web.Request) -> object:
        return [one._asdict() for one in self.truth.liquidations(*_which(request))]

    async def _update_ids_page(self, request: web.Request) -> object:
        return self.truth.update_ids(*_which(request))

    async def _book_page(self, request: web.Request) -> object:
        text = request.query.get("update_id", "")
        if not text.isdigit():
            raise SimulatorError(f"update_id: expected a whole number, got {text!r}")
        bids, asks = self.truth.book_at(*_which(request), int(text))
        return {"update_id": int(text), "bids": bids, "asks": asks}


def _which(request: web.Request) -> tuple[str, str]:
    return request.query.get("worker", ""), request.query.get("instrument", "")


def _response(reply: Reply) -> web.Response:
    return web.Response(
        status=reply.status, text=reply.body, headers=dict(reply.headers), content_type="application/json"
    )


async def _cut_response(request: web.Request, reply: Reply) -> web.StreamResponse:
    """The head promises the whole body, then half of it, then a reset."""
    body = reply.body.encode()
    response = web.StreamResponse(status=reply.status)
    response.content_type = "application/json"
    response.content_length = len(body)
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    await asyncio.sleep(0)  # as above: only now is it written
    if request.transport is not None:
        reset(request.transport)
    return response


def _json(status: int, value: object) -> web.Response:
    return web.Response(status=status, text=dump(value), content_type="application/json")


async def run(options: SimulatorOptions, on_started: Callable[[Simulator], None] | None = None) -> None:
    """Serve until cancelled; on_started is called once the ports are open. Raises SimulatorError."""
    simulator = Simulator(options)
    await simulator.start()
    try:
        if on_started:
            on_started(simulator)
        await simulator.wait()
    finally:
        await simulator.stop()
