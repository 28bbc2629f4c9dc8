"""Figures for people: tables as Markdown, so that they can be read in a terminal and pasted into a page."""

from collections.abc import Iterator, Sequence

from benchmarks.floor import TARGET, FloorResult
from benchmarks.live import FIVE, ONE, Bar, LiveResult, Run, Step, SweepResult
from benchmarks.peers import PeerFigures, PeersResult
from benchmarks.processes import ProcessFigures
from benchmarks.readings import ExchangeFigures, Latency
from benchmarks.replay import CaptureFigures, ReplayResult
from benchmarks.scale import Row, ScaleResult
from benchmarks.soak import Series, SoakResult
from benchmarks.storage import StorageResult

_PROCESS_HEADER = ("process", "CPU %", "sleeps/s", "RSS start MB", "RSS end", "RSS max", "PSS end")


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
        yield from _run_lines(run, result.load.rate)
    if len(result.runs) > 1:
        yield ""
        yield from _comparison(*result.runs)


def sweep_lines(result: SweepResult) -> Iterator[str]:
    """All of `live --sweep`: a line for each rate, all exchanges together."""
    yield from result.machine.lines()
    yield ""
    header = ("messages/s", "events/s", *_latency_header("written"), *_latency_header("acknowledged"))
    rows = [_sweep_row(step) for step in result.steps]
    yield from table((*header, "CPU us/message", "workers CPU %", "RSS MB", "gaps", "held"), rows)
    for step in result.steps:
        if step.strain:
            yield f"at {step.rate:g} messages/s an exchange: {step.strain}"
    yield from _other_work([step.run for step in result.steps])


def _sweep_row(step: Step) -> list[str]:
    run, all_of_them = step.run, step.run.together
    return [
        f"{all_of_them.messages_per_s:,.0f}",
        f"{all_of_them.events_per_s:,.0f}",
        *_latency_cells(all_of_them.written),
        *_latency_cells(all_of_them.acknowledged),
        _number(run.cpu_us_per_message, "{:.0f}"),
        f"{run.cpu_percent:.0f}",
        f"{run.rss_max_mb:.0f}",
        str(all_of_them.gaps),
        "no" if step.strain else "yes",
    ]


def _other_work(runs: Sequence[Run]) -> Iterator[str]:
    told = ", ".join(f"{run.other_cpu_percent:.0f}" for run in runs)
    yield f"the machine's other work meanwhile: {told} % of a core"


def _run_lines(run: Run, rate: float) -> Iterator[str]:
    yield f"{run.mode}, {rate:g} messages/s asked of each exchange, measured for {run.seconds:.0f} s"
    yield from _other_work([run])
    if not run.healthy_at_end:
        yield "ATTENTION: not healthy at the end"
    yield ""
    yield from _latency_table(run)
    yield ""
    yield from _process_table(run)
    yield ""
    if run.cpu_us_per_message is not None:
        yield f"CPU of the workers for each message received: {run.cpu_us_per_message:.0f} us"
    yield from _bar_lines(run.bars)


def _bar_lines(bars: Sequence[Bar]) -> Iterator[str]:
    for bar in bars:
        figure = "nothing measured" if bar.figure is None else f"{bar.figure:.3g} {bar.unit}"
        yield f"{bar.name}: {figure}, target at most {bar.at_most:g} {bar.unit}: {'met' if bar.met else 'NOT MET'}"


def _latency_table(run: Run) -> Iterator[str]:
    header = ("ms after the socket read", "messages/s", "events/s", "written, mean")
    header = (*header, *_latency_header("written"), *_latency_header("acknowledged"))
    rows = [_latency_row(name, e) for name, e in run.exchanges.items()]
    rows.append(_latency_row("together", run.together))
    yield from table((*header, "gaps", "errors", "unacked"), rows)


def _latency_header(name: str) -> tuple[str, ...]:
    return f"{name}, p50", "p99", "p99.9", "below"


def _latency_row(name: str, e: ExchangeFigures) -> list[str]:
    rates = f"{e.messages_per_s:.1f}", f"{e.events_per_s:.1f}"
    latencies = (*_latency_cells(e.written), *_latency_cells(e.acknowledged))
    counts = str(e.gaps), str(e.errors), str(e.unacknowledged)
    return [name, *rates, _number(e.written.mean_ms, "{:.3f}"), *latencies, *counts]


