"""`scripts/bench replay`: venue and book alone, from the frame to the written event, over a recording in memory.

A first replay notes every call that the venue gets. The calls are then repeated, each time on a fresh venue, with
nothing around them: no file, no socket, no NATS. The clock is the CPU time of the thread.
"""

import gc
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec

from benchmarks.machine import Machine
from marketprism.config import OFFERS
from marketprism.events import Event
from marketprism.replay import Replay
from marketprism.venues import VENUES
from marketprism.venues.base import Out
from marketprism.venues.venue import Venue
from marketprism.worker.options import replay_options

_SPLIT_REPETITIONS = 3


class ReplayBenchError(Exception):
    """This recording cannot be measured; the text is for a person."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a venue. `channel`: of the frame it hands over; None for everything that is not a frame."""

    method: str
    args: tuple[Any, ...]
    channel: str | None


@dataclass(frozen=True, slots=True)
class ChannelFigures:
    """One kind of frames: what a frame costs, best of a few repetitions, by the wall clock."""

    channel: str
    frames: int
    events: int
    us_per_frame: float


@dataclass(frozen=True, slots=True)
class CaptureFigures:
    """One recording. Microseconds of CPU a frame; the first figure is the best repetition, the second the median.

    `decode_us`: the frames decoded as JSON without a type, and no more, for scale. `book_us`: venue and book, from the
    frame to the events, written as they are published. `left_out`: frames of channels from which
    nothing is published, which a worker does not subscribe to.
    """

    capture: str
    exchange: str
    frames: int
    events: int
    bytes_in: int
    bytes_out: int
    left_out: dict[str, int]
    decode_us: tuple[float, float]
    book_us: tuple[float, float]
    channels: list[ChannelFigures]
    messages_per_s_per_core: tuple[float, float]


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """All that `replay` found."""

    machine: Machine
    repetitions: int
    captures: list[CaptureFigures]


class Tape:
    """Stands in for a venue during one replay, and notes what it is asked and what comes of it."""

    def __init__(self, venue: Venue) -> None:
        self.calls: list[Call] = []
        self.frames: Counter[str] = Counter()
        self.events: Counter[str] = Counter()
        self._venue = venue

    def __getattr__(self, name: str) -> Any:
        """What is only looked at goes to the venue."""
        found = getattr(self._venue, name)
        return self._noted(name, found) if name in _NOTED else found

    def _noted(self, method: str, call: Callable[..., Out]) -> Callable[..., Out]:
        def noting(*args: Any) -> Out:
            out = call(*args)
            channel = _channel(args[1]) if method == "receive" else None
            self.calls.append(Call(method, args, channel))
            if channel is not None:
                self.frames[channel] += 1
                self.events[channel] += sum(type(item) is Event for item in out)
            return out

        return noting


_NOTED = frozenset({"opened", "receive", "closed", "response", "tick", "finish"})


class _Header(msgspec.Struct):
    """Where the three exchanges say what a frame is: Binance, Binance's raw path, OKX, Deribit."""

    stream: str = ""
    e: str = ""
    arg: dict[str, str] = {}
    params: dict[str, Any] = {}


def _channel(frame: bytes) -> str:
    try:
        header = msgspec.json.decode(frame, type=_Header)
    except msgspec.DecodeError:
        return "other"
    if header.stream:
        return header.stream.partition("@")[2] or header.stream
    told = header.e or header.arg.get("channel") or str(header.params.get("channel", "other"))
    return told.partition(".")[0]


def exchange_of(path: Path) -> str | None:
    """By a recording's name: `okx_spot.….jsonl.zst`, or `okx.…`, which stands for OKX's first worker."""
    word = path.name.partition(".")[0]
    return next((name for name in OFFERS if word in (name, name.partition("_")[0])), None)


