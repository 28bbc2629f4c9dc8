"""`marketprism hot` and `marketprism cold` whose hours and days last seconds.

So a run of minutes has many windows that are moved, come late and are dropped. Nothing else differs.
"""

import sys

from marketprism.cli import main
from marketprism.storage import cold, parquet, schema, windows

WINDOW_S = 30
"""Instead of an hour: what cold moves at once."""
DAY_S = 180
"""So long after its window's end a row leaves hot, with `retention_days: 1`."""


def shorten() -> None:
    """In this process, from now on."""
    windows.HOUR_S = WINDOW_S
    schema.PARTITION["hot"] = f"toStartOfInterval(timestamp, toIntervalSecond({WINDOW_S}))"
    parquet.FILE_NAME = "%H-%M-%S"
    cold.DAY_S = DAY_S


if __name__ == "__main__":
    shorten()
    sys.exit(main(sys.argv[1:]))
