"""Payloads through rows.py into the real engine and out again: every field, exactly; what does not fit is told."""

import asyncio
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samples import FINEST, NOW_MS, WIDEST, one_of_each, trade

from marketprism.events import PAYLOADS, Level, Payload, encode
from marketprism.storage.engine import Engine, EngineError
from marketprism.storage.rows import Rows
from marketprism.storage.schema import (
    BY_DATA_TYPE,
    BY_NAME,
    DECIMAL,
    MIGRATIONS,
    TABLES,
    TEXT,
    TIME,
    WIDE,
    WORD,
    Layout,
    create_table,
    migrate,
    version,
)
from marketprism.storage.writer import ChangedError, Writer, _spans

NOT_KEPT = {
    "publisher",  # always the same
    "data_source",  # the column has a default
    "normalized_symbol",  # equal to symbol
    "standardized_at",  # equal to collected_ts_ms
    "standardization_version",  # always the same
    "liquidation_time",  # liquidation_ts_ms in words
    "volatility_index",  # equal to vol_index
}
BUILT_OF_TYPE = {str(p.__struct_config__.tag): p for p in one_of_each()}


def rows_of(*payloads: Payload) -> Rows:
    rows = Rows(BY_DATA_TYPE[str(payloads[0].__struct_config__.tag)])
    for number, payload in enumerate(payloads):
        rows.add(encode(payload), f"id{number}", number)
    return rows


def told(value: Any, type_: str) -> Any:
    """A payload's value as the table should give it back."""
    if value is None:
        return None
    if type_ in (DECIMAL, WIDE):
        return Decimal(value)
    return datetime.fromtimestamp(value / 1000, UTC) if type_ == TIME else value


def test_there_is_a_table_for_every_payload_and_a_column_for_every_field() -> None:
    assert {t.data_type for t in TABLES} == PAYLOADS.keys()
    for table in TABLES:
        fields = {f.name for f in msgspec.structs.fields(PAYLOADS[table.data_type])}
        kept = {c.source for c in table.columns if c.source}
        assert kept <= fields
        unkept = fields - kept - NOT_KEPT
        assert unkept <= ({"update_type"} if table.data_type == "orderbook" else set()), table.name


@pytest.mark.parametrize("data_type", list(PAYLOADS))
def test_every_field_comes_back_exactly(data_type: str, engine: Engine, layout: Layout) -> None:
    table, payload = BY_DATA_TYPE[data_type], BUILT_OF_TYPE[data_type]
    found, refused = rows_of(payload).arrow()
    assert not refused
    engine.insert(layout.table(table.name), found)
    (row,) = engine.query(f"SELECT * FROM {layout.table(table.name)}").to_pylist()
    fields = msgspec.to_builtins(payload)
    for column in table.stored:
        if column.source in ("bids", "asks"):
            assert msgspec.json.decode(row[column.name]) == fields[column.source]
        elif column.source and column.name != "timestamp":
            assert row[column.name] == told(fields[column.source], column.type), column.name
    event_time = fields["ts_ms"]
    assert row["has_event_time"] == (event_time is not None)
    assert row["timestamp"] == told(event_time or payload.collected_ts_ms, TIME)
    assert (row["event_id"], row["stream_seq"], row["data_source"]) == ("id0", 0, "marketprism")
    assert abs((row["created_at"] - datetime.now(UTC)).total_seconds()) < 60


def test_the_top_of_a_book_and_the_earlier_names(engine: Engine, layout: Layout) -> None:
    for data_type in ("orderbook", "open_interest", "trade", "volatility_index", "funding_rate"):
        engine.insert(
            layout.table(BY_DATA_TYPE[data_type].name), rows_of(BUILT_OF_TYPE[data_type]).arrow()[0]
        )
    (book,) = engine.query(
        "SELECT bids_count, asks_count, best_bid_price, best_bid_quantity, best_ask_price, best_ask_quantity "
        f"FROM {layout.table('orderbooks')}"
    ).to_pylist()
    assert list(book.values()) == [1, 2, *map(Decimal, ("84232.10", "0.5", "84232.2", "1"))]
    earlier = engine.query(
        "SELECT open_interest_value, count, is_maker, maturity_date, funding_time = f.timestamp AS same "
        f"FROM {layout.table('open_interests')} AS o, {layout.table('trades')} AS t, "
        f"{layout.table('volatility_indices')} AS v, {layout.table('funding_rates')} AS f"
    ).to_pylist()
    assert list(earlier[0].values()) == [Decimal(WIDEST), None, True, None, 1]


