"""What a run checked, as lines for a person."""

from collections import Counter
from collections.abc import Iterator

from chaos.explain import causes
from chaos.run import Outcome
from chaos.schedule import Fault
from chaos.stored import StoredVerdict

_SHOWN = 20


def lines(outcome: Outcome) -> Iterator[str]:
    """The table at the end of a run."""
    verdict = outcome.verdict
    fills = f"{verdict.fills:,} fills, {verdict.missing:,} missing and told"
    yield f"{'trades':22}{verdict.trades:>9,} published, of {fills}"
    if outcome.stored is None:
        yield f"{'books':22}{verdict.books:>9,} states equal to the truth, at as many ids"
    yield f"{'liquidations':22}{verdict.liquidations:>9,} published, all as they happened"
    if outcome.stored is not None:
        yield from _stored(outcome.stored)
    yield from _table(
        "gaps told", {f"{kind}, {cause}": n for (kind, cause), n in causes(verdict.gaps).items()}
    )
    yield from _table("faults", Counter(one.fault.name for one in outcome.fired if one.struck))
    idle = _armed_only(outcome)
    if idle:
        yield from _table("never had a chance", idle)
    if outcome.healthy_after_s is not None:
        yield f"{'healthy again':22}{outcome.healthy_after_s:>9.1f} s after the last fault"
    yield f"{'log lines':22}{outcome.log_lines:>9,}"
    for problem in outcome.problems[:_SHOWN]:
        yield f"FAILED  {problem}"
    if len(outcome.problems) > _SHOWN:
        yield f"FAILED  … and {len(outcome.problems) - _SHOWN} more"


def _stored(stored: StoredVerdict) -> Iterator[str]:
    yield from _table(f"stored of {stored.messages:,}", stored.rows)
    yield f"{'hot, cold, in both':22}{stored.hot:>9,} {stored.cold:,} {stored.both:,}"
    known = stored.instants - stored.unknown
    yield f"{'books at instants':22}{known:>9,} equal to the truth, {stored.unknown:,} in told gaps"


def _table(title: str, counts: Counter[str] | dict[str, int]) -> Iterator[str]:
    yield f"{title:22}{sum(counts.values()):>9,}"
    for name, n in sorted(counts.items()):
        yield f"  {name:40}{n:>9,}"


def _armed_only(outcome: Outcome) -> Counter[str]:
    struck = {one.fault for one in outcome.fired if one.struck}
    return Counter(f.name for f in outcome.plan.faults if isinstance(f, Fault) and f not in struck)
