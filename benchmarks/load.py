"""What is sent to the workers."""

from itertools import islice, product
from string import ascii_uppercase

import msgspec


class Load(msgspec.Struct, frozen=True, omit_defaults=True):
    """A steady load of the simulated exchanges.

    rate: messages per second and exchange. exchange: the only one; None: all five. symbols: how many of them, on
    spot exchanges; None: as shipped. levels: of each side of a book, there and in the snapshot asked for; None: as
    shipped.
    """

    rate: float = 120.0
    seed: int = 1
    exchange: str | None = None
    symbols: int | None = None
    levels: int | None = None


def symbol_names(exchange: str, count: int) -> list[str]:
    """So many different names in the spelling of a spot exchange."""
    quote = "-USDT" if exchange == "okx_spot" else "USDT"
    return ["".join(letters) + quote for letters in islice(product(ascii_uppercase, repeat=3), count)]