def test_a_rate_may_have_more_places_than_a_price() -> None:
    """Deribit's rates are binary floats written out: seen with 20 places."""
    rate = "0.00007240372720958078"
    payload = msgspec.structs.replace(BUILT_OF_TYPE["funding_rate"], current_funding_rate=rate)
    found, refused = rows_of(payload).arrow()
    assert not refused
    assert found["funding_rate"][0].as_py() == Decimal(rate)


@settings(deadline=None)
@given(st.from_regex(r"-?[0-9]{1,45}(\.[0-9]{1,45})?([eE][+-]?[0-9]{1,2})?", fullmatch=True))
def test_a_figure_is_exact_or_refused(text: str) -> None:
    found, refused = rows_of(trade(price=text)).arrow()
    figure = Fraction(text)
    assert bool(refused) != (abs(figure) < 10**20 and (figure * 10**18).denominator == 1)
    if not refused:
        assert found["price"][0].as_py() == Decimal(text)


def test_an_empty_side_has_no_best() -> None:
    payload = msgspec.structs.replace(BUILT_OF_TYPE["orderbook"], bids=[])
    (row,) = rows_of(payload).arrow()[0].to_pylist()
    assert (row["bids_count"], row["best_bid_price"], row["best_bid_quantity"]) == (0, None, None)


@pytest.mark.parametrize(
    "price",
    [
        WIDEST,
        f"-{WIDEST}",
        FINEST,
        "0",
        "-0.0",
        "1e5",
        "1E-18",
        "0.10",
        "+1",
        "1.",
        "0.1" + "0" * 40,
        "0" * 40 + "7",
    ],
)
def test_a_figure_that_fits_is_exact(price: str) -> None:
    found, refused = rows_of(trade(price=price)).arrow()
    assert not refused
    assert found["price"][0].as_py() == Decimal(price)


@pytest.mark.parametrize(
    "price",
    [
        "",
        "abc",
        "nan",
        "inf",
        "1" + "0" * 20,
        "0." + "0" * 18 + "1",
        "1,5",
        " 1",
        "0x1",
        "1_0",
        "1e20",
        "1e30",
        "1e9999",
        "9" * 39,
        "-" + "9" * 77,
        "1e-19",
        "1e-9999",
        "\u0661",
        "1.5.5",
        "--1",
        "1e",
        "0" * 5000 + "1",
    ],
)
def test_a_figure_that_does_not_fit_is_told_and_spoils_no_other(price: str) -> None:
    rows = rows_of(trade(1), trade(2, price=price), trade(3))
    found, refused = rows.arrow()
    assert found["trade_id"].to_pylist() == ["1", "3"]
    assert [r.index for r in refused] == [1]
    assert "price" in refused[0].reason
    assert repr(price)[:70] in refused[0].reason


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        encode(BUILT_OF_TYPE["gap"]),
        encode(trade()).replace(b'"sell"', b'"SELL"'),
        encode(trade()).replace(b'"84232.2"', b"84232.2"),
        encode(trade(ts_ms=-1)),
        encode(trade(ts_ms=4_102_444_800_000)),
        encode(trade(ts_ms=None, collected_ts_ms=10**30)),
    ],
)
def test_what_is_no_trade_is_refused_with_a_reason(payload: bytes) -> None:
    assert "expected a trade" in reason_of(payload, "trade")


