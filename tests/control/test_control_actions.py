"""Orders over HTTP: who may give them, and the launcher carrying them out. With systemd: tests/vm."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_launcher import Rig, until

from marketprism.control.actions import Actions, TokenError, read_token

TOKEN = "0123456789abcdef"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.clean_up()


def post(rig: Rig, path: str, authorization: str = f"Bearer {TOKEN}") -> tuple[int, dict[str, Any]]:
    url = f"http://127.0.0.1:{rig.state()['health_port']}{path}"
    request = urllib.request.Request(url, method="POST", headers={"Authorization": authorization})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as e:
        return e.code, json.loads(e.read())


def test_where_the_token_is_looked_for(tmp_path: Path) -> None:
    file, credentials = tmp_path / "file", tmp_path / "credentials"
    file.write_text("of the file\n")
    credentials.mkdir()
    environ = {"CREDENTIALS_DIRECTORY": str(credentials)}
    assert read_token(None, {}) == read_token(None, environ) == ""
    assert read_token(file, environ) == "of the file"
    (credentials / "control.token").write_text("of the credential\n")
    assert read_token(file, environ) == "of the credential"
    with pytest.raises(TokenError, match=r"cannot read the token file .*none"):
        read_token(tmp_path / "none", {})


def test_a_token_that_can_be_guessed_is_refused() -> None:
    with pytest.raises(TokenError, match="at least 16 characters, got 5; make one with: openssl rand"):
        Actions("short")


@pytest.mark.parametrize(
    ("authorization", "allowed"),
    [
        (f"Bearer {TOKEN}", True),
        (f"bearer {TOKEN}", True),
        (f"Bearer {TOKEN}x", False),
        (f"Basic {TOKEN}", False),
        (TOKEN, False),
        ("Bearer ", False),
        ("", False),
        ("Bearer \u00fc", False),
    ],
)
def test_who_is_allowed(authorization: str, allowed: bool) -> None:
    assert Actions(TOKEN).allows(authorization) is allowed
    assert not Actions().allows(authorization)


def test_without_a_token_orders_are_off(rig: Rig) -> None:
    rig.start(["okx_spot"])
    rig.wait_status("okx_spot", "healthy")
    status, answer = post(rig, "/workers/okx_spot/restart", "Bearer ")
    assert status == 403
    assert "orders are off" in answer["error"]
    assert rig.entry("okx_spot")["restarts"] == 0


def test_orders(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "control.token").write_text(TOKEN)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    rig.start(["okx_spot", "binance_spot"])
    okx, binance = (rig.wait_status(name, "healthy")["pid"] for name in ("okx_spot", "binance_spot"))
    assert post(rig, "/workers/okx_spot/restart", "Bearer 0123456789abcdeX")[0] == 401
    assert post(rig, "/workers/launcher/restart") == (
        404,
        {"error": "no process 'launcher'; there are: okx_spot, binance_spot"},
    )
    assert post(rig, "/workers/okx_spot/restart") == (202, {"worker": "okx_spot", "ordered": "restart"})
    until(lambda: rig.entry("okx_spot")["pid"] not in (None, okx), "another process")
    rig.wait_status("okx_spot", "healthy")
    assert post(rig, "/workers/okx_spot/stop")[0] == 202
    until(lambda: rig.entry("okx_spot")["explanations"] == ["is stopped"], "its end")
    status, answer = post(rig, "/workers/okx_spot/reload")
    assert status == 409
    assert "so it cannot reload" in answer["error"]
    assert post(rig, "/workers/okx_spot/start")[0] == 202
    assert rig.wait_status("okx_spot", "healthy")["restarts"] == 2
    assert rig.entry("binance_spot")["pid"] == binance
    assert rig.log().count("[launcher] [INFO] restart of okx_spot ordered over HTTP") == 1
    assert TOKEN not in rig.log()
