"""Draws with matplotlib, which lives in an environment of its own."""

import subprocess
from pathlib import Path

from benchmarks.environments import plot_python

PICTURE = "performance.png"


def draw(folder: Path) -> Path:
    """The picture of the JSON files in this folder; what is not there is left out.

    Raises EnvironmentUnavailableError, ValueError where nothing can be drawn.
    """
    target = folder / PICTURE
    command = [plot_python(), Path(__file__).with_name("plot.py"), folder, target]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    if told.returncode:
        raise ValueError(f"{folder}: cannot be drawn: {told.stderr.strip().splitlines()[-1]}")
    return target
