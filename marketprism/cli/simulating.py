"""The verb of the simulated exchanges."""

import argparse
import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marketprism.cli.common import config_flag, config_path, load_config, on_loop, verb

if TYPE_CHECKING:
    from marketprism.simulator import Fault


def add(verbs: Any) -> None:
    """Add them to the command line."""
    simulate = verb(verbs, "simulate", _simulate, "the exchanges on loopback, for trying and testing")
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
    config_flag(simulate)


def _simulate(args: argparse.Namespace) -> int:
    from marketprism.simulator import Simulator, SimulatorError, SimulatorOptions, schedule_text, write_config
    from marketprism.simulator import run as simulate

    symbols = None
    if args.write_config is not None:
        exchanges = load_config(args).settings.exchanges
        symbols = {name: [_instrument(s) for s in e.symbols] for name, e in exchanges.items()}
    given = os.environ.get("MARKETPRISM_SIMULATOR_TOKEN", "")
    token = given or secrets.token_urlsafe(18)

    def started(simulator: Simulator) -> None:
        if args.write_config is not None:
            write_config(config_path(args), args.write_config, simulator.urls)
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
        on_loop(simulate(options, started))
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
