"""Runs a harness under atheris: `run.py TARGET [libFuzzer options and folders]`. Started by scripts/fuzz.

Our own modules are instrumented, so that an input that reaches new code is kept and tried further.
"""

import gc
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import atheris

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent), str(HERE)]


def _mutator(harness: ModuleType) -> dict[str, Any]:
    """Of a harness with mutations of its own: half of them are its own, half are changes of bytes."""
    own = getattr(harness, "mutate", None)
    if own is None:
        return {}

    def mutate(data: bytes, most_bytes: int, seed: int) -> bytes:
        changed = own(data, seed) if seed % 2 else b""
        return changed if 0 < len(changed) <= most_bytes else atheris.Mutate(data, most_bytes)

    return {"custom_mutator": mutate}


def main() -> None:
    """Fuzz until libFuzzer's limits are reached, or a rule is broken."""
    target = sys.argv[1]
    with atheris.instrument_imports(include=["marketprism"]):
        harness = __import__(f"fuzz_{target}")
    logging.disable(logging.CRITICAL)
    gc.freeze()
    atheris.Setup([sys.argv[0], *sys.argv[2:]], harness.one, **_mutator(harness))
    atheris.Fuzz()


main()
