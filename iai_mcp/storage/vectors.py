"""The embedder of a store: whether the configured one made its vectors, and the change to another one."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence

import msgspec

from iai_mcp.config import Settings
from iai_mcp.embedders import registry
from iai_mcp.embedders.base import Embedder
from iai_mcp.storage.facts import StoreFacts
from iai_mcp.storage.layout import Layout
from iai_mcp.storage.meta import DEFAULT_DIMS, EmbedderMeta, change_meta
from iai_mcp.storage.tables.records import RecordTable
from iai_mcp.telemetry.events import log

__all__ = ["StoreVectors", "configured_embedder"]


class StoreVectors:
    """The vectors of one store.

    Args:
        facts: of the store, as any process has last written them.
    """

    def __init__(self, settings: Settings, layout: Layout, facts: StoreFacts, records: RecordTable) -> None:
        self._settings = settings
        self._layout = layout
        self._facts = facts
        self._records = records
        self._mutex = threading.RLock()
        self._embedder: Embedder | None = None
        self._loaded = False

    @property
    def embedder(self) -> Embedder | None:
        """The configured embedder, loaded on first use; None if another one made this store's vectors."""
        with self._mutex:
            if not self._loaded:
                self._embedder = registry.load_or_none(self._settings) if self.match(warn=True) else None
                self._loaded = True
            return self._embedder

    def match(self, *, warn: bool = False) -> bool:
        """Whether the configured embedder made this store's vectors; ``warn`` logs a mismatch."""
        wanted, found = configured_embedder(self._settings).name, self._facts.now.embedder.name
        if wanted in (found, "none"):
            return wanted == found and wanted != "none"
        if warn:
            log.warning(
                "this store's vectors were made by %s, the configured embedder is %s: searching by full text "
                "only; `iai-mcp reembed` makes new vectors",
                found,
                wanted,
            )
        return False

    def begin(self, target: EmbedderMeta) -> str:
        """Prepare for ``target``'s vectors; the name of the column to :meth:`fill`."""
        meta = self._facts.now
        if target == meta.embedder:
            return meta.vector_column
        identity = f"{target.name}\n{target.dims}\n{target.weights}"
        column = f"embedding_{target.dims}_{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
        self._records.add_vector_column(column, target.dims)
        return column

    def finish(self, target: EmbedderMeta, column: str) -> None:
        """Search ``column`` from now on, and drop the columns of other embedders."""
        change_meta(
            self._layout, lambda meta: msgspec.structs.replace(meta, embedder=target, vector_column=column)
        )
        self._records.drop_columns([name for name in self._records.vector_columns() if name != column])
        with self._mutex:
            self._loaded = False

    def missing(self, column: str, limit: int | None = None) -> list[tuple[str, str]]:
        """``(id, index_text)`` of at most ``limit`` memories that have no vector in ``column``."""
        return self._records.without_vector(column, limit)

    def fill(self, column: str, ids: list[str], vectors: Sequence[Sequence[float]]) -> None:
        """Set vectors of existing memories, durably. An id that was deleted meanwhile is skipped.

        Raises:
            EmbeddingMismatch: a vector has the wrong number of dimensions.
        """
        self._records.fill_vectors(column, ids, vectors)


def configured_embedder(settings: Settings) -> EmbedderMeta:
    """The identity of the configured embedder; ``none`` if there is none."""
    found = registry.describe(settings)
    return EmbedderMeta(found.name, found.dims, found.weights) if found else EmbedderMeta("none", DEFAULT_DIMS)
