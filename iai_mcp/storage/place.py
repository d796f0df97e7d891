"""The place of a store: what tells its folder from a copy with the same store id."""

from __future__ import annotations

from iai_mcp.common.place import Place, place_of
from iai_mcp.storage.layout import Layout

__all__ = ["store_place"]


def store_place(layout: Layout) -> Place | None:
    """The place of a store's folder; None where it has none yet and cannot be written."""
    return place_of(layout.root, layout.place)
