"""One seeded market: a fair price that wanders, a full limit book around it, and trades that hit the touch.

Knows no exchange, no protocol and no clock: a step is STEP_S of market time. Prices are integer ticks, quantities
integer lots. Never crossed, never locked, never one-sided.
"""

import random
from bisect import bisect_left, insort
from collections.abc import Container
from dataclasses import dataclass
from typing import NamedTuple

from marketprism.simulator.instruments import Instrument, asset_usd
from marketprism.simulator.options import STEPS_PER_WINDOW

BID, ASK = 0, 1
BUY, SELL = 0, 1

_VOLATILITY_PER_STEP = 1.0e-5  # about 55 % a year at 10 ms steps
# (spread of the walk, drift per step, mean length in steps): calm, brisk, rally, slide, storm
_REGIMES = ((0.35, 0.0, 5000), (1.0, 0.0, 4000), (1.1, 4e-7, 3000), (1.1, -4e-7, 3000), (2.6, 0.0, 1200))
_LIQUIDATION_EVERY_STEPS = 1500
_SWEEP_LEVELS = 20
_REACH = 1.3  # how far the levels of a side reach, over their number times the usual gap between them
_CHURN_PER_STEP = 1.0
_CHURN_PER_ORDER = 0.25


class Underlying:
    """The fair USD price of one asset: a regime-switching random walk, shared by all its markets."""

    def __init__(self, seed: int, asset: str) -> None:
        self._rng = random.Random(f"{seed}/asset/{asset}")
        self._anchor = asset_usd(asset)
        self._price = self._anchor
        self._step = 0
        self._left = 0
        self.regime = 0

    def at(self, step: int) -> float:
        """The price in USD at a step; steps only go forward."""
        while self._step < step:
            self._advance()
        return self._price

    def _advance(self) -> None:
        rng = self._rng
        if self._left <= 0:
            self.regime = rng.randrange(len(_REGIMES))
            self._left = int(rng.expovariate(1.0 / _REGIMES[self.regime][2])) + 200
        spread, drift, _ = _REGIMES[self.regime]
        pull = (self._anchor / self._price - 1.0) * 2e-6  # keeps a day-long demo near known prices
        self._price *= 1.0 + drift + pull + spread * _VOLATILITY_PER_STEP * rng.gauss(0.0, 1.0)
        self._step += 1
        self._left -= 1


