"""The configuration: what loads, what is refused and in which words, and that no file can do worse."""

# ruff: noqa: E501 (tables of messages)
import dataclasses
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marketprism import config
from marketprism.config import ConfigError, filter_config_by_exchange, load, reference
from marketprism.config import settings as settings_module
from marketprism.config.keys import EFFECTIVE, KEYS, TREE, expand

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "config/collector/unified_data_collection.yaml"
EARLIER = ROOT / "tests/data/earlier_system.yaml"
EXCHANGES = {"binance_spot", "binance_derivatives", "okx_spot", "okx_derivatives", "deribit_derivatives"}
RATIOS = {"lsr_top_position", "lsr_top_account", "lsr_all_account"}


def written(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "c.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def loaded(tmp_path: Path, content: str, **environ: str) -> config.Config:
    return load(written(tmp_path, content), environ)


def problems(tmp_path: Path, content: str | bytes, **environ: str) -> list[str]:
    path = written(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        load(path, environ)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return [line.removeprefix(f"{path}") for line in caught.value.problems]


def okx(tmp_path: Path, body: str) -> list[str]:
    return problems(tmp_path, f"exchanges:\n  okx_spot: {{{body}}}\n")


# --- files that load


def test_the_shipped_file_loads_without_a_warning_and_equals_the_defaults() -> None:
    shipped = load(SHIPPED, {})
    assert shipped.warnings == []
    assert set(shipped.settings.exchanges) == EXCHANGES
    for name, exchange in shipped.settings.exchanges.items():
        offer = config.OFFERS[name]
        assert exchange.data_types == set(offer.data_types)
        assert (exchange.base_url, exchange.ws_url) == (offer.base_url, offer.ws_url)
        assert exchange.symbols == offer.symbols
        if "liquidation" in exchange.data_types:
            assert exchange.liquidation_symbols == offer.symbols
        assert exchange.orderbook.method == "websocket"
        assert exchange.orderbook.depth_limit == (400 if offer.exchange == "okx" else 500)
    storage = config.StorageSettings(
        hot=config.HotSettings(location="var/storage/hot"),
        cold=config.ColdSettings(location="var/storage/cold"),
    )
    defaults = config.Settings(exchanges={}, storage=storage)
    assert dataclasses.replace(shipped.settings, exchanges={}) == defaults


def test_a_file_of_the_earlier_system_loads_unchanged() -> None:
    earlier = load(EARLIER, {})
    other = [w for w in earlier.warnings if " has no effect" not in w]
    assert [w.split(": ", 1)[1] for w in other] == [
        "exchanges.okx_spot.orderbook.depth_limit is more than the 400 levels of OKX; 400 are used"
    ]
    exchanges = earlier.settings.exchanges
    assert set(exchanges) == EXCHANGES
    deribit = exchanges.pop("deribit_derivatives")
    assert deribit.data_types == {"volatility_index"}
    assert deribit.symbols == ("BTC", "ETH")
    assert deribit.volatility_resolution_s == 60
    assert {e.orderbook.method for e in exchanges.values()} == {"snapshot"}
    assert [exchanges[n].orderbook.buffer_max_size for n in ("binance_spot", "okx_derivatives")] == [
        5000,
        2000,
    ]
    assert exchanges["okx_derivatives"].liquidation_symbols == ("BTC-USDT-SWAP", "ETH-USDT-SWAP")
    assert exchanges["binance_derivatives"].orderbook.request_timeout_s == 0.8


def test_the_keys_of_the_earlier_file_without_effect_are_told_with_their_line() -> None:
    earlier = load(EARLIER, {})
    for path, reason in (
        ("networking.websocket.timeout", ""),
        ("clickhouse.password", ": set MARKETPRISM_CLICKHOUSE_USER and MARKETPRISM_CLICKHOUSE_PASSWORD"),
        ("exchanges.okx_spot.orderbook.nats_publish_depth", ": use snapshot_depth"),
        ("nats.max_reconnect_attempts", ": it is always -1, a lost NATS is never given up"),
    ):
        (warning,) = (w for w in earlier.warnings if f" {path} " in f"{w} ")
        where, text = warning.split(": ", 1)
        assert text == f"{path} has no effect{reason}"
        line = int(where.removeprefix(f"{EARLIER}:"))
        assert path.rsplit(".", 1)[1] in EARLIER.read_text().splitlines()[line - 1]


def test_a_key_warns_exactly_if_it_has_no_effect() -> None:
    def leaves(value: Any, path: str = "") -> Any:
        if isinstance(value, dict):
            for key, below in value.items():
                yield from leaves(below, f"{path}.{key}" if path else key)
        else:
            yield path

    earlier = load(EARLIER, {})
    told = {w.split(": ", 1)[1].split(" ", 1)[0] for w in earlier.warnings if " has no effect" in w}
    effective = {path for key in EFFECTIVE for path in expand(key.path)}
    assert told.isdisjoint(effective)
    silent = set(leaves(earlier.raw)) - told - effective
    assert silent == {path for path in silent if "fixed" in repr(_key_at(path).kind.note)}


def _key_at(path: str) -> Any:
    branch: Any = TREE
    for name in path.split("."):
        branch = branch.child(name)
    return branch.key


def test_an_almost_empty_file_gets_the_defaults(tmp_path: Path) -> None:
    got = loaded(tmp_path, "exchanges: {okx_derivatives: }").settings
    exchange = got.exchanges["okx_derivatives"]
    assert exchange.symbols == ("BTC-USDT-SWAP", "ETH-USDT-SWAP")
    assert exchange.intervals_s["funding_rate"] == 30
    assert {exchange.intervals_s[t] for t in RATIOS} == {20}
    assert exchange.intervals_s["volatility_index"] == 60
    assert (exchange.lsr_period, exchange.lsr_limit) == ("5m", 30)
    assert exchange.orderbook == config.OrderBookSettings(depth_limit=400, buffer_max_size=2000)
    assert (got.health_port, got.metrics_port, got.bind_host) == (8087, 9092, "127.0.0.1")
    assert got.nats == config.NatsSettings()
    assert {name: (m.soft_mb, m.hard_mb) for name, m in got.memory.items()} == {
        "okx_derivatives": (150, 200),
        "okx_spot": (120, 160),
        "binance_derivatives": (100, 140),
        "binance_spot": (80, 120),
        "deribit_derivatives": (60, 100),
    }


# What each key sets, where its place among the settings does not follow from the table alone.
CHANGES: list[tuple[str, str, Any, Any]] = [
    ("system.logging.level", "log_level", "debug", "DEBUG"),
    ("exchanges.okx_spot.api.base_url", "exchanges.okx_spot.base_url", "http://127.0.0.1:9/", "http://127.0.0.1:9"),
    ("exchanges.okx_spot.api.ws_url", "exchanges.okx_spot.ws_url", "ws://127.0.0.1:9/x", "ws://127.0.0.1:9/x"),
    ("exchanges.okx_spot.symbols", "exchanges.okx_spot.symbols", ["SOL-USDC"], ("SOL-USDC",)),
    ("exchanges.okx_spot.data_types", "exchanges.okx_spot.data_types", ["trade"], frozenset({"trade"})),
    ("exchanges.okx_spot.memory.soft_mb", "memory.okx_spot.soft_mb", 50, 50),
    ("exchanges.okx_spot.memory.hard_mb", "memory.okx_spot.hard_mb", 500, 500),
    ("exchanges.okx_spot.orderbook.method", "exchanges.okx_spot.orderbook.method", "snapshot", "snapshot"),
    ("exchanges.okx_spot.orderbook.depth_limit", "exchanges.okx_spot.orderbook.depth_limit", 50, 50),
    ("exchanges.okx_spot.orderbook.snapshot_interval", "exchanges.okx_spot.orderbook.snapshot_interval_s", 2, 2.0),
    ("exchanges.okx_spot.orderbook.snapshot_depth", "exchanges.okx_spot.orderbook.snapshot_depth", 5, 5),
    ("exchanges.binance_spot.orderbook.update_frequency", "exchanges.binance_spot.orderbook.update_frequency_ms", 1000, 1000),
    ("exchanges.okx_spot.orderbook.checkpoint_interval", "exchanges.okx_spot.orderbook.checkpoint_interval_s", 60, 60.0),
    ("exchanges.okx_spot.orderbook.audit_interval", "exchanges.okx_spot.orderbook.audit_interval_s", 0, 0.0),
    ("exchanges.okx_spot.orderbook.buffer_max_size", "exchanges.okx_spot.orderbook.buffer_max_size", 123, 123),
    ("exchanges.okx_spot.orderbook.request_timeout", "exchanges.okx_spot.orderbook.request_timeout_s", 0.5, 0.5),
    ("exchanges.okx_spot.orderbook.rest_base", "exchanges.okx_spot.orderbook.rest_base", "http://h", "http://h"),
    ("exchanges.deribit_derivatives.volatility_index.resolution", "exchanges.deribit_derivatives.volatility_resolution_s", 3600, 3600),
    ("data_types.volatility_index.api_config.resolution", "exchanges.deribit_derivatives.volatility_resolution_s", "1D", 86400),
    ("data_types.open_interest.interval", "exchanges.okx_spot.intervals_s.open_interest", 7, 7.0),
    ("data_types.lsr_all_account.api_config.period", "exchanges.okx_spot.lsr_period", "1h", "1h"),
    ("data_types.lsr_top_account.api_config.limit", "exchanges.okx_spot.lsr_limit", 5, 5),
    ("data_types.liquidation.symbols", "exchanges.okx_derivatives.liquidation_symbols", [], ()),
    ("data_types.trade.enabled", "exchanges.okx_spot.data_types", False, frozenset({"orderbook"})),
    ("nats.servers", "nats.servers", ["tls://a:1", "nats://b"], ("tls://a:1", "nats://b")),
    ("nats.client_name", "nats.client_name", "me", "me"),
    ("nats.reconnect_time_wait", "nats.reconnect_time_wait_s", 0.5, 0.5),
    ("nats.creds_file", "nats.creds_file", __file__, Path(__file__)),
    ("nats.nkey_seed_file", "nats.nkey_seed_file", __file__, Path(__file__)),
    ("nats.tls.ca_file", "nats.tls.ca_file", __file__, Path(__file__)),
    ("nats.tls.cert_file", "nats.tls.cert_file", __file__, Path(__file__)),
    ("nats.tls.handshake_first", "nats.tls.handshake_first", True, True),
    ("nats.publish.timeout", "nats.publish.ack_timeout_s", 3, 3.0),
    ("nats.publish.max_pending", "nats.publish.max_pending", 10, 10),
    ("nats.publish.buffer_bytes", "nats.publish.buffer_bytes", 2**21, 2**21),
    ("nats.jetstream.streams.MARKET_DATA.max_msgs", "nats.stream.max_msgs", -1, -1),
    ("nats.jetstream.streams.MARKET_DATA.max_bytes", "nats.stream.max_bytes", 2**21, 2**21),
    ("nats.jetstream.streams.MARKET_DATA.max_age", "nats.stream.max_age_s", 0, 0),
    ("nats.jetstream.streams.MARKET_DATA.max_consumers", "nats.stream.max_consumers", 5, 5),
    ("nats.jetstream.streams.MARKET_DATA.replicas", "nats.stream.replicas", 3, 3),
    ("nats.jetstream.streams.MARKET_DATA.storage", "nats.stream.storage", "memory", "memory"),
    ("nats.jetstream.streams.MARKET_DATA.duplicate_window", "nats.stream.duplicate_window_s", 60, 60),
    ("monitoring.bind_host", "bind_host", "0.0.0.0", "0.0.0.0"),
    ("monitoring.health_check.port", "health_port", 0, 0),
    ("monitoring.metrics.port", "metrics_port", 1234, 1234),
    ("monitoring.actions_token_file", "actions_token_file", __file__, Path(__file__)),
    ("storage.enabled", "storage.enabled", True, True),
    ("storage.hot.location", "storage.hot.location", "http://h:8123", "http://h:8123"),
    ("storage.hot.cluster", "storage.hot.cluster", "c", "c"),
    ("storage.hot.port", "storage.hot.port", 1, 1),
    ("storage.hot.retention_days", "storage.hot.retention_days", 9, 9),
    ("storage.hot.batch.rows", "storage.hot.batch.rows", 5, 5),
    ("storage.hot.batch.bytes", "storage.hot.batch.bytes", 2**17, 2**17),
    ("storage.hot.batch.seconds", "storage.hot.batch.seconds", 3, 3.0),
    ("storage.hot.memory.soft_mb", "storage.hot.memory.soft_mb", 500, 500),
    ("storage.hot.memory.hard_mb", "storage.hot.memory.hard_mb", 1000, 1000),
    ("storage.cold.enabled", "storage.cold.enabled", False, False),
    ("storage.cold.location", "storage.cold.location", "/srv/cold", "/srv/cold"),
    ("storage.cold.cluster", "storage.cold.cluster", "c", "c"),
    ("storage.cold.port", "storage.cold.port", 1, 1),
    ("storage.cold.delay_minutes", "storage.cold.delay_minutes", 0, 0),
    ("storage.cold.memory.soft_mb", "storage.cold.memory.soft_mb", 500, 500),
    ("storage.cold.memory.hard_mb", "storage.cold.memory.hard_mb", 1000, 1000),
    ("recording.enabled", "recording.enabled", True, True),
    ("recording.directory", "recording.directory", "/tmp/x", Path("/tmp/x")),
    ("recording.compression", "recording.compression", "gzip", "gzip"),
    ("recording.rotate_mb", "recording.rotate_mb", 1, 1),
    ("recording.rotate_minutes", "recording.rotate_minutes", 5, 5),
]  # fmt: skip


def _put(document: dict[str, Any], path: str, value: Any) -> None:
    *sections, leaf = path.split(".")
    for name in sections:
        document = document.setdefault(name, {})
    document[leaf] = value


def _at(value: Any, path: str) -> Any:
    for name in path.split("."):
        value = value[name] if isinstance(value, dict) else getattr(value, name)
    return value


@pytest.mark.parametrize(("path", "setting", "value", "expected"), CHANGES, ids=[c[0] for c in CHANGES])
def test_a_key_sets_its_setting(tmp_path: Path, path: str, setting: str, value: Any, expected: Any) -> None:
    document: dict[str, Any] = {"exchanges": {name: {} for name in EXCHANGES}}
    _put(document, path, value)
    assert _at(loaded(tmp_path, yaml.safe_dump(document)).settings, setting) == expected


def test_every_key_with_effect_is_tried_above() -> None:
    elsewhere = {
        "exchanges.<exchange>.enabled",
        "exchanges.<exchange>.exchange",
        "exchanges.<exchange>.market_type",
        "nats.tls.key_file",
        "nats.jetstream.streams.MARKET_DATA.subjects",
    }
    tried = {path for path, *_ in CHANGES}
    assert {k.path for k in EFFECTIVE if tried.isdisjoint(expand(k.path))} == elsewhere


def test_the_table_sets_only_fields_that_exist() -> None:
    for key in EFFECTIVE:
        if key.sets:
            name, field = key.sets.split(".")
            assert field in {f.name for f in dataclasses.fields(getattr(settings_module, name))}


def test_no_key_stands_twice_in_the_table() -> None:
    paths = [path for key in KEYS for path in expand(key.path)]
    assert len(paths) == len(set(paths))


@pytest.mark.parametrize(
    ("location", "environ", "found"),
    [
        ("x", {}, "var/storage/x"),
        ("x", {"MARKETPRISM_STATE_DIR": "/var/lib/marketprism"}, "/var/lib/marketprism/x"),
        ("/srv/x", {"MARKETPRISM_STATE_DIR": "/var/lib/marketprism"}, "/srv/x"),
        ("https://h", {"MARKETPRISM_STATE_DIR": "/var/lib/marketprism"}, "https://h"),
    ],
)
def test_a_store_s_folder_is_part_of_the_folder_for_state(
    tmp_path: Path, location: str, environ: dict[str, str], found: str
) -> None:
    text = yaml.safe_dump(
        {"exchanges": {"okx_spot": {}}, "storage": {t: {"location": location} for t in ("hot", "cold")}}
    )
    got = loaded(tmp_path, text, **environ).settings.storage
    assert (got.hot.location, got.cold.location) == (found, found)


def test_a_disabled_exchange_has_no_settings(tmp_path: Path) -> None:
    got = loaded(tmp_path, "exchanges: {okx_spot: {enabled: false}, binance_spot: {}}")
    assert set(got.settings.exchanges) == {"binance_spot"}
    assert "exchanges: expected at least one enabled exchange" in okx(tmp_path, "enabled: false")[0]


def test_a_deprecated_key_works_and_warns(tmp_path: Path) -> None:
    got = loaded(tmp_path, "exchanges:\n  okx_spot:\n    orderbook: {rest_base: 'https://h'}\n")
    (warning,) = got.warnings
    assert warning.endswith(
        "c.yaml:3: exchanges.okx_spot.orderbook.rest_base is deprecated, use api.base_url"
    )


def test_the_stream_covers_every_type_and_takes_more_subjects(tmp_path: Path) -> None:
    stream = "exchanges: {okx_spot: }\nnats: {jetstream: {streams: {MARKET_DATA: {subjects: %s}}}}"
    own = config.StreamSettings().subjects
    assert len(own) == len(config.PUBLISHED_TYPES) == 11
    got = loaded(tmp_path, stream % "[trade.okx.>, mine.*, mine.one, mine.a.b]").settings
    assert got.nats.stream.subjects == (*own, "mine.*", "mine.a.b")
    for wide in (">", "*.okx.>", "*.okx"):
        (line,) = problems(tmp_path, stream % f"['{wide}']")
        assert f"got '{wide}' which overlaps 'orderbook.>'" in line


def test_merge_keys_and_anchors_work(tmp_path: Path) -> None:
    text = """
exchanges:
  okx_spot:
    orderbook: &book {snapshot_depth: 7, snapshot_interval: 3}
  okx_derivatives:
    orderbook: {<<: *book, snapshot_depth: 9}
"""
    book = loaded(tmp_path, text).settings.exchanges["okx_derivatives"].orderbook
    assert (book.snapshot_depth, book.snapshot_interval_s) == (9, 3)


# --- files that do not load: one line each, all at once


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("enabled: 'yes'", "enabled: expected true or false, got the text 'yes'"),
        ("enabled: 1", "enabled: expected true or false, got 1"),
        ("symbols: BTC-USDT", "symbols: expected a list of symbols, each an OKX instId such as BTC-USDT, got 'BTC-USDT'"),
        ("symbols: []", "symbols: expected a list of symbols, each an OKX instId such as BTC-USDT, got an empty list"),
        ("symbols: ", "symbols: expected a list of symbols, each an OKX instId such as BTC-USDT, got nothing"),
        ("symbols: [BTC-USDT, BTC-USDT]", "symbols[2]: expected each once, got 'BTC-USDT' a second time"),
        ("symbols: [btc/usdt]", "symbols[1]: expected an OKX instId such as BTC-USDT, got 'btc/usdt'; did you mean 'BTC-USDT'?"),
        ("symbols: [BTC-USDT-SWAP]", "got 'BTC-USDT-SWAP'; did you mean 'BTC-USDT'?"),
        ("symbols: [12]", "got 12, which is not text"),
        ("data_types: [trades]", "data_types[1]: expected one of orderbook, trade, got 'trades'; did you mean 'trade'?"),
        ("data_types: [funding_rate]", "expected one of orderbook, trade, got 'funding_rate'; okx_spot does not offer it"),
        ("data_types: [trade, trade]", "data_types[2]: expected each once"),
        ("market_type: perpetual", "market_type: expected spot, got 'perpetual'"),
        ("exchange: binance", "exchange: expected one of okx_spot, okx, got 'binance'"),
        ("depth: 5", "got 'depth'"),
        ("snapshot_depth: 5", "got 'snapshot_depth'; did you mean 'exchanges.<exchange>.orderbook.snapshot_depth'?"),
        ("orderbook: 5", "orderbook: expected a section with keys of its own, got 5"),
        ("orderbook: {depht_limit: 5}", "orderbook.depht_limit: expected a known key, got 'depht_limit'; did you mean 'depth_limit'?"),
        ("orderbook: {depth_limit: true}", "depth_limit: expected a whole number from 1 to 400, got 'true'"),
        ("orderbook: {depth_limit: '5'}", "expected a whole number from 1 to 400, got the text '5'"),
        ("orderbook: {depth_limit: 0}", "got 0"),
        ("orderbook: {snapshot_depth: 500}", "snapshot_depth: expected a whole number from 1 to 400, got 500"),
        ("orderbook: {snapshot_interval: 0}", "expected a number of seconds from 0.05 to 86400, got 0"),
        ("orderbook: {snapshot_interval: -1.5}", "got -1.5"),
        ("orderbook: {snapshot_interval: .nan}", "got nan"),
        ("orderbook: {snapshot_interval: .inf}", "got inf"),
        ("orderbook: {snapshot_interval: [1]}", "got a list"),
        ("orderbook: {update_frequency: 50}", "update_frequency: expected 100, got 50"),
        ("orderbook: {method: websockets}", "expected one of websocket, snapshot, got 'websockets'; did you mean 'websocket'?"),
        ("api: {base_url: 'ftp://x'}", "api.base_url: expected a URL such as https://host, got 'ftp://x'"),
        ("api: {base_url: 'wss://x'}", "got 'wss://x'"),
        ("api: {ws_url: 'https://x'}", "api.ws_url: expected a URL such as wss://host/path, got 'https://x'"),
        ("api: {ws_url: 'wss://'}", "got 'wss://'"),
        ("api: {ws_url: 'wss://h:99999'}", "got 'wss://h:99999'"),
        ("memory: {soft_mb: 200}", "memory.hard_mb: expected more than soft_mb (200), got 160"),
    ],
)  # fmt: skip
def test_a_bad_value_of_an_exchange_is_one_clear_line(tmp_path: Path, body: str, expected: str) -> None:
    (line,) = okx(tmp_path, body)
    assert line.startswith(":2: exchanges.okx_spot.")
    assert expected in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("exchanges: {okx_spto: {}}", ":1: exchanges.okx_spto: expected one of binance_spot, binance_derivatives,"),
        ("exchanges: {okx_spto: {}}", "got 'okx_spto'; did you mean 'okx_spot'?"),
        ("exchanges: []", ":1: exchanges: expected a section with one of binance_spot"),
        ("nats: {}", ": exchanges: expected at least one enabled exchange"),
        ("exchanges: {okx_spot: }\nexchange: {}", "exchange: expected a known key, got 'exchange'; did you mean 'exchanges'?"),
        ("exchanges: {binance_derivatives: {orderbook: {depth_limit: 5000}}}", "from 1 to 1000, got 5000"),
        ("exchanges: {binance_spot: {symbols: [BTC-USDT]}}", "did you mean 'BTCUSDT'?"),
        ("exchanges: {okx_derivatives: {symbols: [BTC-USDT]}}", "did you mean 'BTC-USDT-SWAP'?"),
        ("exchanges: {deribit_derivatives: {symbols: [BTCUSDT]}}", "or a currency such as BTC, got 'BTCUSDT'"),
        ("exchanges: {deribit_derivatives: {data_types: [lsr_all_account]}}", "deribit_derivatives does not offer it"),
        ("exchanges: {okx_spot: }\nmonitoring: {metrics: {port: 8087}}", ":2: monitoring.metrics.port: expected another port"),
        ("exchanges: {okx_spot: }\ndata_types: {funding_rate: {interval: 0}}", "from 1 to 86400, got 0"),
        ("exchanges: {okx_spot: }\ndata_types: {fundingrate: }", "did you mean 'funding_rate'?"),
        ("exchanges: {deribit_derivatives: }\ndata_types: {liquidation: {symbols: [BTCUSDT]}}",
         ":2: data_types.liquidation.symbols: expected a symbol of deribit_derivatives"),
        ("exchanges: {okx_spot: {data_types: [trade]}}\ndata_types: {trade: {enabled: false}}",
         ":1: exchanges.okx_spot.data_types: expected a data type that"),
        ("exchanges: {okx_spot: }\ndata_types: {lsr_top_account: {api_config: {period: 1h}}, lsr_all_account: {api_config: {period: 5m}}}",
         "(all ratios have the same), got 5m"),
        ("exchanges: {okx_spot: }\nnats: {jetstream: {streams: {MARKET_DATA: {max_age: 60}}}}",
         "MARKET_DATA.duplicate_window: expected at most max_age (60 s), got 120"),
        ("exchanges: {okx_spot: }\nnats: {jetstream: {streams: {MARKET: }}}", "did you mean 'MARKET_DATA'?"),
        ("exchanges: {okx_spot: }\nnats: {tls: {ca_file: /nowhere/ca.pem}}",
         ":2: nats.tls.ca_file: expected the path of a readable file, got '/nowhere/ca.pem'; no such file or directory"),
        ("exchanges: {okx_spot: }\nnats: {creds_file: /}", "got '/'; it is not a regular file"),
        ("exchanges: {okx_spot: }\nsystem: {logging: {level: LOUD}}", "expected one of DEBUG, INFO, WARNING"),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_clear_line(tmp_path: Path, text: str, expected: str) -> None:
    (line,) = problems(tmp_path, text)
    assert expected in line


