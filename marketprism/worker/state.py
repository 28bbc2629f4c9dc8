"""`<exchange>.state.json` in the runtime directory: how a worker is, for whoever wants to know without asking it."""

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


class StateFile:
    """Written anew about once a second, whole or not at all, and a last time with the reason of the end."""

    def __init__(self, folder: Path, exchange: str) -> None:
        """Reads what the last run left: an end without a reason means that it was killed."""
        self.started_s = time.time()
        self.last_exit = _last_exit(folder / f"{exchange}.state.json")
        self._path = folder / f"{exchange}.state.json"
        self._exchange = exchange
        self._failing = False

    def write(self, state: Mapping[str, Any], ended: bool = False) -> None:
        """Write `state` and what is the same for all. A disk that is full is told once and costs no more than that."""
        whole = {
            "exchange": self._exchange,
            "pid": os.getpid(),
            "started_ts": self.started_s,
            "ts": time.time(),
            "ended": ended,
            **state,
            "last_exit": self.last_exit,
        }
        beside = self._path.with_suffix(".new")
        try:
            beside.write_text(json.dumps(whole), encoding="utf-8")
            beside.replace(self._path)
            self._failing = False
        except OSError as e:
            if not self._failing:
                log.error("cannot write %s: %s", self._path, e.strerror, extra={"event": "state_file"})
            self._failing = True

    def end(self, reason: str, state: Mapping[str, Any]) -> None:
        """The last word of this run."""
        self.last_exit = {"reason": reason, "ts": time.time()}
        self.write(state, ended=True)


def _last_exit(path: Path) -> dict[str, Any] | None:
    try:
        left = json.loads(path.read_text(encoding="utf-8"))
        if not left["ended"]:
            return {"reason": "killed", "ts": float(left["ts"])}
        return {"reason": str(left["last_exit"]["reason"]), "ts": float(left["last_exit"]["ts"])}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as e:
        log.warning("%s: not a state file of ours, beginning anew: %s", path, e)
        return None
