"""Live books and the simulator's witnesses, over real sockets: right ones are verified, a wrong one is found."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
import yaml

from marketprism.config import load
from marketprism.events import Event, Gap
from marketprism.simulator import DEFAULT_SYMBOLS, WORKERS, Fault, Simulator, SimulatorOptions
from marketprism.venues.okx import Okx
from marketprism.worker.collector import Collector

WAIT_S = 60.0


class Collecting:
    """A worker's collector at the simulator, with one book that is checked without a pause."""

    def __init__(self, simulator: Simulator, worker: str, folder: Path) -> None:
        self.worker, self.symbol = worker, DEFAULT_SYMBOLS[worker][0]
        self.events: list[Event] = []
        document = {
            "exchanges": {
                worker: {
                    "api": simulator.urls[worker],
                    "symbols": [self.symbol],
                    "data_types": ["orderbook"],
                    "orderbook": {"audit_interval": 0.1},
                }
            }
        }
        path = folder / f"{worker}.yaml"
        path.write_text(yaml.safe_dump(document), encoding="utf-8")
        settings = load(path, {}).settings.exchanges[worker]
        self.collector = Collector(settings, lambda event, _: self.events.append(event), lambda: None)

    @property
    def counts(self) -> dict[str, int]:
        return dict(self.collector.venue.auditor.counts)

    def gaps(self) -> list[str]:
        return [e.data.cause for e in self.events if isinstance(e.data, Gap)]

    def is_right(self, simulator: Simulator) -> bool:
        """Whether the book is live and has the best levels that the exchange's had at the same id."""
        book = self.collector.venue.markets[self.symbol].book
        assert book is not None
        if not book.live or book.last_id is None:
            return False
        truth = simulator.truth.book_at(self.worker, self.symbol, book.last_id)
        for ours, side in zip(book.book.top(50)[:2], truth, strict=True):
            told = {Decimal(p): Decimal(q) for p, q in msgspec.json.decode(ours, type=list[tuple[str, str]])}
            best = {Decimal(p): Decimal(q) for p, q in list(side.items())[: len(told)]}
            if told != best:
                return False
        return True


@asynccontextmanager
async def collecting(simulator: Simulator, folder: Path) -> AsyncIterator[list[Collecting]]:
    async def at_once() -> None: ...

    all_five = [Collecting(simulator, worker, folder) for worker in WORKERS]
    running = [asyncio.create_task(one.collector.run(before_feeds=at_once)) for one in all_five]
    try:
        yield all_five
    finally:
        for task in running:
            task.cancel()
        await asyncio.wait(running)


async def until(holds: Callable[[], bool], what: str, said: Callable[[], object]) -> None:
    try:
        async with asyncio.timeout(WAIT_S):
            while not holds():  # noqa: ASYNC110 - a simulator's truth tells nobody
                await asyncio.sleep(0.05)
    except TimeoutError:
        pytest.fail(f"no {what} within {WAIT_S:.0f} s: {said()}")


def test_right_books_are_verified_and_a_wrong_one_is_found_and_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Okx, "witness_pause_ns", 0
    )  # the simulator counts 480 operations, too: some 20 are made

    async def work(simulator: Simulator) -> None:
        async with collecting(simulator, tmp_path) as all_five:

            def counts() -> object:
                return [(one.worker, one.counts, one.gaps()) for one in all_five]

            await until(lambda: all(one.counts["verified"] > 0 for one in all_five), "verified book", counts)
            assert [one.worker for one in all_five if one.counts["contradicted"] or one.gaps()] == []
            for _ in range(20):  # a level that is told again by chance is right again
                undetected = [one for one in all_five if not one.counts["contradicted"]]
                for one in undetected:
                    fault = Fault("wrong_level", one.worker, count=10, instrument=one.symbol)
                    simulator.inject_fault(fault)
                if not undetected:
                    break
                await asyncio.sleep(1)  # the ten messages it strikes
            assert [one.worker for one in all_five if not one.counts["contradicted"]] == [], counts()
            assert [one.worker for one in all_five if "audit" not in one.gaps()] == []
            verified = {one.worker: one.counts["verified"] for one in all_five}
            await until(
                lambda: (
                    all(one.is_right(simulator) for one in all_five)
                    and all(one.counts["verified"] > verified[one.worker] for one in all_five)
                ),
                "right book",
                counts,
            )

    async def main() -> None:
        simulator = Simulator(SimulatorOptions(seed=31, rate=60, rest_latency_ms=1.0))
        await simulator.start()
        try:
            await work(simulator)
        finally:
            await simulator.stop()

    asyncio.run(main())
