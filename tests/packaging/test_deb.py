"""The Debian package: the same bytes each time, clean by lintian, and its life in a Debian without systemd running."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from deb_package import BUILD_S, ROOT, Package, build, mmdebstrap, need, package

LARGEST_BYTES = 80_000_000
LARGEST_STORES_BYTES = 300_000_000
DEPENDS = "polkitd,dbus,systemd,python3,libstdc++6,procps,nats-server"
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def deb() -> Package:
    return package()


def test_its_fields(deb: Package) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert re.fullmatch(rf"{re.escape(version)}-\d+\+deb1[23]", deb.field("Version"))
    assert deb.path.stat().st_size < LARGEST_BYTES
    depends = deb.field("Depends")
    assert "python3 (>= 3.1" in depends
    assert "python3 (<< 3.1" in depends
    assert "polkitd" in depends
    assert deb.field("Recommends").startswith("nats-server")


def test_every_locked_library_is_in_it_with_its_licence(deb: Package) -> None:
    names = re.findall(r"^(\S+)==(\S+)", (ROOT / "requirements/runtime.txt").read_text(), re.MULTILINE)
    assert names
    copyright_text = _of(deb, "usr/share/doc/marketprism/copyright").replace("_", "-").lower()
    for name, version in names:
        assert f"\n{name} {version}\n" in copyright_text


def test_the_engine_of_the_stores_is_a_package_of_its_own(deb: Package) -> None:
    libraries = {"chdb", "pyarrow", "clickhouse_connect"}
    assert not any(f"/site-packages/{name}/" in _contents(deb) for name in libraries)
    path = deb.path.with_name(deb.path.name.replace("marketprism_", "marketprism-embedded_"))
    if not path.exists():
        pytest.skip("it is large; scripts/build-deb --stores builds it")
    stores = Package(path)
    assert f"marketprism (= {deb.field('Version')})" in stores.field("Depends")
    assert path.stat().st_size < LARGEST_STORES_BYTES
    assert all(f"/site-packages/{name}/" in _contents(stores) for name in libraries)
    ours = {line.split()[-1] for line in _contents(deb).splitlines() if not line.endswith("/")}
    theirs = {line.split()[-1] for line in _contents(stores).splitlines() if not line.endswith("/")}
    assert ours.isdisjoint(theirs)


def test_the_order_book_is_built_as_python_was(deb: Package) -> None:
    """Optimized; setuptools forgets Python's own flags where CFLAGS is set, and assertions tell of it."""
    (name,) = re.findall(r"\S+/_book\.\S+\.so$", _contents(deb), re.MULTILINE)
    assert b"__assert_fail" not in _bytes_of(deb, name.removeprefix("./"))


def test_the_completion_is_bash_and_knows_the_verbs(deb: Package, tmp_path: Path) -> None:
    script = tmp_path / "completion"
    script.write_text(_of(deb, "usr/share/bash-completion/completions/marketprism"))
    ask = 'source "$1"; COMP_WORDS=(marketprism worker okx_s); COMP_CWORD=2; _marketprism; echo "${COMPREPLY[@]}"'
    assert subprocess.check_output(["bash", "-c", ask, "-", script], text=True).strip() == "okx_spot"


@pytest.mark.parametrize(
    "page", ["man1/marketprism.1", "man5/unified_data_collection.yaml.5", "man7/marketprism.target.7"]
)
def test_the_manual_is_without_fault(deb: Package, tmp_path: Path, page: str) -> None:
    need("man")
    kept = tmp_path / f"{Path(page).name}.gz"
    kept.write_bytes(_bytes_of(deb, f"usr/share/man/{page}.gz"))
    shown = subprocess.run(
        ["man", "--warnings", "--local-file", kept],
        env=os.environ | {"MANROFFSEQ": "", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stderr == ""
    assert "NAME" in shown.stdout


def test_lintian_finds_nothing(deb: Package) -> None:
    need("lintian")
    found = subprocess.run(
        ["lintian", "--allow-root", "--fail-on", "error,warning", deb.path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout


def test_a_clean_system_builds_the_same_bytes(deb: Package, tmp_path: Path) -> None:
    _need_root()
    here = tmp_path / deb.path.name
    shutil.copy(deb.path, here)
    there = build("bookworm", clean=True)
    same = here.read_bytes() == there.read_bytes()
    assert same, _difference(here, there)


def test_its_life(deb: Package, tmp_path: Path) -> None:
    _need_root()
    host = tmp_path / "host"
    host.mkdir()
    shutil.copy(deb.path, host / "this.deb")
    shutil.copy(HERE / "life.sh", host)
    shutil.copy(deb.as_version("2.9.9-1+deb12", tmp_path).path, host / "earlier.deb")
    shutil.copy(deb.as_version("99.0.0-1+deb12", tmp_path).path, host / "later.deb")
    done = subprocess.run(
        [
            mmdebstrap(), "--variant=apt", "--format=null", f"--include={DEPENDS}",
            f"--customize-hook=mkdir $1/host && cp {host}/* $1/host && chroot $1 bash /host/life.sh >{host}/log 2>&1",
            "bookworm", "-",
        ],
        capture_output=True, text=True, timeout=BUILD_S, check=False,
    )  # fmt: skip
    log = (host / "log").read_text() if (host / "log").exists() else done.stderr
    assert done.returncode == 0, log[-4000:]
    assert log.endswith("== done\n")


def test_piuparts_finds_nothing(deb: Package, tmp_path: Path) -> None:
    """Installed and purged, and upgraded from an earlier build and purged."""
    _need_root()
    need("piuparts", "apt-ftparchive")
    base, archive, log = tmp_path / "base.tar.gz", tmp_path / "archive", tmp_path / "log"
    # With what the package depends on, since a purge of systemd leaves folders.
    make = [mmdebstrap(), "--quiet", "--variant=minbase", f"--include={DEPENDS},eatmydata", "bookworm", base]
    subprocess.run(make, check=True, timeout=BUILD_S)
    archive.mkdir()
    deb.as_version("2.9.9-1+deb12", archive)
    with (archive / "Packages").open("wb") as index:
        subprocess.run(["apt-ftparchive", "packages", "."], cwd=archive, stdout=index, check=True)
    done = subprocess.run(
        [
            "piuparts", f"--basetgz={base}", "--distribution=bookworm", f"--log-file={log}",
            f"--bindmount={archive}", f"--extra-repo=deb [trusted=yes] file:{archive} ./", deb.path,
        ],
        capture_output=True, timeout=2 * BUILD_S, check=False,
    )  # fmt: skip
    text = log.read_text()
    assert done.returncode == 0, text[-4000:]
    assert "Unpacking marketprism (3" in text
    assert "over (2.9.9-1+deb12)" in text


def _need_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, for mmdebstrap's systems")


def _bytes_of(deb: Package, path: str) -> bytes:
    return subprocess.check_output(f"dpkg-deb --fsys-tarfile '{deb.path}' | tar -xO ./{path}", shell=True)


def _contents(deb: Package) -> str:
    return subprocess.check_output(["dpkg-deb", "--contents", deb.path], text=True)


def _of(deb: Package, path: str) -> str:
    return _bytes_of(deb, path).decode()


def _difference(one: Path, other: Path) -> str:
    """The files that differ."""
    sums = [
        subprocess.check_output(["dpkg-deb", "--info", path, "md5sums"], text=True).splitlines()
        for path in (one, other)
    ]
    return "\n".join(sorted(set(sums[0]) ^ set(sums[1])))
