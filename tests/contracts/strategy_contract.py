"""What every search strategy must do. Subclass `StrategyContract` and set `optimization`."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from ray.tune.search import Searcher

from tuner.capacity import Capacity, Node
from tuner.failures import Cause, Failure, Stage
from tuner.past import Past, PastTrial
from tuner.search import StudySearcher, make_searcher
from tuner.search.encoding import Encoding
from tuner.search.searcher import LOG
from tuner.space import SearchSpace, config_key
from tuner.suggestion import ATTEMPTS, PLACED
from tuner.task import Task, make_task

Flags = Mapping[str, Any]
SMALL = {"tp-size": [1, 2, 4], "policy": ["lpm", "fcfs"], "mixed": {"type": "boolean"}}  # 12 configurations


def loss_of(flags: Flags) -> float:
    """A made-up loss that every parameter moves."""
    return math.fsum(len(str(value)) + 0.1 * len(name) for name, value in flags.items() if value)


class Game:
    """Plays a study without Tune: asks for trials, at most `at_once` of them running, and answers.

    `lose` says of a suggestion whether its trial is lost to infrastructure.
    """

    def __init__(
        self,
        searcher: StudySearcher,
        loss: Callable[[Flags], float] = loss_of,
        *,
        at_once: int = 1,
        lose: Callable[[dict[str, Any]], bool] = lambda suggestion: False,
        lost_as: Callable[[StudySearcher, str], None] = lambda s, name: s.on_trial_complete(name, error=True),
        most: int = 300,
    ) -> None:
        self.trials: list[dict[str, Any]] = []
        self.running: dict[str, dict[str, Any]] = {}
        self.most_at_once = 0
        self.held_back = 0
        finished = False
        while self.running or not finished:
            while not finished and len(self.running) < at_once:
                assert len(self.trials) < most, "the searcher never ends"
                name = f"trial-{len(self.trials)}"
                suggestion = searcher.suggest(name)
                if suggestion == Searcher.FINISHED:
                    finished = True
                elif suggestion is None:
                    self.held_back += 1
                    assert self.running, "held back although nothing runs"
                    break
                else:
                    assert isinstance(suggestion, dict)
                    self.running[name] = suggestion
                    self.trials.append(suggestion)
                    self.most_at_once = max(self.most_at_once, len(self.running))
                    self.started(suggestion)
            if self.running:
                name = next(iter(self.running))
                ended = self.running.pop(name)
                searcher.on_trial_result(name, {"loss": 1e9})  # what is not final teaches nothing
                if lose(ended):
                    lost_as(searcher, name)
                else:
                    searcher.on_trial_complete(name, {"loss": loss(ended["flags"])})

    def started(self, suggestion: dict[str, Any]) -> None:
        """Called with every trial as it starts."""

    @property
    def flags(self) -> list[dict[str, Any]]:
        """The configurations in order, without the baseline."""
        return [trial["flags"] for trial in self.trials if trial["kind"] == "search"]

    @property
    def keys(self) -> list[str]:
        return [config_key(flags) for flags in self.flags]


def lost_with_a_result(searcher: StudySearcher, name: str) -> None:
    searcher.on_trial_complete(name, {"loss": 2300.0, "infrastructure": True})


def lost_without_a_result(searcher: StudySearcher, name: str) -> None:
    searcher.on_trial_complete(name, {})


def better_than_the_defaults(flags: Flags) -> float:
    """`loss_of`, with the baseline worse than all."""
    return loss_of(flags) if flags else 1000.0


def past_with(trials: Sequence[dict[str, Any]], loss: Callable[[Flags], float] = loss_of) -> Past:
    """A study whose `trials` have ended, as they would be read from its results."""
    ended = [
        PastTrial(
            number=trial["number"],
            kind=trial["kind"],
            config=trial["flags"],
            losses=(loss(trial["flags"]),),
            share=1.0,
            curve={1.0: loss(trial["flags"])},
            gpus=1,
            duration_s=1.0,
            refused=False,
            finished=True,
            expected_gain=trial["expected_gain"],
        )
        for trial in trials
    ]
    following = 1 + max((trial["number"] for trial in trials), default=-1)
    return Past({}, tuple(ended), following, float(len(ended)), (), len(ended), 0, None)


class StrategyContract:
    """Holds for every strategy, as `make_searcher` makes it for a task with `optimization`."""

    optimization: ClassVar[dict[str, Any]]

    def task(self, parameters: dict[str, Any] | None = None, **changes: Any) -> Task:
        """A task of this strategy; `changes` go into `optimization`, but for `constraints`."""
        constraints = changes.pop("constraints", [])
        usual = {"n_initial_random": 3, "confirm": 0, "convergence": {"least_gain": None}}
        return make_task(
            {
                "parameters": SMALL if parameters is None else parameters,
                "constraints": constraints,
                "optimization": {**self.optimization, **usual, **changes},
            }
        )

    def searcher(self, task: Task, seed: int = 1, **limits: Any) -> StudySearcher:
        return make_searcher(task, seed=seed, **limits)

    def test_the_baseline_comes_first_and_trials_are_numbered(self) -> None:
        trials = Game(self.searcher(self.task(max_iterations=6))).trials
        begun = {"number": 0, "kind": "baseline", "flags": {}, "attempt": 1, "expected_gain": None}
        assert trials[0] == {**begun, "cpus": 1, "avoid": []}
        assert [trial["number"] for trial in trials] == list(range(6))
        assert {trial["kind"] for trial in trials[1:]} == {"search"}

    @pytest.mark.parametrize("baseline", [True, False])
    def test_the_budget_counts_every_trial(self, baseline: bool) -> None:
        searcher = self.searcher(self.task(max_iterations=7, baseline=baseline))
        game = Game(searcher)
        assert len(game.trials) == searcher.budget == 7
        assert len(game.flags) == 7 - baseline
        assert searcher.suggest("more") == Searcher.FINISHED

    @pytest.mark.parametrize("at_once", [1, 3])
    @pytest.mark.parametrize("baseline", [True, False])
    def test_the_best_are_measured_again_at_the_end(self, baseline: bool, at_once: int) -> None:
        searcher = self.searcher(self.task(max_iterations=9, confirm=2, baseline=baseline))
        trials = Game(searcher, lambda flags: loss_of(flags) if flags else 100.0, at_once=at_once).trials
        searched, again = trials[:9], trials[9:]
        assert {trial["kind"] for trial in searched} <= {"baseline", "search"}
        ranked = sorted((t["flags"] for t in searched if t["flags"]), key=loss_of)
        finalists = [{}, *ranked[:2]] if baseline else ranked[:2]
        assert [(trial["kind"], trial["flags"]) for trial in again] == [("confirm", f) for f in finalists * 2]
        assert [trial["number"] for trial in trials] == list(range(searcher.planned))

    def test_what_is_worse_than_the_defaults_is_not_measured_again(self) -> None:
        searcher = self.searcher(self.task(max_iterations=9, confirm=2))
        trials = Game(searcher, lambda flags: loss_of(flags) if flags else -1.0).trials
        assert len(trials) == 9

    @pytest.mark.parametrize("at_once", [1, 4])
    def test_every_configuration_once_and_then_finished(self, at_once: int) -> None:
        task = self.task(max_iterations=100)
        game = Game(self.searcher(task), at_once=at_once)
        assert all(task.space.contains(flags) for flags in game.flags)
        assert all(list(flags) == list(task.parameters) for flags in game.flags)
        assert sorted(game.keys) == sorted(map(config_key, task.space.grid()))
        assert game.most_at_once == at_once

    def test_four_at_once_never_run_the_same(self) -> None:
        space = {"a": [1, 2, 3, 4, 5], "b": ["x", "y", "z"], "c": [0.5, 0.6]}
        game = Game(self.searcher(self.task(space, max_iterations=20)), at_once=4)
        assert len(game.keys) == len(set(game.keys)) == 19
        assert game.most_at_once == 4

    def test_the_same_seed_gives_the_same_sequence(self) -> None:
        task = self.task(max_iterations=10)
        first, second = (Game(self.searcher(task, seed=5), at_once=2).trials for _ in range(2))
        assert first == second
        others = [Game(self.searcher(task, seed=seed), at_once=2).trials for seed in (6, 7, 8)]
        assert any(other != first for other in others)

    def test_failures_are_outcomes_like_others(self) -> None:
        def failing(flags: Flags) -> float:
            return {1: 2300.0, 2: 2050.0, 4: 1003.2}.get(flags.get("tp-size", 0), 1.0)

        for loss in (failing, lambda flags: 2300.0):
            game = Game(self.searcher(self.task(max_iterations=100)), loss, at_once=2)
            assert len(game.keys) == len(set(game.keys)) == 12

    @pytest.mark.parametrize(
        "lost_as",
        [
            lambda searcher, name: searcher.on_trial_complete(name, error=True),
            lost_with_a_result,
            lost_without_a_result,
        ],
        ids=["error", "infrastructure", "no result"],
    )
    def test_what_infrastructure_lost_runs_again_and_costs_nothing(self, lost_as: Any) -> None:
        searcher = self.searcher(self.task(max_iterations=100))
        lose = lambda trial: trial["number"] in (0, 1, 3) and trial["attempt"] < ATTEMPTS  # noqa: E731
        game = Game(searcher, lose=lose, lost_as=lost_as)
        attempts = Counter(trial["number"] for trial in game.trials)
        assert attempts == {number: ATTEMPTS if number in (0, 1, 3) else 1 for number in range(13)}
        assert set(game.keys) == set(map(config_key, self.task().space.grid()))

    def test_what_is_lost_again_and_again_is_given_up_and_cost_no_trial(self) -> None:
        searcher = self.searcher(self.task(max_iterations=9))
        game = Game(searcher, lose=lambda trial: trial["number"] in (1, 2, 3))
        attempts = Counter(trial["number"] for trial in game.trials)
        assert attempts == {number: ATTEMPTS if number in (1, 2, 3) else 1 for number in range(12)}
        assert len(set(game.keys)) == 11

    def test_a_trial_that_was_lost_avoids_the_nodes_that_lost_it(self) -> None:
        nodes = [Node(name, name, 4.0, 8.0) for name in ("a", "b", "c")]
        searcher = self.searcher(self.task(), capacity=Capacity(nodes=lambda: nodes))
        avoided = []
        for attempt, node in enumerate(("a", "b", "c")):
            trial = searcher.suggest(f"{attempt}")
            assert isinstance(trial, dict) and trial["number"] == 0
            avoided.append(trial["avoid"])
            searcher.on_trial_result(f"{attempt}", {PLACED: node})
            searcher.on_trial_complete(f"{attempt}", error=True)
        assert avoided == [[], ["a"], ["a", "b"]]

    @pytest.mark.parametrize("at_once", [1, 3])
    @pytest.mark.parametrize("after", [0, 1, 5, 10, 12, 15])
    def test_a_study_goes_on_where_it_was_left(self, after: int, at_once: int) -> None:
        task = self.task(max_iterations=10, confirm=2)

        class Killed(Exception):
            pass

        class Cut(Game):
            def started(self, suggestion: dict[str, Any]) -> None:
                if len(self.trials) > after:
                    cut.append(self)
                    raise Killed

        cut: list[Game] = []
        with suppress(Killed):
            cut.append(Cut(self.searcher(task), better_than_the_defaults, at_once=at_once))
        running = [trial["number"] for trial in cut[0].running.values()]
        ended = [trial for trial in cut[0].trials if trial["number"] not in running]
        past = past_with(ended, better_than_the_defaults)
        game = Game(self.searcher(task, past=past), better_than_the_defaults, at_once=at_once)
        assert all(trial["number"] > max(each["number"] for each in ended) for trial in game.trials if ended)
        both = [*ended, *game.trials]
        kinds = Counter(trial["kind"] for trial in both)
        assert kinds == {"baseline": 1, "search": 9, "confirm": 6}
        searched = [config_key(trial["flags"]) for trial in both if trial["kind"] == "search"]
        assert len(set(searched)) == 9
        repeated = Counter(config_key(trial["flags"]) for trial in both if trial["kind"] == "confirm")
        assert set(repeated.values()) == {2}

    def test_a_resumed_study_goes_on_as_if_it_had_not_been_stopped(self) -> None:
        task = self.task(max_iterations=10)
        whole = Game(self.searcher(task)).trials
        for after in range(1, 10):
            rest = Game(self.searcher(task, past=past_with(whole[:after]))).trials
            assert {config_key(trial["flags"]) for trial in rest} & {
                config_key(trial["flags"]) for trial in whole[:after]
            } == set()
            assert len(rest) == 10 - after

    def test_a_trial_waits_until_its_gpus_are_free(self) -> None:
        gpus = lambda flags: int(flags.get("tp-size", 1))  # noqa: E731
        searcher = self.searcher(
            self.task(max_iterations=100), capacity=Capacity(gpus, nodes=lambda: [Node("", "", 4.0, 8.0)])
        )

        class Counted(Game):
            def started(self, suggestion: dict[str, Any]) -> None:
                in_use = sum(gpus(trial["flags"]) for trial in self.running.values())
                assert in_use <= 4

        game = Counted(searcher, at_once=8)
        assert len(game.keys) == len(set(game.keys)) == 12
        assert game.held_back > 0
        assert 1 < game.most_at_once <= 4

    def test_a_trial_that_is_held_back_is_the_next_one(self) -> None:
        searcher = self.searcher(
            self.task(), capacity=Capacity(lambda flags: 2, nodes=lambda: [Node("", "", 3.0, 8.0)])
        )
        assert isinstance(searcher.suggest("a"), dict)
        assert [searcher.suggest("b") for _ in range(5)] == [None] * 5
        searcher.on_trial_complete("a", {"loss": 1.0})
        second = searcher.suggest("b")
        assert isinstance(second, dict) and second["number"] == 1

    def test_a_study_that_gives_way_ends_for_tune_and_goes_on_where_it_was(self) -> None:
        others = [False]
        one = Capacity(nodes=lambda: [Node("", "", 1.0, 8.0)], share=lambda: 0.5, gives_way=lambda: others[0])
        task = self.task(max_iterations=9, confirm=1)
        searcher, trials, turns = self.searcher(task, capacity=one), [], 1
        while True:
            trial = searcher.suggest(name := f"{len(trials)}-{turns}")
            if isinstance(trial, dict):
                trials.append(trial)
                searcher.on_trial_complete(name, {"loss": better_than_the_defaults(trial["flags"])})
                others[0] = True  # who wait by now
            elif trial == Searcher.FINISHED and searcher.waits:
                assert searcher.gives_way
                others[0], turns = False, turns + 1
            else:
                break
        assert trial == Searcher.FINISHED and turns == len(trials) == 9 + 3
        assert trials == Game(self.searcher(task), better_than_the_defaults).trials

    def test_constraints_are_obeyed(self) -> None:
        constraints = [
            {"when": {"tp-size": {"low": 2}}, "require": {"policy": "lpm"}},
            {"when": {"mixed": True}, "require": {"tp-size": [4]}},
        ]
        task = self.task(max_iterations=100, constraints=constraints)
        game = Game(self.searcher(task), at_once=3)
        allowed = [config_key(config) for config in task.space.grid()]
        assert sorted(game.keys) == sorted(allowed)
        assert 1 < len(allowed) < 12

    def test_what_is_refused_is_recorded_once_and_costs_no_trial(self) -> None:
        refused: list[dict[str, Any]] = []

        def refuse(flags: Flags) -> Failure | None:
            no = flags.get("tp-size") == 4 or (flags.get("policy") == "lpm" and flags.get("mixed"))
            return Failure(Stage.CHECK, Cause.NO_SUCH_GPUS, "no") if no else None

        def record(suggestion: Any, failure: Failure) -> float:
            assert failure.cause is Cause.NO_SUCH_GPUS
            refused.append({"number": suggestion.number, "flags": suggestion.config})
            return 2300.0

        searcher = self.searcher(self.task(max_iterations=100))
        searcher.guard(refuse, record)
        game = Game(searcher, at_once=2)
        assert not any(refuse(flags) for flags in game.flags)
        keys = [*game.keys, *(config_key(each["flags"]) for each in refused)]
        assert sorted(keys) == sorted(map(config_key, self.task().space.grid()))
        assert len(refused) == 6
        numbers = [each["number"] for each in (*game.trials, *refused)]
        assert sorted(numbers) == list(range(13))

    @pytest.mark.parametrize("has", [2.0, 4.0])
    def test_what_no_node_had_the_gpus_for_is_tried_where_one_has_and_else_recorded_no_more(
        self, has: float
    ) -> None:
        gpus = lambda flags: int(flags.get("tp-size", 1))  # noqa: E731
        capacity = Capacity(gpus, nodes=lambda: [Node("a", "a", has, 8.0)])
        task = self.task(max_iterations=100)
        large = [config for config in task.space.grid() if gpus(config) == 4]
        ended = Game(self.searcher(task)).trials[:1]
        lacked = {config_key(config): 2300.0 for config in large}
        past = replace(past_with(ended), next_number=5, lacked=lacked)
        recorded: list[Any] = []
        searcher = self.searcher(task, past=past, capacity=capacity)
        searcher.guard(
            lambda config: Failure(Stage.CHECK, Cause.NO_SUCH_GPUS, "") if capacity.lacks(config) else None,
            lambda suggestion, failure: recorded.append(suggestion) or 2300.0,
        )
        trials = Game(searcher).trials
        assert not recorded
        assert [trial["number"] for trial in trials] == list(range(5, 5 + len(trials)))
        assert sum(gpus(trial["flags"]) == 4 for trial in trials) == (4 if has == 4 else 0)
        assert len(trials) == (12 if has == 4 else 8)

    @pytest.mark.parametrize("gone", ["before it went on", "while it repeats"])
    def test_what_no_node_can_hold_any_more_is_not_measured_again(
        self, gone: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(LOG, "propagate", True)  # as it is until a study has run in this process
        gpus = lambda flags: int(flags.get("tp-size", 1))  # noqa: E731
        loss = lambda flags: better_than_the_defaults(flags) - 10 * (gpus(flags) == 4)  # noqa: E731
        nodes = [Node("a", "a", 4.0, 8.0), Node("b", "b", 2.0, 8.0)]
        limits = {"capacity": Capacity(gpus, nodes=lambda: nodes)}
        task = self.task(max_iterations=100, confirm=2)
        if gone == "before it went on":
            ended = Game(self.searcher(task), loss).trials
            searched = [trial for trial in ended if trial["kind"] != "confirm"]
            limits["past"] = past_with(searched, loss)
            del nodes[0]

        def lose(trial: dict[str, Any]) -> bool:
            if trial["kind"] != "confirm" or gpus(trial["flags"]) < 4:
                return False
            nodes[:] = nodes[-1:]
            return True

        trials = Game(self.searcher(task, **limits), loss, lose=lose).trials
        again = [gpus(trial["flags"]) for trial in trials if trial["kind"] == "confirm"]
        assert again.count(4) == (gone == "while it repeats")
        assert sum(each < 4 for each in again) == 6, "two others and the defaults, twice"
        [said] = [record.message for record in caplog.records]
        assert said.startswith("The best, ") and "is not measured again: no node has its GPUs" in said

    def test_a_lost_trial_is_refused_where_its_node_is_left_out(self) -> None:
        gpus = lambda flags: int(flags.get("tp-size", 1))  # noqa: E731
        nodes = [Node("a", "a", 4.0, 8.0), Node("b", "b", 2.0, 8.0)]
        capacity = Capacity(gpus, nodes=lambda: nodes)
        refused: list[int] = []

        def record(suggestion: Any, failure: Failure) -> float:
            refused.append(suggestion.number)
            return 2300.0

        searcher = self.searcher(self.task(max_iterations=100), capacity=capacity)
        searcher.guard(
            lambda config: Failure(Stage.CHECK, Cause.NO_SUCH_GPUS, "") if capacity.lacks(config) else None,
            record,
        )

        def lose(trial: dict[str, Any]) -> bool:
            if gpus(trial["flags"]) < 4:
                return False
            capacity.left_out["a"] = "a"
            return True

        trials = Game(searcher, lose=lose).trials
        [lost] = [trial["number"] for trial in trials if gpus(trial["flags"]) == 4]
        assert lost in refused and len(refused) == 4
        numbers = {trial["number"] for trial in trials} | set(refused)
        assert numbers == set(range(13))

    def test_where_nothing_is_left_nothing_is_sought_while_the_last_trials_run(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of twelve configurations four are refused, so budget is left over for the repeats' time as well."""
        no = Failure(Stage.CHECK, Cause.INVALID_FLAGS, "no")
        searcher = self.searcher(self.task(max_iterations=100, confirm=2))
        searcher.guard(lambda flags: no if flags.get("tp-size") == 4 else None, lambda *_: 2300.0)
        running, names = dict[str, Flags](), map(str, itertools.count())

        def begin() -> None:
            while isinstance(trial := searcher.suggest(name := next(names)), dict):
                running[name] = trial["flags"]

        begin()
        assert len(running) == 9
        sought: list[str] = []
        monkeypatch.setattr(Encoding, "decode", lambda *_: sought.append("a proposal") or {})
        monkeypatch.setattr(SearchSpace, "grid", lambda *_: sought.append("the grid") or iter(()))
        while running:
            name = next(iter(running))
            searcher.on_trial_complete(name, {"loss": better_than_the_defaults(running.pop(name))})
            begin()
        assert int(next(names)) >= 9 + 6 + 15, "nine trials, six repeats, and nothing after each of them"
        assert not sought

    def test_a_study_in_which_everything_is_refused_ends(self) -> None:
        searcher = self.searcher(self.task(max_iterations=100, baseline=False))
        searcher.guard(lambda flags: Failure(Stage.CHECK, Cause.INVALID_FLAGS, "no"), lambda *_: 2300.0)
        assert searcher.suggest("a") == Searcher.FINISHED

    @pytest.mark.parametrize("initial", [0, 1, 50])
    def test_any_number_of_random_trials_first(self, initial: int) -> None:
        game = Game(self.searcher(self.task(max_iterations=9, n_initial_random=initial)))
        assert len(set(game.keys)) == 8

    @pytest.mark.parametrize(
        "parameters",
        [
            {"only": [1]},
            {"only": ["a"], "other": {"type": "integer", "low": 3, "high": 3}},
            {"a.b_c-d": [1, 2], "E": {"type": "boolean"}},
            {"x": [None, "None", True, "True", 1.5]},
            {"x": [5, 1, 3]},
            {"x": [0.9, 0.8, 0.7]},
            {"x": {"type": "integer", "low": 0, "high": 9, "step": 4}},
            {"x": {"type": "integer", "low": 1, "high": 9, "log": True}},
            {"x": {"type": "integer", "low": 2, "high": 16, "step": 7, "log": True}},
            {"x": {"type": "float", "low": 0.1, "high": 0.5, "step": 0.15}},
            {"x": {"type": "float", "low": 0.1, "high": 0.9, "step": 0.1, "log": True}},
            {"x": {"type": "categorical", "values": ["a", "b"]}, "y": [1, 2], "z": ["only"]},
        ],
        ids=str,
    )
    def test_every_kind_of_finite_parameter_is_run_through(self, parameters: dict[str, Any]) -> None:
        task = self.task(parameters, max_iterations=100)
        game = Game(self.searcher(task))
        assert all(task.space.contains(flags) for flags in game.flags)
        assert sorted(game.keys) == sorted(map(config_key, task.space.grid()))


