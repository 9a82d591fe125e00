"""The Gaussian process: what it says at, between and far from its points, and what failures teach."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import approx_fprime

from tuner.search.encoding import encode, optuna_integers
from tuner.search.feasibility import chance
from tuner.search.prior import Prior
from tuner.search.surrogate import (
    GaussianProcess,
    _cost,
    _kernel,
    cross_kernel,
    distances,
    expected_improvement,
    improvement_beside,
)
from tuner.search.warp import Warp
from tuner.space import Categorical, Float, SearchSpace, Value

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


def test_the_gradient_of_the_posterior_is_its_slope() -> None:
    rng = np.random.default_rng(0)
    points, unordered = rng.integers(0, 3, (12, 3)) / 2, np.array([False, True, False])
    gaps, usual, spread = distances(points, points, unordered), np.zeros(5), np.ones(5)
    args = (gaps, rng.standard_normal(12), usual, spread)
    theta = np.array([0.3, -0.2, 0.5, -3.0, 0.4])
    slope = approx_fprime(theta, lambda at: _cost(at, *args)[0], 1e-6)
    assert _cost(theta, *args)[1] == pytest.approx(slope, abs=1e-4)


def test_the_kernel_by_tables_is_the_kernel() -> None:
    rng = np.random.default_rng(1)
    points, unordered = rng.integers(0, 4, (30, 3)) / 3, np.array([False, True, False])
    theta = np.array([0.3, -0.2, 0.5, -3.0, 0.4])
    plain = _kernel(distances(points, points[:7], unordered), theta)
    assert cross_kernel(points, points[:7], unordered, theta) == pytest.approx(plain)


def test_the_covariance_is_that_of_the_deviations() -> None:
    points = np.array([[0.0, 0.0], [0.5, 1.0], [1.0, 0.5], [0.2, 0.7]])
    model, there = fitted(points, np.array([3.0, 1.0, 2.0, 1.5])), np.array([[0.8, 0.9], [0.1, 0.2]])
    for _ in range(2):
        _, deviation = model.predict(there)
        assert np.diag(model.predict_with(there, there)[2]) == pytest.approx(deviation**2)
        model.expect(2.0)
    assert model.predict(there)[0].tolist() == [0.0, 0.0]
    assert deviation.tolist() == pytest.approx([2.0, 2.0])


def test_improvement_beside_running_trials_is_what_drawing_all_of_them_gives() -> None:
    rng = np.random.default_rng(3)
    mean, best = np.array([0.2, -0.1, 0.4]), 0.1  # a point, then two that run
    root = rng.normal(size=(3, 3))
    joint = root @ root.T
    drawn = rng.multivariate_normal(mean, joint, 400_000)
    expected = np.maximum(np.minimum(best, drawn[:, 1:].min(axis=1)) - drawn[:, 0], 0).mean()
    outcomes = rng.standard_normal((20_000, 2))
    found = improvement_beside(
        mean[:1],
        np.sqrt(joint[0, :1]),
        best,
        running=mean[1:],
        covariance=joint[1:, 1:],
        shared=joint[:1, 1:],
        outcomes=outcomes,
    )
    assert found == pytest.approx([expected], rel=0.03)


@pytest.mark.parametrize("outcomes", [np.zeros((1, 1)), np.array([[0.7], [-0.7]])])
def test_what_runs_already_improves_nothing_even_where_all_is_known_of_it(outcomes: np.ndarray) -> None:
    points = np.array([[0.0, 0.0], [0.5, 1.0], [1.0, 0.5], [0.2, 0.7]])
    model = fitted(points, np.array([3.0, 1.0, 2.0, 1.5]))
    for running in (np.array([[0.8, 0.9]]), points[:1]):
        some = np.concatenate([running, [[0.3, 0.9]]])
        mean, deviation, shared = model.predict_with(np.concatenate([some, running]), running)
        improvement = improvement_beside(
            mean[:2],
            deviation[:2],
            1.0,
            running=mean[2:],
            covariance=shared[2:],
            shared=shared[:2],
            outcomes=outcomes,
        )
        assert improvement[0] < improvement[1] / 10


def test_noise_is_not_taken_for_a_best() -> None:
    rng = np.random.default_rng(2)
    points = np.repeat(np.linspace(0, 1, 8), 4)[:, None]
    truth = (points[:, 0] - 0.5) ** 2
    losses = truth + 0.1 * rng.standard_normal(len(truth))
    mean, _ = fitted(points, losses, np.array([False])).predict(points)
    assert mean.min() > losses.min() + 0.05
    assert mean.min() == pytest.approx(truth.min(), abs=0.06)


def test_what_failed_makes_its_like_unlikely_to_work() -> None:
    seen = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    worked = np.array([True, True, False, False])
    likely, unlikely = chance(np.array([[0.1, 0.5], [0.9, 0.5]]), seen, worked, ORDERED)
    assert unlikely < 0.2 and likely > 0.8
    (unknown,) = chance(np.array([[5.0, 5.0]]), seen, worked, ORDERED)
    assert unknown == pytest.approx(0.5, abs=0.05)


def test_where_most_fails_the_unknown_fails_too_and_what_is_near_a_success_does_not() -> None:
    seen = np.array([[x, y] for x in (0.0, 1.0) for y in (0.0, 0.5, 1.0)])
    near, unknown = np.array([[0.05, 0.0]]), np.array([[5.0, 5.0]])
    worked = np.array([True, False, False, False, False, False])
    assert chance(unknown, seen, worked, ORDERED)[0] == pytest.approx(0.25, abs=0.05)
    assert chance(near, seen, worked, ORDERED)[0] > 3 * chance(unknown, seen, worked, ORDERED)[0]


def test_ends_of_long_lists_and_of_ranges_are_expected_to_lose_and_others_are_not() -> None:
    space = SearchSpace(
        {
            "long": Categorical((1, 2, 4, 8, 16)),
            "short": Categorical((1, 2, 4)),
            "words": Categorical(("a", "b", "c", "d", "e")),
            "range": Float(0.0, 1.0),
        }
    )
    encoding = encode(space, integers=optuna_integers)
    usual = {"long": 4, "short": 2, "words": "c", "range": 0.5}

    def of(**changes: Value) -> float:
        return float(Prior(space, encoding)(encoding.points([{**usual, **changes}]))[0])

    assert of(long=1) == of(long=16) > of(long=2) > of() == 0
    assert of(range=1.0) == of(range=0.0) > 0
    assert of(short=1) == of(words="a") == 0


losses_of_trials = arrays(float, st.integers(1, 40), elements=st.floats(-100, 200, allow_subnormal=False))


@given(losses_of_trials)
def test_a_warp_keeps_the_order_and_the_lowest(losses: np.ndarray) -> None:
    warped = Warp.of(losses)(losses)
    order = np.argsort(losses)
    assert (np.diff(warped[order]) >= 0).all()
    assert warped.min() == losses.min()
    assert (warped <= losses + 1e-9).all()


def test_a_warp_grows_with_the_trials() -> None:
    losses = np.linspace(0.0, 2.0, 40)
    few, some, many = (Warp.of(losses[:: 40 // n])(np.array([2.0]))[0] for n in (5, 10, 40))
    assert few == 2.0 > some > many


def test_a_warp_leaves_small_gains_what_they_are_and_draws_the_bad_together() -> None:
    warp = Warp.of(np.linspace(0.0, 1.0, 20))
    gain, little, much = warp(np.array([-0.1, 0.01, 10.0]))
    assert gain == -0.1 and little == pytest.approx(0.01, rel=0.02) and much < 1.5


def test_a_cliff_does_not_flatten_what_is_below_it() -> None:
    """Most trials break an SLO, a hundred times worse each: the good are told apart as before."""
    losses = np.concatenate([np.linspace(0.0, 0.5, 8), np.full(12, 50.0)])
    warped = Warp.of(losses)(losses)
    assert np.ptp(warped[:8]) > 0.1 * np.ptp(warped)
