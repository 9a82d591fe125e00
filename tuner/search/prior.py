"""What one expects of a configuration before anything is measured, until trials say otherwise.

`Prior` is what earlier studies and the simulator lead one to expect; `Ends`, where nothing is known, that
the ends of a long list or of a range are seldom best. Either is the mean function of the Gaussian process
(Rasmussen & Williams 2006, section 2.7): the process models what differs from it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tuner.experience import Known
from tuner.objective import HARD_SLO_TIER
from tuner.search.encoding import Encoding
from tuner.search.surrogate import Array, GaussianProcess
from tuner.space import SearchSpace

_WORTH = 3.0  # trials that the prior's own weight of 1 counts for
_MOST_FITTED = 150  # of one study's configurations
# On eleven measured surfaces, a parabola fitted to the effect of an ordered parameter of five or more values
# is 1.2 ± 0.2 higher at the ends than in the middle (of 17 such parameters, 15 higher); of fewer, 0.2 ± 0.1.
_ENDS = 0.5  # with care: less than half of it
_LONG = 5


class Ends:
    """That the ends lose: a parabola over the parameters of many ordered values, the same for all of them."""

    def __init__(self, space: SearchSpace, encoding: Encoding) -> None:
        self._long = np.array(
            [code.ordered and space.domains[name].size() >= _LONG for name, code in encoding.codes.items()],
            dtype=bool,
        )

    def __call__(self, points: Array) -> Array:
        """What is expected at `points`, (points, parameters): a loss each."""
        if not self._long.any():
            return np.zeros(len(points))
        parabola: Array = _ENDS * ((2 * points[:, self._long] - 1) ** 2).mean(axis=1)
        return parabola

    def weight(self, points: Array, losses: Array, spread: float) -> float:
        """1: it is small enough for trials to overrule it."""
        return 1.0


class Prior:
    """The mean of what each of `knowns` says, as losses around zero; it fades as trials contradict it."""

    def __init__(self, knowns: Sequence[Known], encoding: Encoding) -> None:
        self._models = [_model(known[:_MOST_FITTED], encoding) for known in knowns]

    def __call__(self, points: Array) -> Array:
        """What is expected at `points`, (points, parameters): a loss each, less their mean."""
        said: Array = np.mean([model.predict(points)[0] for model in self._models], axis=0)
        return said

    def weight(self, points: Array, losses: Array, spread: float) -> float:
        """By how much to multiply it: 1 at first, then as the losses measured at `points` rise with it.

        A ridge regression towards 1; `spread` is the prior's standard deviation over the whole space.
        """
        said = self(points)
        said, told = said - said.mean(), losses - losses.mean()
        worth = _WORTH * spread**2
        return max(0.0, float((worth + said @ told) / (worth + said @ said))) if spread > 0 else 0.0


def _model(known: Known, encoding: Encoding) -> GaussianProcess:
    losses = np.array([loss for _, loss in known])
    finished = losses[losses < HARD_SLO_TIER / 2]
    if len(finished):  # what failed is a little worse than the worst
        losses = np.minimum(losses, finished.max() + (float(finished.std()) or 1.0))
        losses -= finished.mean()
    model = GaussianProcess(encoding.unordered)
    model.fit(encoding.points([config for config, _ in known]), losses)
    return model
