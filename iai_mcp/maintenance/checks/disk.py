"""Checks free space, the spill folder, and how long entries wait."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from iai_mcp.common.wording import many
from iai_mcp.maintenance.checks.check import Check, State, Subject, private_paths
from iai_mcp.spill.names import SET_ASIDE_PATTERN
from iai_mcp.storage.dead_letters import DeadLetters

__all__ = ["dead_letters", "free_space", "spill", "spill_folder", "waiting"]

MIB = 2**20
SPACE_WARN, SPACE_FAIL = 1024 * MIB, 100 * MIB
WAITING_S = 60.0  # an entry that waits longer than this is not being drained


def free_space(subject: Subject) -> Iterator[Check]:
    """Check the free space for the store and for the spill."""
    for name, folder in (("store disk", subject.layout.root), ("spill disk", subject.spill_folder)):
        yield _space(name, folder)


def spill_folder(subject: Subject) -> Iterator[Check]:
    """Check that the spill folder is writable and private."""
    folder = subject.spill_folder
    parent = _nearest(folder)
    if not os.access(parent, os.W_OK | os.X_OK) or not parent.is_dir():
        remedy = "correct its permissions, or set IAI_MCP_SPILL_DIR"
        yield Check("spill folder", State.FAIL, f"{folder} cannot be written", remedy)
    elif folder.exists():
        yield private_paths("spill folder", [folder, *(file.path for file in subject.spill.files)])
    else:
        yield Check("spill folder", State.PASS, f"{folder} will be made when it is needed")


def spill(subject: Subject) -> Iterator[Check]:
    """Check that no entry waits in a spill file that no process will move on."""
    waiting = subject.spill.waiting
    number = sum(file.entries for file in waiting)
    entries, files = many(number, "entry"), many(len(waiting), "file")
    if orphaned := subject.spill.orphaned:
        message = f"{entries} in {files}, {len(orphaned)} of them held by no living process"
        yield Check("spill", State.WARN, message, "iai-mcp spill replay")
    elif waiting:
        message = f"{entries} in {files} of living processes"
        remedy = "" if subject.settings.journal != "off" else "see why Redis or the queue did not take them"
        yield Check("spill", State.WARN if remedy and number else State.PASS, message, remedy)
    else:
        yield Check("spill", State.PASS, "empty")
    if aside := subject.spill.set_aside:
        remedy = f"look at {subject.spill.folder}/{SET_ASIDE_PATTERN}"
        yield Check("spill", State.WARN, f"{many(len(aside), 'file')} set aside", remedy)
    for odd in subject.spill.odd:
        message = f"{odd.path} is {odd.kind}, and no spill file: it is passed over"
        yield Check("spill", State.WARN, message, "see what made it, then remove it")


def waiting(subject: Subject) -> Iterator[Check]:
    """Check how long the oldest entry has waited in the spill or in Redis."""
    ages = [] if subject.spill.oldest is None else [time.time() - subject.spill.oldest]
    if subject.settings.redis_url:
        ages += [lane.oldest_s for lane in subject.redis.lanes or [] if lane.oldest_s is not None]
    oldest = max(ages, default=0.0)
    message = f"the oldest entry has waited {oldest:.0f} s" if ages else "nothing waits"
    late = oldest > WAITING_S
    yield Check("waiting", State.WARN if late else State.PASS, message, "iai-mcp status" if late else "")


def dead_letters(subject: Subject) -> Iterator[Check]:
    """Check that there are no dead letters."""
    number = DeadLetters(subject.layout).count()
    if number:
        yield Check("dead letters", State.WARN, f"{number:,}", "iai-mcp dead list, then retry or drop them")
    else:
        yield Check("dead letters", State.PASS, "none")


def _space(name: str, folder: Path) -> Check:
    free = shutil.disk_usage(_nearest(folder)).free
    state = State.FAIL if free < SPACE_FAIL else State.WARN if free < SPACE_WARN else State.PASS
    remedy = "" if state is State.PASS else f"make room where {folder} lies"
    return Check(name, state, f"{free / 1024 / MIB:.1f} GiB free", remedy)


def _nearest(folder: Path) -> Path:
    """The folder itself, or its nearest parent that exists."""
    return next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))
