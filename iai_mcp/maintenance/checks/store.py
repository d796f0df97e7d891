"""Checks the store: its folder, its embedder, its lane tables and its erasures."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from iai_mcp.common.times import parse_ts, utcnow
from iai_mcp.common.wording import many
from iai_mcp.maintenance.checks.check import Check, State, Subject, private_paths
from iai_mcp.storage.upkeep_notes import failing_upkeep

__all__ = ["embedder", "erasures", "folder", "lanes", "store", "upkeep"]

UPKEEP_S = 3600.0  # upkeep that fails for longer needs people
ERASURE_S = 600.0  # an erasure that is older than this is not being done


def store(subject: Subject) -> Iterator[Check]:
    """Check that there is a store and that it opens."""
    if not subject.exists:
        remedy = "the first `iai-mcp capture` or `import` makes one; or set IAI_MCP_STORE"
        yield Check("store", State.WARN, f"there is none at {subject.layout.root} yet", remedy)
        return
    meta, records = subject.store.meta, subject.store.count()
    held = f"{many(records, 'memory')}, schema {meta.schema_version}, {many(meta.lanes, 'lane')}"
    message = f"{subject.layout.root}: {held}"
    yield Check("store", State.PASS, message)


def folder(subject: Subject) -> Iterator[Check]:
    """Check that the store's folder is writable and private."""
    root = subject.layout.root
    probe = subject.layout.locks / f".doctor.{os.getpid()}.tmp"
    try:
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        yield Check("store folder", State.FAIL, f"not writable: {error.strerror}", f"chmod -R u+rwX {root}")
        return
    yield private_paths("store folder", [root])


def embedder(subject: Subject) -> Iterator[Check]:
    """Check that the configured embedder answers and made the store's vectors."""
    from iai_mcp.embedders import registry

    made_by = subject.store.meta.embedder.name
    if subject.settings.embedder == "none":
        yield Check("embedder", State.PASS, f"none: words only (the store's vectors are by {made_by})")
        return
    loaded = registry.load(subject.settings)
    if loaded is None or not subject.store.vectors_match():
        name = loaded.id.name if loaded is not None else "none"
        yield Check("embedder", State.WARN, f"{name} is set, the vectors are by {made_by}", "iai-mcp reembed")
        return
    started = time.perf_counter()
    loaded.embed_query("a short question")
    took = (time.perf_counter() - started) * 1000
    if waiting := subject.store.count_without_vector():
        yield Check("embedder", State.WARN, f"{many(waiting, 'memory')} without a vector", "iai-mcp reembed")
    else:
        message = f"{loaded.id.name}, {loaded.dims} dimensions, {took:.0f} ms a cue"
        yield Check("embedder", State.PASS, message)


def lanes(subject: Subject) -> Iterator[Check]:
    """Check that no lane table has piled up versions or fragments."""
    from iai_mcp.storage.tables.lane_reader import piled_up

    for number in range(subject.store.lanes):
        if not subject.layout.table(subject.store.meta.lane_table(number)).exists():
            continue  # made on first use
        stats = subject.store.lane(number).stats()
        message = ", ".join(many(stats[f"{name}s"], name) for name in ("row", "version", "fragment"))
        remedy = "iai-mcp verify --repair compacts it" if piled_up(stats) else ""
        yield Check(f"lane {number}", State.WARN if remedy else State.PASS, message, remedy)


def upkeep(subject: Subject) -> Iterator[Check]:
    """Check that no table's upkeep fails; after an hour that is a failure, because files pile up."""
    failing = failing_upkeep(subject.layout)
    for one in failing:
        since = parse_ts(one.since)
        long = since is None or (utcnow() - since).total_seconds() > UPKEEP_S
        message = f"{one.table}: since {one.since}, {many(one.attempts, 'attempt')}: {one.reason}"
        remedy = "make room on the store's disk, or correct what the reason says; it is tried again by itself"
        yield Check("upkeep", State.FAIL if long else State.WARN, message, remedy)
    if not failing:
        yield Check("upkeep", State.PASS, "compaction and cleanup work")


def erasures(subject: Subject) -> Iterator[Check]:
    """Check that the texts of forgotten memories leave the disk."""
    old = time.time() - ERASURE_S
    late = [path for path in subject.layout.erasures() if path.stat().st_mtime < old]
    if late:
        message = f"texts of forgotten memories are still in the files of {', '.join(p.stem for p in late)}"
        yield Check("forgotten", State.WARN, message, "iai-mcp verify --repair, or start any client")
    else:
        there = any(subject.layout.erasures())
        message = (
            "recently forgotten texts will be erased soon" if there else "no text of a forgotten memory is left"
        )
        yield Check("forgotten", State.PASS, message)
