"""The Pareto front of several objectives, all as losses: what no other configuration beats in every one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def front(losses: Sequence[Sequence[float]]) -> list[bool]:
    """Of each row, (configurations, objectives), whether no other is as good in all and better in one."""
    table = np.asarray(losses, dtype=float)
    return [not bool(((table <= row).all(axis=1) & (table < row).any(axis=1)).any()) for row in table]


def from_the_knee(losses: Sequence[Sequence[float]]) -> list[int]:
    """The places of the rows on the front, the knee first, then by their distance to the ideal.

    The ideal is the best of every objective, each scaled to the front's own range; the knee is the point
    nearest to it, the compromise solution of Zeleny (Multiple Criteria Decision Making, 1982). Of two that
    are equally near, as both ends of a front of two are, that is first which is nearer without the scale:
    losses are logarithms, so equal steps are equal shares.
    """
    if not losses:
        return []
    places = [place for place, on_it in enumerate(front(losses)) if on_it]
    table = np.asarray(losses, dtype=float)[places]
    low, high = table.min(axis=0), table.max(axis=0)
    scaled = (table - low) / np.where(high > low, high - low, 1.0)
    order = np.lexsort((_length(table - low), _length(scaled).round(9)))
    return [places[place] for place in order]


def _length(vectors: np.ndarray) -> np.ndarray:
    length: np.ndarray = np.sqrt((vectors**2).sum(axis=1))
    return length
