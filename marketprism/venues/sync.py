"""One instrument's book between the wire and the world: splice, chain, gap, publish.

A book is syncing or live, and only a live one publishes. Exchanges differ in how they number their updates
(`Numbering`) and in how a book is begun anew (`resync`); everything else is the same for all and stands here.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

import msgspec

from marketprism.book import Book, Buffer
from marketprism.events import PLACE, Event, Gap, GapCause, OrderBook, OrderBookDelta, as_sent, pattern
from marketprism.venues.base import MS, SECOND, Instrument, Note, Options, Out, elapsed, excerpt

_RETRY_FIRST_NS = SECOND
_RETRY_MAX_NS = 30 * SECOND
_ANSWER_NS = 15 * SECOND  # how long an asked-for snapshot may take
_AHEAD_MAX = 2_000  # updates held of a connection that runs ahead of the other …
_AHEAD_NS = 10 * SECOND  # … and for how long
_HISTORY = 512  # applied updates remembered, to tell a repeated one from a gap
NO_LEVELS = b"[]"
_QUIET_NS = 5 * SECOND
_RECHECK_NS = 10 * SECOND
_GROWTH_MAX = 20_000  # levels of a side, beyond which it is fetched afresh
# An update this much later than the last one is no repetition, whatever its id: the ids began anew.
_ANEW_MS = 10_000


class Update(msgspec.Struct, gc=False):
    """A message about a book, in common terms. Ids are None where the exchange sends none.

    An exchange's own message may be one, with whatever else it says: then it is decoded in one step.
    """

    bids: Buffer  # JSON, as sent
    asks: Buffer
    ts_ms: int | None
    last_id: int | None
    first_id: int | None = None
    prev_id: int | None = None
    checksum: int | None = None  # None: nothing to compare with


@dataclass(frozen=True, slots=True)
class Numbering:
    """How an exchange numbers a book's updates."""

    # Does this update follow the one with id `last`?
    follows: Callable[[Update, int | None], bool]
    # Is it the first to apply after a REST snapshot with id `last`?
    splices: Callable[[Update, int], bool]
    # Does a REST snapshot with id `last` already hold it?
    contained: Callable[[Update, int], bool]
    # Ids only grow, so a smaller one is a repetition. (OKX may start again from a smaller one.)
    monotone: bool = True


