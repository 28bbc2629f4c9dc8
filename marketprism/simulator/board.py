"""What is armed or under way, what became of it, and what becomes of an outgoing frame under it."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from marketprism.simulator.faults import Fault
from marketprism.simulator.messages import MessageKind, Outgoing

_ANY_DATA = ("garbage", "truncated", "binary")
_ON_FRAMES: dict[MessageKind, tuple[str, ...]] = {
    "book": (
        "drop_next_book_update",
        "duplicate_book_update",
        "reorder_book_updates",
        "disconnect_mid_frame",
        *_ANY_DATA,
    ),
    "trade": ("drop_next_trade", "duplicate_trade", "late_trade", *_ANY_DATA),
    "snapshot": ("disconnect_mid_snapshot",),
}
_STATES = frozenset(
    {
        "slow",
        "clock_ahead",
        "clock_behind",
        "okx_checksum_zero",
        "okx_checksum_absent",
        "okx_no_snapshot",
        "deribit_exponents",
        "deribit_locked",
    }
)
_GARBAGE = '{"e":"\\u00'


class Injected(NamedTuple):
    """One line of the log. at_s is wall time, seconds since the epoch; "fired" is when it took effect."""

    at_s: float
    fault: Fault
    state: Literal["armed", "fired"]


@dataclass(eq=False, slots=True)
class _Armed:
    fault: Fault
    left: int


@dataclass(eq=False, slots=True)
class _State:
    fault: Fault
    until_s: float
    fired: bool = False


class FaultBoard:
    """Faults that wait for their chance and states that last for a time.

    `busy` is False while there are none: then no frame and no answer need ask.
    """

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self.busy = False
        self.log: list[Injected] = []
        self._clock_s = clock_s
        self._armed: list[_Armed] = []
        self._states: list[_State] = []
        self._held: dict[tuple[str, str], Outgoing] = {}

    @property
    def fired(self) -> dict[str, int]:
        """How often each fault took effect."""
        names = [one.fault.name for one in self.log if one.state == "fired"]
        return {name: names.count(name) for name in dict.fromkeys(names)}

    def note(self, fault: Fault, state: Literal["armed", "fired"]) -> None:
        """Write a line of the log."""
        self.log.append(Injected(time.time(), fault, state))

    def arm(self, fault: Fault) -> None:
        """Let a fault happen at its next `count` chances, or last for its `seconds` from now."""
        self.note(fault, "armed")
        if fault.name in _STATES:
            self._states.append(_State(fault, self._clock_s() + (fault.seconds or math.inf)))
        else:
            self._armed.append(_Armed(fault, fault.count))
        self.busy = True

    def take(self, name: str, worker: str, instrument: str | None = None) -> Fault | None:
        """The fault, if it is armed for this worker and instrument; one of its chances is used up."""
        for armed in self._armed:
            if _concerns(armed.fault, name, worker, instrument):
                armed.left -= 1
                if not armed.left:
                    self._armed.remove(armed)
                    self._settle()
                self.note(armed.fault, "fired")
                return armed.fault
        return None

    def active(self, name: str, worker: str, instrument: str | None = None) -> bool:
        """True while such a state lasts."""
        if not self._states:
            return False
        self._end_states()
        for state in self._states:
            if _concerns(state.fault, name, worker, instrument):
                if not state.fired:
                    state.fired = True
                    self.note(state.fault, "fired")
                return True
        return False

    def through(self, message: Outgoing) -> list[Outgoing]:
        """What becomes of one outgoing message: [] loses it, [message] sends it, twice sends it twice."""
        held = self._held.pop((message.worker, message.topic), None)
        if held is not None:
            self._settle()
            return [message, held]
        for name in _ON_FRAMES.get(message.kind, ()):
            if self.take(name, message.worker, message.instrument):
                return self._struck(name, message)
        return [message]

    def _struck(self, name: str, message: Outgoing) -> list[Outgoing]:
        match name:
            case "duplicate_book_update" | "duplicate_trade":
                return [message, message]
            case "reorder_book_updates" | "late_trade":
                self._held[message.worker, message.topic] = message
                self.busy = True
                return []
            case "disconnect_mid_frame" | "disconnect_mid_snapshot":
                return [replace(message, wire="cut")]
            case "garbage":
                return [replace(message, text=_GARBAGE)]
            case "truncated":
                return [replace(message, text=message.text[: len(message.text) // 2])]
            case "binary":
                return [replace(message, wire="binary")]
        return []

    def _end_states(self) -> None:
        now_s = self._clock_s()
        if any(state.until_s <= now_s for state in self._states):
            self._states = [state for state in self._states if state.until_s > now_s]
            self._settle()

    def _settle(self) -> None:
        self.busy = bool(self._armed or self._states or self._held)


def _concerns(fault: Fault, name: str, worker: str, instrument: str | None) -> bool:
    """True if it strikes here; instrument None: what it strikes is not of one instrument."""
    here = instrument is None or fault.instrument in (None, instrument)
    return here and (fault.name, fault.worker) == (name, worker)
