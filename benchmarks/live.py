"""`scripts/bench live`: the whole pipeline under a steady load."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count

import msgspec

from benchmarks.load import Load
from benchmarks.machine import Machine
from benchmarks.pipeline import Pipeline, pipeline
from benchmarks.processes import ProcessFigures, machine_busy_s, memory_together_mb, observe
from benchmarks.readings import ExchangeFigures, all_figures, exchange_figures, parse
from marketprism.quickstart import stop
from marketprism.quickstart.children import QuickstartError, StopRequestedError

SETTLE_S = 5.0
_LOOK_EVERY_S = 0.5
BACKLOG_S = 1.0
"""A rate holds while no more is left waiting for NATS at the end of the window than so many seconds bring."""
P99_MS = 50.0
SENT_SHARE = 0.9
"""Of the rate asked for, what the simulator must have sent for the rate to count as tried."""
FIVE, ONE = "five processes", "one process"


@dataclass(frozen=True, slots=True)
class Bar:
    """A target and whether it is met. `figure` None: nothing was measured, which is not met."""

    name: str
    figure: float | None
    at_most: float
    unit: str
    met: bool


@dataclass(frozen=True, slots=True)
class Run:
    """One pipeline over one window of `seconds`.

    `cpu_us_per_message`: CPU time of the workers for each websocket message they received, with all that a message
    causes. `other_cpu_percent`: what the machine did beside this pipeline, percent of one core.
    """

    mode: str
    seconds: float
    exchanges: dict[str, ExchangeFigures]
    together: ExchangeFigures
    workers: list[ProcessFigures]
    others: list[ProcessFigures]
    cpu_percent: float
    busiest_cpu_percent: float
    cpu_us_per_message: float | None
    rss_max_mb: float
    other_cpu_percent: float
    healthy_at_end: bool
    bars: list[Bar]


@dataclass(frozen=True, slots=True)
class LiveResult:
    """All that `live` found."""

    machine: Machine
    load: Load
    runs: list[Run]


@dataclass(frozen=True, slots=True)
class Step:
    """One rate of a sweep, in messages per second and exchange. `strain`: what did not hold; "" where all did."""

    rate: float
    run: Run
    strain: str


@dataclass(frozen=True, slots=True)
class SweepResult:
    """All that `live --sweep` found."""

    machine: Machine
    seed: int
    steps: list[Step]


def live(load: Load, seconds: float, *, compare: bool) -> LiveResult:
    """Measure five processes and, to `compare`, then one for all. Raises QuickstartError, StopRequestedError."""
    machine = Machine.here()
    modes = (FIVE, ONE) if compare else (FIVE,)
    return LiveResult(machine, load, [run_once(load, seconds, mode) for mode in modes])


def sweep(load: Load, seconds: float) -> SweepResult:
    """Measure at the load's rate, ten times that, and twice as much each time until something does not hold.

    Raises QuickstartError, StopRequestedError.
    """
    machine = Machine.here()
    steps: list[Step] = []
    rates = chain([load.rate], (load.rate * 10 * 2**n for n in count()))
    for rate in rates:
        run = run_once(msgspec.structs.replace(load, rate=rate), seconds, FIVE)
        steps.append(Step(rate, run, _strain(run, rate)))
        if steps[-1].strain:
            break
    return SweepResult(machine, load.seed, steps)


def _strain(run: Run, rate: float) -> str:
    """What shows that this rate does not hold, the simulator's own limit first."""
    sent = run.together.messages_per_s
    asked = rate * len(run.exchanges)
    p99_ms = run.together.written.p99_ms
    if sent < SENT_SHARE * asked:
        return f"the simulator sends {sent:,.0f} messages/s, not {asked:,.0f}"
    if not run.healthy_at_end:
        return "not healthy at the end"
    if run.together.unacknowledged > BACKLOG_S * run.together.events_per_s:
        return f"{run.together.unacknowledged} messages more wait for NATS than before"
    if p99_ms is None or p99_ms > P99_MS:
        return f"p99 of socket read to written is above {P99_MS:g} ms"
    return ""


def run_once(load: Load, seconds: float, mode: str) -> Run:
    """A pipeline of its own, measured once it has settled. Raises QuickstartError, StopRequestedError."""
    with pipeline(load, single_process=mode == ONE) as running:
        wait(min(SETTLE_S, seconds))
        return _measure(running, mode, seconds)


def _measure(running: Pipeline, mode: str, seconds: float) -> Run:
    workers, others = running.workers(), running.others()
    before = parse(running.metrics())
    observed_workers, observed_others = observe(workers), observe(others)
    began_s, busy_s = time.monotonic(), machine_busy_s()
    while time.monotonic() - began_s < seconds:
        wait(_LOOK_EVERY_S)
        for process in (*observed_workers, *observed_others):
            process.look()
    elapsed_s, busy_s = time.monotonic() - began_s, machine_busy_s() - busy_s
    worker_figures = [process.end(elapsed_s) for process in observed_workers]
    other_figures = [process.end(elapsed_s) for process in observed_others]
    after = parse(running.metrics())
    if running.workers() != workers:
        raise QuickstartError("a worker ended during the measurement: there are no figures to compare")
    together = all_figures(before, after)
    cpu_percent = sum(p.cpu_percent for p in worker_figures)
    ours_percent = cpu_percent + sum(p.cpu_percent for p in other_figures)
    messages_per_s = together.messages_per_s
    exchanges = {name: exchange_figures(before[name], after[name]) for name in sorted(after)}
    rss_max_mb = memory_together_mb(worker_figures)
    return Run(
        mode=mode,
        seconds=round(elapsed_s, 2),
        exchanges=exchanges,
        together=together,
        workers=worker_figures,
        others=other_figures,
        cpu_percent=cpu_percent,
        busiest_cpu_percent=max(p.cpu_percent for p in worker_figures),
        cpu_us_per_message=1e4 * cpu_percent / messages_per_s if messages_per_s else None,
        rss_max_mb=rss_max_mb,
        other_cpu_percent=max(0.0, 100 * busy_s / elapsed_s - ours_percent),
        healthy_at_end=running.is_healthy(),
        bars=_bars(list(exchanges.values()), rss_max_mb),
    )


def _bars(exchanges: Sequence[ExchangeFigures], rss_max_mb: float) -> list[Bar]:
    """The targets of the multi-process design; latencies are those of the worst exchange."""
    return [
        _bar("latency, mean, worst exchange", [e.written.mean_ms for e in exchanges], 0.25, "ms"),
        _bar("latency, p99, worst exchange", [e.written.p99_ms for e in exchanges], 5.0, "ms"),
        _bar("memory of the workers together (RSS)", [rss_max_mb], 510.0, "MB"),
    ]


def _bar(name: str, figures: Sequence[float | None], at_most: float, unit: str) -> Bar:
    known = [f for f in figures if f is not None]
    worst = max(known) if known and len(known) == len(figures) else None
    return Bar(name, worst, at_most, unit, met=worst is not None and worst <= at_most)


def wait(seconds: float) -> None:
    """Sleep; Ctrl-C ends it and all. Raises StopRequestedError."""
    if stop.requested_within(seconds):
        raise StopRequestedError