class Underlyings:
    """All assets of one run, made when first asked for."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._assets: dict[str, Underlying] = {}

    def asset(self, name: str) -> Underlying:
        """The walk of one asset."""
        found = self._assets.get(name)
        if found is None:
            found = self._assets[name] = Underlying(self._seed, name)
        return found

    def fair(self, base: str, quote: str, step: int) -> float:
        """The fair price of base in quote at a step."""
        price = self.asset(base).at(step)
        return price if asset_usd(quote) == 1.0 else price / self.asset(quote).at(step)


class Order(NamedTuple):
    """One market order: its side (BUY or SELL), its fills (tick, lots) in order, and if it was forced."""

    side: int
    fills: list[tuple[int, int]]
    forced: bool


class Ladder:
    """One side of a book: lots by tick, and the ticks in ascending order."""

    __slots__ = ("lots", "side", "ticks")

    def __init__(self, side: int) -> None:
        self.side = side
        self.lots: dict[int, int] = {}
        self.ticks: list[int] = []

    def put(self, tick: int, lots: int) -> None:
        """Set a level; 0 lots removes it."""
        if lots:
            if tick not in self.lots:
                insort(self.ticks, tick)
            self.lots[tick] = lots
        elif self.lots.pop(tick, 0):
            del self.ticks[bisect_left(self.ticks, tick)]

    @property
    def best(self) -> int:
        """The tick of the touch."""
        return self.ticks[-1] if self.side == BID else self.ticks[0]

    @property
    def worst(self) -> int:
        """The tick farthest from the touch."""
        return self.ticks[0] if self.side == BID else self.ticks[-1]

    def rank(self, rank: int) -> int:
        """The tick of the level so many levels behind the touch."""
        return self.ticks[-1 - rank] if self.side == BID else self.ticks[rank]

    def top(self, count: int) -> list[int]:
        """The ticks of the best levels, best first."""
        return self.ticks[: -count - 1 : -1] if self.side == BID else self.ticks[:count]


@dataclass(frozen=True, slots=True)
class Pace:
    """How busy a market is: the share of 100 ms windows with any activity, and orders per active step."""

    active: float
    orders: float
    sparse: bool

    @classmethod
    def of(cls, rate: float, markets: int, messages_per_order: float) -> "Pace":
        """The pace at which `markets` markets give `rate` messages a second, books and trades together.

        Books get at most half; an inactive window sends nothing, as a quiet exchange does.
        """
        windows = 10.0 * markets
        active = min(1.0, 0.5 * rate / windows) if markets else 0.0
        trades = rate - active * windows
        orders = trades / (windows * active * STEPS_PER_WINDOW * messages_per_order) if active else 0.0
        return cls(active, orders, trades <= windows * active)


class Market:
    """The market of one instrument. After step(), `ops` and `orders` say what happened in it.

    An op is (key, lots): key = tick * 2 + side, lots is the level's new quantity, 0 when it is gone.
    """

    def __init__(
        self, seed: int, instrument: Instrument, underlyings: Underlyings, pace: Pace, phase: int = 0
    ) -> None:
        """phase: how many steps before a multiple of STEPS_PER_WINDOW the market's 100 ms windows end."""
        self.instrument = instrument
        self.pace = pace
        self.phase = phase
        self.ladders = (Ladder(BID), Ladder(ASK))
        self.ops: list[tuple[int, int]] = []
        self.orders: list[Order] = []
        self.last_tick = 0
        self.fair = instrument.start_price
        self._rng = random.Random(f"{seed}/{instrument.worker}/{instrument.id}")
        self._underlyings = underlyings
        self._gap = max(1.0, instrument.start_price * 2.4e-6 / instrument.ticks.size)
        big = instrument.start_price * asset_usd(instrument.quote) > 1000.0
        self._level_lots = max(4.0, (40_000.0 if big else 8_000.0) / instrument.lot_usd())
        self._order_lots = max(1.5, (400.0 if big else 90.0) / instrument.lot_usd())
        self._home = self._basis = 1.0 + self._rng.uniform(-1.5e-4, 1.5e-4)
        self._step = 0
        self._run_left, self._run_factor, self._away = 0, 1.0, False
        self._intensity = 0.0
        self._liquidation_in = self._rng.expovariate(1.0 / _LIQUIDATION_EVERY_STEPS)
        self._build()

    @property
    def best_bid(self) -> int:
        """Tick of the best bid."""
        return self.ladders[BID].best

    @property
    def best_ask(self) -> int:
        """Tick of the best ask."""
        return self.ladders[ASK].best

    def lots(self, key: int) -> int:
        """The lots resting at a key (tick * 2 + side) now."""
        return self.ladders[key & 1].lots.get(key >> 1, 0)

    def vacant(self, spoken_of: Container[int]) -> tuple[int, int]:
        """The keys of the levels nearest the touch, a bid and an ask, that are empty and not spoken of."""
        bids, asks = self.ladders
        bid, ask = bids.best, asks.best
        while bid in bids.lots or bid * 2 + BID in spoken_of:
            bid -= 1
        while ask in asks.lots or ask * 2 + ASK in spoken_of:
            ask += 1
        return bid * 2 + BID, ask * 2 + ASK

    def wrong_level(self) -> dict[int, int]:
        """The third best bid by key, with lots it does not have."""
        tick = self.ladders[BID].rank(2)
        return {tick * 2 + BID: 2 * self.ladders[BID].lots[tick] + 1}

    def step(self) -> None:
        """Let one step pass."""
        self.ops = []
        self.orders = []
        if (self._step + self.phase) % STEPS_PER_WINDOW == 0:
            active = self._rng.random() < self.pace.active
            self._intensity = 0.5 + self._rng.random() if active else 0.0
        self._step += 1
        if self._run_left:
            self._run_left -= 1
            self._basis *= self._run_factor
        instrument = self.instrument
        self.fair = self._underlyings.fair(instrument.base, instrument.quote, self._step) * self._basis
        if self._intensity:
            self._move()

    def run(self, steps: int) -> None:
        """Let the price travel, within so many steps, past all levels of the book; the next run brings it back."""
        distance = 2.0 * _REACH * self.instrument.levels * self._gap * self.instrument.ticks.size
        goal = self._home if self._away else self._home * (1.0 + distance / self.instrument.start_price)
        self._away = not self._away
        self._run_left, self._run_factor = steps, (goal / self._basis) ** (1.0 / steps)

    def _move(self) -> None:
        fair_tick = self.fair / self.instrument.ticks.size
        self._follow(fair_tick)
        for _ in range(self._whole(self.pace.orders * self._intensity)):
            self._trade(fair_tick, forced=False)
        if self.instrument.kind != "spot":
            self._maybe_liquidate(fair_tick)
        self._tighten(fair_tick)
        churn = _CHURN_PER_STEP + _CHURN_PER_ORDER * self.pace.orders
        for _ in range(self._whole(churn * self._intensity)):
            self._churn()
        for ladder in self.ladders:
            self._balance(ladder)

    def _whole(self, mean: float) -> int:
        """A whole number with this mean."""
        return int(mean + self._rng.random())

    def _put(self, side: int, tick: int, lots: int) -> None:
        self.ladders[side].put(tick, lots)
        self.ops.append((tick * 2 + side, lots))

    # -- the book ------------------------------------------------------------------------------------------

    def _build(self) -> None:
        middle = int(self.fair * self._basis / self.instrument.ticks.size)
        self.last_tick = middle
        for ladder in self.ladders:
            away = -1 if ladder.side == BID else 1
            tick = middle if ladder.side == BID else middle + 1
            for _ in range(self.instrument.levels):
                if tick <= 0:
                    break
                ladder.put(tick, self._size(tick))
                tick += away * self._next_gap()

    def _next_gap(self) -> int:
        return 1 + int(self._rng.expovariate(1.0) * (self._gap - 1.0)) if self._gap > 1.0 else 1

    def _size(self, tick: int) -> int:
        """A level's lots: many small, few large, more on round prices."""
        share = self._rng.random()
        size = self._level_lots * (0.02 + 2.5 * share**4)
        return int(size * (2.5 if tick % 100 == 0 else 1.0)) + 1

    def _follow(self, fair_tick: float) -> None:
        """Makers pull quotes that the fair price has passed by more than a little."""
        slack = 1.0 + 2.0 * self._gap
        if fair_tick > self.best_ask + slack:
            self._pull(self.ladders[ASK], fair_tick)
        elif fair_tick < self.best_bid - slack:
            self._pull(self.ladders[BID], fair_tick)

    def _pull(self, ladder: Ladder, fair_tick: float) -> None:
        for _ in range(_SWEEP_LEVELS):
            best = ladder.best
            passed = best < fair_tick if ladder.side == ASK else best > fair_tick
            if not passed or len(ladder.ticks) < 2:
                return
            self._put(ladder.side, best, 0)

    def _tighten(self, fair_tick: float) -> None:
        """Makers close a spread wider than wanted, around the fair price."""
        bid, ask = self.best_bid, self.best_ask
        wanted = 1 if self._rng.random() < 0.9 else 2
        if ask - bid <= wanted:
            return
        new_bid = max(bid, min(int(fair_tick), ask - wanted))
        if new_bid > bid:
            self._put(BID, new_bid, self._size(new_bid))
        if new_bid + wanted < ask:
            self._put(ASK, new_bid + wanted, self._size(new_bid + wanted))

    def _churn(self) -> None:
        """One order placed, changed or cancelled somewhere, mostly near the touch."""
        rng = self._rng
        ladder = self.ladders[rng.randrange(2)]
        kind = rng.random()
        if kind < 0.3:
            distance = 1 + int(rng.expovariate(0.12) * self._gap)
            tick = ladder.best + (distance if ladder.side == ASK else -distance)
            if tick > 0:
                self._put(ladder.side, tick, self._size(tick))
            return
        tick = ladder.rank(int(len(ladder.ticks) * rng.random() ** 3))
        if kind < 0.55 and tick != ladder.best:
            self._put(ladder.side, tick, 0)
        else:
            self._put(ladder.side, tick, self._size(tick))

    def _balance(self, ladder: Ladder) -> None:
        """Levels come and go over the whole depth, so that its shape stays as the price travels."""
        away = 1 if ladder.side == ASK else -1
        reach = _REACH * self.instrument.levels * self._gap
        if (ladder.worst - ladder.best) * away > reach * 1.2 or len(
            ladder.ticks
        ) > self.instrument.levels * 1.1:
            self._put(ladder.side, ladder.worst, 0)
        elif len(ladder.ticks) < self.instrument.levels:
            tick = ladder.best + away * (1 + int(self._rng.random() * reach))
            if tick > 0 and tick not in ladder.lots:
                self._put(ladder.side, tick, self._size(tick))

    # -- trades --------------------------------------------------------------------------------------------

    def _maybe_liquidate(self, fair_tick: float) -> None:
        storm = self._underlyings.asset(self.instrument.base).regime == len(_REGIMES) - 1
        self._liquidation_in -= 4.0 if storm else 1.0
        if self._liquidation_in <= 0.0:
            self._liquidation_in = self._rng.expovariate(1.0 / _LIQUIDATION_EVERY_STEPS)
            self._trade(fair_tick, forced=True)

    def _trade(self, fair_tick: float, *, forced: bool) -> None:
        rng = self._rng
        lean = (fair_tick - (self.best_bid + self.best_ask) / 2) / (4.0 * self._gap + 4.0)
        side = BUY if rng.random() < 0.5 + max(-0.35, min(0.35, lean)) else SELL
        ladder = self.ladders[ASK if side == BUY else BID]
        left = max(1, int(self._order_lots * rng.lognormvariate(0.0, 1.4) * (20.0 if forced else 1.0)))
        fills: list[tuple[int, int]] = []
        for _ in range(3 if forced or rng.random() < 0.08 else 1):
            left -= self._take(ladder, left, fills)
            if left <= 0:
                break
        if fills:
            self.last_tick = fills[-1][0]
            self.orders.append(Order(side, fills, forced))

    def _take(self, ladder: Ladder, wanted: int, fills: list[tuple[int, int]]) -> int:
        """Take up to `wanted` lots from the touch; a level may hold several resting orders."""
        if len(ladder.ticks) < 2:
            return wanted
        tick = ladder.best
        resting = ladder.lots[tick]
        taken = min(wanted, resting)
        first = taken // 3 if taken >= 3 and self._rng.random() < 0.1 else 0
        if first:
            fills.append((tick, first))
        fills.append((tick, taken - first))
        self._put(ladder.side, tick, resting - taken)
        if taken < resting and self._rng.random() < 0.35:
            self._put(ladder.side, tick, resting - taken + self._size(tick) // 4 + 1)
        return taken
