"""The simulated exchanges as a process, with what `marketprism simulate` does not offer: books of a given size.

Arguments: a `Load` as JSON, the configuration to start from, and where to write the one that leads here.
"""

import sys
from pathlib import Path

import msgspec
import uvloop

from benchmarks.load import Load
from marketprism.config import load as load_config
from marketprism.simulator import WORKERS, Simulator, SimulatorOptions, face, run, write_config


def main() -> None:
    """Run until SIGTERM."""
    load = msgspec.json.decode(sys.argv[1], type=Load)
    source, target = Path(sys.argv[2]), Path(sys.argv[3])
    if load.levels is not None:
        _deepen(load.levels)
    # An exchange that nobody listens to lists nothing: its markets would cost the simulator as much as the others.
    found = load_config(source).settings.exchanges
    symbols = {name: list(found[name].symbols) if name in found else [] for name in WORKERS}
    if "deribit_derivatives" in found:
        symbols["deribit_derivatives"] = [_perpetual(s) for s in symbols["deribit_derivatives"]]

    def started(simulator: Simulator) -> None:
        write_config(source, target, simulator.urls)

    uvloop.run(run(SimulatorOptions(seed=load.seed, rate=load.rate, symbols=symbols), started))


def _perpetual(symbol: str) -> str:
    return f"{symbol}-PERPETUAL" if symbol in ("BTC", "ETH") else symbol


def _deepen(levels: int) -> None:
    listed = face.instrument

    def instrument(worker: str, name: str) -> face.Instrument:
        found = listed(worker, name)
        found.levels = levels
        return found

    face.instrument = instrument


if __name__ == "__main__":
    main()