def _latency_cells(found: Latency) -> list[str]:
    quantiles = (_number(f, "{:.3f}") for f in (found.p50_ms, found.p99_ms, found.p999_ms))
    return [*quantiles, _number(found.below_ms, "{:g}")]


def _number(figure: float | None, form: str) -> str:
    return "-" if figure is None else form.format(figure)


def storage_lines(result: StorageResult) -> Iterator[str]:
    """All of `storage`."""
    alone, backlog, found = result.inserted, result.backlog, result.found
    yield from result.machine.lines()
    yield ""
    yield f"{alone.events:,} events into the engine, on disk {alone.lying:,} rows, in {alone.seconds:.1f} s:"
    figures = f"{alone.rows_per_s:,.0f} rows/s", f"{alone.cpu_us_a_row:.1f} us CPU a row"
    yield f"{', '.join(figures)}, at most {alone.rss_max_mb:.0f} MB (RSS)"
    yield ""
    yield f"a backlog of {backlog.events:,} events of {backlog.payload_bytes:.0f} bytes, on disk {backlog.lying:,} rows"
    yield f"taken in {backlog.seconds:.1f} s: {backlog.rows_per_s:,.0f} rows/s, {backlog.slowest_per_s:,.0f} in the"
    yield f"slowest ten seconds; the machine's other work meanwhile: {backlog.other_cpu_percent:.0f} % of a core"
    yield ""
    yield from table(_PROCESS_HEADER, [_process_row(p) for p in backlog.processes])
    yield ""
    yield f"{found.rate:g} messages/s an exchange for {found.seconds:.0f} s, asked every {found.asked_every_s:g} s:"
    yield (
        f"{found.events:,} events found {found.p50_s:.2f} s after publication (p50), {found.p99_s:.2f} (p99), "
        f"{found.max_s:.2f} at most"
    )
    yield ""
    yield from table(_PROCESS_HEADER, [_process_row(p) for p in found.processes])
    yield ""
    yield from _bar_lines(result.bars)


def _process_table(run: Run) -> Iterator[str]:
    rows = [_process_row(p) for p in run.workers]
    rows.append(_sum_row("workers together", run.workers))
    rows += [_process_row(p) for p in run.others]
    yield from table(_PROCESS_HEADER, rows)


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
            row(
                "latency, mean",
                (one.together.written.mean_ms, five.together.written.mean_ms),
                "ms",
                "0.12-0.25 ms",
            ),
            row("latency, p99", (one.together.written.p99_ms, five.together.written.p99_ms), "ms", "2-5 ms"),
            row("CPU a message", (one.cpu_us_per_message, five.cpu_us_per_message), "us", "-"),
        ],
    )


def replay_lines(result: ReplayResult) -> Iterator[str]:
    """All of `replay`."""
    yield from result.machine.lines()
    yield f"microseconds of CPU a frame, best / median of {result.repetitions} repetitions"
    yield ""
    header = ("recording", "frames", "events", "JSON alone", "venue + book", "messages/s/core")
    yield from table(header, [_capture_row(c) for c in result.captures])
    yield ""
    rows = [row for c in result.captures for row in _channel_rows(c)]
    yield from table(("by channel", "frames", "events", "us a frame"), rows)
    for c in result.captures:
        if c.left_out:
            told = ", ".join(f"{n} {channel}" for channel, n in c.left_out.items())
            yield f"{c.capture}: left out, as nothing is published from them: {told}"


def _capture_row(c: CaptureFigures) -> list[str]:
    costs = (f"{best:.2f} / {median:.2f}" for best, median in (c.decode_us, c.book_us))
    best, median = c.messages_per_s_per_core
    return [c.capture, str(c.frames), str(c.events), *costs, f"{best:,.0f} / {median:,.0f}"]


def _channel_rows(c: CaptureFigures) -> Iterator[list[str]]:
    for channel in c.channels:
        name = f"{c.capture.removesuffix('.gz').removesuffix('.jsonl')} {channel.channel}"
        yield [name, str(channel.frames), str(channel.events), f"{channel.us_per_frame:.2f}"]


