"""The history: what producers did, kept outside Redis and LanceDB as append-only JSON lines.

Each ``enqueue`` leaves an ``invoke`` line before and one of ``ok``, ``fail`` or (nobody came back to say)
nothing after. An invoke without an end is *info*: it may or may not have happened.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Op:
    """One entry for one record: number ``n`` of ``producer``; ``end`` is ok, fail or info."""

    producer: str
    n: int
    record: str
    end: str
    ms: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.producer}:{self.n}"


class Queue(Protocol):
    """The one method of the write queue that a producer uses."""

    def enqueue(self, pairs: Sequence[tuple[UUID, dict[str, Any]]]) -> None: ...


class Recorder:
    """Enqueues and writes down what came of it."""

    def __init__(self, path: Path, producer: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._producer = producer
        self._n = 0

    def enqueue(self, queue: Queue, records: Sequence[UUID]) -> float:
        """Enqueue one entry for each of ``records``; the milliseconds that the call took."""
        self._n += 1
        said = {"p": self._producer, "n": self._n, "r": [str(record) for record in records]}
        entry = {"ts": "2026-11-23T12:00:00+00:00", "cue": f"{self._producer}:{self._n}", "session_id": "chaos"}
        self._line({"op": "invoke", **said})
        began = time.perf_counter()
        try:
            queue.enqueue([(record, dict(entry)) for record in records])
        except OSError:
            end = "fail"
        else:
            end = "ok"
        took = (time.perf_counter() - began) * 1000
        self._line({"op": end, "p": self._producer, "n": self._n, "ms": round(took, 3)})
        return took

    def _line(self, line: dict[str, Any]) -> None:
        os.write(self._fd, json.dumps(line).encode() + b"\n")  # one write: the kernel has it whatever comes


def read(paths: Iterable[Path]) -> list[Op]:
    """Every entry that any producer tried to hand out."""
    ops: list[Op] = []
    for path in paths:
        invoked: dict[tuple[str, int], list[str]] = {}
        ends: dict[tuple[str, int], tuple[str, float]] = {}
        for raw in path.read_bytes().splitlines():
            try:
                line = json.loads(raw)
            except ValueError:
                continue  # the producer was killed while it wrote: no end, so info
            key = (line["p"], line["n"])
            if line["op"] == "invoke":
                invoked[key] = line["r"]
            else:
                ends[key] = (line["op"], line["ms"])
        for key, records in invoked.items():
            end, ms = ends.get(key, ("info", 0.0))
            ops += [Op(key[0], key[1], record, end, ms) for record in records]
    return ops
