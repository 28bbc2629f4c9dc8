"""The JetStream stream market data goes to: created where it is missing, updated in place, never deleted.

A change that would make the server throw away messages is refused with the reason; a person can then decide.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import nats.errors
from nats.aio.client import Client

from marketprism.worker.nats_link import UNREADABLE

ATTEMPTS = 5
STREAMS_MAX = 10_000  # looked at for one that overlaps
TIMEOUT_S = 5.0
NS_PER_S = 1_000_000_000
UNAVAILABLE = 503
# JetStream's error numbers (nats-server, errors.json).
STREAM_NAME_IN_USE = 10058
STREAM_NOT_FOUND = 10059
SUBJECTS_OVERLAP = 10065

Config = dict[str, Any]
"""A stream's configuration in the words of JetStream's API. Kept as it came: an update changes what it names only."""


class StreamError(Exception):
    """The stream cannot become what was asked: one line with what is there, what was asked and what to do."""


class StreamUnavailableError(nats.errors.Error):
    """JetStream cannot answer now; asking again later may help."""


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """What the stream is to be. A limit of -1 means none; `max_age_s` 0 means kept for ever.

    `max_consumers` counts at creation only, because JetStream cannot change it later.
    """

    subjects: Sequence[str]
    name: str = "MARKET_DATA"
    max_msgs: int = 5_000_000
    max_bytes: int = 2 * 1024**3
    max_age_s: float = 172_800.0
    max_consumers: int = -1
    duplicate_window_s: float = 120.0
    storage: str = "file"
    replicas: int = 1
    discard: str = "old"


class _Refused(Exception):  # noqa: N818 - never leaves this module
    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


async def ensure_stream(client: Client, wanted: StreamOptions) -> None:
    """Create the stream or update it in place; safe to call by several workers at once, and again at any
    time.

    Raises StreamError if the change would lose data or the server refuses it. Errors of nats-py
    (nats.errors.Error) mean that JetStream could not be asked now, and the call may be repeated.
    """
    try:
        await _ensure(client, wanted)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise StreamUnavailableError(f"JetStream's answer is not as documented: {error!r}") from error


async def _ensure(client: Client, wanted: StreamOptions) -> None:
    for _ in range(ATTEMPTS):
        try:
            info = await _ask(client, f"INFO.{wanted.name}")
        except _Refused as refusal:
            if refusal.code != STREAM_NOT_FOUND:
                raise _explained(wanted, "read", refusal) from refusal
            if await _create(client, wanted):
                return
        else:
            await _update(client, wanted, info)
            return
    raise StreamError(f"stream {wanted.name} keeps appearing and vanishing; is something else deleting it?")


async def _ask(client: Client, verb: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """One call of JetStream's stream API."""
    try:
        request = msgspec.json.encode(body or {})
        answer = await client.request(f"$JS.API.STREAM.{verb}", request, timeout=TIMEOUT_S)
        reply: dict[str, Any] = msgspec.json.decode(answer.data, type=dict[str, Any])
    except nats.errors.NoRespondersError as error:
        raise StreamUnavailableError(
            "NATS answers, JetStream does not: is it switched on (nats-server -js)?"
        ) from error
    except UNREADABLE as error:
        raise StreamUnavailableError(f"JetStream's answer cannot be read: {error}") from error
    if problem := reply.get("error"):
        text = str(problem.get("description", "no reason given"))
        if problem.get("code") == UNAVAILABLE:
            raise StreamUnavailableError(f"JetStream is not available: {text}")
        raise _Refused(int(problem.get("err_code", 0)), text)
    return reply


async def _create(client: Client, wanted: StreamOptions) -> bool:
    """Create it; False if somebody else was faster, with other settings."""
    fixed = {"name": wanted.name, "retention": "limits", "max_consumers": wanted.max_consumers}
    try:
        await _ask(client, f"CREATE.{wanted.name}", fixed | _changeable(wanted))
    except _Refused as refusal:
        if refusal.code == STREAM_NAME_IN_USE:
            return False
        raise await _told(client, wanted, "create", refusal) from refusal
    return True


async def _update(client: Client, wanted: StreamOptions, info: dict[str, Any]) -> None:
    config: Config = info["config"]
    changed = config | _changeable(wanted)
    if _comparable(changed) == _comparable(config):
        return
    _refuse_other_kind(wanted, config)
    _refuse_tighter_limits(wanted, config, info["state"])
    await _refuse_orphans(client, wanted, config)
    try:
        await _ask(client, f"UPDATE.{wanted.name}", changed)
    except _Refused as refusal:
        raise await _told(client, wanted, "update", refusal) from refusal


def _changeable(wanted: StreamOptions) -> Config:
    """What is set at creation and can be changed later, in JetStream's words."""
    return {
        "subjects": list(wanted.subjects),
        "max_msgs": wanted.max_msgs,
        "max_bytes": wanted.max_bytes,
        "max_age": int(wanted.max_age_s * NS_PER_S),
        "duplicate_window": int(wanted.duplicate_window_s * NS_PER_S),
        "storage": wanted.storage,
        "num_replicas": wanted.replicas,
        "discard": wanted.discard,
        "allow_direct": True,
    }


