"""What the exchanges speak. Sans-I/O: bytes and time in, events and requests out."""

from marketprism.venues.binance import Binance
from marketprism.venues.deribit import Deribit
from marketprism.venues.okx import Okx
from marketprism.venues.venue import Venue

VENUES: dict[str, type[Venue]] = {
    "binance_spot": Binance,
    "binance_derivatives": Binance,
    "okx_spot": Okx,
    "okx_derivatives": Okx,
    "deribit_derivatives": Deribit,
}
