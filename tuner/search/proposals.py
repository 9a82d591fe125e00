"""What is tried next: the sampler's proposals, without what is known already and what can never run."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any

from ray.tune.search import Searcher

from tuner.failures import Cause, Failure
from tuner.search.encoding import Encoding
from tuner.search.queue import Pending, Queue
from tuner.space import SearchSpace, config_key
from tuner.suggestion import Config, Losses, Suggestion

_ASKED_IN_A_ROW = 50  # then a configuration is drawn that is known to be new
_REFUSED_IN_A_ROW = 100  # then the engine refuses everything, and the search ends
_DRAWN_IN_A_ROW = 20_000  # from a space that cannot be listed, of which constraints may leave little
_FORBIDDEN_LOSS = 2500.0  # what a constraint forbids is worse than whatever was tried (see objective)


class Proposals:
    """Asks the inner searcher until it proposes what nobody has tried, and draws it where it never does.

    `losses` is what is known, by configuration: what is found there is never a trial again. Of what a
    constraint forbids or the engine refuses the inner searcher learns at once, and it costs no trial.
    """

    def __init__(
        self,
        inner: Searcher,
        encoding: Encoding,
        space: SearchSpace,
        queue: Queue,
        metrics: tuple[str, ...],
        seed: int,
    ) -> None:
        self.losses: dict[str, Losses] = {}
        self._inner, self._encoding, self._space, self._queue = inner, encoding, space, queue
        self._metrics = metrics
        self._random = random.Random(seed)  # noqa: S311  a reproducible draw, no secret
        self._refuse: Callable[[Config], Failure | None] = lambda config: None
        self._on_refused: Callable[[Suggestion, Failure], float] = lambda suggestion, why: _FORBIDDEN_LOSS
        self._refused_in_a_row = 0
        self._lacked: Mapping[str, float] = {}
        self._given_up: set[str] = set()
        self._asked = self._numbered = 0
        self._asked_in_a_row = _ASKED_IN_A_ROW
        self._exhausted = False  # nothing was found when last asked, and nothing can have come since

    def guard(
        self, refuse: Callable[[Config], Failure | None], on_refused: Callable[[Suggestion, Failure], float]
    ) -> None:
        """Sets who says why a configuration can never run, and who records it and gives its loss."""
        self._refuse, self._on_refused = refuse, on_refused

    def recall(self, next_number: int, trials: int, lacked: Mapping[str, float]) -> None:
        """Numbers go on. The inner searcher proposes what was tried, `trials` of them, before all else.

        `lacked` are the losses on record of those that no node had the GPUs for, which may have come since.
        """
        self._numbered, self._lacked = next_number, lacked
        self._asked_in_a_row += trials

    @property
    def hopeless(self) -> str:
        """Why nothing more is to be had of the engine: a flag that it does not have, most likely."""
        if self._refused_in_a_row < _REFUSED_IN_A_ROW:
            return ""
        return f"the engine has refused {_REFUSED_IN_A_ROW} configurations in a row"

    def next(self) -> Pending | None:
        """A configuration that nobody has tried; None where there is none.

        Tune asks again several times a second while trials run: what was not found then is not sought again.
        """
        found = None if self._exhausted else self._sought()
        self._exhausted = found is None
        return found

    def _sought(self) -> Pending | None:
        for _ in range(self._asked_in_a_row):
            if self.hopeless:
                return None
            self._asked += 1
            inner_id = f"ask-{self._asked}"
            point: Any = self._inner.suggest(inner_id)
            if point is None or point == Searcher.FINISHED:
                break
            if found := self._take(self._encoding.decode(point), inner_id):
                return found
        return self._drawn()

    def new(self, kind: str, config: Config, inner_id: str | None = None) -> Pending:
        """`config` as a trial with the next number."""
        suggestion = Suggestion(self._numbered, kind, config)
        self._numbered += 1
        return Pending(suggestion, [inner_id] if inner_id else [])

    def told(self, pending: Pending, losses: Losses) -> None:
        """The trial came to that, which the inner searcher is told as often as it has proposed it."""
        self.losses[pending.suggestion.key] = losses
        self._tell(pending.inner_ids, losses)
        if self._exhausted:  # of a space that cannot be listed, the inner searcher may now propose the rest
            self._exhausted = self._space.enumerable()

    def give_up(self, pending: Pending) -> None:
        """A trial that was lost again and again teaches nothing, and is not proposed again."""
        self._given_up.add(pending.suggestion.key)
        self._forget(pending.inner_ids)

    def withdrawn(self) -> list[Suggestion]:
        """Those that waited and are refused: no node has GPUs for them any more, most likely after a loss."""

        def refused(suggestion: Suggestion) -> bool:
            if suggestion.kind == "baseline" or not self._queue.capacity.lacks(suggestion.config):
                return False
            if suggestion.kind == "confirm":  # what it measured before stands
                return True
            if failure := self._refuse(suggestion.config):
                self._record_refused(suggestion, failure)
            return failure is not None

        gone = self._queue.withdrawn(refused)
        for pending in gone:
            self._tell(pending.inner_ids, self.losses[pending.suggestion.key])
        return [pending.suggestion for pending in gone]

    def _take(self, config: Config, inner_id: str) -> Pending | None:
        """`config` as a new trial, unless the answer to it is known already or on its way."""
        key = config_key(config)
        if key not in self.losses:
            if key in self._given_up:
                self._forget([inner_id])
                return None
            for pending in self._queue:
                if pending.suggestion.key == key and pending.suggestion.kind != "baseline":
                    pending.inner_ids.append(inner_id)
                    return None
            if not self._space.allows(config):
                self.losses[key] = self._alike(_FORBIDDEN_LOSS)
            elif not self._refused(config):
                return self.new("search", config, inner_id)
        self._tell([inner_id], self.losses[key])
        return None

    def _refused(self, config: Config) -> bool:
        """Whether `config` can never run; then that is recorded, as a failure that cost no trial."""
        failure, key = self._refuse(config), config_key(config)
        if failure is None:
            self._refused_in_a_row = 0
            return False
        if failure.cause is Cause.NO_SUCH_GPUS and key in self._lacked:  # it is on record
            self.losses[key] = self._alike(self._lacked[key])
        else:
            self._record_refused(self.new("search", config).suggestion, failure)
        self._refused_in_a_row += 1
        return True

    def _record_refused(self, suggestion: Suggestion, failure: Failure) -> None:
        self.losses[suggestion.key] = self._alike(self._on_refused(suggestion, failure))

    def _drawn(self) -> Pending | None:
        """A configuration drawn from those not tried yet: the sampler keeps proposing what is known.

        None where all are tried, or where none is found that the constraints and the engine allow.
        """
        on_its_way = {pending.suggestion.key for pending in self._queue}
        for config in self._untried(self.losses.keys() | on_its_way | self._given_up):
            if self.hopeless:
                return None
            if not self._refused(config):
                return self.new("search", config)
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

    def _alike(self, loss: float) -> Losses:
        return dict.fromkeys(self._metrics, loss)

    def _tell(self, inner_ids: Sequence[str], losses: Losses) -> None:
        for inner_id in inner_ids:
            self._inner.on_trial_complete(inner_id, losses)

    def _forget(self, inner_ids: Sequence[str]) -> None:
        for inner_id in inner_ids:
            self._inner.on_trial_complete(inner_id, error=True)