class ContinuousStrategyContract(StrategyContract):
    """Holds for every strategy but the grid."""

    @pytest.mark.parametrize(
        "domain",
        [
            {"type": "float", "low": -1.0, "high": 1.0},
            {"type": "float", "low": 0.5, "high": 0.5},
            {"type": "continuous", "low": 1e-6, "high": 1e3, "log": True},
            {"type": "float", "low": 0.0, "high": 1.0, "step": 1e-9},
            {"type": "integer", "low": -(2**40), "high": 2**40},
            {"type": "integer", "low": 0, "high": 10**9, "step": 7},
            {"type": "integer", "low": 1, "high": 10**9, "log": True},
        ],
        ids=str,
    )
    def test_every_kind_of_endless_parameter(self, domain: dict[str, Any]) -> None:
        task = self.task({"x": domain, "y": ["a", "b", "c"]}, max_iterations=12)
        game = Game(self.searcher(task), at_once=2)
        assert all(task.space.contains(flags) for flags in game.flags)
        assert len(game.keys) == len(set(game.keys))
        assert len(game.flags) == (3 if domain["low"] == domain["high"] else 11)

    def test_it_moves_over_the_whole_of_a_range(self) -> None:
        task = self.task({"x": {"type": "float", "low": 1e-3, "high": 1e3, "log": True}}, max_iterations=40)
        flags = Game(self.searcher(task, seed=3), lambda flags: 0.0).flags
        below = sum(config["x"] < 1 for config in flags)
        assert 5 < below < 34

    def test_constraints_on_what_cannot_be_listed(self) -> None:
        task = self.task(
            {"x": {"type": "float", "low": 0.0, "high": 1.0}, "y": ["a", "b"]},
            max_iterations=10,
            constraints=[{"when": {"y": ["a", "b"]}, "require": {"x": {"high": 0.3}}}],
        )
        game = Game(self.searcher(task))
        assert len(game.flags) == 9
        assert all(config["x"] <= 0.3 for config in game.flags)


def bowl(flags: Flags, best: Flags, lists: Mapping[str, list[Any]]) -> float:
    """A separable loss: squared distance in places of the list, and 1 for a wrong word."""
    total = 0.0
    for name, values in lists.items():
        if name not in flags:
            return 10.0
        away = values.index(flags[name]) - values.index(best[name])
        total += float(away != 0) if isinstance(values[0], str) else away**2 / len(values)
    return total


def corners(lists: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Every combination."""
    return [dict(zip(lists, each, strict=True)) for each in itertools.product(*lists.values())]
