"""The configuration: any file and any environment give settings, or lines that say what is wrong.

An input is the file; behind a NUL, which YAML cannot hold, stand `NAME=value` lines of the environment.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

from marketprism.config import ConfigError, load

_FOLDER = Path(__file__).parents[2] / "config" / "collector"
_LINE_CHARS_MAX = 1_000
_LINES_MAX = 202
_path = Path(mkdtemp(prefix="fuzz-config-")) / "c.yaml"


def one(data: bytes) -> None:
    """Load one file."""
    document, _, rest = data.partition(b"\0")
    environ = dict(line.split("=", 1) for line in os.fsdecode(rest).splitlines() if "=" in line)
    _path.write_bytes(document)
    _check(_said(environ))
    _path.unlink()


def _said(environ: dict[str, str]) -> list[str]:
    """The warnings or the problems."""
    try:
        config = load(_path, environ)
    except ConfigError as error:
        return error.problems or [""]
    assert config.settings.exchanges
    return config.warnings


def _check(lines: list[str]) -> None:
    assert len(lines) <= _LINES_MAX
    for line in lines:
        assert line, "refused, and not said why"
        assert line.isprintable(), f"not one printable line: {line!r}"
        assert len(line) <= _LINE_CHARS_MAX, f"a line without bound: {line[:200]!r}"


def seeds() -> Iterator[bytes]:
    """The shipped files."""
    return (path.read_bytes() for path in sorted(_FOLDER.glob("*.yaml")))
