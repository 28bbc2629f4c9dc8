"""What a value may be: each `Kind` says it in words, and turns a raw YAML value into a checked one."""

import difflib
import os
import re
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from marketprism.config.document import shown
from marketprism.config.offers import DATA_TYPES, Offer


class BadValueError(Exception):
    """A value that does not fit. `got` replaces the value in the message, `advice` ends it."""

    def __init__(self, advice: str = "", *, got: str = "") -> None:
        super().__init__(advice)
        self.advice = advice
        self.got = got


def _same(value: Any) -> Any:
    return value


def _silent(value: Any) -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Kind:
    """One sort of value. `convert` raises BadValueError; `note` gives a warning about a good value, or "".

    With `item` the value is a list of that kind, each item once, and `convert` gets the converted tuple.
    """

    expect: str
    convert: Callable[[Any], Any] = _same
    note: Callable[[Any], str] = _silent
    item: "Kind | None" = None

    def complaint(self, value: Any, bad: BadValueError) -> str:
        """`expected …, got …; advice`."""
        text = f"expected {self.expect}, got {bad.got or shown(value)}"
        return f"{text}; {bad.advice}" if bad.advice else text


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?` for the nearest known word, else ""."""
    lowered = {k.lower(): k for k in known}
    near = difflib.get_close_matches(word.lower()[:60], lowered, n=1, cutoff=0.6)
    return f"did you mean '{lowered[near[0]]}'?" if near else ""


def no_effect(why: str = "") -> Kind:
    """Any value: it is accepted and changes nothing."""
    return Kind("anything", note=lambda _: f"has no effect: {why}" if why else "has no effect")


def fixed(value: Any, why: str = "") -> Kind:
    """Any value, but only this one is what happens."""
    shown_value = str(value).lower() if isinstance(value, bool) else str(value)
    reason = f"has no effect: it is always {shown_value}{', ' if why else ''}{why}"
    return Kind(f"`{shown_value}`", note=lambda given: "" if given == value else reason)


def secret(remedy: str) -> Kind:
    """A place where a secret must not stand; `remedy` says where it belongs."""

    def refuse(_: Any) -> Any:
        raise BadValueError(remedy, got="one in this file")

    return Kind("no credential here", refuse)


def flag() -> Kind:
    """true or false."""

    def convert(value: Any) -> bool:
        if isinstance(value, bool):
            return value
        raise BadValueError(got=f"the text {shown(value)}" if isinstance(value, str) else "")

    return Kind("true or false", convert)


def whole(low: int, high: int, *, also: int | None = None) -> Kind:
    """A whole number within bounds, or the one value `also`."""

    def convert(value: Any) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and (low <= value <= high or value == also):
            return value
        raise BadValueError(got=f"the text {shown(value)}" if isinstance(value, str) else "")

    extra = "" if also is None else f", or {also} for no limit"
    return Kind(f"a whole number from {low} to {high}{extra}", convert)


def seconds(low: float, high: float) -> Kind:
    """A duration in seconds."""

    def convert(value: Any) -> float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and low <= value <= high:
            return float(value)
        raise BadValueError(got=f"the text {shown(value)}" if isinstance(value, str) else "")

    return Kind(f"a number of seconds from {low:g} to {high:g}", convert)


def one_of(*choices: Any, fold: Callable[[Any], Any] = _same) -> Kind:
    """One of a few values; `fold` makes equal what counts as equal."""

    def convert(value: Any) -> Any:
        folded = fold(value) if isinstance(value, str) else value
        if isinstance(folded, bool) == isinstance(choices[0], bool) and folded in choices:
            return choices[choices.index(folded)]
        words = [c for c in choices if isinstance(c, str)]
        raise BadValueError(did_you_mean(value, words) if isinstance(value, str) else "")

    listed = ", ".join(map(str, choices))
    return Kind(f"one of {listed}" if len(choices) > 1 else listed, convert)


def text(expect: str, pattern: str = r".{1,200}") -> Kind:
    """Printable text that fits a pattern."""
    compiled = re.compile(pattern)

    def convert(value: Any) -> str:
        if isinstance(value, str) and value.isprintable() and compiled.fullmatch(value):
            return value
        raise BadValueError

    return Kind(expect, convert)


def host() -> Kind:
    """An address to listen on."""
    return text("an address such as 127.0.0.1", r"[0-9A-Za-z.:_-]{1,253}")


def split_url(value: Any, schemes: tuple[str, ...]) -> SplitResult:
    """A checked URL. Raises BadValueError."""
    if not isinstance(value, str) or not value.isprintable() or re.search(r"\s", value):
        raise BadValueError
    try:
        parts = urlsplit(value)
        known = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known:
        raise BadValueError
    return parts


def url(*schemes: str, example: str) -> Kind:
    """The address of an exchange, without a trailing slash and without credentials."""

    def convert(value: Any) -> str:
        parts = split_url(value, schemes)
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise BadValueError(
                "leave out user, query and fragment", got="more than scheme, host, port and path"
            )
        return str(value).rstrip("/")

    return Kind(f"a URL such as {example}", convert)


def nats_url() -> Kind:
    """The address of a NATS server, without credentials."""

    def convert(value: Any) -> str:
        parts = split_url(value, ("nats", "tls", "ws", "wss"))
        if "@" in parts.netloc:
            where = "MARKETPRISM_NATS_USER and MARKETPRISM_NATS_PASSWORD in the environment"
            raise BadValueError(
                f"put them into {where}, or use nats.creds_file", got="a URL with credentials"
            )
        return str(value)

    return Kind("a URL such as nats://127.0.0.1:4222", convert)


def readable_file() -> Kind:
    """The path of a regular file this process may read."""

    def convert(value: Any) -> Path:
        if not isinstance(value, str) or not value.isprintable() or not value:
            raise BadValueError
        try:
            if not stat.S_ISREG(os.stat(value).st_mode):
                raise BadValueError("it is not a regular file")
            if not os.access(value, os.R_OK):
                raise BadValueError("permission denied")
        except OSError as error:
            raise BadValueError((error.strerror or "it cannot be read").lower()) from None
        return Path(value)

    return Kind("the path of a readable file", convert)


def list_of(item: Kind, expect: str, *, empty_ok: bool = False) -> Kind:
    """A list of values, each once."""

    def convert(value: Any) -> Any:
        if not value and not empty_ok:
            raise BadValueError(got="an empty list")
        return value

    return Kind(expect, convert, item=item)


def symbol(offer: Offer) -> Kind:
    """An id as this exchange writes it."""

    def convert(value: Any) -> str:
        if not isinstance(value, str):
            raise BadValueError(got="" if value is None else f"{shown(value)}, which is not text")
        if value.isprintable() and offer.symbol_pattern.fullmatch(value):
            return value
        raise BadValueError(_other_spelling(offer, value))

    return Kind(offer.symbol_example, convert)


def _other_spelling(offer: Offer, value: str) -> str:
    """The same instrument in this exchange's spelling, as far as the name tells."""
    dashed = re.sub(r"[/_:]", "-", value[:60].upper())
    spot = dashed.removesuffix("-SWAP")
    for guess in (dashed, spot, spot.replace("-", ""), f"{dashed}-SWAP"):
        if guess.isprintable() and offer.symbol_pattern.fullmatch(guess):
            return f"did you mean '{guess}'?"
    return ""


def store() -> Kind:
    """Where a store is: a directory, or a ClickHouse server's URL without credentials."""
    server = url("http", "https", example="http://host:8123")
    directory = text("a directory")

    def convert(value: Any) -> str:
        is_url = isinstance(value, str) and "://" in value
        return str((server if is_url else directory).convert(value))

    return Kind("a directory, or a ClickHouse server such as http://host:8123", convert)


def any_symbol(offers: Iterable[Offer]) -> Kind:
    """An id as at least one of these exchanges writes it."""
    patterns = [offer.symbol_pattern for offer in offers]

    def convert(value: Any) -> str:
        if isinstance(value, str) and value.isprintable() and any(p.fullmatch(value) for p in patterns):
            return value
        raise BadValueError

    return Kind("an exchange's own id such as BTCUSDT, BTC-USDT-SWAP or BTC-PERPETUAL", convert)


def data_type(offer: Offer) -> Kind:
    """A data type that this exchange offers."""

    def convert(value: Any) -> str:
        if isinstance(value, str) and value in offer.data_types:
            return value
        if isinstance(value, str) and value in DATA_TYPES:
            raise BadValueError(f"{offer.name} does not offer it")
        raise BadValueError(did_you_mean(value, offer.data_types) if isinstance(value, str) else "")

    return Kind(f"one of {', '.join(offer.data_types)}", convert)


def book_depth(offer: Offer) -> Kind:
    """Levels of a book. OKX sends its 400 whatever is asked; Deribit the whole book."""
    most = offer.depth_max
    if offer.exchange == "okx":
        note = f"is more than the {most} levels of OKX; {most} are used"
        return Kind(
            f"a whole number from 1 to {most}",
            lambda value: min(whole(1, 5000).convert(value), most or value),
            lambda value: note if value > (most or value) else "",
        )
    if most is None:
        return Kind(
            "a whole number from 1 to 10000",
            whole(1, 10_000).convert,
            lambda _: "has no effect: Deribit sends whole books",
        )
    return whole(1, most)


def published_depth(offer: Offer) -> Kind:
    """Levels of a published `orderbook`."""
    return whole(1, offer.depth_max or 10_000)


def resolution() -> Kind:
    """Deribit's resolution of volatility candles (get_volatility_index_data), in seconds."""
    known = {"1": 1, "60": 60, "3600": 3600, "43200": 43_200, "1D": 86_400}

    def convert(value: Any) -> int:
        key = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
        if key in known:
            return known[key]
        raise BadValueError

    return Kind(f"one of {', '.join(known)}", convert)


def subject_name() -> Kind:
    """A NATS subject, wildcards allowed."""
    return text("a NATS subject such as trade.okx.>", r"(?:[^\s.*>]+|\*)(?:\.(?:[^\s.*>]+|\*))*(?:\.>)?|>")
