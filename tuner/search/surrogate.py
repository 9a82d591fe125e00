"""A Gaussian process over configurations: what a loss may be where nothing was measured yet.

Pure numerics (numpy, scipy). Parameters count alone and together: the kernel is a mixture of a product and
a sum over parameters of Matérn 5/2 (Rasmussen & Williams 2006, section 4.2), which on few points finds the
best of a measured surface sooner than the product alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import norm

Array = np.ndarray

# Priors on the logarithms of the hyperparameters: they keep a fit on three points sane.
_LENGTH, _LENGTH_SPREAD = np.log(0.7), 0.8  # of the unit range of a parameter
_NOISE, _NOISE_SPREAD = np.log(1e-3), 1.5  # variance, relative to the losses'
_MIX_SPREAD = 1.5  # of the logit of the product's weight, around one half
_JITTER = 1e-6
_ITERATIONS = 25


def distances(one: Array, two: Array, unordered: Array) -> Array:
    """|difference| by parameter, (n, m, parameters): 0 or 1 where a parameter has no order."""
    gaps: Array = np.abs(one[:, None, :] - two[None, :, :])
    gaps[..., unordered] = gaps[..., unordered] > 0
    return gaps


@dataclass
class GaussianProcess:
    """Fitted to points in the unit cube, (n, parameters); `unordered` marks parameters without an order."""

    unordered: Array
    _theta: Array | None = None
    _points: Array = field(default_factory=lambda: np.empty((0, 0)))
    _mean: float = 0.0
    _scale: float = 1.0
    _variance: float = 1.0
    _weights: Array = field(default_factory=lambda: np.empty(0))
    _factor: tuple[Array, bool] = (np.empty((0, 0)), True)

    def fit(self, points: Array, losses: Array, *, search: bool = True) -> None:
        """Conditions on `losses` at `points`; without `search`, with the hyperparameters of the last fit."""
        self._points, self._mean = points, float(losses.mean())
        self._scale = float(losses.std()) or 1.0
        scaled = (losses - self._mean) / self._scale
        gaps = distances(points, points, self.unordered)
        if search or self._theta is None:
            self._theta = self._searched(gaps, scaled)
        self._factor = cho_factor(_covariance(gaps, self._theta), lower=True)
        self._weights = cho_solve(self._factor, scaled)
        self._variance = max(float(scaled @ self._weights) / len(scaled), 1e-9)

    def predict(self, points: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the loss at `points`."""
        assert self._theta is not None, "fit comes first"
        cross = _kernel(distances(points, self._points, self.unordered), self._theta)
        mean = cross @ self._weights
        explained = np.einsum("ij,ji->i", cross, cho_solve(self._factor, cross.T))
        deviation = np.sqrt(np.maximum(1 - explained, 1e-12) * self._variance)
        return mean * self._scale + self._mean, deviation * self._scale

    def _searched(self, gaps: Array, scaled: Array) -> Array:
        """The hyperparameters of the highest posterior density, from a fixed start and the last ones."""
        count = gaps.shape[-1]
        start = np.concatenate([np.full(count, _LENGTH), [_NOISE, 0.0]])
        bounds = [(-3.0, 3.0)] * count + [(-9.0, 0.0), (-4.0, 4.0)]
        starts = [start] if self._theta is None else [start, self._theta]
        fits = [
            minimize(
                _cost,
                guess,
                (gaps, scaled),
                method="L-BFGS-B",
                bounds=bounds,
                options={"maxiter": _ITERATIONS},
            )
            for guess in starts
        ]
        best: Array = min(fits, key=lambda fit: float(fit.fun)).x
        return best


def expected_improvement(mean: Array, deviation: Array, best: float) -> Array:
    """How far below `best` each loss is expected to fall (Jones, Schonlau & Welch 1998)."""
    gap = best - mean
    share = gap / deviation
    improvement: Array = gap * norm.cdf(share) + deviation * norm.pdf(share)
    return improvement


def _kernel(gaps: Array, theta: Array) -> Array:
    """Correlation, 1 at no distance; theta: log lengths, log noise, logit of the product's weight."""
    scaled = gaps / np.exp(theta[:-2])
    together = _matern(np.sqrt((scaled**2).sum(axis=-1)))
    alone = _matern(scaled).mean(axis=-1)
    weight = expit(theta[-1])
    mixed: Array = weight * together + (1 - weight) * alone
    return mixed


def _matern(distance: Array) -> Array:
    reach = np.sqrt(5) * distance
    value: Array = (1 + reach + reach**2 / 3) * np.exp(-reach)
    return value


def _covariance(gaps: Array, theta: Array) -> Array:
    covariance: Array = _kernel(gaps, theta) + (np.exp(theta[-2]) + _JITTER) * np.eye(len(gaps))
    return covariance


def _cost(theta: Array, gaps: Array, scaled: Array) -> float:
    """Negative log posterior density, the signal's variance profiled out."""
    try:
        factor = cho_factor(_covariance(gaps, theta), lower=True)
    except LinAlgError:
        return 1e6
    variance = max(float(scaled @ cho_solve(factor, scaled)) / len(scaled), 1e-9)
    likelihood = 0.5 * len(scaled) * np.log(variance) + np.log(np.diag(factor[0])).sum()
    prior = (((theta[:-2] - _LENGTH) / _LENGTH_SPREAD) ** 2).sum()
    prior += ((theta[-2] - _NOISE) / _NOISE_SPREAD) ** 2 + (theta[-1] / _MIX_SPREAD) ** 2
    return float(likelihood + 0.5 * prior)