def reason_of(payload: bytes, data_type: str, identity: str = "id") -> str:
    """Why this message is refused, between two that are not."""
    rows = Rows(BY_DATA_TYPE[data_type])
    good = encode(BUILT_OF_TYPE[data_type])
    for number, (one, its_id) in enumerate([(good, "a"), (payload, identity), (good, "b")]):
        rows.add(one, its_id, number)
    found, (refused,) = rows.arrow()
    assert found["event_id"].to_pylist() == ["a", "b"]
    assert refused.index == 1
    assert "\n" not in refused.reason
    return refused.reason


def test_a_message_without_id_is_refused() -> None:
    assert "Nats-Msg-Id" in reason_of(encode(trade()), "trade", "")


@pytest.mark.parametrize("data_type", ["orderbook", "orderbook_delta"])
@pytest.mark.parametrize("levels", [b'"x"', b"[1]", b'[["1"]]', b'[["1",2]]', b'{"a":1}'])
def test_levels_that_are_none_are_refused(levels: bytes, data_type: str) -> None:
    given = msgspec.structs.replace(BUILT_OF_TYPE[data_type], bids=[])
    payload = encode(given).replace(b'"bids":[]', b'"bids":' + levels)
    assert levels in payload
    assert "expected a orderbook" in reason_of(payload, data_type)


def test_the_best_price_of_a_book_is_a_figure_like_any_other() -> None:
    given = msgspec.structs.replace(BUILT_OF_TYPE["orderbook"], bids=[Level("much", "1")])
    assert "best_bid_price" in reason_of(encode(given), "orderbook")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(max_size=40),
    figure=st.decimals(
        allow_nan=False, allow_infinity=False, places=18, max_value=10**19, min_value=-(10**19)
    ),
    time=st.integers(0, 4_102_444_799_999),
)
def test_whatever_becomes_a_row_the_engine_takes_and_gives_back(
    text: str, figure: Decimal, time: int, embedded: Engine
) -> None:
    """No text of a message reaches the engine as anything but a value."""
    layout = Layout("test_anything", "hot")
    migrate(embedded, layout)
    name = layout.table("trades")
    embedded.command(f"TRUNCATE TABLE {name}")
    rows = Rows(BY_DATA_TYPE["trade"])
    try:
        payload = encode(trade(symbol=text, trade_id=text, price=f"{figure:f}", ts_ms=time))
    except UnicodeEncodeError:  # half a surrogate pair is no text of JSON
        return
    rows.add(payload, text or "x", 1)
    embedded.insert(name, rows.arrow()[0])
    (row,) = embedded.query(f"SELECT * FROM {name} WHERE symbol = {{s:String}}", {"s": text}).to_pylist()
    assert (row["trade_id"], row["event_id"], row["price"]) == (text, text or "x", figure)
    assert row["timestamp"] == datetime.fromtimestamp(time // 1000, UTC).replace(
        microsecond=time % 1000 * 1000
    )


NASTY = (
    "'",
    '"',
    "`",
    "\\",
    "\\'",
    "\\n",
    "\\N",
    "\0",
    "\n",
    "\r\n",
    "\t",
    "{x:String}",
    "'; DROP TABLE trades; --",
    "' OR 1 = 1 --",
    "NULL",
    "%s",
    "é\u202e\U0001f600",
)


@pytest.mark.parametrize("data_type", list(PAYLOADS))
def test_text_through_every_field_is_a_value_and_nothing_else(
    data_type: str, engine: Engine, layout: Layout
) -> None:
    table, payload = BY_DATA_TYPE[data_type], BUILT_OF_TYPE[data_type]
    hints = get_type_hints(type(payload))
    fields = {c.source: c.name for c in table.stored if c.source and hints[c.source] in (str, str | None)}
    texts = {c.source for c in table.stored if c.type in (TEXT, WORD)} & fields.keys()
    assert len(texts) >= 2
    rows = Rows(table)
    for number, nasty in enumerate(NASTY):
        rows.add(encode(msgspec.structs.replace(payload, **dict.fromkeys(texts, nasty))), nasty, number)
    writer, name = Writer(engine, layout), layout.table(table.name)
    columns, refused = rows.arrow()
    first, second = (asyncio.run(writer.store(table, columns)) for _ in range(2))
    writer.close()
    assert (first.inserted, refused, second.inserted) == (len(NASTY), [], 0)
    for number, nasty in enumerate(NASTY):
        asked = f"SELECT * FROM {name} WHERE event_id = {{a:String}} AND symbol = {{b:String}}"
        (row,) = engine.query(asked, {"a": nasty, "b": nasty}).to_pylist()
        assert row["stream_seq"] == number
        assert {row[fields[source]] for source in texts} == {nasty}


