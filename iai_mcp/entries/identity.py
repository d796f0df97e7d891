"""Entry keys and record ids as text: the only module that spells either. Pure."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "KEY_SEPARATOR",
    "are_ids",
    "dashed",
    "entry_id",
    "entry_id_bounds",
    "is_second_id",
    "second_id",
    "split_entry_id",
]

KEY_SEPARATOR = "-"


def entry_id(producer: str, producer_seq: int) -> str:
    """The idempotency key of an entry: the producer's key, then the entry's number.

    It orders the producer's stream, and costs no UUID.
    """
    return f"{producer}{KEY_SEPARATOR}{producer_seq}"


def second_id(producer: str, producer_seq: int, digest: str) -> str:
    """The key of an entry whose number an earlier entry has, which says something else.

    ``digest``: of what the entry says, so that its repetition has the same key.
    """
    return f"{entry_id(producer, producer_seq)}{KEY_SEPARATOR}{digest}"


def is_second_id(key: str, producer: str, producer_seq: int) -> bool:
    """Whether the key is one that :func:`second_id` makes."""
    return key.startswith(f"{entry_id(producer, producer_seq)}{KEY_SEPARATOR}")


def split_entry_id(key: str) -> tuple[str, int]:
    """The producer and the number in a key that :func:`entry_id` made.

    Raises:
        ValueError: the key does not end in a number.
    """
    producer, _, number = key.rpartition(KEY_SEPARATOR)
    return producer, int(number)


def entry_id_bounds(producer: str) -> tuple[str, str]:
    """Two texts; every key of the producer sorts after the first and before the second."""
    return f"{producer}{KEY_SEPARATOR}", f"{producer}{chr(ord(KEY_SEPARATOR) + 1)}"


def are_ids(texts: Sequence[str]) -> bool:
    """Whether every text is a record id as parcels hold it: 32 hexadecimal digits in lower case."""
    digits = "".join(texts)
    try:
        return bytes.fromhex(digits).hex() == digits and {*map(len, texts)} <= {32}
    except ValueError:
        return False


def dashed(digits: str) -> str:
    """The usual form of a record id (8-4-4-4-12) from its 32 hexadecimal digits."""
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
