"""The interface of embedders and their shared helpers: text in, L2-normalised float32 vectors out, in order.

A model library is imported when its embedder is loaded, never before. Its exceptions leave as
:class:`~iai_mcp.errors.EmbedderUnavailable`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from iai_mcp.errors import EmbedderUnavailable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

__all__ = [
    "UNAVAILABLE_HELP",
    "Embedder",
    "EmbedderId",
    "empty",
    "encodable",
    "import_library",
    "normalised",
    "translated",
]

UNAVAILABLE_HELP = "or set IAI_MCP_EMBEDDER=none to go on with word search alone"


@dataclass(frozen=True, slots=True)
class EmbedderId:
    """Names the embedder that made a vector. Vectors of two different ids are not comparable.

    Attributes:
        name: kind and model, e.g. ``builtin:all-MiniLM-L6-v2-int8``.
        dims: floats per vector.
        weights: sha256 of the weights in hex, or "" if unknown.
    """

    name: str
    dims: int
    weights: str = ""


class Embedder(Protocol):
    """Makes vectors of unit length. A vector is all zeros only if the model returns zeros. Thread-safe."""

    @property
    def id(self) -> EmbedderId: ...

    @property
    def dims(self) -> int: ...

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        """Vectors of stored texts, shape ``(len(texts), dims)``, in input order.

        Raises:
            EmbedderUnavailable: the model or its service failed.
        """
        ...

    def embed_query(self, text: str) -> Vectors:
        """The vector of a cue, shape ``(dims,)``.

        Raises:
            EmbedderUnavailable: the model or its service failed.
        """
        ...


def normalised(vectors: Any) -> Vectors:
    """``vectors`` in float32, each row of unit length. A row of zeros stays zeros and does not become NaN."""
    import numpy as np

    rows = np.asarray(vectors, dtype=np.float32)
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return (rows / np.where(norms > 0, norms, 1)).astype(np.float32, copy=False)


def empty(dims: int) -> Vectors:
    """The result for no texts, shape ``(0, dims)``."""
    import numpy as np

    return np.zeros((0, dims), dtype=np.float32)


def encodable(text: str) -> str:
    """The text with "?" for each lone surrogate: tokenizers and JSON bodies cannot carry those."""
    return text.encode("utf-8", "replace").decode("utf-8")


def import_library(module: str, *, hint: str) -> Any:
    """Import a model library. ``hint`` tells the user how to install it.

    Raises:
        EmbedderUnavailable: the library cannot be imported.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise EmbedderUnavailable(
            f"the package {module} cannot be imported ({error}): {hint}, {UNAVAILABLE_HELP}"
        ) from error


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn every error of a model library into ours: these libraries have no common base class."""
    try:
        yield
    except EmbedderUnavailable:
        raise
    except Exception as error:
        raise EmbedderUnavailable(f"{what} ({type(error).__name__}: {error}), {UNAVAILABLE_HELP}") from error