def test_all_problems_are_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = """
nats:
  servers: nats://h
exchanges:
  okx_spot:
    enabled: maybe
    symbols: [x, BTC-USDT]
    symbols: [ETH-USDT]
  okx: {}
monitor: {}
"""
    lines = problems(tmp_path, text)
    assert [line.split(": ")[0] for line in lines] == [":3", ":6", ":7", ":8", ":9", ":10"]
    assert "exchanges.okx_spot.symbols: expected each key once, got it a second time" in lines[3]


def test_a_bad_value_does_not_cause_a_second_complaint(tmp_path: Path) -> None:
    assert len(okx(tmp_path, "memory: {soft_mb: 500, hard_mb: much}")) == 1
    assert len(okx(tmp_path, "data_types: [trad]")) == 1


def test_there_is_an_end_to_the_list_of_problems(tmp_path: Path) -> None:
    lines = problems(tmp_path, "".join(f"k{i}: 1\n" for i in range(5000)))
    assert lines[-1] == ": more than 200 problems"


# --- files that cannot be read


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", ": the file is empty"),
        (b"# only a comment\n", ": the file is empty"),
        (b"---\n...\n", ": the file is empty"),
        (b"just text", ":1: expected sections such as `exchanges:`"),
        (b"- a\n- b\n", ":1: expected sections such as `exchanges:`"),
        (b"a: 1\nb: \xff\n", ":2: expected UTF-8 text"),
        ("exchanges: {}".encode("utf-16"), ":1: expected UTF-8 text"),
        (b"a: \x00\n", ": invalid YAML: unacceptable character"),
        (b"a: 1\n b: 2\n", ":2: invalid YAML: mapping values are not allowed here"),
        (b"a:\n\t- 1\n", ":2: invalid YAML: found character"),
        (b"a: [1\n", ":2: invalid YAML: expected ',' or ']'"),
        (b"a: 1\n---\nb: 2\n", ":2: invalid YAML: but found another document"),
        (b"password: *hunter2\n", ":1: invalid YAML: found undefined alias"),
        (b"a: " + b"[" * 2000, ": expected at most 32 levels of nesting"),
        (b"a: 1\n" + b"#" * 2**20, ": expected at most 1048576 bytes"),
        (b"a: &a [*a]\n", ":1: expected a small document, got aliases that multiply without end"),
        (b"exchanges: !!python/object:os.system {}\n", ":1: exchanges: expected plain YAML, got the tag"),
        (b"system: {name: !!float x}\n", ":1: system.name: expected plain YAML, got the tag"),
        (b"system: {name: 2024-13-45}\n", ":1: system.name: expected a value, got an impossible number or date"),
        (b"system: {name: 1%s}\n" % (b":59" * 100_000), "got an impossible number or date"),
        (b"system: {1: x}\n", ":1: system: expected a text key"),
        (b"system: {[a]: x}\n", ":1: system: expected a text key"),
        (b"exchanges: {okx_spot: }\nsystem: {<<: 5}\n", ":2: system: expected sections to merge after `<<:`"),
    ],
)  # fmt: skip
def test_an_unreadable_file_is_one_clear_line(tmp_path: Path, content: bytes, expected: str) -> None:
    lines = problems(tmp_path, content)
    assert any(expected in line for line in lines)
    assert "hunter2" not in str(lines)


