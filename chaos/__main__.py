"""`python -m chaos`; scripts/chaos is the way in."""

import argparse
import random
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from tempfile import mkdtemp

from chaos import report
from chaos.minimize import minimize
from chaos.natsbox import nats_server
from chaos.run import Plan, Say, run
from chaos.schedule import (
    SLOW,
    STORE_FAULTS,
    AnyFault,
    ScheduleError,
    begin_at,
    ends_s,
    line,
    random_faults,
    random_process_faults,
    read,
    write,
)
from marketprism.simulator import WORKERS

SECONDS, EVERY_S = 90.0, 3.0
INSTANTS = 1000
SHORT_SECONDS, SHORT_EVERY_S = 8.0, 0.7
_FIRST_S, _AFTER_S = 2.0, 2.0  # before the first fault and after the last one, in a smaller schedule
EPILOG = """\
  scripts/chaos                                 90 s of five exchanges, with a seed of its own
  scripts/chaos --seed 7 --exchanges okx_spot
  scripts/chaos --schedule minimal.json         what failed, once more
What it proves, and how to read and repeat a failure: docs/chaos.md
"""


def main(argv: Sequence[str] | None = None) -> int:
    """0: all promises were kept. 1: one was broken. 2: it cannot be run so. 130: Ctrl-C."""
    args = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:7.1f} s  {text}", flush=True)

    try:
        plan = _plan(args)
        folder = _folder(args.keep)
    except (ScheduleError, OSError) as error:
        print(f"scripts/chaos: {error}", file=sys.stderr)
        return 2
    status = 130
    try:
        status = _chaos(plan, folder, args.minimize, say)
    except KeyboardInterrupt:
        say("stopped")
    finally:
        if args.keep is None and status != 1:
            shutil.rmtree(folder, ignore_errors=True)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/chaos",
        description="Run the whole pipeline under random faults and hold what it publishes against the truth.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--seed", type=int, help="of the faults and the markets (default: a fresh one)")
    parser.add_argument("--seconds", type=_positive, metavar="S", help=f"how long (default: {SECONDS:g})")
    parser.add_argument(
        "--every", type=_positive, metavar="S", help=f"between two faults, on average (default: {EVERY_S:g})"
    )
    parser.add_argument("--exchanges", type=_exchanges, default=WORKERS, metavar="A,B", help="only these")
    parser.add_argument(
        "--rate", type=_positive, default=120.0, help="messages per second and exchange (default: 120)"
    )
    parser.add_argument("--schedule", type=Path, metavar="FILE", help="these faults instead of random ones")
    parser.add_argument(
        "--storage",
        type=int,
        nargs="?",
        const=INSTANTS,
        default=0,
        metavar="N",
        help="with hot and cold store; kill processes only, compare what is stored, and N books of random instants "
        f"(default: {INSTANTS})",
    )
    parser.add_argument(
        "--short",
        action="store_true",
        help=f"for a quick look: {SHORT_SECONDS:g} s, a fault every {SHORT_EVERY_S:g} s, none that is slow to notice",
    )
    parser.add_argument(
        "--minimize",
        type=float,
        default=300.0,
        metavar="S",
        help="after a failure, look so long for a smaller schedule that fails, too (default: 300; 0: do not)",
    )
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="DIR",
        help="put logs, schedules and the stream's store here, and leave them",
    )
    return parser


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return number


def _exchanges(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in WORKERS:
            raise argparse.ArgumentTypeError(f"expected names out of {', '.join(WORKERS)}, got {name!r}")
    return names


def _plan(args: argparse.Namespace) -> Plan:
    """Raises ScheduleError."""
    if nats_server() is None:
        raise ScheduleError("no nats-server: run scripts/setup")
    seed = random.SystemRandom().randrange(10**6) if args.seed is None else args.seed
    if args.schedule is not None:
        faults = read(args.schedule)
        seconds = args.seconds or ends_s(faults) + _AFTER_S
    else:
        seconds = args.seconds or (SHORT_SECONDS if args.short else SECONDS)
        every_s = args.every or (SHORT_EVERY_S if args.short else EVERY_S)
        of_what = random_process_faults if args.storage else random_faults
        faults = of_what(seed, seconds, args.exchanges, every_s)
        if args.short:
            faults = [fault for fault in faults if fault.name not in SLOW]
    if not args.storage and any(fault.name in STORE_FAULTS for fault in faults):
        raise ScheduleError(f"{' and '.join(STORE_FAULTS)} need --storage")
    return Plan(seed, seconds, tuple(faults), args.exchanges, args.rate, args.storage)


def _folder(keep: Path | None) -> Path:
    """Raises OSError."""
    if keep is None:
        return Path(mkdtemp(prefix="marketprism-chaos-"))
    keep.mkdir(parents=True, exist_ok=True)
    return keep


def _chaos(plan: Plan, folder: Path, minimize_s: float, say: Say) -> int:
    say(f"seed {plan.seed}, {len(plan.faults)} faults in {plan.seconds:g} s, {', '.join(plan.exchanges)}")
    outcome = run(plan, _made(folder / "run"), say)
    print(*report.lines(outcome), sep="\n", flush=True)
    if not outcome.problems:
        say(f"all promises kept, seed {plan.seed}")
        return 0
    write(folder / "schedule.json", plan.faults)
    say(f"failed, seed {plan.seed}; logs, stream and schedule in {folder}")
    print(f"again:   scripts/chaos {_arguments(plan, folder / 'schedule.json')}", flush=True)
    if minimize_s > 0 and len(plan.faults) > 1:
        smallest = _smallest(plan, folder, minimize_s, say)
        write(folder / "minimal.json", smallest)
        print(
            f"\nthe smallest schedule found that fails, too, with {len(smallest)} of {len(plan.faults)} faults:"
        )
        print((folder / "minimal.json").read_text(), end="")
        print(f"again:   scripts/chaos {_arguments(plan, folder / 'minimal.json')}", flush=True)
    return 1


def _smallest(plan: Plan, folder: Path, minimize_s: float, say: Say) -> list[AnyFault]:
    """Run with ever fewer faults, until the time is over."""
    deadline = time.monotonic() + minimize_s
    number = count(1)

    def fails(faults: list[AnyFault]) -> bool:
        soon = begin_at(faults, _FIRST_S)
        smaller = replace(plan, faults=tuple(soon), seconds=ends_s(soon) + _AFTER_S)
        with_folder = _made(folder / f"smaller-{next(number)}")
        outcome = run(smaller, with_folder, lambda _: None)
        shutil.rmtree(with_folder)
        first = outcome.problems[0] if outcome.problems else "all promises kept"
        say(f"with {'; '.join(map(line, faults))}: {first}")
        return bool(outcome.problems)

    found = minimize(plan.faults, fails, lambda: time.monotonic() < deadline)
    return begin_at(found, _FIRST_S)


def _arguments(plan: Plan, schedule: Path) -> str:
    exchanges = "" if plan.exchanges == WORKERS else f" --exchanges {','.join(plan.exchanges)}"
    rate = "" if plan.rate == 120 else f" --rate {plan.rate:g}"
    storage = f" --storage {plan.instants}" if plan.instants else ""
    return f"--seed {plan.seed} --schedule {schedule}{exchanges}{rate}{storage}"


def _made(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


if __name__ == "__main__":
    sys.exit(main())
