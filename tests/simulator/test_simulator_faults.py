"""Each fault over real sockets, seen by a plain client as the exchanges' documents describe it."""

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
import uvloop
from simulator_support import fetch, go, listening, opened, until
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from marketprism.simulator import CATALOG, DEFAULT_SYMBOLS, WORKERS, Fault, Simulator

SPOT, USDM, OKX, SWAP, DERIBIT = WORKERS
FIRST = {worker: names[0] for worker, names in DEFAULT_SYMBOLS.items()}


class Book:
    """One book update as its exchange tells it: the id it follows, the id it ends at, its levels."""

    def __init__(self, worker: str, message: dict[str, Any]) -> None:
        if worker.startswith("binance"):
            data = message["data"]
            self.previous, self.last = (data["U"] - 1 if worker == SPOT else data["pu"]), data["u"]
            self.ms, self.bids, self.asks = data["E"], data["b"], data["a"]
        elif worker.startswith("okx"):
            data = message["data"][0]
            self.previous, self.last, self.ms = data["prevSeqId"], data["seqId"], int(data["ts"])
            self.bids, self.asks = data["bids"], data["asks"]
        else:
            data = message["params"]["data"]
            self.previous, self.last, self.ms = (
                data.get("prev_change_id", -1),
                data["change_id"],
                data["timestamp"],
            )
            self.bids, self.asks = ([level[1:] for level in data[side]] for side in ("bids", "asks"))


def is_book(worker: str, message: dict[str, Any]) -> bool:
    """An update of the worker's first instrument."""
    name = FIRST[worker]
    if worker.startswith("binance"):
        return bool(message.get("stream") == f"{name.lower()}@depth@100ms")
    if worker.startswith("okx"):
        return bool(message.get("arg") == {"channel": "books", "instId": name} and "data" in message)
    return bool(message.get("params", {}).get("channel") == f"book.{name}.100ms")


async def book(client: ClientConnection, worker: str) -> Book:
    return Book(worker, await until(client, lambda m: is_book(worker, m)))


async def books(client: ClientConnection, worker: str, count: int) -> list[Book]:
    return [await book(client, worker) for _ in range(count)]


async def past(simulator: Simulator, client: ClientConnection, worker: str, fires: int) -> list[Book]:
    """What comes until the worker's faults have fired so often, and a little after, however late it is read."""
    told: list[Book] = []
    while sum(one.state == "fired" and one.fault.worker == worker for one in simulator.injected) < fires:
        told.append(await book(client, worker))
    newest = simulator.truth.update_ids(worker, FIRST[worker])[-1]
    while not told or told[-1].last < newest:
        told.append(await book(client, worker))
    return told + await books(client, worker, 2)


def holes(told: list[Book]) -> int:
    return sum(after.previous != before.last for before, after in pairwise(told))


def inject(simulator: Simulator, name: str, worker: str, **more: Any) -> None:
    simulator.inject_fault(Fault(name, worker, instrument=more.pop("instrument", FIRST[worker]), **more))


async def trade_ids(client: ClientConnection, count: int) -> list[int]:
    stream = f"{FIRST[SPOT].lower()}@trade"
    return [(await until(client, lambda m: m["stream"] == stream))["data"]["t"] for _ in range(count)]


def rpc(method: str, **parameters: Any) -> str:
    return json.dumps({"jsonrpc": "2.0", "id": 9, "method": f"public/{method}", "params": parameters})


def subscribe(channel: str, name: str) -> str:
    return json.dumps({"op": "subscribe", "args": [{"channel": channel, "instId": name}]})


def at(
    workers: Sequence[str], scenario: Callable[[Simulator, str], Awaitable[None]], **settings: Any
) -> None:
    """The scenario at several exchanges at once."""

    async def work(simulator: Simulator) -> None:
        await asyncio.gather(*(scenario(simulator, worker) for worker in workers))

    go(work, **settings)


def test_each_fault_is_in_this_file() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in CATALOG if f'"{name}"' not in source] == []


# -- books -----------------------------------------------------------------------------------------------------


