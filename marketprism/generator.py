"""systemd's generator: from the configuration to what systemd has to know of it (systemd.generator(7)).

It runs when a machine boots, before anything else, and at each `systemctl daemon-reload`. So it imports little, ends by
itself, and leaves a machine that boots whatever it finds. At each run systemd begins with nothing. So what a right
configuration came to is kept, and a wrong one comes to the same again.
"""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from ipaddress import ip_address
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

from marketprism.config import ConfigError, MemoryLimits, Settings, StorageSettings, load_what_is_right

CONFIG = Path("/etc/marketprism/unified_data_collection.yaml")
# Root's. A generator finds all else read-only, and what it wrote before is gone when it runs again.
KEPT = Path("/run/marketprism-generator.json")
LOG = Path("/dev/kmsg")  # at boot there is no journal yet, and journald reads this

_STATE = "/var/lib/marketprism"  # as the units have it
_UNITS = "/usr/lib/systemd/system"
_DROP_IN = "50-configuration.conf"
_OUR_NATS = {(host, 4222) for host in ("localhost", "127.0.0.1", "::1")}  # as in nats-server.conf
_NAME = "marketprism-generator"
_ERROR = 3 << 3 | 3  # syslog(3): daemon, error
_LINES_MAX = 5  # /dev/kmsg takes ten at once
_LINE_MAX_CHARS = 700  # … of a thousand bytes
_WITHIN_S = 20


@dataclass(frozen=True, slots=True)
class Units:
    """What is written: text by file, target by symbolic link; paths from the output folder on."""

    files: dict[str, str] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)

    def drop_in(self, unit: str, section: str, *assignments: str) -> None:
        """Add settings to a unit."""
        self.files[f"{unit}.d/{_DROP_IN}"] = "\n".join((f"# From {CONFIG}", f"[{section}]", *assignments, ""))

    def want(self, unit: str, installed_as: str) -> None:
        """Have marketprism.target start a unit."""
        self.links[f"marketprism.target.wants/{unit}"] = f"{_UNITS}/{installed_as}"

    def write(self, folder: Path) -> None:
        """Raises OSError."""
        for name, text in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        for name, target in self.links.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(target)


def main(argv: Sequence[str] | None = None) -> int:
    """As systemd calls it: with the output folder first, then two others that we do not use."""
    args = sys.argv[1:] if argv is None else argv
    if len(args) not in (1, 3):
        print(f"{_NAME}: expected one or three folders to write to, got {len(args)}", file=sys.stderr)
        return 2
    return run(Path(args[0]), CONFIG, KEPT, LOG)


def run(out: Path, config: Path, kept: Path, log: Path) -> int:
    """Write the units of a configuration into `out`, or those of the last right one. Returns the exit status."""
    problems: list[str] = []
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(_WITHIN_S)
    try:
        _units(config, kept, problems).write(out)
    except OSError as e:  # also what _too_long raises
        problems.append(f"{e.filename or out}: cannot be written: {e.strerror or e}")
    finally:
        signal.alarm(0)
    _tell(problems, log)
    return 1 if problems else 0


def _units(config: Path, kept: Path, problems: list[str]) -> Units:
    """By the configuration; where that is wrong, by the last right one, or else by what is right of it."""
    try:
        settings, wrong = load_what_is_right(config, {"MARKETPRISM_STATE_DIR": _STATE})
        units = Units()
        notes = list(_describe(settings, units))
    except ConfigError as e:
        units, notes, wrong = Units(), [], e.problems
    except Exception as e:  # noqa: BLE001 - a defect of ours; nobody reads a traceback of a booting machine
        units, notes, wrong = Units(), [], [f"{type(e).__name__}: {e}"]
    if not wrong:
        problems += notes
        _keep(units, kept, problems)
        return units
    problems += wrong
    last = _last(kept)
    stays = "the units stay as they were" if last else "of the units there is what could be read"
    problems.insert(0, f"{config}: wrong, {stays}; mend it, then: systemctl daemon-reload")
    return last or units


