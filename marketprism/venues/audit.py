"""Live books checked against the exchange's own word, by another way than the one that built them.

One book after the other, at a low rate. While one is checked its best levels are kept for each update, and so is what
the exchange says of it elsewhere: a book from REST, a channel that tells the top alone. Where both are of the same
moment they must be equal. The same moment is the same id; a witness without ids goes by the exchange's time, and then
one contradiction alone proves nothing, since a book may change twice within a millisecond.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Literal, NamedTuple, TypeAlias

import msgspec

from marketprism.book import Buffer, normalise
from marketprism.events import Level
from marketprism.venues.base import SECOND, Fetch, Note, Out, Send, elapsed
from marketprism.venues.sync import BookSync

DEPTH = 20  # levels a side that are compared; what a witness from REST is asked for
RESULTS = ("verified", "contradicted", "inconclusive")

_LOOK_NS = 2 * SECOND  # a check lasts at least so long …
_PATIENCE_NS = 5 * SECOND  # … and at most so long, where REST has not spoken of a moment that is known
_ASK_AGAIN_NS = SECOND
REST = "REST"  # the witness that sees deepest
_STATES_MAX = 512  # states of the book, and words of witnesses, that wait for each other
_PROOF = 3  # contradictions by time in a row that prove one
_REST_MAX_NS = 3_600 * SECOND  # between two checks of a book that was contradicted again and again

Result: TypeAlias = Literal["verified", "contradicted", "inconclusive"]
Moment: TypeAlias = tuple[Literal["id", "ms"], int]

_decode_levels = msgspec.json.Decoder(list[Level]).decode


def level(price: Buffer, quantity: Buffer) -> bytes:
    """A side of one level, of two figures as they stand in a frame."""
    return b"[[%b,%b]]" % (bytes(memoryview(price)), bytes(memoryview(quantity)))


class State(NamedTuple):
    """The best levels of a book, and whether of either side the worst are unknown."""

    bids: bytes
    asks: bytes
    cut_bids: bool
    cut_asks: bool


class Word(NamedTuple):
    """What a witness said. `depth`: how many levels a side it would show."""

    witness: str
    moment: Moment
    depth: int
    bids: bytes
    asks: bytes


class Contradiction(NamedTuple):
    """A witness and a book that differ."""

    word: Word
    difference: str


class Check:
    """One book under observation. Bounded."""

    def __init__(self, book: BookSync, conn: str, now_ns: int) -> None:
        """`conn` carries the witnesses' channels; "": none is subscribed."""
        self.book = book
        self.conn = conn
        self.began_ns = self.asked_ns = now_ns
        self.agreed: set[str] = set()  # witnesses
        self._losses = _losses(book)
        self._states: dict[Moment, State | None] = {}  # None: several within one millisecond
        self._words: deque[Word] = deque(maxlen=_STATES_MAX)
        self._doubts = 0
        self._newest_ms = 0
        book.watch = self._keep
        self._keep(book)

    @property
    def broken_off(self) -> bool:
        """Whether the book was lost since."""
        return not self.book.live or _losses(self.book) != self._losses

    def hear(self, word: Word) -> None:
        """A witness has spoken."""
        self._words.append(word)

    def compare(self) -> Contradiction | None:
        """Hold against each other what is of the same moment; the first contradiction that is proven."""
        words, self._words = self._words, deque(maxlen=_STATES_MAX)
        for word in words:
            if word.moment not in self._states:
                self._words.append(word)
                continue
            state = self._states[word.moment]
            if state is None:
                continue
            difference = _difference(state, word)
            if not difference:
                self.agreed.add(word.witness)
                self._doubts = 0
                continue
            self._doubts += 1
            if word.moment[0] == "id" or self._doubts >= _PROOF:
                return Contradiction(word, difference)
        return None

    def end(self) -> None:
        """Leave the book alone."""
        self.book.watch = None

    def _keep(self, book: BookSync) -> None:
        state = _top(book)
        if book.last_id is not None:
            self._put(("id", book.last_id), state)
        if book.last_ts_ms is not None:
            if book.last_ts_ms < self._newest_ms:  # the exchange has set its clock back
                self._forget_times()
            self._newest_ms = book.last_ts_ms
            self._put(("ms", book.last_ts_ms), state)

    def _forget_times(self) -> None:
        self._states = {moment: state for moment, state in self._states.items() if moment[0] == "id"}
        self._words = deque((word for word in self._words if word.moment[0] == "id"), _STATES_MAX)
        self._doubts = 0

    def _put(self, moment: Moment, state: State) -> None:
        states = self._states
        states[moment] = state if states.get(moment, state) == state else None
        while len(states) > 2 * _STATES_MAX:
            del states[next(iter(states))]


