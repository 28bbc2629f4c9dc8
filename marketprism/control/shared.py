"""The workers' shared metrics files: read together, and kept over the death of a worker."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import struct
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
from prometheus_client.core import Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from marketprism.logs import RateLimitedLog

_READ_AT_MOST_EVERY_S = 0.5
_RATE_WINDOW_S = 10.0
_MESSAGES = "marketprism_websocket_messages_received_total"
_GAPS = "marketprism_gaps_total"
_UNITS = ("seconds", "bytes", "percent")

_DAMAGED = (RuntimeError, ValueError, struct.error)  # what prometheus-client raises, JSON and UTF-8 included
_log = RateLimitedLog(logging.getLogger(__name__))

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Readings:
    """One reading of all workers' metrics. A sample nobody wrote is None, never 0."""

    samples: Mapping[str, Mapping[Labels, float]]
    messages_per_second: Mapping[str, float]
    gaps_last_hour: Mapping[str, int]

    def value(self, name: str, exchange: str) -> float | None:
        """The sample of `name` whose only label is this exchange."""
        return self.samples.get(name, {}).get((("exchange", exchange),))

    def total(self, name: str, exchange: str) -> float:
        """Sum over all samples of `name` of this exchange, whatever their other labels."""
        return sum(
            value for labels, value in self.samples.get(name, {}).items() if ("exchange", exchange) in labels
        )

    def by_label(self, name: str, exchange: str, label: str) -> dict[str, float]:
        """`label`'s value → sample, for this exchange."""
        found: dict[str, float] = {}
        for labels, value in self.samples.get(name, {}).items():
            as_dict = dict(labels)
            if as_dict.get("exchange") == exchange and label in as_dict:
                found[as_dict[label]] = value
        return found


class SharedMetrics:
    """The directory of prometheus-client's multiprocess files."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._families: list[Metric] = []
        self._readings = Readings({}, {}, {})
        self._read_at_s = float("-inf")
        self._message_counts: deque[tuple[float, dict[str, float]]] = deque()
        self._gaps = GapHistory(directory / "gaps.json")

    def clear(self) -> None:
        """Make the directory and remove the files of an earlier run. Raises OSError."""
        self._directory.mkdir(parents=True, exist_ok=True)
        for file in [*self._directory.glob("*.db"), *self._directory.glob("gaps.json")]:
            file.unlink()

    def retire_dead(self) -> None:
        """`retire` every worker that has ended, whoever noticed: its files are here and its process is not."""
        for pid in {_writer(file) for file in self._directory.glob("*_*.db")} - {0}:
            if not _writes_still(pid, self._directory):
                self.retire(pid)

    def retire(self, pid: int) -> None:
        """After a worker ended: forget its gauges, and keep its counts in one file for all the dead.

        Without this, counters would either fall at a restart or leave two more files to read at every one.
        """
        mark_process_dead(pid, str(self._directory))  # type: ignore[no-untyped-call]
        for kind in ("counter", "histogram"):
            file = self._directory / f"{kind}_{pid}.db"
            if file.exists():
                _fold(file, self._directory / f"{kind}_0.db")
        self._read_at_s = float("-inf")

    def read(self) -> Readings:
        """What the workers last wrote, at most half a second old."""
        self._refresh()
        return self._readings

    def collect(self) -> Iterable[Metric]:
        """The metric families, for a registry."""
        self._refresh()
        return self._families

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._read_at_s < _READ_AT_MOST_EVERY_S:
            return
        self._read_at_s = now
        # A file just made is empty for a moment, and the library cannot read it then.
        files = [str(file) for file in self._directory.glob("*.db") if _size(file)]
        self._families = [_with_unit(family) for family in _merge(files)]
        samples: dict[str, dict[Labels, float]] = {}
        for family in self._families:
            for sample in family.samples:
                samples.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
        rates = self._rates(now, samples.get(_MESSAGES, {}))
        self._readings = Readings(samples, rates, self._gaps.note(time.time(), samples.get(_GAPS, {})))

    def _rates(self, now: float, counts: Mapping[Labels, float]) -> dict[str, float]:
        current = {dict(labels).get("exchange", ""): value for labels, value in counts.items()}
        self._message_counts.append((now, current))
        while now - self._message_counts[0][0] > _RATE_WINDOW_S and len(self._message_counts) > 2:
            self._message_counts.popleft()
        first_s, first = self._message_counts[0]
        elapsed = now - first_s
        if elapsed <= 0:
            return {}
        return {exchange: (value - first.get(exchange, 0.0)) / elapsed for exchange, value in current.items()}


def _merge(files: list[str]) -> list[Metric]:
    """All files together; a damaged one costs only its own figures."""
    try:
        return list(MultiProcessCollector.merge(files))  # type: ignore[no-untyped-call]
    except _DAMAGED:
        whole = [file for file in files if _is_whole(file)]
        return list(MultiProcessCollector.merge(whole))  # type: ignore[no-untyped-call]


def _is_whole(file: str) -> bool:
    try:
        MultiProcessCollector.merge([file])  # type: ignore[no-untyped-call]
    except _DAMAGED:
        _log.error(
            "damaged", "metrics file %s is damaged; its figures are missing until its worker restarts", file
        )
        return False
    return True


def _size(file: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return file.stat().st_size
    return 0


def _with_unit(family: Metric) -> Metric:
    """prometheus-client's files do not hold the unit; the name does."""
    family.unit = unit_of(family.name)
    return family


