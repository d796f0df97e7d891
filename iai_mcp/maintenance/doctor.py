"""Is this installation fit? One line for each check: PASS, WARN, FAIL or SKIP, and what would mend it.

Changes nothing, makes no store, and never fails itself: a check that breaks is a FAIL with the reason.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from iai_mcp.common.wording import many
from iai_mcp.config import Settings, overflow_dir, world_readable
from iai_mcp.errors import ConfigError
from iai_mcp.spill.names import SET_ASIDE_PATTERN
from iai_mcp.storage.layout import Layout

if TYPE_CHECKING:
    from iai_mcp.broker.redis.inspect import RedisLook
    from iai_mcp.spill.listing import SpillFile
    from iai_mcp.store import MemoryStore

__all__ = ["Check", "State", "examine"]

MIB = 2**20
DISK_WARN, DISK_FAIL = 1024 * MIB, 100 * MIB
OLD_S = 60.0  # an entry that waits longer than this is not being drained
SKEW_S = 2.0
SCRUB_S = 600.0
PACKAGES = ("lancedb", "pyarrow", "redis", "rq")


class State(StrEnum):
    """How a check came out."""

    PASS = "PASS"
    WARN = "WARN"
    FAIL = "FAIL"
    SKIP = "SKIP"


@dataclass(frozen=True, slots=True)
class Check:
    """One line: what was looked at, how it came out, what was found, and what to do about it."""

    name: str
    state: State
    said: str
    mend: str = ""


def examine(path: str | None = None) -> Iterator[Check]:
    """Every check of the store at ``path`` (default: as the settings say), as it is done."""
    yield from _guarded("python", _python)
    yield from _guarded("packages", _packages)
    try:
        settings = Settings.load()
    except ConfigError as error:
        yield Check("settings", State.FAIL, str(error), "set it right, or unset it")
        return
    if opened := world_readable():
        mend = f"chmod 600 {' '.join(map(str, opened))}"
        yield Check("settings", State.WARN, f"every user may read the secret in {opened[0]}", mend)
    else:
        yield Check("settings", State.PASS, "every environment variable can be read")
    here = _Patient(settings, path)
    for name, check in here.checks():
        yield from _guarded(name, check)


def _guarded(name: str, check: Callable[[], Iterable[Check]]) -> Iterator[Check]:
    try:
        yield from check()
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # noqa: BLE001  a panic of LanceDB's Rust is no Exception
        words = str(error).splitlines()[0][:200] if str(error) else ""
        yield Check(name, State.FAIL, f"{type(error).__name__}: {words}", "mend that, then look again")


# -- the installation


def _python() -> Iterator[Check]:
    fits = sys.version_info >= (3, 11)
    said = f"{sys.version.split()[0]} on {sys.platform}"
    yield Check("python", State.PASS if fits else State.FAIL, said, "" if fits else "install 3.11 or newer")


def _packages() -> Iterator[Check]:
    wanted = _least_versions()
    for package in PACKAGES:
        name, least = f"package {package}", wanted.get(package, "0")
        mend = f"pip install '{package}>={least}'"
        try:
            found = metadata.version(package)
        except metadata.PackageNotFoundError:
            yield Check(name, State.FAIL, "not installed", mend)
            continue
        fits = _numbers(found) >= _numbers(least)
        said = found if fits else f"{found} is older than {least}"
        yield Check(name, State.PASS if fits else State.FAIL, said, "" if fits else mend)


def _least_versions() -> dict[str, str]:
    """What this package's own metadata asks for."""
    lines = [line.split(";")[0] for line in metadata.requires("iai-mcp") or []]
    pairs = [line.partition(">=") for line in lines if ">=" in line]
    return {name.split("[")[0].strip(): least.split(",")[0].strip() for name, _, least in pairs}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


