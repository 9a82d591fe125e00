"""Losses as the Gaussian process sees them: what separates the good counts, how bad the bad are does not.

A process whose deviation is alike everywhere spends itself on a cliff: twice as slow or ten times, nobody
asks. So losses above the lowest are drawn together, w(x) = x₀ + log(1 + k·(x − x₀))/k, as Vizier's "log
warping" does (Song et al. 2024, "The Vizier Gaussian Process Bandit Algorithm"). Not at first, for a few
trials must tell what matters at all: k grows from the sixth trial to the fifteenth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray

_BEGINS, _WHOLE = 6, 15  # trials
_BEND = 1.5  # times the scale: where half of what is worse lies
_WIDEST = 0.5  # of that scale, in the logarithm of the objective: SLOs are cliffs of many units


@dataclass(frozen=True)
class Warp:
    """The transform; its slope is one at `lowest` and below, so small gains stay what they are."""

    lowest: float
    bend: float  # k, per unit of loss; 0 leaves all as it is

    @classmethod
    def of(cls, losses: Array) -> Warp:
        """As `losses`, of the trials that finished, call for."""
        grown = min(1.0, max(0.0, (len(losses) - _BEGINS) / (_WHOLE - _BEGINS)))
        lowest = float(losses.min())
        scale = min(float(np.median(losses)) - lowest, _WIDEST)
        return cls(lowest, _BEND * grown / scale if scale > 0 else 0.0)

    def __call__(self, losses: Array) -> Array:
        """Warped losses; order is kept."""
        if self.bend == 0:
            return losses
        above = np.maximum(losses - self.lowest, 0.0)
        warped: Array = np.minimum(losses, self.lowest) + np.log1p(above * self.bend) / self.bend
        return warped
