"""Mutations that know scripts: lines are repeated, dropped, swapped and invented, and values within a message changed.

Mere changes of bytes seldom leave a message that can be read.
"""

import copy
import json
from random import Random
from typing import Any

_LINES = [
    b"o0",
    b"o1",
    b"o2",
    b"x0",
    b"x1",
    b"x2",
    b"+5",
    b"+60",
    b"+700",
    b"+-30",
    b"sd0",
    b"sd429",
    b"st404",
    b"st500",
]
_VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    2**53,
    2**63,
    10**30,
    1.5,
    1e308,
    5e-324,
    [],
    {},
    [[]],
    [["1", "0"]],
    "",
    "x",
]
_VALUES += [
    "-1",
    "0",
    "1e9",
    "NaN",
    "Infinity",
    "1e999999",
    "1e-400",
    "1_0",
    " 1 ",
    "1\n",
    "é\u0000",
    "\u2028",
    "9" * 5000,
]
_HEAD_BYTES = {b"r": 2, b"0": 1, b"1": 1, b"2": 1}


def mutate(data: bytes, seed: int) -> bytes:
    """Another script, made of this one."""
    rng = Random(seed)
    first, *lines = data.split(b"\n")
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(lines) + 1)
        choice = rng.random()
        if choice < 0.15 or not lines:
            lines.insert(at, rng.choice(_LINES))
        elif choice < 0.25:
            lines.insert(at, rng.choice(lines))
        elif choice < 0.35:
            del lines[at % len(lines)]
        elif choice < 0.45:
            other = rng.randrange(len(lines))
            lines[at % len(lines)], lines[other] = lines[other], lines[at % len(lines)]
        else:
            lines[at % len(lines)] = _changed(lines[at % len(lines)], rng)
    return b"\n".join([first, *lines])


def _changed(line: bytes, rng: Random) -> bytes:
    """A line with one value of its message changed."""
    head = _HEAD_BYTES.get(line[:1], 0)
    try:
        message = json.loads(line[head:])
    except (ValueError, RecursionError):
        return line
    holder = {"": message}
    places = [(holder, ""), *_places(message)]
    inside, key = rng.choice(places)
    inside[key] = _another(inside[key], rng)
    return line[:head] + json.dumps(holder[""], separators=(",", ":")).encode()


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Where in a message a value can be replaced: (container, key)."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in items for place in ((value, key), *_places(inner))]


def _another(value: Any, rng: Random) -> Any:
    if isinstance(value, int) and rng.random() < 0.6:  # ids and times decide what follows what
        return value + rng.choice([-10_000, -2, -1, 1, 2, 10, 20_000])
    if isinstance(value, str) and value.isdecimal() and rng.random() < 0.6:
        return str(int(value[:20]) + rng.choice([-1, 1, 2, 1000]))
    if isinstance(value, list) and value and rng.random() < 0.5:
        return value + [copy.deepcopy(rng.choice(value))] * rng.randint(1, 30)
    return copy.deepcopy(rng.choice(_VALUES))
