"""The restart rules, without waiting."""

from __future__ import annotations

import pytest

from marketprism.control.restarts import RestartPolicy, RestartRules, describe_exit, exit_reason


def delays(reasons: list[tuple[str, float]]) -> list[float | None]:
    policy = RestartPolicy(RestartRules())
    return [policy.after_exit(reason, ran_s) for reason, ran_s in reasons]


def test_at_once_then_5_s_then_30_s_then_given_up_after_ten() -> None:
    expected: list[float | None] = [0.0, 5.0, 5.0, *[30.0] * 7, None]
    assert delays([("error", 1.0)] * 11) == expected


def test_a_healthy_stretch_starts_the_count_anew() -> None:
    assert delays([("error", 1.0)] * 3 + [("signal", 300.0), ("error", 299.9)]) == [0.0, 5.0, 5.0, 0.0, 5.0]


def test_memory_always_cools_down_5_s_and_still_counts() -> None:
    expected: list[float | None] = [*[5.0] * 10, None]
    assert delays([("memory", 20.0)] * 11) == expected
    assert delays([("memory", 400.0)] * 30) == [5.0] * 30


def test_bad_configuration_is_final() -> None:
    assert delays([("config", 500.0)]) == [None]


@pytest.mark.parametrize(
    ("code", "ordered", "reason", "text"),
    [
        (0, None, "exit", "exit code 0"),
        (1, None, "error", "exit code 1"),
        (75, None, "memory", "exit code 75"),
        (78, None, "config", "exit code 78"),
        (-9, None, "signal", "killed by SIGKILL"),
        (-9, "memory", "memory", "killed by SIGKILL"),
        (-63, "watchdog", "watchdog", "killed by signal 63"),
    ],
)
def test_words_for_an_exit(code: int, ordered: str | None, reason: str, text: str) -> None:
    assert exit_reason(code, ordered) == reason
    assert describe_exit(code) == text
