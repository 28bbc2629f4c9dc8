"""The connection to NATS that storage reads from: deliveries without a queue between, and JetStream's few orders.

Two places lean on the insides of nats-py. `_Parser` reads deliveries of a backlog without its copies and states, and
`_Client._process_msg` hands over what is left to the parser without a queue, a future and a message object.
A `Bus` lives as long as its connection.
"""

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, StreamConfig
from nats.protocol.parser import AWAITING_CONTROL_LINE, AWAITING_MSG_PAYLOAD, CRLF_SIZE, Parser

from marketprism.storage.overrun import Begin

CONNECT_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 2.0
PING_INTERVAL_S = 10
PULL_S = 30.0
"""How long a request for messages stands."""
DEAD_BYTES = 256 * 1024**2
UNREACHABLE = (nats.errors.Error, OSError, TimeoutError)
"""What nats-py raises when NATS is away or will not."""

Delivery = Callable[[bytes, bytes, bytes], None]
"""Called with the reply subject, the payload and the raw headers (empty: no headers)."""

_DELIVERY = re.compile(rb"H?MSG \S+ (\d+) (\$JS\.ACK\.\S+) (?:(\d+) )?(\d+)\r\n").match
"""A message of a consumer (NATS client protocol): subscription, reply, header's length, whole length."""


class BusError(Exception):
    """NATS is away or would not do something, in one line."""


class _StreamInfo(msgspec.Struct):
    state: Begin


class _Parser(Parser):
    """nats-py's parser, which is spared the deliveries."""

    async def parse(self, data: bytes = b"") -> None:
        """Take in what was read."""
        if self.state == AWAITING_MSG_PAYLOAD:  # of something else, which is not to take us along
            missing = self.needed + CRLF_SIZE - len(self.buf)
            await super().parse(data[:missing])
            data = data[missing:]
        if self.state == AWAITING_CONTROL_LINE:
            self.buf, data = self._deliver(bytes(self.buf) + data)
        if data:
            await super().parse(data)

    def _deliver(self, data: bytes) -> tuple[bytearray, bytes]:
        """Hand over the deliveries it begins with. Returns one that is not whole yet, and what is none."""
        at = 0
        while line := _DELIVERY(data, at):
            sid, reply, header_bytes, total_bytes = line.groups()
            begin = line.end()
            end = begin + int(total_bytes)
            if end + CRLF_SIZE > len(data):
                return bytearray(data[at:]), b""
            body = begin + int(header_bytes or 0)
            self.nc.deliveries[int(sid)](reply, data[body:end], data[begin:body])
            at = end + CRLF_SIZE
        return bytearray(), data[at:]


class _Client(Client):
    """nats-py's client, handing the messages of some subscriptions over without a queue between."""

    def __init__(self) -> None:
        super().__init__()
        self.deliveries: dict[int, Delivery] = {}
        self._ps = _Parser(self)

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None
    ) -> None:
        delivery = self.deliveries.get(sid)
        if delivery is None:
            await super()._process_msg(sid, subject, reply, data, headers)  # type: ignore[arg-type]
        else:
            delivery(reply, data, headers or b"")


