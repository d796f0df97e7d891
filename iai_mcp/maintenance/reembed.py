"""Fills and replaces a store's vectors with the configured embedder, in durable batches.

After an interruption the same call goes on. Searches use the old vectors until the last new one is written. A
text that cannot be embedded is skipped and named; it is not tried again in the same run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iai_mcp.embedders import registry
from iai_mcp.errors import ConfigError, EmbedderUnavailable
from iai_mcp.storage.meta import EmbedderMeta

if TYPE_CHECKING:
    from iai_mcp.embedders.base import Embedder
    from iai_mcp.store import MemoryStore

__all__ = ["Reembedded", "reembed"]

BATCH = 128


@dataclass(frozen=True, slots=True)
class Reembedded:
    """The result of :func:`reembed`.

    Attributes:
        embedded: number of memories that got a vector in this run.
        skipped: ids of memories that could not be embedded; full-text search still finds them.
        embedder, dims: the embedder's name and its number of dimensions.
    """

    embedded: int
    skipped: tuple[str, ...]
    embedder: str
    dims: int


def reembed(
    store: MemoryStore, *, batch: int = BATCH, progress: Callable[[int, int], object] | None = None
) -> Reembedded:
    """Give every memory of ``store`` a vector of the configured embedder, then search these vectors.

    ``progress`` is called with (done, total), in memories, after each batch is on the disk.

    Raises:
        ConfigError: the configured embedder is ``none``.
        EmbedderUnavailable: it cannot be loaded, or stopped answering.
        StoreUnavailable: the store cannot be read or written.
    """
    embedder = registry.load(store.settings)
    if embedder is None:
        raise ConfigError("the configured embedder is none: set IAI_MCP_EMBEDDER, for instance to builtin")
    target = EmbedderMeta(embedder.id.name, embedder.id.dims, embedder.id.weights)
    column = store.vectors.begin(target)
    total = store.count_without_vector(column)
    skipped: dict[str, None] = {}
    embedded = 0
    while waiting := _waiting(store, column, batch, skipped):
        done = _embed_some(embedder, waiting)
        if done:
            store.vectors.fill(column, list(done), list(done.values()))
        embedded += len(done)
        skipped.update(dict.fromkeys(key for key, _ in waiting if key not in done))
        if progress is not None:
            progress(embedded + len(skipped), max(total, embedded + len(skipped)))
    store.vectors.finish(target, column)
    return Reembedded(embedded, tuple(skipped), target.name, target.dims)


def _waiting(store: MemoryStore, column: str, batch: int, skipped: dict[str, None]) -> list[tuple[str, str]]:
    """The next texts. Skipped ones still have no vector, so as many more are asked for."""
    found = store.vectors.missing(column, batch + len(skipped))
    return [(key, text) for key, text in found if key not in skipped][:batch]


def _embed_some(embedder: Embedder, texts: list[tuple[str, str]]) -> dict[str, list[float]]:
    """Vectors by id, without those of texts that cannot be embedded."""
    try:
        vectors = embedder.embed_documents([text for _, text in texts])
    except EmbedderUnavailable:
        if len(texts) > 1:  # one text may have failed them all
            return {key: vector for pair in texts for key, vector in _embed_some(embedder, [pair]).items()}
        embedder.embed_query("still there?")  # raises if the embedder fails, and not the text
        return {}
    found = ((key, vector.tolist()) for (key, _), vector in zip(texts, vectors, strict=True))
    return {key: vector for key, vector in found if _usable(vector)}


def _usable(vector: Sequence[float]) -> bool:
    return all(map(math.isfinite, vector))