def replay(captures: Sequence[Path], exchange: str | None, repetitions: int) -> ReplayResult:
    """Measure each recording by itself. Raises ReplayBenchError, UnreadableError."""
    machine = Machine.here()
    return ReplayResult(machine, repetitions, [_measure(path, exchange, repetitions) for path in captures])


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording as the calls it makes on a venue, without the frames of which nothing is published.

    `venue`: the one of the first replay, in its last state. `events`: how many it published.
    """

    exchange: str
    venue: Venue
    calls: list[Call]
    events: int
    left_out: dict[str, int]

    @property
    def frames(self) -> list[bytes]:
        """What came over websockets."""
        return [call.args[1] for call in self.calls if call.channel is not None]


def recording(path: Path, exchange: str | None) -> Recording:
    """Replay once and note what happens. Raises ReplayBenchError, UnreadableError."""
    name = exchange or exchange_of(path)
    if name is None:
        raise ReplayBenchError(f"{path}: whose recording is it? Say --exchange: one of {', '.join(OFFERS)}")
    venue = _venue(name)
    tape = Tape(venue)
    Replay(cast(Venue, tape), [path], lambda _: None).run()
    left_out = {channel: n for channel, n in tape.frames.items() if not tape.events[channel]}
    calls = [call for call in tape.calls if call.channel not in left_out]
    if all(call.channel is None for call in calls):
        raise ReplayBenchError(f"{path}: nothing of it is published as {name}: there is nothing to measure")
    return Recording(name, venue, calls, sum(tape.events.values()), left_out)


def _measure(path: Path, exchange: str | None, repetitions: int) -> CaptureFigures:
    taped = recording(path, exchange)
    frames = taped.frames
    gc.collect()
    gc.freeze()  # the recording is not the collector's work: keep it out of the garbage collector's sight
    try:
        costs = [_repeat(taped.exchange, taped.calls, frames) for _ in range(repetitions)]
        channels = _split(taped.exchange, taped.calls)
    finally:
        gc.unfreeze()
    decode_ns, book_ns = zip(*((c.decode_ns, c.book_ns) for c in costs), strict=True)
    book_us = best_and_median_us(book_ns, len(frames))
    return CaptureFigures(
        capture=path.name,
        exchange=taped.exchange,
        frames=len(frames),
        events=costs[0].events,
        bytes_in=sum(map(len, frames)),
        bytes_out=costs[0].bytes_out,
        left_out=taped.left_out,
        decode_us=best_and_median_us(decode_ns, len(frames)),
        book_us=book_us,
        channels=channels,
        messages_per_s_per_core=(1e6 / book_us[0], 1e6 / book_us[1]),
    )


def _venue(name: str) -> Venue:
    return VENUES[name](replay_options(name, None))


def best_and_median_us(costs_ns: Sequence[int], frames: int) -> tuple[float, float]:
    """Microseconds a frame, of several repetitions."""
    return min(costs_ns) / frames / 1e3, statistics.median(costs_ns) / frames / 1e3


@dataclass(frozen=True, slots=True)
class _Cost:
    decode_ns: int
    book_ns: int
    events: int
    bytes_out: int


def _repeat(name: str, calls: Sequence[Call], frames: Sequence[bytes]) -> _Cost:
    """Both figures one after the other, so that a noisy moment hits them alike."""
    decode_ns = _decode_ns(frames)
    return _Cost(decode_ns, *run(name, calls))


def _decode_ns(frames: Sequence[bytes]) -> int:
    decode = msgspec.json.Decoder().decode
    began_ns = time.thread_time_ns()
    for frame in frames:
        decode(frame)
    return time.thread_time_ns() - began_ns


def run(name: str, calls: Sequence[Call]) -> tuple[int, int, int]:
    """CPU time, events, and bytes of one run on a fresh venue."""
    venue = _venue(name)
    bound = [(getattr(venue, call.method), call.args) for call in calls]
    events = bytes_out = 0
    began_ns = time.thread_time_ns()
    for call, args in bound:
        for item in call(*args):
            if type(item) is Event:
                events += 1
                bytes_out += len(item.payload)
    return time.thread_time_ns() - began_ns, events, bytes_out


def _split(name: str, calls: Sequence[Call]) -> list[ChannelFigures]:
    """What a frame of each channel costs; a clock is read around each frame, which takes part of a microsecond."""
    runs = [_run_split(name, calls) for _ in range(_SPLIT_REPETITIONS)]
    counted = Counter(call.channel for call in calls if call.channel is not None)
    return [
        ChannelFigures(channel, n, runs[0][1][channel], min(spent[channel] for spent, _ in runs) / n / 1e3)
        for channel, n in counted.most_common()
    ]


def _run_split(name: str, calls: Sequence[Call]) -> tuple[Counter[str | None], Counter[str | None]]:
    """Nanoseconds and events by channel."""
    venue = _venue(name)
    bound = [(getattr(venue, call.method), call.args, call.channel) for call in calls]
    spent: Counter[str | None] = Counter()
    events: Counter[str | None] = Counter()
    for call, args, channel in bound:
        began_ns = time.perf_counter_ns()
        for item in call(*args):
            if type(item) is Event:
                events[channel] += 1
        spent[channel] += time.perf_counter_ns() - began_ns
    return spent, events
