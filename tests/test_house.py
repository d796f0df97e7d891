"""The plan of the house: small modules, a picture that is current, tests that mirror the packages."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

SOURCES = sorted([*(ROOT / "iai_mcp").rglob("*.py"), *(ROOT / "workers").rglob("*.py")])
MOST_LINES, MOST_IN_A_FUNCTION = 400, 50


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_and_its_functions_are_short_and_say_what_they_own(path: Path) -> None:
    source = path.read_text()
    assert source.count("\n") <= MOST_LINES
    tree = ast.parse(source)
    assert ast.get_docstring(tree), "a module opens with one sentence: what it owns"
    long = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > MOST_IN_A_FUNCTION
    }
    assert long == {}


def test_the_picture_of_the_architecture_is_current() -> None:
    command = [sys.executable, "-m", "tools.architecture_picture", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_folders_of_tests_mirror_the_packages() -> None:
    rooms = {"chaos"}  # the fault suite goes through all rooms
    for folder in (ROOT / "tests").rglob("__init__.py"):
        name = folder.parent.relative_to(ROOT / "tests")
        if name.parts and name.parts[0] not in rooms:
            there = (ROOT / "iai_mcp" / name, ROOT / name)
            assert any((one / "__init__.py").exists() for one in there), name
