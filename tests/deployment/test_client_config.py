"""What ``install`` writes for each client and leaves alone, how ``uninstall`` undoes it, and what a hook does."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from iai_mcp.cli.app import app
from iai_mcp.core import dispatch
from iai_mcp.deployment.client_config import ConfigFile, config_file, entry_for, install, uninstall
from iai_mcp.store import MemoryStore

Run = Callable[..., Result]
CLIENTS = ("claude-code", "claude-desktop", "cursor", "codex", "vscode")
LINUX = {
    "claude-code": ".claude.json",
    "claude-desktop": ".config/Claude/claude_desktop_config.json",
    "cursor": ".cursor/mcp.json",
    "codex": ".codex/config.toml",
    "vscode": ".config/Code/User/mcp.json",
}
MAC = {
    **LINUX,
    "claude-desktop": "Library/Application Support/Claude/claude_desktop_config.json",
    "vscode": "Library/Application Support/Code/User/mcp.json",
}
CODEX = """\
# my settings
model = "o9"  # the good one

[mcp_servers.iai-mcp]
command = "old"

[mcp_servers.iai-mcp.env]
IAI_MCP_STORE = "/old"

# the other one
[mcp_servers.other]
command = "other"
args = [
  "[not a table]",
]
"""


@pytest.fixture
def run() -> Run:
    def invoke(*args: str, code: int = 0, stdin: str | None = None) -> Result:
        result = CliRunner().invoke(app, list(args), input=stdin, prog_name="iai-mcp")
        assert result.exit_code == code, (result.output, result.exception)
        return result

    return invoke


def test_what_became_of_the_file_as_json(run: Run, home: Path) -> None:
    told = json.loads(run("install", "cursor", "--json").stdout)
    there = home / ".cursor" / "mcp.json"
    assert (told["client"], told["path"], told["changed"], told["backup"]) == ("cursor", str(there), True, None)
    assert told["message"] == f"wrote iai-mcp into {there}"
    assert json.loads(run("install", "cursor", "--json").stdout)["changed"] is False
    gone = json.loads(run("uninstall", "cursor", "--json").stdout)
    assert gone["changed"] is True
    assert Path(gone["backup"]).exists()
    shown = json.loads(run("install", "codex", "--print", "--json").stdout)
    assert "iai-mcp" in tomllib.loads(shown["configuration"])["mcp_servers"]


def written(place: ConfigFile) -> Any:
    """Our entry in the client's file."""
    text = place.path.read_text()
    return (tomllib.loads(text) if place.toml else json.loads(text))[place.key]["iai-mcp"]


def backups(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}.bak-*"))


