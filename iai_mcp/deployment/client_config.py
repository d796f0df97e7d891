"""Owns the entry of this server in the configuration files of MCP clients: adds it and removes it.

All other content of a file stays. Every change leaves a backup beside the file and replaces the file whole. A file
that cannot be parsed is refused and stays as it is.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from iai_mcp.common.files import replace_file
from iai_mcp.common.private import private_folder
from iai_mcp.config import Settings, home
from iai_mcp.errors import UsageError

__all__ = ["NAME", "Change", "ConfigFile", "config_file", "entry_for", "install", "rendered", "uninstall"]

NAME = "iai-mcp"
Entry = dict[str, Any]

_KEY = {"vscode": "servers", "codex": "mcp_servers"}  # the others: mcpServers
_PROJECT = {
    "claude-code": ".mcp.json",
    "cursor": ".cursor/mcp.json",
    "vscode": ".vscode/mcp.json",
    "codex": ".codex/config.toml",
}
_HEADER = re.compile(r"\s*\[")
_OURS = re.compile(rf"""\s*\[\s*mcp_servers\s*\.\s*(["']?){re.escape(NAME)}\1\s*(\.[^\]]*)?\]\s*(#.*)?""")


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """One client's configuration file and the key under which it lists servers."""

    client: str
    path: Path
    key: str

    @property
    def toml(self) -> bool:
        return self.path.suffix == ".toml"


@dataclass(frozen=True, slots=True)
class Change:
    """The result of an edit.

    Attributes:
        message: what was done, in words.
        changed: whether the file's content differs now.
        backup: a copy of the file before the change; None if there was no file or no change.
        next_step: what the user must do now; empty if nothing.
    """

    message: str
    changed: bool = False
    backup: Path | None = None
    next_step: str = ""

    def __str__(self) -> str:
        saved = f"backup of the old file: {self.backup}" if self.backup else ""
        return "\n".join(line for line in (self.message, saved, self.next_step) if line)


def config_file(client: str, scope: str = "user") -> ConfigFile:
    """The file where ``client`` lists its servers; ``scope``: for the user, or for the project in this folder.

    Raises:
        UsageError: the client has no configuration for projects.
    """
    if scope == "project":
        if client not in _PROJECT:
            raise UsageError(f"{client} has no configuration for projects: leave --scope out")
        path = Path.cwd() / _PROJECT[client]
    else:
        path = _user_path(client)
    return ConfigFile(client, path, _KEY.get(client, "mcpServers"))


def _user_path(client: str) -> Path:
    support = home() / ("Library/Application Support" if sys.platform == "darwin" else ".config")
    return {
        "claude-code": home() / ".claude.json",
        "claude-desktop": support / "Claude" / "claude_desktop_config.json",
        "cursor": home() / ".cursor" / "mcp.json",
        "codex": home() / ".codex" / "config.toml",
        "vscode": support / "Code" / "User" / "mcp.json",
    }[client]


# -- the entry


def entry_for(client: str, *, store: str | None = None, url: str | None = None) -> Entry:
    """This server in the form that ``client`` reads: a command to start, or the ``url`` of a running server.

    It never contains a token. If ``IAI_MCP_TOKEN`` is set now, it names that variable.

    Raises:
        UsageError: ``store`` is empty, ``url`` is not an HTTP URL, both are given, or the client takes no URL.
    """
    if store == "":
        raise UsageError("--store is empty: give a folder, or leave it out for the default store")
    if url is not None:
        if store is not None:
            raise UsageError("--http names a running server, which has its store: leave --store out")
        return _remote(client, url)
    command, *args = _command()
    entry: Entry = {"command": command, "args": [*args, "serve"]}
    if store is not None:
        entry["env"] = {"IAI_MCP_STORE": str(Path(store).expanduser().absolute())}
    return entry if client in ("codex", "claude-desktop") else {"type": "stdio", **entry}


def _command() -> list[str]:
    script = Path(sys.executable).parent / NAME  # not resolved: this path selects the virtual environment
    return [str(script)] if script.is_file() else [sys.executable, "-m", "iai_mcp"]


def _remote(client: str, url: str) -> Entry:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"--http {url[:200]!r} is not an HTTP URL: give one such as http://127.0.0.1:8765/mcp")
    if client == "claude-desktop":
        raise UsageError("claude-desktop starts its servers: leave --http out, or add a connector in its settings")
    with_token = bool(Settings.load().token)
    if client == "codex":
        return {"url": url, **({"bearer_token_env_var": "IAI_MCP_TOKEN"} if with_token else {})}
    variable = "${IAI_MCP_TOKEN}" if client == "claude-code" else "${env:IAI_MCP_TOKEN}"
    headers = {"headers": {"Authorization": f"Bearer {variable}"}} if with_token else {}
    return {"type": "http", "url": url, **headers}


def rendered(file: ConfigFile, entry: Entry) -> str:
    """The content that :func:`install` would write into an empty file."""
    return _toml_table(entry) if file.toml else _json({file.key: {NAME: entry}}, "  ")


# -- the files


def install(file: ConfigFile, entry: Entry) -> Change:
    """Write ``entry`` into the client's file.

    Raises:
        UsageError: the file cannot be parsed or edited; it stays as it is.
    """
    old = _read(file)
    new = _toml_with(file, old, entry) if file.toml else _json_with(file, old, entry)
    if new == old:
        return Change(f"{file.path} has this entry already: nothing to do")
    backup = _write(file.path, new)
    return Change(f"wrote {NAME} into {file.path}", True, backup, f"Restart {file.client} to load it.")


def uninstall(file: ConfigFile) -> Change:
    """Remove this server from the client's file; a file with nothing else in it is deleted.

    Raises:
        UsageError: the file cannot be parsed or edited; it stays as it is.
    """
    old = _read(file)
    new = _toml_with(file, old, None) if file.toml else _json_with(file, old, None)
    if new == old:
        return Change(f"{file.path} has no such entry: nothing to do")
    backup = _write(file.path, new)
    return Change(f"removed {NAME} from {file.path}", True, backup, f"Restart {file.client} to unload it.")


def _read(file: ConfigFile) -> str:
    try:
        return file.path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError:
        raise _refused(file, "it is not UTF-8 text") from None


def _refused(file: ConfigFile, why: str) -> UsageError:
    return UsageError(f"{file.path}: {why}; the file was not changed (--print shows what to add by hand)")


def _write(path: Path, text: str) -> Path | None:
    """Replace the file, or delete it if ``text`` is blank; returns the backup's path, if there was a file."""
    path = path.resolve()  # a symbolic link stays a link
    backup = _backed_up(path) if path.exists() else None
    if not text.strip():
        path.unlink(missing_ok=True)
        return backup
    private_folder(path.parent)
    replace_file(path, text.encode(), mode=path.stat().st_mode & 0o777 if path.exists() else 0o600)
    return backup


def _backed_up(path: Path) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
    backup = path.with_name(f"{path.name}.bak-{stamp}")
    shutil.copy2(path, backup)
    return backup


# -- JSON


def _json_with(file: ConfigFile, old: str, entry: Entry | None) -> str:
    document = _json_document(file, old)
    servers = document.get(file.key, {})
    if not isinstance(servers, dict):
        raise _refused(file, f'its "{file.key}" is not an object')
    if servers.get(NAME) == entry:
        return old
    rest = {name: server for name, server in servers.items() if name != NAME}
    if entry is None and not rest:
        document.pop(file.key)
        return _json(document, _indent(old)) if document else ""
    # A replaced entry keeps its position in the file.
    document[file.key] = {**servers, NAME: entry} if entry is not None else rest
    return _json(document, _indent(old))


def _json_document(file: ConfigFile, text: str) -> dict[str, Any]:
    if not text.strip():
        return {}
    try:
        document = json.loads(text)
    except ValueError as error:
        raise _refused(file, f"it is not JSON ({error})") from None
    if not isinstance(document, dict):
        raise _refused(file, "it holds no JSON object")
    return document


def _json(document: Mapping[str, Any], indent: str) -> str:
    return json.dumps(document, indent=indent, ensure_ascii=False) + "\n"


def _indent(text: str) -> str:
    found = re.search(r"^([ \t]+)\S", text, re.MULTILINE)
    return found[1] if found else "  "


# -- TOML, edited as text so that comments survive


def _toml_with(file: ConfigFile, old: str, entry: Entry | None) -> str:
    before = _toml_document(file, old)
    if before.get(file.key, {}).get(NAME) == entry:
        return old
    lines = _without_ours(old.splitlines(keepends=True))
    new = "".join(lines)
    if entry is not None:
        new = f"{new.rstrip()}\n\n{_toml_table(entry)}" if new.strip() else _toml_table(entry)
    if _toml_or_none(new) != _expected(before, file.key, entry):
        raise _refused(file, f"its entry {NAME} has a form that cannot be edited here")
    return new


def _toml_document(file: ConfigFile, text: str) -> dict[str, Any]:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _refused(file, f"it is not TOML ({error})") from None
    if not isinstance(document.get(file.key, {}), dict):
        raise _refused(file, f"its {file.key} is not a table")
    return document


def _toml_or_none(text: str) -> dict[str, Any] | None:
    try:
        return _pruned(tomllib.loads(text), "mcp_servers")
    except tomllib.TOMLDecodeError:
        return None


def _expected(before: Mapping[str, Any], key: str, entry: Entry | None) -> dict[str, Any]:
    servers = {name: server for name, server in before.get(key, {}).items() if name != NAME}
    return _pruned({**before, key: {**servers, NAME: entry} if entry is not None else servers}, key)


def _pruned(document: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name != key or value}


def _without_ours(lines: list[str]) -> list[str]:
    """``lines`` without our tables; comments directly above the next table belong to that table."""
    kept: list[str] = []
    skipping: list[str] | None = None
    for line in lines:
        if _HEADER.match(line) and not line.lstrip().startswith("[["):
            if skipping is not None:
                kept += _tail(skipping)
            skipping = [] if _OURS.fullmatch(line.rstrip("\r\n")) else None
        if skipping is None:
            kept.append(line)
        else:
            skipping.append(line)
    return kept


def _tail(lines: list[str]) -> list[str]:
    """The blank lines and comments at the end of ``lines``."""
    count = 0
    while count < len(lines) and (not lines[-1 - count].strip() or lines[-1 - count].lstrip().startswith("#")):
        count += 1
    return lines[len(lines) - count :]


def _toml_table(entry: Entry) -> str:
    lines = [f"[mcp_servers.{NAME}]", *(f"{key} = {_toml(value)}" for key, value in entry.items())]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {_toml(item)}' for key, item in value.items())} }}"
    return json.dumps(value, ensure_ascii=False)  # strings and lists of them are written as in JSON
