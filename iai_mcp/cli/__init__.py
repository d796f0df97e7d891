"""The command line: app holds all commands, one module owns each group of them, common holds what they share."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command line; the console script ``iai-mcp`` calls this."""
    from iai_mcp.cli.app import main as run

    run()
