"""Verbs and flags; no logic."""

import argparse
import asyncio
import contextlib
import faulthandler
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from marketprism import __version__
from marketprism.config import OFFERS, Config, ConfigError, default_path, load

if TYPE_CHECKING:
    from marketprism.simulator import Fault

T = TypeVar("T")
EX_CONFIG = 78
EPILOG = """\
Where to begin:
  scripts/quickstart                       simulator, NATS and all workers, with a live view
  marketprism check-config                 is the configuration right?
  marketprism launcher                     run the enabled exchanges
  marketprism tail 'trade.binance.>'       see what is published
  curl -s localhost:8087/health            how it is doing

The configuration is config/collector/unified_data_collection.yaml, or what MARKETPRISM_CONFIG or --config names.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args))
    except ConfigError as e:
        print(e, file=sys.stderr)
        return EX_CONFIG
    except BrokenPipeError:  # `marketprism replay … | head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the interpreter's own flush at exit
        return 0
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="marketprism",
        description="Market data from Binance, OKX and Deribit to NATS JetStream: no silent gap, no wrong book.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    worker = _verb(verbs, "worker", _worker, "collect one exchange (what the launcher starts)")
    worker.add_argument(
        "exchange", choices=[*OFFERS, "all"], help="which; 'all': every enabled one in this process"
    )
    _config_flag(worker)

    launcher = _verb(
        verbs, "launcher", _launcher, "run a worker for every enabled exchange, serve health and metrics"
    )
    launcher.add_argument("--single-process", action="store_true", help="all exchanges in one process")
    launcher.add_argument("--exchange", choices=list(OFFERS), help="only this one (debugging)")
    _config_flag(launcher)

    control = _verb(verbs, "control", _control, "serve health and metrics of the workers that systemd runs")
    _config_flag(control)

    alert = _verb(verbs, "alert", _alert, "tell the journal, and a webhook, that something needs a person")
    alert.add_argument(
        "instance", help="what marketprism-alert@.service is started with: a unit, or memory_soft:EXCHANGE"
    )

    simulate = _verb(verbs, "simulate", _simulate, "the exchanges on loopback, for trying and testing")
    simulate.add_argument("--seed", type=int, default=1, help="same seed, same market (default: 1)")
    simulate.add_argument(
        "--rate", type=float, default=120.0, help="messages per second and exchange (default: 120)"
    )
    simulate.add_argument(
        "--base-port", type=int, default=0, metavar="PORT", help="first of five ports; 0: any free"
    )
    simulate.add_argument(
        "--write-config",
        type=Path,
        metavar="TARGET",
        help="write a configuration that points at the simulator",
    )
    simulate.add_argument("--faults", type=Path, metavar="FILE", help="faults to play: docs/simulator.md")
    simulate.add_argument("--fault-seed", type=int, metavar="N", help="play an hour of random faults")
    simulate.add_argument(
        "--fault-every", type=float, metavar="SECONDS", help="how often, with --fault-seed (default: 30)"
    )
    simulate.add_argument(
        "--control",
        type=int,
        metavar="PORT",
        help="take orders for faults on this port of 127.0.0.1; 0: any free",
    )
    _config_flag(simulate)

    record = _verb(verbs, "record", _record, "write what an exchange's wire says to compressed files")
    record.add_argument("exchange", choices=list(OFFERS))
    record.add_argument(
        "--directory", type=Path, help="where (default: recording.directory of the configuration)"
    )
    record.add_argument("--compression", choices=["gzip", "zstd"])
    record.add_argument("--seconds", type=float, help="stop after this long (default: on Ctrl-C)")
    _config_flag(record)

    replay = _verb(verbs, "replay", _replay, "publish recordings to stdout, one JSON object a line")
    replay.add_argument("--exchange", required=True, choices=list(OFFERS), help="whose recording it is")
    replay.add_argument("--symbols", metavar="A,B", help="only these, by the exchange's names (default: all)")
    replay.add_argument(
        "--instruments", type=Path, metavar="FILE", help="instrument descriptions: a REST body"
    )
    replay.add_argument("captures", nargs="+", type=Path, metavar="CAPTURE", help="recordings, gzip or zstd")

    check = _verb(verbs, "check-config", _check_config, "check the configuration; 78 where it is wrong")
    _config_flag(check)

    tail = _verb(verbs, "tail", _tail, "print what is published, as it comes")
    tail.add_argument("subject", help="a subject with wildcards: 'trade.>', 'orderbook.okx.*.BTC-USDT'")
    tail.add_argument("--count", type=int, metavar="N", help="stop after N messages")
    _config_flag(tail)

    version = _verb(verbs, "version", _version, "print the version")
    version.set_defaults(config=None)
    return parser


def _verb(
    verbs: Any, name: str, run: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + "."
    )
    parser.set_defaults(run=run)
    return parser


def _config_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration file")


def _path(args: argparse.Namespace) -> Path:
    path: Path | None = args.config
    return path or default_path()


def _load(args: argparse.Namespace) -> Config:
    from marketprism import logs

    config = load(_path(args))
    for secret in (config.settings.nats.password, config.settings.nats.token):
        if secret:
            logs.hide(secret)
    if config.warnings:
        print(
            f"{config.path}: {len(config.warnings)} warnings; see: marketprism check-config --config {config.path}",
            file=sys.stderr,
        )
    return config


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run on uvloop: a third less time a message where frames come one by one."""
    import uvloop

    return uvloop.run(coroutine)


