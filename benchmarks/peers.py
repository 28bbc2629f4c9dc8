"""`scripts/bench peers`: our venues and books beside cryptofeed's, on the same frames, in the same minutes.

Two processes of the same interpreter run the same recording in turn, so that a noisy moment hits both; who begins
changes with each repetition. The clock is the CPU time of the thread.
"""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.dialogue import Dialogue
from benchmarks.environments import cryptofeed_python
from benchmarks.machine import ROOT, Machine
from benchmarks.replay import ReplayBenchError, best_and_median_us, exchange_of
from marketprism.config import OFFERS

CRYPTOFEED = "2.4.1"
_TURNS = ("book", "plain", "checked")  # the first is ours
_FRAMES_A_REPETITION = 5_000  # a short recording is run so often in a row


@dataclass(frozen=True, slots=True)
class PeerFigures:
    """One recording. Microseconds of CPU a frame: best and median of the repetitions.

    `book_us` venue and book, to the written events; `peer_us` cryptofeed at its defaults, `peer_checked_us` with the
    checks of a book that it offers and ours always makes. The ratios are cryptofeed's time over ours, median of the
    pairs. `peer_callbacks`: what cryptofeed handed to its user, by type. `peer_warnings`: frames it did not
    understand. `tops_equal` of `books` have the same best bid and ask at the end on both sides.
    """

    capture: str
    exchange: str
    frames: int
    passes: int
    events: int
    peer_callbacks: dict[str, int]
    peer_warnings: int
    books: int
    tops_equal: int
    book_us: tuple[float, float]
    peer_us: tuple[float, float]
    peer_checked_us: tuple[float, float]
    ratio: float
    ratio_checked: float


@dataclass(frozen=True, slots=True)
class PeersResult:
    """All that `peers` found."""

    machine: Machine
    peer: str
    repetitions: int
    captures: list[PeerFigures]


def peers(captures: Sequence[Path], exchange: str | None, repetitions: int) -> PeersResult:
    """Compare on each recording. Raises ReplayBenchError, EnvironmentUnavailableError, DialogueError."""
    python = cryptofeed_python()
    machine = Machine.here()
    figures = [_compare(path, exchange, repetitions, python) for path in captures]
    return PeersResult(machine, f"cryptofeed {CRYPTOFEED}", repetitions, figures)


def _compare(path: Path, exchange: str | None, repetitions: int, python: Path) -> PeerFigures:
    name = exchange or exchange_of(path)
    if name is None:
        raise ReplayBenchError(f"{path}: whose recording is it? Say --exchange: one of {', '.join(OFFERS)}")
    with TemporaryDirectory(prefix="marketprism-bench-") as folder:
        frames = Path(folder) / "frames"
        command = [sys.executable, "-m", "benchmarks.peer_ours", path.absolute(), name, frames]
        with Dialogue("our half", command, ROOT) as ours:
            we_say = ours.hear()
            command = [python, Path(__file__).with_name("peer_cryptofeed.py"), frames]
            with Dialogue("cryptofeed", command, Path(folder)) as theirs:
                they_say = theirs.hear()
                passes = -(-_FRAMES_A_REPETITION // we_say["frames"])
                rounds = [_round(ours, theirs, passes, n) for n in range(repetitions)]
    book_ns, peer_ns, checked_ns = zip(*rounds, strict=True)
    total = we_say["frames"] * passes
    return PeerFigures(
        capture=path.name,
        exchange=name,
        frames=we_say["frames"],
        passes=passes,
        events=we_say["events"],
        peer_callbacks=they_say["callbacks"],
        peer_warnings=they_say["warnings"],
        books=len(they_say["tops"]),
        tops_equal=sum(we_say["tops"].get(book) == top for book, top in they_say["tops"].items()),
        book_us=best_and_median_us(book_ns, total),
        peer_us=best_and_median_us(peer_ns, total),
        peer_checked_us=best_and_median_us(checked_ns, total),
        ratio=_median_ratio(peer_ns, book_ns),
        ratio_checked=_median_ratio(checked_ns, book_ns),
    )


def _round(ours: Dialogue, theirs: Dialogue, passes: int, number: int) -> list[int]:
    """CPU nanoseconds of each, in the order of `_TURNS`."""
    spent = [0] * len(_TURNS)
    for n in range(len(_TURNS)):
        turn = (number + n) % len(_TURNS)
        half = ours if turn == 0 else theirs
        spent[turn] = half.ask(f"{_TURNS[turn]} {passes}")["ns"]
    return spent


def _median_ratio(theirs: Sequence[int], ours: Sequence[int]) -> float:
    return statistics.median(t / o for t, o in zip(theirs, ours, strict=True))
