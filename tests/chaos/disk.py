"""A disk under ``redis-server`` that forgets what was not synced when the power goes, and syncs slowly on demand.

Needs a C compiler (``cc``) and the dynamic loader of Linux: ``disk.c`` is put before the C library.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.servers import Server

__all__ = ["COMPILER", "Disk", "compiled"]

COMPILER = shutil.which("cc")


def compiled(source: str, folder: Path) -> Path:
    """A library made in ``folder`` from a C file beside this one, to be put before the C library."""
    assert COMPILER is not None, "this needs a C compiler: install one that is called cc"
    library = folder / Path(source).with_suffix(".so")
    path = Path(__file__).with_name(source)
    command = [COMPILER, "-shared", "-fPIC", "-O1", "-Wall", "-o", str(library), str(path), "-ldl"]
    subprocess.run(command, check=True)
    return library


class Disk:
    """The disk of one server; ``folder`` is for what it notes down."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        library = compiled("disk.c", folder)
        self.environment = {"LD_PRELOAD": str(library), "CHAOS_DISK": str(folder)}

    def slow(self, ms: int) -> None:
        """Let every sync take ``ms`` milliseconds longer from now on; 0: as fast as it is."""
        file = self.folder / "delay_ms"
        if ms:
            file.with_suffix(".new").write_text(str(ms))
            file.with_suffix(".new").rename(file)
        else:
            file.unlink(missing_ok=True)

    def cut_power(self, server: Server) -> int:
        """Kill the server and drop what it had not synced; how many bytes that were."""
        server.kill()
        dropped = 0
        for path in (server.folder / "appendonlydir").glob("*.incr.aof"):
            note = self.folder / f"{path.name}.synced"
            kept = int(note.read_text()) if note.exists() else 0
            dropped += path.stat().st_size - kept
            with open(path, "r+b") as file:
                file.truncate(kept)
        return dropped
