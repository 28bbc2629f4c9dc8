"""One chaos run: everything started, faults played, all well again, and the verdict."""

import json
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from chaos.explain import Fired, unexplained
from chaos.judge import Verdict, awaited, judge
from chaos.liquidations import judge_liquidations
from chaos.pipeline import Pipeline, pipeline
from chaos.player import Player
from chaos.schedule import AnyFault, ProcessFault, kinds_at
from chaos.stored import (
    Compared,
    StoredVerdict,
    judge_instants,
    judge_quality,
    judge_stored,
    published,
    waiting,
)
from chaos.stores import Stores, stores
from marketprism.config import load
from marketprism.simulator import WORKERS, SimulatorOptions
from marketprism.storage.reading import Reading, Span

STARTED_WITHIN_S = 60.0
HEALTHY_WITHIN_S = 120.0
"""A connection that brings nothing is replaced after 60 s at most, a second one in a row after two minutes at most.
The other pauses before another attempt are 30 s at most."""
FLOWING_WITHIN_S = 90.0
BACKFILLED_WITHIN_S = 120.0
"""What REST has not given back by then is a gap told by the worker as it stops, or missing."""
STORED_WITHIN_S = 300.0
MOVED_WITHIN_S = 600.0
LOG_LINES_AT_REST = 150
LOG_LINES_A_FAULT = 30
LOG_LINES_A_PROCESS_FAULT = 80
"""It may end five workers. Each says a dozen lines, to the launcher and in two logs."""
_TRACEBACK = re.compile(r"^.*Traceback .*\n(?:[ \t].*\n)*(.*)$", re.MULTILINE)
_DEFECT = re.compile(r"^.*(?:internal error|\[CRITICAL\]).*$", re.MULTILINE)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run. `rate`: messages per second and exchange. `seconds`: how long, at least to the last fault's end."""

    seed: int
    seconds: float
    faults: tuple[AnyFault, ...]
    exchanges: tuple[str, ...] = WORKERS
    rate: float = 120.0
    instants: int = 0
    """Above 0: with the stores, and so many books rebuilt from what they hold."""


@dataclass(slots=True)
class Outcome:
    """What came of a run. `problems`: one line each; none means that all promises were kept."""

    plan: Plan
    verdict: Verdict = field(default_factory=Verdict)
    fired: list[Fired] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    healthy_after_s: float | None = None
    log_lines: int = 0
    stored: StoredVerdict | None = None


def run(plan: Plan, folder: Path, say: Say) -> Outcome:
    """Run a plan in an empty folder."""
    outcome = Outcome(plan)
    with pipeline(folder, SimulatorOptions(seed=plan.seed, rate=plan.rate)) as p:
        for worker in WORKERS:
            p.change(worker, enabled=worker in plan.exchanges)
        if not plan.instants:
            _run(p, None, outcome, say)
            return outcome
        with stores(p) as both:
            _run(p, both, outcome, say)
    return outcome


def _run(p: Pipeline, both: Stores | None, outcome: Outcome, say: Say) -> None:
    plan, started_ms = outcome.plan, _now_ms()
    launcher = p.run("launcher")
    _within(STARTED_WITHIN_S, lambda: _healthy(p, both) or launcher.poll() is not None)
    if not _healthy(p, both):
        said = p.output()[-2000:] + (both.output()[-2000:] if both else "")
        outcome.problems.append(f"never healthy, within {STARTED_WITHIN_S:g} s: {_ill(p, both)}\n{said}")
        return
    began, began_ms = time.monotonic(), _now_ms()
    player = Player(p, both, launcher, say)
    player.play(plan.faults)
    time.sleep(max(0.0, began + plan.seconds - time.monotonic()))
    outcome.problems, outcome.fired = player.problems, player.fired
    _recover(p, both, outcome)
    say("judging")
    if both is None:
        _judge(p, outcome)
    else:
        _judge_stored(p, both, (started_ms, began_ms), outcome, say)


def _healthy(p: Pipeline, both: Stores | None) -> bool:
    return not _ill(p, both)


def _ill(p: Pipeline, both: Stores | None) -> dict[str, list[str]]:
    """Who is not healthy, and why. Above its soft limit a worker is as it should be: what waited for NATS is large."""
    health = p.health()
    entries = health.get("processes", {}).items()
    ill = {name: [r for r in entry["reasons"] if r != "memory_soft"] for name, entry in entries}
    if health.get("status") not in ("healthy", "degraded"):
        ill["all"] = health.get("reasons", ["no answer"])
    return {name: reasons for name, reasons in (ill | (both.ill if both else {})).items() if reasons}


def _recover(p: Pipeline, both: Stores | None, outcome: Outcome) -> None:
    """After the last fault all becomes healthy, and each book and each trade subject goes on."""
    began = time.monotonic()
    if not _within(HEALTHY_WITHIN_S, lambda: _healthy(p, both)):
        outcome.problems.append(f"not healthy {HEALTHY_WITHIN_S:g} s after the last fault: {_ill(p, both)}")
        return
    outcome.healthy_after_s = time.monotonic() - began
    wanted = 4 * len(outcome.plan.exchanges)  # two instruments each, trades and books
    if len(counts := _counts(p)) < wanted:
        outcome.problems.append(f"only {sorted(counts)} were ever published")
    if standing := _standing(p):
        outcome.problems.append(
            f"healthy, and yet nothing more of {sorted(standing)} for {FLOWING_WITHIN_S:g} s"
        )


