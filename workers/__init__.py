"""The RQ face of iai-mcp: the job that drains a lane, and the worker class that runs it well.

``rq worker -w workers.ProvenanceWorker -u URL provenance``
"""

from __future__ import annotations

from workers.worker import ProvenanceWorker

__all__ = ["ProvenanceWorker"]
