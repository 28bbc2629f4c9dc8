"""The whole simulator over real sockets, one exchange after the other; faults, pages, pace."""

import asyncio
import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from simulator_support import Rig, apply_levels, channels, fetch, go, listening, opened, until

from marketprism.simulator import WORKERS, Simulator, SimulatorError, SimulatorOptions, write_config


def test_binance_spot_end_to_end() -> None:
    async def work(simulator: Simulator) -> None:
        urls, worker = simulator.urls["binance_spot"], "binance_spot"
        async with listening(simulator, worker) as client:
            diffs: list[Any] = []
            while len(diffs) < 3:
                diffs.append((await until(client, lambda m: m["stream"] == "btcusdt@depth@100ms"))["data"])
            snapshot = await fetch(urls["base_url"] + "/api/v3/depth", symbol="BTCUSDT", limit=5000)
            while diffs[-1]["U"] <= snapshot["lastUpdateId"] + 20:
                diffs.append((await until(client, lambda m: m["stream"] == "btcusdt@depth@100ms"))["data"])
        bids, asks = dict(snapshot["bids"]), dict(snapshot["asks"])
        news = [one for one in diffs if one["u"] > snapshot["lastUpdateId"]]
        assert news[0]["U"] <= snapshot["lastUpdateId"] + 1
        for diff in news:
            apply_levels(bids, diff["b"])
            apply_levels(asks, diff["a"])
            page = await fetch(
                urls["base_url"] + "/sim/truth/book", worker=worker, instrument="BTCUSDT", update_id=diff["u"]
            )
            assert (page["bids"], page["asks"]) == (bids, asks)

    go(work)


def test_binance_derivatives_end_to_end() -> None:
    async def work(simulator: Simulator) -> None:
        base = simulator.urls["binance_derivatives"]["ws_url"]
        async with opened(base + "/market/ws") as market, opened(base + "/public/ws") as public:
            for client, stream in ((market, "btcusdt@markPrice@1s"), (public, "btcusdt@trade")):
                await client.send(json.dumps({"method": "SUBSCRIBE", "params": [stream], "id": 1}))
                assert json.loads(await client.recv()) == {"result": None, "id": 1}
            assert (await until(market, lambda m: True))["e"] == "markPriceUpdate"
            trade = await until(public, lambda m: True)
            told = await fetch(
                simulator.urls["binance_derivatives"]["base_url"] + "/sim/truth/trades",
                worker="binance_derivatives",
                instrument="BTCUSDT",
            )
            assert str(trade["t"]) in {one["id"] for one in told}

    go(work)


def test_okx_end_to_end() -> None:
    async def work(simulator: Simulator) -> None:
        for worker in ("okx_spot", "okx_derivatives"):
            async with listening(simulator, worker) as client:
                snapshot = await until(client, lambda m: m.get("action") == "snapshot")
                await client.send("ping")
                name, last = snapshot["arg"]["instId"], snapshot["data"][0]["seqId"]
                pongs = 0
                updates = 0
                while not (pongs and updates >= 5):
                    text = await client.recv()
                    pongs += text == "pong"
                    message = json.loads(text) if text != "pong" else {}
                    if message.get("action") == "update" and message["arg"]["instId"] == name:
                        assert message["data"][0]["prevSeqId"] == last
                        last = message["data"][0]["seqId"]
                        updates += 1
                assert pongs == 1

    go(work)


def test_deribit_end_to_end() -> None:
    async def work(simulator: Simulator) -> None:
        worker = "deribit_derivatives"
        async with listening(simulator, worker) as client:
            snapshot = await until(
                client, lambda m: m.get("params", {}).get("data", {}) and "type" in m["params"]["data"]
            )
            channel, last = snapshot["params"]["channel"], snapshot["params"]["data"]["change_id"]
            for _ in range(5):
                change = (await until(client, lambda m: m["params"]["channel"] == channel))["params"]["data"]
                assert change["prev_change_id"] == last
                last = change["change_id"]
        base = simulator.urls[worker]["base_url"]
        assert "usIn" in await fetch(base + "/api/v2/public/get_time")

    go(work)


