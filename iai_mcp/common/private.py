"""Files that only their owner may read, whatever the umask."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

__all__ = ["new_private", "private_folder", "write_for_owner_only"]


def write_for_owner_only() -> None:
    """Take every right of others off the files that this process and its children make from now on.

    For programs. A library leaves the umask of its process alone.
    """
    os.umask(0o077)


def new_private(path: Path) -> BinaryIO:
    """Make a file that only its owner may read, and open it for writing.

    Raises:
        OSError: the file is there already, or cannot be made.
    """
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def private_folder(path: Path) -> None:
    """Make the folder and those above it that are missing, each for its owner only; one that is there stays.

    Raises:
        OSError: a folder cannot be made, or a file has its name.
    """
    try:
        path.mkdir(mode=0o700)
    except FileNotFoundError:
        private_folder(path.parent)  # ``mkdir(parents=True)`` would give it other rights
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError:
        if not path.is_dir():
            raise
