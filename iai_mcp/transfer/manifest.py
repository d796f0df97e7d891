"""The manifest of an export or a backup: lists and checks its files.

It is written last, so an unfinished copy has none.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Annotated, BinaryIO, TypeVar

import msgspec

from iai_mcp.common.files import replace_file
from iai_mcp.common.private import private_folder
from iai_mcp.common.regular_files import DOCUMENT_MAX, read_regular, reading, require_folder
from iai_mcp.common.times import parse_ts
from iai_mcp.errors import BrokenCopy, UnfitFile, UsageError
from iai_mcp.storage.meta import COUNT_MAX, Name, StoreId

__all__ = [
    "BACKUP",
    "ENTRY_FILES",
    "EXPORT",
    "NAME",
    "RECORD_FILES",
    "CopyManifest",
    "ListedFile",
    "check",
    "copy",
    "is_export",
    "listed",
    "new_folder",
    "opened",
    "read",
    "same_file",
    "save",
    "total",
]

NAME = "manifest.json"
BACKUP, EXPORT = "iai-mcp-backup", "iai-mcp-export"  # formats
RECORD_FILES, ENTRY_FILES = "records", "provenance"  # of an export: records-0000.parquet, ...
_CHUNK = 2**20


class ListedFile(msgspec.Struct, frozen=True, omit_defaults=True):
    """One file: its path within the folder, its size in bytes, its SHA-256 and, for tables, its number of rows."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]
    bytes: Annotated[int, msgspec.Meta(ge=0, le=2**62)]
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
    rows: Annotated[int, msgspec.Meta(ge=0, le=COUNT_MAX)] | None = None


