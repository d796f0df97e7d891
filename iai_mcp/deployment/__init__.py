"""Running iai-mcp on a machine: supervised processes, a private Redis, the configuration of MCP clients."""
