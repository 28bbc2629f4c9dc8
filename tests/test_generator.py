"""systemd's generator: what a configuration comes to, and what it does where that is wrong."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from marketprism import generator

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "config" / "collector" / "unified_data_collection.yaml"
LIMITS_MB = {  # requirement 8
    "okx_derivatives": (150, 200),
    "okx_spot": (120, 160),
    "binance_derivatives": (100, 140),
    "binance_spot": (80, 120),
    "deribit_derivatives": (60, 100),
}


@dataclass
class Boot:
    """What a run of the generator finds on its machine, and leaves there."""

    folder: Path
    runs: int = 0

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def kept(self) -> Path:
        return self.folder / "kept.json"

    @property
    def log(self) -> Path:
        return self.folder / "kmsg"

    def configure(self, change: Callable[[dict[str, Any]], object] = lambda _: None) -> None:
        document = yaml.safe_load(SHIPPED.read_text())
        change(document)
        self.config.write_text(yaml.safe_dump(document))

    def run(self) -> dict[str, str]:
        """As at boot or daemon-reload; text by file, target by link."""
        self.runs += 1
        self.log.write_bytes(b"")
        out = self.folder / f"out{self.runs}"
        out.mkdir()
        self.status = generator.run(out, self.config, self.kept, self.log)
        return {
            str(path.relative_to(out)): os.readlink(path) if path.is_symlink() else path.read_text()
            for path in out.rglob("*")
            if path.is_symlink() or path.is_file()
        }

    def told(self) -> list[str]:
        """The lines in the kernel's log, each checked to be of priority error and with our name."""
        lines = self.log.read_text().splitlines()
        prefix = f"<27>marketprism-generator[{os.getpid()}]: "
        assert all(line.startswith(prefix) for line in lines)
        return [line.removeprefix(prefix) for line in lines]


@pytest.fixture
def boot(tmp_path: Path) -> Boot:
    made = Boot(tmp_path)
    made.configure()
    return made


def wanted(units: dict[str, str]) -> set[str]:
    folder = "marketprism.target.wants/"
    return {name.removeprefix(folder) for name in units if name.startswith(folder)}


def settings(units: dict[str, str], unit: str) -> list[str]:
    """The lines of a unit's drop-in, without the comment."""
    text = units.get(f"{unit}.d/50-configuration.conf", "")
    return [line for line in text.splitlines() if not line.startswith("#")]


def test_the_shipped_configuration(boot: Boot) -> None:
    units = boot.run()
    assert (boot.status, boot.told()) == (0, [])
    assert wanted(units) == {f"marketprism-worker@{name}.service" for name in LIMITS_MB} | {
        "marketprism-nats.service"
    }
    for name, (soft, hard) in LIMITS_MB.items():
        assert settings(units, f"marketprism-worker@{name}.service") == [
            "[Service]",
            f"MemoryHigh={soft}M",
            f"MemoryMax={hard}M",
        ]
    for name in ("hot", "cold"):
        assert settings(units, f"marketprism-{name}.service") == [
            "[Service]",
            "MemoryHigh=600M",
            "MemoryMax=900M",
            f'ReadWritePaths="-/var/lib/marketprism/{name}"',
        ]
    assert not any("socket" in name for name in units)  # they listen there anyway


def test_every_link_leads_to_a_unit_that_is_installed(boot: Boot) -> None:
    installed = {f"/usr/lib/systemd/system/{path.name}" for path in (ROOT / "units").iterdir()}
    units = boot.run()
    assert {units[name] for name in units if ".wants/" in name} <= installed


def test_a_disabled_exchange_is_not_wanted_and_limits_are_the_file_s(boot: Boot) -> None:
    def change(document: dict[str, Any]) -> None:
        document["exchanges"]["okx_spot"]["enabled"] = False
        document["exchanges"]["binance_spot"]["memory"] = {"soft_mb": 300, "hard_mb": 400}

    boot.configure(change)
    units = boot.run()
    assert "marketprism-worker@okx_spot.service" not in wanted(units)
    assert "MemoryHigh=300M" in settings(units, "marketprism-worker@binance_spot.service")
    assert "MemoryMax=400M" in settings(units, "marketprism-worker@binance_spot.service")


@pytest.mark.parametrize(
    ("storage", "stores"),
    [
        ({"enabled": False}, set()),
        ({"enabled": True}, {"marketprism-hot.service", "marketprism-cold.service"}),
        ({"enabled": True, "cold": {"enabled": False}}, {"marketprism-hot.service"}),
    ],
)
def test_the_stores_run_where_the_configuration_says(
    boot: Boot, storage: dict[str, Any], stores: set[str]
) -> None:
    boot.configure(lambda document: document.update(storage=storage))
    assert {name for name in wanted(boot.run()) if "hot" in name or "cold" in name} == stores


