"""How a Redis broker behaves."""

from __future__ import annotations

from dataclasses import dataclass, field

from iai_mcp.config import Settings
from iai_mcp.entries.signature import Signer

__all__ = ["RedisOptions"]


@dataclass(frozen=True, slots=True)
class RedisOptions:
    """What a Redis broker is told.

    Attributes:
        namespace: prefix of every key and of the queue's name.
        ceiling: most entries in one lane; above it pushes are refused.
        lease_s: how long a lease lives without a sign of life from its holder.
        push_s: most seconds that one push may take.
        durable: whether a push counts only once it is on the server's disk.
        retain_bytes: most memory for what Redis may still lose; 0: nothing is retained.
        signer: signs what is pushed, and checks what is claimed.
    """

    namespace: str = ""
    ceiling: int = 100_000
    lease_s: float = 10.0
    push_s: float = 0.010
    durable: bool = False
    retain_bytes: int = 0
    signer: Signer = field(default_factory=Signer, repr=False, compare=False)

    @classmethod
    def of(cls, settings: Settings) -> RedisOptions:
        """What the settings say."""
        return cls(
            settings.namespace,
            settings.lane_ceiling,
            settings.lease_s,
            settings.push_budget_ms / 1000,
            settings.redis_durability == "fsync",
            settings.retain_bytes,
            Signer(settings.signing_keys),
        )
