"""The two HTTP faces of the control plane, health on 8087 and metrics on 9092; they keep no state."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web

_PAGE = Path(__file__).parent / "web" / "index.html"
_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ControlPlane(Protocol):
    """What is served: the launcher's today, systemd's one day."""

    def health(self) -> dict[str, Any]:
        """The body of /health, as of now."""
        ...

    def metrics(self, accept: str) -> tuple[bytes, str]:
        """(text, content type) of /metrics for this Accept header."""
        ...


def health_app(plane: ControlPlane) -> web.Application:
    """/health, /health/{process}, /ready, /live, /version, and a page for people at /."""

    async def health(_: web.Request) -> web.Response:
        return _judged(plane.health())

    async def one(request: web.Request) -> web.Response:
        processes = plane.health()["processes"]
        name = request.match_info["process"]
        if name not in processes:
            return _json({"error": f"no process {name!r}; there are: {', '.join(processes)}"}, 404)
        return _judged(processes[name])

    async def ready(_: web.Request) -> web.Response:
        found = plane.health()
        waiting = sorted(
            name
            for name, entry in found["processes"].items()
            if entry["status"] == "unhealthy" or "starting" in entry["reasons"]
        )
        return _json({"ready": not waiting, "waiting_for": waiting}, 503 if waiting else 200)

    async def live(_: web.Request) -> web.Response:
        return _json({"live": True})

    async def version(_: web.Request) -> web.Response:
        return _json({"version": plane.health()["version"]})

    async def page(_: web.Request) -> web.FileResponse:
        return web.FileResponse(_PAGE, headers=_HEADERS)

    routes: dict[str, Handler] = {
        "/": page,
        "/health": health,
        "/health/{process}": one,
        "/ready": ready,
        "/live": live,
        "/version": version,
    }
    return _app(routes)


def metrics_app(plane: ControlPlane) -> web.Application:
    """/metrics, in the format the Accept header asks for."""

    async def metrics(request: web.Request) -> web.Response:
        text, content_type = plane.metrics(request.headers.get("Accept", ""))
        return web.Response(body=text, headers={**_HEADERS, "Content-Type": content_type})

    return _app({"/metrics": metrics})


async def serve(app: web.Application, sock: socket.socket) -> web.AppRunner:
    """Serve `app` on a bound socket until the runner's `cleanup` is awaited."""
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    await web.SockSite(runner, sock).start()
    return runner


def _app(routes: dict[str, Handler]) -> web.Application:
    app = web.Application()
    for path, handler in routes.items():
        app.router.add_get(path, handler)
    return app


def _judged(found: dict[str, Any]) -> web.Response:
    return _json(found, 503 if found["status"] == "unhealthy" else 200)


def _json(content: dict[str, Any], status: int = 200) -> web.Response:
    return web.json_response(content, status=status, headers=_HEADERS)
