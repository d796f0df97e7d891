"""Columns of numbers: which of them repeat."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Ints", "firsts", "repeated"]

Ints = NDArray[np.int64]


def firsts(ordered: Ints) -> NDArray[np.bool_]:
    """Which of equal neighbours is the first."""
    return np.concatenate((np.ones(min(1, len(ordered)), bool), ordered[1:] != ordered[:-1]))


def repeated(keys: Ints) -> NDArray[np.bool_]:
    """Which rows repeat the key of a row before them."""
    order = np.argsort(keys, kind="stable")
    again = np.zeros(len(keys), bool)
    again[order] = ~firsts(keys[order])
    return again
