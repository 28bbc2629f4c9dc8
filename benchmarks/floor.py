"""`scripts/bench floor`: our worker's CPU for each message beside the least that can be done with one.

The least: the same messages, read by the same websocket library and written to the same NATS server, each as it is
and each acknowledged, with nothing between. One worker runs all the time; beside it, in turn, one of two such
processes listens to the same simulator. Both get the same bytes at the same moments.
"""

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice

from benchmarks.dialogue import Dialogue
from benchmarks.live import SETTLE_S, wait
from benchmarks.load import Load
from benchmarks.machine import ROOT, Machine
from benchmarks.pipeline import Pipeline, pipeline
from benchmarks.processes import run_ns
from benchmarks.readings import exchange_figures, parse

VARIANTS = ("raw", "nats-py")
TARGET = 2.0
_JOIN_S = 1.0  # after it has subscribed: the first answers are no steady load


@dataclass(frozen=True, slots=True)
class Slice:
    """One stretch of time. Microseconds of CPU for each message received: the worker's and the floor's."""

    ours_us: float
    floor_us: float
    messages_per_s: float
    floor_messages_per_s: float
    events_per_s: float


@dataclass(frozen=True, slots=True)
class VariantFigures:
    """A kind of floor. `ratio`: ours over the floor, median of the slices; `unacknowledged` at the end."""

    variant: str
    slices: list[Slice]
    ours_us: float
    floor_us: float
    ratio: float
    unacknowledged: int


@dataclass(frozen=True, slots=True)
class RateFigures:
    """One rate, in messages per second."""

    rate: float
    variants: list[VariantFigures]


@dataclass(frozen=True, slots=True)
class FloorResult:
    """All that `floor` found."""

    machine: Machine
    exchange: str
    seed: int
    slice_s: float
    rates: list[RateFigures]


def floor(exchange: str, rates: Sequence[float], seconds: float, slices: int, seed: int) -> FloorResult:
    """Measure `slices` of each kind and rate, `seconds` in all for each rate.

    Raises QuickstartError, StopRequestedError, DialogueError.
    """
    machine = Machine.here()
    slice_s = seconds / slices / len(VARIANTS)
    found = [_at_rate(Load(rate=rate, seed=seed, exchange=exchange), slice_s, slices) for rate in rates]
    return FloorResult(machine, exchange, seed, slice_s, found)


def _at_rate(load: Load, slice_s: float, slices: int) -> RateFigures:
    assert load.exchange is not None
    with pipeline(load) as running:
        (worker,) = running.workers()
        command = [sys.executable, "-m", "benchmarks.floor_half"]
        place = [running.config, load.exchange, running.nats_url]
        with (
            Dialogue("raw floor", [*command, "raw", *place], ROOT) as raw,
            Dialogue("nats-py floor", [*command, "nats-py", *place], ROOT) as nats_py,
        ):
            halves = dict(zip(VARIANTS, (raw, nats_py), strict=True))
            wait(min(SETTLE_S, slice_s))
            taken: dict[str, list[Slice]] = {variant: [] for variant in VARIANTS}
            for variant in islice(cycle(VARIANTS), slices * len(VARIANTS)):
                taken[variant].append(_slice(running, load.exchange, worker, halves[variant], slice_s))
            ends = {variant: half.ask("read") for variant, half in halves.items()}
    left = {variant: end["messages"] - end["acknowledged"] for variant, end in ends.items()}
    return RateFigures(load.rate, [_variant(name, taken[name], left[name]) for name in VARIANTS])


def _slice(running: Pipeline, exchange: str, worker: int, half: Dialogue, seconds: float) -> Slice:
    half.ask("start")
    wait(_JOIN_S)
    counts, ours_ns, theirs = parse(running.metrics())[exchange], run_ns(worker), half.ask("read")
    began_ns = time.monotonic_ns()
    wait(seconds)
    counts_after, ours_after_ns, theirs_after = (
        parse(running.metrics())[exchange],
        run_ns(worker),
        half.ask("read"),
    )
    elapsed_s = (time.monotonic_ns() - began_ns) / 1e9
    half.ask("stop")
    figures = exchange_figures(counts, counts_after)
    messages = theirs_after["messages"] - theirs["messages"]
    if not messages or not figures.messages_per_s:
        raise ValueError("no message came within a slice: give --seconds more")
    return Slice(
        ours_us=(ours_after_ns - ours_ns) / 1e3 / elapsed_s / figures.messages_per_s,
        floor_us=(theirs_after["cpu_ns"] - theirs["cpu_ns"]) / 1e3 / messages,
        messages_per_s=figures.messages_per_s,
        floor_messages_per_s=messages / elapsed_s,
        events_per_s=figures.events_per_s,
    )


def _variant(name: str, slices: list[Slice], unacknowledged: int) -> VariantFigures:
    return VariantFigures(
        variant=name,
        slices=slices,
        ours_us=statistics.median(s.ours_us for s in slices),
        floor_us=statistics.median(s.floor_us for s in slices),
        ratio=statistics.median(s.ours_us / s.floor_us for s in slices),
        unacknowledged=unacknowledged,
    )
