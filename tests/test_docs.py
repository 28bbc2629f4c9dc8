"""The documentation is true: schemas, links, commands, names and quoted messages are those of the code."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import re
import shlex
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree as ET

import msgspec
import pytest
import yaml
from captures import capture, of, replay

from chaos.consumer import ConsumerBook
from marketprism import schemas
from marketprism.book import Book
from marketprism.cli import _parser
from marketprism.config import load
from marketprism.events import PAYLOADS, OrderBookDelta

ROOT = Path(__file__).parents[1]
EVENTS = ROOT / "docs" / "events"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def _text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _blocks(name: str, language: str) -> list[str]:
    return [body for kind, body in BLOCK.findall(_text(name)) if kind == language]


def _code(name: str) -> list[str]:
    """Inline code and the lines of shell blocks."""
    inline = re.findall(r"`([^`\n]+)`", BLOCK.sub("", _text(name)))
    return inline + [line for block in _blocks(name, "sh") for line in block.splitlines()]


# -- events ----------------------------------------------------------------------------------------------------


def test_committed_schemas_are_the_codes() -> None:
    committed = {path.name: path.read_text(encoding="utf-8") for path in EVENTS.glob("*.schema.json")}
    assert committed == schemas.files(), "run: .venv/bin/python -m marketprism.schemas"


def test_tables_are_the_codes() -> None:
    text = _text("docs/events/README.md")
    assert schemas.page(text) == text, "run: .venv/bin/python -m marketprism.schemas"


def test_each_meaning_belongs_to_a_field() -> None:
    for name, meanings in schemas.MEANINGS.items():
        struct = PAYLOADS[name or "trade"]
        unknown = meanings.keys() - {*struct.__struct_fields__, "data_type"}
        assert not unknown, f"{name}: no such field: {unknown}"


def test_writing_needs_the_markers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "README.md").write_text("no markers")
    assert schemas.main(tmp_path) == 1
    assert "expected the markers" in capsys.readouterr().err
    (tmp_path / "README.md").write_text(f"{schemas.BEGIN}0utdated{schemas.END} rest")
    assert schemas.main(tmp_path) == 0
    assert len(list(tmp_path.glob("*.schema.json"))) == len(PAYLOADS)
    assert "0utdated" not in (tmp_path / "README.md").read_text()


# -- the consumer in the documentation -------------------------------------------------------------------------


def _example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rebuild_book", EVENTS / "rebuild_book.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _told(
    kind: str, ids: tuple[int | None, int | None, int], bid: str, quantity: str, **more: Any
) -> dict[str, Any]:
    first, prev, last = ids
    return {
        "exchange": "binance",
        "ts_ms": last,
        "update_type": kind,
        "bids": [[bid, quantity]],
        "asks": [["200", "1"]] if kind == "snapshot" else [],
        "first_update_id": first,
        "prev_update_id": prev,
        "last_update_id": last,
        "exact_from": None,
        "exact_to": None,
    } | more


def test_the_page_quotes_the_example() -> None:
    source = (EVENTS / "rebuild_book.py").read_text(encoding="utf-8")
    (quoted,) = _blocks("docs/events/README.md", "python")
    assert quoted.strip() in source


def test_the_example_follows_by_the_ids() -> None:
    book = _example().Book()
    assert not book.take(_told("delta", (5, 4, 6), "100", "1"))  # nothing before a snapshot
    assert book.take(_told("snapshot", (None, None, 10), "100.0", "1"))
    assert book.take(_told("delta", (9, 8, 12), "100", "2"))  # the snapshot ends within it
    assert book.bids == {Decimal(100): "2"}
    assert book.take(_told("delta", (13, 12, 13), "100", "0"))
    assert book.bids == {}
    assert not book.take(_told("delta", (15, 14, 15), "101", "1"))  # 14 is missing
    assert not book.take(_told("delta", (16, 15, 16), "101", "1"))
    assert book.take(_told("snapshot", (None, None, 20), "100", "1"))
    assert book.take(_told("delta", (18, 15, 25), "100", "3"))  # USD-M: ids leap
    assert book.take(_told("delta", (30, 25, 31), "100", "4"))
    assert book.take(_told("delta", (30, 26, 33), "100", "5"))  # another collector's, cut differently
    assert not book.take(_told("delta", (35, 34, 36), "100", "5"))
    assert book.take(_told("snapshot", (None, None, 40), "100", "1", exact_from="100"))
    assert book.take(_told("delta", (None, 38, 44), "99", "3"))
    assert book.take(_told("delta", (None, 44, 3), "98", "3", exchange="okx", ts_ms=50))  # OKX begins anew
    assert book.top(5) == ([Decimal(100)], [Decimal(200)])


def test_the_example_passes_over_a_second_collector() -> None:
    book = _example().Book()
    book.take(_told("snapshot", (None, None, 10), "100", "1"))
    book.take(_told("delta", (11, 10, 15), "100", "2"))
    assert book.take(_told("snapshot", (None, None, 12), "100", "1"))  # it began a moment ago
    assert book.take(_told("delta", (11, 10, 15), "100", "9"))  # held already
    assert book.bids == {Decimal(100): "2"}
    assert book.take(_told("delta", (16, 15, 17), "100", "7"))
    assert book.take(_told("snapshot", (None, None, 17), "100", "7"))  # a checkpoint
    assert book.bids == {Decimal(100): "7"}


def test_the_example_passes_over_okxs_old_ids_and_takes_those_that_began_anew() -> None:
    book = _example().Book()
    okx: dict[str, Any] = {"exchange": "okx"}
    book.take(_told("snapshot", (None, None, 1000), "100", "1", ts_ms=50_000, **okx))
    assert book.take(
        _told("snapshot", (None, None, 990), "100", "9", ts_ms=50_200, **okx)
    )  # of a REST that lags
    assert book.bids == {Decimal(100): "1"}
    assert book.take(_told("delta", (None, 1000, 3), "100", "2", ts_ms=70_000, **okx))  # begun anew
    assert book.take(_told("delta", (None, 900, 950), "100", "9", ts_ms=50_000, **okx))  # late, from before
    assert book.bids == {Decimal(100): "2"}
    assert book.take(_told("delta", (None, 3, 5), "100", "4", ts_ms=70_100, **okx))


def test_the_example_equals_our_own_book_over_a_long_chain() -> None:
    example, ours = _example().Book(), Book()
    ours.load(b'[["100","1"]]', b'[["200","1"]]')
    example.take(_told("snapshot", (None, None, 0), "100", "1"))
    for n in range(1, 2_000):
        bid, quantity = str(100 + n * 37 % 50), str(n * 13 % 4)
        assert example.take(_told("delta", (n, n - 1, n), bid, quantity))
        ours.apply(json.dumps([[bid, quantity]]).encode(), b"[]")
        assert sorted(example.bids, reverse=True) == [Decimal(p) for p, _ in json.loads(ours.all()[0])]


@pytest.mark.parametrize(
    ("exchange", "names"),
    [
        ("binance_spot", ["binance_spot.many.202104"]),
        ("binance_derivatives", ["binance_derivatives.many.202104"]),
        ("okx_derivatives", ["okx.many.202107.conn1", "okx.many.202107.conn2"]),
        ("deribit_derivatives", ["deribit.options.202104"]),
    ],
)
def test_the_example_rebuilds_recorded_books(exchange: str, names: list[str]) -> None:
    events = replay(exchange, *(capture(f"{name}.jsonl.gz") for name in names))
    example: dict[str, Any] = defaultdict(_example().Book)
    judge: dict[str, ConsumerBook] = defaultdict(ConsumerBook)
    for data in of(events, OrderBookDelta):
        told = msgspec.to_builtins(data)
        judge[data.instrument_id].take(told)
        book = example[data.instrument_id]
        assert book.take(told)
        assert book.bids == {price: level[1] for price, level in judge[data.instrument_id].bids.items()}
        assert book.asks == {price: level[1] for price, level in judge[data.instrument_id].asks.items()}
    assert example


# -- links, commands, names ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_relative_links_lead_somewhere(name: str) -> None:
    text = BLOCK.sub("", _text(name))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, fragment = target.partition("#")
        found = (ROOT / name).parent / path if path else ROOT / name
        assert found.exists(), f"{name}: {target}"
        if fragment:
            assert fragment in _anchors(found), f"{name}: {target}"


def _anchors(page: Path) -> set[str]:
    """The fragments that GitHub gives a page's headings."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", NAMES)
