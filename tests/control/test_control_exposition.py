"""What /metrics says as a whole: names, types, help, units; and that rules, dashboard and manual speak of the same."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from exposition import plane
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as of_text

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "config" / "monitoring"
RULES = MONITORING / "marketprism.rules.yml"
STORAGE_RULES = MONITORING / "storage.rules.yml"
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
PROMTOOL = shutil.which("promtool", path=f"{ROOT / '.venv/bin'}:/usr/bin:/usr/local/bin")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="no promtool: run scripts/setup --dev")

# Names that others have fixed and promtool would have otherwise: requirement, or the earlier system's dashboards.
NAMED_BY_OTHERS = {
    "marketprism_active_symbols_count",
    "marketprism_memory_warnings_count",
    "marketprism_orderbook_reconnections_count",
    "marketprism_orderbook_resync_count",
    "marketprism_process_memory_mb",
    "marketprism_thread_count",
}
BOUNDED_LABELS = {
    *(
        "exchange",
        "process",
        "data_type",
        "cause",
        "error_type",
        "code",
        "result",
        "status",
        "reason",
        "event",
    ),
    *("level", "endpoint", "method", "version", "mode", "le", "state"),
}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return plane(tmp_path_factory.mktemp("text")).metrics("")[0].decode()


@pytest.fixture(scope="module")
def openmetrics(tmp_path_factory: pytest.TempPathFactory) -> str:
    body, content_type = plane(tmp_path_factory.mktemp("open")).metrics(OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text")
    return body.decode()


def ours(text: str) -> dict[str, tuple[str, set[str]]]:
    """Metric, as it is asked for → (type, labels); of those that are MarketPrism's own."""
    found = {}
    for family in of_text(text):
        if family.name.startswith("marketprism_"):
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            found[family.name + ("_total" if family.type == "counter" else "")] = (family.type, labels)
    return found


