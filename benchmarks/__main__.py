"""`python -m benchmarks`; scripts/bench is the way in. Figures, not tests: a missed target is no failure."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from benchmarks import report
from benchmarks.live import LiveResult, live
from benchmarks.replay import ReplayBenchError, ReplayResult, replay
from marketprism.capture import UnreadableError
from marketprism.config import OFFERS
from marketprism.quickstart import stop
from marketprism.quickstart.children import QuickstartError, StopRequestedError

EPILOG = """\
  scripts/bench live                          a minute at 120 messages/s an exchange
  scripts/bench live --rate 1200 --json FILE  ten times that, figures also as JSON
  scripts/bench live --single-process         then the same with one process for all, and both side by side
  scripts/bench replay CAPTURE...             venue, book and encoding alone: messages/s a core
Method and results: docs/performance.md
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print. 0 whatever the figures; 1: nothing could be measured; 130: Ctrl-C."""
    args = _parser().parse_args(argv)
    try:
        lines, result = args.run(args)
    except StopRequestedError:
        return 130
    except (QuickstartError, ReplayBenchError, UnreadableError, OSError, ValueError) as error:
        print(f"scripts/bench: {error}", file=sys.stderr)
        return 1
    print(*lines, sep="\n")
    if args.json is not None:
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="How fast is it, and what does it need?",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    whole = _verb(verbs, "live", _live, "the whole pipeline on loopback: latency, CPU, memory")
    whole.add_argument(
        "--rate", type=_positive, default=120.0, help="messages per second and exchange (default: 120)"
    )
    whole.add_argument(
        "--seconds", type=_positive, default=60.0, help="how long to measure, at least 2 (default: 60)"
    )
    whole.add_argument("--seed", type=int, default=1, help="of the simulated market (default: 1)")
    whole.add_argument(
        "--single-process", action="store_true", help="also measure one process for all exchanges"
    )
    alone = _verb(verbs, "replay", _replay, "venue, book and encoding over recordings in memory")
    alone.add_argument("captures", nargs="+", type=Path, metavar="CAPTURE", help="recordings, gzip or zstd")
    alone.add_argument(
        "--exchange", choices=list(OFFERS), help="whose recordings they are (default: by their names)"
    )
    alone.add_argument(
        "--repetitions", type=_count, default=7, metavar="N", help="how often each is run (default: 7)"
    )
    return parser


def _verb(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run: Callable[[argparse.Namespace], tuple[Iterator[str], object]],
    text: str,
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there, too")
    parser.set_defaults(run=run)
    return parser


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return number


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text}")
    return number


def _live(args: argparse.Namespace) -> tuple[Iterator[str], LiveResult]:
    stop.block()
    result = live(args.rate, args.seconds, args.seed, compare=args.single_process)
    return report.live_lines(result), result


def _replay(args: argparse.Namespace) -> tuple[Iterator[str], ReplayResult]:
    result = replay(args.captures, args.exchange, args.repetitions)
    return report.replay_lines(result), result


if __name__ == "__main__":
    sys.exit(main())
