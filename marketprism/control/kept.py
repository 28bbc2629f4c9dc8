"""What the control plane remembers over its own restart: one small JSON file."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

from marketprism.control.shared import write_atomically

_SAVE_EVERY_S = 5.0

log = logging.getLogger(__name__)


class Kept:
    """Sections by name, each of plain JSON values. A file that cannot be read or written costs the memory only."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._changed = False
        self._saved_s = float("-inf")
        self._sections: dict[str, Any] = self._load()

    def get(self, section: str, default: Any) -> Any:
        """What was kept, or `default` where nothing of that type was."""
        found = self._sections.get(section)
        return found if isinstance(found, type(default)) else default

    def put(self, section: str, value: Any) -> None:
        """Keep `value`; it is on disk after the next `save`."""
        if self._sections.get(section) != value:
            self._sections[section] = value
            self._changed = True

    def save(self, now: bool = False) -> None:
        """Write what has changed, at most every five seconds unless it must be `now`."""
        if not self._changed or (not now and time.monotonic() - self._saved_s < _SAVE_EVERY_S):
            return
        self._saved_s = time.monotonic()
        try:
            write_atomically(self._file, json.dumps(self._sections).encode())
            self._changed = False
        except OSError as exc:
            log.error("cannot write %s: %s; it is tried again", self._file, exc.strerror)

    def _load(self) -> dict[str, Any]:
        try:
            found = json.loads(self._file.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as exc:
            log.warning("cannot read %s: %s; beginning anew", self._file, exc)
            return {}
        return found if isinstance(found, dict) else {}
