"""The normalized events, their subjects, ids and JSON: the one vocabulary all rooms share.

Every figure that an exchange sends as a decimal number travels as the decimal text it sent; nothing passes
through a float. `ts_ms` is the exchange's own event time (null where it gives none), `collected_ts_ms` is when
this machine received the message. The two clocks may disagree by seconds, in either direction.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, Self, TypeAlias, cast

import msgspec

from marketprism.pattern import Pattern

MarketType: TypeAlias = Literal["spot", "perpetual", "futures", "options"]
Side: TypeAlias = Literal["buy", "sell"]
# What one unit of an exchange's own figure is: base coin, contracts, or quote currency (Deribit's inverse USD).
Unit: TypeAlias = Literal["base", "contracts", "quote"]
GapCause: TypeAlias = Literal[
    "sequence",  # the exchange's own numbering jumped
    "checksum",  # the exchange's checksum contradicts the book
    "crossed",  # best bid >= best ask after a whole message
    "disconnect",  # the connection was lost
    "restart",  # this collector was not running
    "overflow",  # NATS was away for longer than the buffer lasts
    "malformed",  # a message of this book could not be read
    "audit",  # the exchange itself contradicts the book, by another channel
]


class Level(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One price level as sent, `[price, quantity]`; quantity 0 in a delta removes the level."""

    price: str
    quantity: str


# Levels that are JSON already, for a payload to be encoded: nobody needs them as objects in between.
as_sent = cast(Callable[[bytes], list[Level]], msgspec.Raw)


class Payload(msgspec.Struct, kw_only=True, gc=False, tag_field="data_type"):
    """What every payload carries."""

    exchange: str  # binance | okx | deribit
    market_type: MarketType
    symbol: str  # normalized: BTC-USDT; a dated future or an option keeps the exchange's name
    instrument_id: str  # the exchange's own name
    ts_ms: int | None  # event time, by the exchange's clock
    collected_ts_ms: int  # receive time, by ours
    publisher: str = "unified-collector"


class Trade(Payload, kw_only=True, tag="trade"):
    """One execution. `side` is the taker's."""

    trade_id: str
    price: str
    quantity: str | None  # base coin; null while the instrument's contract size is unknown
    exchange_quantity: str  # as sent
    quantity_unit: Unit | None  # of exchange_quantity
    side: Side
    trade_ts_ms: int
    # Where the exchange reports several executions as one: the first and the last of them.
    first_trade_id: str | None = None
    last_trade_id: str | None = None
    trade_seq: int | None = None  # the instrument's running number, where it is not the id (Deribit)
    normalized_symbol: str
    data_source: str = "marketprism"


class OrderBook(Payload, kw_only=True, tag="orderbook"):
    """The top of a book, best level first, never more than is known to be exact."""

    bids: list[Level]
    asks: list[Level]
    depth_levels: int
    last_update_id: int | None
    quantity_unit: Unit | None
    update_type: Literal["snapshot"] = "snapshot"
    normalized_symbol: str
    data_source: str = "marketprism"
    standardized_at: str  # ISO 8601, same instant as collected_ts_ms
    standardization_version: str = "2.0"


class OrderBookDelta(Payload, kw_only=True, tag="orderbook_delta"):
    """A whole book ("snapshot") or one applied change ("delta").

    To rebuild a book: take a snapshot, then every delta whose `prev_update_id` is the `last_update_id` held
    (the first one after a snapshot may instead enclose it); a later snapshot replaces what is held, but one that
    is older than an unbroken book is a second collector's and is skipped. Compare prices as numbers.
    `exact_from`/`exact_to` bound the prices for which a snapshot is complete; null: no bound.
    """

    update_type: Literal["snapshot", "delta"]
    bids: list[Level]
    asks: list[Level]
    first_update_id: int | None
    last_update_id: int | None
    prev_update_id: int | None
    quantity_unit: Unit | None
    checksum: int | None = None  # the exchange's, where it sends one that is not 0
    exact_from: str | None = None
    exact_to: str | None = None


class FundingRate(Payload, kw_only=True, tag="funding_rate"):
    """The rate that the next settlement will use, per `funding_interval`."""

    current_funding_rate: str
    estimated_funding_rate: str | None  # the exchange's forecast for the period after it
    funding_interval: str | None  # "8h"; "continuous" on Deribit; null where it cannot be known
    mark_price: str | None
    index_price: str | None
    premium_index: str | None
    next_funding_ts_ms: int | None


class OpenInterest(Payload, kw_only=True, tag="open_interest"):
    """Open contracts, in the exchange's unit, in base coin and in USD as far as it tells them."""

    open_interest_value: str
    open_interest_unit: Unit | None
    open_interest_base: str | None
    open_interest_usd: str | None
    mark_price: str | None = None
    index_price: str | None = None
    change_24h: str | None = None
    change_24h_percent: str | None = None


