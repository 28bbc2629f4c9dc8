"""One chaos run: everything started, faults played, all well again, and the verdict."""

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from chaos.explain import Fired, unexplained
from chaos.judge import Verdict, awaited, judge
from chaos.liquidations import judge_liquidations
from chaos.pipeline import Pipeline, pipeline
from chaos.player import Player
from chaos.schedule import KINDS, AnyFault
from marketprism.simulator import WORKERS, SimulatorOptions

STARTED_WITHIN_S = 60.0
HEALTHY_WITHIN_S = 120.0
"""A connection that brings nothing is replaced after 60 s at most, a second one in a row after two minutes at most.
The other pauses before another attempt are 30 s at most."""
FLOWING_WITHIN_S = 90.0
BACKFILLED_WITHIN_S = 120.0
"""What REST has not given back by then is a gap told by the worker as it stops, or missing."""
LOG_LINES_AT_REST = 150
LOG_LINES_A_FAULT = 30
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


@dataclass(slots=True)
class Outcome:
    """What came of a run. `problems`: one line each; none means that all promises were kept."""

    plan: Plan
    verdict: Verdict = field(default_factory=Verdict)
    fired: list[Fired] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    healthy_after_s: float | None = None
    log_lines: int = 0


def run(plan: Plan, folder: Path, say: Say) -> Outcome:
    """Run a plan in an empty folder."""
    outcome = Outcome(plan)
    with pipeline(folder, SimulatorOptions(seed=plan.seed, rate=plan.rate)) as p:
        for worker in WORKERS:
            p.change(worker, enabled=worker in plan.exchanges)
        launcher = p.run("launcher")
        _within(STARTED_WITHIN_S, lambda: _healthy(p) or launcher.poll() is not None)
        if not _healthy(p):
            outcome.problems.append(
                f"never healthy, within {STARTED_WITHIN_S:g} s: {_ill(p)}\n{p.output()[-2000:]}"
            )
            return outcome
        began = time.monotonic()
        player = Player(p, launcher, say)
        player.play(plan.faults)
        time.sleep(max(0.0, began + plan.seconds - time.monotonic()))
        outcome.problems, outcome.fired = player.problems, player.fired
        _recover(p, outcome)
        say("judging")
        _judge(p, outcome)
    return outcome


def _healthy(p: Pipeline) -> bool:
    return p.health().get("status") == "healthy"


def _ill(p: Pipeline) -> str:
    """Who is not healthy, and why."""
    entries = p.health().get("processes", {})
    ill = {name: entry["reasons"] for name, entry in entries.items() if entry["status"] != "healthy"}
    return str(ill) if entries else "no answer"


def _recover(p: Pipeline, outcome: Outcome) -> None:
    """After the last fault all becomes healthy, and each book and each trade subject goes on."""
    began = time.monotonic()
    if not _within(HEALTHY_WITHIN_S, lambda: _healthy(p)):
        outcome.problems.append(f"not healthy {HEALTHY_WITHIN_S:g} s after the last fault: {_ill(p)}")
        return
    outcome.healthy_after_s = time.monotonic() - began
    before = _counts(p)
    wanted = 4 * len(outcome.plan.exchanges)  # two instruments each, trades and books
    if len(before) < wanted:
        outcome.problems.append(f"only {sorted(before)} were ever published")
    standing = set(before)

    def all_flow() -> bool:
        now = _counts(p)
        standing.difference_update({subject for subject in standing if now.get(subject, 0) > before[subject]})
        return not standing

    if not _within(FLOWING_WITHIN_S, all_flow):
        outcome.problems.append(
            f"healthy, and yet nothing more of {sorted(standing)} for {FLOWING_WITHIN_S:g} s"
        )


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
    due, due_ms = p.simulator.fills(outcome.plan.exchanges), time.time_ns() // 1_000_000
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
    outcome.problems += unexplained(outcome.verdict.gaps, outcome.fired, KINDS)
    said = p.output()
    outcome.log_lines = said.count("\n")
    outcome.problems += log_problems(said, len(outcome.fired))


def log_problems(said: str, faults: int) -> list[str]:
    """What the logs say that they should not, and whether they say too much."""
    found = {f"Traceback: {line}" for line in _TRACEBACK.findall(said)} | set(_DEFECT.findall(said))
    problems = [f"log: {line[:200]}" for line in sorted(found)]
    lines, most = said.count("\n"), LOG_LINES_AT_REST + LOG_LINES_A_FAULT * faults
    if lines > most:
        problems.append(f"log: {lines} lines with {faults} faults; expected at most {most}")
    return problems
