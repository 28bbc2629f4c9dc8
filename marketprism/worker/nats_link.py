"""One connection to NATS, a thin layer over nats-py.

Everything that leans on the insides of nats-py is in this module, and there are four such places:

* frames are written straight to its transport (`Link.write`): `Client.publish` costs about 10 us more a
  message, and tells nobody when the bytes left;
* acknowledgements skip its parser, queue and task per subscription (`_Client.take_acks_first`, `_process_msg`);
* what the server says is checked and bounded (`_Parser`, `_Info`);
* a connection ends with nothing left to write and nobody left waiting (`_Client._close`).

A `Link` lives as long as its connection. nats-py's own reconnecting is switched off because it keeps the
commands that were not yet written and sends them first thing on the new connection, before anybody can ask
the stream what it already holds.
"""

import asyncio
import logging
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.transport import TcpTransport
from nats.js.api import ConsumerConfig, DeliverPolicy
from nats.protocol.parser import AWAITING_CONTROL_LINE, Parser

T = TypeVar("T")

log = logging.getLogger(__name__)

AckHandler = Callable[[int, bytes, bytes | None], None]
"""Called with the token of the message, the reply's body and its raw header block (None without one)."""

AcksHandler = Callable[[Sequence[int]], None]
"""Called with the tokens of messages that the stream has stored: the plain answers of one read."""

CLOSE_TIMEOUT_S = 2.0
REQUEST_TIMEOUT_S = 5.0
PING_INTERVAL_S = 10
MESSAGE_NOT_FOUND = 10037
MAX_LINE_BYTES = 64 * 1024
MAX_MESSAGE_BYTES = 8 * 1024 * 1024
"""More is not gathered: what we receive is acknowledgements and messages of our own."""
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not the JSON expected."""
STREAM_NOT_FOUND = 10059
SCHEMES = ("nats", "tls")


class LinkError(Exception):
    """Something NATS could not or would not do, said in one line.

    `code` is JetStream's own error number where there is one, else 0.
    """

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.code = code


class ApiError(msgspec.Struct):
    """JetStream's error object (nats-server, errors.json)."""

    code: int = 0
    err_code: int = 0
    description: str = ""


class StoredMessage(msgspec.Struct):
    """A message as the stream holds it; msgspec undoes the base64 of the two blobs."""

    subject: str
    seq: int
    hdrs: bytes = b""
    data: bytes = b""

    @property
    def message_id(self) -> str:
        """Its `Nats-Msg-Id`, empty if it was published without one."""
        for line in self.hdrs.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"nats-msg-id":
                return value.strip().decode("utf-8", "replace")
        return ""


class _MessageReply(msgspec.Struct):
    message: StoredMessage | None = None
    error: ApiError | None = None


class _Info(msgspec.Struct):
    """What is relied upon of the server's INFO (NATS client protocol)."""

    max_payload: Annotated[int, msgspec.Meta(gt=0)]
    connect_urls: list[str] | None = None


class _OwnError(Exception):
    """A defect of ours came up where nats-py reads; its cause tells which."""


class _Parser(Parser):
    """nats-py's parser, which answers some odd lines by a traceback and a connection that stands and is not read,
    and gathers others for ever. Here all of them end the connection, with the reason as its last error."""

    async def parse(self, data: bytes = b"") -> None:
        """Take in what was read."""
        try:
            if self.nc.defect is not None:
                raise self.nc.defect
            await super().parse(data)
        except OSError:
            raise
        except _OwnError as error:
            log.exception("internal error on an answer of NATS", exc_info=error.__cause__)
            await self._end(f"internal error: {error.__cause__!r}")
            return
        except Exception as error:  # noqa: BLE001 - nats-py stumbles in many ways
            await self._end(f"protocol error: a line not as documented: {error!r}")
            return
        if self.state != AWAITING_CONTROL_LINE and self.needed > MAX_MESSAGE_BYTES:
            await self._end(
                f"protocol error: a message of {self.needed} bytes, at most {MAX_MESSAGE_BYTES} are taken"
            )
        elif self.state == AWAITING_CONTROL_LINE and len(self.buf) > MAX_LINE_BYTES:
            await self._end(f"protocol error: a line of more than {MAX_LINE_BYTES} bytes")

    async def _end(self, why: str) -> None:
        self.reset()
        await self.nc._process_op_err(nats.errors.Error(f"nats: {why}"))