def test_rate_over_sockets() -> None:
    async def work(simulator: Simulator) -> None:
        async def seconds_for(worker: str, count: int) -> float:
            async with listening(simulator, worker) as client:
                for _ in range(30):
                    await client.recv()
                started = time.monotonic()
                for _ in range(count):
                    await client.recv()
                return time.monotonic() - started

        spans = await asyncio.gather(*(seconds_for(worker, 300) for worker in WORKERS))
        for worker, span in zip(WORKERS, spans, strict=True):
            assert 0.8 * 240 < 300 / span < 1.2 * 240, (worker, 300 / span)

    go(work, rate=240.0)


@pytest.mark.parametrize("worker", WORKERS)
@pytest.mark.parametrize("rate", [30.0, 120.0, 1200.0])
def test_rate_within_a_fifth(worker: str, rate: float) -> None:
    rig = Rig(worker, rate=rate)
    suffix, requests = channels(worker)
    path = {"okx": "/ws/v5/public", "deribit": "/ws/api/v2"}.get(
        worker.split("_", maxsplit=1)[0], suffix.split("?")[0]
    )
    connection = rig.connect(path, streams=suffix.partition("=")[2])
    for request in requests:
        rig.say(connection, request)
    seconds = 12 if rate < 100 else 3
    per_second = len(rig.steps(seconds * 100, connection)) / seconds
    assert 0.8 * rate < per_second < 1.2 * rate


@pytest.mark.parametrize("worker", WORKERS)
def test_same_seed_same_frames(worker: str) -> None:
    def frames(seed: int) -> list[str]:
        rig = Rig(worker, seed=seed)
        suffix, requests = channels(worker)
        path = {"okx": "/ws/v5/public", "deribit": "/ws/api/v2"}.get(
            worker.split("_", maxsplit=1)[0], "/public/stream"
        )
        connection = rig.connect(
            "/stream" if worker == "binance_spot" else path, streams=suffix.partition("=")[2]
        )
        texts = [text for request in requests for text in rig.say(connection, request)]
        return texts + rig.steps(200, connection)

    assert frames(1) == frames(1)
    assert frames(1) != frames(2)


def test_many_symbols_share_the_rate() -> None:
    names = [f"COIN{number}USDT" for number in range(40)]
    rig = Rig("binance_spot", symbols={"binance_spot": names})
    streams = [f"{name.lower()}@{channel}" for name in names for channel in ("depth@100ms", "trade")]
    connection = rig.connect("/stream", streams="/".join(streams))
    assert 0.8 * 120 < len(rig.steps(500, connection)) / 5 < 1.2 * 120


def test_a_taken_port_is_one_clear_line() -> None:
    async def work() -> None:
        with socket.socket() as holder:
            holder.bind(("127.0.0.1", 0))
            holder.listen()
            port = holder.getsockname()[1]
            with pytest.raises(SimulatorError, match=f"okx_spot: cannot listen on 127.0.0.1:{port}"):
                await Simulator(SimulatorOptions(ports={"okx_spot": port})).start()

    asyncio.run(work())


def test_write_config_changes_only_the_addresses(tmp_path: Path) -> None:
    source, target = tmp_path / "a.yaml", tmp_path / "b.yaml"
    document = {
        "exchanges": {
            "okx_spot": {"symbols": ["BTC-USDT"], "api": {"base_url": "https://www.okx.com", "note": 1}},
            "binance_spot": {"enabled": True, "orderbook": {"rest_base": "https://api.binance.com"}},
            "other": {"api": {"base_url": "x"}},
        },
        "nats": {"servers": ["nats://127.0.0.1:4222"]},
    }
    source.write_text(yaml.safe_dump(document), encoding="utf-8")
    pair = {"base_url": "http://127.0.0.1:1", "ws_url": "ws://127.0.0.1:1/ws/v5/public"}
    write_config(source, target, {"okx_spot": pair, "binance_spot": pair, "okx_derivatives": pair})
    written = yaml.safe_load(target.read_text(encoding="utf-8"))
    assert written["exchanges"]["okx_spot"] == {"symbols": ["BTC-USDT"], "api": {**pair, "note": 1}}
    assert written["exchanges"]["binance_spot"]["api"] == pair
    assert written["exchanges"]["binance_spot"]["orderbook"] == {"rest_base": "http://127.0.0.1:1"}
    assert set(written["exchanges"]) == {"okx_spot", "binance_spot", "other"}
    assert written["nats"] == document["nats"]
    source.write_text("- 1\n", encoding="utf-8")
    with pytest.raises(SimulatorError, match="expected a mapping `exchanges`"):
        write_config(source, target, {})
