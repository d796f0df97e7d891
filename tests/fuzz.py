"""Hostile files for every reader: each ends soon, with a result or an error, and changes nothing else.

``python -m tests.fuzz --minutes 10`` runs for long. The suite runs a few seconds of the same.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from iai_mcp.common.place import place_of
from iai_mcp.config import read_secret
from iai_mcp.entries.parcel import Parcel
from iai_mcp.entries.wire import encode
from iai_mcp.errors import IaiMcpError
from iai_mcp.spill.adoption import adopt
from iai_mcp.spill.listing import listing
from iai_mcp.storage.dead_letters import DeadLetters
from iai_mcp.storage.exclusions import ExclusionReason, Exclusions
from iai_mcp.storage.layout import Layout
from iai_mcp.storage.live_producers import signs_of_life
from iai_mcp.storage.meta import EmbedderMeta, StoreMeta, read_meta
from iai_mcp.storage.producer_log import ProducerLog
from iai_mcp.storage.tombstones import Tombstones
from iai_mcp.storage.upkeep_notes import failing_upkeep
from iai_mcp.transfer import manifest
from iai_mcp.transfer.format import BackupManifest, ExportManifest
from iai_mcp.transfer.manifest import BACKUP, EXPORT, ListedFile
from iai_mcp.transfer.restore import check_backup

LIMIT_S = 5.0  # of one reading
STORE, PRODUCER, ONE = "ab" * 16, "cd" * 8, UUID(int=1)
_EMBEDDER = EmbedderMeta("builtin", 384, "ef" * 32)
_FILE = ListedFile("store/store.json", 3, "0" * 64)
_COPY: dict[str, Any] = {
    "program": "1",
    "store_id": STORE,
    "created_at": "2026-11-26T00:00:00+00:00",
    "files": [_FILE],
}
_COUNTS: dict[str, Any] = {"lanes": 4, "embedder": _EMBEDDER, "records": 1, "entries": 2, "not_included": 0}


def _backup() -> BackupManifest:
    return BackupManifest(
        format=BACKUP, version=1, source="/nowhere", spilled=0, forgetting=[ONE], **_COPY, **_COUNTS
    )


def _export() -> ExportManifest:
    return ExportManifest(format=EXPORT, version=1, with_vector=1, **_COPY, **_COUNTS)


def _parcel() -> bytes:
    return encode(Parcel.of(STORE, 0, PRODUCER, 1.0, [(ONE, 1, {"ts": "t", "cue": "c", "session_id": "s"})]))


def _letter() -> dict[str, Any]:
    entry = {"ts": "t", "cue": "c", "session_id": "s", "producer": PRODUCER, "producer_seq": 1}
    return {"id": "0123456789ab", "at": "t", "lane": 0, "reason": "r", "record_id": str(ONE), "entry": entry}


class Reader:
    """A reader of one kind of file.

    Attributes:
        name: the file's name within the folder of a run.
        sound: content that it takes.
        read: reads the file below the folder; errors of the package are right.
    """

    def __init__(self, name: str, sound: object, read: Callable[[Path], object]) -> None:
        self.name = name
        self.sound = sound if isinstance(sound, bytes) else msgspec.json.encode(sound)
        self.read = read


def _meta(root: Path) -> None:
    found = read_meta(Layout(root))
    assert len(found.store_id) == 32
    assert 1 <= found.lanes <= 256
    assert "/" not in found.store_id + found.vector_column
    assert found.generation < 2**41


def _letters(root: Path) -> None:
    letters = DeadLetters(Layout(root))
    for letter in letters.all():
        assert letter.pair is None or isinstance(letter.pair[0], UUID)
        assert all(isinstance(seq, int) for _, seq in letter.keys)
    letters.of_reused(letters.all())
    letters.forget(ONE)
    letters.drop([letter.id for letter in letters.all()])
    letters.count()


def _exclusions(root: Path) -> None:
    log = Exclusions(Layout(root).exclusions)
    assert all(0 < span.first <= span.last < 2**40 for span in log.read())
    log.covering({(PRODUCER, 1)}, *ExclusionReason)


def _tombstones(root: Path) -> None:
    log = Tombstones(Layout(root).tombstones)
    assert all(isinstance(one, UUID) for one in log.ids())
    assert all(0 <= number < 2**41 for number in log.reused().values())


def _spill(root: Path) -> None:
    listing(root / "spill")
    for chain in adopt(root / "spill", STORE):
        while not chain.empty:
            chain.read(64)
            chain.settle()
            chain.commit()
        chain.close()


def _backups(root: Path) -> None:
    check_backup(root / "copy")


def _exports(root: Path) -> None:
    manifest.is_export(root / "copy")
    found = manifest.read(root / "copy", ExportManifest, EXPORT, 1)
    manifest.check(root / "copy", found.files)


def _producers(root: Path) -> None:
    assert all(0 <= one.handed_out < 2**40 for one in ProducerLog(Layout(root).producers).read())


META = StoreMeta(STORE, 1, 4, _EMBEDDER, "embedding", "2026-11-26T00:00:00+00:00")
READERS = {
    "store.json": Reader("store.json", META, _meta),
    "backup": Reader("copy/manifest.json", _backup(), _backups),
    "export": Reader("copy/manifest.json", _export(), _exports),
    "spill": Reader("spill/a.jsonl", _parcel() + b"\n" + _parcel() + b"\n", _spill),
    "dead letters": Reader("dead-letters.jsonl", msgspec.json.encode(_letter()) + b"\n", _letters),
    "tombstones": Reader("tombstones.log", f"-{ONE}\n+{ONE} 3\n".encode(), _tombstones),
    "exclusions": Reader(
        "exclusions.jsonl", {"why": "lost", "producer": PRODUCER, "seqs": [[1, 2], [4, 9]]}, _exclusions
    ),
    "producers": Reader("producers.jsonl", {"producer": PRODUCER, "handed_out": 3, "killed": True}, _producers),
    "live": Reader(
        "locks/producer-ab.lock",
        {"handed_out": 3, "embedded": False},
        lambda root: [*signs_of_life(Layout(root).locks)],
    ),
    "place": Reader(
        "locks/place.json",
        {"id": STORE, "inode": 1, "host": "h", "folder": "/nowhere"},
        lambda root: place_of(root, Layout(root).place),
    ),
    "upkeep": Reader(
        "locks/records.upkeep",
        {"table": "records", "since": "t", "attempts": 1, "reason": "r"},
        lambda root: failing_upkeep(Layout(root)),
    ),
    "secret": Reader("token", b"a secret\n", lambda root: read_secret(root / "token", "a token")),
}

_VALUES: list[Any] = [
    None, True, -1, 0, 2**31, 2**40, 2**63 - 1, 2**64, 10**400, 1e308, "", "../../..", "/etc/passwd", "a\x00b",
    "x" * 5000, [], {}, [[1, 2**60]], ["../x"], [[]] * 50, "2026-11-26T00:00:00+00:00", "0" * 64, STORE,
]  # fmt: skip
_BYTES = [
    b'"',
    b"{",
    b"}",
    b"[",
    b"\\u0000",
    b"\\ud800",
    b"1e999",
    b"-0",
    b"null",
    b"\xff",
    b"\n",
    b"\r",
    b"\x00",
    b"9" * 400,
]


def _leaves(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to all values in a document, the document itself first."""
    found = [at]
    for key, inside in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        found += _leaves(inside, (*at, key))
    return found


