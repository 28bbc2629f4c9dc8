"""Who may import whom, so that every line of code stays in its room (ARCHITECTURE.md)."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "marketprism"

# Room → the other rooms it may import. A room is a module or a package directly under marketprism/.
_GROUND = {"events", "pattern", "config", "book", "capture", "logs", "journal", "memory", "notify", "parent"}
MAY_IMPORT: dict[str, set[str]] = {
    "events": {"pattern"},
    "pattern": {"_book"},  # in C
    "config": set(),
    "capture": set(),
    "parent": set(),
    "book": {"_book"},  # in C
    "journal": set(),
    "memory": {"config"},
    "notify": set(),
    "logs": {"journal", "parent"},
    "venues": {"events", "book"},
    "worker": _GROUND | {"venues"},
    "storage": _GROUND | {"venues"},
    "simulator": set(),  # written from the exchanges' documentation alone: it must not share our mistakes
    "control": _GROUND - {"book", "capture"},
}
# These stand on top: they import what they like, and no room below imports them.
TOP = {
    "__main__",
    "alert",
    "cli",
    "generator",
    "launcher",
    "quickstart",
    "record",
    "replay",
    "schemas",
    "supervisor",
    "tail",
}


def _sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _room(source: Path) -> str:
    return source.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imported_modules(source: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(source.read_bytes())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = _absolute(source, node)
            names = (
                [f"{module}.{alias.name}" for alias in node.names] if module == "marketprism" else [module]
            )
            yield from ((node.lineno, name) for name in names)


def _absolute(source: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = source.relative_to(PACKAGE.parent).parts[: -node.level]
    return ".".join([*package, *filter(None, [node.module])])


def _imported_rooms(source: Path) -> Iterator[tuple[int, str]]:
    for line, module in _imported_modules(source):
        parts = module.split(".")
        if parts[0] == "marketprism" and len(parts) > 1 and not parts[1].startswith("__version"):
            yield line, parts[1]


def _violations(source: Path) -> Iterator[str]:
    room = _room(source)
    if room in TOP or room == "__init__":
        return
    for line, imported in _imported_rooms(source):
        if imported != room and imported not in MAY_IMPORT[room]:
            yield f"{source.relative_to(PACKAGE.parent)}:{line}: {room} must not import {imported}"


def test_every_room_is_known() -> None:
    unknown = {_room(source) for source in _sources()} - MAY_IMPORT.keys() - TOP - {"__init__"}
    assert not unknown, (
        f"say in MAY_IMPORT (tests/test_architecture.py) what these may import: {sorted(unknown)}"
    )


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_a_room_imports_only_what_it_may(room: str) -> None:
    sources = [source for source in _sources() if _room(source) == room]
    assert [found for source in sources for found in _violations(source)] == []


def test_the_rule_sees_every_way_to_import(tmp_path: Path) -> None:
    source = tmp_path / "marketprism" / "venues" / "bad.py"
    source.parent.mkdir(parents=True)
    source.write_text(
        "import marketprism.worker.feed\n"
        "from marketprism import launcher\n"
        "def late():\n    from marketprism.control.ports import bind\n"
        "from marketprism import __version__\n"
        "import json\n"
    )
    assert [room for _, room in _imported_rooms(source)] == ["worker", "launcher", "control"]


def _function_lengths() -> list[int]:
    return sorted(
        _code_lines(node)
        for source in _sources()
        for node in ast.walk(ast.parse(source.read_bytes()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def _code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = function.body[0]
    has_docstring = ast.get_docstring(function) is not None
    docstring = (first.end_lineno or first.lineno) - first.lineno + 1 if has_docstring else 0
    return (function.end_lineno or function.lineno) - function.lineno + 1 - docstring


def test_function_lengths_are_told() -> None:
    lengths = _function_lengths()
    percentile_95 = lengths[int(0.95 * len(lengths))]
    print(
        f"functions: {len(lengths)}, median {statistics.median(lengths):.0f} lines, 95 % at most {percentile_95}"
    )


@pytest.mark.parametrize("source", _sources(), ids=lambda source: str(source.relative_to(PACKAGE)))
def test_no_cancellation_is_swallowed(source: Path) -> None:
    """asyncio.wait_for does, before Python 3.12, when it comes together with the result: use asyncio.timeout."""
    calls = [node for node in ast.walk(ast.parse(source.read_bytes())) if isinstance(node, ast.Attribute)]
    assert [node.lineno for node in calls if node.attr == "wait_for"] == []
