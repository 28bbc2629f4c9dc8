"""Log lines, files, rotation, key events and rate limits; set-ups run in processes of their own."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from marketprism.logs import RateLimitedLog, RotatingFile, hide, is_line, redact

LINE = re.compile(
    r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] \[okx_derivatives\] \[INFO\] OrderBook updated: BTC-USDT"
)


HEAD = """
import logging, sys
from pathlib import Path
from marketprism import logs
log = logging.getLogger('marketprism.x')
"""


def program(code: str, directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh process whose log directory is `directory`."""
    return subprocess.run(
        [sys.executable, "-c", HEAD + textwrap.dedent(code), str(directory)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )


def setup(process: str) -> str:
    return f"logs.setup('{process}', Path(sys.argv[1]))\n"


def test_line_format_is_exact(tmp_path: Path) -> None:
    code = setup("okx_derivatives") + "log.info('OrderBook updated: %s', 'BTC-USDT')"
    program(code, tmp_path)
    assert LINE.fullmatch((tmp_path / "collector_okx_derivatives.log").read_text().rstrip("\n"))


def test_level_holds_for_ours_and_libraries_are_heard_from_warning(tmp_path: Path) -> None:
    code = (
        setup("okx_spot")
        + "log.debug('no'); logging.getLogger('nats').info('no'); logging.getLogger('nats').warning('yes')"
    )
    program(code, tmp_path)
    text = (tmp_path / "collector_okx_spot.log").read_text()
    assert "yes" in text
    assert "no\n" not in text


def test_under_the_launcher_key_events_go_to_standard_output(tmp_path: Path) -> None:
    code = setup("okx_spot") + textwrap.dedent("""
        log.info('plain')
        log.info('marked', extra={'event': 'gap', 'symbol': 'BTC-USDT'})
        log.info('also marked', extra={'key': True})
        try:
            1 / 0
        except ZeroDivisionError:
            log.exception('broken')
    """)
    ended = program(code, tmp_path, MARKETPRISM_PARENT_PID="1")
    lines = ended.stdout.splitlines()
    assert [line.partition("] [INFO] ")[2] for line in lines[:2]] == ["marked", "also marked"]
    assert lines[2].endswith("[okx_spot] [ERROR] broken (traceback in collector_okx_spot.log)")
    assert all(map(is_line, lines))
    assert ended.stderr == ""
    own = (tmp_path / "collector_okx_spot.log").read_text()
    assert "plain" in own
    assert "ZeroDivisionError" in own


def test_a_reader_that_does_not_read_cannot_stop_a_worker(tmp_path: Path) -> None:
    code = setup("okx_spot") + "for n in range(2000): log.warning('x' * 100)\nprint('done', file=sys.stderr)"
    reader, writer = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", HEAD + code, str(tmp_path)],
        env={**os.environ, "MARKETPRISM_PARENT_PID": "1"},
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.communicate(timeout=10)[1] == "done\n"
    os.close(reader)
    os.close(writer)
    assert (tmp_path / "collector_okx_spot.log").read_text().count("\n") == 2000


def test_in_the_journal_lines_carry_a_priority_and_no_time(tmp_path: Path) -> None:
    code = """
        import os
        found = os.fstat(1)
        os.environ['JOURNAL_STREAM'] = f'{found.st_dev}:{found.st_ino}'
        logs.setup('okx_spot', None)
        log.info('up')
        log.warning('hm')
    """
    ended = program(code, tmp_path)
    assert ended.stdout == "<6>up\n<4>hm\n"
    assert ended.stderr == ""
    assert not list(tmp_path.iterdir())


def test_single_process_mode_writes_a_file_an_exchange(tmp_path: Path) -> None:
    code = """
        import asyncio
        logs.setup('all', Path(sys.argv[1]))
        async def work(name):
            logs.act_as(name)
            await asyncio.sleep(0)
            log.info('hello')
        async def main():
            await asyncio.gather(work('okx_spot'), work('binance_spot'))
            log.info('both done')
        asyncio.run(main())
    """
    program(code, tmp_path)
    for name, text in (("okx_spot", "hello"), ("binance_spot", "hello"), ("all", "both done")):
        assert (tmp_path / f"collector_{name}.log").read_text().endswith(f"[{name}] [INFO] {text}\n")


def test_unified_log_is_a_link_and_an_older_real_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / "unified-collector.log").write_text("from the earlier system\n")
    program(setup("launcher") + "log.info('one')", tmp_path)
    program(setup("launcher") + "log.info('two')", tmp_path)
    assert os.readlink(tmp_path / "unified-collector.log") == "collector_main.log"
    assert (tmp_path / "unified-collector.log").read_text().count("[launcher]") == 2
    (kept,) = tmp_path.glob("unified-collector.log.*")
    assert kept.read_text() == "from the earlier system\n"


