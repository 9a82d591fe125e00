"""A parameter's values as groups that can be compared: each by itself, or numbers with many in bins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tuner.analysis.trials import is_number, natural_order


@dataclass(frozen=True)
class Group:
    """The values from `first` to `last`; the same where it is one value."""

    first: Any
    last: Any


def grouped(values: Sequence[Any], *, most: int = 8, bins: int = 5) -> tuple[list[Group], list[int]]:
    """The groups in their natural order, and each value's place among them.

    More than `most` different numbers are cut into `bins` of about equally many values.
    """
    distinct = natural_order(values)
    if len(distinct) > most and all(map(is_number, distinct)):
        numbers = np.array(values, dtype=float)
        edges = np.unique(np.quantile(numbers, np.arange(1, bins) / bins))
        found = np.searchsorted(edges, numbers, side="left")
        filled, places = np.unique(found, return_inverse=True)
        own = [numbers[found == number] for number in filled]
        return [Group(float(each.min()), float(each.max())) for each in own], places.tolist()
    keys = [(type(value), value) for value in distinct]
    return [Group(value, value) for value in distinct], [keys.index((type(each), each)) for each in values]
