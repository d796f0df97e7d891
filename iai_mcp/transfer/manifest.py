"""The manifest of an export or a backup: lists and checks its files.

It is written last, so an unfinished copy has none.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeVar

import msgspec

from iai_mcp.common.files import replace_file
from iai_mcp.common.private import private_folder
from iai_mcp.errors import BrokenCopy, UsageError

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

    name: str
    bytes: int
    sha256: str
    rows: int | None = None


class CopyManifest(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that every manifest has.

    Attributes:
        format: ``iai-mcp-export`` or ``iai-mcp-backup``.
        version: of that format, from 1.
        program: the version of iai-mcp that wrote the copy.
        created_at: ISO 8601, UTC.
    """

    format: str
    version: int
    program: str
    store_id: str
    created_at: str
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
    path = folder / NAME
    return path.is_file() and EXPORT.encode() in path.read_bytes()[:4096]


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
        raw = (folder / NAME).read_bytes()
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
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise BrokenCopy(f"{folder / NAME} is damaged ({error}): take another copy") from None
    for file in found.files:
        path = PurePosixPath(file.name)
        if path.is_absolute() or ".." in path.parts:
            raise BrokenCopy(f"{folder / NAME} names a file outside of its folder: {file.name!r}")
    return found


def listed(folder: Path, path: Path, rows: int | None = None) -> ListedFile:
    """Describe the file ``path``, which lies in ``folder``."""
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return ListedFile(path.relative_to(folder).as_posix(), size, digest.hexdigest(), rows)


def copy(source: Path, folder: Path, name: str) -> ListedFile:
    """Copy ``source`` to ``name`` below ``folder``. The description has the hash of the bytes that were read."""
    target = folder / name
    private_folder(target.parent)
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(source, "rb") as file, os.fdopen(descriptor, "wb") as out:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            out.write(chunk)
            size += len(chunk)
    return ListedFile(name, size, digest.hexdigest())


def check(folder: Path, files: Sequence[ListedFile], show: Callable[[int], object] = lambda done: None) -> None:
    """Compare every file with the manifest. ``show`` is called with the number of files done.

    Raises:
        BrokenCopy: a file is missing or has changed.
    """
    for done, file in enumerate(files, 1):
        try:
            found = listed(folder, folder / file.name)
        except FileNotFoundError:
            raise BrokenCopy(f"{folder / file.name} is missing: take another copy") from None
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
