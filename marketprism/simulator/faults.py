"""Faults on demand: the table of their names, what is armed, and the one place every outgoing frame passes."""

from dataclasses import dataclass
from typing import Literal

from marketprism.simulator.face import Connection, Outgoing
from marketprism.simulator.options import WORKERS, SimulatorError

FAULTS: dict[str, str] = {
    "drop_next_book_update": "the next book update is lost on its way: a sequence gap",
    "drop_next_trade": "the next trade message is lost on its way",
    "disconnect": "all websockets of the worker are aborted",
    "silence": "open websockets of the worker stay open and never get anything again",
    "okx_reset": "the next `books` update restarts the sequence at a smaller seqId (maintenance)",
    "cross": "the next book update carries a bid above the best ask",
    "rate_limit": "the next REST request is answered 429 with Retry-After 1",
    "notice": "the exchange announces maintenance: serverShutdown, notice 64008 or platform_state",
}

_FRAME_FAULTS: dict[str, Literal["book", "trade"]] = {
    "drop_next_book_update": "book",
    "drop_next_trade": "trade",
}


@dataclass(slots=True)
class _Armed:
    name: str
    worker: str
    instrument: str | None


class FaultBoard:
    """One-shot faults waiting for their moment."""

    def __init__(self) -> None:
        self._armed: list[_Armed] = []
        self._muted: set[Connection] = set()
        self.fired: dict[str, int] = {}

    def arm(self, name: str, worker: str, instrument: str | None = None) -> None:
        """Let a fault happen once, at its next chance. Raises SimulatorError for an unknown name or worker."""
        if name not in FAULTS:
            raise SimulatorError(f"unknown fault {name!r}: expected one of {', '.join(FAULTS)}")
        if worker not in WORKERS:
            raise SimulatorError(f"unknown worker {worker!r}: expected one of {', '.join(WORKERS)}")
        if name == "okx_reset" and not worker.startswith("okx"):
            raise SimulatorError(f"okx_reset: expected okx_spot or okx_derivatives, got {worker!r}")
        self._armed.append(_Armed(name, worker, instrument))

    def take(self, name: str, worker: str, instrument: str | None = None) -> bool:
        """True, once, if the fault is armed for this worker and instrument."""
        for index, armed in enumerate(self._armed):
            if (armed.name, armed.worker) == (name, worker) and armed.instrument in (None, instrument):
                del self._armed[index]
                self.fired[name] = self.fired.get(name, 0) + 1
                return True
        return False

    def mute(self, connection: Connection) -> None:
        """Nothing more is sent on this connection; it stays open."""
        self._muted.add(connection)

    def is_muted(self, connection: Connection) -> bool:
        """True after mute()."""
        return connection in self._muted

    def forget(self, connection: Connection) -> None:
        """The connection is gone."""
        self._muted.discard(connection)

    def through(self, message: Outgoing) -> list[Outgoing]:
        """What becomes of one outgoing message: [] loses it, [message] sends it, twice sends it twice."""
        if self._armed:
            for name, kind in _FRAME_FAULTS.items():
                if message.kind == kind and self.take(name, message.worker, message.instrument):
                    return []
        if self._muted and not self._muted.isdisjoint(message.connections):
            heard = tuple(one for one in message.connections if one not in self._muted)
            return [message.to(heard)] if heard else []
        return [message]
