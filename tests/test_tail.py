"""`marketprism tail` against a real server: what it prints, and how it ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from natsbox import NatsBox, free_port, nats_server

from chaos.pipeline import CONFIG, ROOT, pipeline
from marketprism.simulator import SimulatorOptions

pytestmark = pytest.mark.skipif(nats_server() is None, reason="no nats-server: run scripts/setup")


def start(config: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("NATS_URL", "MARKETPRISM_NATS_URL")}
    command = [sys.executable, "-m", "marketprism", "tail", *arguments, "--config", str(config)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def config_for(folder: Path, url: str) -> Path:
    document = yaml.safe_load(CONFIG.read_text())
    document["nats"]["servers"] = [url]
    path = folder / "tail.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_it_prints_as_many_as_asked(tmp_path: Path) -> None:
    with pipeline(tmp_path, SimulatorOptions(seed=31)) as p:
        p.run("worker", "okx_spot")
        output, errors = start(p.config, "trade.okx.>", "--count", "3").communicate(timeout=60)
    lines = output.splitlines()
    assert len(lines) == 3, errors
    assert all(line.startswith("trade.okx.spot.") for line in lines)


def test_no_nats_is_one_line(tmp_path: Path) -> None:
    tail = start(config_for(tmp_path, f"nats://127.0.0.1:{free_port()}"), "trade.>")
    output, errors = tail.communicate(timeout=30)
    assert tail.returncode == 1
    assert output == ""
    assert errors.startswith("marketprism tail: no NATS at nats://127.0.0.1:")
    assert errors.count("\n") == 1


def test_a_lost_connection_ends_it_with_one_line(tmp_path: Path) -> None:
    box = NatsBox(tmp_path)
    box.start()
    tail = start(config_for(tmp_path, box.url), "trade.>")
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            tail.wait(2)  # nothing is published: it waits
    finally:
        box.kill()
    _, errors = tail.communicate(timeout=30)
    assert tail.returncode == 1
    assert errors == f"marketprism tail: the connection to NATS at {box.url} was lost\n"
