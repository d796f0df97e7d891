"""Moves spilled parcels back into the broker's lanes, from the head of a chain, a step at a time."""

from __future__ import annotations

from iai_mcp.broker.protocol import Pushed, QueueBroker
from iai_mcp.entries.parcel import Parcel
from iai_mcp.entries.routing import lane_of_hex, route
from iai_mcp.spill.chain import Chain

__all__ = ["replay"]

STEP = 64  # parcels


def replay(chain: Chain, broker: QueueBroker, lanes: int) -> bool:
    """Push the next parcels of ``chain``; whether more could follow at once.

    The chain is not committed: that is for the caller, once ``broker.is_durable(chain.mark)``.
    """
    parcels = chain.read(min(chain.step, broker.room))
    pushed = False
    try:
        if parcels:
            fitting = [part for parcel in parcels if parcel.seqs for part in _fitted(parcel, lanes)]
            pushed = not fitting or isinstance(broker.push(fitting, replay=True), Pushed)
    finally:
        if pushed:
            chain.mark = broker.mark()
        if pushed or not parcels:  # or all that was read is set aside
            chain.settle()
        else:
            chain.rewind()
    if parcels:  # a lane near its ceiling may have room for fewer
        chain.step = min(STEP, chain.step * 2) if pushed else max(1, chain.step // 2)
    return pushed


def _fitted(parcel: Parcel, lanes: int) -> list[Parcel]:
    """The parcel, or its entries sorted anew where it was spilled under another number of lanes."""
    if all(lane_of_hex(one, lanes) == parcel.lane for one in parcel.ids):
        return [parcel]
    return [
        part
        for record_id, seq, entry in parcel.handed_out()
        for part in route(parcel.store, parcel.producer, seq, [(record_id, entry)], lanes, parcel.pushed)
    ]