def test_a_store_may_write_where_the_configuration_says(boot: Boot) -> None:
    storage = {"hot": {"location": '/srv/a "b" 100%'}, "cold": {"location": "http://h:8124"}}
    boot.configure(lambda document: document.update(storage=storage))
    units = boot.run()
    assert r'ReadWritePaths="-/srv/a \"b\" 100%%"' in settings(units, "marketprism-hot.service")
    assert not any("ReadWritePaths" in line for line in settings(units, "marketprism-cold.service"))


@pytest.mark.parametrize(
    ("servers", "ours"),
    [
        (["nats://127.0.0.1:4222"], True),
        (["nats://localhost"], True),
        (["tls://[::1]:4222"], True),
        (["nats://10.0.0.5:4222"], False),
        (["nats://127.0.0.1:5222"], False),
        (["nats://a.example:4222", "nats://127.0.0.1:4222"], True),
    ],
)
def test_our_nats_server_runs_where_the_configuration_names_it(
    boot: Boot, servers: list[str], ours: bool
) -> None:
    boot.configure(lambda document: document["nats"].update(servers=servers))
    assert ("marketprism-nats.service" in wanted(boot.run())) == ours


@pytest.mark.parametrize(
    ("host", "listens"),
    [("0.0.0.0", "0.0.0.0"), ("::1", "[::1]"), ("localhost", "127.0.0.1"), ("127.0.0.1", "127.0.0.1")],
)
def test_the_sockets_listen_where_the_configuration_says(boot: Boot, host: str, listens: str) -> None:
    boot.configure(
        lambda document: document["monitoring"].update(
            bind_host=host, health_check={"port": 8187}, metrics={"port": 9192}
        )
    )
    units = boot.run()
    assert boot.told() == []
    for name, port in (("health", 8187), ("metrics", 9192)):
        assert settings(units, f"marketprism-control-{name}.socket") == [
            "[Socket]",
            "ListenStream=",  # not the shipped one beside it
            f"ListenStream={listens}:{port}",
        ]


def test_what_a_socket_cannot_listen_on_is_told(boot: Boot) -> None:
    boot.configure(
        lambda document: document["monitoring"].update(bind_host="collector.lan", health_check={"port": 0})
    )
    units = boot.run()
    assert boot.status == 1
    host, port = boot.told()
    assert host.endswith(
        "expected an IP address, as systemd listens there, got 'collector.lan'; it listens on 127.0.0.1"
    )
    assert port.endswith("expected a port, as systemd listens there, got 0; it listens on 8087")
    assert len(wanted(units)) == 6


# --- wrong configurations ------------------------------------------------------------------------------------------


def rename_okx_spot(document: dict[str, Any]) -> None:
    document["exchanges"]["okx_spt"] = document["exchanges"].pop("okx_spot")


def test_a_wrong_file_changes_nothing_and_is_told(boot: Boot) -> None:
    boot.configure(lambda document: document["exchanges"]["okx_spot"].update(enabled=False))
    before = boot.run()
    boot.configure(rename_okx_spot)
    for _ in range(2):  # and again
        assert boot.run() == before
        first, second = boot.told()
        assert first == (
            f"{boot.config}: wrong, the units stay as they were; mend it, then: systemctl daemon-reload"
        )
        assert second.endswith("got 'okx_spt'; did you mean 'okx_spot'?")
        assert boot.status == 1
    boot.configure()
    assert len(wanted(boot.run())) == 6
    assert (boot.status, boot.told()) == (0, [])


@pytest.mark.parametrize("damage", ["exchanges: [", "", "\0", "\xff"])
def test_a_file_that_cannot_be_read_changes_nothing(boot: Boot, damage: str) -> None:
    before = boot.run()
    boot.config.write_bytes(damage.encode("latin-1"))
    assert boot.run() == before
    assert len(boot.told()) == 2


def test_a_file_that_is_gone_changes_nothing(boot: Boot) -> None:
    before = boot.run()
    boot.config.unlink()
    assert boot.run() == before
    assert boot.told()[1] == f"{boot.config}: cannot read the configuration: No such file or directory"


def test_a_machine_that_boots_with_a_wrong_file_gets_what_is_right_of_it(boot: Boot) -> None:
    def change(document: dict[str, Any]) -> None:
        rename_okx_spot(document)
        document["exchanges"]["binance_spot"]["memory"] = {"soft_mb": 400, "hard_mb": 300}
        document["exchanges"]["deribit_derivatives"]["memory"] = {"soft_mb": 70, "hard_mb": 110}

    boot.configure(change)
    units = boot.run()
    assert wanted(units) == {f"marketprism-worker@{name}.service" for name in LIMITS_MB} - {
        "marketprism-worker@okx_spot.service"
    } | {"marketprism-nats.service"}
    assert "MemoryHigh=80M" in settings(
        units, "marketprism-worker@binance_spot.service"
    )  # not above the hard one
    assert "MemoryHigh=70M" in settings(units, "marketprism-worker@deribit_derivatives.service")
    assert "of the units there is what could be read" in boot.told()[0]
    assert not boot.kept.exists()


