"""Reading what journalctl prints. That it is told the right thing is seen in tests/vm, on a real journal."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from marketprism import logs
from marketprism.control.events import Events
from marketprism.control.journal import Journal, command, parse
from marketprism.control.kept import Kept

OKX = "marketprism-worker@okx_spot.service"
AT_S = 1_795_433_700.25
CURSOR = "s=7a2b;i=1f;b=0c;m=5d2;t=6432e1d8a2f00;x=9"

# As systemd 252's journalctl prints them.
GAP = {
    "__CURSOR": CURSOR,
    "__REALTIME_TIMESTAMP": str(int(AT_S * 1e6)),
    "_SYSTEMD_UNIT": OKX,
    "_PID": "798",
    "PRIORITY": "4",
    "EXCHANGE": "okx_spot",
    "EVENT": "gap",
    "MESSAGE": "gap in trade of BTC-USDT: restart",
}
FAILED = {
    "__CURSOR": CURSOR,
    "__REALTIME_TIMESTAMP": str(int(AT_S * 1e6)),
    "_SYSTEMD_UNIT": "init.scope",
    "_PID": "1",
    "UNIT": OKX,
    "PRIORITY": "4",
    "MESSAGE_ID": "d9b373ed55a64feb8242e02dbe79a49c",
    "MESSAGE": f"{OKX}: Failed with result 'oom-kill'.",
}
DROPPED = {
    "__CURSOR": CURSOR,
    "__REALTIME_TIMESTAMP": str(int(AT_S * 1e6)),
    "_SYSTEMD_UNIT": "systemd-journald.service",
    "OBJECT_SYSTEMD_UNIT": OKX,
    "PRIORITY": "6",
    "MESSAGE_ID": "a596d6fe7bfa4994828e72309e95d61e",
    "N_DROPPED": "28917",
    "MESSAGE": "Suppressed 28917 messages from " + OKX,
}


def line(found: dict[str, Any]) -> str:
    entry = parse(found)
    assert entry is not None
    assert entry.is_key
    return entry.line()


def test_a_workers_event() -> None:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(AT_S))
    assert line(GAP) == f"[{when}] [okx_spot] [WARNING] gap in trade of BTC-USDT: restart"
    assert logs.is_line(line(GAP))


@pytest.mark.parametrize(
    ("found", "process", "speaker", "level", "event"),
    [
        (GAP, "okx_spot", "okx_spot", "WARNING", "gap"),
        (FAILED, "okx_spot", "systemd", "WARNING", "unit_failed"),
        (DROPPED, "okx_spot", "journald", "WARNING", "dropped"),
        (GAP | {"_SYSTEMD_UNIT": "marketprism-nats.service", "EXCHANGE": ""}, "nats", "nats", "WARNING", "gap"),
        (FAILED | {"UNIT": "marketprism-control.service"}, "control", "systemd", "WARNING", "unit_failed"),
        (GAP | {"_SYSTEMD_UNIT": "marketprism-alert@x.service", "EXCHANGE": ""}, "alert", "alert", "WARNING", "gap"),
        (FAILED | {"EVENT": "gap", "MESSAGE_ID": "of something else"}, "okx_spot", "systemd", "WARNING", ""),
    ],
)  # fmt: skip
def test_whose_it_is(found: dict[str, Any], process: str, speaker: str, level: str, event: str) -> None:
    entry = parse(found)
    assert entry is not None
    assert (entry.process, entry.speaker, entry.level, entry.event) == (process, speaker, level, event)


def test_the_loss_of_lines_is_counted() -> None:
    entry = parse(DROPPED)
    assert entry is not None
    assert entry.dropped == 28917


@pytest.mark.parametrize(
    "found",
    [
        GAP | {"_SYSTEMD_UNIT": "marketprism-control.service"},  # our own: written by us already
        GAP | {"_SYSTEMD_UNIT": "ssh.service"},
        FAILED | {"_PID": "4711"},  # whoever that is, it is not systemd
        DROPPED | {"_SYSTEMD_UNIT": "ssh.service"},
        {name: value for name, value in GAP.items() if name != "_SYSTEMD_UNIT"},
    ],
)
def test_what_is_not_for_us(found: dict[str, Any]) -> None:
    assert parse(found) is None


@pytest.mark.parametrize("message", [None, [1, 2, 255], ["one", "two"]])
def test_a_message_that_is_no_text(message: object) -> None:
    """Too large a value is null, binary data a list of numbers, several fields of one name a list."""
    entry = parse(GAP | {"MESSAGE": message})
    assert entry is not None
    assert entry.message == ""


def test_a_message_of_many_lines_and_a_secret() -> None:
    text = line(GAP | {"MESSAGE": "failed: api_key=abcdef123\nTraceback\n  File"})
    assert text.endswith("failed: api_key=*** (the rest is in the journal)")
    assert "\n" not in text


def test_info_without_an_event_is_not_for_the_main_log() -> None:
    entry = parse(GAP | {"PRIORITY": "6", "EVENT": None})
    assert entry is not None
    assert not entry.is_key


def test_the_command() -> None:
    assert "--boot" in command("", [OKX])
    words = command(CURSOR, [OKX, "marketprism-nats.service"])
    assert f"--cursor={CURSOR}" in words
    assert "--boot" not in words
    assert " ".join(words).endswith(
        f"_SYSTEMD_SLICE=marketprism.slice + UNIT={OKX} + UNIT=marketprism-nats.service"
        f" + OBJECT_SYSTEMD_UNIT={OKX} + OBJECT_SYSTEMD_UNIT=marketprism-nats.service"
    )


def test_made_up_events_do_not_fill_the_metrics() -> None:
    events = Events()
    for number in range(1000):
        events.note("okx_spot", "WARNING", f"event {number}")
    assert sum(events.records.values()) == 1000
    assert len(events.records) <= 402


class Reader:
    """A stand-in for journalctl: prints a file and waits, or ends with words."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = folder / "asked"
        self._entries = folder / "entries"
        self._folder = folder
        monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
        self.says()

    def says(self, *entries: dict[str, Any], then: str = "exec sleep 60") -> None:
        self._entries.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        program = self._folder / "journalctl.new"
        program.write_text(f'#!/bin/sh\necho "$1" >>{self.asked}\ncat {self._entries}\n{then}\n')
        program.chmod(0o755)
        program.rename(self._folder / "journalctl")


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)


