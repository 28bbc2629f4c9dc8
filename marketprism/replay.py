"""Drive a venue with recordings instead of an exchange: the same code, the recording's time."""

import heapq
import re
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from marketprism.capture import BROKEN, Damage, Frame, UnreadableError, open_compressed, read
from marketprism.events import Event
from marketprism.venues import VENUES
from marketprism.venues.base import MS, Fetch, Note, Out, elapsed
from marketprism.venues.venue import MALFORMED, RefusedError, Venue
from marketprism.worker.options import replay_options

_TICK_NS = 100 * MS
# Asked for only when something is missing; every other REST body is a poll's, wanted whenever it comes.
_ON_DEMAND = frozenset({"depth", "trades", "instruments"})


@dataclass(slots=True)
class Span:
    """When a connection of a recording is heard of first and last, and how many frames it brings."""

    first_ns: int
    last_ns: int
    frames: int = 0


@dataclass(slots=True)
class Contents:
    """What a first reading of the recordings tells."""

    spans: dict[tuple[str, int], Span] = field(default_factory=dict)  # (url, file) → span
    bodies: Counter[tuple[str, str]] = field(default_factory=Counter)  # how often each answer is there
    instruments: list[bytes] = field(default_factory=list)


class Replay:
    """One run through recordings."""

    def __init__(self, venue: Venue, paths: list[Path], emit: Callable[[Event], None]) -> None:
        self.venue = venue
        self.frames = 0
        self.damaged: list[str] = []
        self.notes: Counter[str] = Counter()
        self._paths = paths
        self._emit = emit
        self._contents = Contents()
        self._conns: dict[tuple[str, int], str] = {}
        self._asked: set[tuple[str, str]] = set()
        self._past: dict[tuple[str, str], Frame] = {}
        self._ticked_ns = 0

    def run(self) -> None:
        """Replay everything. Raises `UnreadableError`."""
        self._contents = self._survey()
        now_ns = min((s.first_ns for s in self._contents.spans.values()), default=0)
        for body in self._contents.instruments:
            self._handle(
                self.venue.response(Fetch("instruments", "", "(recorded)"), 200, body, now_ns), now_ns
            )
        for file, frame in self._merged():
            now_ns = frame.t
            if elapsed(now_ns, self._ticked_ns, _TICK_NS):
                self._ticked_ns = now_ns
                self._handle(self.venue.tick(now_ns), now_ns)
            self._take(file, frame)
        self._handle(self.venue.finish(now_ns), now_ns)

    # -- reading -----------------------------------------------------------------------------------------------

    def _survey(self) -> Contents:
        contents = Contents()
        for number, path in enumerate(self._paths):
            for _, frame in read(path):
                if isinstance(frame, Damage):
                    continue
                if frame.via == "ws":
                    if not frame.out:
                        span = contents.spans.setdefault((frame.url, number), Span(frame.t, frame.t))
                        span.last_ns = max(span.last_ns, frame.t)
                        span.frames += 1
                    continue
                key = self.venue.key_of(frame.url)
                if key is not None and key[0] == "instruments":
                    contents.instruments.append(frame.raw.encode())
                elif key is not None:
                    contents.bodies[key] += 1
        return contents

    def _merged(self) -> Iterator[tuple[int, Frame]]:
        files = [self._frames(number, path) for number, path in enumerate(self._paths)]
        return files[0] if len(files) == 1 else heapq.merge(*files, key=lambda item: item[1].t)

    def _frames(self, number: int, path: Path) -> Iterator[tuple[int, Frame]]:
        for _, frame in read(path):
            if isinstance(frame, Damage):
                self.damaged.append(f"{path}:{frame.line}: damaged, skipped: {frame.reason}")
                continue
            self.frames += 1
            yield number, frame

    # -- driving -----------------------------------------------------------------------------------------------

    def _take(self, file: int, frame: Frame) -> None:
        if frame.out:
            return
        if frame.via == "rest":
            self._take_body(frame)
            return
        conn = self._connection(file, frame)
        self._handle(self.venue.receive(conn, frame.raw.encode(), frame.t), frame.t)
        span = self._contents.spans[frame.url, file]
        span.frames -= 1
        if not span.frames and self._is_replaced(file, frame, conn):
            self._handle(self.venue.closed(conn, "end of the recorded connection", frame.t), frame.t)

    def _take_body(self, frame: Frame) -> None:
        key = self.venue.key_of(frame.url)
        if key is None or key[0] == "instruments":
            return
        self._contents.bodies[key] -= 1
        if key[0] not in _ON_DEMAND or key in self._asked:
            self._asked.discard(key)
            self._answer(key, frame, frame.t)
        else:
            self._past[key] = frame

    def _answer(self, key: tuple[str, str], frame: Frame, now_ns: int) -> None:
        self._handle(self.venue.response(Fetch(*key, frame.url), 200, frame.raw.encode(), now_ns), now_ns)

    def _connection(self, file: int, frame: Frame) -> str:
        """A URL is one connection, also across files that follow each other; files that overlap are two."""
        conn = self._conns.get((frame.url, file))
        if conn is None:
            conn = self._earlier(frame) or f"{frame.url}@{file}"
            self._conns[frame.url, file] = conn
            if conn not in self.venue.connections:
                self._handle(self.venue.opened(_socket(frame.url)[1], conn, frame.t), frame.t)
        return conn

    def _earlier(self, frame: Frame) -> str | None:
        """The connection of this URL whose files have all come to their end."""
        until_ns: dict[str, int] = {}
        for key, conn in self._conns.items():
            if key[0] == frame.url:
                until_ns[conn] = max(until_ns.get(conn, 0), self._contents.spans[key].last_ns)
        return next((conn for conn, last_ns in until_ns.items() if last_ns <= frame.t), None)

    def _is_replaced(self, file: int, frame: Frame, conn: str) -> bool:
        """Whether another connection goes on for one that is not heard of any more.

        If not, it may have lasted as long as the recording: its books are then not lost.
        """
        later = [
            (url, span)
            for (url, other), span in self._contents.spans.items()
            if (url, other) != (frame.url, file)
            and _socket(url) == _socket(frame.url)
            and span.last_ns > frame.t
        ]
        if any(url == frame.url and span.first_ns >= frame.t for url, span in later):
            return False  # by the next file of the same connection
        if any(span.first_ns >= frame.t for _, span in later):
            return True
        books = [m.book for m in self.venue.markets.values() if m.book is not None and conn in m.book.conns]
        return bool(later) and all(len(book.conns) > 1 for book in books)

    def _handle(self, out: Out, now_ns: int) -> None:
        """Carry out what the venue asks, in order; what follows from an answer comes after what is queued."""
        work: deque[object] = deque(out)
        while work:
            item = work.popleft()
            if isinstance(item, Event):
                self._emit(item)
            elif isinstance(item, Fetch):
                work.extend(self._fetch(item, now_ns))
            elif isinstance(item, Note):
                self.notes[item.event] += 1

    def _fetch(self, fetch: Fetch, now_ns: int) -> Out:
        frame = self._past.pop(fetch.key, None)
        if frame is not None:
            return self.venue.response(fetch, 200, frame.raw.encode(), now_ns)
        if fetch.kind == "trades" and self._contents.bodies[fetch.key] <= 0:
            return self.venue.response(fetch, 404, b"not in the recording", now_ns)
        self._asked.add(fetch.key)
        return []


