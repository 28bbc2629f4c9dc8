"""`python -m marketprism.quickstart`; scripts/quickstart is the way in."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from marketprism.control import ports
from marketprism.quickstart import children, figures, stop
from marketprism.quickstart.children import Child, QuickstartError, StopRequestedError
from marketprism.quickstart.figures import Reading
from marketprism.quickstart.view import View

ROOT = Path(__file__).resolve().parents[2]
LOGS = ROOT / "logs"
VAR = ROOT / "var"
SHIPPED_CONFIG = ROOT / "config/collector/unified_data_collection.yaml"
NATS_CONFIG = ROOT / "config/nats/nats-server.conf"
SIMULATED = VAR / "quickstart"
SIMULATED_CONFIG = VAR / "quickstart.yaml"
Show = Callable[[Sequence[Reading], float], None]
PORTS = {4222: "NATS", 8222: "NATS monitoring", 8087: "health", 9092: "metrics"}
STORE_PORTS = {8085: "the hot store", 8086: "the cold store"}

_START_TIMEOUT_S = 30.0
_STORE_TIMEOUT_S = 60.0  # the engine is half a gigabyte to read, the first time
_READ_EVERY_S = 1.0
_WINDOW = 11  # readings that rates and latencies are taken over


def main(argv: Sequence[str] | None = None) -> int:
    """Run until Ctrl-C, `--seconds` or a failure. 0: all is well; 1: something failed, or no data came."""
    options = _parse(argv)
    stop.block()
    running: list[Child] = []
    try:
        check_ports(storage=options.storage)
        _start_all(running, options)
        return _watch(running, options)
    except StopRequestedError:
        return 0
    except (QuickstartError, OSError) as exc:
        print(f"quickstart: {exc}", file=sys.stderr)
        return 1
    finally:
        _stop(running)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/quickstart",
        description="Start NATS, simulated exchanges, all workers and the stores here, and show the data flow.",
        epilog="Ctrl-C stops everything, a second one at once. Without --live nothing leaves this machine.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--live", action="store_true", help=f"the real exchanges, by {SHIPPED_CONFIG.relative_to(ROOT)}"
    )
    parser.add_argument(
        "--no-storage", dest="storage", action="store_false", help="nothing is stored but in NATS"
    )
    parser.add_argument(
        "--seconds", type=float, metavar="N", help="stop after N seconds; exit 1 if no data came"
    )
    parser.add_argument(
        "--no-view", action="store_true", help="print one line when data flows, then only run"
    )
    return parser.parse_args(argv)


def check_ports(*, storage: bool) -> None:
    """Raises QuickstartError naming every port of ours that is taken, and by whom."""
    taken: list[str] = []
    for port, purpose in (PORTS | STORE_PORTS if storage else PORTS).items():
        try:
            ports.bind("127.0.0.1", port, purpose).close()
        except ports.PortError as exc:
            taken.append(str(exc))
    if not taken:
        return
    if any(text.startswith("port 4222") for text in taken):
        taken.append(
            "if that is a NATS server of yours that is to be used: write its URL under nats.servers in the "
            "configuration and run .venv/bin/marketprism launcher"
        )
    raise QuickstartError("\n  ".join(["cannot start:", *taken]))


def _start_all(running: list[Child], options: argparse.Namespace) -> None:
    _start_nats(running, live=options.live)
    config = SHIPPED_CONFIG if options.live else _start_simulator(running)
    _say("starting the workers")
    running.append(_marketprism("launcher", "launcher", "--config", str(config)))
    children.wait_until(lambda: figures.read() is not None, "health on port 8087", running, _START_TIMEOUT_S)
    if options.storage:
        _say("starting the stores")
        running += [_marketprism(name, name, "--config", str(config), batch=True) for name in ("hot", "cold")]
        children.wait_until(figures.stores_are_up, "the stores", running, _STORE_TIMEOUT_S)


def _start_nats(running: list[Child], *, live: bool) -> None:
    """Made-up data must never mix with real data: it is stored apart, and removed at the next start.

    The server stores where it is started: its configuration names a folder relative to that.
    """
    folder = ROOT if live else SIMULATED
    if not live:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    _say("starting NATS with JetStream on 4222")
    argv: list[str | Path] = [Path(sys.executable).with_name("nats-server"), "-c", NATS_CONFIG]
    running.append(children.start("NATS", argv, LOGS / "quickstart_nats.log", folder, {}, batch=True))
    children.wait_until(figures.nats_is_up, "NATS on port 4222", running, _START_TIMEOUT_S)


def _start_simulator(running: list[Child]) -> Path:
    """The configuration that leads to the simulated exchanges."""
    SIMULATED_CONFIG.unlink(missing_ok=True)
    _say("starting the simulated exchanges")
    argv = ("simulate", "--config", str(SHIPPED_CONFIG), "--write-config", str(SIMULATED_CONFIG))
    running.append(_marketprism("simulator", *argv))
    children.wait_until(_config_is_written, "the simulated exchanges", running, _START_TIMEOUT_S)
    document = yaml.safe_load(SIMULATED_CONFIG.read_text())
    document["storage"] = {name: {"location": str(SIMULATED / name)} for name in ("hot", "cold")}
    SIMULATED_CONFIG.write_text(yaml.safe_dump(document, sort_keys=False))
    return SIMULATED_CONFIG


def _config_is_written() -> bool:
    """The simulator writes it when it listens."""
    return SIMULATED_CONFIG.exists() and SIMULATED_CONFIG.stat().st_size > 0


def _marketprism(name: str, *argv: str, batch: bool = False) -> Child:
    env = {"MARKETPRISM_RUNTIME_DIR": str(VAR / "run"), "MARKETPRISM_LOG_DIR": str(LOGS)}
    command = [sys.executable, "-m", "marketprism", *argv]
    return children.start(f"the {name}", command, LOGS / f"quickstart_{name}.log", ROOT, env, batch=batch)


def _watch(running: Sequence[Child], options: argparse.Namespace) -> int:
    """Show what happens until it is time to stop."""
    show = _teller() if options.no_view else _view(options)
    readings: deque[Reading] = deque(maxlen=_WINDOW)
    began = time.monotonic()
    running_s = 0.0
    while options.seconds is None or running_s < options.seconds:
        for child in running:
            child.check()
        readings.extend(filter(None, [figures.read()]))
        if len(readings) > 1:
            show(readings, running_s)
        if stop.requested_within(_READ_EVERY_S):
            return 0
        running_s = time.monotonic() - began
    return 0 if readings and flows(readings[-1]) else 1


def _view(options: argparse.Namespace) -> Show:
    source = "real exchanges" if options.live else "simulated exchanges"
    return View(sys.stdout, source, str(LOGS.relative_to(ROOT)), stores=options.storage).draw


def _teller() -> Show:
    told = told_stored = False

    def tell(readings: Sequence[Reading], running_s: float) -> None:
        nonlocal told, told_stored
        newest = readings[-1]
        if not told and flows(newest):
            events = sum(int(counts.events) for counts in newest.counts.values())
            _say(f"data flows: {events:,} events in {running_s:.1f} s")
            told = True
        if not told_stored and newest.stored is not None and newest.stored.rows:
            _say(f"data is stored: {newest.stored.rows:,} rows in {running_s:.1f} s")
            told_stored = True

    return tell


def flows(reading: Reading) -> bool:
    """Every exchange has published something."""
    names = reading.health.processes
    return bool(names) and all(name in reading.counts and reading.counts[name].events > 0 for name in names)


def _stop(running: Sequence[Child]) -> None:
    if running:
        _say("stopping")
        children.stop_all(running)
        _say("all stopped")


def _say(text: str) -> None:
    print(f"quickstart: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
