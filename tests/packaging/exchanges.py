"""In the machine: the exchanges, simulated; at SIGUSR1 what really happened is left in /host/truth for the judge."""

import asyncio
import pickle
import signal
import sys
from pathlib import Path

from marketprism.simulator import Simulator, SimulatorOptions, run, write_config

HOST = Path("/host")
CONFIG = Path("/etc/marketprism/unified_data_collection.yaml")


def started(simulator: Simulator) -> None:
    """Tell where the exchanges are, and be ready for the signal."""

    def tell() -> None:
        part = HOST / "truth.part"
        part.write_bytes(pickle.dumps(simulator.truth))
        part.rename(HOST / "truth")

    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, tell)
    write_config(CONFIG, HOST / "simulated.part", simulator.urls)
    (HOST / "simulated.part").rename(HOST / "simulated.yaml")


if __name__ == "__main__":
    asyncio.run(run(SimulatorOptions(rate=float(sys.argv[1]), base_port=7000), started))
