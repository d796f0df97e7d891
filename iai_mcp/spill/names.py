"""The names of spill files: the only module that builds and parses them.

- ``STORE8-PRODUCER16-NUMBER.jsonl`` is a segment. The segments of one store and one producer are a chain.
- ``STORE8-PRODUCER16.spare`` is an empty file, made ahead, that will become a segment.
- ``STEM.failed-NANOSECONDS.jsonl`` is set aside: it holds lines that are no entries, for people to look at.

STORE8 is the start of the store's id. Any other ``.jsonl`` file is a segment too, and a chain by itself. Names
group the files; their lines say which store the entries belong to.

Only regular files count. Anything else under such a name is an *odd file*: it is named once, and passed over.
"""

from __future__ import annotations

import logging
import re
import time
from dataclasses import dataclass
from pathlib import Path

from iai_mcp.common.regular_files import odd_kind
from iai_mcp.telemetry.events import emit

__all__ = [
    "SEGMENT_MAX",
    "SET_ASIDE_PATTERN",
    "OddFile",
    "SpillName",
    "chain_name",
    "files_in",
    "is_spare",
    "name_for_store",
    "odd_files",
    "parse",
    "pass_over",
    "segment_name",
    "set_aside_path",
    "spare_name",
    "store_prefix",
]

SET_ASIDE_PATTERN = "*.failed-*"  # for people and their shells
SEGMENT_MAX = 512 * 2**20  # bytes; Redis takes no longer text, and no file of ours is larger
_SUFFIX = ".jsonl"
_SPARE = ".spare"
_ASIDE = ".failed-"
_NAME = re.compile(r"(?P<chain>[0-9a-f]{8}-(?P<producer>[0-9a-f]{16}))-(?P<number>\d{7,})(\.failed-\d+)?\.jsonl")


@dataclass(frozen=True, slots=True)
class SpillName:
    """A parsed name.

    Attributes:
        chain: the same for all segments of a chain.
        producer: key of the producer; None in a foreign name.
        number: the segment's place in its chain; 0 in a foreign name.
        set_aside: whether the file is out of the way for people to look at.
    """

    chain: str
    producer: str | None
    number: int
    set_aside: bool


@dataclass(frozen=True, slots=True)
class OddFile:
    """What has the name of a spill file and is none.

    Attributes:
        kind: what it is, such as "a pipe", "a folder" or "a link".
    """

    path: Path
    kind: str


def parse(name: str) -> SpillName | None:
    """The parts of a file name; None where it names neither a segment nor a file set aside."""
    if not name.endswith(_SUFFIX) or name.startswith("."):
        return None
    found = _NAME.fullmatch(name)
    aside = _ASIDE in name
    if found is None:
        return SpillName(name, None, 0, aside)
    return SpillName(found["chain"], found["producer"], int(found["number"]), aside)


def files_in(folder: Path) -> list[tuple[Path, SpillName]]:
    """The segments and the files set aside in ``folder``, by name; none where there is no such folder.

    Raises:
        OSError: the folder cannot be read.
    """
    found = []
    for path in _paths(folder):
        if (name := parse(path.name)) is not None:
            if (kind := _kind(path)) is None:
                found.append((path, name))
            elif kind:
                pass_over(path, kind)
    return found


def odd_files(folder: Path) -> list[OddFile]:
    """What stands under the name of a spill file in ``folder`` and is no regular file, or larger than one can be.

    Raises:
        OSError: the folder cannot be read.
    """
    named = [path for path in _paths(folder) if parse(path.name) is not None or is_spare(path.name)]
    return [OddFile(path, kind) for path in named if (kind := _kind(path))]


def pass_over(path: Path, kind: str) -> None:
    """Say once in this process that ``path`` is passed over, and why."""
    if (path, kind) not in _told and len(_told) < _TOLD_MAX:
        _told.add((path, kind))
        emit("spill_passed_over", level=logging.WARNING, file=path.name, kind=kind)


_told: set[tuple[Path, str]] = set()
_TOLD_MAX = 1000  # names


def _paths(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _kind(path: Path) -> str | None:
    """What ``path`` is; None for a regular file, and "" where it has just gone."""
    try:
        return odd_kind(path, SEGMENT_MAX)
    except FileNotFoundError:
        return ""


def store_prefix(store_id: str) -> str:
    """The start of every name that this store's producers give."""
    return f"{store_id[:8]}-"


def chain_name(store_id: str, producer: str) -> str:
    """The chain of a producer."""
    return f"{store_prefix(store_id)}{producer}"


def segment_name(chain: str, number: int) -> str:
    """The name of a chain's segment. Names sort as their numbers do, as long as these have seven digits."""
    return f"{chain}-{number:07d}{_SUFFIX}"


def spare_name(chain: str) -> str:
    """The name of the file that a chain's producer makes ahead."""
    return f"{chain}{_SPARE}"


def is_spare(name: str) -> bool:
    """Whether a file was made ahead; entries are never in it."""
    return name.endswith(_SPARE)


def set_aside_path(path: Path) -> Path:
    """A new name, beside ``path``, for a malformed file or for its malformed lines."""
    return path.with_name(f"{path.name.removesuffix(_SUFFIX)}{_ASIDE}{time.time_ns()}{_SUFFIX}")


def name_for_store(name: str, old_id: str, new_id: str) -> str:
    """The name of a copy of the file whose lines name another store."""
    old, new = store_prefix(old_id), store_prefix(new_id)
    return f"{new}{name.removeprefix(old)}" if name.startswith(old) else name
