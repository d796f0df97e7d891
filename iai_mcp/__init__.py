"""A shared long-term memory for AI agents whose every recall leaves a trace on what it returned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from iai_mcp._version import __version__

__all__ = ["MemoryRecord", "MemoryStore", "ProvenanceWriteQueue", "__version__", "dispatch"]

if TYPE_CHECKING:
    from iai_mcp.core import dispatch
    from iai_mcp.provenance_queue import ProvenanceWriteQueue
    from iai_mcp.record import MemoryRecord
    from iai_mcp.store import MemoryStore

_HOME = {
    "MemoryRecord": "iai_mcp.record",
    "MemoryStore": "iai_mcp.store",
    "ProvenanceWriteQueue": "iai_mcp.provenance_queue",
    "dispatch": "iai_mcp.core",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use: LanceDB costs seconds that ``--help`` must not pay."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
