"""The pages for people, over a real server and, where there is one, in a real browser."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
from pathlib import Path

import aiohttp
import pytest
from exposition import plane

from marketprism.control import server
from marketprism.control.actions import Actions
from marketprism.control.server import health_app, serve

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PAGES = sorted((Path(server.__file__).parent / "web").glob("*.html"))


async def asked(directory: Path, *paths: str) -> list[tuple[int, str]]:
    """(status, body) of each path."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        runner = await serve(health_app(plane(directory), Actions()), sock)
        try:
            async with aiohttp.ClientSession(f"http://127.0.0.1:{sock.getsockname()[1]}") as session:
                return [await answer(session, path) for path in paths]
        finally:
            await runner.cleanup()


async def answer(session: aiohttp.ClientSession, path: str) -> tuple[int, str]:
    async with session.get(path) as response:
        return response.status, await response.text()


async def seen(directory: Path, path: str) -> str:
    """The page as the browser has made it."""
    assert CHROMIUM is not None
    with socket.create_server(("127.0.0.1", 0)) as sock:
        runner = await serve(health_app(plane(directory), Actions()), sock)
        browser = await asyncio.create_subprocess_exec(
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000"),
            *(f"--user-data-dir={directory / 'browser'}", "--dump-dom"),
            f"http://127.0.0.1:{sock.getsockname()[1]}{path}",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            return (await asyncio.wait_for(browser.communicate(), 60))[0].decode()
        finally:
            await runner.cleanup()


def test_every_link_of_the_pages_leads_somewhere(tmp_path: Path) -> None:
    pages = "".join(page.read_text() for page in PAGES)
    links = sorted(set(re.findall(r'(?:href="|fetch\(")(/[\w./]*)"', pages)))
    assert {"/", "/api", "/health", "/openapi.json"} <= set(links)
    for link, (status, _) in zip(links, asyncio.run(asked(tmp_path, *links)), strict=True):
        assert status == 200, link


def rows(page: str, begin: str) -> str:
    """The text between the element `begin` and the script."""
    text = re.sub(r"<[^>]*>", " ", page.partition(begin)[2].partition("<script>")[0])
    return " ".join(text.split())


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium to look at the pages with")
def test_a_browser_shows_how_each_worker_is_and_why(tmp_path: Path) -> None:
    text = rows(asyncio.run(seen(tmp_path, "/")), '<tbody id="rows">')
    assert "okx_spot degraded 1.0 h 32.5 145.0 (120/160)" in text
    assert "uses 145 MB, soft limit 120 MB" in text


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium to look at the pages with")
def test_a_browser_shows_what_can_be_asked_and_ordered(tmp_path: Path) -> None:
    text = rows(asyncio.run(seen(tmp_path, "/api")), '<main id="paths">')
    for told in ("GET /health/{process}", "POST /workers/{process}/restart", "orders are off"):
        assert told in text
