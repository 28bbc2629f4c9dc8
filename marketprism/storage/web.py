"""The hot store's HTTP: /health, /stats, /metrics and /query on 8085; changes over a socket of its user's only."""

import asyncio
import ipaddress
import os
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any, Protocol

import msgspec
from aiohttp import web

from marketprism.storage.checking import checked
from marketprism.storage.engine import Engine, EngineError
from marketprism.storage.writer import ChangedError, Writer

_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
FORMATS = {
    "ArrowStream": "application/vnd.apache.arrow.stream",
    "Parquet": "application/vnd.apache.parquet",
    "CSVWithNames": "text/csv",
    "JSONEachRow": "application/x-ndjson",
    "TabSeparatedWithNames": "text/tab-separated-values",
    "PrettyCompact": "text/plain",
}
"""What /query answers in."""
READERS = 2
QUERY_BYTES = 1024**2


class Storage(Protocol):
    """What is served: the hot store or the cold one."""

    def health(self) -> dict[str, Any]:
        """The body of /health; its status decides about 503."""
        ...

    def stats(self) -> dict[str, Any]:
        """The body of /stats."""
        ...

    def metrics(self) -> tuple[bytes, str]:
        """Text and content type of /metrics."""
        ...


class Change(msgspec.Struct, forbid_unknown_fields=True):
    """An order of /change: carry out `statement` if the one row of `guard` is what is `expected`."""

    statement: str
    parameters: dict[str, str | int | float | list[str]] = {}
    guard: str = ""
    expected: list[Any] = []


class Readers:
    """A few connections that can only read, each with its thread; made when they are first needed."""

    def __init__(self) -> None:
        """Without an engine yet."""
        self._engine: Engine | None = None
        self._free: asyncio.LifoQueue[_Reader] = asyncio.LifoQueue()
        self._all = [_Reader() for _ in range(READERS)]
        for reader in self._all:
            self._free.put_nowait(reader)

    def use(self, engine: Engine) -> None:
        """Read from this engine from now on."""
        self._engine = engine

    async def stream(self, sql: str, fmt: str, parameters: dict[str, str]) -> AsyncGenerator[bytes, None]:
        """A checked SELECT's answer, piece by piece. Raises EngineError."""
        if self._engine is None:
            raise EngineError("the engine is not open yet: /health tells why")
        reader = await self._free.get()
        try:
            pieces = await reader.do(reader.answer, self._engine, sql, fmt, parameters)
            try:
                while piece := await reader.do(next, pieces, b""):
                    yield piece
            finally:
                await reader.do(pieces.close)  # also of who has gone
        finally:
            self._free.put_nowait(reader)

    def close(self) -> None:
        """End the connections."""
        for reader in self._all:
            reader.close()


class _Reader:
    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "reader")
        self._engine: Engine | None = None

    async def do(self, call: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)

    def answer(
        self, engine: Engine, sql: str, fmt: str, parameters: dict[str, str]
    ) -> Generator[bytes, None, None]:
        if self._engine is None:
            self._engine = engine.reader()
        return self._engine.stream(checked(self._engine, sql), fmt, parameters)

    def close(self) -> None:
        self._thread.shutdown()
        if self._engine is not None:
            self._engine.close()


def public_app(storage: Storage, readers: Readers | None = None) -> web.Application:
    """/health, /stats and /metrics; with readers /query, too, for this machine only."""

    async def health(_: web.Request) -> web.Response:
        found = storage.health()
        return _json(found, 503 if found["status"] == "unhealthy" else 200)

    async def stats(_: web.Request) -> web.Response:
        return _json(storage.stats())

    async def metrics(_: web.Request) -> web.Response:
        text, content_type = storage.metrics()
        return web.Response(body=text, headers={**_HEADERS, "Content-Type": content_type})

    app = web.Application(client_max_size=QUERY_BYTES)
    app.router.add_get("/health", health)
    app.router.add_get("/stats", stats)
    app.router.add_get("/metrics", metrics)
    if readers is not None:
        app.router.add_post("/query", _query(readers))
    return app


def _query(readers: Readers) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def query(request: web.Request) -> web.StreamResponse:
        if not _local(request):
            return _refused(403, "queries are answered to this machine only")
        fmt = request.query.get("format", "ArrowStream")
        if fmt not in FORMATS:
            return _refused(400, f"expected format {', '.join(FORMATS)}, got {fmt!r}")
        names = {n.removeprefix("param_"): v for n, v in request.query.items() if n.startswith("param_")}
        pieces = readers.stream(await request.text(), fmt, names)
        response = web.StreamResponse(headers={**_HEADERS, "Content-Type": FORMATS[fmt]})
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    if not response.prepared:
                        await response.prepare(request)
                    await response.write(piece)
            if not response.prepared:
                await response.prepare(request)
            await response.write_eof()
        except ConnectionResetError:  # who asked has gone
            return response
        except EngineError as error:
            if not response.prepared:
                return _refused(400, str(error))
            if request.transport is not None:  # half an answer must not look like a whole one
                request.transport.abort()
        return response

    return query


def private_app(writer: Writer) -> web.Application:
    """/change, for who may open the socket it is served on."""

    async def change(request: web.Request) -> web.Response:
        try:
            order = msgspec.json.decode(await request.read(), type=Change)
            await writer.change(order.statement, dict(order.parameters), order.guard, order.expected)
        except ChangedError as error:
            return _json({"done": False, "found": error.found}, 409)
        except (msgspec.MsgspecError, EngineError) as error:
            return _refused(400, str(error))
        return _json({"done": True})

    app = web.Application(client_max_size=QUERY_BYTES)
    app.router.add_post("/change", change)
    return app


def private_socket(path: Path) -> socket.socket:
    """A Unix socket that only this user can open. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        sock.bind(str(path))
    finally:
        os.umask(before)
    return sock


async def serve(app: web.Application, sock: socket.socket) -> web.AppRunner:
    """Serve on a bound socket until the runner's `cleanup` is awaited."""
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    await web.SockSite(runner, sock).start()
    return runner


def _local(request: web.Request) -> bool:
    """Whether it comes from this machine: over loopback, or from the address that it was sent to."""
    if request.transport is None:
        return False
    ours, theirs = (request.transport.get_extra_info(name)[0] for name in ("sockname", "peername"))
    address = ipaddress.ip_address(theirs)
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    return address.is_loopback or ours == theirs


def _refused(status: int, text: str) -> web.Response:
    return web.Response(text=f"{text}\n", status=status, headers=_HEADERS)


def _json(content: dict[str, Any], status: int = 200) -> web.Response:
    return web.json_response(content, status=status, headers=_HEADERS)
