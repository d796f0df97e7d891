"""Checks whether entries are signed where other users could forge them."""

from __future__ import annotations

from collections.abc import Iterator

from iai_mcp.common.wording import many
from iai_mcp.maintenance.checks.check import Check, State, Subject

__all__ = ["signing"]


def signing(subject: Subject) -> Iterator[Check]:
    """Check that a key is set where Redis has several users."""
    from iai_mcp.broker.redis.users import has_several_users

    if keys := subject.settings.signing_keys:
        yield Check("signing", State.PASS, f"entries are signed; {many(len(keys), 'key')} accepted")
    elif not subject.redis.reachable:
        yield Check("signing", State.SKIP, "no key is set; Redis does not answer")
    elif has_several_users(subject.settings):
        message = "no key is set, and Redis has several users: each that may push can forge entries of others"
        yield Check("signing", State.WARN, message, "set IAI_MCP_SIGNING_KEY for clients, then for workers")
    else:
        yield Check("signing", State.PASS, "no key is set; Redis has one user")
