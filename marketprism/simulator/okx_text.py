"""How OKX writes levels, trades and pushed messages, and its historic checksum."""

import zlib

from marketprism.simulator.instruments import Instrument
from marketprism.simulator.market import ASK, BID, SELL
from marketprism.simulator.truth import Levels, TradeRow

_CHECKSUM_LEVELS = 25


def orders_at(key: int, lots: int) -> int:
    """How many orders rest at a level; the fourth element. The same level always has the same count."""
    return 1 + (key * 2_654_435_761 ^ lots * 40_503) % 11


def push(channel: str, name: str, row: str) -> str:
    """A pushed message with one row."""
    return f'{{"arg":{{"channel":"{channel}","instId":"{name}"}},"data":[{row}]}}'


def trade_fields(instrument: Instrument, row: TradeRow) -> str:
    """The fields a trade has everywhere, as JSON without braces."""
    side = "sell" if row.side == SELL else "buy"
    price, size = instrument.price_text(row.tick), instrument.quantity_text(row.lots)
    head = f'"instId":"{instrument.id}","tradeId":"{row.id}"'
    return f'{head},"px":"{price}","sz":"{size}","side":"{side}","ts":"{row.ts_ms}"'


def level_texts(instrument: Instrument, levels: Levels) -> tuple[str, str]:
    """(asks, bids) as JSON without brackets, best first: [price, size, "0" (deprecated), orders]."""
    price, quantity = instrument.price_text, instrument.quantity_text
    sides: tuple[list[str], list[str]] = ([], [])
    for key in sorted(levels):
        lots = levels[key]
        orders = orders_at(key, lots) if lots else 0
        sides[key & 1].append(f'["{price(key >> 1)}","{quantity(lots)}","0","{orders}"]')
    return ",".join(sides[ASK]), ",".join(reversed(sides[BID]))


def checksum_of(instrument: Instrument, levels: Levels) -> int:
    """CRC32, as a signed 32 bit number, of the best 25 levels: bid:size:ask:size:..., a missing side left out."""
    bids = sorted((key for key in levels if key & 1 == BID), reverse=True)[:_CHECKSUM_LEVELS]
    asks = sorted(key for key in levels if key & 1 == ASK)[:_CHECKSUM_LEVELS]
    parts: list[str] = []
    for rank in range(max(len(bids), len(asks))):
        for side in (bids, asks):
            if rank < len(side):
                key = side[rank]
                parts += (instrument.price_text(key >> 1), instrument.quantity_text(levels[key]))
    value = zlib.crc32(":".join(parts).encode())
    return value - 2**32 if value >= 2**31 else value
