"""Owns how a server process ends: the time that requests in flight get, and a hard end if a clean one hangs."""

from __future__ import annotations

import os
import signal
import threading

from iai_mcp.config import Settings

__all__ = ["EOF_GRACE_S", "GRACE_S", "MARGIN_S", "hangup_stops", "watchdog"]

GRACE_S = 3.0  # seconds for requests in flight after SIGTERM
EOF_GRACE_S = 20.0  # after the end of stdin: one piped request gets its answer even from a cold start
MARGIN_S = 1.5  # beyond the grace and the queue's own budget


def hangup_stops() -> bool:
    """Whether the end of the terminal (SIGHUP) is to end this process; ``nohup`` says no."""
    return signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN


def watchdog(settings: Settings, grace: float = GRACE_S) -> None:
    """End this process with exit code 1 if it still runs after ``grace`` seconds and the queue's stop budget.

    Entries that are only in memory by then are lost.
    """
    timer = threading.Timer(grace + settings.stop_budget + MARGIN_S, os._exit, (1,))
    timer.daemon = True
    timer.start()
