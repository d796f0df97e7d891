"""Measures hit@10 of each way to search conversations: the reason why recall fuses scores as it does.

Run with ``python benchmarks/recall_quality.py``. The corpus beside it was written for this measurement: one
person's 18 sessions over nine months, some 500 short turns about subjects that come back again and again. Each
of its facts is asked for twice: with the names that whoever asks would remember (``named``), and avoiding the
words of the turn that answers (``paraphrase``), the worst case for word search. A question is a hit when a turn
that answers it is among the first ten. One question in a column is 0.007; differences under 0.04 are noise.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import lancedb
import msgspec
import pyarrow as pa
from lancedb.index import FTS
from lancedb.rerankers import RRFReranker

from iai_mcp.config import Settings
from iai_mcp.embedders import registry
from iai_mcp.embedders.base import Embedder
from iai_mcp.recall import DEPTH, VECTOR_WEIGHT, fuse
from iai_mcp.record import MemoryRecord, index_text
from iai_mcp.store import Hit

DATA = Path(__file__).parent / "data"
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
    kind: str
    evidence: tuple[str, ...]


Ranking = Callable[[Question, Any], list[str]]  # a question and its vector to turn ids, best first


def main() -> None:
    options = _options()
    turns = [msgspec.convert(line, Turn) for line in _lines(options.data / "conversations.jsonl")]
    questions = [msgspec.convert(line, Question) for line in _lines(options.data / "questions.jsonl")]
    embedder = registry.load(Settings())
    assert embedder is not None
    began = time.perf_counter()
    cues = [embedder.embed_query(question.question) for question in questions]
    per_query = (time.perf_counter() - began) / len(questions)
    print(f"{len(turns)} turns, {len(questions)} questions, {per_query * 1000:.1f} ms to embed a question")

    scores: dict[str, list[float]] = {}
    for texts in (_bare(turns), _in_context(turns)):
        with tempfile.TemporaryDirectory() as folder:
            table = _table(folder, turns, texts, embedder)
            for name, ranking in _rankings(table, turns, options.weight).items():
                scores.setdefault(name, []).extend(_hit_rates(ranking, questions, cues))
    _print(sorted({question.kind for question in questions}), scores)


def _print(kinds: Sequence[str], scores: Mapping[str, Sequence[float]]) -> None:
    columns = [*kinds, "all"] * 2
    print(f"\n{'':<40}" + "".join(f"{head:<36}" for head in ("bare text", "index_text")).rstrip())
    print(f"{'hit@10':<40}" + "".join(f"{column:<12}" for column in columns).rstrip())
    for name, row in scores.items():
        print(f"{name:<40}" + "".join(f"{score:<12.3f}" for score in row).rstrip())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="hit@10 of each way to search conversations")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with another corpus of the same form")
    parser.add_argument(
        "--weight",
        type=float,
        nargs="*",
        default=[VECTOR_WEIGHT],
        help="weights of the vector to try in recall's fusion (default: recall's own)",
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


def _table(folder: str, turns: Sequence[Turn], texts: list[str], embedder: Embedder) -> Any:
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


def _rankings(table: Any, turns: Sequence[Turn], weights: Sequence[float]) -> dict[str, Ranking]:
    records = {turn.id: MemoryRecord(turn.text) for turn in turns}
    names = {record.id: name for name, record in records.items()}

    def words(question: Question) -> list[Hit]:
        query = table.search(question.question, query_type="fts", fts_columns="index_text").limit(DEPTH)
        return [Hit(records[row["id"]], row["_score"]) for row in query.select(["id", "_score"]).to_list()]

    def near(cue: Any) -> list[Hit]:
        query = table.search(cue, vector_column_name="embedding").distance_type("cosine").limit(DEPTH)
        rows = query.select(["id", "_distance"]).to_list()
        return [Hit(records[row["id"]], 1 - row["_distance"]) for row in rows]

    def reciprocal(question: Question, cue: Any) -> list[str]:
        query = table.search(query_type="hybrid", vector_column_name="embedding", fts_columns="index_text")
        query = query.vector(cue).text(question.question).distance_type("cosine")
        return [row["id"] for row in query.rerank(RRFReranker()).limit(DEPTH).to_list()]

    def fused(weight: float) -> Ranking:
        return lambda question, cue: ids(fuse(near(cue), words(question), weight))

    def ids(hits: Sequence[Hit]) -> list[str]:
        return [names[hit.record.id] for hit in hits]

    return {
        "BM25 alone": lambda question, cue: ids(words(question)),
        "vectors alone": lambda question, cue: ids(near(cue)),
        "reciprocal ranks (LanceDB's RRF)": reciprocal,
        **{
            f"scores, {weight:g} for the vector" + " (recall)" * (weight == VECTOR_WEIGHT): fused(weight)
            for weight in weights
        },
    }


def _hit_rates(ranking: Ranking, questions: Sequence[Question], cues: Sequence[Any]) -> list[float]:
    """The rate of each kind of question, in order of their names, and of all."""
    hits: dict[str, list[bool]] = {}
    for question, cue in zip(questions, cues, strict=True):
        hit = not set(ranking(question, cue)[:TOP]).isdisjoint(question.evidence)
        hits.setdefault(question.kind, []).append(hit)
    kinds = [hits[kind] for kind in sorted(hits)]
    return [sum(kind) / len(kind) for kind in [*kinds, list(chain.from_iterable(kinds))]]


if __name__ == "__main__":
    main()