class CopyManifest(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that every manifest has.

    Attributes:
        format: ``iai-mcp-export`` or ``iai-mcp-backup``.
        version: of that format, from 1.
        program: the version of iai-mcp that wrote the copy.
        created_at: ISO 8601, UTC.
    """

    format: str
    version: Annotated[int, msgspec.Meta(ge=1)]
    program: Name
    store_id: StoreId
    created_at: Annotated[str, msgspec.Meta(max_length=100)]
    files: list[ListedFile]


AnyManifest = TypeVar("AnyManifest", bound=CopyManifest)


def new_folder(path: Path, what: str, store: Path) -> None:
    """Make the folder ``path`` for a copy; ``what`` names the copy in messages.

    Raises:
        UsageError: it is not empty, it is no folder, or it lies inside ``store``.
        OSError: it cannot be made.
    """
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is no folder: name a new or an empty one for {what}")
    if path.is_dir() and any(path.iterdir()):
        raise UsageError(f"{path} is not empty: name a new or an empty folder for {what}")
    if path.resolve().is_relative_to(store.resolve()):
        raise UsageError(f"{path} lies inside the store: name a folder elsewhere for {what}")
    private_folder(path)


def is_export(folder: Path) -> bool:
    """Whether ``folder`` is an export, finished or not: it holds our Parquet files, or our manifest."""
    if not folder.is_dir():
        return False
    if any(any(folder.glob(f"{name}-*.parquet")) for name in (RECORD_FILES, ENTRY_FILES)):
        return True
    with suppress(OSError), reading(folder / NAME) as file:
        return EXPORT.encode() in file.read(4096)
    return False


def save(folder: Path, manifest: CopyManifest) -> None:
    """Write the manifest durably, which completes the copy."""
    replace_file(folder / NAME, msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")


def read(folder: Path, kind: type[AnyManifest], name: str, version: int) -> AnyManifest:
    """Read the manifest of a copy of the format ``name``.

    Raises:
        BrokenCopy: there is none, it is damaged, or it has another format or a later version.
    """
    what = name.removeprefix("iai-mcp-")
    try:
        raw = read_regular(folder / NAME, DOCUMENT_MAX)
    except UnfitFile as error:
        raise BrokenCopy(f"{error}: take another copy") from None
    except (FileNotFoundError, NotADirectoryError):
        raise BrokenCopy(
            f"{folder} holds no {NAME}, which is written last: the {what} was not finished, or this is no {what}"
        ) from None
    try:
        head = msgspec.json.decode(raw)
        if head["format"] != name:
            raise BrokenCopy(f"{folder} is an {head['format']}, not an {name}")
        if head["version"] > version:
            raise BrokenCopy(f"a later iai-mcp ({head['program']}) wrote {folder}: upgrade to read it")
        found = msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError) as error:
        raise BrokenCopy(f"{folder / NAME} is damaged ({error}): take another copy") from None
    if parse_ts(found.created_at) is None:
        raise BrokenCopy(f"{folder / NAME} gives no time: take another copy")
    _check_names(folder, found.files)
    return found


def _check_names(folder: Path, files: Sequence[ListedFile]) -> None:
    """Refuse names that lead out of the folder, come twice, or need another file to be a folder."""
    seen: set[str] = set()
    for file in files:
        path = PurePosixPath(file.name)
        if path.is_absolute() or ".." in path.parts:
            raise BrokenCopy(f"{folder / NAME} names a file outside of its folder: {file.name!r}")
        if str(path) != file.name or "\x00" in file.name or file.name in seen:
            raise BrokenCopy(f"{folder / NAME} names a file that no copy has, or twice: {file.name!r}")
        seen.add(file.name)
    if any(str(parent) in seen for name in seen for parent in PurePosixPath(name).parents):
        raise BrokenCopy(f"{folder / NAME} names a file and files below it")


def listed(folder: Path, path: Path, rows: int | None = None) -> ListedFile:
    """Describe the file ``path``, which lies in ``folder``."""
    digest, size = hashlib.sha256(), 0
    with opened(folder, path) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return ListedFile(path.relative_to(folder).as_posix(), size, digest.hexdigest(), rows)


def opened(folder: Path, path: Path) -> BinaryIO:
    """A regular file below ``folder``, open for reading; no folder on the way to it may be a link.

    Raises:
        UnfitFile: it is something else.
    """
    for parent in path.relative_to(folder).parents[:-1]:
        require_folder(folder / parent)
    return reading(path)


def copy(source: Path, folder: Path, name: str, limit: int | None = None) -> ListedFile:
    """Copy ``source`` to ``name`` below ``folder``. The description has the hash of the bytes that were read.

    Raises:
        UnfitFile: it is no regular file, or larger than ``limit`` bytes.
        OSError: it cannot be copied.
    """
    target = folder / name
    private_folder(target.parent)
    digest, size = hashlib.sha256(), 0
    with reading(source, limit=limit) as file, open(target, "xb", opener=_private) as out:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            out.write(chunk)
            size += len(chunk)
    return ListedFile(name, size, digest.hexdigest())


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def check(folder: Path, files: Sequence[ListedFile], show: Callable[[int], object] = lambda done: None) -> None:
    """Compare every file with the manifest. ``show`` is called with the number of files done.

    Raises:
        BrokenCopy: a file is missing or has changed.
    """
    for done, file in enumerate(files, 1):
        try:
            if os.lstat(folder / file.name).st_size != file.bytes:
                raise BrokenCopy(f"{folder / file.name} is damaged (its size differs): take another copy")
            found = listed(folder, folder / file.name)
        except (FileNotFoundError, NotADirectoryError):
            raise BrokenCopy(f"{folder / file.name} is missing: take another copy") from None
        except UnfitFile as error:
            raise BrokenCopy(f"{error}: take another copy") from None
        same_file(folder, file, found)
        show(done)


def same_file(folder: Path, file: ListedFile, found: ListedFile) -> None:
    """Compare the description of a file with the manifest's.

    Raises:
        BrokenCopy: the file has changed.
    """
    if (found.bytes, found.sha256) != (file.bytes, file.sha256):
        raise BrokenCopy(f"{folder / file.name} is damaged (its SHA-256 differs): take another copy")


def total(files: Iterable[ListedFile]) -> int:
    """Bytes of all files."""
    return sum(file.bytes for file in files)
