"""`load`: from a file to checked settings, with everything that is wrong told at once."""

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from marketprism.config.bus import nats_settings
from marketprism.config.document import ConfigError, Report, read_document, shown
from marketprism.config.found import Found, walk
from marketprism.config.kinds import BadValueError, did_you_mean, host
from marketprism.config.offers import OFFERS, POLL_INTERVAL_S, RATIO_TYPES, Offer
from marketprism.config.settings import (
    BatchSettings,
    ColdSettings,
    ExchangeSettings,
    HotSettings,
    MemoryLimits,
    OrderBookSettings,
    RecordingSettings,
    Settings,
    StorageSettings,
    default_memory,
)

_DEFAULT_PATH = Path("config/collector/unified_data_collection.yaml")
_STORES = Path("var/storage")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A loaded file: the plain document, the checked settings, and what is worth knowing about it."""

    path: Path
    raw: dict[str, Any] = field(repr=False)
    settings: Settings
    warnings: list[str]


def default_path() -> Path:
    """$MARKETPRISM_CONFIG, else config/collector/unified_data_collection.yaml of the working directory."""
    return Path(os.environ.get("MARKETPRISM_CONFIG") or _DEFAULT_PATH)


def load(path: Path, environ: Mapping[str, str] | None = None) -> Config:
    """Read and check a configuration file.

    `environ` stands in for the process's environment. Raises ConfigError with all problems of the file.
    """
    config, problems = _read(path, os.environ if environ is None else environ)
    if problems:
        raise ConfigError(problems)
    return config


def load_what_is_right(path: Path, environ: Mapping[str, str]) -> tuple[Settings, list[str]]:
    """The settings with defaults in the place of all that is wrong, and what that is.

    Raises ConfigError where nothing can be read.
    """
    config, problems = _read(path, environ)
    return config.settings, problems


def _read(path: Path, environ: Mapping[str, str]) -> tuple[Config, list[str]]:
    report = Report(path)
    document = read_document(path, report)
    settings = _settings(walk(document, report), environ, report)
    error = report.error()
    config = Config(path=path, raw=document.plain(), settings=settings, warnings=report.warnings)
    return config, error.problems if error else []


def filter_config_by_exchange(config: dict[str, Any], exchange: str) -> dict[str, Any]:
    """A deep copy of a plain document whose `exchanges` holds only the one named.

    Raises ConfigError naming the exchanges there are if this one is not among them.
    """
    exchanges = config.get("exchanges")
    known = [str(name) for name in exchanges] if isinstance(exchanges, dict) else []
    if not isinstance(exchanges, dict) or exchange not in exchanges:
        hint = did_you_mean(str(exchange), known)
        names = f"one of {', '.join(known)}" if known else "a configuration with exchanges"
        raise ConfigError([f"exchange: expected {names}, got {shown(exchange)}{'; ' if hint else ''}{hint}"])
    rest = {key: value for key, value in config.items() if key != "exchanges"}
    return {**copy.deepcopy(rest), "exchanges": {exchange: copy.deepcopy(exchanges[exchange])}}


def _settings(found: Found, environ: Mapping[str, str], report: Report) -> Settings:
    settings = Settings(
        **found.fields(Settings, "system"),
        **found.fields(Settings, "monitoring"),
        exchanges=_exchanges(found, report),
        memory={
            name: _memory(f"exchanges.{name}.memory", limits, found, report)
            for name, limits in default_memory().items()
        },
        nats=nats_settings(found, environ, report),
        recording=_recording(found),
        storage=_storage(found, environ, report),
    )
    _check_ports(settings, found, report)
    return _with_bind_host(settings, environ, report)


def _with_bind_host(settings: Settings, environ: Mapping[str, str], report: Report) -> Settings:
    variable = "MARKETPRISM_BIND_HOST"
    given = environ.get(variable)
    if not given:
        return settings
    kind = host()
    try:
        return replace(settings, bind_host=kind.convert(given))
    except BadValueError as bad:
        report.environment(variable, kind.complaint(given, bad))
        return settings


def _check_ports(settings: Settings, found: Found, report: Report) -> None:
    path = "monitoring.metrics.port"
    if settings.metrics_port and settings.metrics_port == settings.health_port:
        line = found.line(path) or found.line("monitoring.health_check.port")
        report.problem(
            line, path, f"expected another port than health_check.port, got {settings.metrics_port}"
        )


def _recording(found: Found) -> RecordingSettings:
    recording = RecordingSettings(**found.fields(RecordingSettings, "recording"))
    return replace(recording, directory=Path(recording.directory))


def _storage(found: Found, environ: Mapping[str, str], report: Report) -> StorageSettings:
    batch = BatchSettings(**found.fields(BatchSettings, "storage.hot.batch"))
    memory = {
        tier: _memory(f"storage.{tier}.memory", default.memory, found, report)
        for tier, default in (("hot", HotSettings()), ("cold", ColdSettings()))
    }
    hot = HotSettings(**found.fields(HotSettings, "storage.hot"), batch=batch, memory=memory["hot"])
    cold = ColdSettings(**found.fields(ColdSettings, "storage.cold"), memory=memory["cold"])
    folder = Path(environ.get("MARKETPRISM_STATE_DIR") or _STORES)
    return StorageSettings(
        **found.fields(StorageSettings, "storage"),
        hot=replace(hot, location=_within(folder, hot.location)),
        cold=replace(cold, location=_within(folder, cold.location)),
        user=environ.get("MARKETPRISM_CLICKHOUSE_USER", ""),
        password=environ.get("MARKETPRISM_CLICKHOUSE_PASSWORD", ""),
    )


def _within(folder: Path, location: str) -> str:
    return location if "://" in location else str(folder / location)


def _memory(path: str, default: MemoryLimits, found: Found, report: Report) -> MemoryLimits:
    limits = replace(default, **found.fields(MemoryLimits, path))
    if limits.hard_mb <= limits.soft_mb and not report.bad(path):
        line = found.line(f"{path}.hard_mb") or found.line(path)
        text = f"expected more than soft_mb ({limits.soft_mb}), got {limits.hard_mb}"
        report.problem(line, f"{path}.hard_mb", text)
        return default
    return limits


def _exchanges(found: Found, report: Report) -> dict[str, ExchangeSettings]:
    shared = _shared_by_exchanges(found, report)
    enabled = [
        offer
        for offer in OFFERS.values()
        if f"exchanges.{offer.name}" in found.sections and found.get(f"exchanges.{offer.name}.enabled", True)
    ]
    if not enabled and not report.bad("exchanges"):
        text = f"expected at least one enabled exchange of {', '.join(OFFERS)}, got none"
        report.problem(found.line("exchanges"), "exchanges", text)
    return {offer.name: _exchange(offer, shared, found, report) for offer in enabled}


def _shared_by_exchanges(found: Found, report: Report) -> dict[str, Any]:
    """What the section `data_types` sets for every exchange."""
    for leaf in ("period", "limit"):
        _check_same(leaf, found, report)
    intervals = {t: found.get(f"data_types.{t}.interval", s) for t, s in POLL_INTERVAL_S.items()}
    return {**found.fields(ExchangeSettings, "data_types"), "intervals_s": intervals}


def _check_same(leaf: str, found: Found, report: Report) -> None:
    paths = [f"data_types.{t}.api_config.{leaf}" for t in RATIO_TYPES]
    given = [path for path in paths if path in found.values]
    for path in given[1:]:
        first, value = found.values[given[0]].value, found.values[path].value
        if value != first:
            text = f"expected {first} as in {given[0]} (all ratios have the same), got {value}"
            report.problem(found.line(path), path, text)


def _exchange(offer: Offer, shared: dict[str, Any], found: Found, report: Report) -> ExchangeSettings:
    path = f"exchanges.{offer.name}"
    fields: dict[str, Any] = {
        "base_url": offer.base_url,
        "ws_url": offer.ws_url,
        "symbols": offer.symbols,
        "data_types": offer.data_types,
        **shared,
        **found.fields(ExchangeSettings, path),
    }
    fields["data_types"] = _data_types(offer, fields["data_types"], found, report)
    fields["liquidation_symbols"] = _liquidation_symbols(offer, fields, found, report)
    return ExchangeSettings(
        name=offer.name,
        exchange=offer.exchange,
        market_type=offer.market_type,
        orderbook=_orderbook(offer, found),
        **fields,
    )


def _data_types(offer: Offer, listed: tuple[str, ...], found: Found, report: Report) -> frozenset[str]:
    path = f"exchanges.{offer.name}.data_types"
    wanted = frozenset(t for t in listed if found.get(f"data_types.{t}.enabled", True))
    if not wanted and not report.bad(path):
        text = "expected a data type that data_types.<type>.enabled does not switch off, got none"
        report.problem(found.line(path) or found.line(f"exchanges.{offer.name}"), path, text)
    return wanted


def _liquidation_symbols(
    offer: Offer, fields: dict[str, Any], found: Found, report: Report
) -> tuple[str, ...]:
    """This exchange's part of the list; () where all symbols are wanted."""
    path = "data_types.liquidation.symbols"
    listed = fields.get("liquidation_symbols", fields["symbols"])
    own = tuple(s for s in listed if offer.symbol_pattern.fullmatch(s))
    wanted = "liquidation" in fields["data_types"] and not report.bad(path, f"exchanges.{offer.name}")
    if listed and not own and wanted:
        text = f"expected a symbol of {offer.name}, which collects liquidations, got none; add one, or [] for all"
        report.problem(found.line(path), path, text)
    return own


def _orderbook(offer: Offer, found: Found) -> OrderBookSettings:
    default = OrderBookSettings(buffer_max_size=offer.buffer_max_size)
    if offer.depth_max is not None:
        default = replace(default, depth_limit=min(default.depth_limit, offer.depth_max))
    return replace(default, **found.fields(OrderBookSettings, f"exchanges.{offer.name}.orderbook"))