class Auditor:
    """Checks the live books of a venue in turn, and acts on what it finds."""

    def __init__(
        self,
        fetch: Callable[[str], Fetch],
        message: Callable[[str, bool], str],
        interval_ns: int,
        pause_ns: int,
    ) -> None:
        """`fetch(instrument)` asks REST for `DEPTH` levels; `message(instrument, on)` (un)subscribes the witnesses.

        `interval_ns`: from one check to the next, 0: none at all.
        `pause_ns`: between two subscriptions on a connection.
        """
        self.check: Check | None = None
        self.counts: Counter[str] = Counter(dict.fromkeys(RESULTS, 0))
        self._fetch = fetch
        self._message = message
        self._interval_ns = interval_ns
        self._pause_ns = pause_ns
        self._began_ns = 0
        self._turn = 0
        self._asking = False  # REST: one request at a time, however long an answer takes
        self._subscribed_ns: dict[str, int] = {}  # connection → when its witnesses were last asked for
        self._rests: dict[str, tuple[int, int]] = {}  # contradicted: since when, how long it is left alone

    def tick(self, books: Iterable[BookSync], now_ns: int, out: Out) -> None:
        """Time has passed."""
        if self.check is not None:
            self._follow(self.check, now_ns, out)
        elif self._interval_ns and elapsed(now_ns, self._began_ns, self._interval_ns):
            self._began_ns = now_ns
            ready = [
                b for b in books if b.live and b.last_id is not None and not self._rests_still(b, now_ns)
            ]
            if ready:
                self._turn += 1
                self._begin(ready[self._turn % len(ready)], now_ns, out)

    def hear(
        self, instrument_id: str, witness: str, moment: Moment, depth: int, bids: Buffer, asks: Buffer
    ) -> None:
        """A witness has spoken of this book. Raises ValueError on levels that are none."""
        check = self.check
        if check is not None and check.book.instrument.id == instrument_id:
            check.hear(Word(witness, moment, depth, normalise(bids), normalise(asks)))

    def answered(self) -> None:
        """The request was answered, with a book or not."""
        self._asking = False

    def _begin(self, book: BookSync, now_ns: int, out: Out) -> None:
        i = book.instrument.id
        conn = next((c for c in sorted(book.conns) if self._may_subscribe(c, now_ns)), "")
        self.check = Check(book, conn, now_ns)
        self._ask(self.check, now_ns, out)
        if conn:
            self._subscribed_ns[conn] = now_ns
            out.append(Send(conn, self._message(i, True)))

    def _may_subscribe(self, conn: str, now_ns: int) -> bool:
        pause_ns = self._pause_ns
        self._subscribed_ns = {
            c: t for c, t in self._subscribed_ns.items() if not elapsed(now_ns, t, pause_ns)
        }
        return conn not in self._subscribed_ns

    def _follow(self, check: Check, now_ns: int, out: Out) -> None:
        wrong = None if check.broken_off else check.compare()
        lasted = elapsed(now_ns, check.began_ns, _LOOK_NS if REST in check.agreed else _PATIENCE_NS)
        if wrong is not None:
            self._end(check, "contradicted", out)
            self._contradicted(check.book, wrong, now_ns, out)
        elif lasted or check.broken_off:
            self._end(check, "verified" if check.agreed else "inconclusive", out)
        elif REST not in check.agreed and elapsed(now_ns, check.asked_ns, _ASK_AGAIN_NS):
            self._ask(check, now_ns, out)

    def _ask(self, check: Check, now_ns: int, out: Out) -> None:
        if not self._asking:
            self._asking = True
            check.asked_ns = now_ns
            out.append(self._fetch(check.book.instrument.id))

    def _end(self, check: Check, result: Result, out: Out) -> None:
        check.end()
        self.check = None
        self.counts[result] += 1
        i = check.book.instrument.id
        if result == "verified":
            self._rests.pop(i, None)
        if check.conn:  # where that is gone, so is the subscription
            out.append(Send(check.conn, self._message(i, False)))

    def _contradicted(self, book: BookSync, wrong: Contradiction, now_ns: int, out: Out) -> None:
        i, (word, difference) = book.instrument.id, wrong
        detail = f"{word.witness} at {word.moment[0]} {word.moment[1]}: {difference}"
        out.append(Note("error", "audit", f"the book of {i} is wrong and is begun anew: by {detail}", i))
        # Should it be the witness that errs, the book is not begun anew at this rate for ever.
        _, rested_ns = self._rests.get(i, (0, self._interval_ns // 2))
        self._rests[i] = now_ns, min(2 * rested_ns, _REST_MAX_NS)
        book.lose("audit", now_ns, out, detail=detail)

    def _rests_still(self, book: BookSync, now_ns: int) -> bool:
        rest = self._rests.get(book.instrument.id)
        return rest is not None and not elapsed(now_ns, *rest)


def _losses(book: BookSync) -> int:
    return sum(book.resyncs.values())


def _top(sync: BookSync) -> State:
    book = sync.book
    bids, asks, *_ = book.top(DEPTH)
    return State(bids, asks, book.exact_from is not None, book.exact_to is not None)


def _difference(state: State, word: Word) -> str:
    """The first level that differs, in words; "": none does."""
    return _side_difference("bid", state.bids, state.cut_bids, word.bids, word.depth) or _side_difference(
        "ask", state.asks, state.cut_asks, word.asks, word.depth
    )


def _side_difference(side: str, ours: bytes, cut: bool, said: bytes, depth: int) -> str:
    if ours == said:
        return ""
    depth = min(depth, DEPTH)
    has, expected = _figures(ours)[:depth], _figures(said)[:depth]
    if cut and len(has) < len(expected):
        expected = expected[: len(has)]  # of what lies beyond nothing is known
    for n in range(max(len(has), len(expected))):
        if has[n : n + 1] != expected[n : n + 1]:
            return f"{side} {n + 1}: expected {_shown(expected, n)}, the book has {_shown(has, n)}"
    return ""


def _figures(levels: bytes) -> list[tuple[Decimal, Decimal]]:
    """Price and quantity of each level; a quantity of 0 stands for no level (Deribit `ticker`)."""
    pairs = [(Decimal(x.price), Decimal(x.quantity)) for x in _decode_levels(levels)]
    return [pair for pair in pairs if pair[1]]


def _shown(levels: list[tuple[Decimal, Decimal]], n: int) -> str:
    return f"{levels[n][1]} at {levels[n][0]}" if n < len(levels) else "none"
