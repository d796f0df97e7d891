"""Checks that a store's folder holds folders and regular files only: a link would lead writes out of it.

A store may have come from a stranger. A table that is a link would change another store, and a pipe among a
table's files would hold LanceDB up for ever.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from iai_mcp.common.regular_files import odd_kind, require_folder
from iai_mcp.errors import DamagedStore, UnfitFile
from iai_mcp.storage.layout import Layout

__all__ = ["check_folder", "check_table"]


def check_folder(layout: Layout) -> None:
    """Check the folders of an existing store, and the logs beside its tables.

    Raises:
        DamagedStore: one of them is a link, or of another kind.
        OSError: the folder cannot be read.
    """
    for folder in (layout.locks, layout.scratch):
        _check(folder)
    for log in (layout.tombstones, layout.exclusions, layout.producers, layout.dead_letters):
        try:
            kind = odd_kind(log)
        except FileNotFoundError:
            continue
        if kind is not None:
            raise DamagedStore(f"{log} is {kind} and no regular file: move it away, or restore a backup")


def check_table(folder: Path) -> None:
    """Check all that lies in the folder of a table; a missing one is sound.

    Raises:
        DamagedStore: there is a link, a pipe, a socket or a device.
        OSError: a folder cannot be read.
    """
    _check(folder)
    for path in _odd_below(str(folder)):
        raise DamagedStore(f"{path} is no regular file: move it away, or restore a backup")


def _check(folder: Path) -> None:
    try:
        require_folder(folder)
    except UnfitFile as error:
        raise DamagedStore(f"{error}: move it away, or restore a backup") from None


def _odd_below(folder: str) -> Iterator[str]:
    try:
        found = os.scandir(folder)
    except FileNotFoundError:  # LanceDB has just removed it
        return
    with found:
        for one in found:
            if one.is_dir(follow_symlinks=False):
                yield from _odd_below(one.path)
            elif not one.is_file(follow_symlinks=False):
                yield one.path
