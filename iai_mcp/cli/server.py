"""The commands around the MCP server: serve, install, uninstall and hook."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from iai_mcp.cli import hook
from iai_mcp.cli.common import Json, Store, loaded, note, print_json
from iai_mcp.errors import UsageError

if TYPE_CHECKING:
    from iai_mcp.deployment.client_config import Done, Place

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
    hook.register(app)


def serve(
    transport: Annotated[
        Literal["stdio", "http"], typer.Option(help="stdio: one client, which starts us; http: many.")
    ] = "stdio",
    host: Annotated[str, typer.Option(help="Address to listen on; any but loopback needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks one.")] = 8765,
    token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Holds the bearer token (default: $IAI_MCP_TOKEN).")
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A further name of this server in requests; repeatable."),
    ] = None,
    store: Store = None,
) -> None:
    """Serve the memory to MCP clients."""
    if store == "":
        raise UsageError("--store is empty: give a folder, or leave it out for the default store")
    settings = loaded("mcp", "uvicorn.error", token_file=token_file)  # they speak up about strangers and floods
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
        str | None, typer.Option(metavar="URL", help="A running server's URL instead of a command.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Tell an MCP client about this server; what else its configuration holds stays."""
    from iai_mcp.deployment import client_config as installing

    place = installing.place_of(client, scope)
    entry = installing.entry_for(client, store=store, url=http)
    if not only_print:
        _tell(place, installing.install(place, entry), as_json)
    elif as_json:
        told = {"client": place.client, "path": str(place.path), "configuration": installing.printed(place, entry)}
        print_json(told)
    else:
        typer.echo(installing.printed(place, entry), nl=False)
        note(f"goes into {place.path}")


def uninstall(client: Which, scope: Scope = "user", as_json: Json = False) -> None:
    """Take this server out of an MCP client's configuration."""
    from iai_mcp.deployment import client_config as installing

    place = installing.place_of(client, scope)
    _tell(place, installing.uninstall(place), as_json)


def _tell(place: Place, done: Done, as_json: bool) -> None:
    if as_json:
        backup = str(done.backup) if done.backup else None
        told = {"client": place.client, "path": str(place.path), "changed": done.changed, "backup": backup}
        print_json({**told, "said": done.what})
    else:
        typer.echo(str(done))
