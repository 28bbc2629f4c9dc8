"""What makes a worker healthy, degraded or unhealthy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from marketprism.control.health import (
    HealthRules,
    Status,
    Whole,
    assess,
    body,
    judge,
    report_of,
    services_entry,
)
from marketprism.control.openapi import document
from marketprism.control.processes import MB, Figures, LastExit, RunState, WorkerView
from marketprism.control.shared import Labels, Readings

NOW_S = 1_760_000_000.0
GOOD = {
    "worker_heartbeat_timestamp_seconds": NOW_S - 1.0,
    "live_books": 2.0,
    "expected_books": 2.0,
    "websocket_connected": 3.0,
    "websocket_expected": 3.0,
    "nats_connected": 1.0,
    "last_book_timestamp_seconds": NOW_S - 0.2,
}
WORKER = WorkerView(
    name="okx_spot",
    exchanges=("okx_spot",),
    state=RunState.RUNNING,
    pid=4711,
    uptime_s=3600.0,
    restarts={"error": 0},
    last_exit=None,
    soft_mb=120,
    hard_mb=160,
    figures=Figures(32.5, 100 * MB, frozen=False),
)

LABELS = (("data_type", "funding_rate"), ("exchange", "okx_spot"))


def readings(changes: Mapping[str, float | None] | None = None) -> Readings:
    values = {**GOOD, **(changes or {})}
    samples: dict[str, dict[Labels, float]] = {
        f"marketprism_{name}": {(("exchange", "okx_spot"),): value}
        for name, value in values.items()
        if value is not None
    }
    return Readings(samples, {"okx_spot": 12.34}, {"okx_spot": 3})


def found(worker: WorkerView = WORKER, /, **changes: float | None) -> tuple[Status, list[str]]:
    findings = assess(worker, report_of(readings(changes), "okx_spot", NOW_S), HealthRules())
    return findings.status, findings.reasons


def test_all_fresh_and_complete_is_healthy() -> None:
    assert found() == (Status.HEALTHY, [])


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        ({"worker_heartbeat_timestamp_seconds": NOW_S - 2.6}, Status.UNHEALTHY, "stuck"),
        ({"live_books": 1.0}, Status.DEGRADED, "books_not_live"),
        ({"live_books": 0.0}, Status.UNHEALTHY, "books_not_live"),
        ({"last_book_timestamp_seconds": NOW_S - 11}, Status.DEGRADED, "books_stale"),
        ({"websocket_connected": 2.0}, Status.DEGRADED, "websocket_down"),
        ({"websocket_connected": 0.0}, Status.UNHEALTHY, "websocket_down"),
        ({"channels_missing": 1.0}, Status.DEGRADED, "channels_missing"),
        ({"nats_connected": 0.0}, Status.UNHEALTHY, "nats_disconnected"),
        ({"nats_connected": None}, Status.DEGRADED, "nats_disconnected"),
        ({"memory_soft_exceeded": 1.0}, Status.DEGRADED, "memory_soft"),
    ],
)
def test_each_trouble(changes: dict[str, float | None], status: Status, reason: str) -> None:
    assert found(**changes) == (status, [reason])


def test_a_worker_without_books_needs_none() -> None:
    assert found(live_books=0.0, expected_books=0.0, last_book_timestamp_seconds=None) == (Status.HEALTHY, [])


def test_more_sockets_than_expected_while_one_is_rotated_is_fine() -> None:
    assert found(websocket_connected=4.0)[0] is Status.HEALTHY


def test_starting_is_degraded_for_a_minute_then_unhealthy() -> None:
    nothing = dict.fromkeys(GOOD)
    not_yet = replace(WORKER, state=RunState.WAITING, uptime_s=0.0, figures=None)
    assert found(not_yet, **nothing) == (Status.DEGRADED, ["starting"])
    assert found(replace(WORKER, uptime_s=5.0), **nothing) == (Status.DEGRADED, ["starting"])
    assert found(replace(WORKER, uptime_s=61.0), **nothing) == (Status.UNHEALTHY, ["no_heartbeat"])
    assert found(replace(WORKER, uptime_s=5.0), live_books=0.0)[0] is Status.DEGRADED


@pytest.mark.parametrize(
    ("worker", "reason"),
    [
        (
            replace(
                WORKER, state=RunState.WAITING, figures=None, last_exit=LastExit("error", 1, 0.0, 0.1, "")
            ),
            "restarting",
        ),
        (replace(WORKER, state=RunState.STOPPING), "not_running"),
        (replace(WORKER, state=RunState.FAILED, figures=None), "given_up"),
        (
            replace(WORKER, state=RunState.FAILED, last_exit=LastExit("config", 78, 0.0, 0.1, "bad")),
            "bad_configuration",
        ),
        (replace(WORKER, figures=Figures(0.0, MB, frozen=True)), "frozen"),
        (replace(WORKER, figures=None), "stuck"),
    ],
)
def test_a_worker_that_does_not_run_is_unhealthy_whatever_it_wrote_last(
    worker: WorkerView, reason: str
) -> None:
    assert found(worker) == (Status.UNHEALTHY, [reason])


def test_the_whole_is_as_ill_as_its_illest_part() -> None:
    ill = replace(WORKER, name="okx_derivatives", exchanges=("okx_derivatives",), state=RunState.FAILED)
    health = judge([WORKER, ill], readings(), HealthRules(), NOW_S)
    assert health.status is Status.UNHEALTHY
    assert health.statuses() == {"okx_spot": "healthy", "okx_derivatives": "unhealthy"}
    assert health.entries["okx_spot"]["messages_per_second"] == 12.3
    assert health.entries["okx_spot"]["memory_mb"] == 100.0
    assert health.entries["okx_spot"]["cpu_percent"] == 32.5


@pytest.mark.parametrize(
    ("told", "status", "count"),
    [
        ([], "unknown", 0),
        ([Status.HEALTHY], "healthy", 1),
        ([Status.HEALTHY, Status.UNHEALTHY], "degraded", 2),
        ([Status.UNHEALTHY, Status.UNHEALTHY], "unhealthy", 2),
    ],
)
def test_nats_as_the_workers_see_it(told: list[Status], status: str, count: int) -> None:
    assert services_entry([{"nats": each} for each in told])["nats"] == {"status": status, "count": count}


def test_services_by_the_earlier_names_with_the_workers_that_stand_on_them() -> None:
    health = judge([WORKER], readings({"live_books": 1.0, "nats_connected": 0.0}), HealthRules(), NOW_S)
    assert health.services == {
        "nats": {"status": "unhealthy", "count": 1},
        "websocket": {"status": "healthy", "count": 1},
        "orderbook_manager": {"status": "degraded", "count": 1},
    }
    assert health.entries["okx_spot"]["services"]["nats"] == {"status": "unhealthy"}


def test_reasons_are_told_in_words_too() -> None:
    health = judge([WORKER], readings({"live_books": 1.0}), HealthRules(), NOW_S)
    assert health.entries["okx_spot"]["explanations"] == ["1 of 2 books live"]
    assert health.reasons == ["okx_spot: 1 of 2 books live"]
    assert health.entries["okx_spot"]["gaps_last_hour"] == 3


def test_data_that_never_came_is_stale_when_it_should_have_come() -> None:
    expected = readings()
    samples = {**expected.samples, "marketprism_data_expected": {LABELS: 1.0}}
    report = report_of(replace(expected, samples=samples), "okx_spot", NOW_S)
    for uptime_s, status, reasons in (
        (890.0, Status.HEALTHY, []),
        (910.0, Status.DEGRADED, ["stale_funding_rate"]),
    ):
        findings = assess(replace(WORKER, uptime_s=uptime_s), report, HealthRules())
        assert (findings.status, findings.reasons) == (status, reasons)


def test_as_the_requirement_and_the_description_have_it() -> None:
    """The fields of an existing reader, and every field that the OpenAPI document tells of, no other."""
    health = judge([WORKER], readings(), HealthRules(), NOW_S)
    answer = body(health, [WORKER], Whole("launcher", "multiprocess", "3", 3600.9, Figures(1.0, MB)), NOW_S)
    entry = answer["processes"]["okx_spot"]
    first = {"status": "healthy", "uptime_seconds": 3600, "mode": "multiprocess"}
    assert {key: answer[key] for key in first} == first
    assert list(entry)[:4] == ["status", "cpu_percent", "memory_mb", "uptime_seconds"]
    assert [entry[key] for key in list(entry)[:4]] == ["healthy", 32.5, 100.0, 3600]
    schemas = document()["components"]["schemas"]
    assert answer.keys() == schemas["Health"]["properties"].keys()
    assert entry.keys() == schemas["Process"]["properties"].keys()


STORE = replace(WORKER, name="hot", exchanges=(), said="12 rows stored since the start, 0 messages to go")


def test_a_well_store_is_shown_beside_the_exchanges() -> None:
    health = judge([WORKER, STORE], readings(), HealthRules(), NOW_S)
    assert (health.status, health.statuses()) == (Status.HEALTHY, {"okx_spot": "healthy", "hot": "healthy"})
    answer = body(
        health, [WORKER, STORE], Whole("control", "multiprocess", "3", 1.0, Figures(1.0, MB)), NOW_S
    )
    assert answer["processes"].keys() == {"okx_spot"}
    assert answer["stores"]["hot"].keys() == document()["components"]["schemas"]["Store"]["properties"].keys()
    assert answer["summary"]["total_processes"] == 2


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        ({"said": ""}, "degraded", "starting"),
        ({"said": "degraded: waiting for NATS; 12 rows stored"}, "degraded", "waiting"),
        ({"state": RunState.FAILED}, "unhealthy", "given_up"),
        ({"state": RunState.ENDED}, "degraded", "starting"),
        (
            {"state": RunState.ENDED, "last_exit": LastExit("exit", 0, 1.0, 1.0, "")},
            "unhealthy",
            "not_running",
        ),
        ({"figures": Figures(1.0, 100 * MB, frozen=True)}, "unhealthy", "frozen"),
        ({"figures": Figures(1.0, 130 * MB)}, "degraded", "memory_soft"),
    ],
)
def test_an_ill_store_makes_the_whole_degraded_since_nothing_is_lost(
    changes: dict[str, Any], status: str, reason: str
) -> None:
    health = judge([WORKER, replace(STORE, **changes)], readings(), HealthRules(), NOW_S)
    assert health.status is Status.DEGRADED
    assert (health.stores["hot"]["status"], health.stores["hot"]["reasons"]) == (status, [reason])
    assert [text.partition(":")[0] for text in health.reasons] == ["hot"]


def test_a_supervisor_that_is_silent_is_never_healthy() -> None:
    health = judge([WORKER], readings(), HealthRules(), NOW_S, trouble="systemd does not answer")
    assert (health.status, health.reasons) == (Status.DEGRADED, ["systemd does not answer"])


def test_no_worker_at_all_is_unhealthy() -> None:
    assert judge([], readings(), HealthRules(), NOW_S).status is Status.UNHEALTHY
