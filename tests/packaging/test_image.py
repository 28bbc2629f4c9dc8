"""The container image, built and run without a container engine: by buildah, in a chroot, on a base of our own."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from deb_package import ROOT, engine_wheels, make_debian, need, wheels

BASE = "docker.io/library/debian:12-slim"  # as the Dockerfile names it
IMAGE = "localhost/marketprism-test"
STORES_IMAGE = f"{IMAGE}-embedded"
LARGEST_BYTES = 250_000_000
LARGEST_STORES_BYTES = 1_100_000_000
COMPOSE = ROOT / "docker-compose.unified.yml"
DOCKERFILE = ROOT / "packaging/docker/Dockerfile"


class Buildah:
    """buildah with a store of its own in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._argv = [
            "buildah",
            "--root",
            f"{folder}/root",
            "--runroot",
            f"{folder}/run",
            "--storage-driver",
            "vfs",
        ]

    def argv(self, *more: str | Path) -> list[str | Path]:
        """A command line."""
        return [*self._argv, *more]

    def __call__(self, *more: str | Path) -> str:
        """Run it; its output."""
        done = subprocess.run(self.argv(*more), capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, f"buildah {more[0]}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout.strip()


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    """With the image built in it."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for a system that mmdebstrap makes")
    need("buildah")
    folder = tmp_path_factory.mktemp("buildah")
    buildah = Buildah(folder)
    make_debian(folder / "base.tar")
    base = buildah("from", "scratch")
    buildah("add", "--quiet", base, folder / "base.tar", "/")
    buildah("commit", "--quiet", base, BASE)
    buildah("rm", base)
    (folder / "base.tar").unlink()
    _build(buildah, IMAGE, wheels())
    yield buildah
    buildah("rmi", "--all", "--force")


@pytest.fixture(scope="module")
def stores(buildah: Buildah) -> str:
    """The image with the engine of the stores."""
    fetched = engine_wheels()
    if fetched is None:
        pytest.skip("it is large; scripts/build-deb --stores fetches what is in it")
    _build(buildah, STORES_IMAGE, fetched, "--build-arg=LIBRARIES=embedded")
    return STORES_IMAGE


def _build(buildah: Buildah, tag: str, libraries: Path, *options: str) -> None:
    buildah(
        "bud", "--isolation=chroot", "--pull-never", "--network=host", "--format=docker",
        f"--volume={libraries}:/build/wheels:ro", f"--file={DOCKERFILE}", f"--tag={tag}", *options, ROOT,
    )  # fmt: skip


def test_it_is_small_and_says_what_a_container_needs(buildah: Buildah) -> None:
    assert _size_bytes(buildah, IMAGE) < LARGEST_BYTES
    config = json.loads(buildah("inspect", "--type=image", IMAGE))["Docker"]["config"]
    assert config["Entrypoint"] == ["marketprism", "launcher"]
    assert config["User"] == "marketprism"
    assert set(config["ExposedPorts"]) == {"8087/tcp", "9092/tcp"}
    assert config["Healthcheck"]["Test"][0] == "CMD"


@pytest.mark.parametrize("options", [["--exchange", "okx_spot"], ["--single-process"]])
def test_it_collects_and_stops_in_good_order(buildah: Buildah, tmp_path: Path, options: list[str]) -> None:
    health, metrics = _free_ports(2)
    entry = json.loads(buildah("inspect", "--type=image", IMAGE))["Docker"]["config"]["Entrypoint"]
    monitoring = {"health_check": {"port": health}, "metrics": {"port": metrics}}
    with _run(buildah, IMAGE, tmp_path, {"monitoring": monitoring}, [*entry, *options]) as run:
        _wait("healthy", lambda: _status(health) == "healthy", run, tmp_path)
        pid = int((tmp_path / "main.pid").read_text())
        assert os.stat(f"/proc/{pid}").st_uid == 8087
        _stop(run, pid, tmp_path)


def test_with_the_engine_it_stores(buildah: Buildah, stores: str, tmp_path: Path) -> None:
    """By the entry point that docker-compose.unified.yml gives it."""
    health, metrics, port = _free_ports(3)
    assert _size_bytes(buildah, stores) < LARGEST_STORES_BYTES
    entry = yaml.safe_load(COMPOSE.read_text())["services"]["hot"]["entrypoint"]
    changes = {
        "monitoring": {"health_check": {"port": health}, "metrics": {"port": metrics}},
        "storage": {"hot": {"port": port}},
    }
    beside = "marketprism launcher --exchange okx_spot & echo $! >/host/launcher.pid"
    with _run(buildah, stores, tmp_path, changes, entry, beside) as run:
        _wait("healthy", lambda: _status(port) == "healthy", run, tmp_path)
        _wait("trades", lambda: _answer(port, "stats")["message_stats"]["trade"]["stored"], run, tmp_path)
        _stop(run, int((tmp_path / "main.pid").read_text()), tmp_path)


@contextmanager
def _run(
    buildah: Buildah, image: str, folder: Path, changes: dict[str, Any], command: list[str], beside: str = ""
) -> Iterator[subprocess.Popen[bytes]]:
    """A container with NATS and simulated exchanges, in which a command runs in the end."""
    nats, monitor = _free_ports(2)
    container = buildah("from", image)
    folder.chmod(0o777)
    (folder / "start").write_text(
        f"""\
set -e
echo $$ >/host/main.pid
sed 's/8222/{monitor}/' /etc/marketprism/nats-server.conf >/host/nats.conf
nats-server --config /host/nats.conf --port {nats} & echo $! >/host/nats.pid
marketprism simulate --config /etc/marketprism/unified_data_collection.yaml --rate 20 \\
    --write-config /host/simulated.yaml & echo $! >/host/simulator.pid
until [ -e /host/config.yaml ]; do sleep 0.2; done
{beside}
exec {" ".join(command)}
"""
    )
    environment = {
        "MARKETPRISM_CONFIG": "/host/config.yaml",
        "MARKETPRISM_NATS_URL": f"nats://127.0.0.1:{nats}",
    }
    log = (folder / "log").open("wb")
    run = subprocess.Popen(
        buildah.argv(
            "run", "--isolation=chroot", "--network=host", f"--volume={folder}:/host",
            *(f"--env={name}={value}" for name, value in environment.items()), container, "--", "sh", "/host/start",
        ),
        stdout=log, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        simulated = folder / "simulated.yaml"
        _wait("the simulator", lambda: simulated.exists() and simulated.stat().st_size, run, folder)
        document = yaml.safe_load(simulated.read_text())
        for name, values in changes.items():
            document[name] = document.get(name, {}) | values
        (folder / "config.yaml.new").write_text(yaml.safe_dump(document))
        (folder / "config.yaml.new").rename(folder / "config.yaml")
        yield run
    finally:
        for kept in folder.glob("*.pid"):
            if Path(f"/proc/{kept.read_text().strip()}").exists():
                os.kill(int(kept.read_text()), signal.SIGTERM)
        run.wait(60)
        log.close()
        buildah("rm", container)


def _stop(run: subprocess.Popen[bytes], pid: int, folder: Path) -> None:
    began_s = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    assert run.wait(60) == 0, (folder / "log").read_text()[-2000:]
    print(f"\nstopped after {time.monotonic() - began_s:.1f} s")


def test_the_compose_file_is_as_asked_for() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    collector = services["collector"]
    assert collector["mem_limit"] == "4G"
    assert collector["mem_reservation"] == "1G"
    assert collector["ports"] == ["8087:8087", "9092:9092"]
    assert "cpus" not in collector
    for service in services.values():
        assert service["read_only"] is True
        assert (ROOT / service["build"]["dockerfile"]).exists()
    mounted = {volume.split(":")[0] for service in services.values() for volume in service["volumes"]}
    named = {name for name in mounted if not name.startswith("./")}
    assert named == set(yaml.safe_load(COMPOSE.read_text())["volumes"])
    assert all((ROOT / name).exists() for name in mounted - named)


@pytest.mark.parametrize("client", ["docker compose", "docker-compose"])
def test_the_client_accepts_the_compose_file(client: str) -> None:
    """The second is the first version of it, which is Debian 12's."""
    argv = client.split()
    need(argv[0])
    if subprocess.run([*argv, "version"], capture_output=True, check=False).returncode:
        pytest.skip(f"not on this machine: {client}")
    done = subprocess.run([*argv, "-f", COMPOSE, "config", "--quiet"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def _free_ports(count: int) -> list[int]:
    holders = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [holder.getsockname()[1] for holder in holders]
    for holder in holders:
        holder.close()
    return ports


def _status(port: int) -> str:
    try:
        return str(_answer(port, "health")["status"])
    except OSError as e:
        return str(e)


def _answer(port: int, page: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}", timeout=5) as answer:
        return dict(json.load(answer))


def _wait(what: str, condition: Callable[[], object], run: subprocess.Popen[bytes], folder: Path) -> None:
    end_s = time.monotonic() + 120
    while not condition():
        assert run.poll() is None, (folder / "log").read_text()[-3000:]
        assert time.monotonic() < end_s, f"{what}: not within 120 s\n{(folder / 'log').read_text()[-3000:]}"
        time.sleep(0.2)


def _size_bytes(buildah: Buildah, image: str) -> float:
    (found,) = json.loads(buildah("images", "--json", image))
    figure, unit = found["size"].split()
    size_bytes = float(figure) * {"KB": 1e3, "MB": 1e6, "GB": 1e9}[unit]
    print(f"\n{image}: {size_bytes / 1e6:.0f} MB")
    return size_bytes
