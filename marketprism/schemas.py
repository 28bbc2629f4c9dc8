"""The JSON Schemas of all payloads and the field tables of docs/events/README.md, written from the code.

`python -m marketprism.schemas` writes them into docs/events; what a field means stands here, once.
"""

import inspect
import json
import sys
from pathlib import Path
from typing import Any

from marketprism.events import schemas

FOLDER = Path(__file__).parents[1] / "docs" / "events"
BEGIN = "<!-- fields: written by python -m marketprism.schemas -->"
END = "<!-- fields: end -->"
DIALECT = "https://json-schema.org/draft/2020-12/schema"

# Data type → field → meaning; "" holds the fields of every payload.
MEANINGS: dict[str, dict[str, str]] = {
    "": {
        "data_type": "Which payload this is; also the first token of the subject.",
        "exchange": "Whose data it is: binance, okx or deribit.",
        "market_type": "What is traded.",
        "symbol": "Base and quote, such as BTC-USDT; a dated future and an option keep the exchange's name. "
        "Spot and perpetual of one pair have the same symbol.",
        "instrument_id": "The exchange's own name of the instrument.",
        "ts_ms": "Event time by the exchange's clock, ms since the epoch; null where the exchange gives none.",
        "collected_ts_ms": "When this machine received it, ms since the epoch by its own clock.",
        "publisher": "Always the same; the earlier system's field.",
    },
    "trade": {
        "trade_id": "The exchange's id. Binance USD-M: of the aggregate trade. OKX: of the last execution summed up.",
        "price": "Price, as sent.",
        "quantity": "Base coin; null while the contract size is not known.",
        "exchange_quantity": "Quantity as sent, in quantity_unit.",
        "quantity_unit": "Unit of exchange_quantity; null while it is not known.",
        "side": "The taker's side.",
        "trade_ts_ms": "When it was traded, by the exchange's clock; equal to ts_ms.",
        "first_trade_id": "First execution in it: on Binance USD-M always, on OKX where it sums up several, else null.",
        "last_trade_id": "Last execution in it: on Binance USD-M always, on OKX where it sums up several, else null.",
        "trade_seq": "Deribit's running number of the instrument's trades; null elsewhere, where trade_id runs.",
        "normalized_symbol": "Equal to symbol; the earlier system's field.",
        "data_source": "Always marketprism; the earlier system's field.",
    },
    "orderbook": {
        "bids": "Best bids, highest price first.",
        "asks": "Best asks, lowest price first.",
        "depth_levels": "Levels of the longer side; fewer than asked for where no more are known to be exact.",
        "last_update_id": "The exchange's id of the state shown; null where it sends none.",
        "quantity_unit": "Unit of the levels' quantities, which stay as sent.",
        "update_type": "Always snapshot.",
        "normalized_symbol": "Equal to symbol; the earlier system's field.",
        "data_source": "Always marketprism; the earlier system's field.",
        "standardized_at": "collected_ts_ms as ISO 8601.",
        "standardization_version": "The earlier system's field.",
    },
    "orderbook_delta": {
        "update_type": "snapshot: a whole book, which replaces what is held. delta: one applied change.",
        "bids": "snapshot: every bid held, highest first. delta: bids that changed; quantity 0 removes the level.",
        "asks": "snapshot: every ask held, lowest first. delta: asks that changed; quantity 0 removes the level.",
        "first_update_id": "First id of this change (Binance); null on snapshots and elsewhere.",
        "last_update_id": "Id of the state after this message; null where the exchange sends none.",
        "prev_update_id": "Id of the state this change is applied to; null on snapshots and where there are no ids.",
        "quantity_unit": "Unit of the levels' quantities, which stay as sent.",
        "checksum": "The exchange's CRC32 of the state after this message; null where it sends none, or 0.",
        "exact_from": "snapshot: bids below this price may be missing; null: none is.",
        "exact_to": "snapshot: asks above this price may be missing; null: none is.",
    },
    "funding_rate": {
        "current_funding_rate": "The rate that the next settlement will use, as a fraction; Deribit: the current one.",
        "estimated_funding_rate": "The exchange's forecast for the period after that; only OKX, where it gives one.",
        "funding_interval": "Hours from one settlement to the next, such as 8h; continuous on Deribit; "
        "null where it is not known.",
        "mark_price": "Mark price told with it or last known; null where there is none.",
        "index_price": "Index price told with it; null on OKX.",
        "premium_index": "OKX's premium; null elsewhere.",
        "next_funding_ts_ms": "When current_funding_rate is settled, ms since the epoch; null on Deribit.",
    },
    "open_interest": {
        "open_interest_value": "Open contracts as the exchange tells them, in open_interest_unit.",
        "open_interest_unit": "base on Binance, contracts on OKX; Deribit: quote (USD) for inverse futures, else base.",
        "open_interest_base": "The same in base coin, as told or computed; null where it cannot be known.",
        "open_interest_usd": "The same in USD. OKX: as told. Binance: times the mark price. Deribit: as told, or "
        "times the index price. Null where no price is known yet.",
        "mark_price": "Mark price told with it or last known; null where there is none.",
        "index_price": "Index price told with it; only Deribit.",
        "change_24h": "Always null; the earlier system's field.",
        "change_24h_percent": "Always null; the earlier system's field.",
    },
    "liquidation": {
        "liquidation_id": "Made of what the exchange says: time, side, price, quantity; Deribit: its trade id.",
        "side": "Of the order that closed the position: sell closes a long.",
        "status": "filled; on Binance also partially_filled, pending or cancelled.",
        "price": "Binance: the order's price. OKX: the bankruptcy price. Deribit: the trade's price.",
        "quantity": "Base coin; null while the contract size is not known.",
        "exchange_quantity": "Quantity as sent, in quantity_unit.",
        "quantity_unit": "Unit of exchange_quantity.",
        "filled_quantity": "Base coin filled so far; null while the contract size is not known.",
        "notional_value": "Quote currency: quantity filled times average price (Binance) or price; null where unknown.",
        "liquidation_time": "liquidation_ts_ms as ISO 8601.",
        "liquidation_ts_ms": "When, by the exchange's clock; equal to ts_ms.",
        "aggregation_mode": "filtered: of configured symbols. all-symbol: of all of the exchange.",
        "average_price": "Average price of what was filled; only Binance.",
        "bankruptcy_price": "Bankruptcy price; only OKX.",
    },
    "lsr_top_position": {
        "long_short_ratio": "Long over short, of top traders, by position size.",
        "long_position_ratio": "Share of long, 0 to 1. OKX: computed from the ratio, to six places.",
        "short_position_ratio": "Share of short, 0 to 1. OKX: computed from the ratio, to six places.",
    },
    "lsr_top_account": {
        "long_short_ratio": "Long over short, of top traders, by number of accounts.",
        "long_account_ratio": "Share of long, 0 to 1. OKX: computed from the ratio, to six places.",
        "short_account_ratio": "Share of short, 0 to 1. OKX: computed from the ratio, to six places.",
    },
    "lsr_all_account": {
        "long_short_ratio": "Long over short, of all traders, by number of accounts.",
        "long_account_ratio": "Share of long, 0 to 1. OKX: computed from the ratio, to six places.",
        "short_account_ratio": "Share of short, 0 to 1. OKX: computed from the ratio, to six places.",
    },
    "volatility_index": {
        "currency": "Whose options: BTC or ETH.",
        "vol_index": "Close of the candle, in percent a year.",
        "volatility_index": "The same figure under the earlier system's other name.",
        "open": "Open of the candle.",
        "high": "High of the candle.",
        "low": "Low of the candle.",
        "resolution_s": "Length of the candle in seconds; ts_ms is its start.",
        "data_source": "api: a closed candle. websocket: a single point, in replays of recordings that hold them.",
    },
    "gap": {
        "affected_data_type": "What is missing: trade, orderbook_delta, liquidation …",
        "cause": "Why; see the table of causes.",
        "last_id_before": "Last id published before the hole.",
        "first_id_after": "First id known after it.",
        "last_ts_ms_before": "Event time of the last message before the hole.",
        "first_ts_ms_after": "Event time of the first message after it.",
        "missing": "How many are missing; null where the exchange's numbers do not tell.",
        "detail": "More, in words; mostly empty.",
    },
}
for _ratio in ("lsr_top_position", "lsr_top_account", "lsr_all_account"):
    MEANINGS[_ratio] |= {
        "period": "Length of the period that ts_ms labels, such as 5m.",
        "data_source": "Always api.",
    }


