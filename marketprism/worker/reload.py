"""What a changed configuration changes for a worker that runs, and what only a restart would."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from marketprism.config import Config, ConfigError, ExchangeSettings

_TAKEN = ("symbols", "memory")  # of the exchange's own section
_ROOTS = ("data_types", "nats", "recording")  # what a worker reads besides its own section


@dataclass(frozen=True, slots=True)
class Plan:
    """The exchange as it is to be run from now on, and what is new about it in one line."""

    exchange: ExchangeSettings
    text: str


def plan(start: Config, running: ExchangeSettings, new: Config) -> Plan:
    """Symbols and poll intervals are taken; of all else, what was so at the `start` goes on.

    Raises ConfigError where the new configuration has no such worker any more.
    """
    name = running.name
    after = new.settings.exchanges.get(name)
    if after is None:
        raise ConfigError(
            [f"{new.path}: exchanges.{name}: no longer there or enabled; to end its worker, stop its unit"]
        )
    exchange = replace(
        running,
        symbols=after.symbols,
        intervals_s=after.intervals_s,
        liquidation_symbols=after.liquidation_symbols,
    )
    said = list(_symbols(running, after))
    if running.intervals_s != after.intervals_s:
        said.append("poll intervals")
    then, now = start.settings, new.settings
    if exchange != after or then.nats != now.nats or then.recording != now.recording:
        said.append(f"only a restart takes {', '.join(_keys_of_a_worker(start.raw, new.raw, name))}")
    return Plan(exchange, "; ".join(said) or "nothing has changed for this worker")


def _symbols(before: ExchangeSettings, after: ExchangeSettings) -> Iterator[str]:
    changed = [f"+{s}" for s in after.symbols if s not in before.symbols]
    changed += [f"-{s}" for s in before.symbols if s not in after.symbols]
    if changed:
        yield f"symbols {' '.join(changed)}"


def _keys_of_a_worker(old: dict[str, Any], new: dict[str, Any], name: str) -> Iterator[str]:
    own = f"exchanges.{name}."
    taken = tuple(own + key for key in _TAKEN)
    for key in _changed(old, new):
        of_this = key.startswith(own) and not key.startswith(taken)
        shared = key.startswith(_ROOTS) and not key.endswith(".interval")
        if of_this or shared:
            yield key


def _changed(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """The paths of the keys that differ."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        if old != new:
            yield path
        return
    for key in dict.fromkeys([*old, *new]):
        yield from _changed(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
