"""A small worker for the launcher's tests: a real process with the real log and metrics conventions.

`fake_worker.py NAME ORDERS_DIR`: every 0.1 s it reads ORDERS_DIR/NAME.json and does what that says.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from prometheus_client import Counter, Gauge

from marketprism import logs, parent

MB = 1024 * 1024


class FakeWorker:
    def __init__(self, name: str, orders: Path) -> None:
        self.names = ["okx_spot", "binance_spot"] if name == "all" else [name]
        self.orders = orders / f"{name}.json"
        self.ballast: list[bytes] = []
        self.said: set[str] = set()
        self.log = logging.getLogger("marketprism.fake")
        self.gauges = {
            key: Gauge(f"marketprism_{key}", key, ["exchange"], multiprocess_mode="livemostrecent")
            for key in (
                "worker_heartbeat_timestamp_seconds",
                "live_books",
                "expected_books",
                "websocket_connected",
                "websocket_expected",
                "nats_connected",
                "last_book_timestamp_seconds",
            )
        }
        self.last_data = Gauge(
            "marketprism_last_data_timestamp_seconds",
            "t",
            ["exchange", "data_type"],
            multiprocess_mode="livemostrecent",
        )
        self.messages = Counter("marketprism_websocket_messages_received_total", "messages", ["exchange"])
        self.gaps = Counter("marketprism_gaps_total", "gaps", ["exchange", "data_type", "cause"])

    def tick(self) -> None:
        order: dict[str, Any] = json.loads(self.orders.read_text()) if self.orders.exists() else {}
        self.obey(order)
        values = {
            "worker_heartbeat_timestamp_seconds": time.time(),
            "live_books": 2,
            "expected_books": 2,
            "websocket_connected": 3,
            "websocket_expected": 3,
            "nats_connected": 1,
            "last_book_timestamp_seconds": time.time() - order.get("book_age_s", 0),
        } | order.get("gauges", {})
        for name in self.names:
            for key, value in values.items():
                self.gauges[key].labels(name).set(value)
            self.last_data.labels(name, "trade").set(time.time() - order.get("trade_age_s", 0))
            self.messages.labels(name).inc(10)

    def obey(self, order: dict[str, Any]) -> None:
        if "say" in order and order["say"] not in self.said:
            self.said.add(order["say"])
            self.log.info("OrderBook updated: %s", order["say"])
            self.log.info("gap in %s", order["say"], extra={"event": "gap"})
            self.gaps.labels(self.names[0], "trade", "disconnect").inc()
        missing = int(order.get("allocate_mb", 0)) - len(self.ballast)
        if missing > 0:
            self.ballast.extend(b"x" * MB for _ in range(missing))
        del self.ballast[int(order.get("allocate_mb", 0)) :]
        if "child" in order and not (self.orders.parent / "child.pid").exists():
            child = os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "60")
            (self.orders.parent / "child.pid").write_text(str(child))
        if order.get("ignore_term"):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if "raise" in order:
            raise RuntimeError(order["raise"])
        if "exit" in order:
            sys.exit(order["exit"])
        if order.get("stuck"):
            time.sleep(3600)


def main() -> None:
    parent.die_with_parent()
    name, orders = sys.argv[1], Path(sys.argv[2])
    logs.setup(name, Path(os.environ["MARKETPRISM_LOG_DIR"]))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGHUP, lambda *_: (orders / f"{name}.reloaded").touch())
    with (orders / f"{name}.starts").open("a") as starts:
        print(os.getpid(), time.time(), file=starts)
    worker = FakeWorker(name, orders)
    while True:
        worker.tick()
        time.sleep(0.1)


if __name__ == "__main__":
    main()
