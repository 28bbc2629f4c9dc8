"""REST in: schedules, weight budgets, Retry-After. One poller serves all of a worker's requests."""

import asyncio
import heapq
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Protocol

import aiohttp

from marketprism.logs import RateLimitedLog
from marketprism.venues.base import Budget, Fetch, Poll

log = logging.getLogger(__name__)

TIMEOUT_S = 10.0
AT_ONCE = 4
# Where an exchange says "too many" without saying for how long (Binance: 418 is a ban of at least two minutes).
STAND_DOWN_S = {429: 10.0, 418: 120.0}
STAND_DOWN_MAX_S = 3 * 86_400.0
BODY_MAX_BYTES = 64 * 1024 * 1024  # Binance's list of all instruments has over 10 MB
# What something is missing for comes before what is merely due.
ON_DEMAND = frozenset({"depth", "trades", "instruments"})


class Driver(Protocol):
    """Who is told what came of a request."""

    def answered(self, fetch: Fetch, status: int, body: bytes, url: str) -> None: ...


class Meter:
    """Weight spent within the last `per_s` seconds."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._spent: deque[tuple[float, int]] = deque()
        self._total = 0

    def wait_s(self, weight: int, now_s: float) -> float:
        """Seconds until this weight may be spent; 0: now."""
        horizon = now_s - self._budget.per_s
        while self._spent and self._spent[0][0] <= horizon:
            self._total -= self._spent.popleft()[1]
        if self._total + weight <= self._budget.capacity or not self._spent:
            return 0.0
        return self._spent[0][0] - horizon

    def spend(self, weight: int, now_s: float) -> None:
        """Count a request."""
        self._spent.append((now_s, weight))
        self._total += weight


class Poller:
    """Carries out requests in order of urgency, as fast as the exchange's budgets allow."""

    def __init__(
        self,
        base_url: str,
        budgets: Iterable[Budget],
        driver: Driver,
        clock: Callable[[], float] = time.monotonic,
        *,
        depth_base_url: str | None = None,
        depth_timeout_s: float = TIMEOUT_S,
    ) -> None:
        """`depth_base_url`, `depth_timeout_s`: another host, and another patience, for whole books."""
        self.requests: dict[str, int] = {}  # by outcome
        self._base_url = base_url.rstrip("/")
        self._depth_base_url = (depth_base_url or base_url).rstrip("/")
        self._depth_timeout = aiohttp.ClientTimeout(total=depth_timeout_s)
        self._driver = driver
        self._clock = clock
        self._meters = {b.name: Meter(b) for b in budgets}
        # One queue a budget, so that a spent one holds up nothing but its own.
        self._queues: dict[str, list[tuple[bool, int, Fetch]]] = {name: [] for name in self._meters}
        self._serial = 0
        self._wanted = asyncio.Event()
        self._blocked_until_s = 0.0
        self._polls: list[tuple[float, int, Poll]] = []
        self._under_way: set[tuple[str, str]] = set()
        self._log = RateLimitedLog(log)

    def ask(self, fetch: Fetch) -> None:
        """Carry out a request when its turn comes."""
        self._serial += 1
        heapq.heappush(self._queues[fetch.budget], (fetch.kind not in ON_DEMAND, self._serial, fetch))
        self._wanted.set()

    def schedule(self, polls: Iterable[Poll]) -> None:
        """Make these calls again and again, and no others; those that are new at once, 20 ms apart.

        One that is made already keeps its turn, or gets an earlier one where its interval is shorter now.
        """
        now_s, now_ns = self._clock(), time.time_ns()
        due_s = {poll.fetch(now_ns).key: due_s for due_s, _, poll in self._polls}
        new = itertools.count()

        def first_s(poll: Poll) -> float:
            known_s = due_s.get(poll.fetch(now_ns).key)
            return now_s + next(new) * 0.02 if known_s is None else min(known_s, now_s + poll.interval_s)

        self._polls = [(first_s(poll), n, poll) for n, poll in enumerate(polls)]
        heapq.heapify(self._polls)
        self._wanted.set()

    async def run(self) -> None:
        """Work; returns only by cancellation."""
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as session, asyncio.TaskGroup() as tasks:
            slots = asyncio.Semaphore(AT_ONCE)
            while True:
                self._enqueue_due()
                fetch = self._next()
                if fetch is None:
                    await self._until_ready()
                    continue
                await slots.acquire()
                tasks.create_task(self._carry_out(session, fetch, slots))

    def _next(self) -> Fetch | None:
        """The next request that may go now, its weight counted."""
        now_s = self._clock()
        for name, queue in self._queues.items():
            if queue and self._wait_s(name, now_s) <= 0:
                fetch = heapq.heappop(queue)[2]
                self._meters[name].spend(fetch.weight, now_s)
                return fetch
        return None

    def _enqueue_due(self) -> None:
        now_s = self._clock()
        while self._polls and self._polls[0][0] <= now_s:
            due_s, n, poll = heapq.heappop(self._polls)
            next_s = max(
                due_s + poll.interval_s, now_s
            )  # what was missed while standing down is not made up for
            heapq.heappush(self._polls, (next_s, n, poll))
            fetch = poll.fetch(time.time_ns())
            if fetch.key not in self._under_way:  # still waiting: skip this turn
                self._under_way.add(fetch.key)
                self.ask(fetch)

    async def _until_ready(self) -> None:
        """Sleep until a request may go, a poll is due or something is asked."""
        self._wanted.clear()
        now_s = self._clock()
        waits = [self._wait_s(name, now_s) for name, queue in self._queues.items() if queue]
        if self._polls:
            waits.append(max(0.0, self._polls[0][0] - now_s))
        if min(waits, default=1.0) <= 0:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(min(waits, default=None)):
                await self._wanted.wait()

    def _wait_s(self, budget: str, now_s: float) -> float:
        """Seconds until the head of this budget's queue may go."""
        weight = self._queues[budget][0][2].weight
        return max(self._blocked_until_s - now_s, self._meters[budget].wait_s(weight, now_s))

    async def _carry_out(
        self, session: aiohttp.ClientSession, fetch: Fetch, slots: asyncio.Semaphore
    ) -> None:
        url = (self._depth_base_url if fetch.kind == "depth" else self._base_url) + fetch.path
        status, body = 0, b""
        try:
            timeout = self._depth_timeout if fetch.kind == "depth" else session.timeout
            async with session.get(url, timeout=timeout) as response:
                status, body = response.status, await _body(response)
                if status in STAND_DOWN_S:
                    self._stand_down(status, response.headers.get("Retry-After", ""))
        except (aiohttp.ClientError, TimeoutError, OSError) as e:
            self._log.warning("rest", "%s: %s", url, str(e) or type(e).__name__, event="rest_error")
        finally:
            slots.release()
            self._under_way.discard(fetch.key)
        outcome = str(status) if status else "no_answer"
        self.requests[outcome] = self.requests.get(outcome, 0) + 1
        self._driver.answered(fetch, status, body, url)

    def _stand_down(self, status: int, retry_after: str) -> None:
        """No request of this worker until the exchange allows it again."""
        wait_s = float(retry_after) if retry_after.isdecimal() else STAND_DOWN_S[status]
        wait_s = min(max(wait_s, 1.0), STAND_DOWN_MAX_S)
        self._blocked_until_s = max(self._blocked_until_s, self._clock() + wait_s)
        log.warning(
            "%s answers HTTP %d: no REST request for %.0f s",
            self._base_url,
            status,
            wait_s,
            extra={"event": "rate_limited"},
        )


async def _body(response: aiohttp.ClientResponse) -> bytes:
    """The whole body. Raises aiohttp.ClientPayloadError for one of absurd size."""
    body = bytearray()
    async for part in response.content.iter_any():
        body += part
        if len(body) > BODY_MAX_BYTES:
            raise aiohttp.ClientPayloadError(f"an answer of more than {BODY_MAX_BYTES} bytes")
    return bytes(body)
