"""Logging for every process: one line format, one file a process, no file shared by two formats.

Who writes what:
* a worker writes `collector_<exchange>.log` itself and its key events also to standard output;
* the launcher copies those from the pipe to `collector_main.log`, which only the launcher writes;
* under systemd everything goes to the journal, with the fields EXCHANGE, EVENT and SYMBOL;
* by hand, in a terminal, everything goes to standard error.

A key event is a WARNING or worse, or a record marked by `extra={"event": "gap", ...}` or `extra={"key": True}`.
Times are local time, as in the journal.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import stat
import sys
import time
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from marketprism import journal
from marketprism.parent import started_by_launcher

MAIN_PROCESS = "launcher"
CONTROL_PROCESS = "control"
MAIN_LOG = "collector_main.log"
UNIFIED_LOG = "unified-collector.log"
DEFAULT_MAX_BYTES = 100 * 1024 * 1024
DEFAULT_BACKUPS = 5

_RETRY_AFTER_FAILURE_S = 10.0
_PIPE_LINE_BYTES = 4000  # below PIPE_BUF (4096, pipe(7)): such a write is whole or not at all

_LINE = re.compile(r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] \[[^]]+\] \[[A-Z]+\] ")
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\x85\u2028\u2029]")
_URL_CREDENTIALS = re.compile(r"(://)[^/\s@]+@")
_NAMED_SECRET = re.compile(
    r"(?i)(api[_-]?key|api[_-]?secret|secret|passphrase|password|passwd|signature|authorization|token)"
    r"(['\"]?\s*[=:]\s*['\"]?)(?:bearer\s+|basic\s+)?[^\s'\"&,;}\])]+"
)
_secret_values: set[str] = set()
_default_process = "marketprism"
_process: ContextVar[str | None] = ContextVar("marketprism_process", default=None)


class LineSink(Protocol):
    """Takes whole log lines, without the line end."""

    def write_line(self, line: str) -> None: ...


def act_as(process: str) -> None:
    """Name this task, and the tasks it starts, in log lines: in single-process mode workers share a process."""
    _process.set(process)


def _current_process() -> str:
    return _process.get() or _default_process  # another thread has no context of ours


def hide(secret: str) -> None:
    """Have `secret` blotted out wherever it would be logged. Shorter than 6 characters is ignored."""
    if len(secret) >= 6:
        _secret_values.add(secret)


def redact(text: str) -> str:
    """`text` without passwords in URLs, values of secret-looking keys, and values given to `hide`."""
    text = _URL_CREDENTIALS.sub(r"\1***@", text)
    text = _NAMED_SECRET.sub(r"\1\2***", text)
    for value in _secret_values:
        text = text.replace(value, "***")
    return text


def is_line(text: str) -> bool:
    """True when `text` begins like a line of `LineFormatter`."""
    return _LINE.match(text) is not None


def is_key_event(record: logging.LogRecord) -> bool:
    """True when `record` belongs into the main log as well."""
    return (
        record.levelno >= logging.WARNING or hasattr(record, "event") or getattr(record, "key", False) is True
    )


class LineFormatter(logging.Formatter):
    """`[2025-10-22 10:30:45] [okx_derivatives] [INFO] message`; a traceback follows on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        return f"[{when}] [{_current_process()}] [{record.levelname}] {self.body(record)}"

    def body(self, record: logging.LogRecord) -> str:
        """The message on one line (what an exchange sent must not forge lines), then the traceback."""
        message = _CONTROL_CHARACTERS.sub(
            lambda hit: hit[0].encode("unicode_escape").decode(), record.getMessage()
        )
        trace = "\n" + self.formatException(record.exc_info) if record.exc_info else ""
        return redact(message + trace)


class BodyFormatter(LineFormatter):
    """The message alone: journald knows time, unit and priority."""

    def format(self, record: logging.LogRecord) -> str:
        return self.body(record)