def _describe(settings: Settings, units: Units) -> Iterator[str]:
    """Fill in `units`; what cannot be had under systemd comes out as a line for a person."""
    for name in settings.exchanges:
        units.want(f"marketprism-worker@{name}.service", "marketprism-worker@.service")
    for name, memory in settings.memory.items():
        units.drop_in(f"marketprism-worker@{name}.service", "Service", *_limits(memory))
    _describe_storage(settings.storage, units)
    if any(_is_ours(url) for url in settings.nats.servers):
        units.want("marketprism-nats.service", "marketprism-nats.service")
    default = Settings(exchanges={})
    host = _address(settings.bind_host)
    if host is None:
        host = default.bind_host
        yield (
            f"{CONFIG}: monitoring.bind_host: expected an IP address, as systemd listens there, "
            f"got '{settings.bind_host}'; it listens on {host}"
        )
    ports = (
        ("health", "health_check", settings.health_port, default.health_port),
        ("metrics", "metrics", settings.metrics_port, default.metrics_port),
    )
    for name, section, port, default_port in ports:
        if port == 0:
            yield (
                f"{CONFIG}: monitoring.{section}.port: expected a port, as systemd listens there, "
                f"got 0; it listens on {default_port}"
            )
        listens = host, port or default_port
        if listens != (default.bind_host, default_port):
            text = "ListenStream=" + "{}:{}".format(*listens)
            units.drop_in(f"marketprism-control-{name}.socket", "Socket", "ListenStream=", text)


def _describe_storage(storage: StorageSettings, units: Units) -> None:
    for unit, store, wanted in (
        ("marketprism-hot.service", storage.hot, storage.enabled),
        ("marketprism-cold.service", storage.cold, storage.enabled and storage.cold.enabled),
    ):
        folder = [] if "://" in store.location else [f"ReadWritePaths={_quoted(f'-{store.location}')}"]
        units.drop_in(unit, "Service", *_limits(store.memory), *folder)
        if wanted:
            units.want(unit, unit)


def _limits(memory: MemoryLimits) -> tuple[str, str]:
    return f"MemoryHigh={memory.soft_mb}M", f"MemoryMax={memory.hard_mb}M"


def _quoted(text: str) -> str:
    """A word of a unit file, whatever is in it (systemd.syntax(7))."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"'


def _is_ours(url: str) -> bool:
    """Whether a NATS server is the one that marketprism-nats.service is."""
    parts = urlsplit(url)
    return (parts.hostname, parts.port or 4222) in _OUR_NATS


def _address(host: str) -> str | None:
    """A host as ListenStream= takes it, None where it is a name."""
    try:
        address = ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        return None
    return f"[{address}]" if address.version == 6 else str(address)


def _keep(units: Units, path: Path, problems: list[str]) -> None:
    part = path.with_suffix(".part")
    try:
        part.write_text(json.dumps(asdict(units)), encoding="ascii")
        os.replace(part, path)
    except OSError as e:
        problems.append(f"{path}: the units could not be kept for a time without them: {e.strerror}")


def _last(path: Path) -> Units | None:
    try:
        return Units(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None  # the first run since the machine booted


def _tell(problems: Sequence[str], log: Path) -> None:
    """One record a line in the journal, by way of the kernel's log; on stderr where that is not to be had."""
    lines = list(problems[:_LINES_MAX])
    if len(problems) > _LINES_MAX:
        lines.append(f"and {len(problems) - _LINES_MAX} more; all of them: marketprism check-config")
    for line in lines:
        text = f"{_NAME}[{os.getpid()}]: {line[:_LINE_MAX_CHARS]}"
        try:
            with log.open("ab", buffering=0) as file:
                file.write(f"<{_ERROR}>{text}\n".encode())
        except OSError:
            with contextlib.suppress(OSError):
                print(text, file=sys.stderr)


def _too_long(signum: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"expected to be done within {_WITHIN_S} s; a file that does not answer?")


if __name__ == "__main__":
    sys.exit(main())
