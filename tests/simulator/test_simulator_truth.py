"""The record of what happened, against naive copies."""

import random

import pytest

from marketprism.simulator.truth import BookLog, TradeLog, TradeRow


def test_book_at_every_id_over_many_chunks() -> None:
    rng = random.Random(3)
    state = dict.fromkeys(range(400), 5)
    log, naive = BookLog(100, state, keep_s=1000.0), {100: dict(state)}
    update_id = 100
    for step in range(3000):
        update_id += rng.randrange(1, 4)
        for _ in range(rng.randrange(1, 6)):
            key, lots = rng.randrange(500), rng.choice((0, 0, 1, 7))
            log.add(update_id, key, lots)
            state = {**state, key: lots} if lots else {k: n for k, n in state.items() if k != key}
        log.publish(update_id, step)
        naive[update_id] = state
    assert log.update_ids() == list(naive)[1:]
    for known in rng.sample(list(naive), 200):
        assert log.state_at(known) == naive[known]
    in_between = next(one for one in range(100, update_id) if one not in naive)
    before = max(one for one in naive if one < in_between)
    assert log.state_at(in_between) == naive[before]


def test_unknown_id_says_what_is_kept() -> None:
    log = BookLog(100, {2: 1}, keep_s=10.0)
    log.add(110, 4, 3)
    with pytest.raises(KeyError, match="no book at update id 99: kept are ids from 100 to 110"):
        log.state_at(99)


def test_reset_keeps_both_epochs() -> None:
    log = BookLog(8000, {2: 1}, keep_s=10.0)
    log.add(8007, 4, 3)
    log.reset(50)
    log.add(53, 2, 0)
    assert (log.state_at(8007), log.state_at(51), log.state_at(53)) == ({2: 1, 4: 3}, {2: 1, 4: 3}, {4: 3})
    assert log.last_id == 53


def test_old_books_and_trades_are_dropped() -> None:
    book, trades = BookLog(0, {}, keep_s=1.0), TradeLog(keep_s=1.0)
    for number in range(1, 20_001):
        book.add(number, number % 50, number)
        book.publish(number, number)
        trades.add(TradeRow(number, number, number, 7, 1, number, 0, 0))
    assert len(book.update_ids()) < 2500
    assert next(trades.rows()).id > 10_000
    assert book.state_at(20_000)[0] == 20_000
    with pytest.raises(KeyError):
        book.state_at(5000)


def test_trades_by_page() -> None:
    log = TradeLog(keep_s=1000.0)
    for number in range(1, 10_001):
        log.add(TradeRow(number * 2, number * 2, number * 2, 7, number, number, 0, 0))
    assert [row.id for row in log.newest(3)] == [19_996, 19_998, 20_000]
    assert [row.id for row in log.before(8195, 2)] == [8192, 8194]
    assert len(log.before(9000, 4400)) == 4400
    assert next(log.rows(8195)).id == 8196
    assert sum(1 for _ in log.rows()) == 10_000
