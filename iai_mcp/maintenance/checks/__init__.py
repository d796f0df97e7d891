"""The checks of ``iai-mcp doctor``, by topic."""