class _Patient:
    """One store and what belongs to it, opened once."""

    def __init__(self, settings: Settings, path: str | None) -> None:
        self.settings = settings
        self.layout = Layout((Path(path).expanduser() if path else settings.store_path).absolute())
        self.spill = overflow_dir(settings)
        self.there = self.layout.meta.exists()

    def checks(self) -> Iterator[tuple[str, Callable[[], Iterable[Check]]]]:
        """Each check by name, in the order in which they are told."""
        yield "store", self.check_store
        if self.there:
            yield "store folder", self.check_folder
            yield "embedder", self.check_embedder
            yield "lanes", self.check_lanes
            yield "forgotten", self.check_forgotten
        for name in ("redis", "clock", "workers"):
            if not self.settings.redis_url:
                yield name, lambda n=name: [Check(n, State.SKIP, "the embedded broker needs none")]  # type: ignore[misc]
            else:
                yield name, getattr(self, f"check_{name}")
        yield "disk", self.check_disk
        yield "spill folder", self.check_spill_folder
        yield "spill", self.check_spill
        if self.there:
            yield "waiting", self.check_waiting
            yield "dead letters", self.check_dead

    @cached_property
    def store(self) -> MemoryStore:
        """The store, opened; an error is the check's to tell."""
        from iai_mcp.store import MemoryStore

        return MemoryStore(self.layout.root, settings=self.settings)

    @cached_property
    def redis(self) -> RedisLook:
        """Redis as it is now."""
        from iai_mcp.broker.redis.client import connect
        from iai_mcp.broker.redis.inspect import look

        lanes = self.store.lanes if self.there else 0
        return look(connect(self.settings.redis_url), self.settings, self.store.store_id if lanes else "", lanes)

    @cached_property
    def spilled(self) -> list[SpillFile]:
        """The spill files of this store, and those of which nobody knows whose they are."""
        from iai_mcp.spill.listing import listing

        mine = (self.store.store_id if self.there else None, None)
        return [file for file in listing(self.spill) if file.store in mine]

    # -- the store

    def check_store(self) -> Iterator[Check]:
        if not self.there:
            mend = "the first `iai-mcp capture` or `import` makes one; or set IAI_MCP_STORE"
            yield Check("store", State.WARN, f"there is none at {self.layout.root} yet", mend)
            return
        meta, records = self.store.meta, self.store.count()
        held = f"{many(records, 'memory')}, schema {meta.schema_version}, {many(meta.lanes, 'lane')}"
        said = f"{self.layout.root}: {held}"
        yield Check("store", State.PASS, said)

    def check_folder(self) -> Iterator[Check]:
        root = self.layout.root
        probe = self.layout.locks / f".doctor.{os.getpid()}.tmp"
        try:
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            yield Check("store folder", State.FAIL, f"not writable: {error.strerror}", f"chmod -R u+rwX {root}")
            return
        yield _private("store folder", [root])

    def check_embedder(self) -> Iterator[Check]:
        from iai_mcp.embedders import registry

        made_by = self.store.meta.embedder.name
        if self.settings.embedder == "none":
            yield Check("embedder", State.PASS, f"none: words only (the store's vectors are by {made_by})")
            return
        embedder = registry.load(self.settings)
        if embedder is None or not self.store.vectors_match():
            name = embedder.id.name if embedder is not None else "none"
            yield Check("embedder", State.WARN, f"{name} is set, the vectors are by {made_by}", "iai-mcp reembed")
            return
        started = time.perf_counter()
        embedder.embed_query("is anybody there?")
        took = (time.perf_counter() - started) * 1000
        if waiting := self.store.count_without_vector():
            yield Check("embedder", State.WARN, f"{many(waiting, 'memory')} without a vector", "iai-mcp reembed")
        else:
            said = f"{embedder.id.name}, {embedder.dims} dimensions, {took:.0f} ms a cue"
            yield Check("embedder", State.PASS, said)

    def check_lanes(self) -> Iterator[Check]:
        from iai_mcp.storage.tables.lane import piled_up

        for number in range(self.store.lanes):
            if not self.layout.table(self.store.meta.lane_table(number)).exists():
                continue  # made on first use
            stats = self.store.lane(number).stats()
            said = ", ".join(many(stats[f"{name}s"], name) for name in ("row", "version", "fragment"))
            mend = "iai-mcp verify --repair compacts it" if piled_up(stats) else ""
            yield Check(f"lane {number}", State.WARN if mend else State.PASS, said, mend)

    def check_forgotten(self) -> Iterator[Check]:
        old = time.time() - SCRUB_S
        late = [path for path in self.layout.erasures() if path.stat().st_mtime < old]
        if late:
            said = f"what forgotten memories said is still in the files of {', '.join(p.stem for p in late)}"
            yield Check("forgotten", State.WARN, said, "iai-mcp verify --repair, or start any client")
        else:
            there = any(self.layout.erasures())
            said = "what was forgotten just now goes soon" if there else "nothing is left of what was forgotten"
            yield Check("forgotten", State.PASS, said)

    # -- Redis

    def check_redis(self) -> Iterator[Check]:
        seen = self.redis
        if not seen.reachable:
            yield Check("redis", State.FAIL, seen.error or "unreachable", "start Redis, or mend IAI_MCP_REDIS_URL")
            return
        yield Check("redis", State.PASS, f"{seen.url}: version {seen.version}, answers in {seen.ping_ms} ms")
        if seen.error:
            yield Check("redis lanes", State.FAIL, seen.error, "let this user read and write the store's keys")
        yield _setting("redis appendonly", seen.appendonly, {"yes"}, "CONFIG SET appendonly yes")
        if seen.appendonly != "no":
            durable = self.settings.redis_durability == "fsync"
            fits = {"always"} if durable else {"everysec", "always"}
            mend = f"CONFIG SET appendfsync {'always' if durable else 'everysec'}"
            yield _setting("redis appendfsync", seen.appendfsync, fits, mend)
        elif self.settings.redis_durability == "fsync":
            said = "IAI_MCP_REDIS_DURABILITY=fsync, and nothing is on Redis's disk: no entry is ever confirmed"
            yield Check("redis durability", State.FAIL, said, "CONFIG SET appendonly yes")
        policy = seen.maxmemory_policy
        yield _setting("redis eviction", policy, {"noeviction"}, "CONFIG SET maxmemory-policy noeviction")
        yield _memory(seen.used_memory, seen.maxmemory)
        known = ("appendonly is", "appendfsync is", "maxmemory-policy is", "memory is")
        for warning in seen.warnings:
            if not warning.startswith(known):
                said, _, mend = warning.partition(": ")
                yield Check("redis", State.FAIL, said, mend)

    def check_clock(self) -> Iterator[Check]:
        from iai_mcp.broker.redis.pending import clock_offset

        if not self.redis.reachable:
            yield Check("clock", State.SKIP, "Redis does not answer")
            return
        ahead = clock_offset(self.settings)
        far = abs(ahead) > SKEW_S
        said = f"Redis's clock is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} ours"
        mend = "let both machines follow the same time server (NTP)" if far else ""
        yield Check("clock", State.WARN if far else State.PASS, said, mend)

    def check_workers(self) -> Iterator[Check]:
        if not self.redis.reachable:
            yield Check("workers", State.SKIP, "Redis does not answer")
        elif self.redis.workers is None:
            yield Check("workers", State.WARN, "RQ's keys cannot be read", "let this user read rq:*")
        else:
            alive = sum(worker.alive for worker in self.redis.workers)
            said = f"{alive} alive on the queue {self.redis.queue!r}"
            mend = "" if alive else "iai-mcp worker"
            yield Check("workers", State.PASS if alive else State.FAIL, said, mend)

    # -- the disk

    def check_disk(self) -> Iterator[Check]:
        for name, folder in (("store disk", self.layout.root), ("spill disk", self.spill)):
            yield _space(name, folder)

    def check_spill_folder(self) -> Iterator[Check]:
        place = _nearest(self.spill)
        if not os.access(place, os.W_OK | os.X_OK) or not place.is_dir():
            mend = "mend its permissions, or set IAI_MCP_SPILL_DIR"
            yield Check("spill folder", State.FAIL, f"{self.spill} cannot be written", mend)
        elif self.spill.exists():
            yield _private("spill folder", [self.spill, *(file.path for file in self.spilled)])
        else:
            yield Check("spill folder", State.PASS, f"{self.spill} will be made when it is needed")

    def check_spill(self) -> Iterator[Check]:
        waiting = [file for file in self.spilled if not file.set_aside]
        alone = [file for file in waiting if not file.held]
        number = sum(file.entries for file in waiting)
        entries, files = many(number, "entry"), many(len(waiting), "file")
        if alone:
            said = f"{entries} in {files}, {len(alone)} of them held by no living process"
            yield Check("spill", State.WARN, said, "iai-mcp spill replay")
        elif waiting:
            said = f"{entries} in {files} of living processes"
            mend = "" if self.settings.journal != "off" else "see why Redis or the queue did not take them"
            yield Check("spill", State.WARN if mend and number else State.PASS, said, mend)
        else:
            yield Check("spill", State.PASS, "empty")
        if aside := sum(file.set_aside for file in self.spilled):
            said = f"{many(aside, 'file')} set aside"
            yield Check("spill", State.WARN, said, f"look at {self.spill}/{SET_ASIDE_PATTERN}")

    # -- what waits

    def check_waiting(self) -> Iterator[Check]:
        ages = [time.time() - file.oldest for file in self.spilled if file.oldest and not file.set_aside]
        if self.settings.redis_url:
            ages += [lane.oldest_s for lane in self.redis.lanes or [] if lane.oldest_s is not None]
        oldest = max(ages, default=0.0)
        said = f"the oldest entry has waited {oldest:.0f} s" if ages else "nothing waits"
        late = oldest > OLD_S
        yield Check("waiting", State.WARN if late else State.PASS, said, "iai-mcp status" if late else "")

    def check_dead(self) -> Iterator[Check]:
        from iai_mcp.storage.dead_letters import DeadLetters

        number = DeadLetters(self.layout).count()
        mend = "iai-mcp dead list, then retry or drop them" if number else ""
        said = f"{number:,}" if number else "none"
        yield Check("dead letters", State.WARN if number else State.PASS, said, mend)


