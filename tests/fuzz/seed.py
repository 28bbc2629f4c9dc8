"""Writes a harness's seeds, made of the recordings where they are at hand: `seed.py TARGET FOLDER`."""

import sys
from hashlib import sha1
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent), str(HERE)]


def main() -> None:
    """Each seed under the name that libFuzzer would give it."""
    target, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for seed in import_module(f"fuzz_{target}").seeds():
        (folder / sha1(seed).hexdigest()).write_bytes(seed)


main()
