"""What one expects of a configuration before anything is measured, until trials say otherwise.

It is the mean function of the Gaussian process (Rasmussen & Williams 2006, section 2.7), which models what
differs from it. What is known of no space in particular is that the ends of a long list or of a range are
seldom best; earlier studies and the simulator say more at first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tuner.experience import Known
from tuner.objective import HARD_SLO_TIER
from tuner.search.encoding import Encoding
from tuner.search.surrogate import Array, GaussianProcess
from tuner.space import SearchSpace

# Trials in which what is known from elsewhere fades to nothing: it tells where to look first, and little of
# the shape of what is there. On surfaces that teach one another, 4 to 15 differ by no more than chance.
_FADES_IN = 6
_WORTH = 3.0  # trials that its own weight of 1 counts for
_MOST_FITTED = 150  # of one study's configurations
# On eleven measured surfaces, a parabola fitted to the effect of an ordered parameter of five or more values
# is 1.2 ± 0.2 higher at the ends than in the middle (of 17 such parameters, 15 higher); of fewer, 0.2 ± 0.1.
_ENDS = 0.5  # with care: less than half of it
_LONG = 5


class Prior:
    """What each of `knowns` says, in the mean, and as that fades, that the ends lose."""

    def __init__(self, space: SearchSpace, encoding: Encoding, knowns: Sequence[Known] = ()) -> None:
        self._long = np.array(
            [code.ordered and space.domains[name].size() >= _LONG for name, code in encoding.codes.items()],
            dtype=bool,
        )
        self._models = [_model(known[:_MOST_FITTED], encoding) for known in knowns]
        self._weight, self._left = (1.0, 1.0) if knowns else (0.0, 0.0)

    def __call__(self, points: Array) -> Array:
        """What is expected at `points`, (points, parameters): a loss each, but for a constant."""
        expected = (1 - self._left) * self._ends(points)
        return expected + self._weight * self._known(points) if self._weight else expected

    def told(self, points: Array, losses: Array, every: Array) -> None:
        """Weighs what was known by the losses measured at `points`; `every` are those of the whole space.

        A ridge regression towards 1: its weight rises and falls as the losses rise with what was known, to
        none at the least, and then fades.
        """
        if not self._models:
            return
        self._left = max(0.0, 1 - len(losses) / _FADES_IN)
        said, told = self._known(points), losses - losses.mean()
        said -= said.mean()
        worth = _WORTH * float(self._known(every).var())
        weight = (worth + said @ told) / (worth + said @ said) if worth else 0.0
        self._weight = self._left * max(0.0, float(weight))

    def _known(self, points: Array) -> Array:
        said: Array = np.mean([model.predict(points)[0] for model in self._models], axis=0)
        return said

    def _ends(self, points: Array) -> Array:
        """A parabola over the parameters of many ordered values, the same for all of them."""
        if not self._long.any():
            return np.zeros(len(points))
        parabola: Array = _ENDS * ((2 * points[:, self._long] - 1) ** 2).mean(axis=1)
        return parabola


def _model(known: Known, encoding: Encoding) -> GaussianProcess:
    losses = np.array([loss for _, loss in known])
    finished = losses[losses < HARD_SLO_TIER / 2]
    if len(finished):  # what failed is a little worse than the worst
        losses = np.minimum(losses, finished.max() + (float(finished.std()) or 1.0))
        losses -= finished.mean()
    model = GaussianProcess(encoding.unordered)
    model.fit(encoding.points([config for config, _ in known]), losses)
    return model
