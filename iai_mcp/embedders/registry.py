"""Finds the configured embedder, tells its identity, and loads one instance per process and configuration."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from iai_mcp.embedders.adapters import load_fastembed, load_openai, load_sentence_transformers
from iai_mcp.embedders.base import Embedder, EmbedderId
from iai_mcp.embedders.builtin import BUILTIN, load_builtin
from iai_mcp.errors import EmbedderUnavailable

if TYPE_CHECKING:
    from iai_mcp.config import Settings

__all__ = ["describe", "load", "load_or_none"]

logger = logging.getLogger(__name__)

_DEFAULT_MODELS = {
    "fastembed": "BAAI/bge-small-en-v1.5",
    "sentence-transformers": "sentence-transformers/all-MiniLM-L6-v2",
    "openai": "text-embedding-3-small",
}
_KNOWN_DIMS = {
    "fastembed:BAAI/bge-small-en-v1.5": 384,
    "sentence-transformers:sentence-transformers/all-MiniLM-L6-v2": 384,
    "openai:text-embedding-3-small": 1536,
    "openai:text-embedding-3-large": 3072,
}


def describe(settings: Settings) -> EmbedderId | None:
    """The identity of the configured embedder, or None for ``none``.

    The built-in embedder and well-known models are not loaded for this. Any other model is loaded, once per
    process, because its dimensions are known only then.

    Raises:
        EmbedderUnavailable: that model could not be loaded.
    """
    if settings.embedder == "none":
        return None
    if settings.embedder == "builtin":
        return BUILTIN
    name = f"{settings.embedder}:{_model(settings)}"
    # Another endpoint may serve another model under a well-known name.
    if name in _KNOWN_DIMS and not settings.embedder_url:
        return EmbedderId(name, _KNOWN_DIMS[name])
    embedder = load(settings)
    return None if embedder is None else embedder.id


def load(settings: Settings) -> Embedder | None:
    """The configured embedder, ready to use, or None for ``none``. The same settings share one instance.

    Raises:
        EmbedderUnavailable: its package, weights or service is missing; the message names the remedy.
    """
    if settings.embedder == "none":
        return None
    key = (settings.embedder, _model(settings), settings.embedder_url, settings.embedder_key)
    with _lock:
        if key not in _loaded:
            _loaded[key] = _load(settings)
        return _loaded[key]


def load_or_none(settings: Settings) -> Embedder | None:
    """Like :func:`load`, but an embedder that cannot be loaded logs one warning and gives None."""
    try:
        return load(settings)
    except EmbedderUnavailable as error:
        logger.warning("search uses words only, without vectors: %s", error)
        return None


def _model(settings: Settings) -> str:
    return settings.embedder_model or _DEFAULT_MODELS.get(settings.embedder, "")


def _load(settings: Settings) -> Embedder:
    name = _model(settings)
    match settings.embedder:
        case "fastembed":
            return load_fastembed(name)
        case "sentence-transformers":
            return load_sentence_transformers(name)
        case "openai":
            return load_openai(name, settings)
        case _:
            return load_builtin()


_loaded: dict[tuple[str, ...], Embedder] = {}
_lock = threading.Lock()
