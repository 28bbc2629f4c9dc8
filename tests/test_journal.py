"""Records on their way to journald: a real datagram socket in its place takes the native protocol apart."""

import array
import fcntl
import logging
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from marketprism import logs
from marketprism.journal import JournalHandler


class Journald:
    """The receiving end."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._socket.settimeout(5)
        self.files = 0

    def record(self) -> dict[str, str]:
        """The fields of the next record."""
        data, rights, _, _ = self._socket.recvmsg(1 << 20, socket.CMSG_SPACE(4))
        if not rights:
            return fields(data)
        assert data == b""
        self.files += 1
        (fd,) = array.array("i", rights[0][2])
        assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) == 15  # all four: journald takes no other
        with os.fdopen(fd, "rb") as file:
            file.seek(0)
            return fields(file.read())

    def close(self) -> None:
        self._socket.close()


def fields(data: bytes) -> dict[str, str]:
    """By the text of systemd.io/JOURNAL_NATIVE_PROTOCOL."""
    found: dict[str, str] = {}
    while data:
        line, _, rest = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (length,) = struct.unpack("<Q", rest[:8])
            value, rest = rest[8 : 8 + length], rest[8 + length :]
            assert rest[:1] == b"\n"
            rest = rest[1:]
        assert name.decode() not in found
        assert name.isupper()
        found[name.decode()], data = value.decode(), rest
    return found


class Kept(logging.Handler):
    """A fallback that keeps what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[Journald]:
    listening = Journald(tmp_path / "socket")
    yield listening
    listening.close()


def handler(
    path: str, fallback: logging.Handler | None = None, exchange: str | None = None
) -> JournalHandler:
    made = JournalHandler("marketprism-test", lambda: exchange, fallback or Kept(), path)
    made.setFormatter(logs.BodyFormatter())
    return made


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    logger = logging.Logger("marketprism.test")
    yield logger
    for one in logger.handlers:
        one.close()


def test_a_record_has_its_fields(journald: Journald, log: logging.Logger) -> None:
    log.addHandler(handler(journald.path, exchange="okx_spot"))
    log.warning("gap in %s", "trade", extra={"event": "gap", "symbol": "BTC-USDT"})
    record = journald.record()
    line = record.pop("CODE_LINE")
    assert line.isdecimal()
    assert record == {
        "MESSAGE": "gap in trade",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "marketprism-test",
        "LOGGER": "marketprism.test",
        "CODE_FILE": __file__,
        "CODE_FUNC": "test_a_record_has_its_fields",
        "EXCHANGE": "okx_spot",
        "EVENT": "gap",
        "SYMBOL": "BTC-USDT",
    }


@pytest.mark.parametrize(
    ("level", "priority"),
    [("debug", "7"), ("info", "6"), ("warning", "4"), ("error", "3"), ("critical", "2")],
)
def test_priorities_are_those_of_syslog(
    journald: Journald, log: logging.Logger, level: str, priority: str
) -> None:
    log.addHandler(handler(journald.path))
    getattr(log, level)("x")
    assert journald.record()["PRIORITY"] == priority


def test_a_record_says_itself_whose_it_is(journald: Journald, log: logging.Logger) -> None:
    log.addHandler(handler(journald.path))
    log.info("restarting", extra={"exchange": "okx_spot"})
    log.info("nobody's")
    assert journald.record()["EXCHANGE"] == "okx_spot"
    assert "EXCHANGE" not in journald.record()


def test_what_an_exchange_sent_cannot_forge_a_field(journald: Journald, log: logging.Logger) -> None:
    log.addHandler(handler(journald.path))
    log.warning("got %s", "a\nPRIORITY=0", extra={"symbol": "X\nEVENT=forged\n"})
    record = journald.record()
    assert record["MESSAGE"] == r"got a\nPRIORITY=0"
    assert record["SYMBOL"] == "X\nEVENT=forged\n"
    assert "EVENT" not in record


def test_a_traceback_is_one_record_of_many_lines(journald: Journald, log: logging.Logger) -> None:
    log.addHandler(handler(journald.path))
    try:
        raise ValueError("password=hunter2 is wrong")
    except ValueError:
        log.exception("broken")
    message = journald.record()["MESSAGE"].splitlines()
    assert message[0] == "broken"
    assert message[1].startswith("Traceback")
    assert message[-1] == "ValueError: password=*** is wrong"


def test_a_record_larger_than_a_datagram_goes_as_a_sealed_file(
    journald: Journald, log: logging.Logger
) -> None:
    log.addHandler(handler(journald.path))
    text = "\u00e9" * 3_000_000
    log.error("%s", text)
    log.error("small again")
    assert journald.record()["MESSAGE"] == text
    assert journald.record()["MESSAGE"] == "small again"
    assert journald.files == 1


def test_what_journald_does_not_take_goes_elsewhere(journald: Journald, log: logging.Logger) -> None:
    fallback = Kept()
    log.addHandler(handler(journald.path, fallback))
    for n in range(5000):  # it does not read: a full socket must not stop anybody
        log.info("%d", n)
    taken = [journald.record()["MESSAGE"] for _ in range(5000 - len(fallback.messages))]
    assert taken
    assert taken + fallback.messages == [str(n) for n in range(5000)]
    journald.close()
    log.info("gone")
    assert fallback.messages[-1] == "gone"


def test_a_journald_that_comes_back_is_found_again(tmp_path: Path, log: logging.Logger) -> None:
    fallback = Kept()
    log.addHandler(handler(str(tmp_path / "socket"), fallback))
    log.info("not there yet")
    journald = Journald(tmp_path / "socket")
    log.info("there")
    assert fallback.messages == ["not there yet"]
    assert journald.record()["MESSAGE"] == "there"
    journald.close()


PROGRAM = """
import asyncio, logging, os, sys
from pathlib import Path
from marketprism import journal, logs
journal.SOCKET = sys.argv[1]
found = os.fstat(int(sys.argv[2]))
os.environ['JOURNAL_STREAM'] = f'{found.st_dev}:{found.st_ino}'
logs.setup('okx_spot', None)
log = logging.getLogger('marketprism.x')
log.info('up')
async def work():
    logs.act_as('okx_spot')
    log.warning('hm', extra={'event': 'gap'})
asyncio.run(work())
"""


@pytest.mark.parametrize("stream", ["1", "2"])
def test_a_process_whose_streams_are_the_journals_logs_there(journald: Journald, stream: str) -> None:
    command = [sys.executable, "-c", PROGRAM, journald.path, stream]
    ended = subprocess.run(command, capture_output=True, check=True)
    assert (ended.stdout, ended.stderr) == (b"", b"")
    first, second = journald.record(), journald.record()
    assert (first["MESSAGE"], first["SYSLOG_IDENTIFIER"]) == ("up", "marketprism-okx_spot")
    assert (second["MESSAGE"], second["EXCHANGE"], second["EVENT"]) == ("hm", "okx_spot", "gap")


def test_without_journald_lines_with_a_priority_go_to_the_stream(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "nobody"), "2"]
    ended = subprocess.run(command, capture_output=True, check=True)
    assert (ended.stdout, ended.stderr) == (b"", b"<6>up\n<4>hm\n")
