"""Signatures: a proof, at the end of a parcel's wire form, that its producer has the key. Pure.

The proof is a field of the JSON object: ``{...,"mac":"<32 hexadecimal digits>"}``. It is a keyed BLAKE2b over the
object without that field, so it covers the store, the lane, the producer, the numbers and the contents. What reads
parcels without a key reads a signed one like any other.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from hashlib import blake2b, sha256
from typing import Any

__all__ = ["BAD_SIGNATURE", "UNSIGNED", "Signer", "unsigned"]

UNSIGNED = "unsigned: it carries no proof of its producer; is IAI_MCP_SIGNING_KEY set where it was made?"
BAD_SIGNATURE = "bad signature: it was changed or moved, or IAI_MCP_SIGNING_KEY is another one where it was made"

_DIGITS = 32
_FIELD = b',"mac":"'
_END = b'"}'
_LENGTH = len(_FIELD) + _DIGITS + len(_END)


class Signer:
    """Signs parcels in their wire form, and checks them. Without keys it does neither.

    Args:
        keys: the first one signs; a proof under any of them is valid.
    """

    __slots__ = ("_begin", "_hashes")

    def __init__(self, keys: Sequence[str] = ()) -> None:
        self._hashes = [_keyed(key) for key in keys]
        self._begin = self._hashes[0].copy if self._hashes else None

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def __reduce__(self) -> str:
        raise TypeError("a signer holds keys, which leave no process")

    def sign(self, raw: bytes) -> bytes:
        """A parcel's wire form with its proof; ``raw`` itself without keys."""
        if self._begin is None:
            return raw
        made = self._begin()
        made.update(raw)
        return b'%b,"mac":"%b"}' % (raw[:-1], made.hexdigest().encode())

    def fault(self, raw: bytes) -> str | None:
        """Why ``raw``, a wire form without a newline, proves nothing; None where it does, or without keys."""
        if not self._hashes:
            return None
        if raw[-_LENGTH : -_DIGITS - 2] != _FIELD or raw[-2:] != _END:
            return UNSIGNED
        bare, proof = unsigned(raw), raw[-_DIGITS - 2 : -2]
        for keyed in self._hashes:
            made = keyed.copy()
            made.update(bare)
            if hmac.compare_digest(made.hexdigest().encode(), proof):
                return None
        return BAD_SIGNATURE


def _keyed(key: str) -> Any:
    """A hash that has taken the key in: its copies cost half as much as new ones.

    It takes the block of the key only with the byte after it, hence the newline.
    """
    made = blake2b(key=sha256(key.encode()).digest(), digest_size=_DIGITS // 2, person=b"iai-mcp parcel")
    made.update(b"\n")
    return made


def unsigned(raw: bytes) -> bytes:
    """``raw`` without a proof at its end."""
    if raw[-_LENGTH : -_DIGITS - 2] == _FIELD and raw[-2:] == _END:
        return raw[:-_LENGTH] + b"}"
    return raw
