"""The command line: one module for each group of commands."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command line; what the console script ``iai-mcp`` calls."""
    from iai_mcp.cli.app import main as run

    run()
