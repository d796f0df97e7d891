"""Measures hit@10 of each way to search conversations: the reason why recall fuses scores as it does.

Run with ``python benchmarks/recall_quality.py``. The corpus beside it was written for this measurement: one
person's 18 sessions over nine months, some 500 short turns about subjects that come back again and again, and
questions that avoid the words of the turn that answers them. A question is a hit when such a turn is among the
first ten; with so many questions a difference under about 0.04 is noise.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lancedb
import msgspec
import pyarrow as pa
from lancedb.index import FTS
from lancedb.rerankers import RRFReranker

from iai_mcp import embed
from iai_mcp.config import Settings
from iai_mcp.record import index_text

DATA = Path(__file__).parent / "data"
DEPTH = 100  # candidates taken from each index before fusing
TOP = 10


@dataclass(frozen=True)
class Turn:
    id: str
    text: str
    role: str
    session_id: str


@dataclass(frozen=True)
class Question:
    question: str
    evidence: tuple[str, ...]


Ranking = Callable[[Question, Any], Sequence[str]]


def main() -> None:
    options = _options()
    turns = [msgspec.convert(line, Turn) for line in _lines(options.data / "conversations.jsonl")]
    questions = [msgspec.convert(line, Question) for line in _lines(options.data / "questions.jsonl")]
    embedder = embed.load(Settings())
    assert embedder is not None
    began = time.perf_counter()
    cues = [embedder.embed_query(question.question) for question in questions]
    per_query = (time.perf_counter() - began) / len(questions)
    print(f"{len(turns)} turns, {len(questions)} questions, {per_query * 1000:.1f} ms to embed a question")

    scores: dict[str, list[float]] = {}
    for texts in (_bare(turns), _in_context(turns)):
        with tempfile.TemporaryDirectory() as folder:
            table = _table(folder, turns, texts, embedder)
            for name, ranking in _rankings(table, options.weight).items():
                scores.setdefault(name, []).append(_hit_rate(ranking, questions, cues))

    print(f"\n{'hit@10':<44}{'bare text':>12}{'index_text':>12}")
    for name, row in scores.items():
        print(f"{name:<44}" + "".join(f"{score:>12.3f}" for score in row))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="hit@10 of each way to search conversations")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with another corpus of the same form")
    parser.add_argument(
        "--weight", type=float, nargs="*", default=[0.4], help="weights of the vector to try in the fusion"
    )
    return parser.parse_args()


def _lines(path: Path) -> Iterator[Any]:
    return (msgspec.json.decode(line) for line in path.read_bytes().splitlines())


def _bare(turns: Sequence[Turn]) -> list[str]:
    return [turn.text for turn in turns]


def _in_context(turns: Sequence[Turn]) -> list[str]:
    texts, last = [], Turn("", "", "", "")
    for turn in turns:
        previous = last.text if last.session_id == turn.session_id else ""
        texts.append(index_text(turn.text, role=turn.role, previous=previous))
        last = turn
    return texts


def _table(folder: str, turns: Sequence[Turn], texts: list[str], embedder: embed.Embedder) -> Any:
    vectors = embedder.embed_documents(texts)
    rows = pa.table(
        {
            "id": [turn.id for turn in turns],
            "index_text": texts,
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), embedder.dims),
        }
    )
    table = lancedb.connect(folder).create_table("turns", rows)
    table.create_index("index_text", config=FTS(with_position=False))
    table.optimize()
    return table


def _rankings(table: Any, weights: Sequence[float]) -> dict[str, Ranking]:
    def words(question: Question) -> dict[str, float]:
        query = table.search(question.question, query_type="fts", fts_columns="index_text").limit(DEPTH)
        return {row["id"]: row["_score"] for row in query.select(["id", "_score"]).to_list()}

    def near(cue: Any) -> dict[str, float]:
        query = table.search(cue, vector_column_name="embedding").distance_type("cosine").limit(DEPTH)
        return {row["id"]: 1 - row["_distance"] for row in query.select(["id", "_distance"]).to_list()}

    def reciprocal(question: Question, cue: Any) -> Sequence[str]:
        query = table.search(query_type="hybrid", vector_column_name="embedding", fts_columns="index_text")
        query = query.vector(cue).text(question.question).distance_type("cosine")
        return [row["id"] for row in query.rerank(RRFReranker()).limit(DEPTH).to_list()]

    def fused(weight: float) -> Ranking:
        return lambda question, cue: _fuse(words(question), near(cue), weight)

    return {
        "BM25 alone": lambda question, cue: _best(words(question)),
        "vectors alone": lambda question, cue: _best(near(cue)),
        "reciprocal ranks (LanceDB's RRF)": reciprocal,
        **{f"scores, min-max, {weight:g} for the vector": fused(weight) for weight in weights},
    }


def _fuse(words: Mapping[str, float], near: Mapping[str, float], weight: float) -> list[str]:
    words, near = _scaled(words), _scaled(near)
    return _best({k: (1 - weight) * words.get(k, 0) + weight * near.get(k, 0) for k in words | near})


def _scaled(scores: Mapping[str, float]) -> dict[str, float]:
    low, high = min(scores.values(), default=0), max(scores.values(), default=0)
    return {key: (score - low) / (high - low) if high > low else 1.0 for key, score in scores.items()}


def _best(scores: Mapping[str, float]) -> list[str]:
    return sorted(scores, key=lambda key: (-scores[key], key))


def _hit_rate(ranking: Ranking, questions: Sequence[Question], cues: Sequence[Any]) -> float:
    hits = (
        not set(ranking(question, cue)[:TOP]).isdisjoint(question.evidence)
        for question, cue in zip(questions, cues, strict=True)
    )
    return sum(hits) / len(questions)


if __name__ == "__main__":
    main()
