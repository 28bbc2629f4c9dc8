"""One instrument's trades: each id once, and no id missing without a word.

Exchanges number an instrument's trades one by one, so that a jump is a hole. A hole is filled over REST; what
REST cannot give is told as a gap. Ids that fill a known hole are new, any other id at or below the last is a
repetition (a second connection, a resend, an overlapping page).

Nothing that lies behind a hole is published before the hole is filled or told: whoever sees the last trade that was
published knows that all before it is published or told. A worker that is killed while a hole is being fetched thus
leaves nothing behind that the next one would not see. Who waits for trades does not wait for long: see `_HELD_MAX_NS`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from marketprism.events import Event, Gap, GapCause
from marketprism.venues.base import MS, SECOND, Instrument, Out, elapsed

_PAGES_MAX = 100  # of REST backfill for one hole; more would starve everything else of its budget
_ATTEMPTS_MAX = 6  # after the first; with the pauses between them about a minute
_RETRY_MAX_NS = 30 * SECOND
_HOLES_MAX = 1_000  # looked for at a time
_ANEW_MS = 10_000
_SKEW_MS = 60_000  # a time further ahead of ours than this is not one
_HELD_MAX_NS = 10 * SECOND
"""After this the hole is told, so that the trades behind it can go on; what REST brings of it still comes, later."""


@dataclass(slots=True)
class Hole:
    """Ids `first` to `last`, both missing, between two trades whose times may be known."""

    first: int
    last: int
    cause: GapCause
    before_ms: int | None
    after_ms: int | None
    asked: tuple[int, int] = (0, 0)  # what the page under way was asked for
    pages: int = 0  # asked for so far
    attempts: int = 0  # failed since the last page that came
    told: bool = False  # while it is still being looked for

    @property
    def empty(self) -> bool:
        """Whether nothing of it is missing any more."""
        return self.first > self.last


class TradeLog:
    """Which trade ids have come, and which are being looked for."""

    def __init__(
        self, instrument: Instrument, backfill: Callable[[Instrument, int, int, Out], bool] | None
    ) -> None:
        """`backfill(instrument, first, last, out)` asks REST for these ids; False where it cannot."""
        self.instrument = instrument
        self.last_id: int | None = None
        self.last_ts_ms: int | None = None
        self.repeated = 0
        self._backfill = backfill
        self._holes: list[Hole] = []  # the first one is being asked for
        self.failed_ns: int | None = None  # when REST failed, until it is asked again
        self._cause: GapCause = "sequence"  # of the next jump
        self.held: list[tuple[int, Event]] = []  # trades and gaps, by their first id: a hole lies before them
        self.held_ns: int | None = None  # since when; None: new trades are published at once

    def hold(self, first_id: int, event: Event) -> None:
        """Publish this trade when nothing is missing before it any more."""
        self.held.append((first_id, event))

    def resume(self, last_id: int, last_ts_ms: int | None) -> None:
        """The last trade published by an earlier run: what lies between it and the next one is missing."""
        self.last_id, self.last_ts_ms = last_id, last_ts_ms
        self._cause = "restart"

    def disconnected(self) -> None:
        """The next jump, if any, is explained by a lost connection."""
        self._cause = "disconnect"

    def accept(self, first_id: int, last_id: int, ts_ms: int, now_ns: int, out: Out) -> bool:
        """Whether a trade with these ids (first and last of what it sums up) is new. Notes holes."""
        newest = self.last_id
        if newest is None or last_id > newest:
            if newest is not None and first_id > newest + 1:
                hole = Hole(newest + 1, first_id - 1, self._cause, self.last_ts_ms, ts_ms)
                self._open(hole, now_ns, out)
            self.last_id, self.last_ts_ms = last_id, ts_ms
            self._cause = "sequence"
            return True
        for hole in self._holes:
            if hole.first <= last_id <= hole.last:
                self._fill(hole, first_id, last_id, ts_ms)
                return True
        if self.last_ts_ms is not None and self.last_ts_ms + _ANEW_MS < ts_ms < now_ns // MS + _SKEW_MS:
            # No repetition is that much later than the newest: the numbers themselves have begun anew.
            self._begin_anew(first_id, ts_ms, now_ns, out)
            self._take(last_id, ts_ms)
            return True
        self.repeated += 1
        return False

    def answered(self, covered: tuple[int, int] | None, now_ns: int, out: Out) -> None:
        """A page of backfill was taken in. `covered`: its lowest and highest id; None for an empty page."""
        if not self._holes:
            return
        hole = self._holes[0]
        hole.attempts = 0
        if covered is not None:
            # Numbers within the page that it does not list were never given out.
            low, high = covered
            if low <= hole.first:
                hole.first = max(hole.first, high + 1)
            if high >= hole.last:
                hole.last = min(hole.last, low - 1)
            self._holes[1:] = [h for h in self._holes[1:] if h.first < low or h.last > high]
        stuck = (hole.first, hole.last) == hole.asked
        if stuck or hole.pages >= _PAGES_MAX:
            self._close(hole, now_ns)
        self._ask(now_ns, out)

    def failed(self, now_ns: int, out: Out, *, final: bool = False) -> None:
        """REST refused or did not answer; `final`: it never will."""
        if not self._holes:
            return
        hole = self._holes[0]
        hole.attempts += 1
        if final or hole.attempts > _ATTEMPTS_MAX:
            self._close(hole, now_ns)
            self._ask(now_ns, out)
        else:
            self.failed_ns = now_ns

    def tick(self, now_ns: int, out: Out) -> None:
        """Ask again, some time after a failure. (An answer that takes long is waited for: each request has one.)"""
        if self.failed_ns is not None and self._holes:
            pause_ns = min(SECOND << (self._holes[0].attempts - 1), _RETRY_MAX_NS)
            if elapsed(now_ns, self.failed_ns, pause_ns):
                self._ask(now_ns, out)
        if self.held_ns is not None and elapsed(now_ns, self.held_ns, _HELD_MAX_NS):
            self.let_go(now_ns, out)

    def let_go(self, now_ns: int, out: Out) -> None:
        """Hold trades no longer: what is missing before them is told, and looked for all the same."""
        for hole in self._holes:
            self._tell(hole, now_ns)
        self._release(out)

    def close(self, now_ns: int, out: Out) -> None:
        """The end: what is still missing is told."""
        while self._holes:
            self._close(self._holes[0], now_ns)
        self._release(out)

    def _release(self, out: Out) -> None:
        """Publish in order what is held and has nothing missing before it."""
        barrier = next((h.first for h in self._holes if not (h.told or h.empty)), None)
        ready = [one for one in self.held if barrier is None or one[0] < barrier]
        self.held = [] if barrier is None else [one for one in self.held if one[0] >= barrier]
        if barrier is None:
            self.held_ns = None
        out += (event for _, event in sorted(ready, key=lambda one: one[0]))

    def _take(self, last_id: int, ts_ms: int) -> None:
        self.last_id, self.last_ts_ms = last_id, ts_ms
        self._cause = "sequence"

    def _open(self, hole: Hole, now_ns: int, out: Out) -> None:
        self._holes.append(hole)
        if self.held_ns is None:
            self.held_ns = now_ns
        if len(self._holes) > _HOLES_MAX:
            self._close(self._holes[1], now_ns)  # the first one is being asked for
        if len(self._holes) == 1:
            self._ask(now_ns, out)

    def _ask(self, now_ns: int, out: Out) -> None:
        """Ask for the first hole; one that cannot be asked for is told. Publish what need not be held any more."""
        self.failed_ns = None
        while self._holes:
            hole = self._holes[0]
            if hole.empty:
                self._holes.pop(0)
                continue
            hole.asked = hole.first, hole.last
            hole.pages += 1
            if self._backfill is not None and self._backfill(self.instrument, hole.first, hole.last, out):
                break
            self._close(hole, now_ns)
        self._release(out)

    def _fill(self, hole: Hole, first_id: int, last_id: int, ts_ms: int) -> None:
        if first_id <= hole.first:
            hole.first = last_id + 1
            hole.before_ms = ts_ms
            if hole.empty and hole is not self._holes[0]:
                self._holes.remove(hole)
        else:
            # Filled from the middle (a second connection): keep looking for what lies before it.
            after = replace(hole, first=last_id + 1, before_ms=ts_ms, asked=(0, 0), attempts=0)
            hole.last, hole.after_ms = first_id - 1, ts_ms
            if not after.empty:
                self._holes.insert(self._holes.index(hole) + 1, after)

    def _begin_anew(self, first_id: int, ts_ms: int, now_ns: int, out: Out) -> None:
        """Tell what cannot be looked for any more, and how far the old numbers went."""
        self.close(now_ns, out)
        gap = self._gap("sequence", self.last_id, first_id, self.last_ts_ms, ts_ms, now_ns)
        gap.detail = "the exchange's numbers began anew"
        out.append(self._event(gap, f"trade:anew:{self.last_id}:{first_id}:{ts_ms}"))

    def _close(self, hole: Hole, now_ns: int) -> None:
        """Stop looking, and tell what is still missing."""
        self._holes.remove(hole)
        self._tell(hole, now_ns)

    def _tell(self, hole: Hole, now_ns: int) -> None:
        """Have it told, in its place, that this hole is one; once."""
        if hole.told or hole.empty:
            return
        hole.told = True
        gap = self._gap(hole.cause, hole.first - 1, hole.last + 1, hole.before_ms, hole.after_ms, now_ns)
        gap.missing = hole.last - hole.first + 1
        self.hold(hole.first, self._event(gap, f"trade:{hole.first}-{hole.last}"))

    def _gap(
        self,
        cause: GapCause,
        before: int | None,
        after: int,
        before_ms: int | None,
        after_ms: int | None,
        now_ns: int,
    ) -> Gap:
        i = self.instrument
        return Gap(
            exchange=i.exchange,
            market_type=i.market_type,
            symbol=i.symbol,
            instrument_id=i.id,
            ts_ms=after_ms,
            collected_ts_ms=now_ns // MS,
            affected_data_type="trade",
            cause=cause,
            last_id_before=str(before),
            first_id_after=str(after),
            last_ts_ms_before=before_ms,
            first_ts_ms_after=after_ms,
        )

    def _event(self, gap: Gap, identity: str) -> Event:
        i = self.instrument
        return Event.of(i.subject("gap"), i.event_id("gap", identity), gap)
