"""REST in: budgets, urgency, Retry-After, against a real HTTP server on loopback."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web
from natsbox import until

from marketprism.venues.base import Budget, Fetch, Poll
from marketprism.worker.poller import Meter, Poller


class Answers:
    """Takes note of what came back."""

    def __init__(self) -> None:
        self.all: list[tuple[str, int, bytes]] = []

    def answered(self, fetch: Fetch, status: int, body: bytes, url: str) -> None:
        self.all.append((fetch.kind, status, body))


async def with_server(
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    work: Callable[[str, Answers], Awaitable[None]],
) -> None:
    app = web.Application()
    app.router.add_get("/{path:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        await work(f"http://127.0.0.1:{port}", Answers())
    finally:
        await runner.cleanup()


async def running(poller: Poller, work: Callable[[], Awaitable[None]]) -> None:
    task = asyncio.create_task(poller.run())
    try:
        await work()
    finally:
        task.cancel()
        await asyncio.wait([task])


def test_a_meter_allows_its_capacity_and_no_more() -> None:
    meter = Meter(Budget("ip", 10, 60))
    for _ in range(5):
        assert meter.wait_s(2, 0.0) == 0.0
        meter.spend(2, 0.0)
    assert meter.wait_s(1, 0.0) == pytest.approx(60.0)
    assert meter.wait_s(1, 59.0) == pytest.approx(1.0)
    assert meter.wait_s(10, 60.0) == 0.0


def test_a_request_heavier_than_the_whole_budget_goes_alone() -> None:
    meter = Meter(Budget("ip", 10, 60))
    assert meter.wait_s(50, 0.0) == 0.0
    meter.spend(50, 0.0)
    assert meter.wait_s(1, 1.0) == pytest.approx(59.0)


def test_what_is_missing_comes_before_what_is_due() -> None:
    seen: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.path)
        return web.Response(text="{}")

    async def work(url: str, answers: Answers) -> None:
        poller = Poller(url, [Budget("ip", 1000, 60)], answers)
        poller.ask(Fetch("funding_rate", "A", "/poll"))
        poller.ask(Fetch("depth", "A", "/depth"))
        await running(poller, lambda: until(lambda: len(answers.all) == 2))
        assert seen == ["/depth", "/poll"]

    asyncio.run(with_server(handler, work))


def test_a_spent_budget_holds_up_only_its_own() -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(text="{}")

    async def work(url: str, answers: Answers) -> None:
        poller = Poller(url, [Budget("slow", 1, 600), Budget("fast", 100, 1)], answers)
        poller.ask(Fetch("trades", "A", "/1", 1, "slow"))
        poller.ask(Fetch("trades", "B", "/2", 1, "slow"))
        poller.ask(Fetch("depth", "A", "/3", 1, "fast"))
        await running(poller, lambda: until(lambda: len(answers.all) == 2))
        assert sorted(kind for kind, _, _ in answers.all) == ["depth", "trades"]

    asyncio.run(with_server(handler, work))


@pytest.mark.parametrize(("status", "header", "wait_s"), [(429, "7", 7), (418, "", 120), (429, "", 10)])
def test_too_many_stands_everything_down(status: int, header: str, wait_s: int) -> None:
    now = [1000.0]
    requests = 0

    async def handler(_: web.Request) -> web.Response:
        nonlocal requests
        requests += 1
        if requests == 1:
            return web.Response(status=status, headers={"Retry-After": header} if header else {})
        return web.Response(text="{}")

    async def work(url: str, answers: Answers) -> None:
        poller = Poller(url, [Budget("ip", 1000, 60)], answers, lambda: now[0])
        poller.ask(Fetch("depth", "A", "/1"))

        async def check() -> None:
            await until(lambda: len(answers.all) == 1)
            poller.ask(Fetch("depth", "B", "/2"))
            now[0] += wait_s - 0.5
            poller.ask(Fetch("depth", "C", "/3"))
            for _ in range(20):
                await asyncio.sleep(0)
            assert requests == 1
            now[0] += 0.6
            poller.ask(Fetch("depth", "D", "/4"))
            await until(lambda: len(answers.all) == 4)

        await running(poller, check)
        assert [s for _, s, _ in answers.all] == [status, 200, 200, 200]

    asyncio.run(with_server(handler, work))


def test_no_answer_is_told_as_status_0() -> None:
    async def work() -> None:
        answers = Answers()
        poller = Poller("http://127.0.0.1:1", [Budget("ip", 10, 60)], answers)
        poller.ask(Fetch("depth", "A", "/1"))
        await running(poller, lambda: until(lambda: len(answers.all) == 1))
        assert answers.all == [("depth", 0, b"")]
        assert poller.requests == {"no_answer": 1}

    asyncio.run(work())


def test_polls_come_again_and_skip_a_turn_while_under_way() -> None:
    release = asyncio.Event()
    under_way = 0
    most = 0

    async def handler(_: web.Request) -> web.Response:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await release.wait()
        under_way -= 1
        return web.Response(text="{}")

    async def work(url: str, answers: Answers) -> None:
        poller = Poller(url, [Budget("ip", 1000, 1)], answers)
        poller.schedule([Poll.of(Fetch("open_interest", "A", "/oi"), 0.01)])

        async def check() -> None:
            await until(lambda: under_way == 1)
            await asyncio.sleep(0.1)  # ten turns of the poll, all skipped
            assert most == 1
            release.set()
            await until(lambda: len(answers.all) >= 3)

        await running(poller, check)

    asyncio.run(with_server(handler, work))


def test_a_polled_book_that_comes_too_late_is_no_answer() -> None:
    release = asyncio.Event()

    async def handler(_: web.Request) -> web.Response:
        await release.wait()
        return web.Response(text="{}")

    async def work(url: str, answers: Answers) -> None:
        poller = Poller(url, [Budget("ip", 100, 1)], answers, depth_timeout_s=0.1)
        poller.ask(Fetch("depth", "A", "/depth"))
        poller.ask(Fetch("trades", "A", "/trades"))

        async def check() -> None:
            await until(lambda: answers.all == [("depth", 0, b"")])
            release.set()
            await until(lambda: len(answers.all) == 2)

        await running(poller, check)
        assert answers.all[1] == ("trades", 200, b"{}")

    asyncio.run(with_server(handler, work))


def test_it_ends_when_told_to_in_the_moment_something_is_asked() -> None:
    """As at every stop: what is still missing is asked for, and then all tasks are cancelled."""

    async def main() -> None:
        answers = Answers()
        poller = Poller("http://127.0.0.1:9", (Budget("ip", 10, 60),), answers)
        poller.schedule([Poll.of(Fetch("funding_rate", "X", "/"), 60)])
        running = asyncio.create_task(poller.run())
        await until(lambda: bool(answers.all))
        await asyncio.sleep(0.05)  # it waits for the next poll, or to be asked
        poller.ask(Fetch("trades", "X", "/"))
        running.cancel()
        done, _ = await asyncio.wait([running], timeout=5)
        assert done, "the cancellation was swallowed"

    asyncio.run(main())
