"""What systemd is told, on a real datagram socket in its place."""

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from systemd_socket import Systemd

from marketprism.notify import Notifier


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    listening = Systemd(str(tmp_path / "notify"))
    yield listening
    listening.close()


def test_a_life_in_datagrams(systemd: Systemd) -> None:
    notifier = Notifier(systemd.address)
    notifier.ready("live 4/4 books")
    notifier.watchdog()
    notifier.status("live 3/4 books")
    notifier.stopping("stopping")
    assert systemd.heard() == ["READY=1", "STATUS=live 4/4 books"]
    assert systemd.heard() == ["WATCHDOG=1"]
    assert systemd.heard() == ["STATUS=live 3/4 books"]
    assert systemd.heard() == ["STOPPING=1", "STATUS=stopping"]


def test_reloading_names_the_moment_in_the_kernels_monotonic_microseconds(systemd: Systemd) -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    Notifier(systemd.address).reloading()
    word, moment = systemd.heard()
    assert word == "RELOADING=1"
    name, usec = moment.split("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(usec) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_what_is_sent_is_ascii_and_a_status_is_one_line(systemd: Systemd) -> None:
    Notifier(systemd.address).status("caf\u00e9 \u6570\u636e\nWATCHDOG=trigger\x00\t" + "x" * 2000)
    (line,) = systemd.heard()
    assert line.isascii()
    assert line.startswith("STATUS=caf\\xe9 \\u6570\\u636e WATCHDOG=trigger")
    assert len(line) < 600


def test_an_abstract_socket() -> None:
    name = f"marketprism-test-{os.getpid()}"
    listening = Systemd(f"\0{name}")
    Notifier(f"@{name}").watchdog()
    assert listening.heard() == ["WATCHDOG=1"]
    listening.close()


def test_without_a_listener_nothing_happens(caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier.from_environment({})
    notifier.ready("x")
    notifier.stopping("x")
    assert not notifier.wanted
    assert notifier.watchdog_s is None
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("variables", "expected_s"),
    [
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_for_the_process_it_names(
    variables: dict[str, str], expected_s: float | None
) -> None:
    assert Notifier.from_environment(variables).watchdog_s == expected_s


def test_an_error_is_told_once_and_what_may_not_be_lost_follows_in_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address = str(tmp_path / "notify")
    notifier = Notifier(address)
    with caplog.at_level(logging.ERROR, "marketprism.notify"):
        notifier.reloading()
        notifier.ready("reloaded")
        notifier.watchdog()
    assert caplog.messages == ["systemd cannot be told RELOADING=1: No such file or directory"]
    systemd = Systemd(address)
    notifier.status("fine")
    assert [systemd.heard()[0] for _ in range(3)] == ["RELOADING=1", "READY=1", "STATUS=fine"]
    systemd.close()


def test_a_full_socket_is_an_error_and_does_not_block(
    systemd: Systemd, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = Notifier(systemd.address)
    with caplog.at_level(logging.ERROR, "marketprism.notify"):
        for _ in range(5000):  # net.unix.max_dgram_qlen is far below
            notifier.watchdog()
        assert len(caplog.messages) == 1
        notifier.ready("late")
    while (heard := systemd.heard()) == ["WATCHDOG=1"]:
        notifier.watchdog()
    assert heard == ["READY=1", "STATUS=late"]
