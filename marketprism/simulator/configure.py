"""Point a collector's configuration at the simulator."""

from collections.abc import Mapping
from pathlib import Path

import yaml

from marketprism.simulator.options import SimulatorError


def write_config(source_yaml: Path, target: Path, urls: Mapping[str, Mapping[str, str]]) -> None:
    """Write a copy of a configuration whose exchanges' api.base_url and api.ws_url are the simulator's.

    urls: as Simulator.urls gives them; exchanges the file lacks are left out. An orderbook.rest_base, where
    there is one, follows api.base_url, so that no request leaves the machine. All else is copied as it is.
    Raises SimulatorError for a file without exchanges, OSError for one that cannot be read or written.
    """
    try:
        document = yaml.safe_load(source_yaml.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        where = str(error).replace("\n", " ")
        raise SimulatorError(f"{source_yaml}: expected YAML: {where}") from None
    exchanges = document.get("exchanges") if isinstance(document, dict) else None
    if not isinstance(exchanges, dict):
        raise SimulatorError(f"{source_yaml}: expected a mapping `exchanges`, found none")
    for worker, pair in urls.items():
        settings = exchanges.get(worker)
        if isinstance(settings, dict):
            settings["api"] = {**(settings.get("api") or {}), **pair}
            book = settings.get("orderbook")
            if isinstance(book, dict) and "rest_base" in book:
                book["rest_base"] = pair["base_url"]
    text = yaml.safe_dump(document, allow_unicode=True, sort_keys=False, width=110)
    target.write_text(f"# Written by the simulator from {source_yaml.name}\n{text}", encoding="utf-8")
