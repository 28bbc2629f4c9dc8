"""The whole collector with one command: NATS, simulated exchanges, the workers, and a live view."""
