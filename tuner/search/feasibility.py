"""How likely a configuration is to work, by those that did and those that failed.

Regression of +1 and −1 by a Gaussian process with a mean of 0 (Rasmussen & Williams 2006, section 6.5):
far from everything that was tried it says one half. Expected improvement is multiplied by it (Gardner et
al. 2014, "Bayesian Optimization with Inequality Constraints", section 3.2), so that a failure has no loss.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import solve

from tuner.search.surrogate import Array, cross_kernel

# Logarithms, fixed, for a few labels fit nothing: a failure says little of what is not near it.
_ORDERED, _UNORDERED = -0.7, -0.3
_NOISE = 0.01
_PRODUCT = 4.0  # logit of the product's weight: what fails together is a combination
_LEAST = 0.02  # never nothing: a place that failed may be held wrongly for hopeless


def chance(points: Array, seen: Array, worked: Array, unordered: Array) -> Array:
    """The probability that each of `points` works, given which of `seen` did."""
    theta = np.append(np.where(unordered, _UNORDERED, _ORDERED), [np.log(_NOISE), _PRODUCT])
    covariance = cross_kernel(seen, seen, unordered, theta) + _NOISE * np.eye(len(seen))
    weights = solve(covariance, np.where(worked, 1.0, -1.0), assume_a="pos")
    share: Array = (cross_kernel(points, seen, unordered, theta) @ weights + 1) / 2
    return share.clip(_LEAST, 1.0)
