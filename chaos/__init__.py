"""Random faults against the running product, and what it published held against the truth (scripts/chaos)."""
