"""The searcher that a study gives to Ray Tune.

`StudySearcher` stands between Tune and an inner searcher (OptunaSearch, HyperOptSearch, a grid). It
measures the baseline first, then what is proposed (see `proposals`), keeps to the budget, holds back while
no GPU is free, runs again what was lost to infrastructure (see `queue`), and at the end measures the best
again (see `repeats`). The inner searcher sees every outcome as a finite loss, failures included.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ray.tune.search import Searcher

from tuner.analysis.front import from_the_knee, front
from tuner.capacity import Capacity
from tuner.failures import Failure
from tuner.objective import FAILED_TIER, HARD_SLO_TIER
from tuner.past import Past, PastTrial
from tuner.plan import FINALISTS
from tuner.search.encoding import Encoding
from tuner.search.proposals import Proposals
from tuner.search.queue import Pending, Queue
from tuner.search.repeats import Repeats
from tuner.space import SearchSpace, config_key
from tuner.stopping import EarlyStopping, SearchEnd
from tuner.suggestion import ELAPSED, METRIC, MODE, PLACED, SHARE, Config, Losses, Suggestion

LOG = logging.getLogger("tuner.study")


class StudySearcher(Searcher):
    """The searcher that a study gives to Tune.

    `budget` counts the trials of the search. Then come `rounds` of confirmation, in which the best
    configurations and the baseline are measured again in turn (see `repeats`): the best of many is partly
    lucky, and only repeats tell luck from gain. Where they do not yet, and the search has ended before its
    budget was spent, what is left of it goes into more of them. `end` ends the search sooner where more of
    it is not worth its time, by what the sampler says of its `expected_gain` among others; `stopping` knows
    what a trial that was stopped early would have come to. `capacity` is what the cluster has at any moment.
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
        capacity: Capacity | None = None,
    ) -> None:
        super().__init__(metric=METRIC, mode=MODE)
        self.budget, self.baseline = budget, baseline
        self._baseline_due = baseline
        self._end, self.stopping, self._expected_gain = end or SearchEnd(), stopping, expected_gain
        self.ended_early = ""  # why the search ended before its last trial
        self._queue = Queue(capacity or Capacity())
        self._proposals = Proposals(inner, encoding, space, self._queue, metrics, seed)
        self._losses = self._proposals.losses  # by configuration, as far as known
        self._metrics = metrics
        self._measured: dict[str, Config] = {}
        self._stopped: set[str] = set()  # which were not seen to their end, and lose
        self._repeats = Repeats(rounds)
        self._named: set[str] = set()  # of the best, which were said to be left out of the repeats
        self._searched = 0

    @property
    def planned(self) -> int:
        """Trials of the search at the most, and of the confirmation once it is known what is repeated."""
        return self.budget + self._repeats.planned

    @property
    def waits(self) -> bool:
        """Whether Tune was told that it is finished only to give back the GPUs for which others wait."""
        return bool(self._queue)

    @property
    def gives_way(self) -> bool:
        """Whether those others have not taken them yet."""
        return self._queue.capacity.gives_way()

    def guard(
        self, refuse: Callable[[Config], Failure | None], on_refused: Callable[[Suggestion, Failure], float]
    ) -> None:
        """Sets who says why a configuration can never run (it then costs no trial), and who records it.

        `on_refused` returns the loss that the sampler is told.
        """
        self._proposals.guard(refuse, on_refused)

    def recall(self, past: Past) -> None:
        """Takes the study up where it was left: its numbers go on, and what it knows is not asked again.

        The inner searcher was given the configurations as its first points; each is answered at once.
        """
        self._proposals.recall(past.next_number, len(past.trials), past.lacked)
        self.ended_early = past.ended_early
        self._end.resumed(past.elapsed_s)
        for trial in sorted(past.trials, key=lambda trial: trial.number):  # in the order of their proposals
            self._end.expects(trial.expected_gain)
        for trial in past.trials:  # in the order in which they ended
            if self.stopping and trial.whole:
                self.stopping.finished(trial.curve)
            if trial.kind != "confirm":
                self._remember(trial)
            elif self._repeats.recalled(config_key(trial.config), trial.losses[0]):
                self._end.took(gpus=self._counted(trial.gpus), duration_s=trial.duration_s)

    def _remember(self, trial: PastTrial) -> None:
        key, result = config_key(trial.config), dict(zip(self._metrics, trial.losses, strict=True))
        self._losses[key] = self._final({**result, SHARE: trial.share})
        if trial.refused:
            return
        self._searched += 1
        self._baseline_due &= trial.kind != "baseline"
        gpus = self._counted(trial.gpus)
        self._end.ended(self._progress(self._losses[key]), gpus=gpus, duration_s=trial.duration_s)
        self._measure(key, dict(trial.config), trial.share)

    def suggest(self, trial_id: str) -> dict[str, Any] | Any:
        """The next trial's configuration; None while no GPU is free for it, FINISHED at the end.

        FINISHED as well where nothing runs and others are to have their turn: see `waits`.
        """
        for gone in self._proposals.withdrawn():
            if gone.kind == "confirm":
                self._repeats.withdrawn(gone.key)
            else:
                self._searched -= 1
        pending = self._queue.next(self._due)
        if pending is None:
            return None if self._queue.running else Searcher.FINISHED
        if pending.suggestion.kind != "confirm":
            self._end.began()
        return self._queue.starts(trial_id, pending)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Learns where a trial runs. What it shows teaches nothing: a trial counts when it ends."""
        if PLACED in result:
            self._queue.placed(trial_id, result[PLACED])

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Teaches the outcome; a trial that was lost to infrastructure runs again, and teaches nothing."""
        if error or not result or METRIC not in result or result.get("infrastructure"):
            if given_up := self._queue.lost(trial_id):  # again and again: it cost no trial
                self._proposals.give_up(given_up)
                self._searched -= given_up.suggestion.kind != "confirm"
            return
        pending = self._queue.ended(trial_id)
        suggestion, losses = pending.suggestion, self._final(result)
        gpus = self._counted(self._queue.capacity.needs(suggestion.config))
        duration_s = float(result.get(ELAPSED, 0.0))
        if suggestion.kind == "confirm":
            self._repeats.ended(suggestion.key, losses[METRIC])
            self._end.took(gpus=gpus, duration_s=duration_s)
            return
        self._end.ended(self._progress(losses), gpus=gpus, duration_s=duration_s)
        self._proposals.told(pending, losses)
        self._measure(suggestion.key, suggestion.config, float(result.get(SHARE, 1.0)))

    def _measure(self, key: str, config: Config, share: float) -> None:
        """Takes note of a first run, of which that share was seen."""
        self._measured[key] = config
        self._repeats.first(key, self._losses[key][METRIC])
        if share < 1:
            self._stopped.add(key)

    def _counted(self, gpus: int) -> int:
        """How many GPUs a trial holds; none where CPUs are counted."""
        return gpus if self._queue.capacity.counts_gpus else 0

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

    def _due(self) -> Pending | None:
        """What comes next: the search, and when all of it has ended, the confirmation."""
        if self._searched < self.budget and not self.ended_early:
            at_once = 1 + self._queue.running
            self.ended_early = self._end.reason(running=sum(1 for _ in self._queue), at_once=at_once)
            if not self.ended_early:
                if found := self._next():
                    self._searched += 1
                    return found
                self.ended_early = self._proposals.hopeless
        if any(pending.suggestion.kind != "confirm" for pending in self._queue):
            return None
        again = self._to_repeat()
        return None if again is None else self._proposals.new("confirm", again)

    def _to_repeat(self) -> Config | None:
        """What is measured again next; None where all is told, or nothing beats the baseline.

        What no node has the GPUs for any more is left out: its first measurement stands.
        """
        defaults, several, lacking = config_key({}), len(self._metrics) > 1, self._lacking()
        every = [key for key in self._ranked() if key != defaults and (several or key not in self._stopped)]
        ranked = [key for key in every if key not in lacking]
        if every[:1] != ranked[:1] and every[0] not in self._named:
            self._named.add(every[0])
            LOG.warning("The best, %s, is not measured again: no node has its GPUs any more", every[0])
        served = (  # else it would only fail
            self._losses.get(defaults, {}).get(METRIC, math.inf) < FAILED_TIER and defaults not in lacking
        )
        under_way = Counter(pending.suggestion.key for pending in self._queue)
        key = self._repeats.next(
            ranked[:FINALISTS] if several else ranked,
            under_way,
            baseline=defaults if served else None,
            spare=0 if several else self._spare(under_way.total()),
        )
        return None if key is None else self._measured[key]

    def _lacking(self) -> set[str]:
        """What was measured, and cannot be measured again on the nodes there are now."""
        capacity = self._queue.capacity
        most = capacity.most_gpus
        return {key for key, config in self._measured.items() if capacity.gpus(config) > most}

    def _spare(self, under_way: int) -> int:
        """Trials that are left over for more repeats, as the search has ended before its budget was spent."""
        left = self.budget - self._searched if self.ended_early else 0
        return left if self._end.affords(1 + under_way) else 0

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

    def _next(self) -> Pending | None:
        """The baseline, and then what is proposed; None where that is nothing (for now)."""
        if self._baseline_due:
            self._baseline_due = False
            return self._proposals.new("baseline", {})
        found = self._proposals.next()
        if found and found.inner_ids:  # by the sampler
            found.suggestion = replace(found.suggestion, expected_gain=self._expected_gain())
            self._end.expects(found.suggestion.expected_gain)
        return found
