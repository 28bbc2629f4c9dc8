"""What `marketprism alert` does: a journal record of priority alert, and a webhook where one is configured.

systemd starts it as marketprism-alert@INSTANCE.service: for a unit that has failed for good (OnFailure=), or on behalf
of the control plane, for a worker above its soft memory limit.
"""

import json
import logging
import os
import re
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from marketprism.config import OFFERS

ALERT = 60  # above logging.CRITICAL; the journal calls it 1, alert

_ANSWER_WITHIN_S = 10.0
_CREDENTIAL = "alert.webhook"
_UNIT = re.compile(r"marketprism-(?:worker@)?([\w-]+)\.service")
_KNOWN = {
    "memory_soft": "{process} is above its soft memory limit; it runs on. If it goes on growing, it is started again "
    "at its hard limit",
}
_RESULTS = {  # $SERVICE_RESULT, systemd.exec(5)
    "start-limit-hit": "it failed too often in a short time",
    "exit-code": "it ended with exit status {status}",
    "signal": "it was ended by SIG{status}",
    "core-dump": "it was ended by SIG{status}",
    "watchdog": "it gave no sign of life",
    "oom-kill": "it was killed at its hard memory limit",
    "timeout": "it did not start or stop in time",
}
_EX_CONFIG = "78"  # sysexits.h; how a worker ends that cannot run with this configuration

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Alert:
    """What somebody is told. `event`: one word; `process`: an exchange, nats or control; `text`: one line."""

    event: str
    process: str
    text: str
    host: str
    ts_ms: int


def run(instance: str, environ: Mapping[str, str]) -> int:
    """Tell of one instance. Returns the exit status: 1 where the webhook was not reached."""
    logging.addLevelName(ALERT, "ALERT")
    alert = describe(instance, environ)
    worker = {"exchange": alert.process} if alert.process in OFFERS else {}
    log.log(ALERT, "%s", alert.text, extra={"event": "alert", **worker})
    directory = environ.get("CREDENTIALS_DIRECTORY")
    credential = Path(directory, _CREDENTIAL) if directory else None
    if credential is None or not credential.exists():
        return 0
    try:
        post(credential.read_text(encoding="utf-8").strip(), alert)
    except (OSError, ValueError, HTTPException) as e:
        reason = getattr(e, "reason", None) or e  # never the URL: who knows it can write there
        log.error("the webhook of %s was not told: %s", _CREDENTIAL, reason, extra={"event": "alert_failed"})
        return 1
    return 0


def describe(instance: str, environ: Mapping[str, str]) -> Alert:
    """An alert by the instance of its unit: EVENT:PROCESS, or the name of a unit that has failed.

    Why it failed is in $MONITOR_SERVICE_RESULT and $MONITOR_EXIT_STATUS (systemd.exec(5), systemd 251 and newer).
    """
    found = _UNIT.fullmatch(instance)
    event, _, process = ("failed", "", found[1]) if found else instance.partition(":")
    if event in _KNOWN:
        text = _KNOWN[event].format(process=process)
    elif found:
        text = f"{instance} is down and is not started again{_why(environ)}; see: journalctl -u {instance}"
    else:
        text = f"{instance}: an alert"
    return Alert(event, process or event, text, os.uname().nodename, time.time_ns() // 1_000_000)


def _why(environ: Mapping[str, str]) -> str:
    result, status = environ.get("MONITOR_SERVICE_RESULT", ""), environ.get("MONITOR_EXIT_STATUS", "")
    if not result:
        return ""
    why = _RESULTS.get(result, result).format(status=status)
    if result == "exit-code" and status == _EX_CONFIG:
        why = "its configuration is wrong: marketprism check-config"
    return f": {why}"


def post(url: str, alert: Alert) -> None:
    """POST as JSON; `text` is where chat services look. Raises OSError, ValueError or HTTPException."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or not re.fullmatch("[!-~]+", url):
        raise ValueError("expected one line with a URL such as https://host/path")
    body = json.dumps(asdict(alert)).encode()
    headers = {"Content-Type": "application/json", "User-Agent": "marketprism"}
    request = urllib.request.Request(url, body, headers)
    with urllib.request.urlopen(request, timeout=_ANSWER_WITHIN_S):
        pass
