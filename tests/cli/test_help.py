"""Every command says how it is used, speaks JSON where it has a result, and is completed by the shell."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from iai_mcp.cli.app import app

# What runs until it is stopped, or prints for whoever started it, has no document to give.
NO_RESULT = {"serve", "worker", "up", "hook"}
SHELLS = ("bash", "zsh", "fish")


def walk(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command below ``command`` with its path, groups included."""
    if path:
        yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from walk(below, (*path, name))


ROOT = get_command(app)
ALL = dict(walk(ROOT))
GROUPS = {path for path, command in ALL.items() if hasattr(command, "commands")}


def options(command: Any) -> set[str]:
    return {name for parameter in command.params for name in parameter.opts}


def help_of(*path: str) -> str:
    result = CliRunner().invoke(app, [*path, "--help"], prog_name="iai-mcp")
    assert result.exit_code == 0, result.output
    return result.stdout


def example_of(command: Any) -> list[str]:
    """The words of the example, from the program's name on."""
    said = (command.epilog or "").partition("Example: ")[2].split(" (")[0].split(" < ")[0]
    words = shlex.split(said)
    while words and "=" in words[0]:  # settings in front of it
        words.pop(0)
    return words


def test_the_walk_finds_them_all() -> None:
    assert {("provenance",), ("dead", "retry"), ("spill", "list"), ("install",), ("worker",)} <= ALL.keys()
    said = CliRunner().invoke(app, [], prog_name="iai-mcp").stdout
    for path in ALL:
        if len(path) == 1:
            assert f" {path[0]} " in said


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_help_says_what_it_does_and_shows_an_example(path: tuple[str, ...]) -> None:
    said = help_of(*path)
    assert "Example: " in said
    assert f"Usage: iai-mcp {' '.join(path)}" in said
    assert (ALL[path].help or "").strip().endswith(".")
    for parameter in ALL[path].params:
        if parameter.param_type_name == "option":
            assert parameter.help, f"{parameter.name} has no help"


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_an_example_parses(path: tuple[str, ...]) -> None:
    """It names the command (or, for a group, one below it) and only options and values that there are."""
    program, *words = example_of(ALL[path])
    assert program == "iai-mcp"
    assert tuple(words[: len(path)]) == path
    command, context = ROOT, None
    while hasattr(command, "commands"):
        context = command.make_context(
            words[0] if words else "iai-mcp", [], parent=context, resilient_parsing=True
        )
        command = command.commands[words.pop(0)]
    command.make_context(command.name, words, parent=context)


@pytest.mark.parametrize("path", sorted(ALL.keys() - GROUPS), ids=" ".join)
def test_whatever_prints_a_result_prints_json_too(path: tuple[str, ...]) -> None:
    assert ("--json" in options(ALL[path])) is (path[0] not in NO_RESULT)


# --- completion ------------------------------------------------------------------------------------------


def ours(*args: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "iai_mcp", *args],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("shell", SHELLS)
def test_show_completion_prints_a_script_for_each_shell(shell: str) -> None:
    said = ours("--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert f"_IAI_MCP_COMPLETE=complete_{shell}" in said
    assert "iai-mcp" in said


def test_install_completion_writes_the_shells_own_file(home: Path) -> None:
    ours("--install-completion", "fish", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "complete_fish" in (home / ".config" / "fish" / "completions" / "iai-mcp.fish").read_text()


def completed(words: str, shell: str = "bash") -> str:
    """What the shell is offered for the last of ``words``."""
    env = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    env |= {"_TYPER_COMPLETE_ARGS": words, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    return ours(_IAI_MCP_COMPLETE=f"complete_{shell}", **env)


@pytest.mark.parametrize("shell", SHELLS)
def test_values_are_completed_without_a_store(shell: str, home: Path) -> None:
    offered = completed("iai-mcp provenance --format ", shell)
    for name in ("table", "json", "jsonl", "csv", "parquet"):
        assert name in offered
    assert not (home / ".iai-mcp").exists()


def test_commands_options_and_clients_are_completed() -> None:
    assert completed("iai-mcp install c").split() == ["claude-code", "claude-desktop", "cursor", "codex"]
    assert completed("iai-mcp prov").split() == ["provenance"]
    assert completed("iai-mcp provenance --fo").split() == ["--follow", "--format"]


def test_bash_itself_completes_with_the_script(tmp_path: Path) -> None:
    """The function that the script defines, run by a real shell with a program of that name on its path."""
    program = tmp_path / "iai-mcp"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m iai_mcp "$@"\n')
    program.chmod(0o755)
    script = ours("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    ask = f"PATH={tmp_path}:$PATH\n{script}\nCOMP_WORDS=(iai-mcp uninstall v)\nCOMP_CWORD=2\n"
    ask += '_iai_mcp_completion iai-mcp\nprintf "%s" "${COMPREPLY[*]}"'
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "vscode"
