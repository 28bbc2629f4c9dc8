"""That a worker dies with its launcher is seen in test_launcher.py, the orphans of process 1 in packaging/."""

from __future__ import annotations

import asyncio
import signal

from marketprism.parent import send_signal


def test_a_signal_to_a_child_that_just_ended_leaves_its_status() -> None:
    async def statuses() -> set[int | None]:
        found = set()
        for _ in range(100):
            child = await asyncio.create_subprocess_exec("sleep", "0.01")
            while child.returncode is None:
                send_signal(child, signal.SIGCONT)
                await asyncio.sleep(0)
            found.add(child.returncode)
            send_signal(child, signal.SIGCONT)  # and one to nobody is none
        return found

    assert asyncio.run(statuses()) == {0}
