"""`scripts/bench live`: the whole pipeline under a steady load."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.machine import Machine
from benchmarks.pipeline import Pipeline, pipeline
from benchmarks.processes import ProcessFigures, machine_busy_s, memory_together_mb, observe
from benchmarks.readings import ExchangeFigures, all_figures, exchange_figures, parse
from marketprism.quickstart import stop
from marketprism.quickstart.children import QuickstartError, StopRequestedError

SETTLE_S = 5.0
_LOOK_EVERY_S = 0.5
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
    """All that `live` found. `rate`: messages per second and exchange asked of the simulator."""

    machine: Machine
    rate: float
    seed: int
    runs: list[Run]


def live(rate: float, seconds: float, seed: int, *, compare: bool) -> LiveResult:
    """Measure five processes and, to `compare`, then one for all. Raises QuickstartError, StopRequestedError."""
    machine = Machine.here()
    runs = []
    for mode in (FIVE, ONE) if compare else (FIVE,):
        with pipeline(rate, seed, single_process=mode == ONE) as running:
            _wait(min(SETTLE_S, seconds))
            runs.append(_measure(running, mode, seconds))
    return LiveResult(machine, rate, seed, runs)


def _measure(running: Pipeline, mode: str, seconds: float) -> Run:
    workers, others = running.workers(), running.others()
    before = parse(running.metrics())
    observed_workers, observed_others = observe(workers), observe(others)
    began_s, busy_s = time.monotonic(), machine_busy_s()
    while time.monotonic() - began_s < seconds:
        _wait(_LOOK_EVERY_S)
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
        _bar("latency, mean, worst exchange", [e.mean_ms for e in exchanges], 0.25, "ms"),
        _bar("latency, p99, worst exchange", [e.p99_ms for e in exchanges], 5.0, "ms"),
        _bar("memory of the workers together (RSS)", [rss_max_mb], 510.0, "MB"),
    ]


def _bar(name: str, figures: Sequence[float | None], at_most: float, unit: str) -> Bar:
    known = [f for f in figures if f is not None]
    worst = max(known) if known and len(known) == len(figures) else None
    return Bar(name, worst, at_most, unit, met=worst is not None and worst <= at_most)


def _wait(seconds: float) -> None:
    """Sleep; Ctrl-C ends it and all."""
    if stop.requested_within(seconds):
        raise StopRequestedError
