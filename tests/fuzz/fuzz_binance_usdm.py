"""Binance USD-M futures: frames, REST bodies, connections and time, see `scripted`."""

from collections.abc import Iterator

import scripted
from mutation import mutate

__all__ = ["mutate", "one", "seeds"]

EXCHANGE = "binance_derivatives"


def one(data: bytes) -> None:
    """Run one script."""
    scripted.run(EXCHANGE, "BTCUSDT", data)


def seeds() -> Iterator[bytes]:
    """Scripts made of the recordings."""
    return scripted.scripts([EXCHANGE])
