"""The Gaussian process: what it says at, between and far from its points, and what it makes of failures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tuner.search.gp_sampler import _graded
from tuner.search.surrogate import GaussianProcess, distances, expected_improvement

ORDERED = np.array([False, False])


def fitted(points: np.ndarray, losses: np.ndarray, unordered: np.ndarray = ORDERED) -> GaussianProcess:
    model = GaussianProcess(unordered)
    model.fit(points, losses)
    return model


def test_it_goes_through_its_points_and_is_unsure_between_them() -> None:
    points = np.array([[x, y] for x in (0.0, 0.5, 1.0) for y in (0.0, 1.0)])
    losses = (points[:, 0] - 0.3) ** 2 + points[:, 1]
    model = fitted(points, losses)
    mean, deviation = model.predict(points)
    assert mean == pytest.approx(losses, abs=0.05)
    between, unsure = model.predict(np.array([[0.25, 0.5]]))
    assert unsure[0] > deviation.max()
    assert losses.min() - 0.2 < between[0] < losses.max() + 0.2


def test_a_parameter_without_order_is_the_same_or_different() -> None:
    gaps = distances(np.array([[0.0, 0.0], [3.0, 1.0]]), np.array([[2.0, 0.5]]), np.array([True, False]))
    assert gaps.tolist() == [[[1.0, 0.5]], [[1.0, 0.5]]]


def test_it_finds_the_valley_of_a_sum() -> None:
    grid = np.array([[x, y] for x in np.linspace(0, 1, 6) for y in np.linspace(0, 1, 6)])
    losses = (grid[:, 0] - 0.8) ** 2 + 0.5 * (grid[:, 1] - 0.2) ** 2
    known = np.random.default_rng(0).choice(len(grid), 12, replace=False)
    mean, _ = fitted(grid[known], losses[known]).predict(grid)
    assert losses[int(np.argmin(mean))] <= np.sort(losses)[2]


@given(
    arrays(float, st.tuples(st.integers(2, 12), st.just(2)), elements=st.floats(0, 1)),
    st.floats(-1e3, 1e3),
    st.floats(1e-6, 1e3),
)
def test_it_never_gives_up(points: np.ndarray, level: float, scale: float) -> None:
    losses = level + scale * np.sin(7 * points[:, 0]) + scale * points[:, 1]
    mean, deviation = fitted(points, losses).predict(np.array([[0.1, 0.9], [0.5, 0.5]]))
    assert np.isfinite(mean).all() and np.isfinite(deviation).all() and (deviation > 0).all()


def test_improvement_is_more_where_the_mean_is_lower_or_the_doubt_larger() -> None:
    base, lower, unsure = expected_improvement(np.array([1.0, 0.5, 1.0]), np.array([0.1, 0.1, 1.0]), best=0.9)
    assert 0 < base < lower and base < unsure


def test_a_failure_is_a_little_worse_than_the_worst_that_finished() -> None:
    losses = _graded(np.array([0.1, 0.5, 2100.0, 1000.4, 0.3]))
    assert losses[[0, 1, 4]].tolist() == [0.1, 0.5, 0.3]
    assert 0.5 < losses[2] == losses[3] < 1.0
    assert _graded(np.array([2100.0, 2200.0])).tolist() == [2100.0, 2200.0]
