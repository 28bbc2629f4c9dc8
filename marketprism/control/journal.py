"""What our units say in the journal: counted, and the key events copied to collector_main.log.

`journalctl --follow` reads it, which knows how to live with rotation and vacuuming. The place is remembered (the
cursor), so that nothing is missed and nothing counted twice over a restart of ours; a place that is gone is told.
Message ids are those of systemd's catalog (journalctl --catalog; sd-messages.h).
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from marketprism.control.events import Events
from marketprism.control.kept import Kept
from marketprism.logs import redact
from marketprism.parent import send_signal

_KEPT = "journal"
_AGAIN_S = 1.0
_LINE_MAX_BYTES = 2**20
_FIELDS = "MESSAGE,PRIORITY,EVENT,EXCHANGE,UNIT,_SYSTEMD_UNIT,_PID,MESSAGE_ID,N_DROPPED,OBJECT_SYSTEMD_UNIT"
_SLICE = "marketprism.slice"
_JOURNALD = "systemd-journald.service"
_OWN_UNIT = "marketprism-control.service"
_UNIT = re.compile(r"marketprism-(?:worker@)?([\w-]+)(?:@.*)?\.service")
_LEVELS = ("CRITICAL", "CRITICAL", "CRITICAL", "ERROR", "WARNING", "INFO", "INFO", "DEBUG")  # by priority

# What systemd and journald say about a unit, as events of ours.
_EVENTS_BY_ID = {
    "39f53479d3a045ac8e11786248231fbf": "unit_started",
    "5eb03494b6584870a536b337290809b3": "unit_restart",
    "7ad2d189f7e94e70a38c781354912448": "unit_succeeded",
    "98e322203f7a4ed290d09fe03c09fe15": "unit_exited",
    "d9b373ed55a64feb8242e02dbe79a49c": "unit_failed",
    "fe6faa94e7774663a0da52717891d8ef": "unit_oom",
}
_DROPPED = "a596d6fe7bfa4994828e72309e95d61e"  # journald's rate limit

log = logging.getLogger(__name__)

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """One record. `process`: a worker's exchange, nats, alert …; `speaker`: who says it about the process."""

    process: str
    speaker: str
    level: str
    event: str
    message: str
    at_s: float
    dropped: int = 0

    @property
    def is_key(self) -> bool:
        """Whether it belongs into the main log."""
        return self.level not in ("INFO", "DEBUG") or bool(self.event)

    def line(self) -> str:
        """As collector_main.log has it."""
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.at_s))
        return f"[{when}] [{self.speaker}] [{self.level}] {redact(self.message)}"


def parse(found: Json) -> Entry | None:
    """A record of `journalctl --output=json`; None for our own, and for what is none of our units'.

    Fields without an underscore anybody may set, so only systemd and journald are believed about other units.
    """
    by = _text(found, "_SYSTEMD_UNIT")
    unit = by
    if _text(found, "_PID") == "1":
        unit = _text(found, "UNIT")
    elif by == _JOURNALD:
        unit = _text(found, "OBJECT_SYSTEMD_UNIT")
    match = _UNIT.fullmatch(unit)
    if match is None or by == _OWN_UNIT:
        return None
    ours = unit == by
    message_id = _text(found, "MESSAGE_ID")
    dropped = int(_text(found, "N_DROPPED") or 0) if message_id == _DROPPED else 0
    process = (_text(found, "EXCHANGE") if ours else "") or match[1]
    event = _text(found, "EVENT") if ours else _EVENTS_BY_ID.get(message_id, "")
    first, _, rest = _text(found, "MESSAGE").partition("\n")
    return Entry(
        process=process,
        speaker=process if ours else "journald" if dropped else "systemd",
        level="WARNING" if dropped else _LEVELS[int(_text(found, "PRIORITY") or 6) & 7],
        event="dropped" if dropped else event,
        message=f"{first} (the rest is in the journal)" if rest else first,
        at_s=int(found["__REALTIME_TIMESTAMP"]) / 1e6,
        dropped=dropped,
    )


def _text(found: Json, name: str) -> str:
    """A field's text; "" for none, and for what is none: binary data, a value too large, several values."""
    value = found.get(name)
    return value if isinstance(value, str) else ""


def command(cursor: str, units: Iterable[str]) -> list[str]:
    """The journalctl that follows our slice, and what systemd and journald say about these units."""
    begin = [f"--cursor={cursor}"] if cursor else ["--boot"]
    about = [f"{field}={unit}" for field in ("UNIT", "OBJECT_SYSTEMD_UNIT") for unit in units]
    by_field = [term for match in about for term in ("+", match)]
    options = ["--follow", "--lines=all", "--output=json", f"--output-fields={_FIELDS}", "--quiet"]
    return ["journalctl", *begin, *options, f"_SYSTEMD_SLICE={_SLICE}", *by_field]


class Journal:
    """Follows the journal of our units."""

    def __init__(
        self, kept: Kept, events: Events, write_line: Callable[[str], None], units: Iterable[str]
    ) -> None:
        """`write_line` takes the main log's lines. `units`: those that systemd itself may speak of."""
        self._kept = kept
        self._events = events
        self._write_line = write_line
        self._units = [*units]
        self._cursor: str = kept.get(_KEPT, "")
        self._failing = False

    async def run(self) -> None:
        """Follow until cancelled; a reader that ends is started again where it was."""
        while True:
            try:
                words = await self._follow()
            except OSError as exc:
                words = f"journalctl: {exc.strerror}"
            await asyncio.sleep(_AGAIN_S)
            if not self._failing:
                log.error("cannot read the journal, trying again every second: %s", words)
            self._failing = True

    def keep(self) -> None:
        """Note the place in the journal."""
        self._kept.put(_KEPT, self._cursor)

    async def _follow(self) -> str:
        """Until the reader ends; its last words."""
        reader = await asyncio.create_subprocess_exec(
            *command(self._cursor, self._units),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LINE_MAX_BYTES,
        )
        assert reader.stdout is not None  # asked for above
        assert reader.stderr is not None
        words = asyncio.create_task(reader.stderr.read())
        try:
            await self._take_all(reader.stdout)
            status = await reader.wait()
            return (await words).decode("utf-8", "replace").strip() or f"journalctl ended: {status}"
        finally:
            words.cancel()
            send_signal(reader, signal.SIGTERM)
            await reader.wait()

    async def _take_all(self, lines: asyncio.StreamReader) -> None:
        left_at = self._cursor
        while line := await lines.readline():
            found = json.loads(line)
            self._failing = False
            if found["__CURSOR"] != left_at:
                if left_at:
                    log.warning("the journal since %s is gone, its events are not counted", _when(left_at))
                self._take(found)
            left_at = ""
            self._cursor = found["__CURSOR"]

    def _take(self, found: Json) -> None:
        entry = parse(found)
        if entry is None:
            return
        if entry.dropped:
            self._events.drop(entry.process, entry.dropped)
        if entry.is_key:
            self._events.note(entry.process, entry.level, entry.event)
            self._write_line(entry.line())


def _when(cursor: str) -> str:
    """The time in a cursor: microseconds of Unix time, in hexadecimal digits."""
    match = re.search(r"(?:^|;)t=([0-9a-f]+)", cursor)
    return (
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(int(match[1], 16) / 1e6))
        if match
        else "the last time"
    )
