"""One version, wherever one looks. That wheel and sdist work by themselves is for ``.ci/release-check``."""

from __future__ import annotations

import re
import tomllib

from typer.testing import CliRunner

import iai_mcp
from iai_mcp.cli.app import app
from iai_mcp.config import Settings
from iai_mcp.server.app import build
from iai_mcp.server.calls import Calls
from tests.support import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_version_stands_in_one_place() -> None:
    assert "version" not in PROJECT["project"]
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "iai_mcp/_version.py"
    spelled = re.compile(rf"[\"']{re.escape(iai_mcp.__version__)}[\"']")
    sources = [path for folder in ("iai_mcp", "workers") for path in (ROOT / folder).rglob("*.py")]
    assert [path.name for path in sources if spelled.search(path.read_text())] == ["_version.py"]


def test_whoever_asks_is_told_that_version() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout == f"iai-mcp {iai_mcp.__version__}\n"
    calls = Calls(Settings(embedder="none"))
    try:
        assert build(calls).version == iai_mcp.__version__
    finally:
        calls.close()


def test_the_wheel_has_both_packages_and_the_sdist_what_proves_them() -> None:
    assert PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["iai_mcp", "workers"]
    assert "sdist" not in PROJECT["tool"]["hatch"]["build"]["targets"]  # all that is in the repository
    ignored = (ROOT / ".gitignore").read_text().split()
    assert not {"*.lua", "*.txt", "*.json", "deploy"} & {*ignored}


def test_every_extra_that_is_named_exists() -> None:
    files = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "iai_mcp").rglob("*.py")]
    named = {
        extra.strip()
        for path in files
        for found in re.findall(r"(?:iai-mcp|\.)\[([a-z, -]+)\]", path.read_text())
        for extra in found.split(",")
    }
    assert {"otel", "test"} <= named <= {*PROJECT["project"]["optional-dependencies"]}
