"""A private bus with something on it that answers like systemd does; the real one is in tests/vm."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from dbus_fast import Message, MessageType, Variant
from dbus_fast.aio import MessageBus

MANAGER = "/org/freedesktop/systemd1"
RUNNING: dict[str, tuple[str, Any]] = {
    "ActiveState": ("s", "active"),
    "SubState": ("s", "running"),
    "LoadState": ("s", "loaded"),
    "MainPID": ("u", 4711),
    "NRestarts": ("u", 0),
    "Result": ("s", "success"),
    "StatusText": ("s", "live 2/2 books"),
    "ControlGroup": ("s", ""),
    "MemoryHigh": ("t", 120 << 20),
    "MemoryMax": ("t", 2**64 - 1),
    "ExecMainCode": ("i", 0),
    "ExecMainStatus": ("i", 0),
    "ExecMainStartTimestampMonotonic": ("t", 1_000_000),
    "ExecMainExitTimestampMonotonic": ("t", 0),
}
KILLED = {
    "ActiveState": ("s", "activating"),
    "SubState": ("s", "auto-restart"),
    "MainPID": ("u", 0),
    "Result": ("s", "signal"),
    "ExecMainCode": ("i", 2),
    "ExecMainStatus": ("i", 9),
    "ExecMainExitTimestampMonotonic": ("t", 5_000_000),
}


@contextlib.contextmanager
def private_bus(folder: Path) -> Iterator[str]:
    """A dbus-daemon of our own; yields its address."""
    if shutil.which("dbus-daemon") is None:
        pytest.skip("dbus-daemon is not installed")
    config = folder / "bus.conf"
    config.write_text(
        '<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" '
        '"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">'
        f"<busconfig><type>session</type><listen>unix:path={folder}/bus</listen>"
        '<policy context="default"><allow send_destination="*"/><allow eavesdrop="true"/>'
        '<allow own="*"/></policy></busconfig>'
    )
    command = ["dbus-daemon", f"--config-file={config}", "--nofork", "--print-address"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()


class FakeSystemd:
    """Units by name, each with its properties; `asked` are the manager's calls. `refuses`: with these words."""

    def __init__(self, bus: MessageBus) -> None:
        self.units: dict[str, dict[str, tuple[str, Any]]] = {}
        self.asked: list[tuple[str, list[Any]]] = []
        self.gets = 0
        self.refuses = ""
        self._bus = bus

    def add(self, unit: str, **properties: tuple[str, Any]) -> None:
        self.units[unit] = RUNNING | properties

    async def change(self, unit: str, **properties: tuple[str, Any]) -> None:
        """Change properties and tell all of the service's, as systemd does."""
        self.units[unit] |= properties
        told = {name: Variant(*value) for name, value in self.units[unit].items()}
        body = ["org.freedesktop.systemd1.Service", told, []]
        signal = Message.new_signal(
            path(unit), "org.freedesktop.DBus.Properties", "PropertiesChanged", "sa{sv}as", body
        )
        await self._bus.send(signal)

    def answer(self, message: Message) -> Message | None:
        """A message handler of the bus."""
        if message.message_type is not MessageType.METHOD_CALL:
            return None
        if message.member == "Get":
            self.gets += 1
            return self._property(message)
        if message.path != MANAGER:
            return None
        self.asked.append((str(message.member), message.body))
        if self.refuses and message.member != "Subscribe":
            return Message.new_error(message, "org.freedesktop.DBus.Error.AccessDenied", self.refuses)
        if message.member == "ListUnitsByPatterns":
            return Message.new_method_return(message, "a(ssssssouso)", [self._listed(message.body[1])])
        if str(message.member).endswith("Unit") and message.member != "ResetFailedUnit":
            return Message.new_method_return(message, "o", ["/job/1"])
        return Message.new_method_return(message)

    def _property(self, message: Message) -> Message:
        unit = next((name for name in self.units if path(name) == message.path), "")
        name = message.body[1]
        if name == "Wants":
            workers = [unit for unit in self.units if unit.startswith("marketprism-worker@")]
            return Message.new_method_return(message, "v", [Variant("as", ["basic.target", *workers])])
        return Message.new_method_return(message, "v", [Variant(*self.units[unit][name])])

    def _listed(self, patterns: list[str]) -> list[list[Any]]:
        prefixes = tuple(pattern.partition("*")[0] for pattern in patterns)
        return [
            [name, "", "loaded", found["ActiveState"][1], found["SubState"][1], "", path(name), 0, "", "/"]
            for name, found in self.units.items()
            if name.startswith(prefixes)
        ]


def path(unit: str) -> str:
    """As systemd spells it."""
    escaped = "".join(c if c.isascii() and c.isalnum() else f"_{ord(c):02x}" for c in unit)
    return f"{MANAGER}/unit/{escaped}"


@contextlib.asynccontextmanager
async def fake_systemd(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeSystemd]:
    """It answers on a private bus that is the system bus for this process."""
    with private_bus(folder) as address:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
        bus = await MessageBus(bus_address=address).connect()
        fake = FakeSystemd(bus)
        bus.add_message_handler(fake.answer)
        await bus.request_name("org.freedesktop.systemd1")
        try:
            yield fake
        finally:
            bus.disconnect()
