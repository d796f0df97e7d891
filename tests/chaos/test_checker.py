"""The checker sees each kind of breach, and nothing where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.checker import check
from tests.chaos.history import Op, Recorder, read

SENT = [Op("a", n, "r1", "ok", 0.5) for n in (1, 2, 3)] + [Op("b", 1, "r1", "ok"), Op("a", 4, "r2", "info")]
GOOD = {"r1": ["a:1", "b:1", "a:2", "a:3"], "r2": []}


def test_a_good_run_is_clean() -> None:
    verdict = check(SENT, GOOD, budget_ms=1.0)
    assert verdict.clean
    assert (verdict.entries, verdict.p100_ms) == (5, 0.5)
    assert check(SENT, {**GOOD, "r2": ["a:4"]}).clean  # info: may have happened


@pytest.mark.parametrize(
    ("kind", "visible"),
    [
        ("lost", {"r1": ["a:1", "b:1", "a:3"]}),
        ("doubled", {"r1": ["a:1", "b:1", "a:2", "a:2", "a:3"]}),
        ("reordered", {"r1": ["a:1", "b:1", "a:3", "a:2"]}),
        ("phantom", {"r1": [*GOOD["r1"], "z:1"]}),
        ("phantom", {"r1": GOOD["r1"], "r2": ["b:1"]}),
    ],
)
def test_each_breach_has_its_name(kind: str, visible: dict[str, list[str]]) -> None:
    verdict = check(SENT, visible)
    assert not verdict.clean
    assert len(getattr(verdict, kind)) == 1
    assert kind in str(verdict)


def test_what_waits_is_not_lost_and_a_slow_call_is_a_breach() -> None:
    short = {"r1": ["a:1", "b:1", "a:2"]}
    assert check(SENT, short, waiting=[("r1", "a:3")]).clean
    assert check(SENT, short, may_lose=["a"]).clean
    assert check(SENT, GOOD, budget_ms=0.1).slow


def test_what_failed_must_not_show_up() -> None:
    assert check([Op("a", 1, "r", "fail")], {"r": []}).clean
    assert check([Op("a", 1, "r", "fail")], {"r": ["a:1"]}).phantom


def test_a_history_survives_its_writer(tmp_path: Path) -> None:
    class Sink:
        def enqueue(self, pairs: object) -> None:
            pass

    class Full:
        def enqueue(self, pairs: object) -> None:
            raise OSError("full")

    from uuid import UUID

    path = tmp_path / "h.jsonl"
    recorder = Recorder(path, "p")
    recorder.enqueue(Sink(), [UUID(int=1), UUID(int=2)])
    recorder.enqueue(Full(), [UUID(int=1)])
    with open(path, "ab") as file:
        file.write(b'{"op": "invoke", "p": "p", "n": 3, "r": ["x"]}\n{"op": "o')
    assert [(op.n, op.end) for op in read([path])] == [(1, "ok"), (1, "ok"), (2, "fail"), (3, "info")]
