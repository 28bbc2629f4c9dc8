"""Verbs of the stores: running them, and reading what they hold."""

import argparse
import faulthandler
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from marketprism.cli.common import EX_CONFIG, config_flag, load_config, on_loop, runtime_dir, verb
from marketprism.config import Config, ConfigError, Settings, StorageSettings


def add(verbs: Any) -> None:
    """Add them to the command line."""
    hot = verb(verbs, "hot", _hot, "store what is published, each event once; serve queries")
    config_flag(hot)

    cold = verb(
        verbs, "cold", _cold, "move hours that are over from the hot store to files, or to a second server"
    )
    config_flag(cold)

    query = verb(verbs, "query", _query, "ask the hot store, or the cold one, in SQL")
    query.add_argument("sql", metavar="SQL", help="one SELECT; tables: docs/reading-data.md")
    query.add_argument(
        "--format",
        choices=["table", "csv", "json", "arrow", "parquet"],
        default="table",
        help="(default: table)",
    )
    query.add_argument("--output", type=Path, metavar="FILE", help="where to (default: here)")
    query.add_argument(
        "--param",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a value for {NAME:Type} in the SQL",
    )
    query.add_argument("--cold", action="store_true", help="of the cold store's tables")
    config_flag(query)

    book = verb(verbs, "book", _book, "the exact book as it was at an instant")
    book.add_argument(
        "--exchange", required=True, metavar="E", help="binance, okx, deribit, or such as okx_spot"
    )
    book.add_argument("--symbol", required=True, metavar="S", help="BTC-USDT, or the exchange's own name")
    book.add_argument(
        "--at", required=True, type=_moment, metavar="TIME", help="ISO 8601, UTC; or ms since 1970"
    )
    book.add_argument("--market-type", metavar="M", help="where a symbol is several: spot, perpetual …")
    book.add_argument(
        "--depth", type=int, default=20, metavar="N", help="levels a side (default: 20; 0: all)"
    )
    book.add_argument("--format", choices=["table", "json"], default="table", help="(default: table)")
    config_flag(book)

    quality = verb(verbs, "quality", _quality, "how whole the stored data of a time span is")
    quality.add_argument(
        "--from", required=True, type=_moment, metavar="TIME", dest="start_ms", help="ISO 8601, UTC"
    )
    quality.add_argument(
        "--to", required=True, type=_moment, metavar="TIME", dest="end_ms", help="not included"
    )
    quality.add_argument("--format", choices=["table", "json"], default="table", help="(default: table)")
    quality.add_argument("--png", type=Path, metavar="FILE", help="draw a timeline, too")
    config_flag(quality)


def notes(storage: StorageSettings) -> Iterator[str]:
    """What stands in the way of the stores on this machine, a line each."""
    from marketprism.storage.engine import EngineError, check_installed

    if storage.enabled:
        try:
            check_installed()
        except EngineError as e:
            yield f"storage.enabled: {e}"


def _hot(args: argparse.Namespace) -> int:
    return _store("hot", args, _serve_hot)


def _cold(args: argparse.Namespace) -> int:
    return _store("cold", args, _serve_cold)


def _store(name: str, args: argparse.Namespace, serve: Callable[[Config], int]) -> int:
    from marketprism import logs, parent
    from marketprism.control.ports import PortError
    from marketprism.storage.engine import EngineError, check_installed

    faulthandler.enable()  # a watchdog's SIGABRT leaves the line that is stuck in the journal
    parent.die_with_parent()
    config = load_config(args)
    log_dir = os.environ.get("MARKETPRISM_LOG_DIR")
    logs.setup(name, Path(log_dir) if log_dir else None, config.settings.log_level)
    try:
        check_installed()
    except EngineError as e:
        print(f"marketprism {name}: {e}", file=sys.stderr)
        return EX_CONFIG
    try:
        return serve(config)
    except (EngineError, PortError, OSError) as e:
        print(f"marketprism {name}: {e}", file=sys.stderr)
        return 1


def _serve_hot(config: Config) -> int:
    from marketprism.control.ports import bind
    from marketprism.storage import hot
    from marketprism.worker.options import publisher_options

    settings = config.settings
    bus = publisher_options(settings.nats, "hot")
    options = hot.HotOptions(
        storage=settings.storage,
        servers=bus.servers,
        connect_options=bus.connect_options,
        stream=bus.stream,
        listener=bind(settings.bind_host, settings.storage.hot.port, "the hot store"),
        runtime_dir=runtime_dir(),
    )
    return on_loop(hot.run(options))


def _serve_cold(config: Config) -> int:
    from marketprism.control.ports import bind
    from marketprism.storage import cold

    settings, storage = config.settings, config.settings.storage
    if not storage.cold.enabled:
        raise ConfigError([f"{config.path}: storage.cold.enabled: expected true for a cold store, got false"])
    if not storage.hot.port:
        raise ConfigError([f"{config.path}: storage.hot.port: expected the hot store's port, got 0 (any)"])
    options = cold.ColdOptions(
        storage=storage,
        hot_host=settings.bind_host,
        listener=bind(settings.bind_host, storage.cold.port, "the cold store"),
        runtime_dir=runtime_dir(),
    )
    return on_loop(cold.run(options))


def _moment(text: str) -> int:
    from marketprism.storage.reading import moment_ms

    try:
        return moment_ms(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from None


def _query(args: argparse.Namespace) -> int:
    from marketprism.storage.verbs import Query

    query = Query(args.sql, args.format, args.output, args.param, args.cold)
    return _read("query", args, query.run)


def _book(args: argparse.Namespace) -> int:
    from marketprism.storage.verbs import Book

    book = Book(args.exchange, args.symbol, args.at, args.market_type, args.depth, args.format)
    return _read("book", args, book.run)


def _quality(args: argparse.Namespace) -> int:
    from marketprism.storage.reading import Span
    from marketprism.storage.verbs import Quality

    quality = Quality(Span(args.start_ms, args.end_ms), args.format, args.png)
    return _read("quality", args, quality.run)


def _read(name: str, args: argparse.Namespace, read: Callable[[Settings], None]) -> int:
    from marketprism.storage.verbs import guarded

    settings = load_config(args).settings
    return guarded(name, lambda: read(settings))
