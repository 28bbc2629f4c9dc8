"""Virtual environments for what only a benchmark needs: the peer compared with, and the library that draws.

Neither is a dependency of the project. An environment is made on demand under var/bench, by the same interpreter,
from a requirements file that pins every package by its hash, and made anew when that file changes.
"""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.machine import ROOT

_HERE = Path(__file__).parent


class EnvironmentUnavailableError(Exception):
    """An environment could not be made; the text is for a person."""


def cryptofeed_python() -> Path:
    """The interpreter that has cryptofeed. Raises EnvironmentUnavailableError."""
    # It comes as source. Build isolation would fetch its build tools without looking at their hashes.
    return _python("cryptofeed", ["cryptofeed-build.txt"], ["--no-build-isolation", "-r", "cryptofeed.txt"])


def plot_python() -> Path:
    """The interpreter that has matplotlib. Raises EnvironmentUnavailableError."""
    return _python("plot", ["plot.txt"])


def _python(name: str, *installs: list[str]) -> Path:
    """`installs`: arguments of one pip call each; a lone file name is a requirements file."""
    calls = [["-r", *call] if len(call) == 1 else call for call in installs]
    files = [_HERE / call[-1] for call in calls]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files) + sys.version.encode()).hexdigest()
    folder = ROOT / "var/bench" / name
    python, stamp = folder / "bin/python", folder / ".complete"
    if stamp.is_file() and stamp.read_text() == digest:
        return python
    print(f"scripts/bench: making {folder} (once; {', '.join(f.name for f in files)})", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    _run(sys.executable, "-m", "venv", folder)
    for call in calls:
        _run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--require-hashes", *call)
    stamp.write_text(digest)
    return python


def _run(*command: str | Path) -> None:
    told = subprocess.run(command, cwd=_HERE, capture_output=True, text=True, check=False)
    if told.returncode:
        words = [line for line in told.stderr.splitlines() if line.strip()]
        errors = [line for line in words if line.lstrip().lower().startswith("error")] or words[-1:]
        raise EnvironmentUnavailableError(
            f"{' '.join(map(str, command))} failed: {errors[0] if errors else 'no word why'}"
        )
