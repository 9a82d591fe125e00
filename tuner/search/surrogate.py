"""A Gaussian process over configurations: what a loss may be where nothing was measured yet.

Pure numerics (numpy, scipy). Parameters count alone and together: the kernel is a mixture of a product and
a sum over parameters of Matérn 5/2 (Rasmussen & Williams 2006, section 4.2), which on few points finds the
best of a measured surface sooner than the product alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize
from scipy.special import expit, ndtr

Array = np.ndarray

# Priors on the logarithms of the hyperparameters: they keep a fit on two points sane. Those of the lengths
# are the mean and spread of what is likeliest for 40 configurations at a time of eleven measured surfaces.
_ORDERED, _ORDERED_SPREAD = 0.0, 1.1  # of the unit range of a parameter
_UNORDERED, _UNORDERED_SPREAD = 1.05, 1.05  # of a difference counted as 1
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
        few = len(scaled) < 2  # of one, no spread is known
        self._variance = 1.0 if few else max(float(scaled @ self._weights) / len(scaled), 1e-9)

    def expect(self, spread: float) -> None:
        """Before anything was measured: losses around zero, of that standard deviation."""
        self._theta, _ = self._usual()
        self._points, self._weights = np.empty((0, len(self.unordered))), np.empty(0)
        self._mean, self._scale, self._variance = 0.0, spread, 1.0

    def predict(self, points: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the loss at `points`."""
        mean, deviation, _ = self.predict_with(points, points[:0])
        return mean, deviation

    def predict_with(self, points: Array, others: Array) -> tuple[Array, Array, Array]:
        """The same, and the covariance of the losses at `points` with those at `others`, (points, others).

        `others` are the last of `points`.
        """
        assert self._theta is not None, "fit comes first"
        cross = cross_kernel(points, self._points, self.unordered, self._theta)
        mean, explained = cross @ self._weights, cross.T
        if len(self._points):
            explained = solve_triangular(self._factor[0], explained, lower=True, check_finite=False)
        shared: Array = np.zeros((len(points), 0))
        if len(others):
            shared = cross_kernel(points, others, self.unordered, self._theta)
            shared -= explained.T @ explained[:, -len(others) :]
        left = np.maximum(1 - (explained**2).sum(axis=0), 1e-12)
        deviation = np.sqrt(left * self._variance) * self._scale
        return mean * self._scale + self._mean, deviation, shared * self._variance * self._scale**2

    def _usual(self) -> tuple[Array, Array]:
        """The hyperparameters that are expected, and the spread of each."""
        usual = np.append(np.where(self.unordered, _UNORDERED, _ORDERED), [_NOISE, 0.0])
        spread = np.where(self.unordered, _UNORDERED_SPREAD, _ORDERED_SPREAD)
        return usual, np.append(spread, [_NOISE_SPREAD, _MIX_SPREAD])

    def _searched(self, gaps: Array, scaled: Array) -> Array:
        """The hyperparameters of the highest posterior density, from a fixed start and the last ones."""
        usual, spread = self._usual()
        bounds = [(-3.0, 3.0)] * len(self.unordered) + [(-9.0, 0.0), (-4.0, 4.0)]
        starts = [usual] if self._theta is None else [usual, self._theta]
        fits = [
            minimize(
                _cost,
                guess,
                (gaps, scaled, usual, spread),
                jac=True,
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
    improvement: Array = gap * ndtr(share) + deviation * np.exp(-(share**2) / 2) / math.sqrt(2 * math.pi)
    return improvement


def improvement_beside(
    mean: Array,
    deviation: Array,
    best: float,
    *,
    running: Array,
    covariance: Array,
    shared: Array,
    outcomes: Array,
) -> Array:
    """Of each point, how far the lowest loss is expected to fall by it, once the running trials have ended.

    `running` and `covariance` are the mean (trials) and covariance of their losses, `shared` that of the
    points with them, (points, trials). It is averaged over joint `outcomes` of the running trials, standard
    normal, (outcomes, trials); each moves the points' means and may be the new best (Snoek, Larochelle &
    Adams 2012, section 3.2). Of 0 alone, all are believed to give their mean (Ginsbourger, Le Riche &
    Carraro 2010).
    """
    widest = max(float(deviation.max()) ** 2, float(np.diag(covariance).max()))
    root = np.linalg.cholesky(covariance + _JITTER * widest * np.eye(len(running)))
    told = solve_triangular(root, shared.T, lower=True, check_finite=False)
    left = np.sqrt(np.maximum(deviation**2 - (told**2).sum(axis=0), 1e-12))
    found = [
        expected_improvement(mean + outcome @ told, left, min(best, float((running + root @ outcome).min())))
        for outcome in outcomes
    ]
    improvement: Array = np.mean(found, axis=0)
    return improvement


def _kernel(gaps: Array, theta: Array) -> Array:
    """Correlation, 1 at no distance; theta: log lengths, log noise, logit of the product's weight."""
    scaled = gaps / np.exp(theta[:-2])
    together, _ = _matern(np.sqrt((scaled**2).sum(axis=-1)))
    alone, _ = _matern(scaled)
    weight = expit(theta[-1])
    mixed: Array = weight * together + (1 - weight) * alone.mean(axis=-1)
    return mixed


def cross_kernel(points: Array, others: Array, unordered: Array, theta: Array) -> Array:
    """`_kernel` between many points and few, each value of a parameter worked out once."""
    squares, alone = np.zeros((2, len(points), len(others)))
    for name, length in enumerate(np.exp(theta[:-2])):
        values, place = np.unique(points[:, name], return_inverse=True)
        gaps = np.abs(values[:, None] - others[:, name])
        scaled = (gaps > 0 if unordered[name] else gaps) / length
        squares += (scaled**2)[place]
        alone += _matern(scaled)[0][place]
    weight = expit(theta[-1])
    together, _ = _matern(np.sqrt(squares))
    mixed: Array = weight * together + (1 - weight) / points.shape[1] * alone
    return mixed


def _matern(distance: Array) -> tuple[Array, Array]:
    """Matérn 5/2 of a distance r, and what times r² is its derivative by the logarithm of the length."""
    reach = np.sqrt(5) * distance
    fall = np.exp(-reach)
    return (1 + reach + reach**2 / 3) * fall, 5 / 3 * (1 + reach) * fall


def _covariance(gaps: Array, theta: Array) -> Array:
    covariance: Array = _kernel(gaps, theta) + (np.exp(theta[-2]) + _JITTER) * np.eye(len(gaps))
    return covariance


def _cost(theta: Array, gaps: Array, scaled: Array, usual: Array, spread: Array) -> tuple[float, Array]:
    """Negative log posterior density, the signal's variance profiled out, and its gradient.

    Rasmussen & Williams 2006, equations 5.8 and 5.9.
    """
    count, row, column = len(scaled), *np.tril_indices(len(scaled), -1)
    pairs = gaps[row, column] / np.exp(theta[:-2])
    squares, weight, noise = pairs**2, expit(theta[-1]), np.exp(theta[-2])
    together, slope = _matern(np.sqrt(squares.sum(axis=-1)))
    alone, slopes = _matern(pairs)
    added = alone.mean(axis=-1)
    covariance = np.eye(count) * (1 + noise + _JITTER)
    covariance[row, column] = covariance[column, row] = weight * together + (1 - weight) * added
    try:
        factor = cho_factor(covariance, lower=True, check_finite=False)
    except LinAlgError:
        return 1e6, np.zeros_like(theta)
    inverse = cho_solve(factor, np.eye(count), check_finite=False)
    weights = inverse @ scaled
    variance = max(float(scaled @ weights) / count, 1e-9)
    away = (theta - usual) / spread
    cost = 0.5 * count * np.log(variance) + np.log(np.diag(factor[0])).sum() + 0.5 * away @ away
    by_pair = inverse[row, column] - weights[row] * weights[column] / variance
    by_length = weight * slope[:, None] * squares + (1 - weight) / len(theta[:-2]) * slopes * squares
    gradient = np.concatenate(
        [
            by_pair @ by_length,
            [0.5 * noise * (np.trace(inverse) - weights @ weights / variance)],
            [weight * (1 - weight) * (by_pair @ (together - added))],
        ]
    )
    return float(cost), gradient + away / spread
