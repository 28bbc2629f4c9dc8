"""Binding the fixed ports, and saying who has one that is taken."""

from __future__ import annotations

import errno
import socket

import psutil


class PortError(Exception):
    """A port cannot be had; the text is one line for a person."""


def bind(host: str, port: int, purpose: str) -> socket.socket:
    """A listening socket on `host`:`port` (0: any free port). Raises PortError naming the holder."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(128)  # two binders with SO_REUSEADDR collide only here
    except OSError as exc:
        sock.close()
        if exc.errno != errno.EADDRINUSE:
            raise PortError(f"cannot bind {purpose} to {host}:{port}: {exc.strerror}") from exc
        raise PortError(
            f"port {port} ({purpose}) is taken by {holder(port)}; stop that process first"
        ) from exc
    return sock


def holder(port: int) -> str:
    """The process listening on TCP `port`, as "name (pid 12)", or how to find it when we may not see it."""
    pids = sorted({pid for pid in _listeners(port) if pid})
    return (
        ", ".join(map(_describe, pids))
        or f"a process we may not see (find it with: sudo ss -ltnp 'sport = :{port}')"
    )


def _listeners(port: int) -> list[int | None]:
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return []
    return [
        found.pid
        for found in connections
        if found.status == psutil.CONN_LISTEN and found.laddr and found.laddr.port == port
    ]


def _describe(pid: int) -> str:
    try:
        process = psutil.Process(pid)
        command = " ".join(process.cmdline()[:5])
        return f"{process.name()} (pid {pid}: {command})" if command else f"{process.name()} (pid {pid})"
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return f"pid {pid}"
