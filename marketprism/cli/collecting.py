"""Verbs of collecting: workers and who runs them, recordings, what is published."""

import argparse
import asyncio
import contextlib
import faulthandler
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from marketprism import __version__
from marketprism.cli import storing
from marketprism.cli.common import (
    config_flag,
    config_path,
    enabled_exchange,
    load_config,
    log_dir,
    on_loop,
    runtime_dir,
    verb,
)
from marketprism.config import OFFERS, ConfigError, load


def add(verbs: Any) -> None:
    """Add them to the command line."""
    worker = verb(verbs, "worker", _worker, "collect one exchange (what the launcher starts)")
    worker.add_argument(
        "exchange", choices=[*OFFERS, "all"], help="which; 'all': every enabled one in this process"
    )
    config_flag(worker)

    launcher = verb(
        verbs, "launcher", _launcher, "run a worker for every enabled exchange, serve health and metrics"
    )
    launcher.add_argument("--single-process", action="store_true", help="all exchanges in one process")
    launcher.add_argument("--exchange", choices=list(OFFERS), help="only this one (debugging)")
    config_flag(launcher)

    control = verb(verbs, "control", _control, "serve health and metrics of the workers that systemd runs")
    config_flag(control)

    alert = verb(verbs, "alert", _alert, "tell the journal, and a webhook, that something needs a person")
    alert.add_argument(
        "instance", help="what marketprism-alert@.service is started with: a unit, or memory_soft:EXCHANGE"
    )

    record = verb(verbs, "record", _record, "write what an exchange's wire says to compressed files")
    record.add_argument("exchange", choices=list(OFFERS))
    record.add_argument(
        "--directory", type=Path, help="where (default: recording.directory of the configuration)"
    )
    record.add_argument("--compression", choices=["gzip", "zstd"])
    record.add_argument("--seconds", type=float, help="stop after this long (default: on Ctrl-C)")
    config_flag(record)

    replay = verb(verbs, "replay", _replay, "publish recordings to stdout, one JSON object a line")
    replay.add_argument("--exchange", required=True, choices=list(OFFERS), help="whose recording it is")
    replay.add_argument("--symbols", metavar="A,B", help="only these, by the exchange's names (default: all)")
    replay.add_argument(
        "--instruments", type=Path, metavar="FILE", help="instrument descriptions: a REST body"
    )
    replay.add_argument("captures", nargs="+", type=Path, metavar="CAPTURE", help="recordings, gzip or zstd")

    check = verb(verbs, "check-config", _check_config, "check the configuration; 78 where it is wrong")
    config_flag(check)

    tail = verb(verbs, "tail", _tail, "print what is published, as it comes")
    tail.add_argument("subject", help="a subject with wildcards: 'trade.>', 'orderbook.okx.*.BTC-USDT'")
    tail.add_argument("--count", type=int, metavar="N", help="stop after N messages")
    config_flag(tail)

    version = verb(verbs, "version", _version, "print the version")
    version.set_defaults(config=None)


def _worker(args: argparse.Namespace) -> int:
    from marketprism import logs, parent

    faulthandler.enable()  # a watchdog's SIGABRT leaves the line that is stuck in the journal
    parent.die_with_parent()
    config = load_config(args)
    names = (
        list(config.settings.exchanges)
        if args.exchange == "all"
        else [enabled_exchange(config, args.exchange)]
    )
    directory = runtime_dir()
    directory.mkdir(parents=True, exist_ok=True)
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        metrics = directory / "metrics"
        metrics.mkdir(parents=True, exist_ok=True)
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics)
    log_dir = os.environ.get("MARKETPRISM_LOG_DIR")
    logs.setup(args.exchange, Path(log_dir) if log_dir else None, config.settings.log_level)

    from marketprism.worker.process import run_workers

    return on_loop(run_workers(config, names, directory))


def _launcher(args: argparse.Namespace) -> int:
    from marketprism.launcher import LauncherOptions, run

    config = load_config(args)
    s = config.settings
    exchanges = (enabled_exchange(config, args.exchange),) if args.exchange else tuple(s.exchanges)
    options = LauncherOptions(
        config=config.path,
        exchanges=exchanges,
        single_process=args.single_process,
        log_dir=log_dir(),
        runtime_dir=runtime_dir(),
        health_port=s.health_port,
        metrics_port=s.metrics_port,
        bind_host=s.bind_host,
        memory={name: (m.soft_mb, m.hard_mb) for name, m in s.memory.items()},
        actions_token_file=s.actions_token_file,
        log_level=s.log_level,
    )
    return on_loop(run(options))


def _control(args: argparse.Namespace) -> int:
    from marketprism.control.service import ControlOptions, run

    faulthandler.enable()
    token_file, log_level = None, "INFO"
    try:
        settings = load_config(args).settings
        token_file, log_level = settings.actions_token_file, settings.log_level
    except ConfigError as e:  # the more it matters that somebody tells how the workers are
        print(e, file=sys.stderr)
    options = ControlOptions(
        exchanges=tuple(OFFERS),
        runtime_dir=runtime_dir(),
        state_dir=Path(os.environ.get("STATE_DIRECTORY") or runtime_dir()),
        log_dir=log_dir(),
        actions_token_file=token_file,
        log_level=log_level,
    )
    return on_loop(run(options))


def _alert(args: argparse.Namespace) -> int:
    from marketprism import alert, logs

    logs.setup("alert", None)
    return alert.run(args.instance, os.environ)


def _record(args: argparse.Namespace) -> int:
    from marketprism import logs, record

    config = load_config(args)
    logs.setup("record", None, config.settings.log_level)
    name = enabled_exchange(config, args.exchange)
    return on_loop(record.run(config.settings, name, args.directory, args.compression, args.seconds))


def _replay(args: argparse.Namespace) -> int:
    from marketprism import replay

    symbols = tuple(s for s in args.symbols.split(",") if s) if args.symbols else None
    return replay.run(args.exchange, symbols, args.instruments, args.captures)


def _check_config(args: argparse.Namespace) -> int:
    config = load(config_path(args))
    storage = config.settings.storage
    warnings = [*config.warnings, *storing.notes(storage)]
    for warning in warnings:
        print(f"warning: {warning}")
    for name, e in config.settings.exchanges.items():
        print(f"{name}: {', '.join(e.symbols)}: {', '.join(sorted(e.data_types))}")
    if storage.enabled:
        print(f"storage: hot in {storage.hot.location}", end="")
        print(f", cold in {storage.cold.location}" if storage.cold.enabled else "")
    print(f"{config.path}: right, {len(warnings)} warnings")
    return 0


def _tail(args: argparse.Namespace) -> int:
    from marketprism import tail

    with contextlib.suppress(KeyboardInterrupt):
        return asyncio.run(tail.run(load_config(args).settings.nats, args.subject, args.count))
    return 0


def _version(_: argparse.Namespace) -> int:
    beside = Path(sys.executable).with_name("nats-server")
    nats = str(beside) if beside.exists() else shutil.which("nats-server") or "not on PATH"
    print(f"marketprism {__version__} (Python {sys.version.split()[0]}, nats-server: {nats})")
    return 0
