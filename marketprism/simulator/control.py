"""The control endpoint: faults to order while the simulator runs, on a port of this machine alone."""

import hmac
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from marketprism.simulator.face import dump
from marketprism.simulator.faults import CATALOG, as_object, fault_of
from marketprism.simulator.options import SimulatorError

if TYPE_CHECKING:
    from marketprism.simulator.server import Simulator

_HOST = "127.0.0.1"
_BODY_BYTES = 65_536


class Control:
    """GET /faults, POST /faults (with the bearer token), GET /faults/log."""

    def __init__(self, simulator: "Simulator") -> None:
        self.url = ""
        self._simulator = simulator
        application = web.Application(client_max_size=_BODY_BYTES)
        application.router.add_get("/faults", self._catalog)
        application.router.add_post("/faults", self._order)
        application.router.add_get("/faults/log", self._log)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.5)

    async def start(self) -> None:
        """Listen. Raises SimulatorError where the port cannot be had."""
        wanted = self._simulator.options.control_port or 0
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, _HOST, wanted).start()
        except OSError as error:
            why = f"{error.strerror}; choose another port"
            raise SimulatorError(f"control: cannot listen on {_HOST}:{wanted}: {why}") from None
        self.url = f"http://{_HOST}:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        """Close the port."""
        await self._runner.cleanup()

    async def _catalog(self, request: web.Request) -> web.Response:
        rows = {
            name: {
                "summary": kind.summary,
                "workers": sorted(kind.workers),
                "lasting": kind.lasting,
                "gap_expected": sorted(kind.gap_expected),
            }
            for name, kind in CATALOG.items()
        }
        return _json(200, rows)

    async def _order(self, request: web.Request) -> web.Response:
        if not self._is_authorized(request):
            return _json(
                401, {"error": "expected the header `Authorization: Bearer TOKEN` with the right token"}
            )
        try:
            fault = fault_of(msgspec.json.decode(await request.read()))
            self._simulator.inject_fault(fault)
        except (msgspec.DecodeError, RecursionError) as error:
            return _json(400, {"error": f"expected a fault as a JSON object: {error}"})
        except SimulatorError as error:
            return _json(400, {"error": str(error)})
        return _json(200, {"armed": as_object(fault)})

    async def _log(self, request: web.Request) -> web.Response:
        lines = [
            {"at_s": round(at_s, 3), "state": state, "fault": as_object(fault)}
            for at_s, fault, state in self._simulator.injected
        ]
        return _json(200, lines)

    def _is_authorized(self, request: web.Request) -> bool:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        wanted = self._simulator.options.control_token
        return scheme.lower() == "bearer" and hmac.compare_digest(token.strip().encode(), wanted.encode())


def _json(status: int, value: object) -> web.Response:
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return web.Response(status=status, text=dump(value), headers=headers, content_type="application/json")