class _Client(Client):
    """nats-py's client, handing the replies of one subscription over without a queue between."""

    ack_sid = -1
    ack_prefix_bytes = 0
    plain_ack: re.Pattern[bytes] | None = None
    on_ack: AckHandler | None = None
    on_acks: AcksHandler | None = None
    defect: _OwnError | None = None

    def __init__(self) -> None:
        super().__init__()
        self._ps = _Parser(self)

    def parting_word(self) -> Exception | None:
        """The server's last error line that nobody read, None without one.

        A server that refuses a client answers and resets the connection; asyncio's reader raises the reset first.
        """
        reader: Any = self._transport._io_reader if isinstance(self._transport, TcpTransport) else None
        unread = bytes(reader._buffer) if reader is not None else b""
        found = re.search(rb"^-ERR ([^\r\n]*)\r\n", unread, re.MULTILINE)
        return nats.errors.Error(found[1].decode("utf-8", "replace")) if found else None

    def take_acks_first(self, sid: int, inbox: str) -> None:
        """From now on take plain acknowledgements as they are read: no buffer, no future, no task in between."""
        # A stored message, and nothing else to say of it (NATS ADR-1): what nearly every answer looks like.
        start = re.escape(f"MSG {inbox}.".encode()) + rb"(\d{1,18})" + f" {sid} +".encode()
        self.plain_ack = re.compile(start + rb'\d+\r\n\{"stream":"[^"\\]*", ?"seq":\d+\}\r\n')
        assert isinstance(self._transport, TcpTransport)  # of nats:// and tls://
        reader: Any = self._transport._io_reader
        pass_on = reader.feed_data

        def feed(data: bytes) -> None:
            if not reader._buffer and not self._ps.buf and self._ps.state == AWAITING_CONTROL_LINE:
                try:
                    data = self._take_acks(data)
                except _OwnError as error:
                    self.defect = error  # told by the parser, which ends the connection
            if data:
                pass_on(data)

        reader.feed_data = feed

    def _take_acks(self, data: bytes) -> bytes:
        """Hand over the plain acknowledgements that stand at the front; return the rest."""
        if self.plain_ack is None or self.on_acks is None:
            return data
        tokens: list[int] = []
        end = 0
        while found := self.plain_ack.match(data, end):
            tokens.append(int(found[1]))
            end = found.end()
        if tokens:
            try:
                self.on_acks(tokens)
            except Exception as error:
                raise _OwnError from error
        return data[end:]

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        try:
            msgspec.convert(info, _Info)
        except msgspec.ValidationError as error:
            raise nats.errors.Error(f"nats: its greeting is not as documented: {error}") from error
        await super()._process_info(info, initial_connection)

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None
    ) -> None:
        if sid != self.ack_sid or self.on_ack is None:
            await super()._process_msg(sid, subject, reply, data, headers)  # type: ignore[arg-type]
            return
        token = subject[self.ack_prefix_bytes :]
        if token.isdigit():
            try:
                self.on_ack(int(token), data, headers)
            except Exception as error:
                raise _OwnError from error

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        # nats-py writes what is pending, which uvloop refuses on a broken connection: then nobody is told of its end.
        self._pending, self._pending_data_size = [], 0
        for waiting in (*self._resp_map.values(), *self._pongs):
            if not waiting.done():  # nats-py lets them wait for their timeout
                waiting.set_exception(nats.errors.ConnectionClosedError())
                waiting.exception()  # seen: nobody may be waiting any more
        self._pongs.clear()
        await super()._close(status, do_cbs)


