"""cryptofeed's parsing and books over recorded frames; the other half of `scripts/bench peers`.

Runs in an environment of its own, so it imports nothing of ours. Argument: a file with a header line
`{"exchange": …, "bodies": {symbol: recorded REST book}, "checksums": whether the frames have any}` and then a line
`[receive time in s, frame]` for each frame.
Says on stdout, once, what it makes of them; then answers each line on stdin, `plain 3` or `checked 3`, with the CPU
time of so many passes on fresh feeds.
"""

import asyncio
import gc
import json
import logging
import re
import sys
import time
from collections import Counter

from cryptofeed.defines import FUNDING, L2_BOOK, LIQUIDATIONS, OPEN_INTEREST, TICKER, TRADES
from cryptofeed.exchanges import OKX, Binance, BinanceFutures, Deribit
from cryptofeed.symbols import Symbols

FEEDS = {
    "binance_spot": Binance,
    "binance_derivatives": BinanceFutures,
    "okx_spot": OKX,
    "okx_derivatives": OKX,
    "deribit_derivatives": Deribit,
}
CHANNELS = (L2_BOOK, TRADES, TICKER, FUNDING, OPEN_INTEREST, LIQUIDATIONS)


class Same(dict):
    """Every symbol keeps the exchange's name: the list of instruments, which needs a network, is left out."""

    def __missing__(self, name):
        self[name] = name
        return name


class RecordedRest:
    """Answers the request for a whole book with the recorded one."""

    def __init__(self, bodies):
        self._bodies = bodies

    async def read(self, url):
        return self._bodies[re.search(r"symbol=(\w+)", url)[1]]


class NoExchange:
    """Takes the subscriptions; a feed sets up its books when it makes them."""

    uuid = "recorded"

    async def write(self, text):
        pass


class Unread(logging.Handler):
    """Counts what the feed warns about."""

    count = 0

    def emit(self, record):
        Unread.count += 1


async def nothing(data, receipt_timestamp):
    """The cheapest callback there is."""


async def new_feed(header, callback, checked=False):
    """As a user makes it, at its defaults, the fastest: no check of the book, no cut at a depth.

    `checked`: with the two checks it offers and we always make, OKX's checksum and that no book is crossed.
    """
    kind = FEEDS[header["exchange"]]
    Symbols.set(kind.id, {}, {})
    feed = kind(
        config={"log": {"disabled": True}},
        callbacks=dict.fromkeys(CHANNELS, callback),
        cross_check=checked,
        checksum_validation=checked and header["checksums"],
    )
    feed.exchange_symbol_mapping = Same()
    feed.http_conn = RecordedRest(header["bodies"])
    await feed.subscribe(NoExchange())
    return feed


async def check(header, frames):
    """One pass that is looked at: callbacks by kind, what was not understood, best bid and ask of each book."""
    called = Counter()

    async def count(data, receipt_timestamp):
        called[type(data).__name__] += 1

    feed = await new_feed(header, count, checked=True)
    for received_s, frame in frames:
        await feed.message_handler(frame, None, received_s)
    books = {name: found.book for name, found in feed._l2_book.items()}
    tops = {
        name: [float(side.index(0)[0]) if len(side) else None for side in (book.bids, book.asks)]
        for name, book in books.items()
    }
    return {"frames": len(frames), "callbacks": called, "warnings": Unread.count, "tops": tops}


async def cpu_ns(header, frames, checked, passes):
    """CPU time of this thread for so many passes; making the feeds is not in it."""
    spent = 0
    for _ in range(passes):
        handle = (await new_feed(header, nothing, checked)).message_handler
        began = time.thread_time_ns()
        for received_s, frame in frames:
            await handle(frame, None, received_s)
        spent += time.thread_time_ns() - began
    return spent


def main():
    log = logging.getLogger("feedhandler")
    log.addHandler(Unread())
    log.propagate = False
    with open(sys.argv[1]) as file:
        header = json.loads(file.readline())
        frames = [json.loads(line) for line in file]
    print(json.dumps(asyncio.run(check(header, frames))), flush=True)
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        how, passes = line.split()
        spent = asyncio.run(cpu_ns(header, frames, how == "checked", int(passes)))
        print(json.dumps({"ns": spent}), flush=True)


if __name__ == "__main__":
    main()
