"""When an ended worker is started again: the stand-in for systemd's Restart=. No clock, no process here."""

from __future__ import annotations

import signal
from dataclasses import dataclass

EX_TEMPFAIL = 75  # sysexits.h; a worker that drained itself at its hard memory limit
EX_CONFIG = 78  # sysexits.h; a worker that cannot run with this configuration

REQUESTED = "request"  # somebody asked for its stop or restart
REASONS = ("exit", "error", "signal", "memory", "oom", "watchdog", "timeout", "spawn", REQUESTED)


@dataclass(frozen=True, slots=True)
class RestartRules:
    """Times in seconds. `delays_s`: before the 1st, 2nd, 3rd … restart; the last one repeats."""

    delays_s: tuple[float, ...] = (0.0, 5.0, 5.0, 30.0)
    give_up_after: int = 10
    healthy_stretch_s: float = 300.0
    memory_cooldown_s: float = 5.0
    stop_wait_s: float = 10.0
    watchdog_s: float = 30.0


@dataclass(slots=True)
class RestartPolicy:
    """Counts the restarts of one worker without a healthy stretch between."""

    rules: RestartRules
    in_a_row: int = 0

    def after_exit(self, reason: str, ran_s: float) -> float | None:
        """Seconds to wait before the next start; None: no further start."""
        if reason == "config":
            return None
        if ran_s >= self.rules.healthy_stretch_s:
            self.in_a_row = 0
        self.in_a_row += 1
        if self.in_a_row > self.rules.give_up_after:
            return None
        if reason == "memory":
            return self.rules.memory_cooldown_s
        return self.rules.delays_s[min(self.in_a_row, len(self.rules.delays_s)) - 1]


def exit_reason(code: int, ordered: str | None = None) -> str:
    """One word for how a worker ended; `ordered` is the word when its supervisor stopped it for a cause."""
    if ordered is not None:
        return ordered
    if code < 0:
        return "signal"
    return {0: "exit", EX_TEMPFAIL: "memory", EX_CONFIG: "config"}.get(code, "error")


def describe_exit(code: int) -> str:
    """`exit code 3` or `killed by SIGKILL`, from a code as subprocess gives it (negative: signal)."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
