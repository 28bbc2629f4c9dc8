"""The messages of one data type on their way: asked for, gathered, stored, and only then acknowledged.

While a batch is being stored the next one is gathered; when that is full nothing more is asked for. So an engine that
is slow or away costs two batches of memory, and the rest waits in the stream.
"""

import asyncio
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, repeat
from typing import NamedTuple, TypeVar

from marketprism.config import BatchSettings
from marketprism.logs import RateLimitedLog
from marketprism.storage.bus import PULL_S, Bus, BusError
from marketprism.storage.engine import EngineError
from marketprism.storage.rows import Refused, Rows
from marketprism.storage.schema import Table
from marketprism.storage.writer import Stored, Writer

T = TypeVar("T")

RETRY_S = (0.5, 1.0, 2.0, 5.0)
"""How long to wait before trying again; the last one for as long as it takes."""
# Longer than a batch takes as a rule: what comes again meanwhile costs time, and nothing else.
ACK_WAIT_S = 10.0
ACK_WAIT_BATCHES = 20
FIRST_MEAN_BYTES = 32 * 1024
"""Of a message, before any was seen; of orderbooks, the largest, it is about that."""
DEAD_STREAM = "MARKET_DATA_DEAD"
DEAD_SUBJECT = "dead"
_MESSAGE_ID = re.compile(rb"\r\nNats-Msg-Id: *([^\r\n]*)", re.IGNORECASE)
_DEAD_ROOM_BYTES = 4096  # for the headers of a dead letter
_REASON_CHARACTERS = 500


