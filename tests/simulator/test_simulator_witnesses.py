"""What tells the top of a book by another way than its channel: true at the id or time that it bears."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from simulator_support import Rig

from marketprism.simulator import DEFAULT_SYMBOLS, WORKERS

Levels = list[tuple[Decimal, Decimal]]
STEPS = 1500
CHANNELS = {
    "binance_spot": ("bookTicker",),
    "binance_derivatives": ("bookTicker",),
    "okx_spot": ("books5", "bbo-tbt"),
    "okx_derivatives": ("books5", "bbo-tbt"),
    "deribit_derivatives": ("ticker",),
}


def levels(side: Any) -> Levels:
    return [(Decimal(str(price)), Decimal(str(quantity))) for price, quantity, *_ in side]


def listening(rig: Rig, name: str) -> tuple[Any, list[Any]]:
    """A connection with the book and its witnesses, and what it got at once."""
    channels = CHANNELS[rig.worker]
    if rig.worker.startswith("binance"):
        streams = [f"{name.lower()}@{channel}" for channel in ("depth@100ms", *channels)]
        prefix = "" if rig.worker == "binance_spot" else "/public"
        return rig.connect(f"{prefix}/stream", streams="/".join(streams)), []
    if rig.worker.startswith("okx"):
        connection = rig.connect("/ws/v5/public")
        args = [{"channel": channel, "instId": name} for channel in ("books", *channels)]
        return connection, rig.ask(connection, {"op": "subscribe", "args": args})
    connection = rig.connect("/ws/api/v2")
    wanted = [f"book.{name}.100ms", f"ticker.{name}.100ms"]
    request = {"jsonrpc": "2.0", "id": 1, "method": "public/subscribe", "params": {"channels": wanted}}
    return connection, rig.ask(connection, request)


def words(messages: list[Any]) -> Iterator[tuple[str, int, Levels, Levels]]:
    """(channel, id, bids, asks) of each witness; of a ticker the id of the book message of the same millisecond."""
    id_at: dict[int, int] = {}
    for m in messages:
        if "stream" in m and "bookTicker" in m["stream"]:
            data = m["data"]
            yield "bookTicker", data["u"], levels([(data["b"], data["B"])]), levels([(data["a"], data["A"])])
        elif m.get("arg", {}).get("channel") in ("books5", "bbo-tbt") and "data" in m:
            (row,) = m["data"]
            yield m["arg"]["channel"], row["seqId"], levels(row["bids"]), levels(row["asks"])
        elif m.get("params", {}).get("channel", "").startswith("book."):
            id_at[m["params"]["data"]["timestamp"]] = m["params"]["data"]["change_id"]
        elif m.get("params", {}).get("channel", "").startswith("ticker."):
            data = m["params"]["data"]
            if data["timestamp"] in id_at:
                bids, asks = (
                    levels([(data[f"best_{s}_price"], data[f"best_{s}_amount"])]) for s in ("bid", "ask")
                )
                yield "ticker", id_at[data["timestamp"]], bids, asks


@pytest.mark.parametrize("worker", WORKERS)
def test_witnesses_tell_the_truth_at_their_id(worker: str) -> None:
    rig, name = Rig(worker, rate=120.0), DEFAULT_SYMBOLS[worker][0]
    connection, messages = listening(rig, name)
    messages += rig.messages(STEPS, connection)
    published = set(rig.truth.update_ids(worker, name))
    seen = dict.fromkeys(CHANNELS[worker], 0)
    equal = dict.fromkeys(CHANNELS[worker], 0)
    for channel, number, bids, asks in words(messages):
        truth = rig.truth.book_at(worker, name, number)
        assert bids == levels(truth[0].items())[: len(bids)], (channel, number)
        assert asks == levels(truth[1].items())[: len(asks)], (channel, number)
        seen[channel] += 1
        equal[channel] += number in published
    assert min(seen.values()) >= 50, seen
    assert min(equal.values()) >= 10, equal  # at the end of a book message: there a collector can compare


@pytest.mark.parametrize("worker", ["okx_spot", "okx_derivatives"])
def test_a_new_subscriber_of_a_short_book_gets_it_at_once(worker: str) -> None:
    rig, name = Rig(worker, rate=0.0), DEFAULT_SYMBOLS[worker][0]
    _, messages = listening(rig, name)
    told = list(words(messages))
    assert [(channel, len(bids), len(asks)) for channel, _, bids, asks in told] == [
        ("books5", 5, 5),
        ("bbo-tbt", 1, 1),
    ]
    (book,) = [m["data"][0] for m in messages if m.get("action") == "snapshot"]
    assert {number for _, number, _, _ in told} == {book["seqId"]}
