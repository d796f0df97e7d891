"""Small helpers that several test modules share."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from uuid import UUID

ROOT = Path(__file__).resolve().parent.parent


def wait_until(condition: Callable[[], Any], timeout: float = 5.0) -> Any:
    """The first true value of ``condition()``; fails after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"still not true after {timeout} s: {condition}"
        time.sleep(0.01)
    return value


def entry(cue: object, session: str = "s", **further: Any) -> dict[str, Any]:
    """A provenance entry as a recall makes it."""
    return {"ts": "2026-11-23T12:00:00+00:00", "cue": str(cue), "session_id": session, **further}


def pairs(record_id: UUID, cues: Iterable[object]) -> list[tuple[UUID, dict[str, Any]]]:
    """Entries for one record."""
    return [(record_id, entry(cue)) for cue in cues]


def cues(trail: Iterable[dict[str, Any]]) -> list[str]:
    """The cues of a trail, in order."""
    return [item["cue"] for item in trail]


def python(code: str, *args: object, **env: str) -> subprocess.Popen[str]:
    """A real process that runs ``code``, with pipes."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **env},
    )


def finished(process: subprocess.Popen[str], timeout: float = 60) -> str:
    """What the process printed, once it has ended well."""
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, err
    return out
