"""A look through the spill folder: each file, and the sum for one store."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

from iai_mcp.config import Settings
from iai_mcp.entries.parcel import Parcel
from iai_mcp.entries.wire import encode
from iai_mcp.spill.listing import Waiting, listing, waiting
from iai_mcp.spill.names import chain_name, segment_name
from iai_mcp.spill.segment import Segment
from tests.support import entry

STORE, OTHER, PRODUCER = "ab" * 16, "cd" * 16, "ef" * 8


def line(store: str, pushed: float, *seqs: int) -> bytes:
    entries = [(UUID(int=seq), seq, entry(seq)) for seq in seqs]
    return encode(Parcel.of(store, 0, PRODUCER, pushed, entries)) + b"\n"


def test_a_file_is_counted_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / segment_name(chain_name(STORE, PRODUCER), 1_000_000)
    path.write_bytes(b"no parcel\n" + line(STORE, 7.0, 1, 2) + line(STORE, 5.0, 3))
    (file,) = listing(tmp_path)
    assert (file.store, file.producer, file.lines, file.entries) == (STORE, PRODUCER, 3, 3)
    assert (file.unreadable, file.oldest, file.held, file.set_aside) == (1, 5.0, False, False)
    assert file.bytes == path.stat().st_size


def test_a_file_without_a_parcel_has_its_producer_from_its_name(tmp_path: Path) -> None:
    (tmp_path / segment_name(chain_name(STORE, PRODUCER), 1_000_000)).write_bytes(b"no parcel\n")
    (file,) = listing(tmp_path)
    assert (file.store, file.producer, file.oldest) == (None, PRODUCER, None)


def test_a_line_that_is_being_written_is_skipped(tmp_path: Path) -> None:
    segment = Segment.create(tmp_path / "a.jsonl")
    segment.append(line(STORE, 1.0, 1) + b'{"store"', fsync=False)
    (file,) = listing(tmp_path)
    assert (file.held, file.lines, file.unreadable) == (True, 1, 0)
    segment.close()
    (file,) = listing(tmp_path)
    assert (file.held, file.lines, file.unreadable) == (False, 2, 1)


def test_the_sum_is_of_one_store_without_what_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(line(STORE, 1.0, 1, 2) + b"no parcel\n")
    (tmp_path / "b.jsonl").write_bytes(line(STORE, 1.0, 3))
    (tmp_path / "c.jsonl").write_bytes(line(OTHER, 1.0, 1))
    (tmp_path / "a.failed-1.jsonl").write_bytes(line(STORE, 1.0, 4))
    settings = Settings(spill_dir=tmp_path)
    assert waiting(settings, STORE) == Waiting(str(tmp_path), files=2, lines=3, entries=3, set_aside=1)


def test_a_missing_folder_holds_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "missing"
    assert listing(folder) == []
    assert waiting(Settings(spill_dir=folder), STORE) == Waiting(str(folder))
