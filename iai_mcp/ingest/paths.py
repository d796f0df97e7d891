"""Finds the files to read below given paths: regular ones, and none outside of a folder that is named.

A path that is given may be a link itself. A link in a folder is followed only within that folder, unless the
caller allows more.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Found", "files_below"]


@dataclass(frozen=True, slots=True)
class Found:
    """A file to read, or a path that is left out and the reason."""

    path: Path
    left_out: str = ""


def files_below(folder: Path, suffixes: Collection[str], *, follow_links: bool = False) -> Iterator[Found]:
    """The files with these suffixes below ``folder``, in sorted order, without hidden ones.

    Args:
        follow_links: read links that lead out of the folder, too, and go into linked folders.
    """
    root = os.path.realpath(folder)
    yield from _below(folder, suffixes, root, None if not follow_links else {_identity(root)})


def _below(
    folder: Path, suffixes: Collection[str], root: str, seen: set[tuple[int, int]] | None
) -> Iterator[Found]:
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        yield Found(folder, f"cannot be read: {error.strerror}")
        return
    folders = []
    for name in names:
        path = folder / name
        is_link = os.path.islink(path)
        if os.path.isdir(path):
            if not is_link:
                folders.append(path)
            elif seen is None:
                yield Found(path, "is a link to a folder: --follow-links reads it")
            elif (identity := _identity(path)) not in seen:  # a link to a folder above would never end
                seen.add(identity)
                folders.append(path)
        elif path.suffix.lower() in suffixes:
            outside = is_link and seen is None and not _is_within(path, root)
            yield Found(path, "is a link that leads out of the folder: --follow-links reads it" if outside else "")
    for one in folders:
        yield from _below(one, suffixes, root, seen)


def _is_within(path: Path, root: str) -> bool:
    return os.path.commonpath([os.path.realpath(path), root]) == root


def _identity(path: str | Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino
