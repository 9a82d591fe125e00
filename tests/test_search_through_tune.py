"""Ray Tune changes nothing: its trials are those of the same searcher asked and answered in a loop.

So what `benchmarks/search_quality.py` measures in a loop holds for a study.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from contracts.strategy_contract import Game, bowl, corners
from ray import tune

from tuner.search import make_searcher
from tuner.space import config_key
from tuner.suggestion import METRIC, MODE, SHARE
from tuner.task import make_task

LISTS = {"x": list(range(8)), "y": list(range(8)), "z": ["a", "b", "c"]}
BEST = {"x": 6, "y": 2, "z": "b"}

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def looked_up() -> type[tune.Trainable]:
    """A trainable whose loss is known beforehand; a local class, for workers cannot import tests."""
    losses = {config_key(flags): bowl(flags, BEST, LISTS) for flags in [{}, *corners(LISTS)]}

    class LookedUp(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            self._flags = config["flags"]

        def step(self) -> dict[str, Any]:
            return {METRIC: losses[config_key(self._flags)], SHARE: 1.0, tune.result.DONE: True}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """Nothing."""

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self._flags = new_config["flags"]
            return True

    return LookedUp


@pytest.mark.parametrize(
    "optimization", [{"sampler": "gp"}, {"sampler": "tpe"}, {"strategy": "hierarchical"}], ids=str
)
def test_tune_runs_the_same_trials_in_the_same_order(optimization: dict[str, Any], tmp_path: Path) -> None:
    task = make_task(
        {"parameters": LISTS, "optimization": {**optimization, "max_iterations": 14, "confirm": 1}}
    )
    alone = Game(make_searcher(task, seed=3), lambda flags: bowl(flags, BEST, LISTS)).trials
    trials = tune.Tuner(
        looked_up(),
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode=MODE,
            search_alg=make_searcher(task, seed=3),
            num_samples=-1,
            max_concurrent_trials=1,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
    ).fit()
    through_tune = sorted(
        (trial.config for trial in trials if trial.config), key=lambda config: config["number"]
    )
    assert through_tune == alone
