"""What an operator should know about a store's dead letters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from iai_mcp.common.wording import many
from iai_mcp.storage.dead_letters import DeadLetter, DeadLetters

__all__ = ["letter_troubles"]


def letter_troubles(kept: DeadLetters, letters: Sequence[DeadLetter]) -> Iterator[tuple[str, str, str]]:
    """A kind of finding, a message and a remedy, for each kind of trouble that ``letters`` show."""
    if unproven := sum(letter.unproven for letter in letters):
        message = f"{many(unproven, 'dead letter')} without a valid signature: forged, or made with another key"
        yield (
            "unproven",
            message,
            "set one IAI_MCP_SIGNING_KEY everywhere, then iai-mcp dead retry, or dead drop",
        )
    if over := kept.overflown().items:
        message = f"{many(over, 'item')} not kept: the file of dead letters was full"
        remedy = f"find out who pushes them, drop dead letters, then remove {kept.layout.dead_letters_overflown}"
        yield "not_kept", message, remedy
