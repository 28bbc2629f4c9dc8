"""The NATS part of the settings: servers, login, TLS and the stream. Secrets come from outside the file."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote

from marketprism.config.document import Report, shown
from marketprism.config.found import Found
from marketprism.config.kinds import BadValueError, split_url
from marketprism.config.settings import NatsSettings, PublishSettings, StreamSettings, TlsSettings

_STREAM = "nats.jetstream.streams.MARKET_DATA"
_LOGIN = ("user", "password", "token", "creds_file", "nkey_seed_file")
_URL_VARIABLES = ("MARKETPRISM_NATS_URL", "NATS_URL")


def nats_settings(found: Found, environ: Mapping[str, str], report: Report) -> NatsSettings:
    """The NATS settings of file and environment; the environment goes before the file."""
    settings = NatsSettings(
        **found.fields(NatsSettings, "nats"),
        stream=_stream(found, report),
        publish=PublishSettings(**found.fields(PublishSettings, "nats.publish")),
    )
    settings = _from_url(settings, environ, report)
    settings = _login(settings, environ, report)
    return replace(settings, tls=_tls(settings, found, report))


def _from_url(settings: NatsSettings, environ: Mapping[str, str], report: Report) -> NatsSettings:
    """Servers, and their login, from the environment's URL or comma-separated URLs."""
    variable = next((v for v in _URL_VARIABLES if environ.get(v, "").strip()), None)
    if variable is None:
        return settings
    parts: list[SplitResult] = []
    for text in environ[variable].split(","):
        try:
            parts.append(split_url(text.strip(), ("nats", "tls", "ws", "wss")))
        except BadValueError:
            report.environment(variable, f"expected a URL such as nats://127.0.0.1:4222, got {shown(text)}")
    if len({p.netloc.rpartition("@")[0] for p in parts}) > 1:
        report.environment(variable, "expected the same credentials in every URL, got several")
    if not parts:
        return settings
    servers = tuple(p._replace(netloc=p.netloc.rpartition("@")[2]).geturl() for p in parts)
    name, secret = (unquote(t) if t else None for t in (parts[0].username, parts[0].password))
    if secret is None:  # as NATS itself reads it: a lone name is a token
        return replace(settings, servers=servers, token=name)
    return replace(settings, servers=servers, user=name, password=secret)


def _login(settings: NatsSettings, environ: Mapping[str, str], report: Report) -> NatsSettings:
    """With the environment's own variables and credential files; at most one way to log in."""
    given: dict[str, Any] = {
        name: environ.get(f"MARKETPRISM_NATS_{name.upper()}") for name in ("user", "password", "token")
    }
    settings = replace(settings, **{name: value for name, value in given.items() if value})
    if (settings.user is None) != (settings.password is None):
        report.environment(
            "MARKETPRISM_NATS_USER", "expected MARKETPRISM_NATS_PASSWORD with it, got one alone"
        )
    ways = [name for name in _LOGIN if getattr(settings, name) is not None and name != "password"]
    if len(ways) > 1:
        report.problem(0, "nats", f"expected one way to log in, got {', '.join(ways)}; keep one")
    if not ways and settings.password is None:
        return replace(settings, creds_file=_systemd_credentials(environ))
    return settings


def _systemd_credentials(environ: Mapping[str, str]) -> Path | None:
    """nats.creds as systemd's LoadCredential= hands it over (systemd.exec(5))."""
    directory = environ.get("CREDENTIALS_DIRECTORY")
    path = os.path.join(directory, "nats.creds") if directory else ""
    return Path(path) if os.path.isfile(path) else None


def _tls(settings: NatsSettings, found: Found, report: Report) -> TlsSettings | None:
    given = found.fields(TlsSettings, "nats.tls")
    tls = TlsSettings(**given)
    if tls.key_file and not tls.cert_file and not report.bad("nats.tls.cert_file"):
        report.problem(
            found.line("nats.tls.key_file"), "nats.tls.key_file", "expected cert_file with it, got none"
        )
    encrypted = any(server.startswith(("tls:", "wss:")) for server in settings.servers)
    return tls if given or encrypted else None


def _stream(found: Found, report: Report) -> StreamSettings:
    fields = found.fields(StreamSettings, _STREAM)
    more = fields.pop("subjects", ())
    stream = StreamSettings(**fields)
    path = f"{_STREAM}.duplicate_window"
    if 0 < stream.max_age_s < stream.duplicate_window_s and not report.bad(path, f"{_STREAM}.max_age"):
        line = found.line(path) or found.line(f"{_STREAM}.max_age")
        limit = f"at most max_age ({stream.max_age_s} s)"
        report.problem(line, path, f"expected {limit}, got {stream.duplicate_window_s}")
    return replace(stream, subjects=_merged(stream.subjects, more, found, report))


def _merged(own: tuple[str, ...], more: tuple[str, ...], found: Found, report: Report) -> tuple[str, ...]:
    """Our subjects and those the file adds; NATS refuses a stream whose subjects overlap."""
    path = f"{_STREAM}.subjects"
    kept = list(own)
    for subject in more:
        if any(_covers(k, subject) for k in kept):
            continue
        clash = next((k for k in kept if _overlap(k, subject)), None)
        if clash is not None:
            text = f"expected subjects beside MarketPrism's own, got '{subject}' which overlaps '{clash}'"
            report.problem(found.line(path), path, text)
        else:
            kept.append(subject)
    return tuple(kept)


def _covers(wide: str, narrow: str) -> bool:
    """Whether every subject that matches `narrow` also matches `wide`."""
    wides, narrows = wide.split("."), narrow.split(".")
    for i, token in enumerate(wides):
        if token == ">":
            return len(narrows) > i
        if i >= len(narrows) or narrows[i] == ">" or token not in ("*", narrows[i]):
            return False
    return len(wides) == len(narrows)


def _overlap(one: str, other: str) -> bool:
    """Whether some subject matches both."""
    ones, others = one.split("."), other.split(".")
    for a, b in zip(ones, others, strict=False):
        if ">" in (a, b):
            return True
        if a != b and "*" not in (a, b):
            return False
    return len(ones) == len(others)
