"""What the verbs have in common."""

import argparse
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from marketprism.config import Config, ConfigError, default_path, load

T = TypeVar("T")
EX_CONFIG = 78


def verb(
    verbs: Any, name: str, run: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    """Add a verb to the command line; its flags are added to what comes back."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + "."
    )
    parser.set_defaults(run=run)
    return parser


def config_flag(parser: argparse.ArgumentParser) -> None:
    """Add --config."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration file")


def config_path(args: argparse.Namespace) -> Path:
    """What --config names, or else the environment."""
    path: Path | None = args.config
    return path or default_path()


def load_config(args: argparse.Namespace) -> Config:
    """The configuration, checked; secrets of it are hidden in logs from now on. Raises ConfigError."""
    from marketprism import logs

    config = load(config_path(args))
    nats, storage = config.settings.nats, config.settings.storage
    for secret in (nats.password, nats.token, storage.password):
        if secret:
            logs.hide(secret)
    if config.warnings:
        print(
            f"{config.path}: {len(config.warnings)} warnings; see: marketprism check-config --config {config.path}",
            file=sys.stderr,
        )
    return config


def on_loop(coroutine: Coroutine[Any, Any, T]) -> T:
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


def log_dir() -> Path:
    """$MARKETPRISM_LOG_DIR, else ./logs."""
    return Path(os.environ.get("MARKETPRISM_LOG_DIR") or "logs")


def enabled_exchange(config: Config, name: str) -> str:
    """An enabled exchange. Raises ConfigError for one that is not."""
    if name not in config.settings.exchanges:
        enabled = ", ".join(config.settings.exchanges) or "none"
        raise ConfigError([f"{config.path}: exchanges.{name}: not there or not enabled; enabled: {enabled}"])
    return name
