"""Owns the commands ``serve``, ``install`` and ``uninstall``: the MCP server and its place in clients' files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from iai_mcp.cli.common import (
    Json,
    Store,
    loaded,
    note,
    print_json,
    say,
    say_lines,
)
from iai_mcp.errors import UsageError

if TYPE_CHECKING:
    from iai_mcp.deployment.client_config import Change, ConfigFile

__all__ = ["register"]

Client = Literal["claude-code", "claude-desktop", "cursor", "codex", "vscode"]
Which = Annotated[
    Client, typer.Argument(metavar="CLIENT", help="claude-code, claude-desktop, cursor, codex or vscode.")
]
Scope = Annotated[
    Literal["user", "project"], typer.Option(help="user: for all projects; project: for the one in this folder.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command(epilog="Example: iai-mcp serve --transport http --port 8765")(serve)
    app.command(epilog="Example: iai-mcp install claude-code")(install)
    app.command(epilog="Example: iai-mcp uninstall claude-code")(uninstall)


def serve(
    transport: Annotated[
        Literal["stdio", "http"],
        typer.Option(help="stdio: one client, which starts the server; http: many."),
    ] = "stdio",
    host: Annotated[str, typer.Option(help="Address to listen on; any but loopback needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks one.")] = 8765,
    token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A file with the bearer token (default: $IAI_MCP_TOKEN).")
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A further host name that requests may use; repeatable."),
    ] = None,
    store: Store = None,
) -> None:
    """Serve the memory to MCP clients."""
    if store == "":
        raise UsageError("--store is empty: give a folder, or leave it out for the default store")
    settings = loaded("mcp", "uvicorn.error", token_file=token_file)  # they report refused requests
    if transport == "stdio":
        from iai_mcp.server import stdio

        stdio.serve(settings, store)
        return
    from iai_mcp.server import http

    token = http.read_token(settings, token_file)
    http.serve(settings, store, http.Address(host, port, allow_host or ()), token)


def install(
    client: Which,
    only_print: Annotated[bool, typer.Option("--print", help="Print the configuration, write nothing.")] = False,
    scope: Scope = "user",
    store: Store = None,
    http: Annotated[
        str | None, typer.Option(metavar="URL", help="The URL of a running server, instead of a command.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Add this server to an MCP client's configuration; all other content stays."""
    from iai_mcp.deployment import client_config

    file = client_config.config_file(client, scope)
    entry = client_config.entry_for(client, store=store, url=http)
    if not only_print:
        _report(file, client_config.install(file, entry), as_json)
        return
    text = client_config.rendered(file, entry)
    if as_json:
        print_json({"client": file.client, "path": str(file.path), "configuration": text})
    else:
        say_lines(text, end=False)
        note(f"add this to {file.path}")


def uninstall(client: Which, scope: Scope = "user", as_json: Json = False) -> None:
    """Remove this server from an MCP client's configuration."""
    from iai_mcp.deployment import client_config

    file = client_config.config_file(client, scope)
    _report(file, client_config.uninstall(file), as_json)


def _report(file: ConfigFile, done: Change, as_json: bool) -> None:
    if as_json:
        backup = str(done.backup) if done.backup else None
        document = {"client": file.client, "path": str(file.path), "changed": done.changed, "backup": backup}
        print_json({**document, "message": done.message})
    else:
        say(str(done))
