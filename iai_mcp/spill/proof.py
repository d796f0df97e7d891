"""What a spill needs to sign its lines, to check those of others, and to keep those that prove nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from iai_mcp.config import Settings
from iai_mcp.entries.signature import Signer
from iai_mcp.storage.dead_letters import DeadLetters, Raw
from iai_mcp.storage.layout import Layout

__all__ = ["NONE", "Proof"]

NO_LANE = -1  # of a letter that no drain wrote


@dataclass(frozen=True, slots=True)
class Proof:
    """The keys and the dead letters of one store.

    Attributes:
        signer: without keys nothing is signed and everything is accepted.
        layout: the store whose dead letters take the lines without a valid proof; None: they are dropped, which
            happens only without keys.
    """

    signer: Signer
    layout: Layout | None = None

    @classmethod
    def of(cls, settings: Settings, layout: Layout) -> Proof:
        """What the settings say.

        Raises:
            ConfigError: a key is too short.
        """
        return cls(Signer(settings.signing_keys), layout)

    def refuse(self, lines: Sequence[Raw]) -> None:
        """Make dead letters of ``lines``.

        Raises:
            OSError: the store cannot be written.
        """
        if self.layout is not None:
            DeadLetters(self.layout).add_raws(NO_LANE, lines)


NONE = Proof(Signer())
