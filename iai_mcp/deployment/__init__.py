"""Runs iai-mcp on a machine: supervised processes, a private Redis, entries in MCP clients' configuration."""
