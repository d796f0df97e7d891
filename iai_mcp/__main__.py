"""``python -m iai_mcp`` is the command line."""

from iai_mcp.cli.app import main

if __name__ == "__main__":
    main()