def runtime_dir() -> Path:
    """$MARKETPRISM_RUNTIME_DIR, else /run/marketprism where it can be written, else ./var/run."""
    configured = os.environ.get("MARKETPRISM_RUNTIME_DIR")
    if configured:
        return Path(configured)
    system = Path("/run/marketprism")
    return system if os.access(system, os.W_OK) else Path("var/run")


def _log_dir() -> Path:
    return Path(os.environ.get("MARKETPRISM_LOG_DIR") or "logs")


def _exchange(config: Config, name: str) -> str:
    """An enabled exchange. Raises ConfigError for one that is not."""
    if name not in config.settings.exchanges:
        enabled = ", ".join(config.settings.exchanges) or "none"
        raise ConfigError([f"{config.path}: exchanges.{name}: not there or not enabled; enabled: {enabled}"])
    return name


def _worker(args: argparse.Namespace) -> int:
    from marketprism import logs, parent

    faulthandler.enable()  # a watchdog's SIGABRT leaves the line that is stuck in the journal
    parent.die_with_parent()
    config = _load(args)
    names = list(config.settings.exchanges) if args.exchange == "all" else [_exchange(config, args.exchange)]
    directory = runtime_dir()
    directory.mkdir(parents=True, exist_ok=True)
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        metrics = directory / "metrics"
        metrics.mkdir(parents=True, exist_ok=True)
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics)
    log_dir = os.environ.get("MARKETPRISM_LOG_DIR")
    logs.setup(args.exchange, Path(log_dir) if log_dir else None, config.settings.log_level)

    from marketprism.worker.process import run_workers

    return _run(run_workers(config, names, directory))


def _launcher(args: argparse.Namespace) -> int:
    from marketprism.launcher import LauncherOptions, run

    config = _load(args)
    s = config.settings
    exchanges = (_exchange(config, args.exchange),) if args.exchange else tuple(s.exchanges)
    options = LauncherOptions(
        config=config.path,
        exchanges=exchanges,
        single_process=args.single_process,
        log_dir=_log_dir(),
        runtime_dir=runtime_dir(),
        health_port=s.health_port,
        metrics_port=s.metrics_port,
        bind_host=s.bind_host,
        memory={name: (m.soft_mb, m.hard_mb) for name, m in s.memory.items()},
        actions_token_file=s.actions_token_file,
        log_level=s.log_level,
    )
    return _run(run(options))


def _control(args: argparse.Namespace) -> int:
    from marketprism.control.service import ControlOptions, run

    faulthandler.enable()
    token_file, log_level = None, "INFO"
    try:
        settings = _load(args).settings
        token_file, log_level = settings.actions_token_file, settings.log_level
    except ConfigError as e:  # the more it matters that somebody tells how the workers are
        print(e, file=sys.stderr)
    options = ControlOptions(
        exchanges=tuple(OFFERS),
        runtime_dir=runtime_dir(),
        state_dir=Path(os.environ.get("STATE_DIRECTORY") or runtime_dir()),
        log_dir=_log_dir(),
        actions_token_file=token_file,
        log_level=log_level,
    )
    return _run(run(options))


