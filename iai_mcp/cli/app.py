"""Owns the Typer app that holds all commands, the exit codes and the form of errors: one line on stderr.

Exit codes: 0 done, 1 a failure or part of the work undone, 2 wrong input, 130 interrupted. Commands import what
is slow to import themselves, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, cast

import typer
from typer.core import TyperGroup

from iai_mcp._version import __version__
from iai_mcp.cli import (
    config,
    dead_letters,
    demo,
    health,
    hook,
    import_,
    memories,
    place,
    provenance,
    server,
    status,
    transfer,
    workers,
)
from iai_mcp.cli.common import error_line, say, show_help
from iai_mcp.cli.streams import guard
from iai_mcp.common.private import write_for_owner_only
from iai_mcp.errors import IaiMcpError, UsageError

__all__ = ["app", "main"]

# The class that Typer raises for a wrong option: click's own or Typer's copy of it, depending on the version.
_ParserError = cast("type[Exception]", typer.BadParameter.__mro__[2])


class _Commands(TyperGroup):
    """The group of all commands; turns every expected error into one line and an exit code."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
            sys.stdout.flush()
        except Exception as error:
            code = _exit_code(error)
            if code is None:
                raise
        if standalone_mode:
            sys.exit(code)
        return code

    def list_commands(self, ctx: Any) -> list[str]:
        """The commands in the order in which a newcomer needs them."""
        return [*self.commands]


def _exit_code(error: Exception) -> int | None:
    """Print an expected error and return its exit code; None: the error is unexpected."""
    if isinstance(error, typer.Abort):
        return 130
    if isinstance(error, BrokenPipeError):
        # The reader of stdout is gone; the interpreter's flush at exit must not report that again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if isinstance(error, _ParserError):
        error_line(_with_help(error))
        return int(getattr(error, "exit_code", 2))
    if isinstance(error, UnicodeEncodeError):
        error_line("an argument is not UTF-8 text: check the terminal's encoding")
        return 2
    if isinstance(error, IaiMcpError | OSError):
        error_line(_plain_words(error))
        return 2 if isinstance(error, UsageError) else 1
    return None


def _plain_words(error: Exception) -> str:
    if isinstance(error, IaiMcpError) or not isinstance(error, OSError) or not error.strerror:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def _with_help(error: Any) -> str:
    context = getattr(error, "ctx", None)
    message = str(error.format_message()).rstrip(".").replace(": Value error, ", ": ")
    return f"{message}; see `{context.command_path} --help`" if context else message


app = typer.Typer(
    name="iai-mcp",
    cls=_Commands,
    help="A shared long-term memory for AI agents that remembers being asked: every recall leaves a trace.",
    epilog="New here? Try: iai-mcp demo",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"iai-mcp {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        show_help(context)


demo.register(app)
import_.register(app)
memories.register(app)
provenance.register(app)
status.register(app)
server.register(app)
hook.register(app)
workers.register(app)
dead_letters.register(app)
health.register(app)
config.register(app)
transfer.register(app)
place.register(app)


def main() -> None:
    """Run the command line with this process's arguments, and exit."""
    if sys.stdout is None:  # `>&-`: the next file to be opened would become stdout
        sys.stdout = os.fdopen(os.dup2(os.open(os.devnull, os.O_WRONLY), 1), "w")
    guard()
    write_for_owner_only()
    app(prog_name="iai-mcp")
