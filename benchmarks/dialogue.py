"""A process that answers each line on its stdin with a line of JSON on its stdout."""

import json
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any

_STOP_S = 10


class DialogueError(Exception):
    """The process ended, or said something else; the text holds its last words."""


class Dialogue:
    """One such process, from its start to the end of the `with` block. Raises DialogueError."""

    def __init__(self, name: str, command: Sequence[str | Path], cwd: Path) -> None:
        self.name = name
        self._errors = TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            command, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def hear(self) -> dict[str, Any]:
        """The next thing it says."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        try:
            said: dict[str, Any] = json.loads(line)
        except ValueError:
            raise DialogueError(f"{self.name}: {line.strip() or self._last_words()}") from None
        return said

    def ask(self, text: str) -> dict[str, Any]:
        """Its answer."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # `hear` tells why
            print(text, file=self._process.stdin, flush=True)
        return self.hear()

    def _last_words(self) -> str:
        code = self._process.wait(_STOP_S)
        self._errors.seek(0)
        lines = [line for line in self._errors.read().splitlines() if line.strip()]
        return f"ended with exit status {code}: {lines[-1] if lines else 'without a word'}"

    def __enter__(self) -> "Dialogue":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()
