"""A few seconds of :mod:`tests.fuzz` for each reader, always the same files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import READERS, attempt, fuzz


@pytest.mark.parametrize("name", READERS)
def test_hostile_files(name: str, tmp_path: Path) -> None:
    attempt(READERS[name], READERS[name].sound, tmp_path)
    fuzz(name, 150, 20261126, tmp_path)