class Bus:
    """A live connection."""

    def __init__(self) -> None:
        """Not connected yet."""
        self._client = _Client()
        self.lost = asyncio.Event()
        """Set when the connection has ended, for good."""
        self.why = ""
        """Why it ended, as far as is known."""

    async def open(self, servers: Sequence[str], name: str, options: Mapping[str, Any]) -> None:
        """Connect to one of the servers; `options` are nats-py's, for login and TLS. Raises BusError."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._client.connect(
                    servers=list(servers),
                    name=name,
                    allow_reconnect=False,
                    ping_interval=PING_INTERVAL_S,
                    error_cb=self._error,
                    closed_cb=self._closed,
                    **options,
                )
        except UNREACHABLE as error:
            await self.close()
            raise BusError(f"no NATS at {', '.join(servers)}: {self.why or _line(error)}") from error

    @property
    def connected(self) -> bool:
        """Whether the connection stands, as far as is known."""
        return self._client.is_connected and not self.lost.is_set()

    def end(self, why: str) -> None:
        """Have done with this connection: somebody found it is of no use."""
        self.why = self.why or why
        self.lost.set()

    async def consumer(
        self, stream: str, name: str, subject: str, max_pending: int, ack_wait_s: float
    ) -> None:
        """Make a durable pull consumer, which begins behind all that was acknowledged to the one of this name, if there
        was one, and else with the oldest message.

        It is made anew each time, so that its deliveries are numbered from 1 and come in the stream's order. To
        acknowledge one is to acknowledge all before it. What is not within `ack_wait_s` comes again. Raises BusError.
        """
        js = self._client.jetstream()
        try:
            done_seq = await self._take_away(stream, name)
            config = ConsumerConfig(
                durable_name=name,
                filter_subject=subject,
                deliver_policy=DeliverPolicy.BY_START_SEQUENCE if done_seq else DeliverPolicy.ALL,
                opt_start_seq=done_seq + 1 if done_seq else None,
                ack_policy=AckPolicy.ALL,
                ack_wait=ack_wait_s,
                max_deliver=-1,
                max_ack_pending=max_pending,
            )
            await js.add_consumer(stream, config)
        except nats.js.errors.NotFoundError as error:
            raise BusError(f"no stream {stream} yet: a collector makes it") from error
        except UNREACHABLE as error:
            raise BusError(f"consumer {name} of stream {stream}: {_line(error)}") from error

    async def _take_away(self, stream: str, name: str) -> int:
        """Delete a consumer; the number in the stream up to which it was acknowledged, 0 where there was none.

        Ended between this and the next step, the next one begins with the oldest message: all comes again, and what is
        stored is not stored twice.
        """
        js = self._client.jetstream()
        try:
            info = await js.consumer_info(stream, name)
            await js.delete_consumer(stream, name)
        except nats.js.errors.NotFoundError:
            return 0
        return info.ack_floor.stream_seq if info.ack_floor else 0

    async def dead_letters(self, stream: str, subjects: Sequence[str]) -> None:
        """Make the stream for messages that cannot be stored, where it is missing. Raises BusError."""
        js = self._client.jetstream()
        try:
            try:
                await js.stream_info(stream)
            except nats.js.errors.NotFoundError:
                await js.add_stream(
                    StreamConfig(
                        name=stream, subjects=list(subjects), max_bytes=DEAD_BYTES, duplicate_window=3600
                    )
                )
        except UNREACHABLE as error:
            raise BusError(f"stream {stream}: {_line(error)}") from error

    async def begin(self, stream: str) -> Begin:
        """Where the stream begins now. Raises BusError."""
        try:
            answer = await self._client.request(f"$JS.API.STREAM.INFO.{stream}", timeout=CONNECT_TIMEOUT_S)
            return msgspec.json.decode(answer.data, type=_StreamInfo).state
        except (*UNREACHABLE, msgspec.MsgspecError) as error:
            raise BusError(f"stream {stream}: {_line(error)}") from error

    async def listen(self, delivery: Delivery) -> str:
        """A subject of our own whose messages go to `delivery`. Raises BusError."""
        try:
            inbox = self._client.new_inbox()
            subscription = await self._client.subscribe(inbox)
            self._client.deliveries[subscription._id] = delivery
        except UNREACHABLE as error:
            raise BusError(f"cannot subscribe: {_line(error)}") from error
        return inbox

    async def pull(self, stream: str, consumer: str, inbox: str, messages: int) -> None:
        """Ask for at most so many messages, to be sent to the inbox as they come."""
        order = {"batch": messages, "expires": int(PULL_S * 1e9)}
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        with suppress(*UNREACHABLE):  # of a connection that ends, which `lost` tells
            await self._client.publish(subject, msgspec.json.encode(order), reply=inbox)

    async def acknowledge(self, reply: bytes) -> None:
        """Tell JetStream that this delivery and all before it are done with. If it does not arrive they come again."""
        with suppress(*UNREACHABLE):
            await self._client.publish(reply.decode(), b"")

    async def publish(self, subject: str, payload: bytes, headers: dict[str, str]) -> None:
        """Publish and wait until the stream has it. Raises BusError."""
        try:
            await self._client.jetstream().publish(subject, payload, headers=headers)
        except UNREACHABLE as error:
            raise BusError(f"{subject}: {_line(error)}") from error

    @property
    def max_payload_bytes(self) -> int:
        """What the server takes of one message, headers included."""
        return self._client.max_payload

    async def close(self) -> None:
        """End the connection."""
        self.lost.set()
        with suppress(*UNREACHABLE, AssertionError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._client.close()

    async def _closed(self) -> None:
        self.lost.set()

    async def _error(self, error: Exception) -> None:
        self.why = _line(error)


def _line(error: object) -> str:
    """An error in one line, without nats-py's prefix."""
    return " ".join(str(error).split()).removeprefix("nats: ") or type(error).__name__
