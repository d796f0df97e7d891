"""The checker: five invariants over a history and what the store shows. Pure.

L  every ``ok`` entry is visible, or else still waits in a lane, in flight or in the spill
D  no entry is read twice
O  numbers ascend for each (record, producer)
P  nothing is visible that no producer sent
B  no call took longer than the budget
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tests.chaos.history import Op

__all__ = ["Verdict", "check"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong, as names ``producer:n@record``; empty tuples mean that all is well."""

    lost: tuple[str, ...] = ()
    doubled: tuple[str, ...] = ()
    reordered: tuple[str, ...] = ()
    phantom: tuple[str, ...] = ()
    slow: tuple[str, ...] = ()
    entries: int = 0
    p100_ms: float = 0.0

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.reordered or self.phantom or self.slow)

    def __str__(self) -> str:
        parts = [
            f"{name} {len(items)} ({', '.join(items[:3])}{', ...' if len(items) > 3 else ''})"
            for name in ("lost", "doubled", "reordered", "phantom", "slow")
            if (items := getattr(self, name))
        ]
        return f"{self.entries} entries: {'; '.join(parts) or 'nothing lost, doubled or reordered'}"


def check(
    history: Iterable[Op],
    visible: Mapping[str, Sequence[str]],
    *,
    waiting: Iterable[tuple[str, str]] = (),
    budget_ms: float | None = None,
    may_lose: Iterable[str] = (),
) -> Verdict:
    """Hold ``visible`` (record -> entry names in the order read) against ``history``.

    Args:
        waiting: ``(record, name)`` of entries that wait in a lane, in flight or in the spill.
        budget_ms: most that a call may take; None: not looked at.
        may_lose: names of producers whose entries may be gone (killed with entries in memory only).
    """
    ops = list(history)
    sent = {(op.record, op.name): op for op in ops}
    seen = {(record, name) for record, names in visible.items() for name in names}
    there = seen | set(waiting)
    excused = set(may_lose)
    return Verdict(
        lost=_names(
            key for key, op in sent.items() if op.end == "ok" and key not in there and op.producer not in excused
        ),
        doubled=_names(
            (record, name) for record, names in visible.items() for name, n in Counter(names).items() if n > 1
        ),
        reordered=_names(_reordered(visible)),
        phantom=_names(key for key in seen if key not in sent or sent[key].end == "fail"),
        slow=tuple(f"{op.name} {op.ms:.1f} ms" for op in ops if budget_ms is not None and op.ms > budget_ms),
        entries=len(sent),
        p100_ms=max((op.ms for op in ops), default=0.0),
    )


def _reordered(visible: Mapping[str, Sequence[str]]) -> Iterable[tuple[str, str]]:
    for record, names in visible.items():
        last: dict[str, int] = {}
        for name in names:
            producer, _, number = name.rpartition(":")
            if int(number) < last.get(producer, 0):
                yield record, name
            last[producer] = max(last.get(producer, 0), int(number))


def _names(keys: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    return tuple(sorted(f"{name}@{record[:8]}" for record, name in keys))
