"""Binding a port, and naming who has it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from marketprism.control.ports import PortError, bind

LISTENER = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"


def test_any_free_port_is_given_and_listens() -> None:
    with bind("127.0.0.1", 0, "health") as sock:
        socket.create_connection(sock.getsockname(), timeout=2).close()


def test_the_holder_of_a_taken_port_is_named() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LISTENER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        port = int(other.stdout.readline())
        with pytest.raises(PortError, match=rf"^port {port} \(metrics\) is taken by .*pid {other.pid}\b.*$"):
            bind("127.0.0.1", port, "metrics")
        other.communicate("\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give root away")
def test_a_holder_we_may_not_see_comes_with_the_command_to_find_it() -> None:
    code = (
        "import os, sys; os.setuid(65534)\n"
        "from marketprism.control.ports import holder\n"
        "print(holder(int(sys.argv[1])))"
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = subprocess.run(
            [sys.executable, "-c", code, str(port)], capture_output=True, text=True, check=True
        )
    assert f"sudo ss -ltnp 'sport = :{port}'" in said.stdout


def test_an_address_that_is_not_ours_is_one_clear_line() -> None:
    with pytest.raises(PortError, match=r"^cannot bind health to 203\.0\.113\.1:0: .+$"):
        bind("203.0.113.1", 0, "health")