# -- schema ----------------------------------------------------------------------------------------------------


def test_migrating_twice_changes_nothing_and_half_a_migration_is_finished(
    engine: Engine, layout: Layout
) -> None:
    assert version(engine, layout) == len(MIGRATIONS)
    assert migrate(engine, layout) == len(MIGRATIONS)
    engine.command(f"TRUNCATE TABLE {layout.table('schema_versions')}")
    engine.command(f"DROP TABLE {layout.local('gaps')}")
    assert migrate(engine, layout) == 0
    assert engine.value(f"SELECT count() FROM {layout.table('gaps')}") == 0


def test_tables_of_another_make_are_left_alone(engine: Engine, layout: Layout) -> None:
    engine.command(f"DROP TABLE {layout.table('schema_versions')}")
    with pytest.raises(EngineError, match="RENAME DATABASE"):
        migrate(engine, layout)


def test_a_newer_database_is_refused(engine: Engine, layout: Layout) -> None:
    engine.command(f"INSERT INTO {layout.table('schema_versions')} (version) VALUES (99)")
    with pytest.raises(EngineError, match="version 99"):
        migrate(engine, layout)


@pytest.mark.parametrize("tier", ["hot", "cold"])
def test_the_engine_can_read_the_statements_of_a_cluster(tier: Any, embedded: Engine) -> None:
    for table in BY_NAME.values():
        local, spread = create_table(table, Layout("marketprism_hot", tier, "ours"))
        for statement, words in (
            (local, ("ReplicatedReplacingMergeTree", "ON CLUSTER")),
            (spread, ("Distributed", "ON CLUSTER")),
        ):
            plain = embedded.value("SELECT formatQuery({sql:String})", {"sql": statement})
            assert all(word in plain for word in words)


def test_a_range_of_one_instrument_is_found_by_the_key(engine: Engine, layout: Layout) -> None:
    payloads = [trade(i, symbol=f"S{i % 20}", ts_ms=NOW_MS + i) for i in range(40_000)]
    engine.insert(layout.table("trades"), rows_of(*payloads).arrow()[0])
    plan = engine.query(
        f"EXPLAIN indexes = 1 SELECT count() FROM {layout.table('trades')} WHERE exchange = 'binance' "
        "AND market_type = 'spot' AND symbol = 'S7' "
        f"AND timestamp >= fromUnixTimestamp64Milli({NOW_MS}) AND timestamp < fromUnixTimestamp64Milli({NOW_MS + 5000})"
    )
    text = "\n".join(plan.column(0).to_pylist())
    by_key = text[text.index("PrimaryKey") :]
    read, all_ = map(int, by_key[by_key.index("Granules:") :].split("\n")[0].split(":")[1].split("/"))
    assert read < all_


# -- writer ----------------------------------------------------------------------------------------------------


def test_what_is_stored_already_is_not_stored_again(engine: Engine, layout: Layout) -> None:
    writer, name = Writer(engine, layout), layout.table("trades")

    def store(numbers: list[int]) -> tuple[int, int]:
        rows = Rows(BY_DATA_TYPE["trade"])
        for number in numbers:
            rows.add(encode(trade(number)), f"trade:{number}", number)
        columns, refused = rows.arrow()
        assert not refused
        stored = asyncio.run(writer.store(rows.table, columns))
        assert stored.of == {("binance", "spot"): len(numbers)}
        return stored.inserted, stored.repeated

    assert store([1, 2, 3, 2, 1]) == (3, 2)
    assert store([3, 4, 50_000, 1]) == (2, 2)
    assert store([3, 4]) == (0, 2)
    assert engine.value(f"SELECT count() FROM {name} SETTINGS final = 0") == 5
    writer.close()


