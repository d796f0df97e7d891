"""The one place that spells Redis keys, fields of the counts, and names of RQ queues and jobs.

Every key of a store starts with ``Keys.prefix``, so that ``redis-cli --scan --pattern 'PREFIX*'`` shows the
store and an ACL can fence it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["QUEUE", "Count", "Keys"]

QUEUE = "provenance"


class Count(StrEnum):
    """What is counted for each lane."""

    PUSHED = "pushed"  # entries that ever came
    DRAINED = "drained"  # entries that were ever acknowledged
    CLAIMED = "claimed"  # items in flight now
    CLAIMED_ENTRIES = "claimed_entries"  # entries in flight now

    def of(self, lane: int) -> str:
        """The field of a lane in the hash of counts."""
        return f"{lane}:{self.value}"


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
    def pushed(self) -> str:
        """The hash of entries that ever came: what producers count. Its fields are :meth:`Count.of`."""
        return f"{self.prefix}pushed"

    @property
    def counts(self) -> str:
        """The hash of the other counts, which workers write; its fields are :meth:`Count.of`."""
        return f"{self.prefix}counts"

    def hash_of(self, count: Count) -> str:
        """The hash that holds ``count``."""
        return self.pushed if count is Count.PUSHED else self.counts

    @property
    def epoch(self) -> str:
        """The name of the data's epoch: it changes where they were wiped, or an older copy took their place."""
        return f"{self.prefix}epoch"

    @property
    def place(self) -> str:
        """The list whose last item is the folder that the lanes belong to."""
        return f"{self.prefix}place"

    @property
    def aside(self) -> str:
        """The list of keys that were set aside; the names of these begin with it."""
        return f"{self.prefix}aside"

    def lane(self, lane: int, part: str) -> str:
        """A lane's key; ``part`` is ``pending`` (items in flight at its head), ``lease`` or ``state``."""
        return f"{self.prefix}lane:{lane}:{part}"

    def job(self, lane: int, ring: str) -> str:
        """The id of a doorbell (RQ takes letters, digits, ``_`` and ``-`` only)."""
        return f"provenance-{self.store_id[:12]}-lane-{lane}-{ring}"
