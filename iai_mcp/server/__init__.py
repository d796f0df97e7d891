"""The MCP server: the protocol (app), the tools and their calls, resources, and two transports (stdio, http)."""