def test_a_dropped_update_is_a_hole_and_in_the_truth() -> None:
    async def work(simulator: Simulator, worker: str) -> None:
        async with listening(simulator, worker) as client:
            told = await books(client, worker, 3)
            inject(simulator, "drop_next_book_update", worker, count=2)
            told += await past(simulator, client, worker, 2)
        ids = simulator.truth.update_ids(worker, FIRST[worker])
        before, after = next((b, a) for b, a in pairwise(told) if a.previous != b.last)
        assert holes(told) == 1
        assert ids.index(after.last) - ids.index(before.last) == 3

    at([SPOT, DERIBIT], work)


def test_two_updates_change_places() -> None:
    async def work(simulator: Simulator) -> None:
        async with listening(simulator, USDM) as client:
            first = await book(client, USDM)
            inject(simulator, "reorder_book_updates", USDM)
            told = [first, *await past(simulator, client, USDM, 1)]
        assert holes(told) == 3
        assert holes(sorted(told, key=lambda one: one.last)) == 0

    go(work)


def test_an_update_comes_twice() -> None:
    async def work(simulator: Simulator) -> None:
        async with listening(simulator, OKX) as client:
            await book(client, OKX)
            inject(simulator, "duplicate_book_update", OKX)
            ids = [one.last for one in await past(simulator, client, OKX, 1)]
        assert len(set(ids)) == len(ids) - 1
        assert any(before == after for before, after in pairwise(ids))

    go(work)


def test_a_crossed_update_and_an_uncrossed_truth() -> None:
    async def work(simulator: Simulator, worker: str) -> None:
        async with listening(simulator, worker) as client:
            await book(client, worker)
            inject(simulator, "cross", worker)
            for one in await past(simulator, client, worker, 1):
                bids, asks = simulator.truth.book_at(worker, FIRST[worker], one.last)
                assert max(map(Decimal, bids)) < min(map(Decimal, asks))
                told = [Decimal(str(level[0])) for level in one.bids if Decimal(str(level[1]))]
                if told and max(told) > min(map(Decimal, asks)):
                    return
        raise AssertionError("no crossed update")

    at(WORKERS, work)


def test_deletes_of_levels_nobody_has() -> None:
    async def work(simulator: Simulator, worker: str) -> None:
        async with listening(simulator, worker) as client:
            before = await book(client, worker)
            inject(simulator, "orphan_deletes", worker, count=3)
            told = [before, *await past(simulator, client, worker, 3)]
        orphans = [0, 0]
        for known, one in pairwise(told):
            states = [simulator.truth.book_at(worker, FIRST[worker], at.last) for at in (known, one)]
            for side, levels in enumerate((one.bids, one.asks)):
                held = {Decimal(price) for state in states for price in state[side]}
                orphans[side] += sum(not float(n) and Decimal(str(p)) not in held for p, n, *_ in levels)
        assert holes(told) == 0
        assert min(orphans) >= 3

    at(WORKERS, work)


def test_a_level_is_wrong_under_right_ids() -> None:
    async def work(simulator: Simulator, worker: str) -> None:
        async with listening(simulator, worker) as client:
            await book(client, worker)
            inject(simulator, "wrong_level", worker)
            told = await past(simulator, client, worker, 1)
            assert holes(told) == 0
            lies = []
            for one in told:
                truth = simulator.truth.book_at(worker, FIRST[worker], one.last)
                for side, levels in ((truth[0], one.bids), (truth[1], one.asks)):
                    quantities = {Decimal(p): Decimal(q) for p, q in side.items()}
                    lies += [
                        p for p, q, *_ in levels if quantities.get(Decimal(str(p)), 0) != Decimal(str(q))
                    ]
            assert len(lies) == 1

    at(WORKERS, work)


def test_the_price_runs_out_of_a_truncated_snapshot() -> None:
    async def work(simulator: Simulator) -> None:
        urls, name = simulator.urls[USDM], FIRST[USDM]
        rest = {"url": urls["base_url"] + "/fapi/v1/depth", "symbol": name, "limit": 500}
        snapshot = await fetch(**rest)
        highest = max(float(price) for price, _ in snapshot["asks"])
        async with opened(f"{urls['ws_url']}/public/ws/{name.lower()}@bookTicker") as client:
            inject(simulator, "price_run", USDM, seconds=1.0)
            top = await until(client, lambda m: float(m["b"]) > highest)
            assert float(top["b"]) < float(top["a"])
            inject(simulator, "price_run", USDM, seconds=1.0)
            await until(client, lambda m: float(m["b"]) < highest)
        bids, asks = simulator.truth.book_at(USDM, name, simulator.truth.update_ids(USDM, name)[-1])
        assert max(map(float, bids)) < min(map(float, asks))

    go(work)


