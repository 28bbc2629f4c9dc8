"""The Debian package: the same bytes each time, clean by lintian, and its life in a Debian without systemd running."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from deb_package import BUILD_S, ROOT, Package, build, mmdebstrap, need, package, packages

LARGEST_BYTES = 80_000_000
LARGEST_STORES_BYTES = 300_000_000
DEPENDS = "polkitd,dbus,systemd,python3,libstdc++6,procps,nats-server"
HERE = Path(__file__).parent
SOME_SKIPPED = 2  # exit status of autopkgtest: none failed


@pytest.fixture(scope="module")
def deb() -> Package:
    return package()


@pytest.fixture(scope="module")
def debs() -> list[Package]:
    """It, and the engine's where that was built."""
    return packages()


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


def test_the_engine_of_the_stores_is_a_package_of_its_own(deb: Package, debs: list[Package]) -> None:
    libraries = {"chdb", "pyarrow", "clickhouse_connect"}
    assert not any(f"/site-packages/{name}/" in _contents(deb) for name in libraries)
    if len(debs) == 1:
        pytest.skip("it is large; scripts/build-deb --stores builds it")
    stores = debs[1]
    assert f"marketprism (= {deb.field('Version')})" in stores.field("Depends")
    assert stores.path.stat().st_size < LARGEST_STORES_BYTES
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


def test_lintian_finds_nothing(debs: list[Package]) -> None:
    need("lintian")
    found = subprocess.run(
        ["lintian", "--allow-root", "--fail-on", "error,warning", *_paths(debs)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout


def test_a_clean_system_builds_the_same_bytes(debs: list[Package], tmp_path: Path) -> None:
    _need_root()
    for deb in debs:
        shutil.copy(deb.path, tmp_path)
    for there in build("bookworm", clean=True, stores=len(debs) > 1):
        here = tmp_path / there.name
        same = here.read_bytes() == there.read_bytes()
        assert same, _difference(here, there)


def test_its_life(debs: list[Package], tmp_path: Path) -> None:
    _need_root()
    host = tmp_path / "host"
    host.mkdir()
    shutil.copy(HERE / "life.sh", host)
    for deb, name in zip(debs, ("", "-engine"), strict=False):
        shutil.copy(deb.path, host / f"this{name}.deb")
        deb.as_version("2.9.9-1+deb12", tmp_path).path.rename(host / f"earlier{name}.deb")
        deb.as_version("99.0.0-1+deb12", tmp_path).path.rename(host / f"later{name}.deb")
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


def test_piuparts_finds_nothing(debs: list[Package], tmp_path: Path) -> None:
    """Installed and purged, and upgraded from an earlier build and purged."""
    _need_root()
    need("piuparts", "apt-ftparchive")
    base, archive, log = tmp_path / "base.tar.gz", tmp_path / "archive", tmp_path / "log"
    # With what the package depends on, since a purge of systemd leaves folders.
    make = [mmdebstrap(), "--quiet", "--variant=minbase", f"--include={DEPENDS},eatmydata", "bookworm", base]
    subprocess.run(make, check=True, timeout=BUILD_S)
    archive.mkdir()
    for deb in debs:
        deb.as_version("2.9.9-1+deb12", archive)
    with (archive / "Packages").open("wb") as index:
        subprocess.run(["apt-ftparchive", "packages", "."], cwd=archive, stdout=index, check=True)
    done = subprocess.run(
        [
            "piuparts", f"--basetgz={base}", "--distribution=bookworm", f"--log-file={log}",
            f"--bindmount={archive}", f"--extra-repo=deb [trusted=yes] file:{archive} ./", *_paths(debs),
        ],
        capture_output=True, timeout=2 * BUILD_S, check=False,
    )  # fmt: skip
    text = log.read_text()
    assert done.returncode == 0, text[-4000:]
    for deb in debs:
        unpacked = f"Unpacking {deb.field('Package')} ({deb.field('Version')})"
        assert f"{unpacked} ..." in text
        assert f"{unpacked} over (2.9.9-1+deb12)" in text


def test_autopkgtest_runs_what_needs_no_systemd(deb: Package, tmp_path: Path) -> None:
    """By its own program. The other test runs in test_deb_vm.py."""
    _need_root()
    need("autopkgtest")
    system, tree, out = tmp_path / "system", tmp_path / "tree", tmp_path / "out"
    wanted = f"{DEPENDS},man-db,dpkg-dev,apt-utils"  # its program needs the last two in there
    make = [mmdebstrap(), "--quiet", "--variant=apt", f"--include={wanted}", "bookworm", system]
    subprocess.run(make, check=True, timeout=BUILD_S)
    shutil.copytree(ROOT / "packaging" / "debian", tree / "debian")
    # It mounts nothing itself.
    mounted = 'mount -t proc proc "$0/proc" && ln -sfn /proc/self/fd "$0/dev/fd" && exec "$@"'
    test = ["autopkgtest", f"--output-dir={out}", deb.path, tree, "--", "chroot", system]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mounted, system, *test],
        capture_output=True,
        timeout=BUILD_S,
        check=False,
    )
    shutil.rmtree(system)
    assert done.returncode == SOME_SKIPPED, (out / "log").read_text()[-4000:]
    results = dict(line.split()[:2] for line in (out / "summary").read_text().splitlines())
    assert results == {"healthy": "SKIP", "commands": "PASS"}


def _need_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, for mmdebstrap's systems")


def _paths(debs: list[Package]) -> list[Path]:
    return [deb.path for deb in debs]


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
