"""Faults by schedule, by seed and by order over the control endpoint; and what is refused."""

import asyncio
import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from simulator_support import go

from marketprism.cli import main
from marketprism.simulator import (
    CATALOG,
    WORKERS,
    Fault,
    Simulator,
    SimulatorError,
    SimulatorOptions,
    parse_schedule,
    random_schedule,
    schedule_text,
)

ROOT = Path(__file__).parents[2]
TOKEN = "let me in"


# -- schedules -------------------------------------------------------------------------------------------------


def test_a_schedule_is_read_as_yaml_and_as_json() -> None:
    wanted = [
        Fault("silence", "okx_spot", 1.5, 2.0),
        Fault("drop_next_trade", "binance_spot", 4, 0, 3, "BTCUSDT"),
    ]
    text = """
    - {name: drop_next_trade, worker: binance_spot, at_s: 4, count: 3, instrument: BTCUSDT}
    - name: silence
      worker: okx_spot
      at_s: 1.5
      seconds: 2.0
    """
    assert parse_schedule(text) == wanted
    objects = [
        {"name": one.name, "worker": one.worker, "at_s": one.at_s, "seconds": one.seconds, "count": one.count}
        for one in wanted
    ]
    objects[1]["instrument"] = "BTCUSDT"
    assert parse_schedule(json.dumps(objects)) == wanted
    assert parse_schedule(schedule_text(wanted)) == wanted
    assert parse_schedule("[]") == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- {name: slence, worker: okx_spot}", "item 1: unknown fault 'slence': did you mean 'silence'?"),
        (
            "- {name: silence, worker: okx_spot}\n- {name: silence, worker: okx_spt}",
            "item 2: unknown worker 'okx_spt': did you mean 'okx_spot'?",
        ),
        (
            "- {name: silence, worker: okx_spot, second: 1}",
            "item 1: unknown key 'second': did you mean 'seconds'?",
        ),
        ("- {worker: okx_spot}", "item 1: name: expected a text, got None"),
        ("- silence", "item 1: expected an object with name and worker, got 'silence'"),
        (
            "- {name: okx_reset, worker: binance_spot}",
            "item 1: okx_reset: expected okx_derivatives or okx_spot, got 'binance_spot'",
        ),
        (
            "- {name: silence, worker: okx_spot, at_s: -1}",
            "item 1: silence: at_s: expected a number of at least 0, got -1",
        ),
        (
            "- {name: silence, worker: okx_spot, seconds: .nan}",
            "item 1: silence: seconds: expected a number of at least 0, got nan",
        ),
        (
            "- {name: cross, worker: okx_spot, count: 1.5}",
            "item 1: cross: count: expected a whole number of at least 1, got 1.5",
        ),
        (
            "- {name: cross, worker: okx_spot, instrument: 7}",
            "item 1: cross: instrument: expected a text, got 7",
        ),
        ("name: silence", "expected a YAML or JSON list of faults, got {'name': 'silence'}"),
        ("", "expected a YAML or JSON list of faults, got None"),
        ("- {name: [", "expected a YAML or JSON list of faults: while parsing"),
        ("- 2024-99-99", "expected a YAML or JSON list of faults: month must be"),
        ("[" * 500, "expected a YAML or JSON list of faults: maximum recursion depth"),
    ],
)
def test_a_wrong_schedule_is_one_clear_line(text: str, told: str) -> None:
    with pytest.raises(SimulatorError) as caught:
        parse_schedule(text)
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)


def test_a_seed_makes_one_schedule() -> None:
    schedule = random_schedule(7, 36_000.0, WORKERS, 5.0)
    assert schedule == random_schedule(7, 36_000.0, list(WORKERS), 5.0)
    assert schedule != random_schedule(8, 36_000.0, WORKERS, 5.0)
    assert schedule == sorted(schedule, key=lambda one: one.at_s)
    assert 0.8 * 7200 < len(schedule) < 1.2 * 7200
    assert {one.name for one in schedule} == {name for name, kind in CATALOG.items() if not kind.lies}
    assert all((one.seconds > 0) == CATALOG[one.name].lasting for one in schedule)
    assert {one.worker for one in random_schedule(7, 3600.0, ["okx_spot"], 5.0)} == {"okx_spot"}
    assert parse_schedule(schedule_text(schedule[:200])) == schedule[:200]
    with pytest.raises(SimulatorError, match="expected a worker and more than 0 s"):
        random_schedule(7, 10.0, WORKERS, 0.0)


def test_a_schedule_is_played_and_logged() -> None:
    async def work(simulator: Simulator) -> None:
        with pytest.raises(
            SimulatorError, match="unknown instrument of okx_spot 'BTC-USD': did you mean 'BTC-USDT'"
        ):
            simulator.play(
                [Fault("disconnect", "okx_spot"), Fault("cross", "okx_spot", instrument="BTC-USD")]
            )
        assert simulator.injected == []
        disconnect = Fault("disconnect", "okx_spot", at_s=0.05)
        rate_limit = Fault("rate_limit", "binance_spot", at_s=0.1)
        simulator.play([rate_limit, disconnect, Fault("disconnect", "okx_spot", at_s=3600.0)])
        while (await ask("GET", simulator.urls["binance_spot"]["base_url"] + "/api/v3/time"))[0] != 429:
            pass
        assert [(fault, state) for _, fault, state in simulator.injected] == [
            (disconnect, "armed"),  # and never fired: nobody is connected
            (rate_limit, "armed"),
            (rate_limit, "fired"),
        ]
        times = [at_s for at_s, _, _ in simulator.injected]
        assert times == sorted(times)

    go(work)