def follow(folder: Path, events: Events, enough: Callable[[], object]) -> list[str]:
    """Follow until it is enough; the main log's lines."""
    lines: list[str] = []
    kept = Kept(folder / "control.json")

    async def run() -> None:
        journal = Journal(kept, events, lines.append, [OKX])
        running = asyncio.create_task(journal.run())
        await until(enough)
        running.cancel()
        await asyncio.wait([running])
        journal.keep()
        kept.save(now=True)

    asyncio.run(run())
    return lines


def test_it_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, events = Reader(tmp_path, monkeypatch), Events()
    second, third = GAP | {"__CURSOR": "s=2"}, GAP | {"__CURSOR": "s=3"}
    reader.says(GAP, DROPPED, second)
    lines = follow(tmp_path, events, lambda: events.records["okx_spot", "WARNING", "gap"] == 2)
    assert len(lines) == 3
    assert events.dropped["okx_spot"] == 28917
    reader.says(second, third)  # it begins with the last one again
    lines = follow(tmp_path, events, lambda: events.records["okx_spot", "WARNING", "gap"] >= 3)
    assert len(lines) == 1
    assert reader.asked.read_text().split() == ["--boot", "--cursor=s=2"]


def test_a_place_that_is_gone_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reader, events = Reader(tmp_path, monkeypatch), Events()
    reader.says(GAP)
    follow(tmp_path, events, lambda: events.records)
    reader.says(GAP | {"__CURSOR": "s=9;t=6432e1d8a2fff"})
    lines = follow(tmp_path, events, lambda: events.records["okx_spot", "WARNING", "gap"] == 2)
    assert len(lines) == 1
    assert [r.getMessage().partition(" since ")[0] for r in caplog.records] == ["the journal"]


def test_a_reader_that_ends_is_told_once_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    reader, events = Reader(tmp_path, monkeypatch), Events()
    reader.says(then="echo no permission >&2; exit 1")
    follow(tmp_path, events, lambda: reader.asked.exists() and len(reader.asked.read_text().split()) == 3)
    assert [r.getMessage() for r in caplog.records] == [
        "cannot read the journal, trying again every second: no permission"
    ]


def test_without_a_journal_the_lines_themselves_are_counted() -> None:
    events = Events()
    for text in ("[2026-11-23 11:35:40] [okx_spot] [WARNING] gap [in] [trade]", line(GAP), line(FAILED)):
        events.note_line(text)
    assert events.records == {("okx_spot", "WARNING", ""): 2, ("systemd", "WARNING", ""): 1}
