"""Venue and book over a recording; our half of `scripts/bench peers`, in a process like the other half's.

Arguments: the recording, its exchange, and where to write the frames for the other half (see peer_cryptofeed.py).
Answers each line on stdin, `book 3`, with the CPU time of so many passes on fresh venues.
"""

import gc
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.replay import Call, Recording, recording, run
from marketprism.venues.venue import Venue


def write_frames(taped: Recording, target: Path) -> None:
    """What the other half gets: the same frames, and the whole books it would have asked for."""
    bodies = {
        call.args[0].instrument: call.args[2].decode()
        for call in taped.calls
        if call.method == "response" and call.args[0].kind == "depth"
    }
    with target.open("w") as file:
        checksums = any(b'"checksum":' in data and b'"checksum":0' not in data for data in taped.frames)
        header = {"exchange": taped.exchange, "bodies": bodies, "checksums": checksums}
        file.write(json.dumps(header) + "\n")
        for call in taped.calls:
            if call.channel is not None:
                _, data, now_ns = call.args
                file.write(json.dumps([now_ns / 1e9, _as_known(call, data.decode())]) + "\n")


def _as_known(call: Call, frame: str) -> str:
    """cryptofeed knows Binance's aggTrade but not its trade: these get the other's name and the id's other key."""
    if call.channel != "trade":
        return frame
    return frame.replace('"e":"trade"', '"e":"aggTrade"', 1).replace('"t":', '"a":', 1)


def tops(venue: Venue) -> dict[str, list[float | None]]:
    """Best bid and ask of each book."""
    books = {name: m.book.book for name, m in venue.markets.items() if m.book is not None}
    return {name: [level and float(level[0]) for level in book.best()] for name, book in books.items()}


def main() -> None:
    """See the head of the file."""
    path, exchange, target = sys.argv[1:]
    taped = recording(Path(path), exchange)
    write_frames(taped, Path(target))
    told: dict[str, Any] = {"frames": len(taped.frames), "events": taped.events, "tops": tops(taped.venue)}
    print(json.dumps(told), flush=True)
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        _, passes = line.split()
        spent = sum(run(exchange, taped.calls)[0] for _ in range(int(passes)))
        print(json.dumps({"ns": spent}), flush=True)


if __name__ == "__main__":
    main()