def _setting(name: str, value: str, wanted: set[str], mend: str) -> Check:
    if value in wanted:
        return Check(name, State.PASS, value)
    if value == "unknown":
        return Check(name, State.WARN, "cannot be read", "let this user run CONFIG GET and INFO")
    risk = name.endswith("eviction") and value.startswith("allkeys")
    return Check(name, State.FAIL if risk else State.WARN, value, mend)


def _memory(used: int | None, most: int | None) -> Check:
    if used is None:
        return Check("redis memory", State.WARN, "cannot be read", "let this user run INFO")
    if not most:
        return Check("redis memory", State.PASS, f"{used // MIB} MiB used, no limit set")
    said = f"{used // MIB} of {most // MIB} MiB used"
    state = State.FAIL if used >= most else State.WARN if used > 0.9 * most else State.PASS
    return Check("redis memory", state, said, "" if state is State.PASS else "raise maxmemory, or add workers")


def _space(name: str, folder: Path) -> Check:
    free = shutil.disk_usage(_nearest(folder)).free
    state = State.FAIL if free < DISK_FAIL else State.WARN if free < DISK_WARN else State.PASS
    mend = "" if state is State.PASS else f"make room where {folder} lies"
    return Check(name, state, f"{free / 1024 / MIB:.1f} GiB free", mend)


def _private(name: str, paths: list[Path]) -> Check:
    """Others must not read what memories and cues say."""
    opened = [path for path in paths if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077]
    if opened:
        mend = f"chmod go-rwx {' '.join(str(path) for path in opened[:3])}{' ...' if len(opened) > 3 else ''}"
        return Check(name, State.WARN, f"{opened[0]} is open to other users", mend)
    return Check(name, State.PASS, f"{paths[0]} is writable, and private")


def _nearest(folder: Path) -> Path:
    """The folder itself, or the nearest above it that is there."""
    return next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))