def _socket(url: str) -> tuple[str, str]:
    """Connections of the same socket have the same; the second part is the socket's name where it is known.

    A fragment that `marketprism record` wrote is `<socket>.<start>.<serial>`.
    """
    base, _, fragment = url.partition("#")
    return base, fragment.split(".", 1)[0] if "." in fragment else base


def load_instruments(venue: Venue, path: Path) -> None:
    """Instrument descriptions from a file: a REST body, several of them (a line each), or a recording.

    Plain or compressed; whatever stands before the first brace of a line is ignored. Raises `UnreadableError`.
    """
    bodies = list(_bodies(path))
    for body in bodies:
        for candidate in (body, _recorded(body)):
            try:
                if candidate is not None:
                    venue.take_instruments(Fetch("instruments", "", str(path)), candidate, 0, [])
            except (*MALFORMED, RefusedError):
                continue
    if not venue.instruments:
        raise UnreadableError(
            f"{path}: no instrument descriptions of {venue.options.name} found: expected a REST body"
        )


def _bodies(path: Path) -> Iterator[bytes]:
    try:
        with open_compressed(path) as file:
            text = file.read()
    except BROKEN as e:
        raise UnreadableError(f"{path}: cannot be read: {e}") from None
    yield text
    for line in text.splitlines():
        match = re.search(rb"[{\[]", line)
        if match and len(line) != len(text):
            yield line[match.start() :]


def _recorded(line: bytes) -> bytes | None:
    try:
        return msgspec.json.decode(line, type=Frame).raw.encode()
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def run(exchange: str, symbols: tuple[str, ...] | None, instruments: Path | None, paths: list[Path]) -> int:
    """`marketprism replay`: events to stdout, figures to stderr. Returns the exit status."""
    out = sys.stdout.buffer
    encoder = msgspec.json.Encoder()
    buffer = bytearray()
    types: Counter[str] = Counter()

    def emit(event: Event) -> None:
        line = {"subject": event.subject, "id": event.id, "data": msgspec.Raw(event.payload)}
        encoder.encode_into(line, buffer)
        buffer.extend(b"\n")
        out.write(buffer)
        types[event.subject.split(".", 1)[0]] += 1

    began = time.perf_counter()
    venue = VENUES[exchange](replay_options(exchange, symbols))
    replay = Replay(venue, paths, emit)
    try:
        if instruments is not None:
            load_instruments(venue, instruments)
        replay.run()
    except UnreadableError as e:
        print(f"marketprism replay: {e}", file=sys.stderr)
        return 2
    finally:
        out.flush()
    _report(replay, types, time.perf_counter() - began)
    return 1 if replay.damaged else 0


def _report(replay: Replay, types: Counter[str], seconds: float) -> None:
    for line in replay.damaged:
        print(line, file=sys.stderr)
    books = [m.book for m in replay.venue.markets.values() if m.book is not None]
    print(
        f"{replay.frames} frames in {seconds:.2f} s ({replay.frames / max(seconds, 1e-9):,.0f}/s); "
        f"books live {sum(b.live for b in books)}/{len(books)}; malformed {replay.notes['malformed']}",
        file=sys.stderr,
    )
    for name, count in sorted(types.items()):
        print(f"  {name:20} {count}", file=sys.stderr)
