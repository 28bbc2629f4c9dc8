"""Draws performance.png from the JSON files of a folder; runs in the environment that has matplotlib.

Arguments: the folder, the picture. A panel whose file is not there is left out.
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, StrMethodFormatter

# Okabe and Ito's colours, told apart by colour-blind people, too
BLUE, ORANGE, GREEN, RED, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
INK, GRID = "#333333", "#DDDDDD"
NAMES = {
    "binance_spot": "Binance spot",
    "binance_derivatives": "Binance USD-M",
    "okx_spot": "OKX",
    "okx_derivatives": "OKX SWAP",
    "deribit_derivatives": "Deribit",
}


def plain_ticks(axis):
    """1, 2, 5, 10, … on a logarithmic axis, as plain numbers."""
    axis.set_major_locator(LogLocator(10, (1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axis.set_minor_formatter(NullFormatter())


def latency(axes, sweep):
    """Share of messages that took longer, at the first two rates of the sweep."""
    for step, colour in zip(sweep["steps"][:2], (BLUE, ORANGE), strict=False):
        figures = step["run"]["together"]
        for name, style in (("written", "-"), ("acknowledged", "--")):
            buckets = [(bound, n) for bound, n in figures[name]["buckets"] if bound is not None]
            count = figures[name]["count"]
            points = [(1e3 * bound, 1 - n / count) for bound, n in buckets if count and n < count]
            if points:
                label = f"{name}, {figures['messages_per_s']:,.0f}/s"
                axes.plot(*zip(*points, strict=True), style, color=colour, label=label, marker=".", ms=4)
    axes.set(xscale="log", yscale="log", ylim=(1e-5, 1.3))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    axes.set(xlabel="ms after the socket was read", ylabel="share that took longer")
    axes.set_title("Latency of events, all five exchanges")
    axes.legend(loc="lower left")


def cost(axes, sweeps, floor):
    """CPU for each message over the rate of one worker."""
    for sweep, label, colour in sweeps:
        points = [
            (step["run"]["together"]["messages_per_s"] / len(step["run"]["exchanges"]), step["run"])
            for step in sweep["steps"]
            if not step["strain"]
        ]
        if not points:
            continue
        xs, ys = zip(*((rate, run["cpu_us_per_message"]) for rate, run in points), strict=True)
        axes.plot(xs, ys, "o-", color=colour, ms=4, label=label)
    if floor is not None:
        for n, (variant, colour) in enumerate((("raw frames", GREEN), ("nats-py", PURPLE))):
            points = [(rate["rate"], rate["variants"][n]["floor_us"]) for rate in floor["rates"]]
            axes.plot(*zip(*points, strict=True), "s--", color=colour, ms=4, label=f"floor, {variant}")
    axes.set(xscale="log", yscale="log", xlabel="messages/s a worker", ylabel="µs of CPU a message")
    plain_ticks(axes.xaxis)
    plain_ticks(axes.yaxis)
    axes.set_title("CPU for each message")
    axes.legend(loc="lower left")


def compared(axes, peers):
    """Microseconds a frame, ours and cryptofeed's, median of the repetitions."""
    captures = peers["captures"]
    kinds = (
        ("book_us", "venue + book", BLUE),
        ("peer_us", "cryptofeed", ORANGE),
        ("peer_checked_us", "cryptofeed, book checked", RED),
    )
    for n, (key, label, colour) in enumerate(kinds):
        costs = [c[key][1] for c in captures]
        places = [row + 0.2 * (n - 1) for row in range(len(captures))]
        axes.plot(costs, places, "o", color=colour, label=label, ms=6)
        for cost, place in zip(costs, places, strict=True):
            axes.annotate(f"{cost:.0f}", (cost, place), (5, -2), textcoords="offset points", fontsize=6)
    labels = [f"{NAMES[c['exchange']]}\n{c['books']} book{'s' * (c['books'] > 1)}" for c in captures]
    axes.set_yticks(range(len(captures)), labels)
    axes.invert_yaxis()
    for row in range(1, len(captures)):
        axes.axhline(row - 0.5, color=GRID, lw=0.6)
    axes.margins(x=0.1)
    axes.set(xscale="log", xlabel="µs of CPU a frame")
    axes.grid(visible=False, axis="y")
    plain_ticks(axes.xaxis)
    axes.set_title("The same recorded frames, medians")
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, -0.36), ncols=3, columnspacing=1, handlelength=1)


