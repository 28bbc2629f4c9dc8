"""Being told by the kernel that a file changed (inotify(7)); works on the cgroup files of other units, too."""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from collections.abc import Callable
from pathlib import Path

_IN_MODIFY = 0x2
_IN_IGNORED = 0x8000
_EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name


class Inotify:
    """Calls `changed(file)` in the running loop for every file watched."""

    def __init__(self, changed: Callable[[Path], None]) -> None:
        """Raises OSError where the kernel has no more inotify instances for this user."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._changed = changed
        self._files: dict[int, Path] = {}
        self._fd = self._check(self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        asyncio.get_running_loop().add_reader(self._fd, self._read)

    def watch(self, file: Path) -> None:
        """Watch `file`, until it is removed. Raises OSError."""
        watch = self._check(self._libc.inotify_add_watch(self._fd, os.fsencode(file), _IN_MODIFY))
        self._files[watch] = file

    def close(self) -> None:
        """Watch nothing any more."""
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)

    def _read(self) -> None:
        data = os.read(self._fd, 65536)
        changed: set[Path] = set()
        position = 0
        while position < len(data):
            watch, mask, _, length = _EVENT.unpack_from(data, position)
            position += _EVENT.size + length
            if mask & _IN_IGNORED:
                self._files.pop(watch, None)
            elif watch in self._files:
                changed.add(self._files[watch])
        for file in changed:
            self._changed(file)

    def _check(self, result: int) -> int:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result
