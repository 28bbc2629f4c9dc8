"""Rows a second into the embedded engine, without a stream before it.

Run as a program this is the process that is measured: messages of a file are made columns, looked up and inserted in
batches of the hot store's size, by its own code. Arguments: the file, an empty directory.
"""

import asyncio
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from benchmarks.filling import events
from marketprism.config import BatchSettings
from marketprism.quickstart.children import QuickstartError
from marketprism.storage.engine import Engine, Target
from marketprism.storage.rows import Rows
from marketprism.storage.schema import BY_DATA_TYPE, HOT, Layout, migrate
from marketprism.storage.writer import Writer


class Inserted(msgspec.Struct):
    """`events` messages as rows. `seconds`: from the first one read to the last one on disk; CPU time is that of all
    threads meanwhile; memory the most the process ever had, in MB (2**20 bytes). `lying`: rows on disk at the end."""

    events: int
    seconds: float
    rows_per_s: float
    cpu_us_a_row: float
    rss_max_mb: float
    lying: int


def inserted(count: int) -> Inserted:
    """Insert so many events, in a process of its own. Raises QuickstartError."""
    with TemporaryDirectory(prefix="marketprism-bench-") as name:
        source = Path(name, "events")
        with source.open("wb") as file:
            for where, payload, identity in events(count):
                file.write(b"%b\t%b\t%b\n" % (where.split(".")[0].encode(), identity.encode(), payload))
        command = [sys.executable, "-m", "benchmarks.inserting", str(source), str(Path(name, "hot"))]
        told = subprocess.run(command, capture_output=True, check=False)
    if told.returncode != 0:
        raise QuickstartError(f"inserting ended with {told.returncode}: {told.stderr.decode()[-500:]}")
    return msgspec.json.decode(told.stdout, type=Inserted)


def main(source: Path, directory: Path) -> None:
    """Insert what is in the file, and tell how long it took."""
    layout, limits = Layout(HOT.database, HOT.tier, ""), BatchSettings()
    engine = Engine(Target(str(directory)))
    migrate(engine, layout)
    writer, gathered = Writer(engine, layout), dict[bytes, Rows]()
    number, began_s, began_cpu_s = 0, time.perf_counter(), time.process_time()
    with asyncio.Runner() as runner, source.open("rb") as file:

        def store(rows: Rows) -> None:
            columns, refused = rows.arrow()
            assert not refused
            runner.run(writer.store(rows.table, columns))

        for number, line in enumerate(file, 1):
            data_type, identity, payload = line[:-1].split(b"\t", 2)
            rows = gathered.get(data_type)
            if rows is None:
                rows = gathered[data_type] = Rows(BY_DATA_TYPE[data_type.decode()])
            rows.add(payload, identity.decode(), number)
            if rows.bytes >= limits.bytes or len(rows) >= limits.rows:
                store(gathered.pop(data_type))
        for rows in gathered.values():
            store(rows)
    seconds, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    rss_max_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    lying = engine.value(f"SELECT sum(rows) FROM {layout.parts} WHERE active AND table != 'schema_versions'")
    told = Inserted(number, seconds, number / seconds, 1e6 * cpu_s / number, rss_max_mb, int(lying))
    sys.stdout.buffer.write(msgspec.json.encode(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
