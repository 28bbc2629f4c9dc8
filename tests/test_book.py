"""The book against a naive dictionary, for any sequence of messages."""

import zlib
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketprism.book import Book
from marketprism.events import Level

price = st.integers(1, 60).map(lambda n: n / 4)
written = st.sampled_from(["{:.2f}", "{:.3f}", "{:.8f}", "{:g}", "{:e}"])
level = st.builds(
    lambda p, form, q: Level(form.format(p), q),
    price,
    written,
    st.sampled_from(["0", "0.000", "1", "2.5", "7e1"]),
)
message = st.tuples(st.lists(level, max_size=6), st.lists(level, max_size=6))
Naive = dict[Decimal, Level]


def naive(sides: tuple[Naive, Naive], changes: tuple[list[Level], list[Level]]) -> None:
    for side, levels in zip(sides, changes, strict=True):
        for x in levels:
            if Decimal(x.quantity) == 0:
                side.pop(Decimal(x.price), None)
            else:
                side[Decimal(x.price)] = x


def best_first(sides: tuple[Naive, Naive]) -> tuple[list[Level], list[Level]]:
    bids, asks = sides
    return [bids[p] for p in sorted(bids, reverse=True)], [asks[p] for p in sorted(asks)]


@settings(deadline=None, max_examples=150)
@given(first=message, messages=st.lists(message, max_size=8), depth=st.integers(0, 9))
def test_any_messages(
    first: tuple[list[Level], list[Level]], messages: list[tuple[list[Level], list[Level]]], depth: int
) -> None:
    book, sides = Book(), (Naive(), Naive())
    book.load(*first)
    naive(sides, first)
    for m in messages:
        book.apply(*m)
        naive(sides, m)
    bids, asks = best_first(sides)
    assert book.all() == (bids, asks)
    assert book.top(depth) == (bids[:depth], asks[:depth])
    assert book.known_levels() == (len(bids), len(asks))
    assert book.crossed == bool(bids and asks and Decimal(bids[0].price) >= Decimal(asks[0].price))
    rows = [side[n] for n in range(25) for side in (bids, asks) if n < len(side)]
    crc = zlib.crc32(":".join(f"{r.price}:{r.quantity}" for r in rows).encode())
    assert book.checksum() % (1 << 32) == crc
    assert -(1 << 31) <= book.checksum() < 1 << 31


@settings(deadline=None, max_examples=150)
@given(first=message, messages=st.lists(message, max_size=8), depth=st.integers(0, 9))
def test_a_window_hides_what_lies_beyond_the_snapshot(
    first: tuple[list[Level], list[Level]], messages: list[tuple[list[Level], list[Level]]], depth: int
) -> None:
    book, sides = Book(), (Naive(), Naive())
    book.load(*first, cut_bids=True, cut_asks=True)
    naive(sides, first)
    low = min(sides[0]) if sides[0] else None
    high = max(sides[1]) if sides[1] else None
    for m in messages:
        book.apply(*m)
        naive(sides, m)
    bids, asks = best_first(sides)
    known_bids = [x for x in bids if low is None or Decimal(x.price) >= low]
    known_asks = [x for x in asks if high is None or Decimal(x.price) <= high]
    assert book.known_levels() == (len(known_bids), len(known_asks))
    assert book.top(depth) == (known_bids[:depth], known_asks[:depth])
    assert book.all() == (bids, asks)


def test_one_price_written_in_two_ways_is_one_level() -> None:
    book = Book()
    book.load([Level("2200.0", "1")], [])
    book.apply([Level("2.2e3", "5")], [])
    assert book.all() == ([Level("2.2e3", "5")], [])
    book.apply([Level("2200", "0.0")], [])
    assert book.all() == ([], [])


@pytest.mark.parametrize(
    "bad",
    [
        Level("x", "1"),
        Level("nan", "1"),
        Level("inf", "1"),
        Level("1e999999", "1"),
        Level("", "1"),
        Level("1", ""),
        Level("1", "x"),
        Level("1", "nan"),
        Level("1", "-1"),
        Level("1", "inf"),
        Level("1", "1e999"),
    ],
)
def test_a_figure_that_is_none_is_refused(bad: Level) -> None:
    for load in (True, False):
        book = Book()
        with pytest.raises(ValueError, match=r".+"):
            (book.load if load else book.apply)([bad], [])


def test_crossed_and_locked() -> None:
    book = Book()
    for ask, crossed in (("10", True), ("9.99", True), ("10.01", False)):
        book.load([Level("10.0", "1")], [Level(ask, "1")])
        assert book.crossed is crossed
    book.load([], [])
    assert not book.crossed
    assert book.checksum() == 0
