"""The RQ side of iai-mcp: the job that drains a lane, and the worker class that runs it.

``rq worker -w workers.ProvenanceWorker -u URL provenance``
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workers.worker import ProvenanceWorker

__all__ = ["ProvenanceWorker"]


def __getattr__(name: str) -> object:
    """Import the class on first use: it imports LanceDB, and ``python -m workers`` installs its handlers first."""
    if name != "ProvenanceWorker":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from workers.worker import ProvenanceWorker

    return ProvenanceWorker
