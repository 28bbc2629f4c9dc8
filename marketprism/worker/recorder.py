"""The recording beside the collecting: what the wire says, on disk."""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from marketprism.capture import Frame, Writer
from marketprism.config import RecordingSettings
from marketprism.logs import RateLimitedLog

log = logging.getLogger(__name__)


def recorder(settings: RecordingSettings, name: str) -> "Recorder | None":
    """The recording beside the collecting, if it is wanted."""
    if not settings.enabled:
        return None
    return Recorder(
        lambda: Writer(
            settings.directory,
            name,
            compression="gzip" if settings.compression == "gzip" else "zstd",
            rotate_bytes=settings.rotate_mb << 20,
            rotate_s=settings.rotate_minutes * 60,
        )
    )


class Recorder:
    """A recording that must not end the collecting: a full disk costs the recording, and is told once a minute."""

    RETRY_S = 30.0

    def __init__(self, make: Callable[[], Writer]) -> None:
        self._make = make
        self._writer: Writer | None = None
        self._retry_s = 0.0
        self.path: Path | None = None  # of the newest file
        self._log = RateLimitedLog(log)

    def write(self, frame: Frame) -> None:
        """Append a frame if it can be done."""
        if self._writer is None and time.monotonic() < self._retry_s:
            return
        try:
            if self._writer is None:
                self._writer = self._make()
            self._writer.write(frame)
            self.path = self._writer.path
        except OSError as e:
            self._give_up(e)

    def flush(self) -> None:
        """Hand everything to the operating system."""
        if self._writer is not None:
            try:
                self._writer.flush()
            except OSError as e:
                self._give_up(e)

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            try:
                self._writer.close()
            except OSError as e:
                self._give_up(e)

    def _give_up(self, error: OSError) -> None:
        self._log.error("recording", "recording stopped, trying again in 30 s: %s", error, event="recording")
        self._retry_s = time.monotonic() + self.RETRY_S
        writer, self._writer = self._writer, None
        if writer is not None:
            with suppress(OSError):
                writer.close()