def peers_lines(result: PeersResult) -> Iterator[str]:
    """All of `peers`."""
    yield from result.machine.lines()
    yield f"beside {result.peer}; microseconds of CPU a frame, best / median of {result.repetitions} repetitions;"
    yield "ratios: cryptofeed's time over ours, median of the pairs, above 1 where ours is faster"
    yield ""
    header = ("recording", "frames", "venue + book", "cryptofeed", "with checks")
    ratios = ("ratio", "with checks")
    rows = [_peer_row(c) for c in result.captures]
    yield from table((*header, *ratios, "messages/s/core, ours", "cryptofeed"), rows)
    yield ""
    for c in result.captures:
        told = ", ".join(f"{n} {name}" for name, n in sorted(c.peer_callbacks.items()))
        yield f"{c.capture}: {c.events} events of ours; cryptofeed: {told}; not understood: {c.peer_warnings}"
        yield f"    best bid and ask at the end equal in {c.tops_equal} of {c.books} books"


def _peer_row(c: PeerFigures) -> list[str]:
    costs = (f"{best:.2f} / {median:.2f}" for best, median in (c.book_us, c.peer_us, c.peer_checked_us))
    ratios = (f"{ratio:.2f}" for ratio in (c.ratio, c.ratio_checked))
    rates = (f"{1e6 / c.book_us[1]:,.0f}", f"{1e6 / c.peer_us[1]:,.0f}")
    return [c.capture, str(c.frames), *costs, *ratios, *rates]


def floor_lines(result: FloorResult) -> Iterator[str]:
    """All of `floor`."""
    yield from result.machine.lines()
    slices = len(result.rates[0].variants[0].slices)
    yield f"{result.exchange}; us of CPU a message, medians of {slices} slices of {result.slice_s:.1f} s"
    yield ""
    rows = [
        [
            f"{rate.rate:g} messages/s, {variant.variant}",
            f"{variant.ours_us:.1f}",
            f"{variant.floor_us:.1f}",
            f"{variant.ratio:.2f}",
            "met" if variant.ratio <= TARGET else "NOT MET",
            str(variant.unacknowledged),
        ]
        for rate in result.rates
        for variant in rate.variants
    ]
    target = f"target {TARGET:g}"
    yield from table(("floor", "worker us", "floor us", "ratio", target, "floor's unacked"), rows)


def scale_lines(result: ScaleResult) -> Iterator[str]:
    """All of `scale`."""
    yield from result.machine.lines()
    yield ""
    header = ("exchange, symbols, levels a side", "messages/s", "events/s", "CPU %", "us/message", "us/event")
    yield from table((*header, "written, p99", "RSS MB", "gaps"), [_scale_row(row) for row in result.rows])
    yield from _other_work([row.run for row in result.rows])


def _scale_row(row: Row) -> list[str]:
    run, figures = row.run, row.run.together
    per_event = 1e4 * run.cpu_percent / figures.events_per_s if figures.events_per_s else None
    return [
        f"{row.load.exchange}, {row.load.symbols}, {row.load.levels or 'as sent'}",
        f"{figures.messages_per_s:.0f}",
        f"{figures.events_per_s:.0f}",
        f"{run.cpu_percent:.1f}",
        _number(run.cpu_us_per_message, "{:.0f}"),
        _number(per_event, "{:.0f}"),
        _number(figures.written.p99_ms, "{:.2f}"),
        f"{run.rss_max_mb:.0f}",
        str(figures.gaps),
    ]


def soak_lines(result: SoakResult) -> Iterator[str]:
    """All of `soak`."""
    yield from result.machine.lines()
    yield f"{result.seconds:.0f} s at {result.load.rate:g} messages/s an exchange: {result.messages:,} messages,"
    yield f"{result.events:,} events, {result.gaps} gaps, {result.errors} errors, {result.unacknowledged} unacked"
    yield f"slopes of RSS from {result.warm_up_s:.0f} s on, least squares, with their standard error"
    yield ""
    header = ("process", "RSS start MB", "warm", "end", "max", "MB/h", "descriptors", "threads")
    yield from table(header, [_soak_row(s, result) for s in (*result.workers, *result.others)])
    yield "descriptors, threads: after the warm-up / at the end / the most in between"


def _soak_row(s: Series, result: SoakResult) -> list[str]:
    warm = s.rss_mb[result.at_s.index(result.warm_up_s)]
    slope = f"{_number(s.slope_mb_per_h, '{:+.2f}')} ± {_number(s.error_mb_per_h, '{:.2f}')}"
    memory = (f"{mb:.1f}" for mb in (s.rss_mb[0], warm, s.rss_mb[-1], max(s.rss_mb)))
    counts = (" / ".join(map(str, three)) for three in (s.descriptors, s.threads))
    return [s.name, *memory, slope, *counts]