def test_reading_merges_what_lies_twice(engine: Engine, layout: Layout) -> None:
    """Another writer may have been faster than the look at what is stored."""
    name = layout.table("trades")
    for _ in range(2):
        engine.insert(name, rows_of(trade(1), trade(2)).arrow()[0])
    assert engine.value(f"SELECT count() FROM {name} SETTINGS final = 0") in (2, 4)  # 2: merged already
    assert engine.value(f"SELECT count() FROM {name}") == 2


def test_a_change_is_made_only_if_its_guard_holds(engine: Engine, layout: Layout) -> None:
    writer, name = Writer(engine, layout), layout.table("trades")
    engine.insert(name, rows_of(trade(1), trade(2)).arrow()[0])
    guard = f"SELECT toString(count()), max(symbol) FROM {name}"
    drop = f"TRUNCATE TABLE {name}"
    with pytest.raises(ChangedError) as changed:
        asyncio.run(writer.change(drop, {}, guard, ["1", "BTC-USDT"]))
    assert changed.value.found == ["2", "BTC-USDT"]
    assert engine.value(f"SELECT count() FROM {name}") == 2
    asyncio.run(writer.change(drop, {}, guard, ["2", "BTC-USDT"]))
    assert engine.value(f"SELECT count() FROM {name}") == 0
    writer.close()


@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=60, unique=True))
def test_spans_hold_every_time_and_are_few(times: list[int]) -> None:
    spans = _spans(list(times))
    assert len(spans) <= 16
    assert all(sum(a <= t <= b for a, b in spans) == 1 for t in times)
    assert all(a in times and b in times for a, b in spans)


# -- reading only ----------------------------------------------------------------------------------------------


def test_a_reader_changes_nothing(embedded: Engine) -> None:
    reader = embedded.reader()
    for statement in (
        "CREATE DATABASE x",
        "DROP DATABASE system",
        "SET readonly = 0",
        "INSERT INTO FUNCTION file('x.csv') SELECT 1",
    ):
        with pytest.raises(EngineError):
            reader.command(statement)
    assert reader.query("SELECT 1 AS a").to_pylist() == [{"a": 1}]
    reader.close()


@pytest.mark.parametrize("rows", [1, 1_000_000])
def test_a_failed_select_leaves_nothing_to_the_next(rows: int, engine: Engine) -> None:
    """chDB gave its rows, or none, to the next SELECT of the connection."""
    with pytest.raises(EngineError, match="throwIf"):
        engine.query(
            "SELECT throwIf(number = {last:UInt64}) FROM numbers({rows:UInt64})",
            {"last": rows - 1, "rows": rows},
        )
    assert engine.query("SELECT 7 AS a").to_pylist() == [{"a": 7}]


def test_what_keeps_the_engine_small_is_in_force(tmp_path: Path) -> None:
    """In a process of its own: the engine's heap is told how to be once, when its library is loaded."""
    program = """if True:
        import sys
        import pyarrow
        from marketprism.storage.engine import Engine, Target
        engine = Engine(Target(sys.argv[1]))
        print(pyarrow.default_memory_pool().backend_name)
        print(engine.value("SELECT * FROM system.jemalloc_stats"))
        for name in "index_granularity_bytes", "max_parts_to_merge_at_once":
            value = f"SELECT value FROM system.merge_tree_settings WHERE name = '{name}'"
            print(name, engine.value(value))
    """
    ran = subprocess.run(
        [sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True
    )
    told = ran.stdout.splitlines()
    assert told[0] == "system"
    assert "  opt.dirty_decay_ms: 500 (arenas.dirty_decay_ms: 500)" in told
    assert told[-2:] == ["index_granularity_bytes 2097152", "max_parts_to_merge_at_once 16"]
