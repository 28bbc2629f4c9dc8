"""Messages out to NATS JetStream: in order per subject, each once, in bounded memory, no hole unsaid.

What is taken in is held until the stream has acknowledged it. Up to `window` messages are in flight, the rest
waits in a backlog; both together are bounded by `buffer_bytes`. When the connection is lost, an
acknowledgement does not come or the stream says no, everything not acknowledged goes back to the head of the
backlog, after the stream was asked how much of it it stored already; so a resend adds nothing twice even
after an outage longer than the stream's duplicate window. The first message after such a break goes out
alone, and the window opens when it is acknowledged.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import msgspec
import nats.errors
from nats.aio.client import Client

from marketprism.worker.nats_link import (
    STREAM_NOT_FOUND,
    UNREADABLE,
    ApiError,
    Link,
    LinkError,
    StoredMessage,
    check_servers,
)
from marketprism.worker.outbox import Counters, Hole, Message, Outbox
from marketprism.worker.stream import StreamError

__all__ = ["Counters", "Hole", "LinkError", "Message", "Publisher", "PublisherOptions"]

log = logging.getLogger(__name__)

BATCH_WAIT_NS = 100_000
"""What is gathered is written after so long, even if more of the same read is to come."""
BATCH_MESSAGES = 32
"""So many messages are written at once even if the loop has not turned yet."""
FRAMES_MAX = 3 * BATCH_MESSAGES
"""Pieces of a batch: head, payload, end of line for each message."""
HEADER_BYTES = len(b"NATS/1.0\r\nNats-Msg-Id: \r\n\r\n")
FRAME = b"HPUB %b %b%d %d %d\r\nNATS/1.0\r\nNats-Msg-Id: %b\r\n\r\n"
"""NATS client protocol: HPUB subject reply-to header-bytes total-bytes, the header block; the payload follows."""
FIRST_PAUSE_S = 0.25
LAST_PAUSE_S = 5.0
TICK_S = 0.5
PING_TIMEOUT_S = 2.0
CANCEL_EVERY_S = 0.5
LOOKUPS_AT_ONCE = 32
LOG_EVERY_S = 60.0
TROUBLE_CHARS = 500
RESUME_EVERY_S = 5.0
"""Holes are told at most this often: a message that will never fit must not make a busy loop of telling."""
NEVER_ACCEPTED = frozenset({10054, 10097})
"""Message, or its header, exceeds the stream's maximum (nats-server, errors.json): no resend helps."""


@dataclass(frozen=True, slots=True)
class PublisherOptions:
    """How to reach NATS and how much to hold.

    `connect_options` are keyword arguments of nats-py's `Client.connect` for authentication and TLS
    (`user`, `password`, `token`, `user_credentials`, `tls`, …).
    """

    servers: Sequence[str]
    client_name: str
    stream: str = "MARKET_DATA"
    connect_options: Mapping[str, Any] = field(default_factory=dict)
    window: int = 1000
    buffer_bytes: int = 24 * 1024 * 1024
    ack_timeout_s: float = 15.0
    reconnect_time_wait_s: float = 2.0


class _PubAck(msgspec.Struct):
    """JetStream's answer to a publish (NATS ADR-1, JSON API)."""

    duplicate: bool = False
    error: ApiError | None = None


_decode_ack = msgspec.json.Decoder(_PubAck).decode