def _alert(args: argparse.Namespace) -> int:
    from marketprism import alert, logs

    logs.setup("alert", None)
    return alert.run(args.instance, os.environ)


def _simulate(args: argparse.Namespace) -> int:
    from marketprism.simulator import Simulator, SimulatorError, SimulatorOptions, schedule_text, write_config
    from marketprism.simulator import run as simulate

    symbols = None
    if args.write_config is not None:
        exchanges = _load(args).settings.exchanges
        symbols = {name: [_instrument(s) for s in e.symbols] for name, e in exchanges.items()}
    given = os.environ.get("MARKETPRISM_SIMULATOR_TOKEN", "")
    token = given or secrets.token_urlsafe(18)

    def started(simulator: Simulator) -> None:
        if args.write_config is not None:
            write_config(_path(args), args.write_config, simulator.urls)
        for name, urls in simulator.urls.items():
            print(f"{name:20} {urls['base_url']}  {urls['ws_url']}", flush=True)
        if simulator.control_url:
            shown = "that of MARKETPRISM_SIMULATOR_TOKEN" if given else token
            print(f"{'control':20} {simulator.control_url}  token: {shown}", flush=True)
        simulator.play(schedule)
        print(schedule_text(schedule), end="", flush=True)

    try:
        schedule = _faults(args)
        options = SimulatorOptions(
            seed=args.seed,
            rate=args.rate,
            base_port=args.base_port,
            symbols=symbols,
            control_port=args.control,
            control_token=token,
        )
        _run(simulate(options, started))
    except (SimulatorError, OSError) as e:
        print(f"marketprism simulate: {e}", file=sys.stderr)
        return 1
    return 0


def _faults(args: argparse.Namespace) -> "list[Fault]":
    """The faults to play, by file and by seed. Raises SimulatorError, OSError."""
    from marketprism.simulator import WORKERS, SimulatorError, parse_schedule, random_schedule

    if args.fault_every is not None and args.fault_seed is None:
        raise SimulatorError("--fault-every needs --fault-seed, which makes the faults repeatable")
    schedule: list[Fault] = []
    if args.faults is not None:
        try:
            schedule += parse_schedule(args.faults.read_text(encoding="utf-8"))
        except (SimulatorError, UnicodeDecodeError) as e:
            raise SimulatorError(f"{args.faults}: {e}") from None
    if args.fault_seed is not None:
        every_s = 30.0 if args.fault_every is None else args.fault_every
        schedule += random_schedule(args.fault_seed, 3600.0, WORKERS, every_s)
    return sorted(schedule, key=lambda fault: fault.at_s)


def _instrument(symbol: str) -> str:
    """A bare currency stands for Deribit's perpetual."""
    return f"{symbol}-PERPETUAL" if symbol in ("BTC", "ETH") else symbol


def _record(args: argparse.Namespace) -> int:
    from marketprism import logs, record

    config = _load(args)
    logs.setup("record", None, config.settings.log_level)
    name = _exchange(config, args.exchange)
    return _run(record.run(config.settings, name, args.directory, args.compression, args.seconds))


def _replay(args: argparse.Namespace) -> int:
    from marketprism import replay

    symbols = tuple(s for s in args.symbols.split(",") if s) if args.symbols else None
    return replay.run(args.exchange, symbols, args.instruments, args.captures)


def _check_config(args: argparse.Namespace) -> int:
    config = load(_path(args))
    for warning in config.warnings:
        print(f"warning: {warning}")
    for name, e in config.settings.exchanges.items():
        print(f"{name}: {', '.join(e.symbols)}: {', '.join(sorted(e.data_types))}")
    print(f"{config.path}: right, {len(config.warnings)} warnings")
    return 0


def _tail(args: argparse.Namespace) -> int:
    from marketprism import tail

    with contextlib.suppress(KeyboardInterrupt):
        return asyncio.run(tail.run(_load(args).settings.nats, args.subject, args.count))
    return 0


def _version(_: argparse.Namespace) -> int:
    beside = Path(sys.executable).with_name("nats-server")
    nats = str(beside) if beside.exists() else shutil.which("nats-server") or "not on PATH"
    print(f"marketprism {__version__} (Python {sys.version.split()[0]}, nats-server: {nats})")
    return 0