def test_files_on_a_disk_that_is_not_mounted_yet_do_not_matter(boot: Boot) -> None:
    before = boot.run()
    boot.kept.unlink()  # the machine boots
    boot.configure(lambda document: document["nats"].update(creds_file="/srv/not-there-yet/nats.creds"))
    assert boot.run() == before
    assert "nats.creds_file" in boot.told()[1]


@pytest.mark.parametrize("damage", ["", "[]", '{"links": {}, "x": 1}', "\0"])
def test_damage_to_what_was_kept_is_survived(boot: Boot, damage: str) -> None:
    boot.run()
    boot.kept.write_text(damage)
    boot.configure(rename_okx_spot)
    units = boot.run()
    assert len(wanted(units)) == 5
    assert boot.status == 1


def test_few_lines_go_to_the_kernel_s_log(boot: Boot) -> None:
    boot.configure(
        lambda document: document["exchanges"].update({f"x{'y' * 2000}{i}": {} for i in range(40)})
    )
    boot.run()
    lines = boot.told()
    assert len(lines) == 6
    assert lines[-1] == "and 36 more; all of them: marketprism check-config"
    assert max(map(len, lines)) <= 700


# --- a machine that is not well ------------------------------------------------------------------------------------


def test_a_file_that_does_not_answer_is_given_up(boot: Boot, monkeypatch: pytest.MonkeyPatch) -> None:
    before = boot.run()
    boot.config.unlink()
    os.mkfifo(boot.config)  # nobody will ever write
    monkeypatch.setattr(generator, "_WITHIN_S", 1)
    assert boot.run() == before
    assert "within 1 s" in boot.told()[1]


def test_a_folder_that_cannot_be_written_is_told_in_a_line(boot: Boot) -> None:
    out = boot.folder / "file"
    out.write_text("")
    assert generator.run(out, boot.config, boot.kept, boot.log) == 1
    (line,) = boot.told()
    assert "cannot be written: Not a directory" in line


def test_what_cannot_be_kept_is_told_and_the_units_are_there(boot: Boot) -> None:
    boot.kept.with_suffix(".part").mkdir()
    assert len(wanted(boot.run())) == 6
    (line,) = boot.told()
    assert "Is a directory" in line


def test_without_a_kernel_s_log_it_speaks_on_stderr(boot: Boot, capfd: pytest.CaptureFixture[str]) -> None:
    boot.configure(rename_okx_spot)
    out = boot.folder / "out"
    out.mkdir()
    assert generator.run(out, boot.config, boot.kept, boot.folder / "no" / "kmsg") == 1
    assert "did you mean 'okx_spot'?" in capfd.readouterr().err


def test_wrong_arguments_are_told_in_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert generator.main([]) == 2
    assert capfd.readouterr().err == (
        "marketprism-generator: expected one or three folders to write to, got 0\n"
    )


def test_it_loads_little(boot: Boot) -> None:
    """Of a boot's time it takes what its imports take: the standard library's light part, PyYAML, our configuration."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom marketprism.generator import run\n"
        "out, config, kept, log = map(Path, sys.argv[1:])\nassert run(out, config, kept, log) == 0\n"
        "print(*sys.modules)"
    )
    out = boot.folder / "out"
    out.mkdir()
    loaded = set(
        subprocess.run(
            [sys.executable, "-I", "-c", code, out, boot.config, boot.kept, boot.log],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()
    )
    ours = {name for name in loaded if name.startswith("marketprism.")}
    assert "marketprism.generator" in ours
    assert all(name.startswith(("marketprism.config", "marketprism.generator")) for name in ours)
    heavy = {
        "asyncio",
        "ssl",
        "socket",
        "logging",
        "subprocess",
        "email",
        "http",
        "ctypes",
        "shutil",
    }
    assert loaded & heavy == set()
    known = sys.stdlib_module_names | {"marketprism", "yaml", "_yaml", "__main__", "sitecustomize"}
    others = {name.partition(".")[0] for name in loaded} - known
    assert {name for name in others if "cython" not in name and not name.startswith("__editable__")} <= {
        "_distutils_hack"
    }


def test_the_entry_does_nothing_where_the_program_is_gone() -> None:
    entry = (ROOT / "units" / "marketprism-generator").read_text()
    missing = entry.replace("/usr/lib/marketprism/bin/python", "/nonexistent/python")
    assert missing != entry
    done = subprocess.run(
        ["sh", "-s", "x", "y", "z"], input=missing, text=True, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
