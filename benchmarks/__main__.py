"""`python -m benchmarks`; scripts/bench is the way in. Figures, not tests: a missed target is no failure."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from benchmarks import report
from benchmarks.dialogue import DialogueError
from benchmarks.environments import EnvironmentUnavailableError
from benchmarks.everything import everything
from benchmarks.filling import FillingError
from benchmarks.floor import floor
from benchmarks.live import live, sweep
from benchmarks.load import Load
from benchmarks.peers import peers
from benchmarks.pictures import draw
from benchmarks.replay import ReplayBenchError, replay
from benchmarks.scale import scale
from benchmarks.soak import soak
from benchmarks.storage import storage
from marketprism.capture import UnreadableError
from marketprism.config import OFFERS
from marketprism.quickstart import stop
from marketprism.quickstart.children import QuickstartError, StopRequestedError
from marketprism.storage.asking import ReadingError
from marketprism.storage.engine import EngineError

EPILOG = """\
  scripts/bench replay CAPTURE...             venue, book and encoding alone: messages/s a core
  scripts/bench peers CAPTURE...              the same beside cryptofeed's parsing and books
  scripts/bench live                          a minute at 120 messages/s an exchange
  scripts/bench live --single-process         then the same with one process for all, and both side by side
  scripts/bench live --sweep --seconds 20     1x, 10x, 20x, ... until it does not hold
  scripts/bench floor                         one worker beside the least that can be done with a message
  scripts/bench scale                         10, 100, 500 symbols and small and large books in one worker
  scripts/bench storage                       a backlog into the hot store, and how soon an event is found
  scripts/bench soak                          an hour: memory, descriptors, threads
  scripts/bench all --out DIR [CAPTURE...]    all but the soak, in a quarter of an hour: tables, JSON, plot
  scripts/bench plot --out DIR                the plot anew, from the JSON files of DIR
Method and results: docs/performance.md
"""
Told = tuple[Iterator[str], object]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print. 0 whatever the figures; 1: nothing could be measured; 130: Ctrl-C."""
    args = _parser().parse_args(argv)
    try:
        lines, result = args.run(args)
    except StopRequestedError:
        return 130
    except (
        QuickstartError,
        ReplayBenchError,
        UnreadableError,
        EnvironmentUnavailableError,
        DialogueError,
        EngineError,
        FillingError,
        ReadingError,
        OSError,
        ValueError,
    ) as error:
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
    alone = _verb(verbs, "replay", _replay, "venue, book and encoding over recordings in memory")
    _captures(alone, "+")
    _repetitions(alone, 7)
    compared = _verb(verbs, "peers", _peers, "venue and book beside cryptofeed's, over the same recordings")
    _captures(compared, "+")
    _repetitions(compared, 5)
    whole = _verb(verbs, "live", _live, "the whole pipeline on loopback: latency, CPU, memory")
    whole.add_argument(
        "--rate", type=_positive, default=120.0, help="messages per second and exchange (default: 120)"
    )
    whole.add_argument("--exchange", choices=list(OFFERS), help="only this one (default: all five)")
    _seconds(whole, 60.0)
    _seed(whole)
    shape = whole.add_mutually_exclusive_group()
    shape.add_argument(
        "--single-process", action="store_true", help="also measure one process for all exchanges"
    )
    shape.add_argument(
        "--sweep", action="store_true", help="then ten times the rate, twice that, … until it does not hold"
    )
    least = _verb(verbs, "floor", _floor, "one worker beside the least that can be done with a message")
    least.add_argument("--exchange", choices=list(OFFERS), default="binance_spot")
    least.add_argument(
        "--rate",
        type=_positive,
        nargs="+",
        default=[120.0, 1200.0],
        help="messages per second (default: 120 1200)",
    )
    _seconds(least, 60.0, "of each rate")
    _seed(least)
    least.add_argument("--slices", type=_count, default=6, help="of each kind of floor and rate (default: 6)")
    kept = _verb(verbs, "scale", _scale, "one worker with 10 to 500 symbols, and with small and large books")
    _seconds(kept, 15.0, "of each shape")
    long = _verb(verbs, "soak", _soak, "hours of a steady load: memory, descriptors, threads")
    long.add_argument(
        "--rate", type=_positive, default=120.0, help="messages per second and exchange (default: 120)"
    )
    _seconds(long, 3600.0)
    _seed(long)
    stored = _verb(verbs, "storage", _storage, "rows/s into the hot store, its memory, publication to answer")
    stored.add_argument(
        "--events", type=_count, default=3_500_000, help="of the backlog (default: 3500000, over a minute)"
    )
    stored.add_argument(
        "--rate", type=_positive, default=120.0, help="messages per second and exchange (default: 120)"
    )
    _seconds(stored, 60.0, "how soon an event is found")
    complete = _verb(verbs, "all", _all, "everything but the soak, in a quarter of an hour")
    complete.add_argument("--out", type=Path, required=True, metavar="DIR", help="for tables, JSON, plot")
    complete.add_argument("--quick", action="store_true", help="windows too short for figures, to try it out")
    _captures(complete, "*")
    picture = _verb(verbs, "plot", _plot, "the plot, from the JSON files of a folder")
    picture.add_argument("--out", type=Path, required=True, metavar="DIR")
    return parser


