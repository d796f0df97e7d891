"""Runs the demo: the whole system on Python's own language reference, which every machine has. Owns no command.

1. About 200 passages become memories.
2. Three clients ask a dozen questions each, all at once.
3. The trace shows which client asked what.

The store lies in a temporary folder unless a folder is given.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iai_mcp.errors import IaiMcpError, StoreError
from iai_mcp.ingest.loader import ImportReport, ingest

if TYPE_CHECKING:
    from iai_mcp.cli.common import Show
    from iai_mcp.config import Settings
    from iai_mcp.ingest.readers import Passage
    from iai_mcp.store import MemoryStore

__all__ = ["CLIENTS", "QUESTIONS", "passages", "run"]

QUESTIONS = (
    "what does the else after a for loop do?",
    "how do I unpack a list into function arguments?",
    "how do I catch several exceptions at once?",
    "what can be the key of a dictionary?",
    "why is my default argument list shared between calls?",
    "what does nonlocal do?",
    "which block runs whether or not there was an error?",
    "when is a string or a list considered false?",
    "how do I raise an error and keep the original one?",
    "how do I leave a loop early?",
    "how do I wait for a coroutine?",
    "how do I add an item to the end of a list?",
)
CLIENTS = (("editor", "ada"), ("chat", "ben"), ("agent", "nightly"))  # (client, session)
HITS = 5

_NAMESPACE = uuid.UUID("0e0b7d0b-1b39-5f0e-9a0c-6d1c3f2f7a52")  # equal passages get equal ids
_PASSAGE = 800  # characters up to which paragraphs are merged
_WANTED = 220


def run(settings: Settings, store: str | None = None, *, progress: Show) -> dict[str, Any]:
    """Run the demo and return its facts as plain JSON types.

    Args:
        store: a folder to keep; None uses a temporary one.
        progress: called with (steps done, steps in all, the current activity).

    Raises:
        IaiMcpError: Python's documentation is not installed, or the store fails.
    """
    with _opened(settings, store) as memories:
        texts = list(passages())
        steps = len(texts) + 2 * len(CLIENTS) * len(QUESTIONS)
        progress(0, steps, "remembering")
        started = time.perf_counter()
        kept = ingest(
            memories, texts, batch=32, on_batch=lambda report: progress(report.read, steps, "remembering")
        )
        seconds = time.perf_counter() - started
        memories.enable_provenance_queue()
        try:
            answers = _ask_all(memories, lambda done: progress(len(texts) + done, steps, "asking"))
            return {
                "store": str(memories.path) if store is not None else None,
                "memories": _import_facts(kept, seconds),
                **_recall_facts(memories, answers),
            }
        finally:
            memories.disable_provenance_queue()


@contextmanager
def _opened(settings: Settings, store: str | None) -> Iterator[MemoryStore]:
    from iai_mcp.store import MemoryStore

    if store is not None:
        yield MemoryStore(store, settings=settings)
        return
    with tempfile.TemporaryDirectory(prefix="iai-mcp-demo-", ignore_cleanup_errors=True) as folder:
        apart = replace(settings, spill_dir=Path(folder, "spill"), redis_url="")  # no worker serves this store
        yield MemoryStore(Path(folder, "store"), settings=apart)


# --- passages --------------------------------------------------------------------------------------------


def passages(wanted: int = _WANTED) -> list[Passage]:
    """Up to ``wanted`` passages of Python's language reference: whole topics, the shortest first.

    Raises:
        IaiMcpError: this Python has no ``pydoc_data``.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise IaiMcpError(
            "the demo needs Python's own documentation (pydoc_data), which this Python does not have: "
            "install the complete standard library, or import files of your own"
        ) from None
    found: list[Passage] = []
    for topic, text in sorted(topics.items(), key=lambda item: (len(item[1]), item[0])):
        if len(found) + len(parts := _cut(text)) > wanted:
            break
        found += [_passage(topic, number, part) for number, part in enumerate(parts, 1)]
    return found


