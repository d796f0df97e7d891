"""Adapters for other embedders: fastembed, sentence-transformers and OpenAI-compatible services."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from iai_mcp.embedders.base import (
    UNAVAILABLE_HELP,
    Embedder,
    EmbedderId,
    empty,
    encodable,
    import_library,
    normalised,
    translated,
)
from iai_mcp.errors import EmbedderUnavailable

if TYPE_CHECKING:
    from iai_mcp.config import Settings
    from iai_mcp.embedders.base import Vectors

__all__ = ["load_fastembed", "load_openai", "load_sentence_transformers"]

_OPENAI_BATCH = 256
_OPENAI_TIMEOUT = 30.0


class _Adapter:
    """Wraps two functions of another library. A probe at the start finds the number of dimensions."""

    def __init__(
        self,
        name: str,
        documents: Callable[[list[str]], Any],
        query: Callable[[str], Any],
    ) -> None:
        self._name = name
        self._documents = documents
        self._query = query
        with translated(f"{name} did not answer"):
            probe = normalised(query("dimensions"))
        if probe.ndim != 1 or not probe.size:
            raise EmbedderUnavailable(
                f"{name} gave no vector for a text: choose a text embedding model with IAI_MCP_EMBEDDER_MODEL"
            )
        self.dims = int(probe.size)
        self.id = EmbedderId(name, self.dims)

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        if not texts:
            return empty(self.dims)
        with translated(f"{self._name} did not answer"):
            vectors = normalised(self._documents([encodable(text) for text in texts]))
        return self._checked(vectors, (len(texts), self.dims))

    def embed_query(self, text: str) -> Vectors:
        with translated(f"{self._name} did not answer"):
            vector = normalised(self._query(encodable(text)))
        return self._checked(vector, (self.dims,))

    def _checked(self, vectors: Vectors, shape: tuple[int, ...]) -> Vectors:
        if vectors.shape != shape:
            raise EmbedderUnavailable(
                f"{self._name} gave vectors of shape {vectors.shape} instead of {shape}: "
                f"check its model, {UNAVAILABLE_HELP}"
            )
        return vectors


def load_fastembed(name: str) -> Embedder:
    """Load fastembed's model ``name``.

    Raises:
        EmbedderUnavailable: the package, the model or the service is missing.
    """
    fastembed = import_library("fastembed", hint="pip install 'iai-mcp[fastembed]'")
    with translated(f"fastembed could not load {name}"):
        model = fastembed.TextEmbedding(model_name=name)
    return _Adapter(
        f"fastembed:{name}",
        lambda texts: list(model.passage_embed(texts)),
        lambda text: next(iter(model.query_embed(text))),
    )


def load_sentence_transformers(name: str) -> Embedder:
    """Load sentence-transformers' model ``name``.

    Raises:
        EmbedderUnavailable: the package, the model or the service is missing.
    """
    library = import_library("sentence_transformers", hint="pip install 'iai-mcp[sentence-transformers]'")
    with translated(f"sentence-transformers could not load {name}"):
        model = library.SentenceTransformer(name)
    lock = threading.Lock()  # torch does not promise that models are thread-safe

    def documents(texts: list[str]) -> Any:
        with lock:
            return model.encode_document(texts, convert_to_numpy=True, show_progress_bar=False)

    def query(text: str) -> Any:
        with lock:
            return model.encode_query(text, convert_to_numpy=True, show_progress_bar=False)

    return _Adapter(f"sentence-transformers:{name}", documents, query)


def load_openai(name: str, settings: Settings) -> Embedder:
    """Load the model ``name`` of an OpenAI-compatible service.

    Raises:
        EmbedderUnavailable: the package, the model or the service is missing.
    """
    openai = import_library("openai", hint="pip install 'iai-mcp[openai]'")
    # Local endpoints often need no key, and the key of the real service must not go to another address.
    key = settings.embedder_key or ("unused" if settings.embedder_url else None)
    with translated("the openai client could not be created; set IAI_MCP_EMBEDDER_KEY"):
        client = openai.OpenAI(
            base_url=settings.embedder_url or None, api_key=key, timeout=_OPENAI_TIMEOUT, max_retries=2
        )

    def documents(texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = []
        for start in range(0, len(texts), _OPENAI_BATCH):
            batch = [text or " " for text in texts[start : start + _OPENAI_BATCH]]  # "" is refused
            answer = client.embeddings.create(model=name, input=batch, encoding_format="float")
            vectors += [item.embedding for item in sorted(answer.data, key=lambda item: item.index)]
        return vectors

    return _Adapter(f"openai:{name}", documents, lambda text: documents([text])[0])
