"""`marketprism record`: write what the wire says, without NATS."""

import asyncio
import contextlib
import logging
import signal
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Literal

from marketprism.config import Settings
from marketprism.events import Event
from marketprism.worker.collector import Collector
from marketprism.worker.recorder import recorder

log = logging.getLogger(__name__)


async def run(
    settings: Settings,
    exchange: str,
    directory: Path | None,
    compression: Literal["gzip", "zstd"] | None,
    seconds: float | None,
) -> int:
    """Record one exchange until told to stop. Returns the exit status."""
    recording = settings.recording
    writer = recorder(
        replace(
            recording,
            enabled=True,
            directory=directory or recording.directory,
            compression=compression or recording.compression,
        ),
        exchange,
    )
    assert writer is not None
    events: Counter[str] = Counter()

    def count(event: Event, _: int) -> None:
        events[event.subject.split(".", 1)[0]] += 1

    async def nothing() -> None:
        return

    collector = Collector(settings.exchanges[exchange], count, lambda: None, writer)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    running = asyncio.create_task(collector.run(nothing))
    waiting = asyncio.create_task(stopping.wait())
    await asyncio.wait([running, waiting], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    failed = running.done()
    collector.stop()
    running.cancel()
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    writer.close()
    told = ", ".join(f"{n} {kind}" for kind, n in sorted(events.items())) or "no events"
    print(f"{collector.frames} frames ({told}) → {writer.path or 'nothing written'}", file=sys.stderr)
    return 1 if failed or writer.path is None else 0
