"""A market that is stored: its events in hot tables and cold files, and what its book was at each of them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from marketprism.book import Book
from marketprism.events import Gap, Level, OrderBookDelta, Payload, encode
from marketprism.storage.engine import Engine
from marketprism.storage.parquet import ParquetStore
from marketprism.storage.reading import ParquetFiles, Tables, Tier
from marketprism.storage.rebuild import Instrument
from marketprism.storage.rows import Rows
from marketprism.storage.schema import BY_DATA_TYPE, Layout
from marketprism.storage.windows import HOUR_S, WITHIN, Window, columns

BEGIN_MS = 1_795_417_200_000 - 120_000  # two minutes before a full hour


@dataclass
class Stored:
    """What is stored: events with their stream numbers, and where."""

    engine: Engine
    layout: Layout
    folder: Path

    @property
    def tiers(self) -> list[Tier]:
        """Hot, then cold."""
        return [Tables(self.engine, self.layout), ParquetFiles(self.engine, self.folder)]

    def insert(self, data_type: str, events: Iterable[tuple[int, str, Payload]]) -> None:
        """Into the hot table: stream number, id, payload."""
        rows = Rows(BY_DATA_TYPE[data_type])
        for number, identity, payload in events:
            rows.add(encode(payload), identity, number)
        if len(rows):
            found, refused = rows.arrow()
            assert not refused
            self.engine.insert(self.layout.table(rows.table.name), found)

    def move(self, table: str, at_ms: int, *, drop: bool = True) -> None:
        """The hour that holds this time goes into a file; it stays in hot too, unless it is dropped."""
        window = Window(at_ms // 1000 // HOUR_S * HOUR_S, table)
        name = self.layout.table(table)
        page = self.engine.query(
            f"SELECT {columns(window.table)} FROM {name} WHERE {WITHIN} ORDER BY event_id", window.bounds
        )
        if not page.num_rows:
            return
        store = ParquetStore(self.folder, self.engine, "a test")
        store.keep(window, store.stage(window, [page]))
        if drop:
            hour = f"{window.start:%Y-%m-%d %H:%M:%S}"
            self.engine.command(f"ALTER TABLE {name} DROP PARTITION {{hour:String}}", {"hour": hour})


@dataclass
class Market:
    """An exchange's book that changes, what is published of it, and what it was."""

    instrument: Instrument = field(
        default_factory=lambda: Instrument("binance", "spot", "BTC-USDT", "BTCUSDT")
    )
    now_ms: int = BEGIN_MS
    skew_ms: int = 0
    """Our clock minus the exchange's."""
    last_id: int = 100
    book: Book = field(default_factory=Book)
    events: list[tuple[int, str, Payload]] = field(default_factory=list)
    states: list[tuple[int, tuple[bytes, bytes]]] = field(default_factory=list)
    """Time and whole book after each published message."""
    sums: dict[str, int] = field(default_factory=dict)
    """Of each message's id, the checksum after it."""
    number: int = 0

    @property
    def common(self) -> dict[str, Any]:
        """What every payload carries."""
        i = self.instrument
        return {
            "exchange": i.exchange,
            "market_type": i.market_type,
            "symbol": i.symbol,
            "instrument_id": i.instrument_id,
            "ts_ms": self.now_ms,
            "collected_ts_ms": self.now_ms + self.skew_ms,
        }

    def whole(self, **changed: Any) -> None:
        """Publish all of it."""
        bids, asks = self.book.all()
        self._publish("snapshot", bids, asks, None, **changed)

    def change(
        self, bids: list[list[str]], asks: list[list[str]], *, publish: bool = True, **changed: Any
    ) -> None:
        """Change it, and publish that."""
        texts = self.book.apply(*map(encode_levels, (bids, asks)))
        before, self.last_id = self.last_id, self.last_id + 3
        if publish:
            self._publish("delta", *texts, before, **changed)

    def repeat(self, which: int) -> None:
        """Publish a message about the book once more, as a second collector may."""
        told = [e for e in self.events if isinstance(e[2], OrderBookDelta)]
        _, identity, payload = told[which % len(told)]
        self._add(f"{identity} again {self.number}", payload)

    def gap(self, cause: str = "sequence", **changed: Any) -> None:
        """Tell that it is lost, as of the last message."""
        fields = self.common | {
            "affected_data_type": "orderbook_delta",
            "cause": cause,
            "last_id_before": str(self.last_id),
            "last_ts_ms_before": self.now_ms,
        }
        self._add(f"gap:{self.last_id}:{self.number}", Gap(**fields | changed))

    def store(self, stored: Stored) -> None:
        """Everything into the hot tables."""
        stored.insert("orderbook_delta", [e for e in self.events if isinstance(e[2], OrderBookDelta)])
        stored.insert("gap", [e for e in self.events if isinstance(e[2], Gap)])

    def _publish(self, update_type: str, bids: bytes, asks: bytes, prev: int | None, **changed: Any) -> None:
        fields = self.common | {
            "update_type": update_type,
            "bids": decode_levels(bids),
            "asks": decode_levels(asks),
            "first_update_id": None,
            "last_update_id": self.last_id,
            "prev_update_id": prev,
            "quantity_unit": "base",
        }
        payload = OrderBookDelta(**fields | changed)
        identity = f"{self.instrument.instrument_id}:{update_type}:{self.last_id}:{payload.ts_ms}"
        self.sums[identity] = self.book.checksum()
        self._add(identity, payload)
        self.states.append((self.now_ms, self.book.all()))

    def _add(self, identity: str, payload: Payload) -> None:
        self.number += 1
        self.events.append((self.number, identity, payload))


def encode_levels(levels: list[list[str]]) -> bytes:
    """As an exchange writes them."""
    return encode([Level(*x) for x in levels])  # type: ignore[arg-type]


def decode_levels(levels: bytes) -> list[Level]:
    """As the payload holds them."""
    return msgspec.json.decode(levels, type=list[Level])