@dataclass(slots=True)
class Counts:
    """What became of the messages of one data type since the start."""

    received: int = 0
    redelivered: int = 0
    stored: int = 0
    repeated: int = 0  # not stored, since they were stored already
    dead: int = 0
    batches: int = 0
    failures: int = 0
    overruns: int = 0  # times that the stream dropped what was not stored yet
    last_message_s: float = 0.0
    last_stored_s: float = 0.0
    last_failure_s: float = 0.0
    waiting: int = 0  # in the stream, as of the last message
    of: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By exchange and market type, repeated ones included."""


class _Batch:
    """Messages that are stored and acknowledged together, as they came from the wire.

    All are of one connection, and `first_number` is that of the first delivery. To acknowledge the last one is to
    acknowledge all before it, so none must be missing.
    """

    def __init__(self, bus: Bus | None, first_number: int) -> None:
        self.bus = bus
        self.first_number = first_number
        self.replies: list[bytes] = []
        self.payloads: list[bytes] = []
        self.headers: list[bytes] = []
        self.bytes = 0
        self.redelivered = 0
        """How many came before; known once `rows` was called, like what follows."""
        self.waiting = 0
        """How many are in the stream behind them."""
        self.last = b""
        """The reply of the message that is last in the stream."""
        self.missing = ""
        """Which delivery is missing, "" for none."""

    def rows(self, table: Table) -> Rows:
        """The same as rows to be."""
        rows, deliveries = Rows(table), _deliveries(self.replies)
        for number, got in enumerate(deliveries.numbers, self.first_number):
            if number != got:
                self.missing = f"expected delivery {number}, got {got}"
                break
        self.last = self.replies[deliveries.seqs.index(max(deliveries.seqs))]
        self.waiting = deliveries.waiting[-1]
        self.redelivered = len(self.replies) - deliveries.times.count(1)
        for payload, headers, seq in zip(self.payloads, self.headers, deliveries.seqs, strict=True):
            found = _MESSAGE_ID.search(headers)
            rows.add(payload, found[1].decode("utf-8", "replace") if found else "", seq)
        return rows


class Consumer:
    """Everything of one data type."""

    def __init__(
        self, table: Table, stream: str, limits: BatchSettings, writer: Writer, log: RateLimitedLog
    ) -> None:
        """Read `stream`, write to `table`."""
        self.table = table
        self.name = f"marketprism_hot_{table.data_type}"
        self.counts = Counts()
        self.trouble = ""
        """Why nothing can be stored now, "" while all is well."""
        self.busy_since_s = 0.0
        """When the present attempt to store a batch began, by the monotonic clock; 0 between batches."""
        self._stream = stream
        self._limits = limits
        self._writer = writer
        self._bus: Bus | None = None
        self._inbox = ""
        self._last = b""  # the subject that acknowledges the message that came last
        self._asked = 0  # messages the request that stands may still bring
        self._asked_until = 0.0
        self._mean_bytes = FIRST_MEAN_BYTES
        self._batch = _Batch(None, 1)
        self._asking: asyncio.Task[None] | None = None  # held, or it might be collected before it is done
        self._begun = asyncio.Event()
        self._full = asyncio.Event()
        self._stopping = False
        self._log = log

    @property
    def gathered(self) -> tuple[int, int]:
        """Messages and bytes that wait to be stored."""
        return len(self._batch.replies), self._batch.bytes

    async def attach(self, bus: Bus) -> None:
        """Go on reading, over a new connection. Raises BusError.

        What was gathered and is not being stored yet comes again, as all does that was not acknowledged.
        """
        subject = f"{self.table.data_type}.>"
        ack_wait_s = ACK_WAIT_S + ACK_WAIT_BATCHES * self._limits.seconds
        await bus.consumer(self._stream, self.name, subject, 4 * self._limits.rows, ack_wait_s)
        self._inbox = await bus.listen(self._take)
        self._bus, self._asked, self._batch = bus, 0, _Batch(bus, 1)
        await self._ask()

    @property
    def reached(self) -> tuple[int, int]:
        """Number in the stream of the message that came last, and how many wait behind it; zeros before the first."""
        if not self._last:
            return 0, 0
        last = _deliveries([self._last])
        return last.seqs[0], last.waiting[0]

    async def keep_asking(self) -> None:
        """Ask again where a request has run out unanswered. Call it every few seconds."""
        if self._asked and time.monotonic() > self._asked_until:
            self._asked = 0
        await self._ask()

    def stop(self) -> None:
        """Store what has been gathered, then let `run` return."""
        self._stopping = True
        self._begun.set()
        self._full.set()

    async def run(self) -> None:
        """Store batch after batch, until `stop`."""
        while True:
            await self._begun.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._limits.seconds):
                    await self._full.wait()
            batch = self._batch
            if self._stopping and not batch.replies:
                return
            if not self._stopping:
                self._begun.clear()
                self._full.clear()
            if not batch.replies:  # a new connection has come in between
                continue
            self._batch = _Batch(batch.bus, batch.first_number + len(batch.replies))
            self._mean_bytes = batch.bytes // len(batch.replies) + 1
            await self._ask()
            await self._store(batch)
            self.busy_since_s = 0.0

    # -- in ----------------------------------------------------------------------------------------------------

    async def _ask(self) -> None:
        room = self._limits.rows - len(self._batch.replies)
        bytes_ = self._limits.bytes - self._batch.bytes
        if self._bus is None or self._asked or self._stopping or room <= 0 or bytes_ <= 0:
            return
        # Not in bytes: where they are used up exactly, the request ends without a word (nats-server, nextWaiting).
        self._asked = min(room, bytes_ // self._mean_bytes + 1)
        self._asked_until = time.monotonic() + PULL_S + 5
        await self._bus.pull(self._stream, self.name, self._inbox, self._asked)

    def _take(self, reply: bytes, payload: bytes, headers: bytes) -> None:
        """A message from the wire, or the server's word on our request."""
        if not reply:
            self._status(headers)
            return
        batch = self._batch
        batch.replies.append(reply)
        batch.payloads.append(payload)
        batch.headers.append(headers)
        batch.bytes += len(payload)
        self._asked = max(0, self._asked - 1)
        self._last = reply
        self._begun.set()
        if len(batch.replies) >= self._limits.rows or batch.bytes >= self._limits.bytes:
            self._full.set()
        elif not self._asked:
            self._ask_soon()

    def _status(self, headers: bytes) -> None:
        """The request that stood has ended (NATS docs, pull consumers: 404, 408, 409), or cannot be served."""
        self._asked = 0
        line = headers.split(b"\r\n", 1)[0].decode("ascii", "replace").removeprefix("NATS/1.0 ")
        if line[:3] in ("404", "408") or "Leadership" in line:
            self._ask_soon()
        elif self._bus is not None:
            self._bus.end(f"consumer {self.name}: {line}")

    def _ask_soon(self) -> None:
        self._asking = asyncio.get_running_loop().create_task(self._ask())

    # -- out ---------------------------------------------------------------------------------------------------

    async def _store(self, batch: _Batch) -> None:
        """Until it is done: nothing is given up."""
        rows = await asyncio.to_thread(batch.rows, self.table)
        self._count(batch)
        columns, refused = await asyncio.to_thread(rows.arrow)
        stored = await self._until_done(partial(self._writer.store, self.table, columns))
        for one in refused:
            await self._until_done(partial(self._bury, rows, one))
        self._count_stored(stored, len(refused))
        await self._acknowledge(batch)

    async def _acknowledge(self, batch: _Batch) -> None:
        if batch.bus is None or batch.bus is not self._bus:
            return  # its numbers mean nothing to the new consumer
        if batch.missing:
            batch.bus.end(f"consumer {self.name}: {batch.missing}; does another store read this stream?")
        else:
            await batch.bus.acknowledge(batch.last)

    def _count(self, batch: _Batch) -> None:
        counts = self.counts
        counts.received += len(batch.replies)
        counts.redelivered += batch.redelivered
        counts.waiting = batch.waiting
        counts.last_message_s = time.time()

    def _count_stored(self, stored: Stored, dead: int) -> None:
        counts = self.counts
        counts.batches += 1
        counts.stored += stored.inserted
        counts.repeated += stored.repeated
        counts.dead += dead
        counts.of += stored.of
        counts.last_stored_s = time.time()

    async def _bury(self, rows: Rows, refused: Refused) -> None:
        """Put a message where it does not vanish, with what is wrong with it. Raises BusError."""
        if self._bus is None:
            raise BusError("not connected to NATS")
        seq, payload = rows.seqs[refused.index], rows.payloads[refused.index]
        headers = {
            "Nats-Msg-Id": f"{self._stream}:{seq}",
            "Marketprism-Reason": _printable(refused.reason),
            "Marketprism-Stream-Seq": str(seq),
            "Marketprism-Message-Id": _printable(rows.ids[refused.index]),
        }
        if len(payload) > self._bus.max_payload_bytes - _DEAD_ROOM_BYTES:
            headers["Marketprism-Left-Out"] = f"{len(payload)} bytes of payload"
            payload = b""
        await self._bus.publish(f"{DEAD_SUBJECT}.{self.table.data_type}", payload, headers)
        text = "%s: message %d goes to %s: %s"
        self._log.warning("dead", text, self.table.name, seq, DEAD_STREAM, refused.reason)

    async def _until_done(self, attempt: Callable[[], Awaitable[T]]) -> T:
        for wait_s in chain(RETRY_S, repeat(RETRY_S[-1])):
            self.busy_since_s = time.monotonic()
            try:
                result = await attempt()
            except (EngineError, BusError) as error:
                self.trouble = str(error)
                self.counts.failures += 1
                self.counts.last_failure_s = time.time()
                self._log.error(
                    "store", "%s: waits to be stored: %s", self.table.name, error, event="waiting"
                )
                await asyncio.sleep(wait_s)
            else:
                break
        if self.trouble:
            self._log.warning("again", "%s: stored again", self.table.name, event="resumed")
            self.trouble = ""
        return result


class _Deliveries(NamedTuple):
    """Of each: number in the stream, how often it came, the delivery's own number, how many wait behind it."""

    seqs: list[int]
    times: list[int]
    numbers: list[int]
    waiting: list[int]


def _deliveries(replies: Sequence[bytes]) -> _Deliveries:
    """What the subjects of acknowledgements tell (NATS ADR-15); all are of one consumer, and so of one form."""
    tokens = b".".join(replies).split(b".")
    width = len(tokens) // len(replies)
    at = 4 if width == 9 else 6  # with or without domain and account
    times, seqs, numbers, waiting = ([*map(int, tokens[at + i :: width])] for i in (0, 1, 2, 4))
    return _Deliveries(seqs, times, numbers, waiting)


def _printable(text: str) -> str:
    """What may stand in a header."""
    return "".join(c if c.isprintable() else "?" for c in text)[:_REASON_CHARACTERS]
