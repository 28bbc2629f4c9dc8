"""systemd's units over D-Bus: how they are, being told when that changes, and orders (org.freedesktop.systemd1(5)).

Reading needs no right. Orders need the polkit rule that is installed with the units.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dbus_fast import BusType, Message, MessageType, Variant
from dbus_fast.aio import MessageBus
from dbus_fast.errors import DBusError

_NAME = "org.freedesktop.systemd1"
_MANAGER_PATH = "/org/freedesktop/systemd1"
_MANAGER = f"{_NAME}.Manager"
_UNIT = f"{_NAME}.Unit"
_SERVICE = f"{_NAME}.Service"
_PROPERTIES = "org.freedesktop.DBus.Properties"
_BUS = "org.freedesktop.DBus"

_ANSWER_WITHIN_S = 10.0
_NO_LIMIT = 2**64 - 1  # how D-Bus says "infinity" and "not set"
_OF_A_UNIT = ("ActiveState", "SubState", "LoadState")
_OF_A_SERVICE = (
    *("MainPID", "NRestarts", "Result", "StatusText", "ControlGroup", "MemoryHigh", "MemoryMax"),
    *("ExecMainCode", "ExecMainStatus", "ExecMainStartTimestampMonotonic", "ExecMainExitTimestampMonotonic"),
)
_TOLD = frozenset((*_OF_A_UNIT, *_OF_A_SERVICE)) - {"StatusText"}


class UnitsError(Exception):
    """systemd cannot be asked, or has refused; the text is one line for a person."""


@dataclass(frozen=True, slots=True)
class UnitState:
    """A service as systemd sees it. Times in seconds of CLOCK_MONOTONIC, 0: never; None: no limit.

    `asked_s`: when systemd was asked. `exit_code`: as subprocess gives it, negative for a signal; None while it
    runs or has not run.
    """

    asked_s: float
    active: str
    sub: str
    loaded: bool
    main_pid: int
    restarts: int
    result: str
    status_text: str
    cgroup: str
    memory_high: int | None
    memory_max: int | None
    exit_code: int | None
    started_s: float
    exited_s: float


class Units:
    """A connection to systemd."""

    def __init__(self, bus: MessageBus, changed: Callable[[str], None]) -> None:
        self._bus = bus
        self._changed = changed
        self._paths: dict[str, str] = {}  # object path → unit
        self._known: dict[str, dict[str, Any]] = {}  # object path → what was last heard

    @classmethod
    async def connect(cls, changed: Callable[[str], None]) -> Units:
        """Connect to the system bus; `changed(unit)` will be called for units that are followed.

        Raises UnitsError where there is no systemd to ask.
        """
        bus = MessageBus(bus_type=BusType.SYSTEM)
        try:
            async with asyncio.timeout(_ANSWER_WITHIN_S):
                await bus.connect()
        except (OSError, TimeoutError, DBusError, ValueError, EOFError) as exc:
            raise UnitsError(f"cannot reach the system bus: {_words(exc)}") from exc
        units = cls(bus, changed)
        bus.add_message_handler(units._on_message)
        await units._manager("Subscribe")
        return units

    async def closed(self) -> None:
        """Wait until the connection is lost."""
        await asyncio.gather(self._bus.wait_for_disconnect(), return_exceptions=True)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """End the connection."""
        if self._bus.connected:
            self._bus.disconnect()

    async def wants(self, target: str) -> list[str]:
        """The units that `target` wants. Raises UnitsError."""
        return list(await self._property(_path(target), _UNIT, "Wants"))

    async def listed(self, *patterns: str) -> dict[str, str]:
        """Loaded units whose name matches one: name → ActiveState. Raises UnitsError."""
        found = await self._manager("ListUnitsByPatterns", "asas", [[], [*patterns]])
        return {str(unit[0]): str(unit[3]) for unit in found[0]}

    async def follow(self, unit: str) -> None:
        """Have changes of `unit` told from now on. Raises UnitsError."""
        path = _path(unit)
        if path not in self._paths:
            self._paths[path] = unit
            rule = f"type='signal',interface='{_PROPERTIES}',member='PropertiesChanged',path='{path}'"
            await self._call(_BUS, "/org/freedesktop/DBus", _BUS, "AddMatch", "s", [rule])

    async def state(self, unit: str) -> UnitState:
        """How `unit` is. Raises UnitsError."""
        asked_s = time.monotonic()
        path = _path(unit)
        of_unit, of_service = await asyncio.gather(
            asyncio.gather(*(self._property(path, _UNIT, name) for name in _OF_A_UNIT)),
            asyncio.gather(*(self._property(path, _SERVICE, name) for name in _OF_A_SERVICE)),
        )
        names = (*_OF_A_UNIT, *_OF_A_SERVICE)
        found = self._known[path] = dict(zip(names, (*of_unit, *of_service), strict=True))
        return _state(asked_s, found)

    async def order(self, method: str, unit: str) -> None:
        """StartUnit, StopUnit, RestartUnit or ReloadUnit; does not wait for its end. Raises UnitsError."""
        if method in ("StartUnit", "RestartUnit"):
            await self._forget_failures(unit)
        await self._manager(method, "ss", [unit, "replace"])

    async def _forget_failures(self, unit: str) -> None:
        """A start limit that was hit refuses orders, too, until the failures are forgotten."""
        if "failed" in (await self.listed(unit)).values():
            await self._manager("ResetFailedUnit", "s", [unit])

    async def set_memory_high(self, unit: str, limit_bytes: int | None) -> None:
        """Set MemoryHigh= until the next boot or `daemon-reload`; None: no limit. Raises UnitsError."""
        value = Variant("t", _NO_LIMIT if limit_bytes is None else limit_bytes)
        await self._manager("SetUnitProperties", "sba(sv)", [unit, True, [["MemoryHigh", value]]])

    async def _property(self, path: str, interface: str, name: str) -> Any:
        return (await self._call(_NAME, path, _PROPERTIES, "Get", "ss", [interface, name]))[0].value

    async def _manager(self, method: str, signature: str = "", body: list[Any] | None = None) -> list[Any]:
        return await self._call(_NAME, _MANAGER_PATH, _MANAGER, method, signature, body or [])

    async def _call(
        self, to: str, path: str, interface: str, method: str, signature: str, body: list[Any]
    ) -> list[Any]:
        message = Message(
            destination=to, path=path, interface=interface, member=method, signature=signature, body=body
        )
        try:
            async with asyncio.timeout(_ANSWER_WITHIN_S):
                reply = await self._bus.call(message)
        except (OSError, TimeoutError, DBusError, EOFError) as exc:
            raise UnitsError(f"systemd does not answer {method}: {_words(exc)}") from exc
        if reply is None or reply.message_type is MessageType.ERROR:
            words = reply.body[0] if reply is not None and reply.body else "no answer"
            raise UnitsError(f"systemd refuses {method}: {words}")
        return list(reply.body)

    def _on_message(self, message: Message) -> None:
        path = message.path or ""
        if (
            message.member == "PropertiesChanged"
            and path in self._paths
            and self._is_news(path, message.body[1])
        ):
            self._changed(self._paths[path])

    def _is_news(self, path: str, told: dict[str, Variant]) -> bool:
        """Whether more than a status text has changed: a worker has a new one every few seconds."""
        known = self._known.get(path, {})
        return any(known.get(name) != told[name].value for name in _TOLD & told.keys())


def _words(exc: BaseException) -> str:
    if isinstance(exc, OSError) and exc.errno:
        return os.strerror(exc.errno)
    return str(exc) or type(exc).__name__


def _path(unit: str) -> str:
    """The unit's object path: what is neither letter nor digit is written as _xx."""
    escaped = "".join(char if char.isascii() and char.isalnum() else f"_{ord(char):02x}" for char in unit)
    return f"{_MANAGER_PATH}/unit/{escaped}"


def _state(asked_s: float, found: dict[str, Any]) -> UnitState:
    exited_s, started_s = (found[f"ExecMain{name}TimestampMonotonic"] / 1e6 for name in ("Exit", "Start"))
    status = int(found["ExecMainStatus"])
    by_signal = found["ExecMainCode"] in (os.CLD_KILLED, os.CLD_DUMPED)
    ended = not found["MainPID"] and exited_s > 0
    return UnitState(
        asked_s=asked_s,
        active=found["ActiveState"],
        sub=found["SubState"],
        loaded=found["LoadState"] == "loaded",
        main_pid=found["MainPID"],
        restarts=found["NRestarts"],
        result=found["Result"],
        status_text=found["StatusText"],
        cgroup=found["ControlGroup"],
        memory_high=_limit(found["MemoryHigh"]),
        memory_max=_limit(found["MemoryMax"]),
        exit_code=(-status if by_signal else status) if ended else None,
        started_s=started_s,
        exited_s=exited_s,
    )


def _limit(value: int) -> int | None:
    return None if value >= _NO_LIMIT else value
