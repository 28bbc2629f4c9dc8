"""A machine with systemd (scripts/systemd-vm) and MarketPrism installed in it, as a test drives it.

    machine.run("systemctl restart marketprism.target")          output; fails the test where the command fails
    machine.ask("/health").json()                                of the control plane, from inside
    machine.wait("healthy", machine.healthy, 30)                 until it is true, or the test fails
    machine.records("_SYSTEMD_UNIT=…", since=mark)               of the journal
    machine.configure(change)                                    edit /etc/marketprism/unified_data_collection.yaml
    machine.put("/etc/systemd/system/x.d/y.conf", "…")           any other file

Simulated exchanges run as simulator.service. All that a test does costs time of the machine's one slow CPU.
"""

import compileall
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "systemd-vm"
SHIPPED = ROOT / "config" / "collector" / "unified_data_collection.yaml"
CONFIG = "/etc/marketprism/unified_data_collection.yaml"
HOME = "usr/lib/marketprism"
EXCHANGES = ("binance_spot", "binance_derivatives", "okx_spot", "okx_derivatives", "deribit_derivatives")
HEALTH = "http://127.0.0.1:8087"
METRICS = "http://127.0.0.1:9092"
CANNOT = 75
BOOT_S = 120
RATE = 20

# Listed by the simulated exchange besides what the configuration names, so that a reload can add it.
EXTRA = {"okx_spot": "SOL-USDT", "binance_spot": "SOLUSDT"}

SIMULATOR = f"""\
[Unit]
Description=The exchanges, simulated
[Service]
Type=exec
ExecStart=/usr/bin/marketprism simulate --rate {RATE} --base-port 7000 --config /host/listed.yaml \
    --write-config /host/simulated.yaml
Environment=MARKETPRISM_SIMULATOR_TOKEN=test
"""

T = TypeVar("T")


class CannotRunError(Exception):
    """This computer cannot run the machine; the text says why."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command or an HTTP request came to. Status 0 of a request: no answer, and the text says why."""

    status: int
    text: str

    def json(self) -> Any:
        """The text read as JSON."""
        return json.loads(self.text)


