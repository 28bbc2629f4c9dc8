"""Ctrl-C, noticed only where we look for it, so that no start or stop is cut in half."""

from __future__ import annotations

import signal

_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


def block() -> None:
    """Hold SIGINT, SIGTERM and SIGHUP back until `requested_within` takes them; children call `unblock`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def unblock() -> None:
    """Undo `block`."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def requested_within(seconds: float) -> bool:
    """Sleep for `seconds`; True as soon as one of the signals is there."""
    return signal.sigtimedwait(_SIGNALS, max(seconds, 0)) is not None