class Liquidation(Payload, kw_only=True, tag="liquidation"):
    """A forced order. Exchanges throttle these streams: they are a lower bound, not a full record."""

    liquidation_id: str
    side: Side  # of the order that closed the position
    status: str
    price: str
    quantity: str | None  # base coin
    exchange_quantity: str
    quantity_unit: Unit | None
    filled_quantity: str | None
    notional_value: str | None
    liquidation_time: str  # ISO 8601
    liquidation_ts_ms: int
    aggregation_mode: Literal["filtered", "all-symbol"]
    average_price: str | None = None
    bankruptcy_price: str | None = None


class LsrTopPosition(Payload, kw_only=True, tag="lsr_top_position"):
    """Top traders' long/short ratio by position size."""

    long_short_ratio: str
    long_position_ratio: str | None
    short_position_ratio: str | None
    period: str
    data_source: str = "api"


class LsrTopAccount(Payload, kw_only=True, tag="lsr_top_account"):
    """Top traders' long/short ratio by number of accounts."""

    long_short_ratio: str
    long_account_ratio: str | None
    short_account_ratio: str | None
    period: str
    data_source: str = "api"


class LsrAllAccount(Payload, kw_only=True, tag="lsr_all_account"):
    """All traders' long/short ratio by number of accounts."""

    long_short_ratio: str
    long_account_ratio: str | None
    short_account_ratio: str | None
    period: str
    data_source: str = "api"


class VolatilityIndex(Payload, kw_only=True, tag="volatility_index"):
    """One closed candle of DVOL; `ts_ms` is its start."""

    currency: str
    vol_index: str
    volatility_index: str  # the same figure under the earlier system's other name: the close
    open: str | None = None
    high: str | None = None
    low: str | None = None
    resolution_s: int | None = None
    data_source: str = "api"


class Gap(Payload, kw_only=True, tag="gap"):
    """A hole in what was published, told as soon as it is known. Null: not known."""

    affected_data_type: str
    cause: GapCause
    last_id_before: str | None = None
    first_id_after: str | None = None
    last_ts_ms_before: int | None = None
    first_ts_ms_after: int | None = None
    missing: int | None = None  # how many messages, where the exchange's numbering tells
    detail: str = ""


AnyPayload: TypeAlias = (
    Trade
    | OrderBook
    | OrderBookDelta
    | FundingRate
    | OpenInterest
    | Liquidation
    | LsrTopPosition
    | LsrTopAccount
    | LsrAllAccount
    | VolatilityIndex
    | Gap
)

PAYLOADS: dict[str, type[Payload]] = {
    str(t.__struct_config__.tag): t
    for t in (
        Trade,
        OrderBook,
        OrderBookDelta,
        FundingRate,
        OpenInterest,
        Liquidation,
        LsrTopPosition,
        LsrTopAccount,
        LsrAllAccount,
        VolatilityIndex,
        Gap,
    )
}


_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[AnyPayload] = msgspec.json.Decoder(AnyPayload)

encode = _encoder.encode


class Event(msgspec.Struct, gc=False):
    """A payload as it is published, where it goes, and the id that makes publishing it twice harmless.

    The id is made from what the exchange says, never from our clock, so that a resend, a restart or a second
    collector beside this one adds nothing twice.
    """

    subject: str
    id: str
    kind: type[Payload]
    ts_ms: int | None
    collected_ts_ms: int
    payload: bytes

    @classmethod
    def of(cls, subject: str, id: str, data: AnyPayload) -> Self:  # noqa: A002 - the field's name
        """An event of a payload that is an object."""
        return cls(subject, id, type(data), data.ts_ms, data.collected_ts_ms, encode(data))

    @property
    def data(self) -> AnyPayload:
        """The payload as an object, decoded each time."""
        return decode(self.payload)


# Stands in a payload for a value that is still to come; no JSON has this byte.
PLACE: Any = msgspec.Raw(b"\0")


def pattern(blank: Payload) -> Pattern:
    """The JSON of this payload, to be filled in where it has `PLACE`, in the order of the fields."""
    return Pattern(*encode(blank).split(b"\0"))


def decode(payload: bytes) -> AnyPayload:
    """A published payload as its type. Raises `msgspec.DecodeError` where it is none of ours."""
    return _decoder.decode(payload)


_FORBIDDEN_IN_TOKEN = ".*> "  # NATS gives these a meaning (NATS docs, subject-based messaging)


@lru_cache(maxsize=65_536)
def subject(data_type: str, exchange: str, market_type: str, symbol: str) -> str:
    """`{data_type}.{exchange}.{market_type}.{symbol}`, each part a legal NATS token."""
    token = "".join(c if c.isprintable() and c not in _FORBIDDEN_IN_TOKEN else "_" for c in symbol)
    return f"{data_type}.{exchange}.{market_type}.{token or '_'}"


def schemas() -> dict[str, dict[str, Any]]:
    """The JSON Schema of each payload, by data type."""
    return {name: msgspec.json.schema(struct) for name, struct in PAYLOADS.items()}
