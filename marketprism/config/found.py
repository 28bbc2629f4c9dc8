"""Walks a document along the table of keys: what holds good is kept, all else is reported."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from marketprism.config.document import Entry, Report, join, shown
from marketprism.config.keys import EFFECTIVE, TREE, Branch, Key
from marketprism.config.kinds import BadValueError, Kind, did_you_mean


@dataclass(frozen=True, slots=True)
class Value:
    """A checked value, its line and the row of the table it belongs to."""

    value: Any
    line: int
    key: Key


@dataclass(slots=True)
class Found:
    """The checked values of a file by key path, and the lines of its sections."""

    values: dict[str, Value] = field(default_factory=dict)
    sections: dict[str, int] = field(default_factory=dict)

    def get(self, path: str, default: Any) -> Any:
        """The value at a path, or the default where the file has none."""
        found = self.values.get(path)
        return default if found is None else found.value

    def line(self, path: str) -> int:
        """The line of a value or section; 0 where the file has none."""
        found = self.values.get(path)
        return self.sections.get(path, 0) if found is None else found.line

    def fields(self, cls: type, prefix: str) -> dict[str, Any]:
        """The fields of a settings class that the values under a section set."""
        wanted = f"{cls.__name__}."
        return {
            v.key.sets.removeprefix(wanted): v.value
            for path, v in self.values.items()
            if path.startswith(f"{prefix}.") and v.key.sets.startswith(wanted)
        }


def walk(document: Entry, report: Report) -> Found:
    """Check every key of a document against the table."""
    found = Found()
    _section(document, TREE, "", report, found)
    return found


def _section(section: Entry, branch: Branch, path: str, report: Report, found: Found) -> None:
    found.sections[path] = section.line
    for name, entry in section.value.items():
        below, at = branch.child(name), join(path, name)
        if below is None:
            report.problem(entry.line, at, _unknown(name, branch))
        elif below.children and isinstance(entry.value, dict):
            _section(entry, below, at, report, found)
        elif below.key is not None:
            _value(entry, below.key, at, report, found)
        elif entry.value is None:
            found.sections[at] = entry.line
        else:
            known = _names(below)
            report.problem(entry.line, at, f"expected a section with {known}, got {shown(entry.value)}")


def _names(branch: Branch) -> str:
    names = [name for name in branch.children if name != "*"]
    return f"one of {', '.join(names)}" if 0 < len(names) <= 12 else "keys of its own"


def _unknown(name: str, branch: Branch) -> str:
    """What to say of a key the table does not know here."""
    names = _names(branch)
    expected = "a known key" if names == "keys of its own" else names
    hint = did_you_mean(name, branch.children)
    if not hint:
        elsewhere = [key.path for key in EFFECTIVE if key.path.endswith(f".{name}")]
        hint = f"did you mean '{elsewhere[0]}'?" if elsewhere else ""
    return f"expected {expected}, got {shown(name)}{'; ' if hint else ''}{hint}"


def _value(entry: Entry, key: Key, path: str, report: Report, found: Found) -> None:
    kind = key.kind_at(path)
    try:
        value = kind.convert(_items(entry, kind, path, report))
    except BadValueError as bad:
        report.problem(entry.line, path, kind.complaint(entry.plain(), bad))
        return
    note = kind.note(entry.plain())
    if key.instead:
        note = f"is deprecated, use {key.instead}"
    if note:
        report.warning(entry.line, f"{path} {note}")
    if key.effect and not report.bad(path):
        found.values[path] = Value(value, entry.line, key)


def _items(entry: Entry, kind: Kind, path: str, report: Report) -> Any:
    """The plain value; of a list, its checked items. Raises BadValueError where a list was expected."""
    if kind.item is None:
        return entry.plain()
    if not isinstance(entry.value, list):
        raise BadValueError("write it as a list: [a, b]" if isinstance(entry.value, str) else "")
    return tuple(_checked(entry.value, kind.item, path, report))


def _checked(items: list[Entry], kind: Kind, path: str, report: Report) -> Iterator[Any]:
    seen: set[Any] = set()
    for number, item in enumerate(items, 1):
        at = f"{path}[{number}]"
        try:
            value = kind.convert(item.plain())
        except BadValueError as bad:
            report.problem(item.line, at, kind.complaint(item.plain(), bad))
            yield None
            continue
        if value in seen:
            report.problem(item.line, at, f"expected each once, got {shown(value)} a second time")
        seen.add(value)
        yield value