# -- trades ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "steps"), [("drop_next_trade", [1, 2]), ("duplicate_trade", [0, 1]), ("late_trade", [-1, 1, 2])]
)
def test_trades_lost_doubled_and_late(name: str, steps: list[int]) -> None:
    async def work(simulator: Simulator) -> None:
        async with listening(simulator, SPOT) as client:
            ids = await trade_ids(client, 2)
            inject(simulator, name, SPOT)
            ids += await trade_ids(client, 8)
        assert sorted({after - before for before, after in pairwise(ids)}) == steps
        truth = [int(one.id) for one in simulator.truth.trades(SPOT, FIRST[SPOT])]
        assert truth == list(range(truth[0], truth[0] + len(truth)))
        assert set(ids) <= set(truth)

    go(work)


# -- the wire --------------------------------------------------------------------------------------------------


class Raw:
    """A websocket as bytes: everything the server writes, and how it ended."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self.reader = reader
        self.left = b""
        self.was_reset = False

    async def frames(self) -> AsyncIterator[bytes]:
        """Payloads of whole frames; what remains of a cut one is `left`."""
        while True:
            while (whole := _split(self.left)) is not None:
                payload, self.left = whole
                yield payload
            try:
                got = await self.reader.read(65_536)
            except ConnectionResetError:
                self.was_reset = True
                return
            if not got:
                return
            self.left += got


def _split(data: bytes) -> tuple[bytes, bytes] | None:
    wide = {126: 2, 127: 8}.get(data[1], 0) if len(data) > 1 else 0
    if len(data) < 2 + wide:
        return None
    size = int.from_bytes(data[2 : 2 + wide], "big") if wide else data[1]
    end = 2 + wide + size
    return (data[2 + wide : end], data[end:]) if len(data) >= end else None


@asynccontextmanager
async def raw(url: str) -> AsyncIterator[Raw]:
    """Past the handshake."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    key = base64.b64encode(os.urandom(16)).decode()
    head = f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\n"
    writer.write(
        f"{head}Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
    try:
        yield Raw(reader)
    finally:
        writer.transport.abort()


def test_disconnect() -> None:
    async def work(simulator: Simulator) -> None:
        async with listening(simulator, DERIBIT) as client:
            await book(client, DERIBIT)
            simulator.inject("disconnect", DERIBIT)
            with pytest.raises(ConnectionClosed):
                await until(client, lambda m: False)
        async with listening(simulator, DERIBIT) as client:
            await book(client, DERIBIT)

    go(work)


LOOPS = pytest.mark.parametrize("run", [asyncio.run, uvloop.run])


@LOOPS
def test_a_frame_ends_in_its_middle_with_a_reset(run: Any) -> None:
    async def work(simulator: Simulator) -> None:
        async with raw(f"{simulator.urls[SPOT]['ws_url']}/ws/btcusdt@depth@100ms") as client:
            whole = 0
            async for payload in client.frames():
                assert json.loads(payload)["e"] == "depthUpdate"
                whole += 1
                if whole == 2:
                    inject(simulator, "disconnect_mid_frame", SPOT)
        assert client.was_reset
        assert b'"e":"depthUpdate"' in client.left

    go(work, run)


def test_a_snapshot_in_band_ends_in_its_middle() -> None:
    async def work(simulator: Simulator, worker: str) -> None:
        inject(simulator, "disconnect_mid_snapshot", worker)
        async with listening(simulator, worker) as client:
            with pytest.raises(ConnectionClosed):
                await until(client, lambda m: is_book(worker, m))
        async with listening(simulator, worker) as client:
            assert (await book(client, worker)).previous == -1

    at([OKX, DERIBIT], work)


@pytest.mark.parametrize(
    ("worker", "path", "key"), [(SPOT, "/api/v3/depth", "symbol"), (SWAP, "/api/v5/market/books", "instId")]
)
def test_a_snapshot_over_rest_ends_in_its_middle(worker: str, path: str, key: str) -> None:
    async def work(simulator: Simulator) -> None:
        url, query = simulator.urls[worker]["base_url"] + path, {key: FIRST[worker]}
        inject(simulator, "disconnect_mid_snapshot", worker)
        with pytest.raises(aiohttp.ClientError):
            await fetch(url, **query)
        assert await fetch(url, **query)

    go(work)


def test_silence_for_a_time() -> None:
    async def work(simulator: Simulator) -> None:
        async with listening(simulator, SPOT) as client:
            before = (await books(client, SPOT, 2))[-1]
            inject(simulator, "silence", SPOT, seconds=0.6)
            after = await book(client, SPOT)
        ids = simulator.truth.update_ids(SPOT, FIRST[SPOT])
        assert ids.index(after.last) - ids.index(before.last) >= 4

    go(work)


def test_silence_keeps_the_socket_open() -> None:
    async def work(simulator: Simulator) -> None:
        async with listening(simulator, SPOT) as muted:
            await muted.recv()
            simulator.inject("silence", SPOT)
            heard = asyncio.create_task(until(muted, lambda m: False))
            async with listening(simulator, SPOT) as fresh:
                await books(fresh, SPOT, 6)
            assert not heard.done()
            assert simulator.status()["workers"][SPOT]["connections"] == 1  # type: ignore[index]
            heard.cancel()
            muted.transport.abort()

    go(work)


@LOOPS
def test_a_half_open_socket_answers_nothing_until_its_reset(run: Any) -> None:
    async def work(simulator: Simulator) -> None:
        url = f"{simulator.urls[USDM]['ws_url']}/public/ws/btcusdt@depth@100ms"
        async with opened(url) as lost, raw(url) as bare:
            await lost.recv()
            inject(simulator, "half_open", USDM, seconds=1.0)
            pong = await lost.ping()
            async with listening(simulator, USDM) as fresh:
                await books(fresh, USDM, 4)
                assert not pong.done()
            with pytest.raises(ConnectionClosed):
                await until(lost, lambda m: False)
            assert not pong.done() or pong.exception()
            assert len([payload async for payload in bare.frames()]) <= 4
            assert bare.was_reset

    go(work, run)


def test_slow_frames_come_late_and_whole() -> None:
    async def work(simulator: Simulator) -> None:
        async with listening(simulator, SPOT) as client:
            told = await books(client, SPOT, 1)
            inject(simulator, "slow", SPOT, seconds=1.5)
            behind = 0
            while simulator.faults.busy:
                told.append(await book(client, SPOT))
                ids = simulator.truth.update_ids(SPOT, FIRST[SPOT])
                behind = max(behind, len(ids) - 1 - ids.index(told[-1].last))
            last = simulator.truth.update_ids(SPOT, FIRST[SPOT])[-1]
            while told[-1].last < last:
                told.append(await book(client, SPOT))
        assert behind >= 3
        assert holes(told) == 0

    go(work)


@pytest.mark.parametrize("name", ["garbage", "truncated", "binary"])
def test_a_malformed_frame_in_the_place_of_a_good_one(name: str) -> None:
    async def work(simulator: Simulator) -> None:
        url = f"{simulator.urls[SPOT]['ws_url']}/ws/btcusdt@depth@100ms"
        async with opened(url) as client:
            first = json.loads(await client.recv())
            inject(simulator, name, SPOT)
            second, third = await client.recv(), json.loads(await client.recv())
        assert isinstance(second, bytes if name == "binary" else str)
        with pytest.raises(ValueError, match=r"JSON|delimiter|decode|column|escape"):
            json.loads(second)
        assert (str(second)[:18] == '{"e":"depthUpdate"') == (name == "truncated")
        ids = simulator.truth.update_ids(SPOT, FIRST[SPOT])
        assert ids.index(third["u"]) - ids.index(first["u"]) == 2

    go(work)


@pytest.mark.parametrize(("name", "sign"), [("clock_ahead", 1), ("clock_behind", -1)])
def test_the_clock_is_off_by_2_s_for_a_time(name: str, sign: int) -> None:
    async def work(simulator: Simulator, worker: str) -> None:
        async with listening(simulator, worker) as client:
            told = await books(client, worker, 2)
            simulator.inject_fault(Fault(name, worker, seconds=0.3))
            told += await books(client, worker, 8)
        assert [1500 < abs(a.ms - b.ms) < 2500 for b, a in pairwise(told)].count(True) == 2
        assert sign * (max(told, key=lambda one: sign * one.ms).ms - told[0].ms) > 1500
        assert holes(told) == 0

    at(WORKERS, work)


def test_notices() -> None:
    async def work(simulator: Simulator) -> None:
        async with listening(simulator, SPOT) as spot, listening(simulator, SWAP) as swap:
            simulator.inject("notice", SPOT)
            simulator.inject("notice", SWAP)
            assert (await until(spot, lambda m: m["stream"] == "!serverShutdown"))["data"][
                "e"
            ] == "serverShutdown"
            assert (await until(swap, lambda m: m.get("event") == "notice"))["code"] == "64008"
        async with opened(simulator.urls[DERIBIT]["ws_url"]) as client:
            await client.send(rpc("subscribe", channels=["platform_state"]))
            await until(client, lambda m: "result" in m)
            simulator.inject("notice", DERIBIT)
            assert (await until(client, lambda m: "maintenance" in m["params"]["data"]))["params"][
                "data"
            ] == {"maintenance": True}
            simulator.inject_fault(Fault("deribit_locked", DERIBIT, seconds=1.5))
            await until(client, lambda m: m["params"]["data"]["locked"])
            await until(client, lambda m: not m["params"]["data"]["locked"])

    go(work)


# -- REST ------------------------------------------------------------------------------------------------------

_TIME = {SPOT: "/api/v3/time", USDM: "/fapi/v1/time", DERIBIT: "/api/v2/public/get_time"}


def test_rate_limit() -> None:
    async def work(simulator: Simulator, worker: str) -> None:
        url = simulator.urls[worker]["base_url"] + _TIME.get(worker, "/api/v5/public/time")
        simulator.inject("rate_limit", worker)
        async with aiohttp.ClientSession() as session:
            async with session.get(url) as answer:
                assert (answer.status, answer.headers["Retry-After"]) == (429, "1")
            async with session.get(url) as answer:
                assert answer.status == 200

    at(WORKERS, work)


def test_who_does_not_wait_is_banned() -> None:
    async def work(simulator: Simulator, worker: str) -> None:
        url = simulator.urls[worker]["base_url"] + _TIME[worker]
        simulator.inject_fault(Fault("rate_limit_ban", worker, seconds=1.0))
        async with aiohttp.ClientSession() as session:
            seen = []
            while not seen or seen[-1][0] != 200:
                async with session.get(url) as answer:
                    seen.append((answer.status, answer.headers.get("Retry-After")))
        assert seen[:2] == [(429, "1"), (418, "1")]
        assert {status for status, _ in seen[1:-1]} == {418}

    at([SPOT, USDM], work)


# -- Binance ---------------------------------------------------------------------------------------------------


def test_where_rest_books_end() -> None:
    async def work(simulator: Simulator, worker: str) -> None:
        path = "/api/v3/depth" if worker == SPOT else "/fapi/v1/depth"
        query = {"url": simulator.urls[worker]["base_url"] + path, "symbol": FIRST[worker], "limit": 1000}
        inject(simulator, "binance_rest_inside", worker, count=12)
        async with listening(simulator, worker) as client:
            told = await books(client, worker, 4)
            inside = [(await fetch(**query))["lastUpdateId"] for _ in range(12)]
            inject(simulator, "binance_rest_at_edge", worker)
            edge = (await fetch(**query))["lastUpdateId"]
            inject(simulator, "binance_rest_stale", worker)
            stale = (await fetch(**query))["lastUpdateId"]
            while told[-1].last <= max(edge, *inside):
                told.append(await book(client, worker))
        assert any(one.previous < at < one.last for one in told for at in inside)
        assert edge in {one.previous for one in told}
        assert stale < told[3].previous

    at([SPOT, USDM], work)


def test_24_hours_are_over() -> None:
    async def work(simulator: Simulator, worker: str) -> None:
        async with listening(simulator, worker) as client:
            await book(client, worker)
            inject(simulator, "binance_24h_cut", worker, seconds=0.3)
            with pytest.raises(ConnectionClosed) as caught:
                await until(client, lambda m: False)
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1001

    at([SPOT, USDM], work)


def test_a_path_that_does_not_carry_the_streams() -> None:
    async def work(simulator: Simulator) -> None:
        simulator.inject("binance_wrong_route", USDM)
        url = simulator.urls[USDM]["ws_url"] + "/public/ws"
        ask = json.dumps({"method": "SUBSCRIBE", "params": ["btcusdt@depth@100ms"], "id": 1})
        async with opened(url) as silent, opened(url) as good:
            for client in (silent, good):
                await client.send(ask)
                assert json.loads(await client.recv()) == {"result": None, "id": 1}
            heard = asyncio.create_task(silent.recv())
            for _ in range(5):
                await good.recv()
            assert not heard.done()
            heard.cancel()

    go(work)


# -- OKX -------------------------------------------------------------------------------------------------------


def test_a_reset_and_a_keepalive_chain() -> None:
    async def work(simulator: Simulator, worker: str) -> None:
        async with listening(simulator, worker) as client:
            told = await books(client, worker, 2)
            inject(simulator, "okx_keepalive", worker)
            told += await books(client, worker, 3)
            inject(simulator, "okx_reset", worker)
            told += await books(client, worker, 4)
        assert holes(told) == 0
        (still,) = [one for one in told if one.last == one.previous]
        assert (still.bids, still.asks) == ([], [])
        (back,) = [one for one in told if one.last < one.previous]
        assert back.last < 10**10

    at([OKX, SWAP], work)


@pytest.mark.parametrize(("name", "shown"), [("okx_checksum_zero", 0), ("okx_checksum_absent", None)])
def test_checksums_for_a_time(name: str, shown: int | None) -> None:
    async def work(simulator: Simulator) -> None:
        async with listening(simulator, OKX) as client:
            seen = []
            for count in range(14):
                message = await until(client, lambda m: is_book(OKX, m))
                seen.append(message["data"][0].get("checksum"))
                if count == 2:
                    simulator.inject_fault(Fault(name, OKX, seconds=0.5))
        struck = [index for index, value in enumerate(seen) if value == shown]
        assert struck == list(range(3, 3 + len(struck)))
        assert 1 <= len(struck) < 11

    go(work, checksum="real")


def test_no_snapshot_on_subscribe() -> None:
    async def work(simulator: Simulator) -> None:
        simulator.inject_fault(Fault("okx_no_snapshot", OKX, seconds=60.0))
        async with listening(simulator, OKX) as client:
            first = await until(client, lambda m: is_book(OKX, m))
            assert first["action"] == "update"
            url = simulator.urls[OKX]["base_url"] + "/api/v5/market/books"
            assert (await fetch(url, instId=FIRST[OKX], sz=400))["data"][0]["seqId"] > 0

    go(work)


@pytest.mark.parametrize(("name", "code"), [("okx_error_60011", "60011"), ("okx_error_60012", "60012")])
def test_an_operation_is_refused(name: str, code: str) -> None:
    async def work(simulator: Simulator) -> None:
        simulator.inject(name, SWAP)
        async with opened(simulator.urls[SWAP]["ws_url"]) as client:
            await client.send(subscribe("trades", FIRST[SWAP]))
            answer = json.loads(await client.recv())
            assert (answer["event"], answer["code"]) == ("error", code)
            await client.send(subscribe("trades", FIRST[SWAP]))
            assert json.loads(await client.recv())["event"] == "subscribe"

    go(work)


def test_480_operations_are_spent() -> None:
    async def work(simulator: Simulator) -> None:
        async with (
            opened(simulator.urls[OKX]["ws_url"]) as old,
            opened(simulator.urls[OKX]["ws_url"]) as fresh,
        ):
            simulator.inject("okx_operations_spent", OKX)
            await old.send(subscribe("trades", FIRST[OKX]))
            assert json.loads(await old.recv())["code"] == "60014"
            await fresh.close()
            async with opened(simulator.urls[OKX]["ws_url"]) as third:
                await third.send(subscribe("trades", FIRST[OKX]))
                assert json.loads(await third.recv())["event"] == "subscribe"

    go(work)


def test_a_ping_without_its_pong() -> None:
    async def work(simulator: Simulator) -> None:
        simulator.inject("okx_no_pong", OKX)
        async with opened(simulator.urls[OKX]["ws_url"]) as client:
            await client.send("ping")
            await client.send(subscribe("trades", FIRST[OKX]))
            assert json.loads(await client.recv())["event"] == "subscribe"  # not pong
            await client.send("ping")
            while await client.recv() != "pong":
                pass

    go(work)


# -- Deribit ---------------------------------------------------------------------------------------------------

CHANNELS = [f"book.{name}.100ms" for name in DEFAULT_SYMBOLS[DERIBIT]]


def test_an_ack_that_lacks_a_channel() -> None:
    async def work(simulator: Simulator) -> None:
        inject(simulator, "deribit_ack_subset", DERIBIT)
        async with opened(simulator.urls[DERIBIT]["ws_url"]) as client:
            await client.send(rpc("subscribe", channels=CHANNELS))
            assert json.loads(await client.recv())["result"] == CHANNELS[1:]
            told = {json.loads(await client.recv())["params"]["channel"] for _ in range(4)}
            assert told == set(CHANNELS[1:])
            await client.send(rpc("subscribe", channels=CHANNELS[:1]))
            assert (await until(client, lambda m: "result" in m))["result"] == CHANNELS[:1]

    go(work)


def test_changes_without_a_snapshot_and_a_refused_call() -> None:
    async def work(simulator: Simulator) -> None:
        inject(simulator, "deribit_no_snapshot", DERIBIT)
        simulator.inject("deribit_error_13778", DERIBIT)
        async with opened(simulator.urls[DERIBIT]["ws_url"]) as client:
            await client.send(rpc("subscribe", channels=CHANNELS))
            assert json.loads(await client.recv())["error"]["code"] == 13778
            await client.send(rpc("subscribe", channels=CHANNELS))
            assert sorted(json.loads(await client.recv())["result"]) == sorted(CHANNELS)
            first: dict[str, str] = {}
            while len(first) < 2:
                told = (await until(client, lambda m: "params" in m))["params"]
                first.setdefault(told["channel"], told["data"]["type"])
            assert first == dict(zip(CHANNELS, ("change", "snapshot"), strict=True))

    go(work)


def test_a_heartbeat_whose_answer_is_lost() -> None:
    async def work(simulator: Simulator) -> None:
        async with listening(simulator, DERIBIT) as client:
            await book(client, DERIBIT)
            inject(simulator, "deribit_heartbeat_close", DERIBIT, seconds=0.5)
            asked = await until(client, lambda m: m.get("method") == "heartbeat")
            assert asked["params"] == {"type": "test_request"}
            await client.send(rpc("test"))
            with pytest.raises(ConnectionClosed) as caught:
                await until(client, lambda m: False)
            assert caught.value.rcvd is not None
            assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4000, "heartbeat close")

    go(work)


def test_a_leap_of_ids_and_exponents() -> None:
    async def work(simulator: Simulator) -> None:
        async with listening(simulator, DERIBIT) as client:
            told = await books(client, DERIBIT, 2)
            simulator.inject("deribit_id_jump", DERIBIT)
            told += await books(client, DERIBIT, 2)
            assert holes(told) == 0
            assert max(one.last - one.previous for one in told[1:]) > 10**9
            inject(simulator, "deribit_exponents", DERIBIT, seconds=60.0)
            async for text in client:
                if "e+04," in str(text) and is_book(DERIBIT, json.loads(text)):
                    data = json.loads(text, parse_float=Decimal)["params"]["data"]
                    break
        states = simulator.truth.book_at(DERIBIT, FIRST[DERIBIT], data["change_id"])
        for held, levels in zip(states, (data["bids"], data["asks"]), strict=True):
            truth = {Decimal(price): Decimal(amount) for price, amount in held.items()}
            assert all(truth.get(price, 0) == amount for _, price, amount in levels)

    go(work)