def test_commands_parse(name: str) -> None:
    for block in _blocks(name, "sh"):
        checked = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
        assert checked.returncode == 0, f"{name}: {checked.stderr}\n{block}"


def _verbs() -> dict[str, argparse.ArgumentParser]:
    (subparsers,) = (a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(subparsers.choices)


def _calls(name: str) -> Iterator[tuple[str, list[str]]]:
    """Each `marketprism VERB …` with its flags."""
    for text in _code(name):
        for words in re.findall(
            r"(?:^|[\s/])marketprism ([a-z][\w-]*(?: .*)?)$", text.split("|")[0].rstrip()
        ):
            verb, *rest = shlex.split(words.replace("…", ""), comments=True)
            yield verb, [word for word in rest if word.startswith("--")]


@pytest.mark.parametrize("name", NAMES)
def test_verbs_and_flags_exist(name: str) -> None:
    verbs = _verbs()
    for verb, flags in _calls(name):
        assert verb in verbs, f"{name}: marketprism {verb}"
        known = {option for action in verbs[verb]._actions for option in action.option_strings}
        assert set(flags) <= known, f"{name}: marketprism {verb} {' '.join(flags)}"


def test_the_rule_sees_the_commands() -> None:
    calls = list(_calls("docs/operating.md"))
    assert ("launcher", ["--exchange"]) in calls
    assert ("record", ["--directory", "--seconds"]) in calls


@pytest.mark.parametrize(
    "name", [name for name in NAMES if _blocks(name, "yaml") and name != "docs/simulator.md"]
)
def test_shown_configurations_are_right(name: str, tmp_path: Path) -> None:
    for block in _blocks(name, "yaml"):
        document = yaml.safe_load(block.replace("/etc/marketprism/ca.pem", __file__))  # must be there
        for exchange, section in document.setdefault("exchanges", {"okx_spot": {}}).items():
            section.setdefault("symbols", ["BTC-USDT" if exchange == "okx_spot" else "BTC-USDT-SWAP"])
        file = tmp_path / "shown.yaml"
        file.write_text(yaml.safe_dump(document))
        assert not load(file, environ={}).warnings, block


@pytest.mark.parametrize("name", NAMES)
def test_scripts_exist(name: str) -> None:
    for text in _code(name):
        for script in re.findall(r"(?:^|\s)(scripts/[\w-]+)", text):
            assert (ROOT / script).is_file(), f"{name}: {script}"


@pytest.mark.parametrize("name", NAMES)
def test_named_files_exist(name: str) -> None:
    for path in re.findall(
        r"`((?:marketprism|config|tests|docs)/[\w./-]+\.(?:py|yaml|conf|md))`", _text(name)
    ):
        assert (ROOT / path).exists(), f"{name}: {path}"


def _strings() -> list[str]:
    """The literal text of all our strings, and of the shell scripts."""
    found = [path.read_text(encoding="utf-8") for path in (ROOT / "scripts").iterdir()]
    for path in [ROOT / "main.py", *(ROOT / "marketprism").rglob("*.py")]:
        tree = ast.parse(path.read_bytes())
        found += [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_metrics_exist(name: str) -> None:
    source = "\n".join(_strings())
    for metric in re.findall(r"\bmarketprism_(\w+)", _text(name)):
        base = re.sub(r"_(total|bucket|sum|count|info)$", "", metric) if metric != "data_count" else metric
        bare = re.sub(r"^(process|storage|cold)_", "", base)  # those of all processes, of hot, of cold
        assert any(known in source for known in (base, metric, bare)), f"{name}: {metric}"


def test_quoted_messages_are_ours() -> None:
    """Each message in the first column of troubleshooting.md, piece by piece between the ellipses."""
    source = "\0".join(_strings())
    missing = [
        piece
        for row in re.findall(r"^\| (.+?) \| .+ \| .+ \|$", _text("docs/troubleshooting.md"), re.MULTILINE)
        for message in re.findall(r"`([^`]+)`", row)
        for piece in re.split(r"…|\d+", message)
        if len(piece.strip(" :;,().")) > 3 and piece.strip(" :;,()") not in source
    ]
    assert missing == []


def test_the_figure_is_well_formed() -> None:
    root = ET.parse(ROOT / "docs" / "flow.svg").getroot()
    assert root.attrib["viewBox"]
    assert "prefers-color-scheme: dark" in _text("docs/flow.svg")


def test_schemas_are_json_schemas_of_what_is_published() -> None:
    kinds: dict[str, set[str]] = defaultdict(set)
    for name, text in schemas.files().items():
        schema = json.loads(text)
        kinds[schema["$schema"]].add(name.removesuffix(".schema.json"))
    assert kinds == {schemas.DIALECT: set(PAYLOADS)}
