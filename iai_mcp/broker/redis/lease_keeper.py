"""Keeps leases alive while their batches are written: a slow disk must not hand a lane from worker to worker.

A process that is paused or dead renews nothing, so its leases run out as before.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from iai_mcp.broker.protocol import Lease
from iai_mcp.errors import BrokerUnavailable

__all__ = ["LeaseKeeper"]

KEEP_S = 300.0  # a write that takes longer hangs: its lane goes to another worker


class LeaseKeeper:
    """Renews leases from one thread, which ends by itself when there is nothing to keep.

    Args:
        renew: renews one lease; False where it has passed on.
        every_s: seconds between two renewals.
    """

    def __init__(self, renew: Callable[[Lease], bool], every_s: float) -> None:
        self._renew = renew
        self._every = every_s
        self._kept: dict[str, tuple[Lease, float]] = {}  # with the time at which to give up
        self._mutex = threading.Lock()
        self._thread: threading.Thread | None = None

    @contextmanager
    def keep(self, lease: Lease) -> Iterator[None]:
        """Keep the lease alive for the block, at most ``KEEP_S`` seconds."""
        with self._mutex:
            self._kept[lease.holder] = lease, time.monotonic() + KEEP_S
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="iai-mcp-leases", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            self._kept.pop(lease.holder, None)

    def _run(self) -> None:
        while True:
            time.sleep(self._every)
            with self._mutex:
                if not self._kept:
                    self._thread = None
                    return
                kept = [*self._kept.values()]
            for lease, until in kept:
                with suppress(BrokerUnavailable):  # the next round tries again
                    if time.monotonic() >= until or not self._renew(lease):
                        self._kept.pop(lease.holder, None)
