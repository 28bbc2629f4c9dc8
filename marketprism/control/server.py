"""The two HTTP faces of the control plane, health on 8087 and metrics on 9092; they keep no state."""

from __future__ import annotations

import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from marketprism import __version__
from marketprism.control.actions import Actions
from marketprism.control.metrics import Requests
from marketprism.control.openapi import document
from marketprism.control.plane import ActionError, ControlPlane, Verb

_PAGES = Path(__file__).parent / "web"
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline'; frame-ancestors 'none'",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def health_app(plane: ControlPlane, actions: Actions) -> web.Application:
    """How it is, orders to workers, and pages for people."""
    orders = _Orders(plane, actions)
    app = _app(plane.requests)
    app.router.add_get("/", _page("index.html"))
    app.router.add_get("/api", _page("api.html"))
    app.router.add_get("/openapi.json", _openapi)
    app.router.add_get("/live", _live)
    app.router.add_get("/version", _version)
    questions = _Questions(plane)
    app.router.add_get("/health", questions.health)
    app.router.add_get("/health/{process}", questions.one)
    app.router.add_get("/ready", questions.ready)
    for verb in Verb:
        app.router.add_post(f"/workers/{{process}}/{verb}", orders.handler(verb))
    return app


def metrics_app(plane: ControlPlane) -> web.Application:
    """/metrics, in the format the Accept header asks for."""

    async def metrics(request: web.Request) -> web.Response:
        text, content_type = plane.metrics(request.headers.get("Accept", ""))
        response = web.Response(body=text, headers={**_HEADERS, "Content-Type": content_type})
        response.enable_compression()
        return response

    app = _app(plane.requests)
    app.router.add_get("/metrics", metrics)
    return app


async def serve(app: web.Application, sock: socket.socket) -> web.AppRunner:
    """Serve `app` on a listening socket until the runner's `cleanup` is awaited."""
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    await web.SockSite(runner, sock).start()
    return runner


class _Questions:
    """What a GET answers."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane

    async def health(self, _: web.Request) -> web.Response:
        return _judged(self._plane.health())

    async def one(self, request: web.Request) -> web.Response:
        health = self._plane.health()
        processes = health["processes"] | health["stores"]
        name = request.match_info["process"]
        return _judged(processes[name]) if name in processes else _unknown(name, processes)

    async def ready(self, _: web.Request) -> web.Response:
        processes = self._plane.health()["processes"]
        waiting = sorted(
            name
            for name, entry in processes.items()
            if entry["status"] == "unhealthy" or "starting" in entry["reasons"]
        )
        ready = bool(processes) and not waiting
        return _json({"ready": ready, "waiting_for": waiting}, 200 if ready else 503)


class _Orders:
    """What a POST does."""

    def __init__(self, plane: ControlPlane, actions: Actions) -> None:
        self._plane = plane
        self._actions = actions

    def handler(self, verb: Verb) -> Handler:
        """Carries out `verb`."""

        async def order(request: web.Request) -> web.Response:
            name = request.match_info["process"]
            return self._refused(request) or await self._carry_out(verb, name)

        return order

    def _refused(self, request: web.Request) -> web.Response | None:
        if not self._actions.token:
            text = "orders are off: no token is configured (credential control.token, or monitoring.actions_token_file)"
            return _json({"error": text}, 403)
        if not self._actions.allows(request.headers.get("Authorization", "")):
            refusal = _json(
                {"error": "expected the header Authorization: Bearer TOKEN with the right token"}, 401
            )
            refusal.headers["WWW-Authenticate"] = "Bearer"
            return refusal
        return None

    async def _carry_out(self, verb: Verb, name: str) -> web.Response:
        names = self._plane.names()
        if name not in names:
            return _unknown(name, names)
        try:
            await self._plane.act(verb, name)
        except ActionError as exc:
            return _json({"error": str(exc)}, 409)
        return _json({"worker": name, "ordered": verb.value}, 202)


async def _live(_: web.Request) -> web.Response:
    return _json({"live": True})


async def _version(_: web.Request) -> web.Response:
    return _json({"version": __version__})


async def _openapi(_: web.Request) -> web.Response:
    return _json(document())


def _page(name: str) -> Handler:
    async def page(_: web.Request) -> web.FileResponse:
        return web.FileResponse(_PAGES / name, headers=_HEADERS)

    return page


def _app(requests: Requests) -> web.Application:
    @web.middleware
    async def timed(request: web.Request, handler: Handler) -> web.StreamResponse:
        begun_s = time.perf_counter()
        response = await handler(request)
        resource = request.match_info.route.resource
        endpoint = resource.canonical if resource else "none"
        requests.note(endpoint, request.method, time.perf_counter() - begun_s)
        return response

    return web.Application(middlewares=[timed])


def _unknown(name: str, known: Any) -> web.Response:
    return _json({"error": f"no process {name!r}; there are: {', '.join(known) or 'none'}"}, 404)


def _judged(found: dict[str, Any]) -> web.Response:
    return _json(found, 503 if found["status"] == "unhealthy" else 200)


def _json(content: dict[str, Any], status: int = 200) -> web.Response:
    return web.json_response(content, status=status, headers=_HEADERS)
