"""Moves spilled parcels back into the broker's lanes, from the head of a chain, a step at a time."""

from __future__ import annotations

from iai_mcp.broker.protocol import Mark, Pushed, WriteBroker
from iai_mcp.entries.parcel import Parcel
from iai_mcp.entries.routing import lane_of_hex, route
from iai_mcp.spill.chain import Chain

__all__ = ["STEP", "ReplayCursor"]

STEP = 64  # parcels


class ReplayCursor:
    """How far the replay of one chain has come.

    Attributes:
        chain: the spill files that it reads.
        mark: the end of the broker's lanes after the last push; None where nothing is to be committed.
    """

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.mark: Mark | None = None
        self._step = 1  # parcels in the next step

    def replay(self, broker: WriteBroker, lanes: int) -> bool:
        """Push the next parcels; whether more could follow at once.

        The chain is not committed: that is for the caller, once ``broker.is_durable(cursor.mark)``.
        """
        parcels = self.chain.read(min(self._step, broker.room))
        pushed = False
        try:
            if parcels:
                fitting = [part for parcel in parcels if parcel.seqs for part in _fitted(parcel, lanes)]
                pushed = not fitting or isinstance(broker.push(fitting, replay=True), Pushed)
        finally:
            if pushed or (not parcels and self.mark is None and not self.chain.empty):
                self.mark = broker.mark()  # without parcels: its head holds none, and may go too
            if pushed or not parcels:  # no parcels: all lines that were read are set aside
                self.chain.settle()
            else:
                self.chain.rewind()
        if parcels:  # a lane near its ceiling may have room for fewer
            self._step = min(STEP, self._step * 2) if pushed else max(1, self._step // 2)
        return pushed

    def start_over(self) -> None:
        """Replay everything again that was not committed: the broker may have lost it."""
        self.mark = None
        self.chain.start_over()


def _fitted(parcel: Parcel, lanes: int) -> list[Parcel]:
    """The parcel, or its entries routed anew where it was spilled under another number of lanes."""
    if all(lane_of_hex(one, lanes) == parcel.lane for one in parcel.ids):
        return [parcel]
    return [
        part
        for record_id, seq, entry in parcel.handed_out()
        for part in route(
            parcel.store, parcel.producer, seq, [(record_id, entry)], lanes, parcel.pushed, parcel.known_reuses
        )
    ]
