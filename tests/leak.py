"""`leak.py TRIGGER ARGUMENTS …`: marketprism with these arguments, and a leak once the file TRIGGER is there.

The file holds how many bytes a second, and goes away when the leak begins.
It leaks in a thread, whatever the loop does.
"""

import sys
import threading
import time
from pathlib import Path

from marketprism.cli import main

STEP_S = 0.02


def leak(trigger: Path) -> None:
    """Take memory for good, and touch each page of it."""
    kept: list[bytes] = []
    while not trigger.exists():
        time.sleep(STEP_S)
    step_bytes = int(int(trigger.read_text()) * STEP_S)
    trigger.unlink()
    while True:  # what is slowed down does not catch up
        kept.append(b"x" * step_bytes)
        time.sleep(STEP_S)


if __name__ == "__main__":
    threading.Thread(target=leak, args=(Path(sys.argv[1]),), daemon=True).start()
    sys.exit(main(sys.argv[2:]))