def _with(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    if not at:
        return new
    copied = dict(value) if isinstance(value, dict) else list(value)
    copied[at[0]] = _with(value[at[0]], at[1:], new)
    return copied


@st.composite
def hostile(draw: st.DrawFn, sound: bytes) -> bytes:
    """``sound`` with other values in its fields, or with bytes changed, cut out or put in."""
    data = sound
    first, *rest = sound.split(b"\n")
    if sound[:1] == b"{" and draw(st.booleans()):
        document = msgspec.json.decode(first)
        for _ in range(draw(st.integers(1, 3))):
            at = draw(st.sampled_from(_leaves(document)))
            document = _with(document, at, draw(st.sampled_from(_VALUES)))
        try:
            data = b"\n".join([msgspec.json.encode(document), *rest])
        except (OverflowError, UnicodeEncodeError):
            data = first
        if draw(st.booleans()):
            return data
    changed = bytearray(data)
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(changed)))
        kind = draw(st.integers(0, 3))
        if kind == 0:
            changed[at:at] = draw(st.sampled_from(_BYTES)) * draw(st.sampled_from([1, 1, 2, 600]))
        elif kind == 1:
            del changed[at : at + draw(st.integers(1, 40))]
        elif kind == 2:
            changed[at : at + 1] = draw(st.binary(min_size=1, max_size=4))
        else:
            changed[at:at] = changed[: draw(st.integers(0, 60))]
    return bytes(changed)


def attempt(reader: Reader, data: bytes, root: Path) -> None:
    """Read ``data`` with ``reader`` in a folder of its own below ``root``, and check what is left."""
    with tempfile.TemporaryDirectory(dir=root) as made:
        inner = Path(made, "inner")
        for folder in ("locks", "spill", "copy/store"):
            (inner / folder).mkdir(parents=True, exist_ok=True)
        (inner / "copy/store/store.json").write_bytes(b"abc")
        (inner / reader.name).write_bytes(data)
        began = time.monotonic()
        try:
            reader.read(inner)
        except (IaiMcpError, OSError) as error:
            said = str(error)
        else:
            said = "nothing"
        assert 0 < len(said) < 100_000
        assert time.monotonic() - began < LIMIT_S
        assert [path.name for path in Path(made).iterdir()] == ["inner"]


def fuzz(name: str, examples: int, number: int, root: Path) -> None:
    """Give a reader hostile files; a failure is shrunk and raised with the bytes."""
    reader = READERS[name]

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=[*HealthCheck],
        phases=(Phase.generate, Phase.shrink),
    )
    @given(hostile(reader.sound))
    def run(data: bytes) -> None:
        attempt(reader, data, root)

    run()


def main() -> int:
    """Run until the time is over; print how much was tried."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="how long (default: 5)")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="to run the same again")
    parser.add_argument("--only", choices=READERS, help="one reader")
    chosen = parser.parse_args()
    until, tried, number = time.monotonic() + chosen.minutes * 60, 0, chosen.seed
    print(f"seed {chosen.seed}", flush=True)  # noqa: T201
    with tempfile.TemporaryDirectory() as root:
        while time.monotonic() < until:
            for name in [chosen.only] if chosen.only else READERS:
                fuzz(name, 500, number, Path(root))
                tried += 500
            number += 1
    print(f"{tried:,} hostile files, no failure")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
