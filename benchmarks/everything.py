"""`scripts/bench all`: every benchmark but the soak, each with its table and JSON in one folder, and the plot."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from benchmarks import report
from benchmarks.floor import floor
from benchmarks.live import live, sweep
from benchmarks.load import Load
from benchmarks.peers import peers
from benchmarks.pictures import draw
from benchmarks.replay import replay
from benchmarks.scale import LOADS, scale

Told = tuple[Iterator[str], object]


def everything(
    folder: Path, captures: Sequence[Path], exchange: str | None, *, quick: bool
) -> tuple[Iterator[str], dict[str, str]]:
    """Run all of them, one after the other; what each finds is written as soon as it is there.

    Without captures `replay` and `peers` are left out. Raises what they raise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for name, run in _plan(captures, exchange, quick=quick).items():
        print(f"scripts/bench: {name} …", flush=True)
        lines, result = run()
        (folder / f"{name}.md").write_text("\n".join(lines) + "\n")
        target = folder / f"{name}.json"
        target.write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
        written[name] = str(target)
    written["plot"] = str(draw(folder))
    return iter(written.values()), written


def _plan(captures: Sequence[Path], exchange: str | None, *, quick: bool) -> dict[str, Callable[[], Told]]:
    """By the names of the files that come of them."""
    short, middle, long = (2.0, 2.0, 4.0) if quick else (10.0, 20.0, 60.0)
    repetitions, slices, loads = (1, 1, LOADS[:1]) if quick else (5, 6, LOADS)

    def told(form: Callable[..., Iterator[str]], result: object) -> Told:
        return form(result), result

    every_exchange, one_exchange = Load(), Load(exchange="binance_spot")
    plan: dict[str, Callable[[], Told]] = {
        "live": lambda: told(report.live_lines, live(every_exchange, middle, compare=True)),
        "sweep": lambda: told(report.sweep_lines, sweep(every_exchange, middle)),
        "sweep-one": lambda: told(report.sweep_lines, sweep(one_exchange, short)),
        "floor": lambda: told(
            report.floor_lines, floor("binance_spot", [120.0, 1200.0], long, slices, seed=1)
        ),
        "scale": lambda: told(report.scale_lines, scale(short, loads)),
    }
    if captures:
        plan["replay"] = lambda: told(report.replay_lines, replay(captures, exchange, repetitions))
        plan["peers"] = lambda: told(report.peers_lines, peers(captures, exchange, repetitions))
    return plan