def memory(axes, soak):
    """RSS of each worker over the soak."""
    minutes = [t / 60 for t in soak["at_s"]]
    for series, colour in zip(soak["workers"], (BLUE, ORANGE, GREEN, RED, PURPLE), strict=False):
        label = NAMES[series["name"]]
        slope = series["slope_mb_per_h"]
        if slope is not None:
            label += f" {slope:+.2f} MB/h"
        axes.plot(minutes, series["rss_mb"], color=colour, label=label)
    axes.axvspan(0, soak["warm_up_s"] / 60, color=GRID, zorder=0, lw=0)
    top = max(max(series["rss_mb"]) for series in soak["workers"])
    axes.set(xlabel="minutes", ylabel="RSS, MB", ylim=(0, 1.1 * top), xlim=(0, minutes[-1]))
    axes.grid(visible=False, axis="x")
    axes.set_title("Memory of the workers (grey: warm-up)")
    axes.legend(loc="lower right", ncols=2)


def kept(axes, scale):
    """CPU for each message over symbols, and over levels."""
    colours = {}
    names, free = [], [BLUE, ORANGE, GREEN]
    for place, row in enumerate(scale["rows"]):
        load, cost = row["load"], row["run"]["cpu_us_per_message"]
        kind = f"{NAMES[load['exchange']]}, {load['rate']:g} messages/s"
        label = None if kind in colours else kind
        if label is not None:
            colours[kind] = free.pop(0)
        bar = axes.barh(place, cost, color=colours[kind], label=label)
        axes.bar_label(bar, fmt="%.0f", padding=2, fontsize=7)
        levels = f", {load['levels']} levels" if "levels" in load else ""
        names.append(f"{load['symbols']} symbols{levels}")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.12)
    axes.set(xlabel="µs of CPU a message")
    axes.set_title("One worker, by what it keeps")
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, -0.36), ncols=3, columnspacing=1, handlelength=1)


def main():
    folder, target = Path(sys.argv[1]), Path(sys.argv[2])
    found = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    panels = []
    if "sweep" in found:
        panels.append(lambda axes: latency(axes, found["sweep"]))
        named = (("sweep", "five workers", BLUE), ("sweep-one", "one worker alone", ORANGE))
        sweeps = [(found[name], label, colour) for name, label, colour in named if name in found]
        panels.append(lambda axes: cost(axes, sweeps, found.get("floor")))
    for name, panel in (("peers", compared), ("scale", kept), ("soak", memory)):
        if name in found:
            panels.append(lambda axes, name=name, panel=panel: panel(axes, found[name]))
    if not panels:
        sys.exit("it holds no sweep.json, peers.json, scale.json or soak.json")
    plt.switch_backend("agg")  # no display is needed
    plt.rcParams.update(
        {
            "font.size": 8,
            "axes.titlesize": 9,
            "axes.titleweight": "bold",
            "legend.fontsize": 7,
            "legend.framealpha": 0.85,
            "axes.edgecolor": INK,
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": GRID,
            "grid.linewidth": 0.6,
            "axes.axisbelow": True,
            "lines.linewidth": 1.4,
        }
    )
    heights = [3.1] * (len(panels) // 2) + [2.1] * (len(panels) % 2)
    figure = plt.figure(figsize=(9, sum(heights)), layout="constrained")
    grid = figure.add_gridspec(len(heights), 2, height_ratios=heights)
    for n, panel in enumerate(panels):
        alone = n == len(panels) - 1 and n % 2 == 0
        panel(figure.add_subplot(grid[n // 2, :] if alone else grid[n // 2, n % 2]))
    machine = next(found[name]["machine"] for name in ("sweep", "peers", "scale", "soak") if name in found)
    figure.suptitle(
        f"{machine['cpu']}, {machine['cores']} cores, {machine['python']}, {machine['date'][:10]}, "
        f"commit {machine['commit']}",
        fontsize=8,
    )
    figure.savefig(target, dpi=130)


if __name__ == "__main__":
    main()
