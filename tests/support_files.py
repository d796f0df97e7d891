"""Makes files of every kind that a folder may hold, for the tests of what reads such folders."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

HUGE = 2**40  # bytes of a sparse file, which takes no room


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.mkdir()


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def _dangling(path: Path) -> None:
    path.symlink_to(path.parent / "missing")


def _outside(path: Path) -> None:
    target = path.parent.parent / f"outside-{path.name}"
    target.write_text('{"text": "a secret outside"}\n')
    path.symlink_to(target)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _huge(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(HUGE)


KINDS: dict[str, Callable[[Path], None]] = {
    "pipe": _pipe,
    "folder": _folder,
    "socket": _socket,
    "dangling": _dangling,
    "outside": _outside,
    "device": _device,
    "huge": _huge,
}
"""Kinds of files that no reader takes; each makes one at a path."""


def make_all(folder: Path, suffix: str) -> dict[str, Path]:
    """One of each kind in ``folder``, named after its kind."""
    made = {kind: folder / f"odd-{kind}{suffix}" for kind in KINDS}
    for kind, path in made.items():
        KINDS[kind](path)
    return made
