"""What earlier studies and the simulator lead one to expect of a configuration, until trials say otherwise.

It is the mean function of the Gaussian process (Rasmussen & Williams 2006, section 2.7): the process
models what differs from it. It fades as it is contradicted, for its weight is fitted to the trials too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tuner.experience import Known
from tuner.objective import HARD_SLO_TIER
from tuner.search.encoding import Encoding
from tuner.search.surrogate import Array, GaussianProcess

_WORTH = 3.0  # trials that the prior's own weight of 1 counts for
_MOST_FITTED = 150  # of one study's configurations


class Prior:
    """The mean of what each of `knowns` says, as losses around zero."""

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
