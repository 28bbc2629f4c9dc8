"""Published books against the exchange's own, at every id, whatever the network does."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from storm import FAULTS, HARMLESS, Storm

EXCHANGES = ["binance_spot", "binance_derivatives", "okx_derivatives", "deribit_derivatives"]
numbers = st.integers(0, 199)
benign = st.lists(st.tuples(st.sampled_from(HARMLESS), numbers), max_size=60)
anything = st.lists(st.tuples(st.sampled_from(HARMLESS + FAULTS), numbers), max_size=60)
okx_only = ("keepalive", "reset")


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("limit", [None, 20])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999), actions=anything)
def test_every_published_book_is_the_exchanges(
    exchange: str, limit: int | None, seed: int, actions: list[tuple[str, int]]
) -> None:
    storm = Storm(exchange, seed, limit=limit if exchange.startswith("binance") else None)
    storm.do("second", 0)
    for action, n in actions:
        storm.do(action, n)
    storm.heal()
    assert storm.compared > 0


@pytest.mark.parametrize("exchange", EXCHANGES)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999), actions=benign)
def test_no_gap_where_nothing_is_missed(exchange: str, seed: int, actions: list[tuple[str, int]]) -> None:
    storm = Storm(exchange, seed)
    storm.do("second", 0)
    storm.heal()
    for action, n in actions:
        storm.do(action, n)
    storm.heal()
    assert storm.drive.gaps() == []


@pytest.mark.parametrize("in_band", [True, False])
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 9999),
    actions=st.lists(st.tuples(st.sampled_from(HARMLESS + FAULTS + okx_only), numbers), max_size=60),
)
def test_okx_with_keepalives_and_resets(in_band: bool, seed: int, actions: list[tuple[str, int]]) -> None:
    storm = Storm("okx_derivatives", seed, in_band=in_band)
    storm.do("second", 0)
    for action, n in actions:
        storm.do(action, n)
    storm.heal()


@pytest.mark.parametrize("in_band", [True, False])
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 9999),
    actions=st.lists(st.tuples(st.sampled_from(HARMLESS + okx_only), numbers), max_size=60),
)
def test_okx_keepalives_and_resets_are_no_gaps(
    in_band: bool, seed: int, actions: list[tuple[str, int]]
) -> None:
    storm = Storm("okx_derivatives", seed, in_band=in_band)
    storm.do("second", 0)
    storm.heal()
    for action, n in actions:
        storm.do(action, n)
    storm.heal()
    assert storm.drive.gaps() == []
