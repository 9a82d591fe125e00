"""How likely a configuration is to work, by those that did and those that failed.

Regression of 1 and 0 by a Gaussian process (Rasmussen & Williams 2006, section 6.5) whose mean is the share
that worked so far, one half at the most: where most of a space fails, what is far from everything that was
tried is likely to fail too. Expected improvement is multiplied by it (Gardner et al. 2014, "Bayesian
Optimization with Inequality Constraints", section 3.2), so that a failure has no loss.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import solve

from tuner.search.surrogate import Array, cross_kernel

# Logarithms, fixed, for a few labels fit nothing: a failure says little of what is not near it.
_ORDERED, _UNORDERED = -0.7, -0.3
_NOISE = 0.01
_PRODUCT = 4.0  # logit of the product's weight: what fails together is a combination
_USUAL = 0.5  # more makes a failure say too little of its like
_LEAST = 0.02  # never nothing: a place that failed may be held wrongly for hopeless


def chance(points: Array, seen: Array, worked: Array, unordered: Array) -> Array:
    """The probability that each of `points` works, given which of `seen` did."""
    theta = np.append(np.where(unordered, _UNORDERED, _ORDERED), [np.log(_NOISE), _PRODUCT])
    covariance = cross_kernel(seen, seen, unordered, theta) + _NOISE * np.eye(len(seen))
    usual = min((worked.sum() + 1) / (len(worked) + 2), _USUAL)
    weights = solve(covariance, worked - usual, assume_a="pos")
    share: Array = usual + cross_kernel(points, seen, unordered, theta) @ weights
    return share.clip(min(_LEAST, usual / 3), 1.0)
