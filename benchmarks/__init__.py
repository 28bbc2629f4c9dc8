"""Measures MarketPrism from outside; `scripts/bench` is the way in, docs/performance.md tells the method."""
