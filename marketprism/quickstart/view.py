"""The live view: refreshed in place on a terminal, a table every few seconds elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import TextIO

from marketprism.quickstart.figures import Reading, Row, rows

_REFRESH_TERMINAL_S = 0.0  # at every reading
_REFRESH_PLAIN_S = 5.0
_FIRST_PLAIN_S = 3.0  # there is something to see by then

_TITLES = ("exchange", "status", "events/s", "events", "live books", "gaps", "latency mean", "p99", "memory")
_WIDTHS = (20, 9, 9, 11, 10, 6, 12, 10, 8)
_HINTS = (
    "",
    "health     curl -s localhost:8087/health",
    "metrics    curl -s localhost:9092/metrics",
    "events     .venv/bin/marketprism tail 'trade.>'",
    "stored     .venv/bin/marketprism query 'SHOW TABLES FROM marketprism_hot'",
    "logs       {logs}/collector_main.log, {logs}/collector_<exchange>.log, {logs}/quickstart_*.log",
    "",
    "Ctrl-C stops everything.",
)
_OF_STORES = "stored "


class View:
    """Draws on `out`."""

    def __init__(self, out: TextIO, source: str, logs: str, *, stores: bool) -> None:
        self._out = out
        self._source = source
        hints = [line for line in _HINTS if stores or not line.startswith(_OF_STORES)]
        self._hints = [line.format(logs=logs) for line in hints]
        self._lines_above = 0
        self._in_place = out.isatty()
        self._refresh_s = _REFRESH_TERMINAL_S if self._in_place else _REFRESH_PLAIN_S
        self._next_s = 0.0 if self._in_place else _FIRST_PLAIN_S

    def draw(self, readings: Sequence[Reading], running_s: float) -> None:
        """Show the newest of `readings`: in the place of the last drawing on a terminal, else below it."""
        if running_s < self._next_s:
            return
        self._next_s = running_s + self._refresh_s
        lines = table(readings, self._source, running_s)
        if self._in_place:
            self._redraw([*lines, *self._hints])
        else:
            self._append(lines if self._lines_above else [*lines, *self._hints, ""])

    def _redraw(self, lines: list[str]) -> None:
        columns = shutil.get_terminal_size().columns
        back = f"\x1b[{self._lines_above}F" if self._lines_above else ""
        body = "".join(f"{line[: columns - 1]}\x1b[K\n" for line in lines)
        self._out.write(f"{back}{body}\x1b[J")
        self._out.flush()
        self._lines_above = len(lines)

    def _append(self, lines: list[str]) -> None:
        self._out.write("\n".join(lines) + "\n")
        self._out.flush()
        self._lines_above += len(lines)


def table(readings: Sequence[Reading], source: str, running_s: float) -> list[str]:
    """The newest of `readings` as lines of text: a title, a head, a line an exchange, one for the hot store."""
    newest = readings[-1]
    title = f"MarketPrism · {source} · {running_s:.0f} s · {newest.health.status}"
    if newest.streams:
        title += f" · {newest.streams}"
    lines = [title, _line(_TITLES), *(_line(_cells(row)) + _why(row) for row in rows(readings))]
    if newest.stored is not None:
        lines.append(f"hot store: {newest.stored.rows:,} rows, {newest.stored.waiting:,} messages to go")
    return lines


def _line(cells: Sequence[str]) -> str:
    left = f"{cells[0]:<{_WIDTHS[0]}} {cells[1]:<{_WIDTHS[1]}}"
    right = " ".join(f"{cell:>{width}}" for cell, width in zip(cells[2:], _WIDTHS[2:], strict=True))
    return f"{left} {right}"


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.exchange,
        row.status,
        f"{row.events_per_s:,.1f}",
        f"{row.events:,}",
        f"{row.live_books}/{row.expected_books}" if row.expected_books else "-",
        f"{row.gaps:,}",
        _unit(row.latency_mean_ms, ".2f", "ms"),
        _unit(row.latency_p99_ms, ".2f", "ms"),
        _unit(row.memory_mb, ".0f", "MB"),
    )


def _why(row: Row) -> str:
    return f"  {', '.join(row.reasons)}" if row.reasons else ""


def _unit(value: float | None, spec: str, unit: str) -> str:
    return "-" if value is None else f"{value:{spec}} {unit}"