def unit_of(name: str) -> str:
    """The unit that a metric's name ends in, or ""."""
    return next((unit for unit in _UNITS if name.endswith(f"_{unit}")), "")


def _writer(file: Path) -> int:
    """The pid in the name `gauge_livemostrecent_4711.db`; 0 for our own and for what is not of this form."""
    digits = file.stem.rpartition("_")[2]
    return int(digits) if digits.isdigit() else 0


def _writes_still(pid: int, directory: Path) -> bool:
    """Whether the process that made the files of `pid` lives: pids are used again, also after a reboot."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's; keeping its files is the lesser evil
        return True
    try:
        started_s = psutil.Process(pid).create_time()
    except psutil.Error:  # in the units' sandbox /proc hides it, and psutil takes it for gone
        return True
    made = [file.stat().st_mtime for file in directory.glob(f"*_{pid}.db")]
    return not made or started_s < max(made) + 1.0


def _fold(source: Path, target: Path) -> None:
    """Add every value in `source` to the same key in `target`, and remove `source`.

    The sum is made aside and takes the target's place at once, so a crash in between loses nothing.
    """
    sums_file = target.with_suffix(".new")
    if _size(source) and _is_whole(str(source)):
        if target.exists():
            shutil.copyfile(target, sums_file)
        sums = MmapedDict(str(sums_file))  # type: ignore[no-untyped-call]
        for key, value, _, _ in MmapedDict.read_all_values_from_file(str(source)):  # type: ignore[no-untyped-call]
            sums.write_value(key, sums.read_value(key)[0] + value, 0.0)  # type: ignore[no-untyped-call]
        sums.close()  # type: ignore[no-untyped-call]
        sums_file.replace(target)
    source.unlink()


class GapHistory:
    """How many gaps each exchange had in the last hour, from its counter; kept in a file for our own restart."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._by_minute = self._load()

    def note(self, now_s: float, totals: Mapping[Labels, float]) -> dict[str, int]:
        """Take the counter's samples at Unix time `now_s`; exchange → gaps in the hour before."""
        current: Counter[str] = Counter()
        for labels, value in totals.items():
            current[dict(labels).get("exchange", "")] += int(value)
        if not self._by_minute or now_s - self._by_minute[-1][0] >= 60.0:
            self._by_minute.append((now_s, dict(current)))
            while len(self._by_minute) > 1 and self._by_minute[1][0] < now_s - 3600.0:
                self._by_minute.popleft()
            self._save()
        before = self._by_minute[0][1]
        return {exchange: max(0, total - before.get(exchange, 0)) for exchange, total in current.items()}

    def _load(self) -> deque[tuple[float, dict[str, int]]]:
        try:
            return deque((float(at_s), dict(totals)) for at_s, totals in json.loads(self._file.read_bytes()))
        except FileNotFoundError:
            return deque()
        except (OSError, ValueError, TypeError) as exc:
            _log.warning("gap_history", "cannot read %s: %s; counting the hour anew", self._file, exc)
            return deque()

    def _save(self) -> None:
        try:
            write_atomically(self._file, json.dumps(list(self._by_minute)).encode())
        except OSError as exc:
            _log.warning("gap_history", "cannot write %s: %s", self._file, exc.strerror)


def write_atomically(file: Path, content: bytes) -> None:
    """Replace `file` so that a reader, or a crash, meets the old content or the new. Raises OSError."""
    new = file.with_name(f"{file.name}.new")
    with new.open("wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    new.replace(file)
