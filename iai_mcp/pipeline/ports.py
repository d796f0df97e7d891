"""What the write pipeline needs of a store, as protocols.

``MemoryStore`` satisfies them and imports the pipeline; the pipeline never imports the store.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

from iai_mcp.config import Settings
from iai_mcp.storage.exclusions import Exclusions
from iai_mcp.storage.layout import Layout
from iai_mcp.storage.tables.known_records import RecordsCache
from iai_mcp.storage.tables.write_right import WriteRight

if TYPE_CHECKING:  # importing it takes LanceDB along
    from iai_mcp.storage.tables.reports import AppendReport

__all__ = ["ProvenanceLane", "ProvenanceStore"]


class ProvenanceLane(Protocol):
    """The table of one lane."""

    @property
    def token(self) -> int:
        """The highest fencing token that this lane has seen."""
        ...

    def raise_fence(self, token: int) -> None:
        """Refuse every writer whose token is lower than ``token``.

        Raises:
            LeaseLost: the lane has seen a higher token.
        """
        ...

    def maintain(self, *, force: bool = False) -> bool:
        """Compact and re-index where that is due, or by ``force``; whether it was done."""
        ...


class ProvenanceStore(Protocol):
    """A store that provenance entries are written to."""

    @property
    def store_id(self) -> str:
        """The store's identity: spill files and broker keys carry it."""
        ...

    @property
    def lanes(self) -> int:
        """The number of lanes."""
        ...

    @property
    def settings(self) -> Settings:
        """The settings that the store was opened with."""
        ...

    @property
    def layout(self) -> Layout:
        """Where the store's files are."""
        ...

    @property
    def exclusions(self) -> Exclusions:
        """The ledger of entries that will never have a row."""
        ...

    @property
    def reuses(self) -> int:
        """How often a forgotten id has been used again, as of the last :meth:`check_lanes`."""
        ...

    def check_lanes(self) -> None:
        """Make sure that the number of lanes has not changed since the store was opened.

        Raises:
            LanesChanged: it has.
        """
        ...

    def lane(self, number: int) -> ProvenanceLane:
        """The table of one lane.

        Raises:
            StoreError: there is no lane of that number.
        """
        ...

    def append_provenance_batch(
        self,
        pairs: Iterable[tuple[UUID, Mapping[str, Any]]],
        records_cache: RecordsCache | None = None,
        *,
        right: WriteRight | None = None,
    ) -> AppendReport:
        """Write entries in order; on return they are durable and readable by every process.

        Raises:
            StoreUnavailable: the storage is unavailable; the same call may be repeated.
            LeaseLost: ``right`` has passed on: a later drain has taken the lane.
        """
        ...

    def tidy(self) -> None:
        """Do the maintenance that is due."""
        ...