def _standing(p: Pipeline) -> set[str]:
    """The subjects of books and trades of which nothing more came for long; as a rule none, soon."""
    before = _counts(p)
    standing = set(before)

    def all_flow() -> bool:
        now = _counts(p)
        standing.difference_update({subject for subject in standing if now.get(subject, 0) > before[subject]})
        return not standing

    _within(FLOWING_WITHIN_S, all_flow)
    return standing


def _within(seconds: float, condition: Callable[[], bool], pause_s: float = 0.5) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause_s)
    return True


def _counts(p: Pipeline) -> dict[str, int]:
    return p.counts("orderbook_delta.>") | p.counts("trade.>")


def _judge(p: Pipeline, outcome: Outcome) -> None:
    """Hold the stream against the truth, gaps against faults, and look through the logs."""
    due, due_ms = p.simulator.fills(outcome.plan.exchanges), _now_ms()
    truth = p.simulator.simulator.truth
    _within(
        BACKFILLED_WITHIN_S, lambda: not awaited(p.messages("gap.>") + p.messages("trade.>"), due, truth), 2.0
    )
    p.stop_workers()
    p.simulator.stop()
    outcome.fired += p.simulator.fired()
    messages = p.messages()
    outcome.verdict = judge(messages, truth, due)
    payloads = (json.loads(body) for _, body in messages)
    judge_liquidations(payloads, truth, outcome.fired, due_ms, outcome.verdict)
    outcome.problems += outcome.verdict.faults
    outcome.problems += unexplained(outcome.verdict.gaps, outcome.fired, kinds_at(outcome.plan.rate))
    _look_through_logs(p, outcome)


def _look_through_logs(p: Pipeline, outcome: Outcome) -> None:
    said = p.output()
    outcome.log_lines = said.count("\n")
    outcome.problems += log_problems(said, (one.fault for one in outcome.fired))


def _judge_stored(p: Pipeline, both: Stores, times_ms: tuple[int, int], outcome: Outcome, say: Say) -> None:
    """Hold what is stored against the stream and the truth, once all of it has gone its way.

    `times_ms`: when the workers were started, and when all was well.
    """
    plan, truth = outcome.plan, p.simulator.simulator.truth
    due, due_ms = p.simulator.fills(plan.exchanges), _now_ms()
    _standing(p)  # what came before has been published then, or is told by the worker as it stops
    p.stop_workers()
    p.simulator.stop()
    outcome.stored = verdict = StoredVerdict()
    if not _within(STORED_WITHIN_S, lambda: not waiting(p.nats.url)):
        verdict.blame(f"not stored after {STORED_WITHIN_S:g} s: {waiting(p.nats.url)}")
    ended_s = time.time()
    if not _within(MOVED_WITHIN_S, lambda: not both.undone(ended_s)):
        verdict.blame(f"not moved after {MOVED_WITHIN_S:g} s: {both.undone(ended_s)}")
    outcome.problems += both.stop(
        "cold"
    )  # what has not been dropped by now is in both, the last window in hot
    compared = Compared(published(p.nats.url), truth, due, due_ms, outcome.fired)
    say(f"comparing {sum(map(len, compared.ids.values())):,} messages with what is stored")
    whole, healthy = (Span(since_ms, due_ms) for since_ms in times_ms)
    with Reading(load(p.config).settings) as reading:
        tiers = reading.tiers
        judge_stored(tiers, whole, compared, verdict)
        say(f"rebuilding {plan.instants} books")
        judge_instants(tiers, healthy, plan.instants, plan.seed, compared, verdict)
        say("asking for the quality")
        judge_quality(tiers, healthy, verdict)
    outcome.verdict = verdict.of_truth
    outcome.problems += verdict.problems
    outcome.problems += unexplained(outcome.verdict.gaps, outcome.fired, kinds_at(outcome.plan.rate))
    outcome.problems += both.stop("hot")
    outcome.problems += defects(both.output())
    _look_through_logs(p, outcome)


def log_problems(said: str, faults: Iterable[AnyFault]) -> list[str]:
    """What the logs say that they should not, and whether they say too much."""
    problems = defects(said)
    most = LOG_LINES_AT_REST + sum(
        LOG_LINES_A_PROCESS_FAULT if isinstance(fault, ProcessFault) else LOG_LINES_A_FAULT
        for fault in faults
    )
    if (lines := said.count("\n")) > most:
        problems.append(f"log: {lines} lines; with these faults expected at most {most}")
    return problems


def defects(said: str) -> list[str]:
    """What logs say that they should not."""
    found = {f"Traceback: {line}" for line in _TRACEBACK.findall(said)} | set(_DEFECT.findall(said))
    return [f"log: {line[:200]}" for line in sorted(found)]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
