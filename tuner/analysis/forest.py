"""A random forest (Breiman 2001) over configurations. Pure numpy; knows nothing of trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray

TREES = 64


@dataclass(frozen=True)
class Tree:
    """Boxes that fill the space: (boxes, parameters, levels) says which levels a box holds, and its value."""

    holds: Array
    value: Array

    def predict(self, codes: Array) -> Array:
        """The prediction for each row of `codes`, (rows, parameters)."""
        inside = np.ones((len(codes), len(self.value)), dtype=bool)
        for parameter in range(codes.shape[1]):
            inside &= self.holds[:, parameter, codes[:, parameter]].T
        return np.asarray(self.value[inside.argmax(axis=1)])


@dataclass(frozen=True)
class Forest:
    """Trees, each grown on a sample of its own."""

    trees: tuple[Tree, ...]

    def predict(self, codes: Array) -> Array:
        """The mean of the trees' predictions for each row of `codes`."""
        return np.asarray(np.mean([tree.predict(codes) for tree in self.trees], axis=0))


def fit(codes: Array, levels: Sequence[int], ordered: Sequence[bool], values: Array) -> Forest:
    """A forest for `values` at `codes`, (rows, parameters): numbers of levels, of which each has `levels`.

    Each tree is grown on a bootstrap sample, by the cut that leaves the least squares: between two levels
    of an ordered parameter, one level against the rest of any other. Cuts end where all values are one.
    """
    rng = np.random.default_rng(0)
    drawn = [rng.integers(len(values), size=len(values)) for _ in range(TREES)]
    trees = [_grown(codes[rows], np.array(ordered), values[rows], levels) for rows in drawn]
    return Forest(tuple(trees))


def _grown(codes: Array, ordered: Array, values: Array, levels: Sequence[int]) -> Tree:
    most = max(levels)
    whole = np.arange(most) < np.array(levels)[:, None]
    boxes: list[tuple[Array, float]] = []
    waiting = [(np.arange(len(values)), whole)]
    while waiting:
        rows, box = waiting.pop()
        cut = _best_cut(codes[rows], ordered, values[rows], most)
        if cut is None:
            boxes.append((box, float(values[rows].mean())))
            continue
        parameter, kept = cut
        left = kept[codes[rows, parameter]]
        for side, levels_of_side in ((left, kept), (~left, ~kept)):
            part = box.copy()
            part[parameter] &= levels_of_side
            waiting.append((rows[side], part))
    return Tree(np.array([box for box, _ in boxes]), np.array([value for _, value in boxes]))


def _best_cut(codes: Array, ordered: Array, values: Array, most: int) -> tuple[int, Array] | None:
    """The parameter, and which of its levels go left; None where no cut helps."""
    parameters = codes.shape[1]
    if np.ptp(values) == 0:
        return None
    places = (codes + most * np.arange(parameters)).ravel()
    centred = np.repeat(values - values.mean(), parameters)
    count = np.bincount(places, minlength=most * parameters).reshape(parameters, most)
    total = np.bincount(places, centred, minlength=most * parameters).reshape(parameters, most)
    left_n = np.where(ordered[:, None], count.cumsum(axis=1), count)
    left = np.where(ordered[:, None], total.cumsum(axis=1), total)
    right_n = len(values) - left_n
    possible = (left_n > 0) & (right_n > 0)
    gain = np.where(possible, left**2 / np.maximum(left_n, 1) + left**2 / np.maximum(right_n, 1), -1.0)
    best = int(gain.argmax())
    if gain.flat[best] <= 1e-12:
        return None
    parameter, level = divmod(best, most)
    return parameter, np.arange(most) <= level if ordered[parameter] else np.arange(most) == level
