"""`scripts/bench soak`: hours of a steady load; whether memory, descriptors and threads stay where they are."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil

from benchmarks.live import wait
from benchmarks.load import Load
from benchmarks.machine import Machine
from benchmarks.pipeline import Pipeline, pipeline
from benchmarks.processes import MB
from benchmarks.readings import all_figures, parse
from marketprism.quickstart.children import QuickstartError

LOOK_EVERY_S = 10.0
WARM_UP = 0.1
"""Of the time, what is left out of the slope: caches fill, the first books grow."""


@dataclass(frozen=True, slots=True)
class Series:
    """One process. `slope_mb_per_h`, `error_mb_per_h`: of RSS, least squares after the warm-up; None: too few points.

    Descriptors and threads: at the end of the warm-up, at the end, and the most in between.
    """

    name: str
    rss_mb: list[float]
    slope_mb_per_h: float | None
    error_mb_per_h: float | None
    descriptors: tuple[int, int, int]
    threads: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class SoakResult:
    """All that `soak` found. `at_s`: when the processes were looked at, from the beginning."""

    machine: Machine
    load: Load
    seconds: float
    warm_up_s: float
    at_s: list[float]
    workers: list[Series]
    others: list[Series]
    messages: int
    events: int
    gaps: int
    errors: int
    unacknowledged: int


@dataclass(frozen=True, slots=True)
class _Look:
    rss_mb: float
    descriptors: int
    threads: int


def soak(load: Load, seconds: float) -> SoakResult:
    """Watch for so long. Raises QuickstartError, also when a worker was started anew, StopRequestedError."""
    machine = Machine.here()
    every_s = min(LOOK_EVERY_S, seconds / 20)
    with pipeline(load) as running:
        workers, others = running.workers(), running.others()
        looks: dict[int, list[_Look]] = {pid: [] for pid in (*workers, *others)}
        before, at_s = parse(running.metrics()), []
        began_s = time.monotonic()
        while not at_s or at_s[-1] < seconds:
            wait(every_s)
            at_s.append(time.monotonic() - began_s)
            _look(running, workers, looks)
        figures = all_figures(before, parse(running.metrics()))
    warm = next(n for n, t in enumerate(at_s) if t >= WARM_UP * seconds)
    return SoakResult(
        machine=machine,
        load=load,
        seconds=at_s[-1],
        warm_up_s=at_s[warm],
        at_s=at_s,
        workers=[_series(name, at_s, looks[pid], warm) for pid, name in workers.items()],
        others=[_series(name, at_s, looks[pid], warm) for pid, name in others.items()],
        messages=round(figures.messages_per_s * at_s[-1]),
        events=round(figures.events_per_s * at_s[-1]),
        gaps=figures.gaps,
        errors=figures.errors,
        unacknowledged=figures.unacknowledged,
    )


def _look(running: Pipeline, workers: Mapping[int, str], looks: Mapping[int, list[_Look]]) -> None:
    if running.workers() != workers:
        raise QuickstartError("a worker ended during the soak")
    for pid, seen in looks.items():
        process = psutil.Process(pid)
        seen.append(_Look(process.memory_info().rss / MB, process.num_fds(), process.num_threads()))


def _series(name: str, at_s: Sequence[float], seen: Sequence[_Look], warm: int) -> Series:
    rss_mb = [look.rss_mb for look in seen]
    slope, error = slope_per_h(at_s[warm:], rss_mb[warm:])
    descriptors = [look.descriptors for look in seen[warm:]]
    threads = [look.threads for look in seen[warm:]]
    return Series(
        name,
        [round(mb, 2) for mb in rss_mb],
        slope,
        error,
        (descriptors[0], descriptors[-1], max(descriptors)),
        (threads[0], threads[-1], max(threads)),
    )


def slope_per_h(at_s: Sequence[float], values: Sequence[float]) -> tuple[float | None, float | None]:
    """Slope of a line through the points, per hour, and its standard error as if they were independent.

    They are not quite: memory is taken in steps, so the true error is larger.
    """
    n = len(at_s)
    if n < 3:
        return None, None
    mean_t, mean_v = sum(at_s) / n, sum(values) / n
    spread = sum((t - mean_t) ** 2 for t in at_s)
    slope = sum((t - mean_t) * (v - mean_v) for t, v in zip(at_s, values, strict=True)) / spread
    residues = sum((v - mean_v - slope * (t - mean_t)) ** 2 for t, v in zip(at_s, values, strict=True))
    return 3600 * slope, 3600 * math.sqrt(residues / (n - 2) / spread)