class Publisher:
    """Publishes to one JetStream stream, through outages of any length.

    Not thread-safe: one event loop owns it.
    """

    def __init__(
        self,
        settings: PublisherOptions,
        on_resume: Callable[[list[Hole]], None],
        on_written: Callable[[int, int], None] | None = None,
        on_acknowledged: Callable[[int, int], None] | None = None,
        prepare: Callable[[Client], Awaitable[None]] | None = None,
    ) -> None:
        """Prepare a publisher; nothing is opened before `connect`.

        `on_resume` gets the holes once the buffer has drained to a quarter; until then every further message
        of those subjects is refused. `on_written` gets the nanoseconds from `received_ns` to the socket, and
        of how many messages, each told once; `on_acknowledged` the same from `received_ns` to the stream's
        acknowledgement. `prepare` is awaited on each new connection, and again after each refusal, before anything
        is sent: the place to ensure the stream; if it raises nats.errors.Error or StreamError it is tried
        again, with pauses. Raises ValueError for a server address that is not nats:// or tls://.
        """
        check_servers(settings.servers)
        self.last_error = ""
        self._settings = settings
        self._on_resume = on_resume
        self._on_written = on_written
        self._on_acknowledged = on_acknowledged
        self._prepare = prepare
        self._outbox = Outbox(settings.buffer_bytes)
        self._subjects: dict[str, bytes] = {}
        self._resume_due = False
        self._resumed_at = -RESUME_EVERY_S
        self._drained: asyncio.Future[None] | None = None
        # The write batch of this turn of the loop.
        self._frames: list[bytes] = []
        self._stamps: list[int] = []
        self._batch_ns = 0  # when it was begun
        self._flush_due = False
        # The session.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._link: Link | None = None
        self._open = False
        self._reply_prefix = b""
        self._max_payload_bytes = 0
        self._window = 1
        self._wake = asyncio.Event()
        self._tried = asyncio.Event()
        self._pause_s = FIRST_PAUSE_S
        self._down_since: float | None = None
        self._logged: dict[str, float] = {}
        self._marks: deque[tuple[float, int]] = deque()

    # --- for the worker -----------------------------------------------------------------------

    async def connect(self) -> bool:
        """Start; return after the first attempt, True if messages flow. Either way it goes on trying for ever."""
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._run(), name="publisher")
        self._task.add_done_callback(self._ended)
        await self._tried.wait()
        return self._open

    def publish(self, message: Message, *, more: bool = False) -> bool:
        """Take a message in; never blocks. False if it was skipped (droppable, little room) or refused (no
        room).

        `more`: the caller has more of the same read to hand over and will call `flush`, which spares a turn of
        the loop; what has waited for long is written all the same.

        Raises ValueError for a subject or id that the NATS protocol cannot carry.
        """
        if message.subject not in self._subjects:
            self._learn(message.subject)
        if not message.id.isprintable() or not message.id:
            raise ValueError(f"message id {message.id!r} on {message.subject}: expected printable text")
        token = self._outbox.pass_through(message, self._window) if self._open else 0
        if token:
            self._frame(token, message)
            self._after_framing(more)
            return True
        if self._outbox.take(message):
            if self._open:
                self._launch()
                self._after_framing(more)
            return True
        if not message.droppable:
            self._trouble(
                "buffer_full", f"{self._settings.buffer_bytes} bytes are waiting for NATS: messages are lost"
            )
        return False

    def flush(self) -> None:
        """Write what this turn of the loop has gathered now, without waiting for the turn to end."""
        self._flush()

    async def drain(self, timeout_s: float) -> int:
        """Wait until everything taken in is acknowledged; return how many messages are not."""
        if self.unacknowledged:
            self._drained = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._drained], timeout=timeout_s)
            self._drained = None
        return self.unacknowledged

    async def close(self) -> None:
        """Stop at once; what is not acknowledged is given up (see `drain`)."""
        while self._task is not None and not self._task.done():
            # More than once, because nats-py and asyncio.wait_for (Python 3.11) may swallow a cancellation.
            self._task.cancel()
            await asyncio.wait([self._task], timeout=CANCEL_EVERY_S)
        if self.unacknowledged:
            log.warning("stopped with %d messages not acknowledged by NATS", self.unacknowledged)

    async def last_ids(self, stream: str, subjects: Iterable[str]) -> dict[str, tuple[str, bytes]]:
        """Message id and payload of the last stored message of each subject; a subject without one is absent.

        A stream that does not exist holds nothing. Raises LinkError if there is no connection or no answer.
        """
        link = self._link
        if link is None:
            raise LinkError(f"not connected to NATS: {self.last_error or 'no attempt was made yet'}")
        try:
            found = await _last_messages(link, stream, subjects)
        except LinkError as error:
            if error.code == STREAM_NOT_FOUND:
                return {}
            raise
        return {subject: (message.message_id, message.data) for subject, message in found.items()}

    async def stored_since(self, stream: str, subject: str, since_s: float) -> list[bytes]:
        """The payloads of a subject stored since then (seconds since the epoch). Raises LinkError."""
        if self._link is None:
            raise LinkError(f"not connected to NATS: {self.last_error or 'no attempt was made yet'}")
        return await self._link.stored_since(stream, subject, since_s)

    @property
    def counters(self) -> Counters:
        """Running totals since the start."""
        return self._outbox.counters

    @property
    def connected(self) -> bool:
        """Whether a connection to NATS stands."""
        return self._link is not None and self._link.connected

    @property
    def flowing(self) -> bool:
        """Whether messages go out: connected, the stream there, nothing being sorted out."""
        return self._open

    @property
    def alive(self) -> bool:
        """Whether the background task runs; if not, only a restart helps."""
        return self._task is not None and not self._task.done()

    @property
    def backlog_messages(self) -> int:
        """Messages waiting to be written (again)."""
        return len(self._outbox.backlog)

    @property
    def backlog_bytes(self) -> int:
        """Memory held for everything not acknowledged, waiting or in flight; at most `buffer_bytes`."""
        return self._outbox.held_bytes

    @property
    def in_flight(self) -> int:
        """Messages written and not acknowledged."""
        return len(self._outbox.flight)

    @property
    def unacknowledged(self) -> int:
        """Messages taken in and not acknowledged: waiting or in flight."""
        return self._outbox.unacknowledged

    # --- writing ------------------------------------------------------------------------------

    def _learn(self, subject: str) -> None:
        """Check a subject once and keep its bytes."""
        tokens = subject.split(".")
        if not all(tokens) or any(c.isspace() or c in "*>" or not c.isprintable() for c in subject):
            raise ValueError(
                f"subject {subject!r}: expected dot-separated tokens without blanks and wildcards"
            )
        self._subjects[subject] = subject.encode()

    def _pump(self) -> None:
        """Send from the backlog while the window has room, at the end of this turn of the loop."""
        self._launch()
        self._flush_soon()

    def _launch(self) -> None:
        """Put what waits in flight while the window has room, and its frames into the batch."""
        outbox = self._outbox
        while self._open and outbox.can_launch(self._window):
            token, message, resend = outbox.launch()
            self._frame(token, message, resend)
        if len(self._frames) >= FRAMES_MAX:
            self._flush()

    def _after_framing(self, more: bool) -> None:
        """Write the batch now, or see to it that it is written."""
        if len(self._frames) >= FRAMES_MAX or (
            more and time.perf_counter_ns() - self._batch_ns > BATCH_WAIT_NS
        ):
            self._flush()
        elif not more:
            self._flush_soon()

    def _flush_soon(self) -> None:
        if self._frames and not self._flush_due and self._loop is not None:
            self._flush_due = True
            self._loop.call_soon(self._flush_turn)

    def _frame(self, token: int, message: Message, resend: bool = False) -> None:
        """Put a message into this turn's batch, unless the server takes none of its size."""
        ident = message.id.encode()
        header_bytes = HEADER_BYTES + len(ident)
        total_bytes = header_bytes + len(message.payload)
        if total_bytes > self._max_payload_bytes:
            self._give_up(token, f"the server takes {self._max_payload_bytes} (max_payload)")
            return
        subject = self._subjects[message.subject]
        head = FRAME % (subject, self._reply_prefix, token, header_bytes, total_bytes, ident)
        if not self._frames:
            self._batch_ns = time.perf_counter_ns()
        self._frames += (head, message.payload, b"\r\n")
        if not resend:
            self._stamps.append(message.received_ns)

    def _flush_turn(self) -> None:
        self._flush_due = False
        self._flush()

    def _flush(self) -> None:
        """One write for the whole batch."""
        if not self._frames or self._link is None:
            return
        frames, self._frames = self._frames, []
        stamps, self._stamps = self._stamps, []
        self._link.write(b"".join(frames))
        if self._on_written is not None:
            now_ns = time.perf_counter_ns()
            for received_ns, alike in groupby(stamps):
                self._on_written(now_ns - received_ns, len(list(alike)))

    # --- what the stream says -----------------------------------------------------------------

    def _on_acks(self, tokens: Iterable[int]) -> None:
        """Plain acknowledgements, of one read of the socket."""
        now_ns = time.perf_counter_ns()
        for token in tokens:
            self._land(token, now_ns)
        self._after_landing()
        self._pump()

    def _on_ack(self, token: int, body: bytes, headers: bytes | None) -> None:
        """Any other answer of the stream."""
        message = self._outbox.flight.get(token)
        if message is None:
            return
        if headers is not None and not body:
            self._reject(
                token,
                "no_responders",
                f"no stream takes {message.subject}: is JetStream on, the stream there?",
            )
            return
        try:
            ack = _decode_ack(body)
        except UNREADABLE as error:
            self._reject(token, "bad_ack", f"not an acknowledgement: {error}")
            return
        if ack.error is None:
            self._acknowledge(token, ack.duplicate)
        elif ack.error.err_code in NEVER_ACCEPTED:
            self._give_up(token, ack.error.description)
        else:
            text = f"stream {self._settings.stream} does not accept messages: {ack.error.description}"
            self._reject(token, "rejected", f"{text} (JetStream error {ack.error.err_code})")
        self._pump()

    def _acknowledge(self, token: int, duplicate: bool) -> None:
        self._outbox.counters.duplicates += duplicate
        self._land(token, time.perf_counter_ns())
        self._after_landing()

    def _land(self, token: int, now_ns: int) -> None:
        """The stream holds this message."""
        message = self._outbox.land(token)
        if message is None:
            return
        self._outbox.counters.acknowledged += 1
        if self._on_acknowledged is not None:
            self._on_acknowledged(now_ns - message.received_ns, 1)
        if self._window == 1:
            self._window = self._settings.window
            self._recovered()

    def _give_up(self, token: int, why: str) -> None:
        """Drop a message that NATS will never accept: a hole like any other."""
        message = self._outbox.land(token)
        if message is None:
            return
        self._trouble("too_large", f"{message.subject} {message.id} has {len(message.payload)} bytes: {why}")
        self._outbox.refuse(message)
        self._after_landing()

    def _reject(self, token: int, kind: str, text: str) -> None:
        """The stream said no: stop sending; the session sorts it out once all in flight has been answered."""
        self._open = False
        self._outbox.rejected.add(token)
        self._trouble(kind, text)
        self._wake.set()

    def _after_landing(self) -> None:
        """Tell who waits for room, or for the end."""
        if self._outbox.may_resume and not self._resume_due:
            self._resume_due = True
            wait_s = self._resumed_at + RESUME_EVERY_S - time.monotonic()
            asyncio.get_running_loop().call_later(max(0.0, wait_s), self._resume)
        if self._drained is not None and not self._drained.done() and not self.unacknowledged:
            self._drained.set_result(None)

    def _resume(self) -> None:
        self._resume_due = False
        self._resumed_at = time.monotonic()
        holes = self._outbox.take_holes()
        log.warning(
            "room again: %d messages of %d subjects were lost", sum(h.count for h in holes), len(holes)
        )
        self._on_resume(holes)

    def _recovered(self) -> None:
        self._pause_s = FIRST_PAUSE_S
        if self._down_since is not None:
            away_s = time.monotonic() - self._down_since
            self._down_since = None
            text = "NATS takes messages again after %.1f s, %d to go"
            log.info(text, away_s, self.unacknowledged, extra={"event": "nats"})

    def _trouble(self, kind: str, text: str) -> None:
        """Count a problem and log it, once a kind and minute."""
        errors = self._outbox.counters.errors
        errors[kind] = errors.get(kind, 0) + 1
        self.last_error = text = text[:TROUBLE_CHARS]  # it may quote what NATS said
        now = time.monotonic()
        if now - self._logged.get(kind, -LOG_EVERY_S) >= LOG_EVERY_S:
            self._logged[kind] = now
            log.warning("%s", text)

    # --- the session --------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            link = Link(
                self._on_acks,
                self._on_ack,
                self._wake.set,
                lambda text: self._trouble("nats", f"NATS: {text}"),
            )
            try:
                await link.open(
                    self._settings.servers, self._settings.client_name, self._settings.connect_options
                )
                self._link = link
                await self._serve(link)
                self._trouble(
                    "disconnected", f"lost the connection to NATS ({link.loss}), {self.unacknowledged} wait"
                )
                await self._pause()
            except LinkError as error:
                self._trouble("connect", str(error))
                self._tried.set()
                await asyncio.sleep(self._settings.reconnect_time_wait_s)
            finally:
                self._shut()
                self._link = None
                await link.close()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tried.set()
        if not task.cancelled():
            self.last_error = f"the publisher stopped: {task.exception()!r}"
            log.critical("%s", self.last_error, exc_info=task.exception())

    async def _serve(self, link: Link) -> None:
        """Keep messages flowing over one connection until it is lost."""
        while link.connected:
            try:
                await self._recover(link)
            except (LinkError, StreamError, nats.errors.Error, OSError) as error:
                if link.connected:
                    self._trouble("stream", str(error))
            else:
                await self._until_trouble(link)
            self._tried.set()
            self._shut()
            if link.connected:
                await self._pause()

    async def _pause(self) -> None:
        pause_s = self._pause_s
        self._pause_s = min(2 * pause_s, LAST_PAUSE_S)
        await asyncio.sleep(pause_s)

    def _shut(self) -> None:
        """Stop sending, and forget the batch: its messages are in flight and come back from there."""
        self._open = False
        self._frames.clear()
        self._stamps.clear()
        if self._down_since is None:
            self._down_since = time.monotonic()

    async def _recover(self, link: Link) -> None:
        """Make sure of the stream, settle what is in flight, and begin to send, one message at first."""
        if self._prepare is not None:
            await self._prepare(link.client)
        for token in await self._stored(link):
            if self._outbox.land(token) is not None:
                self._outbox.counters.acknowledged += 1
        self._outbox.requeue()
        self._after_landing()
        self._reply_prefix = link.reply_prefix
        self._max_payload_bytes = link.max_payload_bytes
        self._window = 1
        self._marks.clear()
        self._wake.clear()
        self._open = True
        self._tried.set()
        self._pump()

    async def _stored(self, link: Link) -> list[int]:
        """Tokens of the messages in flight that the stream holds already.

        They were sent in order over one connection, so of each subject a prefix was stored, and the subject's
        last message in the stream tells how long it is, if it is ours byte for byte. One with an id of ours and
        another `collected_ts_ms` was stored by another collector: it is there, and says nothing of those before
        it. What is not proven stored is resent, and the stream's duplicate window is what guards. What the stream
        said no to is not stored.
        """
        unsure = self._outbox.unsure()
        sent = dict(self._outbox.flight)  # an answer may still come meanwhile
        stored: list[int] = []
        for subject, last in (await _last_messages(link, self._settings.stream, unsure)).items():
            newest = unsure[subject].get(last.message_id)
            if newest is None:
                continue
            if sent[newest].payload == last.data:
                stored += [token for token in unsure[subject].values() if token <= newest]
            else:
                stored.append(newest)
        return stored

    async def _until_trouble(self, link: Link) -> None:
        """Return when sending must begin anew, and the fate of what is in flight is as clear as can be."""
        while link.connected and not self._outbox.all_answered:
            if self._overdue():
                await self._ack_timed_out(link)
                return
            await self._tick()

    async def _ack_timed_out(self, link: Link) -> None:
        self._open = False
        seconds = self._settings.ack_timeout_s
        self._trouble(
            "ack_timeout",
            f"no acknowledgement from NATS for {seconds:g} s, {self.in_flight} messages in flight",
        )
        if not await link.answers(PING_TIMEOUT_S):
            await link.close()

    def _overdue(self) -> bool:
        """Whether the oldest message in flight has waited too long; by marks in time, no stamp a message."""
        now = time.monotonic()
        oldest = self._outbox.oldest
        self._marks.append((now, self._outbox.newest))
        while now - self._marks[0][0] > self._settings.ack_timeout_s:
            _, newest_then = self._marks.popleft()
            if oldest is not None and oldest <= newest_then:
                return True
        return False

    async def _tick(self) -> None:
        """Wait for news, not longer than the clock-driven checks need."""
        with suppress(TimeoutError):
            async with asyncio.timeout(min(TICK_S, self._settings.ack_timeout_s / 4)):
                await self._wake.wait()
        self._wake.clear()


async def _last_messages(link: Link, stream: str, subjects: Iterable[str]) -> dict[str, StoredMessage]:
    """The last stored message of each subject that has one. Raises LinkError if one question fails."""
    slots = asyncio.Semaphore(LOOKUPS_AT_ONCE)

    async def ask(subject: str) -> tuple[str, StoredMessage | None]:
        async with slots:
            return subject, await link.last_message(stream, subject)

    answers = await asyncio.gather(*(ask(subject) for subject in subjects))
    return {subject: message for subject, message in answers if message is not None}
