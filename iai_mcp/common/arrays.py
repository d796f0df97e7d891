"""Finds repeated values in columns of integers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Ints", "firsts", "repeated"]

Ints = NDArray[np.int64]


def firsts(ordered: Ints) -> NDArray[np.bool_]:
    """Marks the first of each run of equal values; ``ordered`` and the result have the same length."""
    return np.concatenate((np.ones(min(1, len(ordered)), bool), ordered[1:] != ordered[:-1]))


def repeated(keys: Ints) -> NDArray[np.bool_]:
    """Marks the rows whose key occurs in an earlier row; ``keys`` and the result have the same length."""
    order = np.argsort(keys, kind="stable")
    again = np.zeros(len(keys), bool)
    again[order] = ~firsts(keys[order])
    return again
