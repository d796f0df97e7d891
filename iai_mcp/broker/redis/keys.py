"""The one place that spells Redis keys and names of RQ queues and jobs.

Every key of a store starts with ``Keys.prefix``, so that ``redis-cli --scan --pattern 'PREFIX*'`` shows the
store and an ACL can fence it.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["QUEUE", "Keys"]

QUEUE = "provenance"


@dataclass(frozen=True, slots=True)
class Keys:
    """Names for one store in one namespace."""

    namespace: str
    store_id: str

    @property
    def prefix(self) -> str:
        """What every key of this store starts with."""
        head = f"{self.namespace}:" if self.namespace else ""
        return f"{head}iai-mcp:{self.store_id}:"

    @property
    def queue(self) -> str:
        """The RQ queue that doorbells are put on."""
        return f"{self.namespace}:{QUEUE}" if self.namespace else QUEUE

    @property
    def counts(self) -> str:
        """The hash of counts: for lane N the entries that ever came and went (``N:pushed``, ``N:drained``), and
        what is in flight now, in items (``N:claimed``) and in entries (``N:claimed_entries``)."""
        return f"{self.prefix}counts"

    def lane(self, lane: int, part: str) -> str:
        """A lane's key; ``part`` is ``pending`` (what is in flight at its head), ``lease`` or ``state``."""
        return f"{self.prefix}lane:{lane}:{part}"

    def job(self, lane: int, ring: str) -> str:
        """The id of a doorbell (RQ takes letters, digits, ``_`` and ``-`` only)."""
        return f"provenance-{self.store_id[:12]}-lane-{lane}-{ring}"
