"""The Debian package, built once a run, and Debian systems to put it into."""

import fcntl
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "var" / "deb"
SOURCES = (
    "CHANGELOG.md",
    "LICENSE",
    "README.md",
    "pyproject.toml",
    "config",
    "marketprism",
    "packaging",
    "requirements",
    "scripts",
    "units",
)
RELEASES = {"bookworm": "12", "trixie": "13"}  # at the end of a package's version
PROGRAM = "usr/lib/marketprism/lib/python3*/site-packages/marketprism"
BUILD_S = 900


@dataclass(frozen=True, slots=True)
class Package:
    """A built package."""

    path: Path

    def field(self, name: str) -> str:
        """Of its control file."""
        return _output("dpkg-deb", "--field", self.path, name).strip()

    def as_version(self, version: str, folder: Path) -> "Package":
        """The same under another version, as an earlier or later build would be; the program names it, too."""
        tree, made = folder / f"tree-{version}", folder / f"{self.field('Package')}_{version}_amd64.deb"
        _output("dpkg-deb", "--raw-extract", self.path, tree)
        now = self.field("Version")
        control = tree / "DEBIAN" / "control"  # the engine's depends on the other of its version
        control.write_text(control.read_text().replace(now, version))
        old, new = (full.partition("-")[0].encode() for full in (now, version))
        for module in tree.glob(f"{PROGRAM}/__init__.py"):
            module.write_bytes(module.read_bytes().replace(old, new))
        for module in tree.glob(f"{PROGRAM}/__pycache__/__init__.*"):  # never checked against its source
            with_length = (bytes([len(name)]) + name for name in (old, new))
            module.write_bytes(module.read_bytes().replace(*with_length))
        _output("dpkg-deb", "-Znone", "--root-owner-group", "--build", tree, made)
        shutil.rmtree(tree)
        return Package(made)


@cache
def package(suite: str = "bookworm") -> Package:
    """The package of the tree as it is: built where it is older than that, by one process at a time."""
    need("dpkg-deb", "apt-get")
    if os.geteuid() != 0 and not _builds_here(suite):
        pytest.skip("the package needs debhelper, or root to make a system that has it")
    KEPT.mkdir(parents=True, exist_ok=True)
    with (KEPT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        built = KEPT.glob(f"marketprism_*+deb{RELEASES[suite]}_*.deb")
        found = max(built, key=lambda path: path.stat().st_mtime, default=None)
        if found is None or found.stat().st_mtime < _newest(ROOT / name for name in SOURCES):
            (found,) = build(suite)
        return Package(found)


def packages(suite: str = "bookworm") -> list[Package]:
    """That one, and the engine's where `scripts/build-deb --stores` has built both of the tree as it is.

    The engine's has 800 MB of files, so the tests do not build it. Where it is, their time doubles."""
    ours = package(suite)
    engine = ours.path.with_name(ours.path.name.replace("marketprism_", "marketprism-embedded_"))
    if engine.exists() and engine.stat().st_mtime >= ours.path.stat().st_mtime:
        return [ours, Package(engine)]
    return [ours]


def build(suite: str, clean: bool = False, stores: bool = False) -> list[Path]:
    """Run scripts/build-deb, `clean`: in a system made for it; where the packages are."""
    options = ["--stores"] if stores else []
    if clean or not _builds_here(suite):
        options += ["--chroot", suite]
    command = [ROOT / "scripts" / "build-deb", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_S, check=False)
    assert done.returncode == 0, done.stderr
    return [Path(line) for line in done.stdout.splitlines()]


def _builds_here(suite: str) -> bool:
    """Whether scripts/build-deb can do without a system of its own."""
    return (
        shutil.which("dh") is not None and platform.freedesktop_os_release().get("VERSION_CODENAME") == suite
    )


def need(*commands: str) -> None:
    """Skip the test, by its words, where a command is missing."""
    missing = [
        command
        for command in commands
        if shutil.which(command, path=os.environ["PATH"] + ":/usr/sbin:/sbin") is None
    ]
    if missing:
        pytest.skip(f"not on this machine: {', '.join(missing)}")


def mmdebstrap() -> Path:
    """The machine's, or Debian's package unpacked."""
    found = shutil.which("mmdebstrap")
    unpacked = KEPT / "tools"
    program = Path(found) if found else unpacked / "usr/bin/mmdebstrap"
    if not program.exists():
        unpacked.mkdir(parents=True, exist_ok=True)
        get = "apt-get -qq download mmdebstrap && dpkg-deb -x mmdebstrap_*.deb . && rm mmdebstrap_*.deb"
        subprocess.run(get, shell=True, cwd=unpacked, capture_output=True, check=True)
    return program


def make_debian(tar: Path) -> None:
    """What an image begins with: Debian 12, without manuals and package lists, as the image debian:12-slim is."""
    without = [f"--dpkgopt=path-exclude=/usr/share/{kind}/*" for kind in ("doc", "locale", "man")]
    lists = "--customize-hook=rm -rf $1/var/lib/apt/lists/* $1/var/cache/apt/*"
    _output(mmdebstrap(), "--quiet", "--variant=minbase", *without, lists, "bookworm", tar)


def wheels() -> Path:
    """The libraries' files that scripts/build-deb fetched for Debian 12."""
    package()
    kept = {path.parent for path in KEPT.glob("wheels-*/*-cp311-*")}
    return max(kept, key=lambda path: path.stat().st_mtime)


def engine_wheels() -> Path | None:
    """Those with the engine's among them, if `scripts/build-deb --stores` fetched them."""
    kept = {path.parent for path in KEPT.glob("wheels-*/pyarrow-*-cp311-*")}
    return max(kept, key=lambda path: path.stat().st_mtime, default=None)


def _newest(paths: Iterable[Path]) -> float:
    files = (f for path in paths for f in ([path] if path.is_file() else path.rglob("*")))
    return max(f.stat().st_mtime for f in files if f.is_file() and f.suffix not in (".pyc", ".so"))


def _output(*argv: str | Path) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout
