"""What a stream dropped at its limits before it was stored: told as gaps, since nobody else could know of it.

Which messages these were cannot be known any more. So each instrument of a data type gets a row in `gaps`, from its
last stored event before to the time of the oldest message that is still there.
"""

from datetime import UTC, datetime

import msgspec

from marketprism.storage.engine import Engine
from marketprism.storage.schema import BY_NAME, TABLES, Layout, Table

CAUSE = "stream_limit"
_OF_LATE = "timestamp > (SELECT max(timestamp) FROM {table}) - toIntervalDay(1)"


class Begin(msgspec.Struct, frozen=True):
    """The oldest message of a stream, and when it was stored there; the newest one (JetStream's STREAM.INFO)."""

    first_seq: int
    last_seq: int
    first_ts: datetime

    @property
    def first_ms(self) -> int:
        """When the oldest one was stored, ms since the epoch; now, where there is none (the year is 1 then)."""
        return int((self.first_ts if self.first_ts.year > 1 else datetime.now(UTC)).timestamp() * 1000)


def last_stored(engine: Engine, layout: Layout) -> int:
    """The highest number in the stream of what is stored, 0 for nothing. Raises EngineError."""
    found = 0
    for table in TABLES:
        name = layout.table(table.name)
        sql = f"SELECT max(stream_seq) FROM {name} WHERE {_OF_LATE.format(table=name)} SETTINGS final = 0"
        found = max(found, int(engine.value(sql)))
    return found


def tell(engine: Engine, layout: Layout, table: Table, begin: Begin, last_seq: int) -> None:
    """Note that what a type had between `last_seq` and the beginning of the stream may be lost. Raises EngineError.

    May be called again for the same: the rows are the same.
    """
    name = layout.table(table.name)
    columns = {
        "timestamp": "now64(3, 'UTC')",
        "exchange": "exchange",
        "market_type": "market_type",
        "symbol": "symbol",
        "instrument_id": "instrument_id",
        "collected_at": "now64(3, 'UTC')",
        "has_event_time": "false",
        "event_id": "concat({mark:String}, exchange, ':', market_type, ':', instrument_id)",
        "stream_seq": "{before:UInt64}",
        "affected_data_type": "{data_type:String}",
        "cause": "{cause:String}",
        "last_time_before": f"max({name}.timestamp)",
        "first_time_after": "fromUnixTimestamp64Milli({first_ms:Int64}, 'UTC')",
        "detail": "{detail:String}",
    }
    assert columns.keys() <= {column.name for column in BY_NAME["gaps"].stored}
    engine.command(
        f"INSERT INTO {layout.table('gaps')} ({', '.join(columns)}) SELECT {', '.join(columns.values())} FROM {name} "
        f"WHERE {_OF_LATE.format(table=name)} AND stream_seq <= {{last_seq:UInt64}} "
        "GROUP BY exchange, market_type, symbol, instrument_id",
        {
            "mark": f"{CAUSE}:{begin.first_seq}:{table.data_type}:",
            "before": begin.first_seq - 1,
            "last_seq": last_seq,
            "data_type": table.data_type,
            "cause": CAUSE,
            "first_ms": begin.first_ms,
            "detail": f"the stream begins with {begin.first_seq}, stored was up to {last_seq}",
        },
    )