class BookSync:
    """A book, the id it hangs on, and what it publishes."""

    def __init__(
        self,
        instrument: Instrument,
        options: Options,
        numbering: Numbering,
        resync: Callable[["BookSync", int, Out], bool],
    ) -> None:
        """`resync(book, now_ns, out)` asks the exchange for a whole book, by whatever way it offers.

        It returns whether an answer is certain, as it is for a REST request, however long that may take.
        """
        self.describe(instrument)
        self.book = Book()
        self.live = False
        self.last_id: int | None = None
        self.last_ts_ms: int | None = None
        self.last_checksum: int | None = None
        self.heard_ns = 0
        self.resyncs: dict[str, int] = {}
        self._options = options
        self._numbering = numbering
        self._monotone, self._next = numbering.monotone, numbering.follows  # asked of each update
        self._resync = resync
        self._splicing = False  # the next update is the first one after a REST snapshot
        self._pending: deque[tuple[str, Update]] = deque(maxlen=options.book_buffer)
        self._asked_ns: int | None = None
        self._answer_certain = False
        self._pause_ns = _RETRY_FIRST_NS  # before the next attempt but one
        self._retry: tuple[int, int] | None = None  # since when, how long to wait before asking again
        self._lost_id: int | None = None  # how far the stream was when the book was lost
        self._refreshing = False
        self._fresh: tuple[Update, bool, bool] | None = None
        self._checked_ns = 0
        self._ahead: dict[str, deque[Update]] = {}  # connections that run ahead of what is applied
        self._ahead_ns = 0  # since when there is one
        self.conns: set[str] = set()
        self._numbered = True
        self._source = ""  # the connection that carries a book without ids
        self._recent: deque[tuple[int | None, int | None]] = deque(maxlen=_HISTORY)
        self._base: tuple[int | None, int | None] = None, None  # id and time of the whole book it began with
        self._shown: object = None  # which state the last `orderbook` event told
        self._show_after_ns = options.snapshot_interval_ms * MS
        # Of the update before: which of each interval it was in, and from when to when neither changes.
        self._slot: int | None = None
        self._checkpoint: int | None = None
        self._same_from_ms, self._same_to_ms = 0, -1
        self._owed: Gap | None = None  # a hole to be told with the next snapshot (restart)
        self.watch: Callable[[BookSync], None] | None = None  # told of each update that was applied

    def describe(self, instrument: Instrument) -> None:
        """This is the instrument, as far as is known now."""
        self.instrument = instrument
        self._subject = instrument.subject("orderbook_delta")
        self._ids = instrument.event_id("orderbook_delta", "")  # what all ids begin with
        self._pattern = pattern(
            OrderBookDelta(
                exchange=instrument.exchange,
                market_type=instrument.market_type,
                symbol=instrument.symbol,
                instrument_id=instrument.id,
                ts_ms=PLACE,
                collected_ts_ms=PLACE,
                update_type=PLACE,
                bids=PLACE,
                asks=PLACE,
                first_update_id=PLACE,
                last_update_id=PLACE,
                prev_update_id=PLACE,
                quantity_unit=instrument.unit,
                checksum=PLACE,
                exact_from=PLACE,
                exact_to=PLACE,
            )
        )

    # -- connections -------------------------------------------------------------------------------------------

    def joined(self, conn: str, now_ns: int) -> None:
        """A connection has subscribed to this book."""
        self.conns.add(conn)
        if not self.live and self._asked_ns is None:
            # Without a word from the stream until then, ask for the book all the same.
            self._retry = now_ns, _QUIET_NS

    @property
    def numbered(self) -> bool:
        """Whether the stream numbers this book's updates; taken for granted until one without a number comes."""
        return self._numbered

    def left(self, conn: str, now_ns: int, out: Out) -> None:
        """A connection is gone. Without another one the book is lost."""
        if conn not in self.conns:
            return
        self.conns.discard(conn)
        self._ahead.pop(conn, None)
        if self.live and self.last_id is None and conn == self._source:
            self.lose("disconnect", now_ns, out, ask=bool(self.conns))
        if not self.conns:
            self._asked_ns = self._retry = None  # asked again when connected again
            self._pause_ns = _RETRY_FIRST_NS
            self._pending.clear()
            if self.live:
                self.lose("disconnect", now_ns, out, ask=False)
            self._lost_id = None
        elif self.live and len(self._ahead) == len(self.conns):
            self._give_up_waiting(now_ns, out)

    def abandon(self) -> None:
        """Nobody wants this book any more."""
        self.live = False
        self.conns.clear()
        self._asked_ns = self._retry = None

    # -- from the wire -----------------------------------------------------------------------------------------

    def receive(self, update: Update, conn: str, now_ns: int, out: Out) -> None:
        """An update from the stream."""
        self.heard_ns = now_ns
        if (
            self.live
            and update.last_id is not None
            and not (self._ahead or self._splicing)
            and self._next(update, self.last_id)
        ):
            self._take(update, now_ns, out)  # nearly always
        else:
            self._receive(update, conn, now_ns, out)

    def _receive(self, update: Update, conn: str, now_ns: int, out: Out) -> None:
        if update.last_id is None:
            self._numbered = False
            if conn != self._source and self.live:
                return
        if not self.live:
            self._pending.append((conn, update))
            if self._asked_ns is None and not self._backing_off:
                self._ask(now_ns, out)
            return
        ahead = self._ahead.get(conn)
        if ahead is not None:
            ahead.append(update)
            if len(ahead) > _AHEAD_MAX:
                self._give_up_waiting(now_ns, out)
        elif self._follows(update):
            self._take(update, now_ns, out)
            if self._ahead:
                self._catch_up(now_ns, out)
        elif not self._repeated(update):
            if self.conns - self._ahead.keys() - {conn}:
                # The other connection may still deliver what is missing here.
                self._ahead_ns = self._ahead_ns if self._ahead else now_ns
                self._ahead[conn] = deque([update])
            else:
                self._hole(update, conn, now_ns, out)

    def snapshot(self, snap: Update, conn: str, now_ns: int, out: Out) -> None:
        """A whole book from the stream itself."""
        self.heard_ns = now_ns
        if self.live:
            if (len(self.conns) > 1 and conn != self._source) or (
                snap.last_id and snap.last_id == self.last_id
            ):
                return  # another connection carries the book on
            self._lost("sequence", out, snap, "the exchange began the book anew")
        self._pending.clear()
        self._source = conn
        self._begin(snap, cut_bids=False, cut_asks=False, now_ns=now_ns, out=out)

    def rest_snapshot(self, snap: Update, *, cut_bids: bool, cut_asks: bool, now_ns: int, out: Out) -> None:
        """A whole book from REST, to be spliced into the stream. `cut_…`: it holds only the best of that side."""
        assert snap.last_id is not None
        asked, self._asked_ns = self._asked_ns, None
        if self.live:
            if self._refreshing:
                self._fresh = (snap, cut_bids, cut_asks)
                self._rebase(now_ns, out)
            return
        if not self.conns or (asked is None and not self._pending):
            return  # asked for by a connection that is gone
        last_id = snap.last_id
        pending, outdated = self._since_reset(snap)
        later = [(c, u) for c, u in pending if not self._holds(snap, u)]
        if not later and self._numbering.monotone and last_id < (self._lost_id or 0):
            outdated = True  # a consumer's next update would not follow it
        if outdated or (later and not any(self._numbering.splices(u, last_id) for _, u in later)):
            text = f"REST snapshot {last_id} does not meet the {len(pending)} updates held; asking again"
            out.append(Note("info", "splice", text, self.instrument.id))
            self._retry_later(now_ns)
            return
        self._pending.clear()
        self._begin(snap, cut_bids=cut_bids, cut_asks=cut_asks, now_ns=now_ns, out=out, splicing=True)
        for conn, update in later:
            self.receive(update, conn, now_ns, out)

    def _holds(self, snap: Update, update: Update) -> bool:
        """Whether a REST snapshot holds this update already."""
        assert snap.last_id is not None
        if self._numbering.contained(update, snap.last_id):
            return True
        # Where ids may begin anew, a greater one that is so much older is from before.
        older = bool(snap.ts_ms and update.ts_ms and update.ts_ms + _ANEW_MS < snap.ts_ms)
        return older and not self._numbering.monotone

    def _since_reset(self, snap: Update) -> tuple[list[tuple[str, Update]], bool]:
        """What is pending, and whether the snapshot is from before the ids began anew.

        Where they may, what came before that is left out: it would never meet a new id.
        """
        pending = list(self._pending)
        if self._numbering.monotone:
            return pending, False
        start = max((n for n, (_, u) in enumerate(pending, 1) if _resets(u)), default=0)
        reset_ms = pending[start - 1][1].ts_ms if start else None
        return pending[start:], bool(reset_ms and snap.ts_ms and snap.ts_ms < reset_ms)

    def failed(self, now_ns: int) -> None:
        """The whole book that was asked for did not come."""
        self._asked_ns = None
        self._refreshing = False
        if not self.live:
            self._retry_later(now_ns)

    def lose(self, cause: GapCause, now_ns: int, out: Out, *, detail: str = "", ask: bool = True) -> None:
        """The book can no longer be trusted: tell the gap, drop to syncing, ask for a new one."""
        if not self.live:
            return
        self._lost(cause, out, None, detail)
        if ask:
            self._ask(now_ns, out)

    # -- time --------------------------------------------------------------------------------------------------

    def tick(self, now_ns: int, out: Out) -> int:
        """Retry what is due, show a book that has gone quiet, refresh one whose window is nearly left.

        Returns when this is next due, as far as can be told: what starts a timer later on starts one of at least a
        second, or of the snapshot interval.
        """
        if not self.live:
            lost = self._asked_ns is not None and not self._answer_certain
            if lost and elapsed(now_ns, self._asked_ns or 0, _ANSWER_NS):
                self._asked_ns = None
                self._retry_later(now_ns)
            if self._retry is not None and elapsed(now_ns, *self._retry) and self.conns:
                self._ask(now_ns, out)
            return now_ns
        if self._ahead and elapsed(now_ns, self._ahead_ns, _AHEAD_NS):
            self._give_up_waiting(now_ns, out)
            return now_ns
        # `elapsed` without its call: this is asked of every book several times a second.
        show_ns = None
        if self._shown != (self.last_id, self.last_ts_ms):
            if 0 <= now_ns - self.heard_ns < self._show_after_ns:
                show_ns = self.heard_ns + self._show_after_ns
            else:
                self._show(now_ns, out)
        if not 0 <= now_ns - self._checked_ns < _RECHECK_NS:
            self._checked_ns = now_ns
            if self._needs_refresh():
                self._refreshing = True
                self._pending.clear()
                self._ask(now_ns, out)
        due_ns = self._checked_ns + _RECHECK_NS
        if self._ahead:
            due_ns = min(due_ns, self._ahead_ns + _AHEAD_NS)
        return due_ns if show_ns is None else min(due_ns, show_ns)

    def republish(self, now_ns: int, out: Out) -> None:
        """Publish the whole book again: a consumer may have missed changes."""
        if self.live:
            self._publish_snapshot(now_ns, out)

    def resume(self, last_id: int | None = None, last_ts_ms: int | None = None) -> None:
        """What the stream held when this collector started, None: nothing that is known.

        The hole since then is told with the first book, even where none can be seen from here: another collector may
        be publishing, so whoever drives this has to ask the stream.
        """
        self._owed = self._gap("restart", None, "", last_id, last_ts_ms)

    # -- chain -------------------------------------------------------------------------------------------------

    def _follows(self, update: Update) -> bool:
        if self._splicing:
            assert self.last_id is not None
            if self._numbering.splices(update, self.last_id):
                return True
            if self._numbering.monotone:
                return False
        return self._numbering.follows(update, self.last_id)

    def _repeated(self, update: Update) -> bool:
        if update.last_id is None or self.last_id is None:
            return False
        if self._splicing or self._numbering.monotone:
            anew = (update.ts_ms or 0) > (self.last_ts_ms or update.ts_ms or 0) + _ANEW_MS
            return not anew and self._numbering.contained(update, self.last_id)
        base_id, base_ms = self._base
        if base_id and base_ms and update.last_id <= base_id and (update.ts_ms or 0) <= base_ms:
            return True
        if update.prev_id == update.last_id:  # nothing changed for a minute, on a connection that is behind
            return any(update.last_id == last for _, last in self._recent)
        return (update.prev_id, update.last_id) in self._recent

    def _take(self, update: Update, now_ns: int, out: Out) -> None:
        """Apply one update that follows, and publish it."""
        book, ts_ms = self.book, update.ts_ms
        if ts_ms is not None and not self._same_from_ms <= ts_ms < self._same_to_ms:
            self._interval(ts_ms, now_ns, out)
        try:
            bids, asks = book.apply(update.bids, update.asks)
        except ValueError as e:
            text = f"change of a book refused: {excerpt(e)}"
            out.append(Note("warning", "malformed", text, self.instrument.id))
            self._defect("malformed", update, now_ns, out, excerpt(e))
            return
        last_id = update.last_id
        if last_id == update.prev_id and last_id is not None and bids == asks == NO_LEVELS:
            return  # OKX: nothing changed for a minute
        if book.crossed:
            self._defect("crossed", update, now_ns, out)
            return
        checksum = update.checksum
        if checksum is not None and checksum != book.checksum():
            self._defect("checksum", update, now_ns, out)
            return
        self._splicing = False
        self.last_id = last_id
        self.last_ts_ms = ts_ms
        self.last_checksum = checksum
        if not self._monotone:
            self._recent.append((update.prev_id, last_id))
        self._publish_change(update, bids, asks, now_ns // MS, out)
        if self._refreshing:
            self._pending.append(("", update))
            self._rebase(now_ns, out)
        if self.watch is not None:
            self.watch(self)

    def _defect(self, cause: GapCause, update: Update, now_ns: int, out: Out, detail: str = "") -> None:
        self._lost(cause, out, update, detail)
        self._ask(now_ns, out)

    def _hole(self, update: Update, conn: str, now_ns: int, out: Out) -> None:
        self._lost("sequence", out, update)
        self._pending.append((conn, update))
        self._ask(now_ns, out)

    def _catch_up(self, now_ns: int, out: Out) -> None:
        """Let the connections that ran ahead join in, now that more is applied."""
        for conn, ahead in list(self._ahead.items()):
            while ahead and self.live and (self._follows(ahead[0]) or self._repeated(ahead[0])):
                update = ahead.popleft()
                if self._follows(update):
                    self._take(update, now_ns, out)
            if not ahead:
                self._ahead.pop(conn, None)

    def _give_up_waiting(self, now_ns: int, out: Out) -> None:
        """No connection can deliver what is missing: a hole after all."""
        conn, ahead = max(self._ahead.items(), key=lambda item: len(item[1]))
        self._ahead.clear()
        self._lost("sequence", out, ahead[0])
        self._pending.extend((conn, u) for u in ahead)
        self._ask(now_ns, out)

    def _lost(self, cause: GapCause, out: Out, update: Update | None, detail: str = "") -> None:
        self.live = False
        self._refreshing = False
        self._fresh = None
        self._ahead.clear()
        self._pending.clear()
        self._lost_id = update.last_id if update else self.last_id
        self.resyncs[cause] = self.resyncs.get(cause, 0) + 1
        gap = self._gap(cause, update, detail, self.last_id, self.last_ts_ms)
        identity = f"orderbook_delta:{gap.last_id_before}:{gap.first_id_after}:{gap.last_ts_ms_before}"
        out.append(Event.of(self.instrument.subject("gap"), self.instrument.event_id("gap", identity), gap))

    # -- a whole book ------------------------------------------------------------------------------------------

    def _begin(
        self, snap: Update, *, cut_bids: bool, cut_asks: bool, now_ns: int, out: Out, splicing: bool = False
    ) -> None:
        try:
            self.book.load(snap.bids, snap.asks, cut_bids=cut_bids, cut_asks=cut_asks)
        except ValueError as e:
            text = f"snapshot refused: {excerpt(e)}"
            out.append(Note("warning", "malformed", text, self.instrument.id))
            self._retry_later(now_ns)
            return
        wrong = "crossed" if self.book.crossed else ""
        if snap.checksum is not None and snap.checksum != self.book.checksum():
            wrong = "contradicts its checksum"
        if wrong:
            out.append(
                Note("warning", "snapshot_refused", f"snapshot {snap.last_id}: {wrong}", self.instrument.id)
            )
            self._retry_later(now_ns)
            return
        self.last_id, self.last_ts_ms, self.last_checksum = snap.last_id, snap.ts_ms, snap.checksum
        self.live = True
        self._splicing = splicing
        self._asked_ns = self._retry = self._lost_id = None
        self._pause_ns = _RETRY_FIRST_NS
        self._recent.clear()
        self._recent.append((None, snap.last_id))
        self._base = snap.last_id, snap.ts_ms
        self._checked_ns = self.heard_ns = now_ns
        self._settle(now_ns, out)
        self._publish_snapshot(now_ns, out)

    def _settle(self, now_ns: int, out: Out) -> None:
        """Tell the hole between what the stream held at the start and this first book."""
        gap, self._owed = self._owed, None
        if gap is None or self.last_id is None:
            return
        gap.first_id_after, gap.first_ts_ms_after = str(self.last_id), self.last_ts_ms
        gap.collected_ts_ms = now_ns // MS
        identity = f"orderbook_delta:{gap.last_id_before}:{gap.first_id_after}"
        out.append(Event.of(self.instrument.subject("gap"), self.instrument.event_id("gap", identity), gap))

    def _rebase(self, now_ns: int, out: Out) -> None:
        """Replace a live book by a fresh snapshot plus what the stream has said since."""
        if self._fresh is None:
            return
        snap, cut_bids, cut_asks = self._fresh
        if snap.last_id is None or self.last_id is None or snap.last_id > self.last_id:
            return  # REST is ahead of the stream: wait until the stream gets there
        self._refreshing = False
        self._fresh = None
        fresh = BookSync(self.instrument, self._options, self._numbering, lambda *_: True)
        fresh.conns = {""}
        fresh._asked_ns = now_ns
        fresh._pending.extend(self._pending)
        self._pending.clear()
        fresh.rest_snapshot(snap, cut_bids=cut_bids, cut_asks=cut_asks, now_ns=now_ns, out=[])
        # A snapshot older than the first update kept is of no use; the next check asks again.
        if fresh.live and fresh.last_id == self.last_id:
            self.book = fresh.book
            self._publish_snapshot(now_ns, out)

    def _needs_refresh(self) -> bool:
        book = self.book
        bids, asks = book.known_levels()
        least = self._options.snapshot_depth
        return bool(
            (book.exact_from and bids < least)
            or (book.exact_to and asks < least)
            or max(book.sizes()) > _GROWTH_MAX
        )

    def _ask(self, now_ns: int, out: Out) -> None:
        self._asked_ns = now_ns
        self._retry = None
        self._answer_certain = self._resync(self, now_ns, out)

    @property
    def _backing_off(self) -> bool:
        return self._pause_ns > _RETRY_FIRST_NS

    def _retry_later(self, now_ns: int) -> None:
        self._retry = now_ns, self._pause_ns
        self._pause_ns = min(2 * self._pause_ns, _RETRY_MAX_NS)

    # -- to the world ------------------------------------------------------------------------------------------

    def _interval(self, ts_ms: int, now_ns: int, out: Out) -> None:
        """Before an update of a new interval: show the book, and publish it whole, as the last interval left it.

        Intervals are counted in the exchange's time, so that two collectors show the same book.
        """
        slot_ms, checkpoint_ms = self._options.snapshot_interval_ms, self._options.checkpoint_interval_ms
        slot, checkpoint = ts_ms // slot_ms, ts_ms // checkpoint_ms
        self._same_from_ms = max(slot * slot_ms, checkpoint * checkpoint_ms)
        self._same_to_ms = min((slot + 1) * slot_ms, (checkpoint + 1) * checkpoint_ms)
        if slot != self._slot:
            self._slot = slot
            if self._shown != self._state:
                self._show(now_ns, out)
        if checkpoint != self._checkpoint:
            if self._checkpoint is not None:
                self._publish_snapshot(now_ns, out)
            self._checkpoint = checkpoint

    @property
    def _state(self) -> tuple[int | None, int | None]:
        return self.last_id, self.last_ts_ms

    def _show(self, now_ns: int, out: Out) -> None:
        """Publish the top as an `orderbook` event."""
        self._shown = self._state
        top = self.book.top(self._options.snapshot_depth)
        out.append(order_book(self.instrument, *top, self.last_id, self.last_ts_ms, now_ns))

    def _publish_snapshot(self, now_ns: int, out: Out) -> None:
        """The whole book."""
        bids, asks = self.book.all()
        exact_from, exact_to = self.book.exact_from, self.book.exact_to
        (last_id, ts_ms), checksum, now_ms = self._state, self.last_checksum, now_ns // MS
        payload = self._pattern(
            ts_ms, now_ms, "snapshot", bids, asks, None, last_id, None, checksum, exact_from, exact_to
        )
        identity = f"snapshot:{ts_ms}:{checksum}" if last_id is None else f"snapshot:{last_id}:{ts_ms}"
        out.append(Event(self._subject, self._ids + identity, OrderBookDelta, ts_ms, now_ms, payload))

    def _publish_change(self, u: Update, bids: bytes, asks: bytes, now_ms: int, out: Out) -> None:
        ts_ms, first_id, last_id, prev_id = u.ts_ms, u.first_id, u.last_id, u.prev_id
        payload = self._pattern(
            ts_ms, now_ms, "delta", bids, asks, first_id, last_id, prev_id, u.checksum, None, None
        )
        if last_id is None:
            event_id = f"{self._ids}delta:{ts_ms}:{u.checksum}"
        elif self._monotone:
            event_id = f"{self._ids}{first_id or prev_id}-{last_id}"
        else:
            # The time tells OKX's numbers apart that come again after a reset.
            event_id = f"{self._ids}{first_id or prev_id}-{last_id}:{ts_ms}"
        out.append(Event(self._subject, event_id, OrderBookDelta, ts_ms, now_ms, payload))

    def _gap(
        self, cause: GapCause, update: Update | None, detail: str, last_id: int | None, last_ts_ms: int | None
    ) -> Gap:
        i = self.instrument
        first = None if update is None else (update.first_id or update.last_id)
        return Gap(
            exchange=i.exchange,
            market_type=i.market_type,
            symbol=i.symbol,
            instrument_id=i.id,
            ts_ms=update.ts_ms if update and update.ts_ms else last_ts_ms,
            collected_ts_ms=self.heard_ns // MS,
            affected_data_type="orderbook_delta",
            cause=cause,
            last_id_before=None if last_id is None else str(last_id),
            first_id_after=None if first is None else str(first),
            last_ts_ms_before=last_ts_ms,
            first_ts_ms_after=update.ts_ms if update else None,
            detail=detail,
        )


def _resets(update: Update) -> bool:
    """Whether ids go on from a smaller one after this update (OKX, after maintenance)."""
    return bool(update.prev_id and update.last_id is not None and update.last_id < update.prev_id)


def order_book(
    instrument: Instrument,
    bids: bytes,
    asks: bytes,
    n_bids: int,
    n_asks: int,
    last_id: int | None,
    ts_ms: int | None,
    now_ns: int,
) -> Event:
    """An `orderbook` event."""
    data = OrderBook(
        exchange=instrument.exchange,
        market_type=instrument.market_type,
        symbol=instrument.symbol,
        instrument_id=instrument.id,
        ts_ms=ts_ms,
        collected_ts_ms=now_ns // MS,
        bids=as_sent(bids),
        asks=as_sent(asks),
        depth_levels=max(n_bids, n_asks),
        last_update_id=last_id,
        quantity_unit=instrument.unit,
        normalized_symbol=instrument.symbol,
        standardized_at=iso(now_ns // MS),
    )
    return Event.of(
        instrument.subject("orderbook"), instrument.event_id("orderbook", f"{last_id}:{ts_ms}"), data
    )


def iso(ts_ms: int) -> str:
    """Milliseconds since the epoch as ISO 8601, UTC."""
    return f"{_second(ts_ms // 1000)}.{ts_ms % 1000:03}+00:00"


@lru_cache(maxsize=16)
def _second(ts_s: int) -> str:
    return datetime.fromtimestamp(ts_s, UTC).replace(tzinfo=None).isoformat()
