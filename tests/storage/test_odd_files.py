"""Files of a store's folder that are none, or are links: no reader hangs, follows one, or writes through one."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from uuid import UUID

import pytest

from iai_mcp.common.place import place_of
from iai_mcp.config import read_secret
from iai_mcp.errors import ConfigError, DamagedStore, IaiMcpError, StoreError
from iai_mcp.storage.dead_letters import DeadLetters
from iai_mcp.storage.exclusions import ExclusionReason, Exclusions
from iai_mcp.storage.layout import Layout
from iai_mcp.storage.live_producers import LiveProducer, signs_of_life
from iai_mcp.storage.locked_file import LockedFile, is_held
from iai_mcp.storage.meta import read_meta
from iai_mcp.storage.producer_log import EndedProducer, ProducerLog
from iai_mcp.storage.store_lock import StoreLock
from iai_mcp.storage.tombstones import Tombstones
from iai_mcp.storage.upkeep_notes import failing_upkeep
from iai_mcp.store import MemoryStore
from tests.support import entry
from tests.support_files import HUGE, KINDS

LIMIT_S = 10


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """A test that waits for a pipe fails, and does not hang."""

    def late(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"not done in {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path / "store")
    made.locks.mkdir(parents=True)
    return made


def tried(*calls: Callable[[], object]) -> None:
    """Each call ends, with a result or with one of our errors or the system's."""
    for call in calls:
        with suppress(IaiMcpError, OSError):
            call()


def untouched(path: Path, kind: str) -> None:
    """The odd file is as it was made, and so is what a link in its place names."""
    assert os.path.lexists(path)
    if kind == "outside":
        assert (path.parent.parent / f"outside-{path.name}").read_text() == '{"text": "a secret outside"}\n'
    elif kind == "dangling":
        assert not (path.parent / "missing").exists()
    elif kind == "huge":
        assert path.stat().st_size in range(HUGE, HUGE + 1000)  # a log may be appended to
        with open(path, "rb") as file:
            assert file.read(4096) == bytes(4096)


def read_logs(layout: Layout) -> None:
    letters, record = DeadLetters(layout), UUID(int=1)
    tried(
        lambda: Tombstones(layout.tombstones).ids(),
        lambda: Tombstones(layout.tombstones).add(record),
        lambda: [*Exclusions(layout.exclusions).read()],
        lambda: Exclusions(layout.exclusions).add(ExclusionReason.LOST, [("p", 1)]),
        lambda: [*ProducerLog(layout.producers).read()],
        lambda: ProducerLog(layout.producers).add(EndedProducer("p", 1)),
        letters.all,
        letters.count,
        lambda: letters.add_raw(0, b"x", "why"),
        lambda: letters.add_entry(0, (record, entry("c", producer="p", producer_seq=1)), "why"),
        lambda: letters.drop(["0" * 12]),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("log", ["tombstones", "exclusions", "producers", "dead_letters"])
def test_logs(layout: Layout, log: str, kind: str) -> None:
    path = getattr(layout, log)
    KINDS[kind](path)
    read_logs(layout)
    untouched(path, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_is_not_described_by_an_odd_file(layout: Layout, kind: str) -> None:
    KINDS[kind](layout.meta)
    with pytest.raises(StoreError):
        read_meta(layout)
    with pytest.raises(StoreError):
        MemoryStore(layout.root)
    untouched(layout.meta, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_locks_and_notes(layout: Layout, kind: str) -> None:
    names = ("producer-ab.lock", "store.lock", "place.json", "records.upkeep", "lane-0.token")
    paths = [layout.locks / name for name in names]
    for path in paths:
        KINDS[kind](path)

    def live() -> None:
        producer = LiveProducer(layout, "cd", lambda: 3, embedded=True)
        producer.start()
        assert [sign.producer for sign in signs_of_life(layout.locks) if sign.alive] == ["cd"]
        producer.stop(stored=True)

    live()
    tried(
        lambda: is_held(paths[0]),
        lambda: kind == "huge" or LockedFile.take(paths[0]),
        lambda: StoreLock(layout.store_lock).close(),
        lambda: failing_upkeep(layout),
        lambda: place_of(layout.root, layout.place),
    )
    for path in paths:
        if path != layout.place and (kind, path.name) != ("huge", "producer-ab.lock"):  # a dead producer's
            untouched(path, kind)
        elif kind == "outside":
            assert (layout.root / f"outside-{path.name}").read_text() == '{"text": "a secret outside"}\n'


@pytest.mark.parametrize("kind", KINDS)
def test_a_secret_may_be_a_link_to_a_regular_file_only(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "secrets" / "token"
    path.parent.mkdir()
    KINDS[kind](path)
    if kind == "outside":
        assert read_secret(path, "IAI_MCP_TOKEN_FILE") == '{"text": "a secret outside"}'
        return
    with pytest.raises(ConfigError, match="IAI_MCP_TOKEN_FILE"):
        read_secret(path, "IAI_MCP_TOKEN_FILE")


@pytest.mark.parametrize("kind", sorted({*KINDS} - {"folder", "huge"}))
@pytest.mark.parametrize("place", ["records.lance/_versions/9.manifest", "locks", "scratch", "tombstones.log"])
def test_a_store_with_odd_files_is_refused(store: MemoryStore, kind: str, place: str) -> None:
    path = store.layout.root / place
    if path.is_dir():
        path.rename(path.with_name("away"))
    KINDS[kind](path)
    with pytest.raises(DamagedStore, match=path.name):
        MemoryStore(store.layout.root)
    untouched(path, kind)


def test_a_table_that_is_a_link_is_refused(store: MemoryStore, tmp_path: Path) -> None:
    """Else a store that somebody sent would change the tables of another one."""
    victim = MemoryStore(tmp_path / "victim")
    victim.close()
    store.layout.records.rename(tmp_path / "away")
    store.layout.records.symlink_to(victim.layout.records)
    with pytest.raises(DamagedStore, match=r"records\.lance is a link"):
        MemoryStore(store.layout.root)
    with suppress(StoreError):
        store.close()
