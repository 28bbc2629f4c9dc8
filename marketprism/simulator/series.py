"""Slow figures (funding, open interest, ratios, volatility) as smooth, seeded functions of time."""

import math
import random

_PERIODS_S = (420.0, 2_900.0, 14_000.0, 76_000.0)
_SHARES = (0.12, 0.2, 0.28, 0.4)


class Wave:
    """base plus a sum of sines within +-swing; a function of time alone, so history and live agree."""

    __slots__ = ("_base", "_phases", "_swing")

    def __init__(self, seed: str, base: float, swing: float) -> None:
        rng = random.Random(seed)
        self._base = base
        self._swing = swing
        self._phases = tuple(rng.uniform(0.0, math.tau) for _ in _PERIODS_S)

    def at(self, ts_ms: float) -> float:
        """The value at a moment (ms since the epoch)."""
        seconds = ts_ms / 1000.0
        total = 0.0
        for period, share, phase in zip(_PERIODS_S, _SHARES, self._phases, strict=True):
            total += share * math.sin(seconds * math.tau / period + phase)
        return self._base + self._swing * total


class Figures:
    """The slow figures of one derivative instrument."""

    __slots__ = ("account_ratio", "funding", "open_interest_usd", "position_ratio", "top_account_ratio")

    def __init__(self, seed: str, open_interest_usd: float) -> None:
        self.funding = Wave(seed + "/funding", 0.00008, 0.00016)
        self.open_interest_usd = Wave(seed + "/oi", open_interest_usd, open_interest_usd * 0.06)
        self.position_ratio = Wave(seed + "/position", 1.35, 0.4)
        self.account_ratio = Wave(seed + "/account", 1.6, 0.7)
        self.top_account_ratio = Wave(seed + "/top", 1.2, 0.5)


def funding_times_ms(now_ms: int, interval_ms: int = 8 * 3_600_000) -> tuple[int, int]:
    """The last and the next funding time around now, in ms."""
    last = now_ms - now_ms % interval_ms
    return last, last + interval_ms
