"""A stream full of events as the workers publish them: what the hot store is measured on."""

import asyncio
import socket
import time
from collections.abc import Iterator
from random import Random
from typing import Any, BinaryIO

import msgspec
import nats
from nats.js.api import StreamConfig

from marketprism.events import PAYLOADS, Level, OrderBook, OrderBookDelta, Payload, Trade, encode, subject

SYMBOLS = ("BTC", "ETH", "SOL", "XRP", "ADA", "BNB", "DOT", "LTC", "AVAX", "LINK")
EVENTS_PER_MS = 6
"""Of event time: ten times what the five simulated exchanges bring at 120 messages/s each."""
_WINDOW = 2000  # messages between two acknowledgements: the server drops what it cannot keep up with
_ACKS = "bench.acks"


class FillingError(Exception):
    """NATS did not take what it was sent."""


def events(count: int, seed: int = 1) -> Iterator[tuple[str, bytes, str]]:
    """Subject, payload and id of so many events: of a hundred, 80 trades, 18 book changes and 2 books of 50 levels.

    That is about what the five simulated exchanges bring.
    """
    random = Random(seed)
    began_ms = int(time.time() * 1000)
    for i in range(count):
        coin = random.choice(SYMBOLS)
        common = {
            "exchange": "binance_spot",
            "market_type": "spot",
            "symbol": f"{coin}-USDT",
            "instrument_id": f"{coin}USDT",
            "ts_ms": began_ms + i // EVENTS_PER_MS,
            "collected_ts_ms": began_ms + i // EVENTS_PER_MS + 5,
        }
        data = _payload(random, common, i)
        data_type = str(data.__struct_config__.tag)
        where = subject(data_type, data.exchange, data.market_type, data.symbol)
        yield where, encode(data), f"{data_type}:binance_spot:spot:{coin}USDT:{10**9 + i}"


def _payload(random: Random, common: dict[str, Any], i: int) -> Payload:
    kind = i % 50
    if kind == 0:
        bids, asks = _levels(random, 50), _levels(random, 50)
        return OrderBook(
            **common,
            bids=bids,
            asks=asks,
            depth_levels=50,
            last_update_id=10**10 + i,
            quantity_unit="base",
            normalized_symbol=common["symbol"],
            standardized_at="2026-11-23T00:00:00Z",
        )
    if kind < 10:
        return OrderBookDelta(
            **common,
            update_type="delta",
            bids=_levels(random, random.randint(1, 20)),
            asks=_levels(random, random.randint(1, 20)),
            first_update_id=10**10 + i,
            last_update_id=10**10 + i + 9,
            prev_update_id=10**10 + i - 1,
            quantity_unit="base",
        )
    quantity = f"{random.random():.5f}"
    return Trade(
        **common,
        trade_id=str(10**9 + i),
        price=f"{60_000 + 100 * random.random():.2f}",
        quantity=quantity,
        exchange_quantity=quantity,
        quantity_unit="base",
        side="sell" if i & 1 else "buy",
        trade_ts_ms=common["ts_ms"],
        normalized_symbol=common["symbol"],
    )


def _levels(random: Random, count: int) -> list[Level]:
    return [Level(f"{60_000 + 100 * random.random():.2f}", f"{random.random():.5f}") for _ in range(count)]


def fill(port: int, messages: Iterator[tuple[str, bytes, str]]) -> int:
    """Publish into a stream MARKET_DATA of the server on that port; how many. Raises FillingError, OSError."""
    asyncio.run(_make_stream(port))
    with socket.create_connection(("127.0.0.1", port)) as connection:
        answers = connection.makefile("rb")
        answers.readline()  # INFO
        hello = {"verbose": False, "headers": True, "lang": "bench", "version": "1", "protocol": 1}
        connection.sendall(b"CONNECT %b\r\nSUB %b 1\r\n" % (msgspec.json.encode(hello), _ACKS.encode()))
        return _send(connection, answers, messages)


async def _make_stream(port: int) -> None:
    client = await nats.connect(f"nats://127.0.0.1:{port}")
    subjects = [f"{data_type}.>" for data_type in PAYLOADS]
    await client.jetstream().add_stream(
        StreamConfig(name="MARKET_DATA", subjects=subjects, duplicate_window=1)
    )
    await client.close()


def _send(connection: socket.socket, answers: BinaryIO, messages: Iterator[tuple[str, bytes, str]]) -> int:
    """Every so often one asks for its acknowledgement; that of the last but one window is waited for."""
    frames: list[bytes] = []
    sent = asked = heard = 0
    for sent, (where, payload, identity) in enumerate(messages, 1):
        frames.append(_frame(where, payload, identity, ask=sent % _WINDOW == 0))
        if sent % _WINDOW == 0:
            connection.sendall(b"".join(frames))
            frames.clear()
            asked += 1
            while heard < asked - 1:
                _hear(answers, connection)
                heard += 1
    connection.sendall(b"".join(frames))
    while heard < asked:
        _hear(answers, connection)
        heard += 1
    return sent


def _frame(where: str, payload: bytes, identity: str, *, ask: bool) -> bytes:
    headers = f"NATS/1.0\r\nNats-Msg-Id: {identity}\r\n\r\n".encode()
    line = f"HPUB {where} {f'{_ACKS} ' if ask else ''}{len(headers)} {len(headers) + len(payload)}\r\n"
    return b"%b%b%b\r\n" % (line.encode(), headers, payload)


def _hear(answers: BinaryIO, connection: socket.socket) -> None:
    """The next acknowledgement."""
    while line := answers.readline():
        if line.startswith(b"PING"):
            connection.sendall(b"PONG\r\n")
        elif line.startswith(b"MSG"):
            body = answers.read(int(line.split()[-1]) + 2)
            if b'"seq"' in body:
                return
            raise FillingError(f"the stream refuses: {body.decode(errors='replace').strip()}")
        elif line.startswith(b"-ERR"):
            raise FillingError(f"NATS: {line.decode(errors='replace').strip()}")
    raise FillingError("NATS closed the connection")
