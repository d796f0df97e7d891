"""What a queue has done since it was made."""

from __future__ import annotations

from dataclasses import dataclass

from iai_mcp.pipeline.drain import DrainReport

__all__ = ["QueueCounts"]


@dataclass(slots=True)
class QueueCounts:
    """What a queue has done since it was made, in entries."""

    enqueued: int = 0
    spilled: int = 0
    refused: int = 0  # neither broker nor spill could take them
    applied: int = 0
    duplicate: int = 0
    unknown: int = 0
    dead: int = 0

    def add(self, report: DrainReport) -> None:
        """Add what one drain did."""
        self.applied += report.applied
        self.duplicate += report.duplicate
        self.unknown += report.unknown
        self.dead += report.dead
