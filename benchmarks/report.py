"""Figures for people: tables as Markdown, so that they can be read in a terminal and pasted into a page."""

from collections.abc import Iterator, Sequence

from benchmarks.live import FIVE, ONE, LiveResult, Run
from benchmarks.processes import ProcessFigures
from benchmarks.readings import ExchangeFigures
from benchmarks.replay import CaptureFigures, ReplayResult


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The first column to the left, all others to the right."""
    widths = [max(len(cells[i]) for cells in (header, *rows)) for i in range(len(header))]
    yield _line(header, widths)
    yield "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    for row in rows:
        yield _line(row, widths)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (
        c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))
    )
    return "| " + " | ".join(padded) + " |"


def live_lines(result: LiveResult) -> Iterator[str]:
    """All of `live`."""
    yield from result.machine.lines()
    for run in result.runs:
        yield ""
        yield from _run_lines(run, result.rate)
    if len(result.runs) > 1:
        yield ""
        yield from _comparison(*result.runs)


def _run_lines(run: Run, rate: float) -> Iterator[str]:
    yield f"{run.mode}, {rate:g} messages/s asked of each exchange, measured for {run.seconds:.0f} s"
    yield f"the machine's other work meanwhile: {run.other_cpu_percent:.0f} % of a core"
    if not run.healthy_at_end:
        yield "ATTENTION: not healthy at the end"
    yield ""
    yield from _latency_table(run)
    yield ""
    yield from _process_table(run)
    yield ""
    if run.cpu_us_per_message is not None:
        yield f"CPU of the workers for each message received: {run.cpu_us_per_message:.0f} us"
    for bar in run.bars:
        figure = "nothing measured" if bar.figure is None else f"{bar.figure:.3g} {bar.unit}"
        yield f"{bar.name}: {figure}, target at most {bar.at_most:g} {bar.unit}: {'met' if bar.met else 'NOT MET'}"


def _latency_table(run: Run) -> Iterator[str]:
    header = (
        "socket read to written, ms",
        "messages/s",
        "events/s",
        "mean",
        "p50",
        "p99",
        "p99.9",
        "all below",
    )
    rows = [_latency_row(name, e) for name, e in run.exchanges.items()]
    rows.append(_latency_row("together", run.together))
    yield from table((*header, "gaps", "errors", "unacked"), rows)


def _latency_row(name: str, e: ExchangeFigures) -> list[str]:
    figures = e.mean_ms, e.p50_ms, e.p99_ms, e.p999_ms
    worst = "-" if e.worst_ms is None else f"{e.worst_ms:g}"
    rates = f"{e.messages_per_s:.1f}", f"{e.events_per_s:.1f}"
    counts = str(e.gaps), str(e.errors), str(e.unacknowledged)
    return [name, *rates, *("-" if f is None else f"{f:.3f}" for f in figures), worst, *counts]


def _process_table(run: Run) -> Iterator[str]:
    header = ("process", "CPU %", "sleeps/s", "RSS start MB", "RSS end", "RSS max", "PSS end")
    rows = [_process_row(p) for p in run.workers]
    rows.append(_sum_row("workers together", run.workers))
    rows += [_process_row(p) for p in run.others]
    yield from table(header, rows)


def _process_row(p: ProcessFigures) -> list[str]:
    memory = p.rss_start_mb, p.rss_end_mb, p.rss_max_mb, p.pss_end_mb
    return [p.name, f"{p.cpu_percent:.1f}", f"{p.sleeps_per_s:.0f}", *(f"{m:.1f}" for m in memory)]


def _sum_row(name: str, processes: Sequence[ProcessFigures]) -> list[str]:
    return _process_row(
        ProcessFigures(
            name=name,
            cpu_percent=sum(p.cpu_percent for p in processes),
            rss_start_mb=sum(p.rss_start_mb for p in processes),
            rss_end_mb=sum(p.rss_end_mb for p in processes),
            rss_max_mb=sum(p.rss_max_mb for p in processes),
            pss_end_mb=sum(p.pss_end_mb for p in processes),
            sleeps_per_s=sum(p.sleeps_per_s for p in processes),
        )
    )


def _comparison(five: Run, one: Run) -> Iterator[str]:
    """Requirement 9: what was expected of five processes in place of one."""

    def row(name: str, figures: tuple[float | None, float | None], unit: str, target: str) -> list[str]:
        return [name, *("-" if f is None else f"{f:.3g} {unit}" for f in figures), target]

    yield from table(
        ("figure", ONE, FIVE, "target for five"),
        [
            row("CPU of the workers, sum", (one.cpu_percent, five.cpu_percent), "%", "80-90 %"),
            row(
                "CPU of the busiest worker",
                (one.busiest_cpu_percent, five.busiest_cpu_percent),
                "%",
                "60-70 %",
            ),
            row("memory of the workers, sum", (one.rss_max_mb, five.rss_max_mb), "MB", "at most 720 MB"),
            row("latency, mean", (one.together.mean_ms, five.together.mean_ms), "ms", "0.12-0.25 ms"),
            row("latency, p99", (one.together.p99_ms, five.together.p99_ms), "ms", "2-5 ms"),
            row("CPU a message", (one.cpu_us_per_message, five.cpu_us_per_message), "us", "-"),
        ],
    )


def replay_lines(result: ReplayResult) -> Iterator[str]:
    """All of `replay`."""
    yield from result.machine.lines()
    yield f"microseconds of CPU a frame, best / median of {result.repetitions} repetitions"
    yield ""
    header = ("recording", "frames", "events", "JSON alone", "venue + book", "+ encode", "messages/s/core")
    yield from table(header, [_capture_row(c) for c in result.captures])
    yield ""
    rows = [row for c in result.captures for row in _channel_rows(c)]
    yield from table(("by channel", "frames", "events", "us a frame"), rows)
    for c in result.captures:
        if c.left_out:
            told = ", ".join(f"{n} {channel}" for channel, n in c.left_out.items())
            yield f"{c.capture}: left out, as nothing is published from them: {told}"


def _capture_row(c: CaptureFigures) -> list[str]:
    costs = (f"{best:.2f} / {median:.2f}" for best, median in (c.decode_us, c.book_us, c.encode_us))
    best, median = c.messages_per_s_per_core
    return [c.capture, str(c.frames), str(c.events), *costs, f"{best:,.0f} / {median:,.0f}"]


def _channel_rows(c: CaptureFigures) -> Iterator[list[str]]:
    for channel in c.channels:
        name = f"{c.capture.removesuffix('.gz').removesuffix('.jsonl')} {channel.channel}"
        yield [name, str(channel.frames), str(channel.events), f"{channel.us_per_frame:.2f}"]
