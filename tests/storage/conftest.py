"""chDB opens one directory a process: one engine for all tests of a process, and a database for each test."""

import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from storedbook import Stored

from marketprism.storage.engine import Engine, Target
from marketprism.storage.schema import TABLES, Layout, migrate

pytest.importorskip("chdb", reason="storage needs the extra: pip install 'marketprism[embedded]'")
SERVER = "MARKETPRISM_TEST_CLICKHOUSE_URL"
_numbers = count(1)


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = Engine(Target(str(tmp_path_factory.mktemp("engine"))))
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def server() -> Iterator[Engine]:
    url = os.environ.get(SERVER)
    if not url:
        pytest.skip(f"no ClickHouse server: set {SERVER}")
    user, password = (os.environ.get(f"MARKETPRISM_CLICKHOUSE_{name}", "") for name in ("USER", "PASSWORD"))
    engine = Engine(Target(url, user, password))
    yield engine
    engine.close()


@pytest.fixture(params=["embedded", "server"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each kind of engine there is."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def layout(engine: Engine) -> Iterator[Layout]:
    """A database of this test's own, with the hot tables."""
    layout = Layout(f"test_{os.getpid()}_{next(_numbers)}", "hot")
    migrate(engine, layout)
    yield layout
    engine.command(f"DROP DATABASE `{layout.database}`")


@pytest.fixture(scope="session")
def read_layout(embedded: Engine) -> Layout:
    """A database of the tests that read, which empty it themselves: making the tables takes a second."""
    layout = Layout("test_reading", "hot")
    migrate(embedded, layout)
    return layout


@pytest.fixture
def stored(embedded: Engine, read_layout: Layout, tmp_path: Path) -> Stored:
    """Nothing stored yet, hot or cold."""
    for table in TABLES:
        embedded.command(f"TRUNCATE TABLE {read_layout.local(table.name)}")
    return Stored(embedded, read_layout, tmp_path / "cold")