def test_aliases_that_multiply_end_soon(tmp_path: Path) -> None:
    bomb = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    bomb += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    assert "aliases that multiply" in problems(tmp_path, "\n".join(bomb))[-1]
    merges = ["a0: &a0 {}", *(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 12))]
    assert "aliases that multiply" in problems(tmp_path, "\n".join(merges))[-1]


def test_a_path_that_is_no_file(tmp_path: Path) -> None:
    for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "none.yaml", "No such file or directory")):
        with pytest.raises(ConfigError) as caught:
            load(path, {})
        assert caught.value.problems == [f"{path}: cannot read the configuration: {reason}"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    path = written(tmp_path, "exchanges: {}")
    path.chmod(0)
    with pytest.raises(ConfigError, match="Permission denied"):
        load(path, {})


# --- credentials

ONE = "exchanges: {okx_spot: }\n"


@pytest.mark.parametrize(
    "nats",
    [
        "password: hunter2",
        "token: hunter2",
        "user: hunter2",
        "nkey_seed: hunter2",
        "servers: ['nats://me:hunter2@h:4222']",
        "servers: ['nats://hunter2@h:4222']",
        "servers: ['nats://me:hun/hunter2@h:4222']",
        "servers: 'nats://me:hunter2@h:4222'",
        "client_name: 'x//me:hunter2@h y'",
    ],
)
def test_a_secret_in_the_file_is_refused_and_never_shown(tmp_path: Path, nats: str) -> None:
    (line,) = problems(tmp_path, f"{ONE}nats: {{{nats}}}")
    assert line.startswith(":2: nats.")
    assert "hunter2" not in line
    if "servers" not in nats and "client_name" not in nats:
        assert "; set MARKETPRISM_NATS_" in line or "; put it into a file" in line


def test_credentials_in_a_server_url_say_where_they_belong(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, f"{ONE}nats: {{servers: ['nats://me:hunter2@h']}}")
    assert "got a URL with credentials; put them into MARKETPRISM_NATS_USER" in line


def test_the_environment_goes_before_the_file_and_its_secrets_stay_out_of_repr(tmp_path: Path) -> None:
    text = f"{ONE}nats: {{servers: ['nats://file:1']}}"
    assert loaded(tmp_path, text, NATS_URL="nats://b:2").settings.nats.servers == ("nats://b:2",)
    url = "nats://me:p%40ss@a:1, nats://me:p%40ss@b:2"
    got = loaded(tmp_path, text, NATS_URL="nats://x:3", MARKETPRISM_NATS_URL=url)
    nats = got.settings.nats
    assert nats.servers == ("nats://a:1", "nats://b:2")
    assert (nats.user, nats.password) == ("me", "p@ss")
    assert "p@ss" not in repr(got)
    assert "p%40ss" not in repr(got)
    assert loaded(tmp_path, text, NATS_URL="nats://tok@b").settings.nats.token == "tok"
    given = {"MARKETPRISM_NATS_USER": "u", "MARKETPRISM_NATS_PASSWORD": "secret"}
    nats = loaded(tmp_path, text, **given).settings.nats
    assert (nats.user, nats.password, nats.servers) == ("u", "secret", ("nats://file:1",))
    assert loaded(tmp_path, text, MARKETPRISM_NATS_TOKEN="t").settings.nats.token == "t"


def test_problems_of_the_environment(tmp_path: Path) -> None:
    for environ, expected in (
        ({"NATS_URL": "h:4222"}, "environment: NATS_URL: expected a URL such as nats://127.0.0.1:4222, got 'h:4222'"),
        ({"NATS_URL": "http://u:pw@h"}, "environment: NATS_URL: expected a URL such as nats://127.0.0.1:4222, got 'http://***@h'"),
        ({"NATS_URL": "nats://a@h,nats://b@h"}, "environment: NATS_URL: expected the same credentials in every URL, got several"),
        ({"MARKETPRISM_NATS_USER": "u"}, "environment: MARKETPRISM_NATS_USER: expected MARKETPRISM_NATS_PASSWORD with it"),
        ({"MARKETPRISM_NATS_PASSWORD": "u"}, "environment: MARKETPRISM_NATS_USER: expected MARKETPRISM_NATS_PASSWORD with it"),
        ({"MARKETPRISM_BIND_HOST": "a b"}, "environment: MARKETPRISM_BIND_HOST: expected an address such as 127.0.0.1, got 'a b'"),
    ):  # fmt: skip
        (line,) = problems(tmp_path, ONE, **environ)
        assert line.startswith(expected)
    assert loaded(tmp_path, ONE, MARKETPRISM_BIND_HOST="0.0.0.0").settings.bind_host == "0.0.0.0"


def test_only_one_way_to_log_in(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, f"{ONE}nats: {{creds_file: {__file__}}}", MARKETPRISM_NATS_TOKEN="t")
    assert line == ": nats: expected one way to log in, got token, creds_file; keep one"


def test_systemd_credentials(tmp_path: Path) -> None:
    assert loaded(tmp_path, ONE, CREDENTIALS_DIRECTORY=str(tmp_path)).settings.nats.creds_file is None
    (tmp_path / "nats.creds").write_text("seed")
    nats = loaded(tmp_path, ONE, CREDENTIALS_DIRECTORY=str(tmp_path)).settings.nats
    assert nats.creds_file == tmp_path / "nats.creds"
    given = {"CREDENTIALS_DIRECTORY": str(tmp_path), "MARKETPRISM_NATS_TOKEN": "t"}
    assert loaded(tmp_path, ONE, **given).settings.nats.creds_file is None


def test_tls(tmp_path: Path) -> None:
    assert loaded(tmp_path, ONE).settings.nats.tls is None
    assert loaded(tmp_path, ONE, NATS_URL="tls://h").settings.nats.tls == config.TlsSettings()
    both = f"{ONE}nats: {{tls: {{cert_file: {__file__}, key_file: {__file__}}}}}"
    tls = loaded(tmp_path, both).settings.nats.tls
    assert tls == config.TlsSettings(cert_file=Path(__file__), key_file=Path(__file__))
    (line,) = problems(tmp_path, f"{ONE}nats: {{tls: {{key_file: {__file__}}}}}")
    assert line == ":2: nats.tls.key_file: expected cert_file with it, got none"


# --- one exchange of many


@pytest.mark.parametrize("name", sorted(EXCHANGES))
@pytest.mark.parametrize("path", [SHIPPED, EARLIER], ids=["shipped", "earlier"])
def test_a_filtered_file_loads_as_that_exchange(tmp_path: Path, path: Path, name: str) -> None:
    whole = load(path, {})
    before = yaml.safe_dump(whole.raw)
    one = filter_config_by_exchange(whole.raw, name)
    assert one.keys() == whole.raw.keys()
    got = loaded(tmp_path, yaml.safe_dump(one)).settings
    assert got.exchanges == {name: whole.settings.exchanges[name]}
    one["exchanges"][name]["symbols"].append("X")
    one["nats"]["servers"].append("X")
    assert yaml.safe_dump(whole.raw) == before


def test_filtering_by_an_unknown_exchange_names_the_known() -> None:
    document: dict[str, Any] = {"exchanges": {"okx_spot": {}, "binance_spot": {}}}
    with pytest.raises(ConfigError) as caught:
        filter_config_by_exchange(document, "okx_sport")
    expected = "exchange: expected one of okx_spot, binance_spot, got 'okx_sport'; did you mean 'okx_spot'?"
    assert caught.value.problems == [expected]
    for broken in ({}, {"exchanges": None}, {"exchanges": ["okx_spot"]}):
        with pytest.raises(ConfigError, match="expected a configuration with exchanges"):
            filter_config_by_exchange(broken, "okx_spot")


def test_the_default_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MARKETPRISM_CONFIG", raising=False)
    assert config.default_path() == Path("config/collector/unified_data_collection.yaml")
    monkeypatch.setenv("MARKETPRISM_CONFIG", "/etc/x.yaml")
    assert config.default_path() == Path("/etc/x.yaml")


# --- the operator's page


def test_the_page_holds_the_tables_as_the_code_writes_them() -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    tables = page.partition(reference.BEGIN)[2].partition(reference.END)[0].strip()
    assert tables == reference.markdown(), "python -m marketprism.config.reference writes the tables"
    assert all(f"`{key.path}`" in tables for key in KEYS)


def test_the_messages_on_the_page_are_what_comes_out(tmp_path: Path) -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    shown = [line for line in page.splitlines() if line.startswith("my.yaml:")]
    text = "\n" * 9 + (
        "exchanges:\n  okx_spot:\n    symbols: [BTC-USDT, ETH-USDT-SWAP]\n\n"
        "    data_types: [trade, orderbook, funding_rate]\n    orderbook:\n      depht_limit: 400\n"
    )
    assert [f"my.yaml{line}" for line in problems(tmp_path, text)] == shown


def test_the_small_file_on_the_page_loads(tmp_path: Path) -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    small = page.partition("```yaml\n")[2].partition("```")[0]
    assert set(loaded(tmp_path, small).settings.exchanges) == {"okx_spot"}


# --- whatever the file holds: a Config, or one line a problem

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.dates(),
    st.binary(max_size=5),
    st.sampled_from(
        ["BTCUSDT", "BTC-USDT", "trade", "snapshot", "nats://h", "https://h", "", "/", "\ud800", "a\nb"]
    ),
)
NAMES = sorted({part for key in KEYS for path in expand(key.path) for part in path.split(".")})
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.sampled_from(NAMES), st.text(max_size=9)), inner, max_size=4),
    ),
    max_leaves=12,
)
PATHS = sorted({path for key in KEYS for path in expand(key.path)})


