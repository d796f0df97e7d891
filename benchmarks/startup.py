"""Measures what it takes to get going: the command line's help, and a store of 10,000 memories.

Run with ``python benchmarks/startup.py``. Every figure is a process of its own, and the kinds take turns; a
bare interpreter stands beside them. The store is timed inside its process: the imports, then the opening,
then the first count and the first search.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import harness

from iai_mcp.store import MemoryStore

MEMORIES = 10_000
BATCH = 2_000
HELP_S = 0.4
OPEN_S = 0.5

OPEN = """
import sys, time
marks = [time.perf_counter()]
from iai_mcp.config import Settings
from iai_mcp.store import MemoryStore
marks.append(time.perf_counter())
store = MemoryStore(sys.argv[1], settings=Settings(embedder="none"))
marks.append(time.perf_counter())
assert store.count() == int(sys.argv[2])
assert store.search_text("w1 w2", limit=10)
marks.append(time.perf_counter())
print(*(later - earlier for earlier, later in zip(marks, marks[1:])))
"""


def main() -> None:
    quick = harness.options("what it takes to start").quick
    print(f"startup: {harness.machine()}; seconds")
    rounds = 4 if quick else 15
    with harness.scratch() as folder:
        path = _filled(folder)
        opened: list[list[float]] = []
        sides = {
            "python -c pass": lambda: _run("-c", "pass"),
            "python -m iai_mcp --help": lambda: _run("-m", "iai_mcp", "--help"),
            "open": lambda: opened.append(_opened(path)),
        }
        times = harness.interleave(sides, rounds)
    imports, opening, first = (list(column) for column in zip(*opened, strict=True))
    rows = [
        _row("bare interpreter", times["python -c pass"]),
        _row("python -m iai_mcp --help", times["python -m iai_mcp --help"], HELP_S),
        _row("imports of the store", imports),
        _row(f"open a store of {MEMORIES:,}", opening, OPEN_S),
        _row("first count and first search", first),
    ]
    harness.show(f"{rounds} processes of each kind", ("what", "median", "worst", "target (median)"), rows)


def _row(name: str, times: harness.Seconds, target: float | None = None) -> list[object]:
    middle = harness.median(times)
    verdict = harness.at_most(middle, target) if target else "-"
    return [name, f"{middle:.3f}", f"{max(times):.3f}", verdict]


def _filled(folder: Path) -> Path:
    store = MemoryStore(settings=harness.settings(folder))
    memories = harness.records(MEMORIES, dims=store.meta.embedder.dims)
    for at in range(0, MEMORIES, BATCH):
        store.insert_many(memories[at : at + BATCH])
    return store.path


def _opened(path: Path) -> list[float]:
    return [float(seconds) for seconds in _run("-c", OPEN, str(path), str(MEMORIES)).split()]


def _run(*arguments: str) -> str:
    ran = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


if __name__ == "__main__":
    main()
