"""Memory against its limits, by made-up readings and by the kernel's."""

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from marketprism import memory
from marketprism.config import MemoryLimits
from marketprism.memory import MB, Memory

LIMITS = MemoryLimits(soft_mb=150, hard_mb=200)


def verdicts(readings_mb: Iterable[float], step_s: float = 0.25) -> list[str]:
    """What comes of these readings, one each `step_s`, as far as something comes of them: `soft at 150`."""
    used_mb = 0.0
    checked = Memory(LIMITS, lambda: round(used_mb * MB))
    found = []
    for n, used_mb in enumerate(readings_mb):
        verdict = checked.check(n * step_s)
        if verdict:
            found.append(f"{verdict} at {used_mb:g}")
        if verdict == "hard":
            break
    return found


def test_below_the_soft_limit_nothing_is_said() -> None:
    assert verdicts([0, 100, 149.9, 60, 149.9]) == []


def test_the_soft_limit_warns_once_however_long_and_however_often_it_is_crossed() -> None:
    assert verdicts([149, 151, 160, 151, 149, 151, 136, 170]) == ["soft at 151"]


def test_it_warns_again_after_memory_went_below_nine_tenths_of_the_soft_limit() -> None:
    assert verdicts([151, 134.9, 149, 151]) == ["soft at 151", "soft at 151"]


def test_a_slow_leak_is_stopped_at_93_per_cent_of_the_hard_limit() -> None:
    assert verdicts(140 + n for n in range(100)) == ["soft at 150", "hard at 186"]


def test_a_fast_leak_is_stopped_as_early_as_its_growth_asks_for() -> None:
    """100 MB/s: what is left to the hard limit lasts for the half second that a drain takes."""
    soft, hard = verdicts((n * 5 for n in range(100)), step_s=0.05)
    assert soft == "soft at 150"
    assert hard == "hard at 155"


def test_a_jump_over_both_limits_is_warned_of_before_it_is_acted_on() -> None:
    assert verdicts([100, 199, 199]) == ["soft at 199", "hard at 199"]


def test_a_burst_is_not_taken_for_a_leak() -> None:
    """Growth counts when it has lasted: an initial snapshot of many books takes its memory at once."""
    assert verdicts([100, 100, 100, 100, 170, 171, 171, 171]) == ["soft at 170"]


def test_growth_below_the_soft_limit_never_stops_a_worker() -> None:
    assert verdicts((n * 5 for n in range(30)), step_s=0.01) == []


def test_limits_may_change_while_it_runs() -> None:
    checked = Memory(LIMITS, lambda: 160 * MB)
    assert checked.check(0.0) == "soft"
    checked.limits = MemoryLimits(soft_mb=300, hard_mb=400)
    assert checked.check(0.25) == ""
    assert not checked.soft_exceeded
    checked.limits = MemoryLimits(soft_mb=100, hard_mb=150)
    assert [checked.check(0.5), checked.check(0.5)] == ["soft", "hard"]


def test_it_is_looked_at_more_often_above_the_soft_limit() -> None:
    used_mb = 100
    checked = Memory(LIMITS, lambda: used_mb * MB)
    checked.check(0.0)
    calm_s = checked.pause_s
    used_mb = 160
    checked.check(0.25)
    assert checked.pause_s < calm_s


def test_resident_memory_of_this_process_grows_with_it() -> None:
    read = memory._rss_reader()
    before = read()
    kept = b"x" * (32 * MB)
    assert read() - before > 30 * MB
    del kept


def cgroup(tmp_path: Path, members: str, stat: str) -> tuple[Path, Path]:
    """A cgroup v2 tree and /proc/self/cgroup, as the kernel shows them."""
    folder = tmp_path / "fs" / "marketprism.slice" / "marketprism-worker@okx_spot.service"
    folder.mkdir(parents=True)
    (folder / "cgroup.procs").write_text(members)
    (folder / "memory.current").write_text("100000000\n")
    (folder / "memory.stat").write_text(stat)
    membership = tmp_path / "cgroup"
    membership.write_text("0::/marketprism.slice/marketprism-worker@okx_spot.service\n")
    return tmp_path / "fs", membership


@pytest.mark.parametrize(
    ("stat", "expected"),
    [("anon 5\ninactive_file 30000000\nactive_file 7\n", 70_000_000), ("anon 5\n", 100_000_000)],
)
def test_the_working_set_leaves_out_page_cache_that_was_not_used_lately(
    tmp_path: Path, stat: str, expected: int
) -> None:
    read = memory._cgroup_reader(*cgroup(tmp_path, f"{os.getpid()}\n", stat))
    assert read is not None
    assert read() == expected


def test_a_cgroup_shared_with_others_says_nothing_of_this_process(tmp_path: Path) -> None:
    assert memory._cgroup_reader(*cgroup(tmp_path, f"1\n{os.getpid()}\n", "")) is None


def test_without_cgroup_v2_resident_memory_counts(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("5:memory:/user.slice\n1:name=systemd:/\n")
    assert memory._cgroup_reader(tmp_path, tmp_path / "cgroup") is None
    assert memory._cgroup_reader(tmp_path, tmp_path / "absent") is None


def test_giving_back_keeps_what_is_used() -> None:
    kept = [str(n) for n in range(1000)]
    memory.give_back()
    assert kept[-1] == "999"