def check(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "c.yaml"
        path.write_bytes(content)
        try:
            got = load(path, {})
        except ConfigError as error:
            lines = error.problems or [""]
        else:
            assert got.settings.exchanges
            lines = got.warnings
        for line in lines:
            assert line.startswith(str(path))
            assert line.removeprefix(str(path)).isprintable()
            assert len(line) < 1000


@given(st.binary(max_size=200))
def test_any_bytes(content: bytes) -> None:
    check(content)


@given(st.text(alphabet="ab:-[]{}&*!|>'\"%@`#?,<= \n\t019.~exchanges", max_size=120))
def test_any_text(text: str) -> None:
    check(text.encode())


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PATHS), ANYTHING), max_size=6), ANYTHING)
def test_any_values_under_known_keys(changes: list[tuple[str, Any]], more: Any) -> None:
    document: dict[str, Any] = {"exchanges": {"okx_spot": {}}, "more": more}
    if not isinstance(more, dict | list):
        del document["more"]
    for path, value in changes:
        try:
            _put(document, path, value)
        except (TypeError, AttributeError):  # a scalar already stands where a section should
            continue
    check(yaml.dump(document, allow_unicode=False).encode("utf-8", "surrogatepass"))


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(PATHS), SCALARS)
def test_one_value_changed_in_a_good_file(path: str, value: Any) -> None:
    document = yaml.safe_load(SHIPPED.read_text())
    _put(document, path, value)
    check(yaml.dump(document).encode("utf-8", "surrogatepass"))