class Link:
    """A live connection: raw frames out, acknowledgements in."""

    def __init__(
        self,
        on_acks: AcksHandler,
        on_ack: AckHandler,
        on_lost: Callable[[], None],
        on_error: Callable[[str], None],
    ) -> None:
        """Hold the callbacks; `on_lost` may come more than once.

        What `on_acks` and `on_ack` raise is a defect: it is logged and ends the connection.
        """
        self._client = _Client()
        self._client.on_acks = on_acks
        self._client.on_ack = on_ack
        self._on_lost = on_lost
        self._on_error = on_error
        self._last_error: Exception | None = None
        self._opened = False
        self.reply_prefix = b""

    async def open(self, servers: Sequence[str], name: str, options: Mapping[str, Any]) -> None:
        """Connect to one of the servers and listen for acknowledgements.

        `options` are keyword arguments of nats-py's `Client.connect` for authentication and TLS.
        Raises LinkError in one line, whatever the reason.
        """
        try:
            await self._connect(servers, name, options)
        except Exception as error:
            why = self._client.parting_word() or self._last_error or error
            await self.close()
            raise LinkError(_why(why, servers)) from error
        self._opened = True

    async def _connect(self, servers: Sequence[str], name: str, options: Mapping[str, Any]) -> None:
        await self._client.connect(
            servers=list(servers),
            name=name,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            ping_interval=PING_INTERVAL_S,
            error_cb=self._error,
            closed_cb=self._closed,
            **options,
        )
        inbox = self._client.new_inbox()
        subscription = await self._client.subscribe(f"{inbox}.*")
        self._client.ack_sid = subscription._id
        self._client.ack_prefix_bytes = len(inbox) + 1
        self._client.take_acks_first(subscription._id, inbox)
        self.reply_prefix = f"{inbox}.".encode()
        # The round trip lets the SUB reach the transport before any frame written past nats-py's buffer.
        await self._client.flush(REQUEST_TIMEOUT_S)  # type: ignore[arg-type]

    @property
    def connected(self) -> bool:
        """Whether the connection stands, as far as is known."""
        return self._opened and self._client.is_connected

    @property
    def max_payload_bytes(self) -> int:
        """What the server accepts for one message, headers included."""
        return self._client.max_payload

    @property
    def loss(self) -> str:
        """Why the connection ended, as far as is known."""
        return _plain(self._client.last_error or self._last_error or "closed by the server")

    @property
    def client(self) -> Client:
        """nats-py's client, for requests beside the stream of messages."""
        return self._client

    def write(self, frames: bytes) -> None:
        """Hand whole protocol frames to the socket; never blocks. On a dead connection they are gone."""
        transport = self._client._transport
        if transport is None or not self.connected:
            self._on_lost()
            return
        try:
            transport.write(frames)
        except (OSError, RuntimeError) as error:  # RuntimeError: uvloop's word for a closed handle
            self._last_error = error
            self._on_lost()

    async def answers(self, timeout_s: float) -> bool:
        """Whether the server answers a ping in time."""
        try:
            await self._client.rtt(timeout=timeout_s)  # type: ignore[arg-type]
        except (nats.errors.Error, OSError):
            return False
        return self.connected

    async def last_message(self, stream: str, subject: str) -> StoredMessage | None:
        """The newest message of a subject, None if the stream holds none.

        Asked from the stream's leader, not through "direct get", whose answer may come from a replica that
        lags. Raises LinkError (with JetStream's code) if there is no answer.
        """
        request = msgspec.json.encode({"last_by_subj": subject})
        try:
            answer = await _cancellable(
                self._client.request(f"$JS.API.STREAM.MSG.GET.{stream}", request, timeout=REQUEST_TIMEOUT_S)
            )
            reply = msgspec.json.decode(answer.data, type=_MessageReply)
        except (nats.errors.Error, OSError, *UNREADABLE) as error:
            raise LinkError(f"no answer from stream {stream} about {subject}: {_plain(error)}") from error
        if reply.error is None or reply.error.err_code == MESSAGE_NOT_FOUND:
            return reply.message
        raise LinkError(f"stream {stream}: {reply.error.description}", reply.error.err_code)

    async def stored_since(self, stream: str, subject: str, since_s: float) -> list[bytes]:
        """The payloads of a subject stored since then (seconds since the epoch). Raises LinkError."""
        return await _cancellable(self._stored_since(stream, subject, since_s))

    async def _stored_since(self, stream: str, subject: str, since_s: float) -> list[bytes]:
        start = ConsumerConfig(
            deliver_policy=DeliverPolicy.BY_START_TIME, opt_start_time=datetime.fromtimestamp(since_s, UTC)
        )
        found: list[bytes] = []
        try:
            messages = await self._client.jetstream().subscribe(
                subject, stream=stream, ordered_consumer=True, config=start
            )
            try:
                info = await messages.consumer_info()
                left = (info.num_pending or 0) + (info.delivered.consumer_seq if info.delivered else 0)
                while left:
                    message = await messages.next_msg(timeout=REQUEST_TIMEOUT_S)
                    found.append(message.data)
                    left = message.metadata.num_pending
            finally:
                await messages.unsubscribe()
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise LinkError(f"stream {stream}: {subject} cannot be read: {_plain(error)}") from error
        return found

    async def close(self) -> None:
        """End the connection at once; what was written and not sent is dropped."""
        self._opened = False
        transport = self._client._transport
        writer = transport._io_writer if isinstance(transport, TcpTransport) else None
        if writer is not None:
            # Without this a server that stopped reading would keep the socket, and its buffer, for ever.
            writer.transport.abort()
        with suppress(nats.errors.Error, OSError, TimeoutError, AssertionError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._client.close()

    async def _closed(self) -> None:
        self._on_lost()

    async def _error(self, error: Exception) -> None:
        self._last_error = error
        ending = isinstance(error, nats.errors.StaleConnectionError | OSError)
        if self.connected and not ending:
            self._on_error(_plain(error))


async def _cancellable(work: Coroutine[Any, Any, T]) -> T:
    """Await what nats-py does so that a cancellation always arrives.

    Its `asyncio.wait_for` swallows one that comes together with the answer, on Python before 3.12.
    """
    task = asyncio.create_task(work)
    task.add_done_callback(lambda t: t.cancelled() or t.exception())  # seen: nobody may be waiting any more
    try:
        await asyncio.wait([task])
    finally:
        task.cancel()
    return task.result()


def check_servers(servers: Sequence[str]) -> None:
    """Raise ValueError, in one line, for a server address that cannot be used."""
    if not servers:
        raise ValueError(
            "NATS servers: expected at least one address such as nats://127.0.0.1:4222, found none"
        )
    for server in servers:
        scheme = urlsplit(server).scheme if "://" in server else "nats"
        if scheme not in SCHEMES:
            raise ValueError(
                f"NATS server {_address(server)}: expected nats://host:port or tls://host:port, found {scheme}://"
            )


def _why(error: Exception, servers: Sequence[str]) -> str:
    where = ", ".join(_address(server) for server in servers)
    text = _plain(error)
    if "authorization violation" in text.lower() or "authentication" in text.lower():
        return f"NATS at {where} rejects the credentials ({text}); check user, password or token for NATS"
    if isinstance(error, ConnectionRefusedError):
        return f"NATS at {where} refuses the connection; is nats-server running there?"
    if isinstance(error, TimeoutError):
        return f"NATS at {where} does not answer"
    return f"NATS at {where}: {text}"


def _plain(error: object) -> str:
    """An error in one line, without nats-py's prefix."""
    text = " ".join(str(error).split()).removeprefix("nats: ").strip("'")
    return text or type(error).__name__


def _address(server: str) -> str:
    """Host and port without user and password."""
    return server.rpartition("@")[2].removeprefix("nats://").removeprefix("tls://")
