"""What CONTRIBUTING.md, the task runner, CI and the site's menu say of each other."""

from __future__ import annotations

import re

from tests.support import ROOT


def test_the_sessions_of_nox_are_those_that_contributing_describes() -> None:
    sessions = re.findall(r"^@nox\.session\ndef (\w+)", (ROOT / "noxfile.py").read_text(), re.MULTILINE)
    said = (ROOT / "CONTRIBUTING.md").read_text()
    assert sorted(re.findall(r"^\| `nox -s (\w+)` \|", said, re.MULTILINE)) == sorted(sessions)
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob(".github/*.md"), ROOT / ".ci" / "run"]:
        for named in re.findall(r"\bnox -s ((?:\w+ ?)+)", path.read_text()):
            assert {*named.split()} <= {*sessions}, path.name


def test_ci_runs_the_test_command_of_the_readme() -> None:
    (command,) = re.findall(r"^pip install .*pytest$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_every_page_is_in_the_menu_of_the_site() -> None:
    menu = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    wanted = [path.name for path in (ROOT / "docs").glob("*.md")]
    assert [name for name in wanted if f": {name}\n" not in menu] == []
