"""The units as systemd's own tools judge them, and scripts/install-units, which lays them out."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from marketprism import cli, generator
from marketprism.config import OFFERS

ROOT = Path(__file__).parents[1]
UNITS = ROOT / "units"
SHIPPED = ROOT / "config" / "collector" / "unified_data_collection.yaml"
SERVICES = sorted(UNITS.glob("*.service"))
EXPOSURE_MAX = {"marketprism-control.service": 0.5}  # the others: 1.2

needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed (Debian: systemd)"
)


def install(root: Path) -> None:
    subprocess.run([ROOT / "scripts" / "install-units", root], check=True)


@pytest.fixture(scope="module")
def load_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of units with all that the generator can add to them; programs that are not here stand in for ours."""
    folder = tmp_path_factory.mktemp("units")
    install(folder / "root")
    document = yaml.safe_load(SHIPPED.read_text())
    document["storage"] = {"enabled": True, "hot": {"location": '/srv/a "b" 100%'}}
    document["monitoring"] = {"bind_host": "::1", "health_check": {"port": 1}, "metrics": {"port": 2}}
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(document))
    system = folder / "root/usr/lib/systemd/system"
    assert generator.run(system, config, folder / "kept", folder / "log") == 0
    for unit in system.glob("*.service"):
        unit.write_text(re.sub(r"(?m)^(Exec\w+=)/usr/\S+", r"\1/bin/true", unit.read_text()))
    return system


def verify(load_path: Path, *units: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(load_path / unit for unit in units)],
        env={"SYSTEMD_UNIT_PATH": f"{load_path}:", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


def names(load_path: Path) -> Iterator[str]:
    """All units, templates as each of their instances."""
    for path in sorted(load_path.glob("*.*")):
        if path.is_dir():
            continue
        prefix, at, rest = path.name.partition("@")
        if not at:
            yield path.name
        elif prefix == "marketprism-worker":
            yield from (f"{prefix}@{name}{rest}" for name in OFFERS)
        else:
            yield f"{prefix}@marketprism-worker@okx_spot.service{rest}"


@needs_analyze
def test_systemd_finds_nothing_to_say_about_the_units(load_path: Path) -> None:
    units = list(names(load_path))
    assert len(units) >= 12
    found = verify(load_path, *units)
    assert (found.returncode, found.stdout + found.stderr) == (0, "")


@needs_analyze
def test_systemd_reads_what_the_generator_added(load_path: Path, tmp_path: Path) -> None:
    """Or the test above would find nothing whatever stands there."""
    copy = tmp_path / "units"
    shutil.copytree(load_path, copy, symlinks=True)
    unit = "marketprism-worker@okx_spot.service"
    (copy / f"{unit}.d" / "50-configuration.conf").write_text("[Service]\nMemoryHigh=much\n")
    assert "Invalid memory limit 'much'" in verify(copy, unit).stderr
    unit = "marketprism-control-health.socket"
    (copy / f"{unit}.d" / "50-configuration.conf").write_text("[Socket]\nListenStream=nowhere:0\n")
    assert "nowhere" in verify(copy, unit).stderr


@needs_analyze
@pytest.mark.parametrize("service", SERVICES, ids=lambda path: path.name)
def test_a_service_is_locked_in(service: Path) -> None:
    most = EXPOSURE_MAX.get(service.name, 1.2)
    found = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"--threshold={most * 10:.0f}", service],
        capture_output=True,
        text=True,
        check=False,
    )
    print(found.stdout)
    assert found.returncode == 0, f"exposure above {most}\n{found.stderr}"


@pytest.mark.parametrize("service", SERVICES, ids=lambda path: path.name)
def test_a_service_starts_a_verb_that_there_is(service: Path) -> None:
    (command,) = re.findall(r"(?m)^ExecStart=(.*)$", service.read_text())
    program, *arguments = command.replace("%i", "okx_spot").split()
    if program == "/usr/bin/marketprism":
        cli._parser().parse_args(arguments)
    else:
        assert program == "/usr/sbin/nats-server"


@pytest.mark.parametrize("service", SERVICES, ids=lambda path: path.name)
def test_no_key_that_systemd_252_takes_for_something_else(service: Path) -> None:
    assert "Type=notify-reload" not in service.read_text()


@pytest.mark.parametrize("unit", sorted(UNITS.glob("*.*")), ids=lambda path: path.name)
def test_the_manual_names_every_unit(unit: Path) -> None:
    if unit.suffix != ".conf" and unit.suffix != ".rules":
        assert f"`{unit.name}`" in (ROOT / "docs" / "systemd.md").read_text()


# --- install-units -------------------------------------------------------------------------------------------------


def test_install_units_lays_out_a_system(tmp_path: Path) -> None:
    install(tmp_path)
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    system = {f"usr/lib/systemd/system/{path.name}" for path in UNITS.glob("marketprism*.*")}
    assert found == system | {
        "usr/lib/systemd/system-generators/marketprism-generator",
        "usr/lib/sysusers.d/marketprism.conf",
        "usr/lib/tmpfiles.d/marketprism.conf",
        "usr/share/polkit-1/rules.d/60-marketprism.rules",
        "etc/marketprism/unified_data_collection.yaml",
        "etc/marketprism/nats-server.conf",
    }
    assert (
        tmp_path / "usr/lib/systemd/system-generators/marketprism-generator"
    ).stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "etc/marketprism/unified_data_collection.yaml").stat().st_mode & 0o777 == 0o644


def test_install_units_keeps_a_configuration_and_renews_the_rest(tmp_path: Path) -> None:
    install(tmp_path)
    config = tmp_path / "etc/marketprism/unified_data_collection.yaml"
    config.write_text("mine")
    target = tmp_path / "usr/lib/systemd/system/marketprism.target"
    target.write_text("old")
    install(tmp_path)
    assert config.read_text() == "mine"
    assert target.read_text() != "old"


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["--help"]])
def test_install_units_without_a_root_tells_its_use(arguments: list[str]) -> None:
    refused = subprocess.run(
        [ROOT / "scripts" / "install-units", *arguments], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert "scripts/install-units DESTDIR" in refused.stderr