class JournalFormatter(LineFormatter):
    """`<6>message`: journald takes the priority from the prefix, as sd-daemon(3) says."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{journal.PRIORITY.get(record.levelname, 6)}>"
        return "\n".join(prefix + line for line in self.body(record).splitlines())


class RotatingFile:
    """A log file that several processes may append to and that is rotated by size: name, name.1, name.2 …

    A full disk or unwritable directory costs lines, never the process: it is told on standard error, once.
    """

    def __init__(
        self, path: Path, max_bytes: int = DEFAULT_MAX_BYTES, backups: int = DEFAULT_BACKUPS
    ) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._backups = backups
        self._fd = -1
        self._retry_at = 0.0
        self._failing = False

    def write_line(self, line: str) -> None:
        """Append `line` and a line end."""
        if time.monotonic() < self._retry_at:
            return
        try:
            self._append((line + "\n").encode("utf-8", "backslashreplace"))
            self._failing = False
        except OSError as exc:
            self._retry_at = time.monotonic() + _RETRY_AFTER_FAILURE_S
            self._complain(exc)

    def close(self) -> None:
        """Close the file; a later write opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _complain(self, exc: OSError) -> None:
        if not self._failing:
            _say_on_stderr(
                f"cannot write {self.path}: {exc.strerror}; running on, its lines are lost until then"
            )
        self._failing = True

    def _append(self, data: bytes) -> None:
        if self._moved():
            self.close()
            self._open()
        if self._max_bytes and 0 < os.fstat(self._fd).st_size > self._max_bytes - len(data):
            self._rotate()
        while data:
            data = data[os.write(self._fd, data) :]

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def _moved(self) -> bool:
        """True when the open file is not (any more) the one of that name: another process rotated it."""
        if self._fd < 0:
            return True
        try:
            named = os.stat(self.path)
        except FileNotFoundError:
            return True
        return not os.path.samestat(named, os.fstat(self._fd))

    def _rotate(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_EX)  # whoever waited here finds the file moved and rotates nothing
        if not self._moved():
            self._shift()
        self.close()
        self._open()

    def _shift(self) -> None:
        if self._backups < 1:
            os.truncate(self.path, 0)
            return
        for number in range(self._backups - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{self.path}.{number}", f"{self.path}.{number + 1}")
        os.replace(self.path, f"{self.path}.1")


class FileHandler(logging.Handler):
    """Writes records to the log file of the process they come from (see `act_as`)."""

    def __init__(self, log_dir: Path, max_bytes: int, backups: int) -> None:
        super().__init__()
        self._log_dir = log_dir
        self._max_bytes = max_bytes
        self._backups = backups
        self._files: dict[str, RotatingFile] = {}
        self.setFormatter(LineFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        self.write_line(self.format(record))

    def write_line(self, line: str) -> None:
        """Append a finished line to the file of the current process."""
        process = _current_process()
        with self.lock or contextlib.nullcontext():
            if process not in self._files:
                path = log_path(self._log_dir, process)
                self._files[process] = RotatingFile(path, self._max_bytes, self._backups)
            self._files[process].write_line(line)

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        super().close()


class PipeHandler(logging.Handler):
    """Writes to a pipe or socket without ever waiting for its reader; what does not fit is counted."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._dropped = 0
        os.set_blocking(fd, False)

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        if self._dropped:
            line = f"{line} ({self._dropped} lines before this one dropped: nobody read them)"
        self._dropped = 0 if self._sent(line) else self._dropped + 1

    def _sent(self, line: str) -> bool:
        data = line.encode("utf-8", "backslashreplace")[: _PIPE_LINE_BYTES - 1] + b"\n"
        try:
            return os.write(self._fd, data) == len(data)
        except OSError:  # full, or the reader is gone: this process goes on without it
            return False


class KeyEventFormatter(LineFormatter):
    """The first line only: the traceback is in the worker's own log."""

    def format(self, record: logging.LogRecord) -> str:
        first, _, rest = super().format(record).partition("\n")
        return f"{first} (traceback in {log_path(Path(), _current_process())})" if rest else first


class ConsoleHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Standard error; also takes finished lines."""

    def write_line(self, line: str) -> None:
        """Print a finished line."""
        with self.lock or contextlib.nullcontext(), contextlib.suppress(OSError, ValueError):
            print(line, file=self.stream, flush=True)


@dataclass(frozen=True, slots=True)
class Sinks:
    """Where this process logs to. `write_line` puts a finished line there as it is."""

    sinks: tuple[LineSink, ...]

    def write_line(self, line: str) -> None:
        """Copy `line`, for instance a worker's key event, to every sink."""
        for sink in self.sinks:
            sink.write_line(line)


def log_path(log_dir: Path, process: str) -> Path:
    """The log file of `process` (a worker's name or MAIN_PROCESS)."""
    return log_dir / (MAIN_LOG if process in (MAIN_PROCESS, CONTROL_PROCESS) else f"collector_{process}.log")


def setup(
    process: str,
    log_dir: Path | None,
    level: str = "INFO",
    max_bytes: int = DEFAULT_MAX_BYTES,
    backups: int = DEFAULT_BACKUPS,
) -> Sinks:
    """Send this process's logging to its file (none when `log_dir` is None) and where its standard streams lead.

    `level` holds for our loggers (`marketprism.*`); libraries are heard from WARNING on. `max_bytes` 0 never
    rotates. Never raises for a directory that cannot be written.
    """
    global _default_process
    _default_process = process
    files = [FileHandler(log_dir, max_bytes, backups)] if log_dir else []
    stream = _stream_handler(process)
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    for handler in [*files, stream]:
        root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("marketprism").setLevel(level.upper())
    if log_dir and process in (MAIN_PROCESS, CONTROL_PROCESS):
        _link_unified(log_dir)
    return Sinks((*files, stream) if isinstance(stream, ConsoleHandler) else tuple(files))


def _stream_handler(process: str) -> logging.Handler:
    if started_by_launcher() and _is_pipe(1):
        pipe = PipeHandler(1)
        pipe.setFormatter(KeyEventFormatter())
        pipe.addFilter(is_key_event)
        return pipe
    fd = _journal_fd()
    if fd is not None:
        stream = PipeHandler(fd)
        stream.setFormatter(JournalFormatter())
        handler = journal.JournalHandler(f"marketprism-{process}", _process.get, stream, journal.SOCKET)
        handler.setFormatter(BodyFormatter())
        return handler
    console = ConsoleHandler(sys.stderr)
    console.setFormatter(LineFormatter())
    return console


def _is_pipe(fd: int) -> bool:
    """A terminal is shared with the shell, so only a pipe or socket may be made non-blocking."""
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _journal_fd() -> int | None:
    """Which standard stream leads to the journal: by device and inode, as systemd.exec(5), $JOURNAL_STREAM, says."""
    for fd in (2, 1):
        found = os.fstat(fd)
        if os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}":
            return fd
    return None


def _link_unified(log_dir: Path) -> None:
    """Make unified-collector.log lead to collector_main.log; a real file of that name is kept, renamed."""
    link = log_dir / UNIFIED_LOG
    try:
        log_dir.mkdir(parents=True, exist_ok=True)
        if link.is_symlink() and os.readlink(link) == MAIN_LOG:
            return
        if link.is_symlink():
            link.unlink()
        elif link.exists():
            link.rename(f"{link}.{time.strftime('%Y%m%d-%H%M%S')}")
        link.symlink_to(MAIN_LOG)
    except OSError as exc:
        _say_on_stderr(f"cannot make {link} a link to {MAIN_LOG}: {exc.strerror}; running on without it")


def _say_on_stderr(message: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # nowhere left to complain to
        print(f"marketprism: {message}", file=sys.stderr, flush=True)


@dataclass(slots=True)
class _Repeats:
    since_s: float
    level: int
    message: str
    suppressed: int = 0


class RateLimitedLog:
    """Logs a message of one kind once in `interval_s`, then says how many more there were.

    `kind` groups messages ("checksum", "429" …): use few, fixed words, perhaps with the symbol. Call `flush`
    now and then (a worker: every second), so that the last count is told although the message stopped.
    """

    def __init__(self, logger: logging.Logger, interval_s: float = 60.0) -> None:
        self._logger = logger
        self._interval_s = interval_s
        self._kinds: dict[str, _Repeats] = {}

    def log(self, level: int, kind: str, message: str, *args: object, **fields: object) -> None:
        """Log now, or count it. `fields` become the record's `extra` (event=, symbol= …)."""
        self.flush()
        repeats = self._kinds.get(kind)
        if repeats is not None:
            repeats.suppressed += 1
            repeats.level = max(level, repeats.level)
            return
        self._kinds[kind] = _Repeats(time.monotonic(), level, message % args if args else message)
        self._logger.log(level, message, *args, extra=fields)

    def info(self, kind: str, message: str, *args: object, **fields: object) -> None:
        """`log` at INFO."""
        self.log(logging.INFO, kind, message, *args, **fields)

    def warning(self, kind: str, message: str, *args: object, **fields: object) -> None:
        """`log` at WARNING."""
        self.log(logging.WARNING, kind, message, *args, **fields)

    def error(self, kind: str, message: str, *args: object, **fields: object) -> None:
        """`log` at ERROR."""
        self.log(logging.ERROR, kind, message, *args, **fields)

    def flush(self) -> None:
        """Tell the counts of all kinds whose interval is over; one that went on stays limited."""
        now = time.monotonic()
        over = [kind for kind, seen in self._kinds.items() if now - seen.since_s >= self._interval_s]
        for kind in over:
            seen = self._kinds.pop(kind)
            if seen.suppressed:
                self._logger.log(
                    seen.level,
                    "%s (and %d more like it in %.0f s)",
                    seen.message,
                    seen.suppressed,
                    now - seen.since_s,
                )
                self._kinds[kind] = _Repeats(now, seen.level, seen.message)
