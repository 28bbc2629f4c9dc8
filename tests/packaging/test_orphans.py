"""As process 1 the launcher waits for what lost its parent, and never for what the event loop waits for."""

import asyncio
import ctypes
import os
import subprocess
import sys
from pathlib import Path

import uvloop

from marketprism.parent import Orphans

SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER, linux/prctl.h


async def _main() -> None:
    assert (
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0) == 0
    )  # orphans come to this process, as to process 1
    orphans = Orphans()
    orphans.reap()  # no children at all
    parent = await asyncio.create_subprocess_exec("sh", "-c", "(exec true) & (exec true) & exit 7")
    own = await asyncio.create_subprocess_exec("sh", "-c", "exit 9")
    assert await parent.wait() == 7
    assert await own.wait() == 9
    assert len(_children()) == 2
    while _children():
        orphans.reap()
        await asyncio.sleep(0.05)


def _children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def test_orphans_are_reaped_and_own_children_left_alone() -> None:
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    uvloop.run(_main())
