"""Runs the launcher with fake workers: `launcher_program.py DIRECTORY`, options in DIRECTORY/options.json."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from marketprism.control.restarts import RestartRules
from marketprism.launcher import LauncherOptions, run

FAKE_WORKER = Path(__file__).with_name("fake_worker.py")


def main() -> int:
    directory = Path(sys.argv[1])
    wanted = json.loads((directory / "options.json").read_text())
    restart = RestartRules(**wanted.get("restart", {}))
    options = LauncherOptions(
        config=directory / "config.yaml",
        exchanges=tuple(wanted["exchanges"]),
        single_process=wanted.get("single_process", False),
        log_dir=directory / "logs",
        runtime_dir=Path(wanted.get("runtime_dir", directory / "run")),
        health_port=wanted.get("health_port", 0),
        metrics_port=0,
        memory={name: tuple(wanted.get("memory", [4000, 8000])) for name in wanted["exchanges"]},
        worker_command=lambda name: [
            *wanted.get("command", [sys.executable, str(FAKE_WORKER)]),
            name,
            str(directory),
        ],
        restart=restart,
        log_max_bytes=wanted.get("log_max_bytes", 100_000_000),
    )
    return asyncio.run(run(options))


if __name__ == "__main__":
    sys.exit(main())
