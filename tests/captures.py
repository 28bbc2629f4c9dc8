"""Where the recordings are, and a replay of them. They are not part of the project: tests skip without them."""

from pathlib import Path
from typing import TypeVar

import pytest

from marketprism.events import Event
from marketprism.replay import Replay
from marketprism.venues import VENUES
from marketprism.worker.options import replay_options

FOLDER = Path(__file__).parents[2] / "shared" / "captures"
T = TypeVar("T")


def capture(name: str) -> Path:
    """The path of a recording; skips the test where it is absent."""
    path = FOLDER / name
    if not path.exists():
        pytest.skip(
            f"recording {name} is not here (expected in {FOLDER.parent.name}/{FOLDER.name} beside the project)"
        )
    return path


def replay(exchange: str, *paths: Path, symbols: tuple[str, ...] | None = None) -> list[Event]:
    """What replaying these recordings publishes."""
    events: list[Event] = []
    run = Replay(VENUES[exchange](replay_options(exchange, symbols)), list(paths), events.append)
    run.run()
    assert run.damaged == []
    assert run.notes["malformed"] == 0
    return events


def of(events: list[Event], kind: type[T]) -> list[T]:
    """The payloads of one type."""
    return [data for e in events if isinstance(data := e.data, kind)]
