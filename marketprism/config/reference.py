"""The tables of docs/configuration.md, written from the table of keys.

`python -m marketprism.config.reference` prints them; the page holds them between its two markers.
"""

from dataclasses import MISSING, fields
from typing import Any

from marketprism.config import settings
from marketprism.config.keys import EFFECTIVE, FIXED, NO_EFFECT, REFUSED, Key
from marketprism.config.kinds import Kind
from marketprism.config.offers import OFFERS

BEGIN = "<!-- keys: written by python -m marketprism.config.reference -->"
END = "<!-- keys: end -->"


def markdown() -> str:
    """All tables, as they stand between the markers."""
    return "\n\n".join((_effective(), _offers(), _fixed(), _without_effect()))


def _table(head: str, rows: list[str]) -> str:
    columns = head.count("|") + 1
    return "\n".join((f"| {head} |", f"|{' --- |' * columns}", *rows))


def _effective() -> str:
    rows = [
        f"| {_code(key.path)} | {key.default or _default(key)} | {_values(key)} | {_effect(key)} |"
        for key in EFFECTIVE
    ]
    return f"### Keys with effect\n\n{_table('key | default | values | effect', rows)}"


def _offers() -> str:
    rows = [
        f"| {_code(o.name)} | {', '.join(o.data_types)} | {o.depth_max or 'whole book'} "
        f"| {' '.join(map(str, o.update_frequencies_ms))} | {o.soft_mb} / {o.hard_mb} |"
        for o in OFFERS.values()
    ]
    head = "section | data types offered | levels at most | update_frequency | memory soft / hard, MB"
    return f"### What each exchange offers\n\n{_table(head, rows)}"


def _fixed() -> str:
    rows = [f"| {_code(key.path)} | {key.kind.expect} |" for key in FIXED if isinstance(key.kind, Kind)]
    text = "Accepted with this value; another one gives a warning and changes nothing."
    return f"### Keys with one possible value\n\n{text}\n\n{_table('key | value', rows)}"


def _without_effect() -> str:
    lines = [f"- {_code(key.path)}{_reason(key)}" for key in NO_EFFECT]
    refused = ", ".join(_code(key.path) for key in REFUSED)
    return (
        "### Keys without effect\n\nAccepted from a file of the earlier system; each one present gives a warning.\n\n"
        + "\n".join(lines)
        + f"\n\n### Refused\n\nCredentials do not belong in this file: {refused}, and `user:password@` in a URL."
    )


def _reason(key: Key) -> str:
    note = key.kind.note(None).removeprefix("has no effect") if isinstance(key.kind, Kind) else ""
    return f"{note}"


def _code(path: str) -> str:
    return f"`{path}`"


def _effect(key: Key) -> str:
    return f"{key.effect} Deprecated: use {key.instead}." if key.instead else key.effect


def _values(key: Key) -> str:
    return key.kind.expect.removeprefix("a ") if isinstance(key.kind, Kind) else "by exchange"


def _default(key: Key) -> str:
    """The default of the field the key sets."""
    class_name, _, name = key.sets.partition(".")
    for field in fields(getattr(settings, class_name)):
        if field.name == name and field.default is not MISSING:
            return _yaml(field.default)
    raise LookupError(f"{key.path} needs a default for the docs")


def _yaml(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(value) if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
    print(f"{BEGIN}\n\n{markdown()}\n\n{END}")