def _cut(topic: str) -> list[str]:
    """Cut a topic into pieces of whole paragraphs; each piece starts with the topic's title."""
    title, _, body = topic.strip().partition("\n")
    pieces = [""]
    for paragraph in body.lstrip("*=-\n").split("\n\n"):
        if pieces[-1] and len(pieces[-1]) + len(paragraph) > _PASSAGE:
            pieces.append("")
        pieces[-1] += f"\n\n{paragraph.strip(chr(10))}"
    return [f"{title.strip()}{piece.rstrip()}" for piece in pieces]


def _passage(topic: str, number: int, text: str) -> Passage:
    from iai_mcp.ingest.readers import Passage

    return Passage(
        id=uuid.uuid5(_NAMESPACE, f"{topic}\n{text}"),
        text=text,
        session_id="",
        role="",
        tags=("python", topic),
        created_at=None,
        source=f"{topic}:{number}",
    )


# --- recalls ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Answer:
    cue: str
    client: str
    traced: bool
    result: dict[str, Any]


def _ask_all(store: MemoryStore, progress: Callable[[int], object]) -> list[_Answer]:
    """Every client asks every question twice, with and without a trace; all clients at once."""
    from iai_mcp.core import dispatch

    dispatch(store, "memory_recall", {"cue": QUESTIONS[0], "record_provenance": False})  # warm
    done = 0
    mutex = threading.Lock()

    def ask(number: int) -> list[_Answer]:
        nonlocal done
        client, session = CLIENTS[number]
        answers = []
        for turn in range(len(QUESTIONS)):
            cue = QUESTIONS[(turn + number * 4) % len(QUESTIONS)]  # each client starts at another question
            for traced in (True, False) if turn % 2 else (False, True):
                asked = {"cue": cue, "session_id": session, "client": client, "limit": HITS}
                result = dispatch(store, "memory_recall", {**asked, "record_provenance": traced})
                answers.append(_Answer(cue, client, traced, result))
                with mutex:
                    done += 1
                    progress(done)
        return answers

    with ThreadPoolExecutor(len(CLIENTS), thread_name_prefix="iai-mcp-demo") as pool:
        return [answer for answers in pool.map(ask, range(len(CLIENTS))) for answer in answers]


# --- facts -----------------------------------------------------------------------------------------------


def _recall_facts(store: MemoryStore, answers: list[_Answer]) -> dict[str, Any]:
    from iai_mcp.core import dispatch

    queue = store.provenance_queue
    if queue is None or not queue.flush(timeout=20):
        raise StoreError("the trace was not written within 20 s: run the demo again when the machine is less busy")
    first = {answer.cue: answer.result["hits"] for answer in answers if answer.client == CLIENTS[0][0]}
    counted = Counter(hit["record_id"] for answer in answers if answer.traced for hit in answer.result["hits"])
    most, _ = min(counted.items(), key=lambda item: (-item[1], item[0]))
    return {
        "clients": [{"client": client, "session_id": session} for client, session in CLIENTS],
        "questions": [{"cue": cue, "hits": first[cue]} for cue in QUESTIONS],
        "most_recalled": dispatch(store, "memory_get", {"record_id": most}),
        "cost": _cost(answers),
        "status": dispatch(store, "memory_status"),
    }


def _cost(answers: list[_Answer]) -> dict[str, Any]:
    def median(name: str, traced: bool) -> float:
        found = [answer.result["timings_ms"][name] for answer in answers if answer.traced is traced]
        return round(float(statistics.median(found)), 3)

    return {
        "recalls": sum(answer.traced for answer in answers),
        "entries": sum(len(answer.result["hits"]) for answer in answers if answer.traced),
        "provenance_ms_p50": median("provenance", True),
        "total_ms_p50": median("total", True),
        "total_ms_p50_without_trace": median("total", False),
    }


def _import_facts(report: ImportReport, seconds: float) -> dict[str, Any]:
    return {
        "added": report.added,
        "existing": report.existing,
        "forgotten": report.forgotten,
        "seconds": round(seconds, 2),
    }