def test_the_documentation_has_the_catalog() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (.+?) \| (.+) \| (.+) \|$", (ROOT / "docs/simulator.md").read_text(), re.MULTILINE
    )
    assert rows == [
        (name, where(kind.workers), kind.summary, ", ".join(sorted(kind.gap_expected)) or "no")
        for name, kind in CATALOG.items()
    ]


def where(workers: frozenset[str]) -> str:
    """As the documentation's table says it."""
    if workers == frozenset(WORKERS):
        return "all"
    families = ("binance", "okx", "deribit")
    whole = [one for one in families if workers == {name for name in WORKERS if name.startswith(one)}]
    return whole[0] if whole else ", ".join(sorted(workers))


# -- the control endpoint --------------------------------------------------------------------------------------


async def ask(method: str, url: str, token: str | None = None, **more: Any) -> tuple[int, Any]:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.request(method, url, **more) as answer,
    ):
        return answer.status, await answer.json()


def test_orders_over_the_control_endpoint() -> None:
    async def work(simulator: Simulator) -> None:
        assert simulator.control_url
        url = simulator.control_url + "/faults"
        assert url.startswith("http://127.0.0.1:")
        status, catalog = await ask("GET", url)
        assert (status, set(catalog)) == (200, set(CATALOG))
        assert catalog["silence"]["gap_expected"] == sorted(CATALOG["silence"].gap_expected)
        order = {"name": "rate_limit", "worker": "okx_spot", "count": 2}
        assert await ask("POST", url, TOKEN, json=order) == (200, {"armed": order})
        rest = simulator.urls["okx_spot"]["base_url"] + "/api/v5/public/time"
        assert [(await ask("GET", rest))[0] for _ in range(3)] == [429, 429, 200]
        status, log = await ask("GET", url + "/log")
        assert [(line["state"], line["fault"]) for line in log] == [
            ("armed", order),
            ("fired", order),
            ("fired", order),
        ]

    go(work, control_port=0, control_token=TOKEN)


def test_orders_that_are_refused() -> None:
    async def work(simulator: Simulator) -> None:
        url = f"{simulator.control_url}/faults"
        order = {"name": "disconnect", "worker": "okx_spot"}
        for token in (None, "", "let me", TOKEN + "!"):
            status, told = await ask("POST", url, token, json=order)
            assert (status, list(told)) == (401, ["error"])
        basic = {"Authorization": f"Basic {TOKEN}"}
        async with aiohttp.ClientSession() as session, session.post(url, json=order, headers=basic) as answer:
            assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        for body, told in (
            (
                '{"name": "disconect", "worker": "okx_spot"}',
                "unknown fault 'disconect': did you mean 'disconnect'?",
            ),
            ('{"name": "disconnect"}', "worker: expected a text, got None"),
            (
                '{"name": "cross", "worker": "okx_spot", "instrument": "X"}',
                "unknown instrument of okx_spot 'X':",
            ),
            ("[1]", "expected an object with name and worker, got [1]"),
            ("{", "expected a fault as a JSON object: Input data was truncated"),
            ("[" * 50_000, "expected a fault as a JSON object: maximum recursion"),
            (b"\xff", "expected a fault as a JSON object:"),
        ):
            status, answer_body = await ask("POST", url, TOKEN, data=body)
            assert status == 400
            assert answer_body["error"].startswith(told)
            assert "\n" not in answer_body["error"]
        assert simulator.injected == []

    go(work, control_port=0, control_token=TOKEN)


def test_the_token_is_needed_and_not_shown() -> None:
    with pytest.raises(SimulatorError, match="control_token: expected a text"):
        SimulatorOptions(control_port=0)
    assert TOKEN not in repr(SimulatorOptions(control_token=TOKEN))


def test_a_taken_control_port_is_one_clear_line() -> None:
    async def work() -> None:
        with socket.socket() as holder:
            holder.bind(("127.0.0.1", 0))
            holder.listen()
            port = holder.getsockname()[1]
            with pytest.raises(
                SimulatorError, match=f"control: cannot listen on 127.0.0.1:{port}: .*another port"
            ):
                await Simulator(SimulatorOptions(control_port=port, control_token=TOKEN)).start()

    asyncio.run(work())


# -- the command -----------------------------------------------------------------------------------------------


def test_the_command_takes_a_file_a_seed_and_orders(tmp_path: Path) -> None:
    schedule = tmp_path / "faults.yaml"
    schedule.write_text("- {name: disconnect, worker: okx_spot, at_s: 0.0}\n", encoding="utf-8")
    flags = ["--faults", str(schedule), "--fault-seed", "3", "--fault-every", "600", "--control", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "marketprism", "simulate", *flags], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        shown = [process.stdout.readline() for _ in range(7)]
        told = random_schedule(3, 3600.0, WORKERS, 600.0)
        shown += [process.stdout.readline() for _ in told]
        assert parse_schedule("".join(shown[6:])) == [Fault("disconnect", "okx_spot"), *told]
        name, url, _, token = shown[5].split()
        order = {"name": "disconnect", "worker": "okx_spot"}
        assert name == "control"
        assert asyncio.run(ask("POST", f"{url}/faults", token, json=order))[0] == 200
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--faults", "/nowhere.yaml"], "No such file or directory: '/nowhere.yaml'"),
        (["--faults", str(Path(__file__))], "expected a YAML or JSON list of faults"),
        (["--fault-every", "3"], "--fault-every needs --fault-seed"),
        (["--fault-seed", "1", "--fault-every", "-1"], "more than 0 s between faults"),
        (["--control", "70000"], "control_port: expected a port of 0 to 65535, got 70000"),
    ],
)
def test_wrong_flags_are_one_clear_line(
    flags: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", *flags]) == 1
    error = capsys.readouterr().err
    assert told in error
    assert error.startswith("marketprism simulate: ")
    assert error.count("\n") == 1