def test_what_an_exchange_sent_cannot_forge_lines(tmp_path: Path) -> None:
    code = setup("okx_spot") + "log.info('got %s', 'a\\n[2025-01-01 00:00:00] [okx_spot] [ERROR] b\\x1b[2J')"
    program(code, tmp_path)
    (line,) = (tmp_path / "collector_okx_spot.log").read_text().splitlines()
    assert line.endswith(r"got a\n[2025-01-01 00:00:00] [okx_spot] [ERROR] b\x1b[2J")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("nats://user:pass@host:4222", "nats://***@host:4222"),
        ("api_key=abc123 symbol=BTC", "api_key=*** symbol=BTC"),
        ('{"apiSecret": "s3cr3t", "x": 1}', '{"apiSecret": "***", "x": 1}'),
        ("Authorization: Bearer abc.def", "Authorization: ***"),
        ("GET /x?signature=00ff&limit=5", "GET /x?signature=***&limit=5"),
        ("BTC-USDT 42000.5", "BTC-USDT 42000.5"),
    ],
)
def test_secrets_are_blotted_out(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_values_given_to_hide_are_blotted_out_wherever_they_are() -> None:
    hide("hunter2hunter2")
    assert redact("login with hunter2hunter2 failed") == "login with *** failed"


def test_rotation_keeps_the_wanted_number_of_files(tmp_path: Path) -> None:
    file = RotatingFile(tmp_path / "a.log", max_bytes=100, backups=2)
    for number in range(20):
        file.write_line(f"{number:02d}" + "." * 30)
    file.close()
    assert sorted(found.name for found in tmp_path.iterdir()) == ["a.log", "a.log.1", "a.log.2"]
    assert all(found.stat().st_size <= 100 for found in tmp_path.iterdir())
    assert (tmp_path / "a.log").read_text().splitlines()[-1].startswith("19")
    assert (tmp_path / "a.log.1").read_text().splitlines()[-1].startswith("17")


def test_several_writers_rotate_one_file_without_losing_a_line(tmp_path: Path) -> None:
    code = """
        file = logs.RotatingFile(Path(sys.argv[1]) / 'a.log', max_bytes=4000, backups=1000)
        for n in range(500):
            file.write_line(f'{NAME} {n:04d} ' + 'x' * 40)
    """
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", f"{HEAD}NAME = {name!r}\n" + textwrap.dedent(code), str(tmp_path)]
        )
        for name in "abc"
    ]
    assert [writer.wait(20) for writer in writers] == [0, 0, 0]
    lines = [line for file in tmp_path.iterdir() for line in file.read_text().splitlines()]
    assert len(lines) == 1500
    assert len(set(lines)) == 1500


def test_unwritable_directory_is_told_once_and_survived(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where the directory should be")
    ended = program(setup("okx_spot") + "log.info('a'); log.warning('b')", tmp_path / "taken")
    assert ended.stderr.count("cannot write") == 1
    assert "[WARNING] b" in ended.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_told_once_and_survived(tmp_path: Path) -> None:
    (tmp_path / "collector_okx_spot.log").symlink_to("/dev/full")
    ended = program(setup("okx_spot") + "log.info('a'); log.warning('b')", tmp_path)
    assert ended.stderr.count("No space left on device") == 1
    assert "[WARNING] b" in ended.stderr


def test_repeats_are_logged_once_with_their_count(caplog: pytest.LogCaptureFixture) -> None:
    limited = RateLimitedLog(logging.getLogger("marketprism.test"), interval_s=0.2)
    with caplog.at_level(logging.INFO, "marketprism.test"):
        for number in range(5):
            limited.warning("checksum", "checksum of %s is wrong (%d)", "BTC-USDT", number, symbol="BTC-USDT")
        limited.info("other", "another kind")
        assert caplog.messages == ["checksum of BTC-USDT is wrong (0)", "another kind"]
        assert json.dumps(caplog.records[0].__dict__["symbol"]) == '"BTC-USDT"'
        deadline = time.monotonic() + 2
        while len(caplog.messages) < 3 and time.monotonic() < deadline:
            limited.flush()
    assert re.fullmatch(
        r"checksum of BTC-USDT is wrong \(0\) \(and 4 more like it in 0 s\)", caplog.messages[2]
    )