def files() -> dict[str, str]:
    """File name → text, of every schema."""
    return {
        f"{name}.schema.json": json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
        for name, schema in _schemas().items()
    }


def _schemas() -> dict[str, dict[str, Any]]:
    """The schemas of the code, with the meaning of each field. Raises KeyError for a field without one."""
    found = schemas()
    for name, schema in found.items():
        for part in schema["$defs"].values():
            part["description"] = inspect.cleandoc(part["description"])
        for field, rules in _struct(schema)["properties"].items():
            rules["description"] = (MEANINGS[""] | MEANINGS[name])[field]
    return {name: {"$schema": DIALECT, **schema} for name, schema in found.items()}


def _struct(schema: dict[str, Any]) -> dict[str, Any]:
    struct: dict[str, Any] = schema["$defs"][schema["$ref"].rsplit("/", 1)[1]]
    return struct


def tables() -> str:
    """The tables of docs/events/README.md, as they stand between its markers."""
    found = _schemas()
    common = _struct(found["trade"])["properties"]
    shared = {field: common[field] for field in MEANINGS[""]}
    shared["data_type"] = {**common["data_type"], "enum": list(found)}
    parts = [_table("Every payload", "", shared)]
    for name, schema in found.items():
        struct = _struct(schema)
        own = {f: rules for f, rules in struct["properties"].items() if f not in MEANINGS[""]}
        intro = " ".join(struct["description"].split("\n\n")[0].split())
        parts.append(_table(f"`{name}`", f"{intro} [Schema]({name}.schema.json).\n\n", own))
    return "\n\n".join(parts)


def _table(title: str, intro: str, properties: dict[str, Any]) -> str:
    rows = [f"| `{field}` | {_type(rules)} | {rules['description']} |" for field, rules in properties.items()]
    head = "| field | type | meaning |\n| --- | --- | --- |"
    return "\n".join((f"### {title}\n\n{intro}{head}", *rows))


def _type(rules: dict[str, Any]) -> str:
    """A field's type in words."""
    if "anyOf" in rules:
        return " or ".join(_type(kind) for kind in rules["anyOf"])
    if "enum" in rules:
        return ", ".join(f"`{value}`" for value in rules["enum"])
    if rules["type"] == "array":
        return "list of `[price, quantity]`"
    return str(rules["type"])


def page(text: str) -> str:
    """docs/events/README.md with its tables written anew. Raises ValueError where a marker is missing."""
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"expected the markers {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"


def main(folder: Path = FOLDER) -> int:
    """Write all of it into `folder`, which holds README.md. Returns the exit status."""
    readme = folder / "README.md"
    try:
        text = page(readme.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        print(f"{readme}: {e}; run this in a clone of the project", file=sys.stderr)
        return 1
    readme.write_text(text, encoding="utf-8")
    for name, schema in files().items():
        (folder / name).write_text(schema, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
