"""A round of the mover that ends by kill -9: `killed.py PORT SOCKET DATABASE ROOT STEP`.

A step is whatever leaves this process: a question to hot, an order to it, a file put in its place. It dies right before
that step, and ends with status 0 where there are not so many.
"""

import os
import signal
import sys
from pathlib import Path

from marketprism.storage import source
from marketprism.storage.asking import HotHttp
from marketprism.storage.engine import Engine, Target
from marketprism.storage.mover import Mover
from marketprism.storage.parquet import ParquetStore
from marketprism.storage.schema import Layout

STEPS = {"os.rename", "os.remove", "socket.connect", "http.client.send"}
PAGE_ROWS = 20  # so that there are steps while a file is being written


def main(port: str, change_socket: str, database: str, folder: str, step: str) -> None:
    """Run; see above."""
    source.PAGE_ROWS = PAGE_ROWS
    root, left = Path(folder), int(step)
    hot = source.HotSource(HotHttp("127.0.0.1", int(port)), Path(change_socket), Layout(database, "hot"))
    store = ParquetStore(root, Engine(Target(str(root / ".engine"))), hot.name)
    mover = Mover(hot, store, delay_s=0, retention_s=0)

    def audit(event: str, _: tuple[object, ...]) -> None:
        nonlocal left
        if event in STEPS:
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)
    mover.round()
    sys.exit(1 if mover.counts.failures else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