class Machine:
    """One machine, from boot to power off."""

    def __init__(self, folder: Path) -> None:
        """Boot it with the host's `folder` as /host. Raises CannotRunError."""
        self.folder = folder
        self.config: dict[str, Any] = {}
        built = subprocess.run([SCRIPT, "build"], capture_output=True, text=True, check=False)
        if built.returncode:
            raise CannotRunError(built.stderr.strip())
        shutil.copy(Path(__file__).with_name("agent.py"), folder)
        _lay_out(folder / "root")
        document = yaml.safe_load(SHIPPED.read_text())
        for exchange, symbol in EXTRA.items():
            document["exchanges"][exchange]["symbols"].append(symbol)
        (folder / "listed.yaml").write_text(yaml.safe_dump(document))
        self._log = (folder / "systemd-vm.log").open("wb")
        self._process = subprocess.Popen(
            [SCRIPT, "run", folder, "exec python3 /host/agent.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            bufsize=0,
        )
        self._received = b""
        try:
            self.run("true", BOOT_S)
            self._install()
        except BaseException:
            self.power_off()
            raise

    def _install(self) -> None:
        self.put("/etc/systemd/system/simulator.service", SIMULATOR)
        self.run(
            "cp -a --no-preserve=ownership /host/root/. / && systemd-sysusers && systemd-tmpfiles --create"
        )
        self.run("systemctl daemon-reload && systemctl start simulator.service", 60)
        written = self.folder / "simulated.yaml"
        self.wait("the simulator", lambda: written.exists() and yaml.safe_load(written.read_text()), 60)
        self.config = yaml.safe_load(written.read_text())
        for exchange, symbol in EXTRA.items():
            self.config["exchanges"][exchange]["symbols"].remove(symbol)
        self.configure()

    def power_off(self) -> None:
        """End it: it powers off when its input ends."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            self._process.wait(30)
        self._log.close()

    # -- in the machine ----------------------------------------------------------------------------------------

    def run(self, command: str, timeout_s: float = 30) -> str:
        """Run a shell command as root; its output, errors included. Fails where the command does."""
        answer = self.attempt(command, timeout_s)
        assert answer.status == 0, f"{command}: status {answer.status}\n{answer.text}"
        return answer.text

    def attempt(self, command: str, timeout_s: float = 30) -> Answer:
        """As `run`, for one that may fail. Status 124: it took too long."""
        answer = self._order(timeout_s, do="shell", command=command, timeout_s=timeout_s)
        return Answer(answer["status"], answer["output"])

    def ask(self, path: str, method: str = "GET", token: str = "", base: str = HEALTH) -> Answer:
        """One HTTP request from inside; `base` is HEALTH or METRICS."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        answer = self._order(10, do="ask", url=base + path, method=method, headers=headers, timeout_s=10)
        return Answer(answer["status"], answer["body"])

    def wait(self, what: str, condition: Callable[[], T], seconds: float, every_s: float = 0.3) -> T:
        """Until `condition` is true; its value. Fails after `seconds`, by saying what it was last."""
        end_s = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < end_s, f"{what}: not within {seconds} s; last: {found!r}"
            time.sleep(every_s)
        return found

    def put(self, path: str, text: str) -> None:
        """Write a file."""
        beside = self.folder / "put"
        beside.write_text(text)
        self.run(f"install -D -m 644 /host/put {path}")

    def configure(self, change: Callable[[dict[str, Any]], object] = lambda _: None) -> None:
        """Write the configuration after a change of it, and have the generator read it."""
        change(self.config)
        self.put(CONFIG, yaml.safe_dump(self.config))
        self.run("systemctl daemon-reload", 60)

    # -- what it is like ---------------------------------------------------------------------------------------

    def healthy(self) -> bool:
        """Whether the control plane says that all is well."""
        answer = self.ask("/health")
        return answer.status == 200 and answer.json()["status"] == "healthy"

    def health(self, exchange: str) -> dict[str, Any]:
        """What the control plane says of one worker; {} where it does not answer."""
        answer = self.ask("/health")
        found: dict[str, Any] = answer.json()["processes"].get(exchange, {}) if answer.status else {}
        return found

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Properties of a unit."""
        lines = self.run(f"systemctl show {unit} --property={','.join(properties)}").splitlines()
        return dict(line.split("=", 1) for line in lines)

    def pids(self) -> dict[str, int]:
        """Main process of each worker that runs, by exchange."""
        units = " ".join(worker(e) for e in EXCHANGES)
        blocks = self.run(f"systemctl show {units} --property=MainPID --value").split()
        return {e: int(pid) for e, pid in zip(EXCHANGES, blocks, strict=True) if int(pid)}

    def now(self) -> str:
        """This moment by the machine's clock, for `records` and `said`."""
        return self.run("date +@%s.%6N").strip()

    def records(self, *matches: str, since: str = "") -> list[dict[str, Any]]:
        """Records of the journal after `since`."""
        # Not --after-cursor: with a match, systemd 252 leaves out the first record after it.
        begin = f"--since={since}" if since else ""
        fields = " ".join(f"'{m}'" for m in matches)
        lines = self.run(f"journalctl --sync; journalctl -q -o json --all --no-pager {begin} {fields}")
        return [json.loads(line) for line in lines.splitlines()]

    def said(self, unit: str, since: str = "") -> str:
        """The journal of a unit, the unit's own and systemd's about it, as a person reads it."""
        after = f"--since={since}" if since else ""
        return self.run(f"journalctl --sync; journalctl -q --no-pager -o short-precise -u '{unit}' {after}")

    def _order(self, patience_s: float, **order: object) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        return json.loads(self._line(patience_s + 30))

    def _line(self, timeout_s: float) -> bytes:
        """The next line of the machine's."""
        assert self._process.stdout is not None
        end_s = time.monotonic() + timeout_s
        while b"\n" not in self._received:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, end_s - time.monotonic()))
            assert ready, f"the machine does not answer; see {self.folder}/console.log"
            data = os.read(self._process.stdout.fileno(), 1 << 16)
            if not data:
                self._ended()
            self._received += data
        line, self._received = self._received.split(b"\n", 1)
        return line

    def _ended(self) -> None:
        status = self._process.wait(60)
        text = (self.folder / "systemd-vm.log").read_text(errors="replace").strip()
        if status == CANNOT:
            raise CannotRunError(text)
        raise AssertionError(f"the machine went down, status {status}: {text}")


def worker(exchange: str) -> str:
    """The unit of an exchange."""
    return f"marketprism-worker@{exchange}.service"


def _lay_out(root: Path) -> None:
    """All that a package of ours would bring: the program as it is now, units, configuration."""
    subprocess.run([ROOT / "scripts" / "install-units", root], check=True)
    packages = root / HOME / "lib" / "python3.11" / "site-packages"
    shutil.copytree(
        ROOT / "marketprism",
        packages / "marketprism",
        ignore=shutil.ignore_patterns("__pycache__", "quickstart"),
    )
    compileall.compile_dir(packages, quiet=1, stripdir=str(root))
    program = root / HOME / "bin" / "marketprism"
    program.parent.mkdir()
    program.write_text(
        "#!/usr/lib/marketprism/bin/python\nimport os\nimport sys\n\n"
        f'os.environ.setdefault("MARKETPRISM_CONFIG", "{CONFIG}")\n'
        'os.environ.setdefault("MARKETPRISM_STATE_DIR", "/var/lib/marketprism")\n\n'
        "from marketprism.cli import main\n\nsys.exit(main())\n"
    )
    program.chmod(0o755)
    (root / "usr" / "bin").mkdir()
    (root / "usr" / "bin" / "marketprism").symlink_to("../lib/marketprism/bin/marketprism")