@pytest.mark.parametrize(("system", "paths"), [("linux", LINUX), ("darwin", MAC)])
@pytest.mark.parametrize("client", CLIENTS)
def test_each_client_has_its_place(
    client: str, system: str, paths: dict[str, str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    assert config_file(client).path == home / paths[client]


@pytest.mark.parametrize("client", CLIENTS)
def test_an_empty_place_gets_a_file_with_a_command_that_exists(run: Run, client: str, tmp_path: Path) -> None:
    said = run("install", client, "--store", str(tmp_path / "memories")).stdout
    place = config_file(client)
    assert str(place.path) in said
    entry = written(place)
    assert Path(entry["command"]).is_absolute()
    assert Path(entry["command"]).exists()
    assert entry["args"][-1] == "serve"
    assert entry["env"] == {"IAI_MCP_STORE": str(tmp_path / "memories")}
    assert entry.get("type") == (None if client in ("codex", "claude-desktop") else "stdio")
    assert place.path.stat().st_mode & 0o777 == 0o600
    assert backups(place.path) == []
    assert "nothing to do" in run("install", client, "--store", str(tmp_path / "memories")).stdout
    assert backups(place.path) == []
    run("uninstall", client)
    assert not place.path.exists()
    assert "nothing to do" in run("uninstall", client).stdout


def test_other_servers_and_settings_stay(run: Run, home: Path) -> None:
    path = home / ".claude.json"
    before = {"theme": "dark", "mcpServers": {"iai-mcp": {"command": "old"}, "other": {"command": "é"}}, "n": 1.5}
    path.write_text(json.dumps(before, indent=4, ensure_ascii=False))
    path.chmod(0o640)
    said = run("install", "claude-code").stdout
    after = json.loads(path.read_text())
    assert [*after["mcpServers"]] == ["iai-mcp", "other"]
    assert after["mcpServers"]["iai-mcp"]["args"][-1] == "serve"
    assert '\n    "theme"' in path.read_text()
    assert "é" in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o640
    [backup] = backups(path)
    assert str(backup) in said
    assert json.loads(backup.read_text()) == before
    run("uninstall", "claude-code")
    assert json.loads(path.read_text()) == {**before, "mcpServers": {"other": {"command": "é"}}}
    assert len(backups(path)) == 2


def test_codex_keeps_its_comments(home: Path) -> None:
    place = config_file("codex")
    place.path.parent.mkdir()
    place.path.write_text(CODEX)
    install(place, entry_for("codex", store="/new"))
    text = place.path.read_text()
    assert text.startswith('# my settings\nmodel = "o9"  # the good one\n')
    assert "\n# the other one\n[mcp_servers.other]\n" in text
    assert written(place)["env"] == {"IAI_MCP_STORE": "/new"}
    assert tomllib.loads(text)["mcp_servers"]["other"]["args"] == ["[not a table]"]
    uninstall(place)
    left = place.path.read_text()
    assert "iai-mcp" not in left
    assert tomllib.loads(left) == {
        "model": "o9",
        "mcp_servers": {"other": {"command": "other", "args": ["[not a table]"]}},
    }
    assert len(backups(place.path)) == 2


@pytest.mark.parametrize(
    "inline",
    ['mcp_servers = { iai-mcp = { command = "x" } }\n', '[mcp_servers]\niai-mcp.command = "x"\n'],
)
def test_codex_tables_written_in_another_way_are_refused_untouched(run: Run, home: Path, inline: str) -> None:
    path = home / ".codex/config.toml"
    path.parent.mkdir()
    path.write_text(inline)
    assert "cannot be edited here" in run("install", "codex", code=2).stderr
    assert path.read_text() == inline
    assert backups(path) == []


@pytest.mark.parametrize(
    ("client", "content", "why"),
    [
        ("cursor", '{"mcpServers": {', "it is not JSON"),
        ("vscode", '{\n  // mine\n  "servers": {}\n}', "it is not JSON"),
        ("cursor", "[]", "no JSON object"),
        ("claude-code", '{"mcpServers": []}', '"mcpServers" is not an object'),
        ("codex", "model = ", "it is not TOML"),
        ("codex", "mcp_servers = 3", "is not a table"),
        ("cursor", b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_file_that_is_not_understood_is_refused_untouched(
    run: Run, client: str, content: str | bytes, why: str
) -> None:
    path = config_file(client).path
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(raw)
    for command in ("install", "uninstall"):
        error = run(command, client, code=2).stderr
        assert why in error
        assert error.count("\n") == 1
    assert path.read_bytes() == raw
    assert backups(path) == []


def test_print_writes_nothing(run: Run, home: Path) -> None:
    shown = run("install", "vscode", "--print")
    assert json.loads(shown.stdout)["servers"]["iai-mcp"]["type"] == "stdio"
    assert "mcp.json" in shown.stderr
    assert tomllib.loads(run("install", "codex", "--print").stdout)["mcp_servers"]["iai-mcp"]
    assert [*home.iterdir()] == []


def test_a_project_has_its_own_files(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run("install", "claude-code", "--scope", "project")
    assert "iai-mcp" in json.loads((tmp_path / ".mcp.json").read_text())["mcpServers"]
    assert "leave --scope out" in run("install", "claude-desktop", "--scope", "project", code=2).stderr


def test_a_url_replaces_the_command_and_a_token_is_named_but_never_written(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "http://127.0.0.1:8765/mcp"
    assert entry_for("claude-code", url=url) == {"type": "http", "url": url}
    monkeypatch.setenv("IAI_MCP_TOKEN", "s3cret")
    assert entry_for("claude-code", url=url)["headers"] == {"Authorization": "Bearer ${IAI_MCP_TOKEN}"}
    assert entry_for("cursor", url=url)["headers"] == {"Authorization": "Bearer ${env:IAI_MCP_TOKEN}"}
    assert entry_for("codex", url=url) == {"url": url, "bearer_token_env_var": "IAI_MCP_TOKEN"}
    run("install", "codex", "--http", url)
    assert "s3cret" not in config_file("codex").path.read_text()
    assert "not an HTTP URL" in run("install", "cursor", "--http", "localhost:8765", code=2).stderr
    assert "leave --http out" in run("install", "claude-desktop", "--http", url, code=2).stderr
    assert "leave --store out" in run("install", "cursor", "--http", url, "--store", "x", code=2).stderr


def test_a_link_stays_a_link(home: Path, tmp_path: Path) -> None:
    real = tmp_path / "dotfiles.json"
    real.write_text("{}")
    (home / ".claude.json").symlink_to(real)
    install(config_file("claude-code"), entry_for("claude-code"))
    assert (home / ".claude.json").is_symlink()
    assert "iai-mcp" in real.read_text()


def test_without_a_script_the_interpreter_is_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    entry = entry_for("cursor")
    assert (entry["command"], entry["args"]) == (str(tmp_path / "python"), ["-m", "iai_mcp", "serve"])


# -- hooks


def test_hooks_capture_the_turns_and_recall_them_in_the_next_session(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IAI_MCP_EMBEDDER", "none")
    folder = str(tmp_path / "store")
    transcript = tmp_path / "first.jsonl"
    said = {
        "type": "user",
        "sessionId": "first",
        "message": {"role": "user", "content": "Decisions in shop: use tabs"},
    }
    transcript.write_text(json.dumps(said) + "\n")
    stop = json.dumps({"hook_event_name": "Stop", "session_id": "first", "transcript_path": str(transcript)})
    for _ in range(2):  # a turn is kept once, however often the hook runs
        assert run("hook", "--store", folder, stdin=stop).stdout == ""
    store = MemoryStore(folder)
    assert store.count() == 1

    start = json.dumps({"hook_event_name": "SessionStart", "session_id": "second", "cwd": str(tmp_path / "shop")})
    context = run("hook", "--store", folder, stdin=start).stdout
    assert "use tabs" in context
    [entry] = dispatch(store, "memory_provenance")["entries"]
    assert entry["recall_id"] in context
    asked = (entry["session_id"], entry["client"], entry["cue"])
    assert asked == ("second", "claude-code-hook", "Decisions, preferences and open work in shop")


def test_a_hook_that_fails_never_blocks(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "not a hook event" in run("hook", stdin="[]", code=1).stderr
    assert run("hook", stdin='{"hook_event_name": "Stop"}').stdout == ""
    monkeypatch.setenv("IAI_MCP_LOG", "loud")
    assert "IAI_MCP_LOG" in run("hook", stdin='{"hook_event_name": "SessionStart"}', code=1).stderr
