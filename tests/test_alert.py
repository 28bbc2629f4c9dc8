"""`marketprism alert`: a record for the journal, and a webhook, told by a real HTTP server what it got."""

import json
import logging
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from test_journal import Journald

from marketprism import alert, logs
from marketprism.journal import JournalHandler

UNIT = "marketprism-worker@okx_spot.service"


class Webhook(ThreadingHTTPServer):
    """Keeps what it was told; answers with `status`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Told)
        self.told: queue.Queue[dict[str, Any]] = queue.Queue()
        self.status = 200
        self.url = f"http://127.0.0.1:{self.server_port}/hooks/s3cret-part"


class _Told(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Webhook)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.told.put({"path": self.path, "type": self.headers["Content-Type"], **body})
        self.send_response(server.status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Say nothing."""


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    server = Webhook()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def command(
    instance: str, credentials: Path | None = None, **environ: str
) -> subprocess.CompletedProcess[str]:
    """As systemd runs it."""
    given = {"CREDENTIALS_DIRECTORY": str(credentials)} if credentials else {}
    return subprocess.run(
        [sys.executable, "-m", "marketprism", "alert", instance],
        env={"PATH": os.environ["PATH"], **given, **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_failed_unit_is_told_to_the_webhook(tmp_path: Path, webhook: Webhook) -> None:
    (tmp_path / "alert.webhook").write_text(webhook.url + "\n")
    done = command(UNIT, tmp_path, MONITOR_SERVICE_RESULT="signal", MONITOR_EXIT_STATUS="SEGV")
    text = f"{UNIT} is down and is not started again: it was ended by SIGSEGV; see: journalctl -u {UNIT}"
    assert done.returncode == 0
    assert done.stderr.endswith(f"[alert] [ALERT] {text}\n")
    told = webhook.told.get_nowait()
    assert told.pop("ts_ms") > 1_700_000_000_000
    assert told == {
        "path": "/hooks/s3cret-part",
        "type": "application/json",
        "event": "failed",
        "process": "okx_spot",
        "text": text,
        "host": os.uname().nodename,
    }


def test_without_a_webhook_the_journal_alone_is_told(tmp_path: Path) -> None:
    for credentials in (None, tmp_path):
        done = command("memory_soft:okx_spot", credentials)
        assert done.returncode == 0
        assert "okx_spot is above its soft memory limit; it runs on" in done.stderr


@pytest.mark.parametrize(
    ("credential", "says"),
    [
        ("", "expected one line with a URL"),
        ("ftp://host/s3cret-part", "expected one line with a URL"),
        ("http://a/s3cret-part\nhttp://b/", "expected one line with a URL"),
        ("http://127.0.0.1:1/s3cret-part\0", "expected one line with a URL"),
        ("http://127.0.0.1:x/s3cret-part", "port"),
        ("http://127.0.0.1:1/s3cret-part", "Connection refused"),
    ],
)
def test_a_webhook_that_cannot_be_told_costs_a_line(
    tmp_path: Path, credential: str, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "alert.webhook").write_text(credential)
    assert alert.run(UNIT, {"CREDENTIALS_DIRECTORY": str(tmp_path)}) == 1
    told, failed = caplog.records
    assert told.levelname == "ALERT"
    assert failed.levelname == "ERROR"
    assert failed.getMessage().startswith("the webhook of alert.webhook was not told: ")
    assert says in failed.getMessage()
    assert "s3cret" not in caplog.text


def test_a_webhook_that_refuses_costs_a_line(tmp_path: Path, webhook: Webhook) -> None:
    webhook.status = 500
    (tmp_path / "alert.webhook").write_text(webhook.url)
    done = command("memory_soft:okx_spot", tmp_path)
    assert done.returncode == 1
    assert "was not told: Internal Server Error" in done.stderr
    assert "s3cret" not in done.stderr


@pytest.mark.parametrize(
    ("result", "status", "why"),
    [
        ("", "", ""),
        ("start-limit-hit", "", ": it failed too often in a short time"),
        ("exit-code", "3", ": it ended with exit status 3"),
        ("exit-code", "78", ": its configuration is wrong: marketprism check-config"),
        ("core-dump", "ABRT", ": it was ended by SIGABRT"),
        ("watchdog", "ABRT", ": it gave no sign of life"),
        ("oom-kill", "KILL", ": it was killed at its hard memory limit"),
        ("timeout", "TERM", ": it did not start or stop in time"),
        ("resources", "", ": resources"),
    ],
)
def test_why_a_unit_failed(result: str, status: str, why: str) -> None:
    environ = {"MONITOR_SERVICE_RESULT": result, "MONITOR_EXIT_STATUS": status}
    text = alert.describe(UNIT, environ).text
    assert text == f"{UNIT} is down and is not started again{why}; see: journalctl -u {UNIT}"


@pytest.mark.parametrize(
    ("instance", "event", "process"),
    [
        (UNIT, "failed", "okx_spot"),
        ("marketprism-nats.service", "failed", "nats"),
        ("marketprism-control.service", "failed", "control"),
        ("memory_soft:okx_spot", "memory_soft", "okx_spot"),
        ("anything", "anything", "anything"),
        ("", "", ""),
    ],
)
def test_what_an_instance_means(instance: str, event: str, process: str) -> None:
    told = alert.describe(instance, {})
    assert (told.event, told.process) == (event, process)


def test_the_journal_has_it_at_priority_alert(tmp_path: Path) -> None:
    journald = Journald(tmp_path / "socket")
    root = logging.getLogger("marketprism.alert")
    handler = JournalHandler("marketprism-alert", lambda: None, logging.StreamHandler(), journald.path)
    handler.setFormatter(logs.BodyFormatter())
    root.addHandler(handler)
    try:
        assert alert.run(UNIT, {}) == 0
        assert alert.run("marketprism-nats.service", {}) == 0
    finally:
        root.removeHandler(handler)
        handler.close()
    worker, nats = journald.record(), journald.record()
    journald.close()
    assert (worker["PRIORITY"], worker["EVENT"], worker["EXCHANGE"]) == ("1", "alert", "okx_spot")
    assert (nats["PRIORITY"], nats["EVENT"]) == ("1", "alert")
    assert "EXCHANGE" not in nats
