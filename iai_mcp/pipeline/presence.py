"""Takes entries for a store that is away: they wait in the lanes or the spill until it is put back."""

from __future__ import annotations

from iai_mcp.errors import LanesChanged, StoreUnavailable
from iai_mcp.pipeline.ports import ProvenanceStore

__all__ = ["check_lanes"]


def check_lanes(store: ProvenanceStore) -> None:
    """Check that the number of lanes is as it was; a store that is away may still have it.

    Raises:
        LanesChanged: it has changed.
    """
    try:
        store.check_lanes()
    except LanesChanged:
        raise
    except StoreUnavailable:
        return  # the drain reports it
