"""Readings of the process table and the memory limits."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from marketprism.control.processes import MB, MemoryVerdict, MemoryWatch, ProcessTable


def test_memory_watch_warns_once_with_hysteresis_and_stops_at_hard() -> None:
    watch = MemoryWatch(100 * MB, 150 * MB)
    readings = [90, 101, 120, 95, 101, 89, 101, 151]
    quiet, warn, stop = MemoryVerdict.NOTHING, MemoryVerdict.WARN, MemoryVerdict.STOP
    assert [watch.judge(mb * MB) for mb in readings] == [quiet, warn, quiet, quiet, quiet, quiet, warn, stop]


def test_figures_of_a_real_process() -> None:
    table = ProcessTable()
    own = table.read(os.getpid())
    assert own is not None
    assert own.memory_bytes > 5 * MB
    assert not own.frozen
    begun = time.process_time()
    while time.process_time() - begun < 0.2:
        pass
    again = table.read(os.getpid())
    assert again is not None
    assert again.cpu_percent > 10


def test_ended_process_has_no_figures() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    table = ProcessTable()
    assert table.read(process.pid) is not None
    process.communicate(b"\n")
    assert table.read(process.pid) is None
