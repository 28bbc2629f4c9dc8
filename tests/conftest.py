"""Helpers of tests stand beside them and are imported by their plain names; `chaos` and `benchmarks` from the root."""

import sys
from pathlib import Path

for folder in ("..", "", "worker", "simulator", "vm"):
    sys.path.insert(0, str(Path(__file__).parent / folder))
