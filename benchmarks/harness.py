"""What the benchmarks share: interleaved timing, summaries, tables, and a store in a scratch folder.

A machine that does other things at the same time changes from second to second, so nothing here is compared
with a figure of another run: the sides of a comparison take turns, and the results are ratios.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import random
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from iai_mcp.config import Settings
from iai_mcp.record import MemoryRecord

Seconds = list[float]


def options(about: str) -> argparse.Namespace:
    """The command line that all benchmarks have: ``--quick``."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a look, not a figure to quote")
    return parser.parse_args()


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that goes when the block ends."""
    with tempfile.TemporaryDirectory(prefix="iai-mcp-bench-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def settings(
    folder: Path, *, embedder: str = "none", journal: Literal["off", "write", "fsync"] = "off"
) -> Settings:
    """Default settings, whatever the environment says, with store and spill inside ``folder``."""
    return Settings(store=folder / "store", spill_dir=folder / "spill", embedder=embedder, journal=journal)


def timed(action: Callable[[], object]) -> float:
    """Seconds that ``action`` takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def interleave(
    sides: Mapping[str, Callable[[], object]], rounds: int, before: Callable[[], object] | None = None
) -> dict[str, Seconds]:
    """Time every side once a round, a different one first each time; ``before`` runs untimed before each.

    What has been prepared stays out of the garbage collector's rounds: no real process holds all of that.
    """
    gc.collect()
    gc.freeze()
    times: dict[str, Seconds] = {name: [] for name in sides}
    names = list(sides)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            if before is not None:
                before()
            times[name].append(timed(sides[name]))
    gc.unfreeze()
    return times


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which ``percent`` of ``values`` lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(values)


def show(title: str, heads: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table: the first column to the left, the others to the right."""
    cells = [[str(cell) for cell in row] for row in (heads, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print(f"\n{title}")
    for line in cells:
        padded = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        padded[0] = line[0].ljust(widths[0])
        print("  ".join(padded))


def at_most(value: float, target: float) -> str:
    """The verdict on a figure that should be small."""
    return f"<= {target:g}: {'met' if value <= target else 'MISSED'}"


def at_least(value: float, target: float) -> str:
    """The verdict on a figure that should be large."""
    return f">= {target:g}: {'met' if value >= target else 'MISSED'}"


def machine() -> str:
    """The class of this machine."""
    return f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


# -- made-up content


def words(rng: random.Random, count: int) -> str:
    """A text of ``count`` words out of a vocabulary of 2,000, common ones more often."""
    return " ".join(f"w{int(2000 * rng.random() ** 2)}" for _ in range(count))


def records(count: int, *, dims: int = 0, seed: int = 1) -> list[MemoryRecord]:
    """Memories of 12 words each, with random vectors where ``dims`` is given."""
    rng = random.Random(seed)
    vectors = np.random.default_rng(seed).standard_normal((count, dims), dtype=np.float32)
    return [
        MemoryRecord(words(rng, 12), id=uuid.UUID(int=rng.getrandbits(128), version=4), embedding=vector.tolist())
        for vector in vectors
    ]


def entry(rng: random.Random, rank: int, number: int) -> dict[str, Any]:
    """A provenance entry like the ones that a recall leaves."""
    return {
        "ts": f"2026-01-01T00:{number // 60 % 60:02d}:{number % 60:02d}.123456+00:00",
        "cue": words(rng, 8),
        "session_id": f"session-{number % 50}",
        "recall_id": f"{rng.getrandbits(128):032x}",
        "client": "benchmark",
        "rank": rank,
        "score": rng.random(),
    }