def _comparable(config: Config) -> Config:
    return config | {"subjects": sorted(config.get("subjects") or ())}


def _refuse_other_kind(wanted: StreamOptions, config: Config) -> None:
    """What no update can change, or only by losing data."""
    if config["storage"] != wanted.storage:
        raise _conflict(wanted, f"is stored in {config['storage']}", f"{wanted.storage} was asked for")
    if config["retention"] != "limits":
        raise _conflict(wanted, f"has retention {config['retention']}", "limits is needed")
    if config.get("mirror") or config.get("sealed"):
        raise _conflict(
            wanted, "is sealed" if config.get("sealed") else "is a mirror", "it must take new messages"
        )


def _conflict(wanted: StreamOptions, there: str, asked: str) -> StreamError:
    return StreamError(
        f"stream {wanted.name} {there} and {asked}: not possible without losing its messages; "
        "configure it as it is, choose another stream name, or move its data and delete it yourself"
    )


def _refuse_tighter_limits(wanted: StreamOptions, config: Config, state: dict[str, Any]) -> None:
    checks = (
        ("max_msgs", "messages", wanted.max_msgs, config["max_msgs"], state["messages"]),
        ("max_bytes", "bytes", wanted.max_bytes, config["max_bytes"], state["bytes"]),
        ("max_age", "seconds of data", wanted.max_age_s, config["max_age"] / NS_PER_S, _age_s(state)),
    )
    for key, unit, asked, there, held in checks:
        tighter = asked > 0 and (there <= 0 or asked < there)
        if tighter and held > asked:
            raise StreamError(
                f"stream {wanted.name} holds {held:.0f} {unit} and {key} {asked:.0f} was asked for: the rest "
                f"would be deleted; configure {key} of at least {held:.0f}, or make room yourself (nats stream purge)"
            )


def _age_s(state: dict[str, Any]) -> float:
    """Age of the oldest message by our clock; 0 for an empty stream."""
    if not state["messages"]:
        return 0.0
    return (datetime.now(UTC) - msgspec.convert(state["first_ts"], datetime)).total_seconds()


async def _refuse_orphans(client: Client, wanted: StreamOptions, config: Config) -> None:
    """A subject given up while the stream holds messages of it."""
    for pattern in config.get("subjects") or ():
        if _covered(pattern, wanted.subjects):
            continue
        info = await _ask(client, f"INFO.{wanted.name}", {"subjects_filter": pattern})
        held: dict[str, int] = info["state"].get("subjects") or {}
        orphans = sorted(subject for subject in held if not _covered(subject, wanted.subjects))
        if orphans:
            raise StreamError(
                f"stream {wanted.name} holds messages of {orphans[0]} ({len(orphans)} such subjects) and the "
                f"subjects asked for leave out {pattern}: keep it among them, or purge it yourself "
                "(nats stream purge --subject)"
            )


async def _told(client: Client, wanted: StreamOptions, verb: str, refusal: _Refused) -> StreamError:
    """The server's refusal in one line, naming the other stream where subjects overlap."""
    if refusal.code == SUBJECTS_OVERLAP and (other := await _overlapping(client, wanted)):
        stream, theirs, ours = other
        return StreamError(
            f"cannot {verb} stream {wanted.name}: its subject {ours} overlaps {theirs} of stream {stream}; "
            "take it from one of the two, a message belongs to one stream only"
        )
    return _explained(wanted, verb, refusal)


def _explained(wanted: StreamOptions, verb: str, refusal: _Refused) -> StreamError:
    return StreamError(
        f"NATS refuses to {verb} stream {wanted.name}: {refusal} (JetStream error {refusal.code})"
    )


async def _overlapping(client: Client, wanted: StreamOptions) -> tuple[str, str, str] | None:
    """Another stream's name, its subject and ours that meet."""
    offset = 0
    while offset < STREAMS_MAX and (page := (await _ask(client, "LIST", {"offset": offset})).get("streams")):
        offset += len(page)
        for config in (info["config"] for info in page):
            pair = _meeting(config.get("subjects") or (), wanted.subjects)
            if pair and config["name"] != wanted.name:
                return str(config["name"]), *pair
    return None


def _meeting(theirs: Iterable[str], ours: Sequence[str]) -> tuple[str, str] | None:
    return next(((a, b) for a in theirs for b in ours if _overlap(a.split("."), b.split("."))), None)


def _overlap(a: list[str], b: list[str]) -> bool:
    """Whether some subject matches both (NATS docs, subject-based messaging: `*` one token, `>` one or more)."""
    for left, right in zip(a, b, strict=False):
        if ">" in (left, right):
            return True
        if left != right and "*" not in (left, right):
            return False
    return len(a) == len(b)


def _covered(pattern: str, by: Iterable[str]) -> bool:
    """Whether one of the patterns matches all that `pattern` matches."""
    return any(_covers(wide.split("."), pattern.split(".")) for wide in by)


def _covers(wide: list[str], narrow: list[str]) -> bool:
    for position, token in enumerate(wide):
        if position >= len(narrow):
            return False
        if token == ">":
            return True
        if narrow[position] == ">" or (token != "*" and token != narrow[position]):
            return False
    return len(wide) == len(narrow)