def run(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    assert PROMTOOL is not None
    command = [PROMTOOL, *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    "line",
    [
        'marketprism_data_count_total{data_type="orderbook",exchange="okx_spot"} 12345.0',
        "marketprism_cpu_usage_percent 33.5",
        'marketprism_process_cpu_percent{process="okx_spot"} 32.5',
        'marketprism_process_memory_mb{process="okx_spot"} 145.0',
        'marketprism_process_uptime_seconds{process="okx_spot"} 3600.0',
        'marketprism_process_restarts_total{process="okx_spot",reason="memory"} 2.0',
        'marketprism_process_restarts_total{process="okx_spot",reason="watchdog"} 0.0',
        'marketprism_process_status{process="okx_spot",status="degraded"} 1.0',
        'marketprism_process_status{process="okx_spot",status="healthy"} 0.0',
        'marketprism_collector_status{status="degraded"} 1.0',
        'marketprism_collector_errors_total{code="malformed",exchange="okx_spot"} 2.0',
        'marketprism_error_count_total{process="okx_spot"} 2.0',
        'marketprism_orderbook_updates_total{exchange="okx_spot"} 5.0',
        'marketprism_publish_latency_seconds_bucket{exchange="okx_spot",le="0.001"} 1.0',
        'marketprism_log_records_dropped_total{process="okx_spot"} 3.0',
    ],
)
def test_as_it_was_asked_for(text: str, line: str) -> None:
    assert line in text.splitlines()


@needs_promtool
def test_promtool_finds_nothing_but_names_that_others_have_fixed(text: str) -> None:
    checked = run("check", "metrics", stdin=text)
    assert {line.split()[0] for line in checked.stderr.splitlines()} == NAMED_BY_OTHERS, checked.stderr


def test_openmetrics_has_help_type_and_unit(openmetrics: str) -> None:
    families = list(text_string_to_metric_families(openmetrics))  # raises on what the standard forbids
    assert len({family.name for family in families}) == len(families)
    for family in families:
        assert family.documentation, family.name
        assert family.type != "unknown", family.name
        for unit in ("seconds", "bytes", "percent"):
            own = family.name.startswith("marketprism_") and family.name.endswith(f"_{unit}")
            assert not own or family.unit == unit, family.name


@pytest.mark.parametrize(
    "accept", ["", "*/*", ";;=,", f"{OPENMETRICS[:-5]}x", f"{OPENMETRICS};q=0.5,text/plain;q=0.1"]
)
def test_every_accept_header_gets_a_format_that_we_speak(tmp_path: Path, accept: str) -> None:
    body, content_type = plane(tmp_path).metrics(accept)
    asked = "openmetrics" in accept
    version = "application/openmetrics-text; version=1.0.0" if asked else "text/plain; version=0.0.4"
    assert content_type.startswith(version)
    assert body.endswith(b"# EOF\n") is asked


def test_no_label_grows_with_symbols_or_requests(text: str) -> None:
    labels = {label for _, found in ours(text).values() for label in found}
    assert labels <= BOUNDED_LABELS, labels - BOUNDED_LABELS


def names_in(expressions: str) -> set[str]:
    return {
        re.sub(r"_(bucket|sum|count)$", "", name) if re.search(r"latency_seconds_", name) else name
        for name in re.findall(r"marketprism_\w+", expressions)
    }


def rules(file: Path = RULES) -> Iterator[dict[str, str]]:
    for group in yaml.safe_load(file.read_text())["groups"]:
        yield from group["rules"]


def dashboard_expressions() -> str:
    panels = json.loads((MONITORING / "grafana-dashboard.json").read_text())["panels"]
    return "\n".join(target["expr"] for panel in panels for target in panel.get("targets", ()))


def test_rules_and_dashboard_ask_for_what_there_is(text: str) -> None:
    asked = names_in("\n".join(rule["expr"] for rule in rules())) | names_in(dashboard_expressions())
    assert len(asked) > 20
    assert asked <= ours(text).keys(), asked - ours(text).keys()


def test_dashboard_panels_do_not_overlap() -> None:
    panels = json.loads((MONITORING / "grafana-dashboard.json").read_text())["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)


@pytest.mark.parametrize("file", [RULES, STORAGE_RULES], ids=lambda file: file.name)
def test_every_rule_is_tried_and_says_what_to_do(file: Path) -> None:
    tried = file.with_suffix(".test.yml").read_text()
    manual = (ROOT / "docs" / "monitoring.md").read_text()
    for rule in rules(file):
        assert f'"{rule["alert"]}"' in tried, rule["alert"]
        assert f"| `{rule['alert']}` | {rule['labels']['severity']} |" in manual, rule["alert"]
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary", "action"}


@needs_promtool
def test_prometheus_takes_the_configuration_and_the_rules_fire_where_they_should() -> None:
    for arguments in (
        ("check", "config", MONITORING / "prometheus.yml"),
        ("test", "rules", MONITORING / "marketprism.rules.test.yml"),
        ("test", "rules", MONITORING / "storage.rules.test.yml"),
    ):
        checked = run(*arguments)
        assert checked.returncode == 0, checked.stdout + checked.stderr


@needs_promtool
def test_promtool_takes_the_dashboards_expressions(tmp_path: Path) -> None:
    expressions = dashboard_expressions().replace("$exchange", ".*").splitlines()
    groups = [
        {"name": "g", "rules": [{"record": f"r{n}", "expr": each} for n, each in enumerate(expressions)]}
    ]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": groups}))
    checked = run("check", "rules", file)
    assert checked.returncode == 0, checked.stderr


def test_the_manual_lists_every_metric(text: str) -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text()
    listed = {
        name: (kind, set(re.findall(r"\w+", labels)))
        for name, kind, labels in re.findall(
            r"^\| `(marketprism_\w+)` \| (\w+) \| ([\w, ]*) ?\|", page, re.MULTILINE
        )
    }
    assert listed == ours(text)
