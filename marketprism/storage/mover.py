"""Windows from hot to cold: copied, verified, and removed from hot when their time there is over.

Whatever a round leaves undone, by an error or a kill, the next one finds as it is and does again:

1. A window of hot is due when its hour has been over for a while and its state is not the one that was verified.
2. Its rows are staged in cold and must have the same digest as those in hot. Late rows come in meanwhile? Next time.
3. They are put beside what cold holds of the window, each event once; the outcome is verified, then recorded.
4. After the retention, and only if cold still gives the recorded digest, hot drops the window: itself, while it
   inserts nothing, and only in the state that was verified.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from marketprism.storage.asking import HotAwayError, HotError
from marketprism.storage.engine import EngineError
from marketprism.storage.source import HotSource
from marketprism.storage.windows import Digest, Manifest, Window

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)
FAILURES = (HotError, EngineError, OSError)
ERRORS_KEPT = 1000
ROUND_S = 60
"""After so long, and at least one of them, what may be dropped waits for the next round."""


class ColdStore(Protocol):
    """Where windows go. Calls block; EngineError and OSError are raised."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    def check(self) -> None:
        """Whether it is there and can be written to."""
        ...

    def manifest(self, window: Window) -> Manifest | None:
        """What is known of a window; None if nothing."""
        ...

    def record(self, manifest: Manifest) -> None:
        """Note what is known of a window."""
        ...

    def digest(self, window: Window) -> Digest:
        """Of what it holds of a window now."""
        ...

    def stage(self, window: Window, pages: "Iterable[pa.Table]") -> Digest:
        """Write rows aside; returns the digest of what is there then."""
        ...

    def keep(self, window: Window, staged: Digest) -> Digest:
        """Add what was staged to the window; returns the verified digest of all it holds then."""
        ...

    def close(self) -> None:
        """End the connection."""
        ...


@dataclass(slots=True)
class Failure:
    """Something that went wrong, when (Unix time) and with which table ("": all)."""

    time_s: float
    table: str
    message: str


@dataclass(slots=True)
class Counts:
    """What happened since the start; times are Unix times, 0: not yet."""

    moved: int = 0
    failed: int = 0
    dropped: int = 0
    rows: int = 0
    last_run_s: float = 0
    last_success_s: float = 0
    failures: deque[Failure] = field(default_factory=lambda: deque(maxlen=ERRORS_KEPT))


class _StoppedError(Exception):
    """Told to stop in the middle of a window."""


class Mover:
    """Moves what is due, round after round."""

    def __init__(
        self,
        hot: HotSource,
        store: ColdStore,
        *,
        delay_s: float,
        retention_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`delay_s`: so long after its hour a window is moved; `retention_s`: so long after it hot keeps it."""
        self._hot = hot
        self._store = store
        self._delay_s = delay_s
        self._retention_s = retention_s
        self._clock = clock
        self._manifests: dict[Window, Manifest | None] = {}
        self._due: dict[Window, float] = {}  # and since when
        self._stopping = False
        self.turned_s = time.monotonic()
        """When it did its last step, by the monotonic clock."""
        self.counts = Counts()
        self.hot_trouble = "not asked yet"
        self.cold_trouble = ""
        self.failing: list[str] = []
        """What failed in the last round, window by window."""

    def stop(self) -> None:
        """Let a round end soon; from any thread."""
        self._stopping = True

    def round(self) -> None:
        """Move and drop what is due. What fails is counted, told and done again in the next round."""
        self.turned_s = time.monotonic()
        self.counts.last_run_s = self._clock()
        failing: list[str] = []
        self.hot_trouble = self.cold_trouble = ""
        try:
            self._round(failing)
        except _StoppedError:
            return
        except HotError as error:
            self.hot_trouble = self._failed("", error)
        except FAILURES as error:
            self.cold_trouble = self._failed("", error)
        self.failing = failing

    @property
    def backlog(self) -> Counter[str]:
        """How many windows of each table are due."""
        return Counter(w.table_name for w in tuple(self._due))

    def lag_minutes(self, table: str) -> float:
        """How long the oldest due window of a table has been so; 0 if there is none."""
        since = min(
            (since_s for w, since_s in tuple(self._due.items()) if w.table_name == table), default=None
        )
        return 0.0 if since is None else max(0.0, (self._clock() - since) / 60)

    def _round(self, failing: list[str]) -> None:
        """Raises what stands in the way of all windows."""
        held = dict(sorted(self._hot.windows().items()))
        self._store.check()
        self._manifests = {w: m for w, m in self._manifests.items() if w in held}
        now = self._clock()
        closed = [w for w in held if w.end_s + self._delay_s <= now]
        self._due = {
            w: max(w.end_s + self._delay_s, held[w].since_s)
            for w in closed
            if self._verified_state(w) != held[w].state
        }
        for window in tuple(self._due):
            self._attempt(window, self._move, held[window].state, failing)
        for window in closed:
            if window.end_s + self._retention_s <= now and self._verified_state(window) == held[window].state:
                self._attempt(window, self._drop, held[window].state, failing)
                if self._clock() - now > ROUND_S:
                    return  # others have become due meanwhile

    def _attempt(
        self, window: Window, step: Callable[[Window, str], None], state: str, failing: list[str]
    ) -> None:
        self.turned_s = time.monotonic()
        if self._stopping:
            raise _StoppedError
        try:
            step(window, state)
        except HotAwayError:
            raise
        except FAILURES as error:
            self.counts.failed += 1
            failing.append(f"{window}: {self._failed(window.table_name, error)}")

    def _move(self, window: Window, state: str) -> None:
        staged = self._store.stage(window, self._until_stopped(self._hot.pages(window)))
        if staged != self._hot.digest(window):
            log.info("%s: rows came in meanwhile", window)
            return
        kept = self._store.keep(window, staged)
        self._record(Manifest(window, kept, state))
        del self._due[window]
        self.counts.moved += 1
        self.counts.rows += staged.rows
        self.counts.last_success_s = self._clock()
        log.info("%s: %d rows in cold, verified", window, kept.rows, extra={"event": "moved"})

    def _drop(self, window: Window, state: str) -> None:
        manifest = self._manifest(window)
        assert manifest is not None
        found = self._store.digest(window)
        self._record(
            Manifest(window, manifest.digest, "")
        )  # whatever hot holds from now on is to be looked at
        if found != manifest.digest:
            raise EngineError(f"cold had {manifest.digest}, now {found}: hot keeps it, and it is moved again")
        if self._hot.drop(window, state):
            self.counts.dropped += 1
            log.info("%s: dropped from hot", window, extra={"event": "dropped"})

    def _until_stopped(self, pages: "Iterable[pa.Table]") -> "Iterator[pa.Table]":
        for page in pages:
            self.turned_s = time.monotonic()
            if self._stopping:
                raise _StoppedError
            yield page

    def _verified_state(self, window: Window) -> str | None:
        manifest = self._manifest(window)
        return manifest.state if manifest is not None else None

    def _manifest(self, window: Window) -> Manifest | None:
        if window not in self._manifests:
            self._manifests[window] = self._store.manifest(window)
        return self._manifests[window]

    def _record(self, manifest: Manifest) -> None:
        self._manifests.pop(manifest.window, None)
        self._store.record(manifest)
        self._manifests[manifest.window] = manifest

    def _failed(self, table: str, error: Exception) -> str:
        text = str(error) or type(error).__name__
        self.counts.failures.append(Failure(self._clock(), table, text))
        log.warning("%s: %s", table or "all", text, extra={"event": "failed"})
        return text
