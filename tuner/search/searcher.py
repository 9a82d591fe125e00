"""The searcher that a study gives to Ray Tune.

`StudySearcher` stands between Tune and an inner searcher (OptunaSearch, HyperOptSearch, a grid). It
measures the baseline first, answers for what is already known, keeps to the budget, holds back while
no GPU is free, and at the end measures the best again. The inner searcher sees every outcome as a
finite loss, failures included.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from ray.tune.search import Searcher

from tuner.analysis.front import from_the_knee, front
from tuner.failures import Failure
from tuner.objective import FAILED_TIER, HARD_SLO_TIER
from tuner.plan import FINALISTS
from tuner.search.encoding import Encoding
from tuner.space import SearchSpace, Value, config_key
from tuner.stopping import EarlyStopping, SearchEnd

METRIC, MODE = "loss", "min"
SHARE, ELAPSED = "share", "elapsed_s"  # of a result: how much of the trial's load is done, and in what time
_ASKED_IN_A_ROW = 50  # then a configuration is drawn that is known to be new
_REFUSED_IN_A_ROW = 100  # then the engine refuses everything, and the search ends
_DRAWN_IN_A_ROW = 20_000  # from a space that cannot be listed, of which constraints may leave little
_FORBIDDEN_LOSS = 2500.0  # what a constraint forbids is worse than whatever was tried (see objective)

Config = dict[str, Value]
Losses = dict[str, float]  # by metric: the loss of each objective


def metric_names(objectives: int) -> tuple[str, ...]:
    """The names of the losses in a result, one for each objective."""
    return (METRIC, *(f"{METRIC}_{number}" for number in range(2, objectives + 1)))


@dataclass(frozen=True)
class Suggestion:
    """A trial to run: its number within the study, its kind ("baseline", "search", "confirm"), its flags."""

    number: int
    kind: str
    config: Config

    @property
    def key(self) -> str:
        return config_key(self.config)


@dataclass
class _Pending:
    """A suggestion that is being measured, and every inner id that proposed it."""

    suggestion: Suggestion
    gpus: int
    inner_ids: list[str] = field(default_factory=list)


class StudySearcher(Searcher):
    """The searcher that a study gives to Tune.

    `budget` counts the trials of the search. Then come `rounds` of confirmation, in which the `FINALISTS`
    best configurations and the baseline are measured again in turn: the best of many is partly lucky, and
    only repeats tell luck from gain. `end` ends the search sooner where more of it is not worth its time,
    by what the sampler says of its `expected_gain` among others; `stopping` knows what a trial that was
    stopped early would have come to. `gpus(config)` is what a configuration needs, `total_gpus` what the
    cluster has; without `counts_gpus` both are of CPUs.
    """

    def __init__(
        self,
        inner: Searcher,
        encoding: Encoding,
        space: SearchSpace,
        *,
        budget: int,
        baseline: bool,
        rounds: int,
        seed: int,
        end: SearchEnd | None = None,
        stopping: EarlyStopping | None = None,
        expected_gain: Callable[[], float | None] = lambda: None,
        metrics: tuple[str, ...] = (METRIC,),
        gpus: Callable[[Config], int] = lambda config: 1,
        total_gpus: float = float("inf"),
        share: Callable[[], float] = lambda: 1.0,
        counts_gpus: bool = True,
    ) -> None:
        super().__init__(metric=METRIC, mode=MODE)
        self._inner, self._encoding, self._space = inner, encoding, space
        self.budget, self.baseline, self.rounds = budget, baseline, rounds
        self._baseline_due = baseline
        self._end, self.stopping, self._expected_gain = end or SearchEnd(), stopping, expected_gain
        self.ended_early = ""  # why the search ended before its last trial
        self._gpus, self._total_gpus, self._counts_gpus = gpus, total_gpus, counts_gpus
        self._share = share
        self._refuse: Callable[[Config], Failure | None] = lambda config: None
        self._on_refused: Callable[[Suggestion, Failure], float] = lambda suggestion, why: _FORBIDDEN_LOSS
        self._random = random.Random(seed)  # noqa: S311  a reproducible draw, no secret
        self._metrics = metrics
        self._losses: dict[str, Losses] = {}
        self._measured: dict[str, Config] = {}
        self._confirmations: list[Config] | None = None
        self._refused_in_a_row = 0
        self._pending: dict[str, _Pending] = {}
        self._asked = self._numbered = self._launched = self._repeats = 0
        self._held: _Pending | None = None

    @property
    def planned(self) -> int:
        """Trials of the search at the most, and of the confirmation once it is known what is repeated."""
        return self.budget + self._repeats

    def guard(
        self, refuse: Callable[[Config], Failure | None], on_refused: Callable[[Suggestion, Failure], float]
    ) -> None:
        """Sets who says why a configuration can never run (it then costs no trial), and who records it.

        `on_refused` returns the loss that the sampler is told.
        """
        self._refuse, self._on_refused = refuse, on_refused

    def suggest(self, trial_id: str) -> dict[str, Any] | Any:
        """The next trial's configuration; None while no GPU is free for it, FINISHED at the end."""
        self._held = self._held or self._due()
        if self._held is None:
            return None if self._pending else Searcher.FINISHED
        in_use = sum(pending.gpus for pending in self._pending.values())
        if in_use and in_use + self._held.gpus > self._total_gpus * self._share():
            return None
        pending, self._held = self._held, None
        self._pending[trial_id] = pending
        suggestion = pending.suggestion
        if suggestion.kind != "confirm":
            self._launched += 1
            self._end.began()
        return {"number": suggestion.number, "kind": suggestion.kind, "flags": dict(suggestion.config)}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Intermediate results teach nothing: a trial counts when it ends."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Teaches the outcome; a trial lost to infrastructure is forgotten and may come again."""
        pending = self._pending.pop(trial_id)
        lost = error or not result or METRIC not in result or bool(result.get("infrastructure"))
        if lost or result is None:
            for inner_id in pending.inner_ids:
                self._inner.on_trial_complete(inner_id, error=True)
            return
        suggestion, losses = pending.suggestion, self._final(result)
        if suggestion.kind == "confirm":
            return
        held = pending.gpus if self._counts_gpus else 0
        self._end.ended(self._progress(losses), gpus=held, duration_s=float(result.get(ELAPSED, 0.0)))
        self._losses[suggestion.key] = losses
        self._measured[suggestion.key] = suggestion.config
        for inner_id in pending.inner_ids:
            self._tell(inner_id, losses)

    def _final(self, result: Mapping[str, Any]) -> Losses:
        """What the trial came to; of one that was stopped, what it would have come to, and no best."""
        losses, share = {name: float(result[name]) for name in self._metrics}, float(result.get(SHARE, 1.0))
        if share >= 1 or self.stopping is None or losses[METRIC] >= HARD_SLO_TIER / 2:
            return losses
        expected = self.stopping.expected(share, losses[METRIC])
        return losses if expected is None else {METRIC: max(expected[0], self.stopping.best)}

    def _progress(self, losses: Losses) -> float:
        """The loss that tells whether the search still gets on: of several, lower for each new front."""
        if len(self._metrics) == 1:
            return losses[METRIC]
        known = [list(each.values()) for each in self._losses.values()]
        return -float(len(known)) if front([*known, list(losses.values())])[-1] else math.inf

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the results on disk are the state to resume from."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, see `save`."""

    def _due(self) -> _Pending | None:
        """What comes next: the search, and when all of it has ended, the confirmation."""
        if self._launched < self.budget and not self.ended_early:
            self.ended_early = self._end.reason()
            if not self.ended_early and (found := self._next()):
                return found
        if any(pending.suggestion.kind != "confirm" for pending in self._pending.values()):
            return None
        if self._confirmations is None:
            self._confirmations = self._to_confirm()
            self._repeats = len(self._confirmations)
        return self._new("confirm", self._confirmations.pop(0)) if self._confirmations else None

    def _to_confirm(self) -> list[Config]:
        """The finalists and the baseline, in turn; nothing where nothing beats the baseline."""
        defaults = config_key({})
        of_defaults = self._losses.get(defaults, {}).get(METRIC, math.inf)
        finalists = [self._measured[key] for key in self._ranked() if key != defaults][:FINALISTS]
        if not finalists:
            return []
        served = of_defaults < FAILED_TIER  # else they would only fail again
        return [config for _ in range(self.rounds) for config in [*([{}] if served else []), *finalists]]

    def _ranked(self) -> list[str]:
        """The keys of the configurations that may be recommended, the best first.

        One objective: those that beat the baseline. Several: the front, from its knee on.
        """
        finished = {
            key: list(self._losses[key].values())
            for key in self._measured
            if self._losses[key][METRIC] < HARD_SLO_TIER / 2
        }
        if len(self._metrics) > 1:
            keys, losses = list(finished), list(finished.values())
            return [keys[place] for place in from_the_knee(losses)]
        bound = finished.get(config_key({}), [math.inf])[0]
        return sorted((key for key in finished if finished[key][0] < bound), key=lambda key: finished[key][0])

    def _next(self) -> _Pending | None:
        """A configuration that nobody has tried; None where there is none (for now)."""
        if self._baseline_due:
            self._baseline_due = False
            return self._new("baseline", {})
        for _ in range(_ASKED_IN_A_ROW):
            if self._hopeless:
                return None
            self._asked += 1
            inner_id = f"ask-{self._asked}"
            point: Any = self._inner.suggest(inner_id)
            if point is None or point == Searcher.FINISHED:
                break
            found = self._take(self._encoding.decode(point), inner_id)
            if found:
                self._end.expects(self._expected_gain())
                return found
        return self._drawn()

    def _take(self, config: Config, inner_id: str) -> _Pending | None:
        """`config` as a new trial, unless the answer to it is known already or on its way."""
        key = config_key(config)
        if key in self._losses:
            self._tell(inner_id, self._losses[key])
            return None
        for pending in self._pending.values():
            if pending.suggestion.key == key and pending.suggestion.kind != "baseline":
                pending.inner_ids.append(inner_id)
                return None
        if not self._space.allows(config):
            self._losses[key] = dict.fromkeys(self._metrics, _FORBIDDEN_LOSS)
            self._tell(inner_id, self._losses[key])
            return None
        if self._refused(config):
            self._tell(inner_id, self._losses[key])
            return None
        return self._new("search", config, inner_id)

    @property
    def _hopeless(self) -> bool:
        """Whether the engine refuses whatever is proposed: a flag that it does not have, most likely."""
        return self._refused_in_a_row >= _REFUSED_IN_A_ROW

    def _refused(self, config: Config) -> bool:
        """Whether `config` can never run; then that is recorded, as a failure that cost no trial."""
        failure = self._refuse(config)
        if failure is None:
            self._refused_in_a_row = 0
            return False
        refused = self._new("search", config).suggestion
        self._losses[refused.key] = dict.fromkeys(self._metrics, self._on_refused(refused, failure))
        self._refused_in_a_row += 1
        return True

    def _drawn(self) -> _Pending | None:
        """A configuration drawn from those not tried yet: the sampler keeps proposing what is known.

        None where all are tried, or where none is found that the constraints and the engine allow.
        """
        tried = self._losses.keys() | {pending.suggestion.key for pending in self._pending.values()}
        for config in self._untried(tried):
            if self._hopeless:
                return None
            if not self._refused(config):
                return self._new("search", config)
        return None

    def _untried(self, tried: Set[str]) -> Iterator[Config]:
        if self._space.enumerable():
            left = [config for config in self._space.grid() if config_key(config) not in tried]
            self._random.shuffle(left)
            yield from left
            return
        for _ in range(_DRAWN_IN_A_ROW):
            config = {
                name: domain.draw(self._random.random()) for name, domain in self._space.domains.items()
            }
            if self._space.allows(config) and config_key(config) not in tried:
                yield config

    def _new(self, kind: str, config: Config, inner_id: str | None = None) -> _Pending:
        suggestion = Suggestion(self._numbered, kind, config)
        self._numbered += 1
        return _Pending(suggestion, self._gpus(config), [inner_id] if inner_id else [])

    def _tell(self, inner_id: str, losses: Losses) -> None:
        self._inner.on_trial_complete(inner_id, losses)
