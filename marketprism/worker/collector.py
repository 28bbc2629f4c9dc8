"""One venue and what it needs of the network: its feeds, its poller, and a recording if wanted."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable

from marketprism.capture import Frame
from marketprism.config import ExchangeSettings
from marketprism.events import Event
from marketprism.logs import RateLimitedLog
from marketprism.venues import VENUES
from marketprism.venues.base import Fetch, Note, Out, Reconnect, Send
from marketprism.worker.feed import Feed
from marketprism.worker.options import venue_options
from marketprism.worker.poller import TIMEOUT_S, Poller
from marketprism.worker.recorder import Recorder

log = logging.getLogger(__name__)

TICK_S = 0.1
_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class Collector:
    """Drives a venue over the network. `emit(event, read_ns)` gets what comes of it."""

    def __init__(
        self,
        exchange: ExchangeSettings,
        emit: Callable[[Event, int], None],
        flush: Callable[[], None],
        recorder: Recorder | None = None,
        emit_answer: Callable[[Event, int], None] | None = None,
    ) -> None:
        """`read_ns`: `time.perf_counter_ns()` when the socket was read. `flush()`: all of one read was emitted.

        `emit_answer` gets what REST brought; without it that is emitted like all else.
        """
        self.venue = VENUES[exchange.name](venue_options(exchange))
        book = exchange.orderbook
        # A polled book that comes late is of no use; one that a live book waits for is.
        depth_timeout_s = book.request_timeout_s if book.method == "snapshot" else TIMEOUT_S
        self.poller = Poller(
            exchange.base_url,
            self.venue.budgets,
            self,
            depth_base_url=book.rest_base,
            depth_timeout_s=depth_timeout_s,
        )
        self.feeds: dict[str, Feed] = {}
        self.frames = 0
        self.errors: Counter[str] = Counter()
        self.log = RateLimitedLog(log)
        self._emit = emit
        self._emit_answer = emit_answer or emit
        self.read = flush  # see `feed.Driver`
        self._recorder = recorder
        self._ready = asyncio.Event()
        self.arrived = asyncio.Event()  # instruments may be admitted: see `Venue.arrivals`
        self._tasks: asyncio.TaskGroup | None = None
        self._feeding: dict[str, asyncio.Task[None]] = {}  # by socket
        self._stopping = False
        self._read_ns = 0  # of the frame or answer being handled

    async def run(self, before_feeds: Callable[[], Awaitable[None]]) -> None:
        """Collect until cancelled. `before_feeds` is awaited when the instruments are known."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.poller.run())
            tasks.create_task(self._tick_regularly())
            self.handle(self.venue.start(time.time_ns()))
            await self._ready.wait()
            await before_feeds()
            self._tasks = tasks
            self._keep_up()
            log.info(
                "collecting %d instruments over %d sockets",
                len(self.venue.markets),
                len(self.feeds),
                extra={"event": "started"},
            )

    def change(self, exchange: ExchangeSettings) -> None:
        """Other symbols, intervals or liquidations from now on; what is added waits: see `arrived`."""
        self.handle(self.venue.change(venue_options(exchange), time.time_ns()))
        self._keep_up()
        self.arrived.set()

    def admit(self, instrument_ids: list[str], payloads: Iterable[bytes]) -> None:
        """Collect these, too (see `Venue.admit`)."""
        self.handle(self.venue.admit(instrument_ids, payloads, time.time_ns()))
        self._keep_up()
        log.info("collecting %s, too", ", ".join(instrument_ids), extra={"event": "admitted"})

    def _keep_up(self) -> None:
        """Connect the sockets that are wanted now and no others; poll what is wanted now."""
        if self._tasks is None:  # not that far yet
            return
        wanted = {socket.name: socket for socket in self.venue.sockets()}
        for name in [name for name in self.feeds if name not in wanted]:
            del self.feeds[name]
            self._feeding.pop(name).cancel()
        for name in [name for name in wanted if name not in self.feeds]:
            feed = self.feeds[name] = Feed(wanted[name], self, self.venue.send_interval_s)
            self._feeding[name] = self._tasks.create_task(feed.run(), name=f"feed {name}")
        self.poller.schedule(self.venue.polls())

    def stuck(self) -> str:
        """A feed that has ended, in words; "": none has."""
        return next(
            (f"the {task.get_name()} has ended" for task in self._feeding.values() if task.done()), ""
        )

    def stop(self) -> None:
        """No more connections, and what is still missing is told."""
        self._stopping = True
        self.handle(self.venue.finish(time.time_ns()))

    async def _tick_regularly(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.handle(self.venue.tick(time.time_ns()))

    # -- what happens ------------------------------------------------------------------------------------------

    def opened(self, socket: str, conn: str) -> None:
        """A connection is open (see `feed.Driver`)."""
        log.info("connected: %s", conn, extra={"event": "connect"})
        self.handle(self.venue.opened(socket, conn, time.time_ns()))

    def received(self, conn: str, data: bytes, read_ns: int) -> None:
        """A frame came in."""
        now_ns = time.time_ns()
        self.frames += 1
        self._read_ns = read_ns
        if self._recorder is not None:
            self._recorder.write(Frame(now_ns, "ws", conn, data.decode("utf-8", "replace")))
        self._carry_out(self.venue.receive(conn, data, now_ns), self._emit)

    def sent(self, conn: str, text: str) -> None:
        """A message of ours went out."""
        if self._recorder is not None:
            self._recorder.write(Frame(time.time_ns(), "ws", conn, text, out=True))

    def closed(self, conn: str, cause: str) -> None:
        """A connection is gone. When stopping this is no loss to tell: the next start tells the hole."""
        if self._stopping:
            return
        self.handle(self.venue.closed(conn, cause, time.time_ns()))

    def answered(self, fetch: Fetch, status: int, body: bytes, url: str) -> None:
        """A request was answered, or not (see `poller.Driver`)."""
        now_ns = time.time_ns()
        # A replay would take a witness's few levels for the book to begin with.
        if self._recorder is not None and status == 200 and fetch.kind != "audit":
            self._recorder.write(Frame(now_ns, "rest", url, body.decode("utf-8", "replace")))
        self._handle(self.venue.response(fetch, status, body, now_ns), self._emit_answer)
        if fetch.kind == "instruments" and self.venue.ready:
            self._ready.set()
            self.arrived.set()

    # -- what is done about it ---------------------------------------------------------------------------------

    def handle(self, out: Out) -> None:
        """Carry out what comes neither from a frame nor from an answer."""
        self._handle(out, self._emit)

    def _handle(self, out: Out, emit: Callable[[Event, int], None]) -> None:
        if out:
            self._read_ns = time.perf_counter_ns()
            self._carry_out(out, emit)
            self.read()

    def _carry_out(self, out: Out, emit: Callable[[Event, int], None]) -> None:
        for item in out:
            if type(item) is Event:
                emit(item, self._read_ns)
            elif type(item) is Send:
                for feed in self.feeds.values():
                    feed.send(item.conn, item.text)
            elif type(item) is Fetch:
                self.poller.ask(item)
            elif type(item) is Reconnect:
                for feed in self.feeds.values():
                    feed.replace(item.conn, item.cause, item.overlap)
            elif type(item) is Note:
                self._note(item)

    def _note(self, note: Note) -> None:
        if note.level != "info":
            self.errors[note.event] += 1
        self.log.log(
            _LEVELS[note.level],
            f"{note.event}:{note.instrument}",
            "%s",
            note.text,
            event=note.event,
            symbol=note.instrument,
        )
