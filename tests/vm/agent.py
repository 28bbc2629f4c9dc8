"""In the machine: carries out what a test asks for. One JSON object a line comes in, one goes out."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any


def shell(command: str, timeout_s: float) -> dict[str, Any]:
    """Run a command; one that takes too long is killed with all it started, and has status 124."""
    process = subprocess.Popen(
        ["bash", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout_s)
        status = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        status = 124
    return {"status": status, "output": output.decode(errors="replace")}


def ask(url: str, method: str, headers: dict[str, str], timeout_s: float) -> dict[str, Any]:
    """One HTTP request. Status 0: there was no answer, and the body says why."""
    request = urllib.request.Request(url, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return {"status": answer.status, "body": answer.read().decode()}
    except urllib.error.HTTPError as e:
        return {"status": e.code, "body": e.read().decode()}
    except OSError as e:
        return {"status": 0, "body": str(e)}


DO: dict[str, Callable[..., dict[str, Any]]] = {"shell": shell, "ask": ask}


def main() -> None:
    """Until the tests end."""
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(DO[order.pop("do")](**order)), flush=True)


if __name__ == "__main__":
    main()