def _verb(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run: Callable[[argparse.Namespace], Told],
    text: str,
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there, too")
    parser.set_defaults(run=run)
    return parser


def _captures(parser: argparse.ArgumentParser, how_many: str) -> None:
    parser.add_argument(
        "captures", nargs=how_many, type=Path, metavar="CAPTURE", help="recordings, gzip or zstd"
    )
    parser.add_argument(
        "--exchange", choices=list(OFFERS), help="whose recordings they are (default: by their names)"
    )


def _repetitions(parser: argparse.ArgumentParser, default: int) -> None:
    parser.add_argument(
        "--repetitions",
        type=_count,
        default=default,
        metavar="N",
        help=f"how often each is run (default: {default})",
    )


def _seconds(parser: argparse.ArgumentParser, default: float, of: str = "") -> None:
    text = " ".join(("how long to measure", of)).strip()
    parser.add_argument(
        "--seconds", type=_positive, default=default, help=f"{text}, at least 2 (default: {default:g})"
    )


def _seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=1, help="of the simulated market (default: 1)")


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


def _replay(args: argparse.Namespace) -> Told:
    result = replay(args.captures, args.exchange, args.repetitions)
    return report.replay_lines(result), result


def _peers(args: argparse.Namespace) -> Told:
    result = peers(args.captures, args.exchange, args.repetitions)
    return report.peers_lines(result), result


def _live(args: argparse.Namespace) -> Told:
    stop.block()
    load = Load(rate=args.rate, seed=args.seed, exchange=args.exchange)
    if args.sweep:
        swept = sweep(load, args.seconds)
        return report.sweep_lines(swept), swept
    result = live(load, args.seconds, compare=args.single_process)
    return report.live_lines(result), result


def _floor(args: argparse.Namespace) -> Told:
    stop.block()
    result = floor(args.exchange, args.rate, args.seconds, args.slices, args.seed)
    return report.floor_lines(result), result


def _scale(args: argparse.Namespace) -> Told:
    stop.block()
    result = scale(args.seconds)
    return report.scale_lines(result), result


def _soak(args: argparse.Namespace) -> Told:
    stop.block()
    result = soak(Load(rate=args.rate, seed=args.seed), args.seconds)
    return report.soak_lines(result), result


def _storage(args: argparse.Namespace) -> Told:
    stop.block()
    result = storage(args.events, args.rate, args.seconds)
    return report.storage_lines(result), result


def _all(args: argparse.Namespace) -> Told:
    stop.block()
    return everything(args.out, args.captures, args.exchange, quick=args.quick)


def _plot(args: argparse.Namespace) -> Told:
    picture = draw(args.out)
    return iter([str(picture)]), {"plot": str(picture)}


if __name__ == "__main__":
    sys.exit(main())
