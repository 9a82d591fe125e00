"""Search: every strategy keeps the same promises, and TPE is worth more than luck."""

from __future__ import annotations

import random
from typing import Any, ClassVar

import pytest
from contracts.strategy_contract import (
    ContinuousStrategyContract,
    Flags,
    Game,
    StrategyContract,
    bowl,
    corners,
    past_with,
)
from hypothesis import given
from hypothesis import strategies as st
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from tuner.errors import TaskError
from tuner.search import make_searcher
from tuner.search.encoding import encode, hyperopt_integers, optuna_integers
from tuner.space import Categorical, Float, Integer, SearchSpace, config_key
from tuner.task import make_task
from tuner.task.model import DEFAULT_PARAMETERS


class TestTpe(ContinuousStrategyContract):
    optimization: ClassVar = {"strategy": "bayesian", "sampler": "tpe"}


class TestHyperopt(ContinuousStrategyContract):
    optimization: ClassVar = {"strategy": "bayesian", "sampler": "hyperopt"}


class TestGp(ContinuousStrategyContract):
    optimization: ClassVar = {"strategy": "bayesian", "sampler": "gp"}

    def test_a_search_that_goes_on_ends_when_it_would_have_ended(self) -> None:
        """Seven in a row of which little is expected end it, wherever the study was cut off among them."""
        lists = {"x": list(range(9)), "y": list(range(9))}
        task = self.task(lists, max_iterations=60, convergence={"least_gain": 0.001})
        loss = lambda flags: bowl(flags, {"x": 2, "y": 7}, lists)  # noqa: E731
        searcher = self.searcher(task)
        whole = Game(searcher, loss).trials
        assert len(whole) < 30 and searcher.ended_early
        for after in (len(whole) - 1, len(whole) - 4):
            rest = Game(self.searcher(task, past=past_with(whole[:after], loss)), loss).trials
            assert len(rest) == len(whole) - after


class TestHybrid(ContinuousStrategyContract):
    optimization: ClassVar = {"strategy": "hybrid"}

    def test_a_coarse_grid_comes_first(self) -> None:
        lists = {"x": list(range(9)), "y": list(range(9)), "z": ["a", "b"]}
        flags = Game(self.searcher(self.task(lists, max_iterations=31))).flags
        coarse = flags[:9]
        assert {config["x"] for config in coarse} == {config["y"] for config in coarse} == {0, 4, 8}
        assert not {config["x"] for config in flags[9:]} <= {0, 4, 8}


class TestHybridWithHyperopt(StrategyContract):
    optimization: ClassVar = {"strategy": "hybrid", "sampler": "hyperopt"}


class TestHierarchical(ContinuousStrategyContract):
    optimization: ClassVar = {"strategy": "hierarchical"}

    def test_a_stage_moves_its_own_parameters_only(self) -> None:
        lists = {"x": list(range(9)), "y": list(range(9)), "z": list(range(9))}
        task = self.task(lists, max_iterations=41, stages=[["z"], ["x", "y"]])
        best = {"x": 2, "y": 7, "z": 6}
        flags = Game(self.searcher(task), lambda flags: bowl(flags, best, lists)).flags
        assert {(config["x"], config["y"]) for config in flags[:8]} == {(4, 4)}  # the middle
        assert {config["z"] for config in flags[10:22]} == {6}  # the best of the first stage
        assert best in flags

    def test_the_sizes_that_take_gpus_come_first(self) -> None:
        flags = Game(self.searcher(self.task(max_iterations=100), gpu_flags=["tp-size"])).flags
        assert [config["tp-size"] for config in flags[:3]] != [2, 2, 2]
        assert len({config["policy"] for config in flags[:3]}) == 1

    @pytest.mark.parametrize("after", [14, 30])
    def test_a_study_that_goes_on_knows_all_that_was_tried_and_stays_in_its_stage(
        self, after: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With four at once, samplers propose by what runs at the moment, which does not come again."""
        lists = {"x": list(range(9)), "y": list(range(9)), "z": list(range(9))}
        task = self.task(lists, max_iterations=41, stages=[["z"], ["x", "y"]])
        loss = lambda flags: bowl(flags, {"x": 2, "y": 7, "z": 6}, lists)  # noqa: E731
        ended = Game(self.searcher(task), loss, at_once=4).trials[:after]
        tried, stages = [trial["flags"] for trial in ended[1:]], 9 + 17
        told: list[Flags] = []  # of what the stages propose, to the search of all parameters
        monkeypatch.setattr(OptunaSearch, "add_evaluated_point", lambda self, point, loss: told.append(point))
        random.Random(0).shuffle(ended)  # they end in another order than they begin
        rest = Game(self.searcher(task, past=past_with(ended, loss)), loss, at_once=4).flags
        assert len(tried) + len(rest) == 40
        assert told == [*tried, *rest][:stages]
        assert {(flags["x"], flags["y"]) for flags in told[:9]} == {(4, 4)}
        assert {flags["z"] for flags in told[9:]} == {6}


class TestHierarchicalTpe(StrategyContract):
    optimization: ClassVar = {"strategy": "hierarchical", "sampler": "tpe"}


class TestRandom(ContinuousStrategyContract):
    optimization: ClassVar = {"strategy": "random"}


class TestRandomSampler(ContinuousStrategyContract):
    optimization: ClassVar = {"sampler": "random"}


class TestGrid(StrategyContract):
    optimization: ClassVar = {"strategy": "grid"}

    def test_without_a_limit_it_runs_through_the_whole_grid(self) -> None:
        game = Game(
            make_searcher(make_task({"optimization": {"strategy": "grid_search", "confirm": 0}}), seed=1)
        )
        assert (len(game.trials), len(set(game.keys))) == (81, 80)

    def test_its_order_is_shuffled(self) -> None:
        task = self.task({"x": list(range(30))})
        xs = [flags["x"] for flags in Game(self.searcher(task)).flags]
        assert sorted(xs) == list(range(30)) != xs


# --- is it any good ------------------------------------------------------------------------------------

SEEDS = range(10)
NOT_FOUND = 31


def found_after(optimization: dict[str, Any], seed: int) -> int:
    """The number of trials after which the best of the documents' 80 configurations was found."""
    best = random.Random(seed).choice(corners(DEFAULT_PARAMETERS))
    task = make_task(
        {"optimization": {**optimization, "max_iterations": 30, "baseline": False, "confirm": 0}}
    )
    flags = Game(make_searcher(task, seed=seed), lambda flags: bowl(flags, best, DEFAULT_PARAMETERS)).flags
    return flags.index(best) + 1 if best in flags else NOT_FOUND


def test_tpe_finds_the_best_of_80_in_30_trials_and_beats_luck() -> None:
    modelled = [found_after({"strategy": "bayesian", "sampler": "tpe"}, seed) for seed in SEEDS]
    lucky = [found_after({"strategy": "random"}, seed) for seed in SEEDS]
    found, by_luck = (sum(count < NOT_FOUND for count in counts) for counts in (modelled, lucky))
    assert found >= 7, modelled
    assert found > by_luck, (modelled, lucky)
    assert sum(modelled) < sum(lucky), (modelled, lucky)


def test_the_gaussian_process_needs_fewer_trials_than_tpe() -> None:
    modelled = [found_after({"strategy": "bayesian", "sampler": "gp"}, seed) for seed in SEEDS]
    tpe = [found_after({"strategy": "bayesian", "sampler": "tpe"}, seed) for seed in SEEDS]
    assert max(modelled) < NOT_FOUND, modelled
    assert sum(modelled) < sum(tpe), (modelled, tpe)


def test_the_gaussian_process_learns_what_fails() -> None:
    """Half of the space fails: its share among the trials that lead to the best is much less."""
    lists = {"x": list(range(8)), "y": list(range(8)), "z": ["a", "b"]}
    task = make_task(
        {
            "parameters": lists,
            "optimization": {
                "sampler": "gp",
                "max_iterations": 30,
                "baseline": False,
                "confirm": 0,
                "convergence": {"least_gain": None},
            },
        }
    )
    best = {"x": 2, "y": 5, "z": "a"}
    failed = lambda flags: flags["z"] == "b"  # noqa: E731
    loss = lambda flags: 2100.0 if failed(flags) else bowl(flags, best, lists)  # noqa: E731
    later = []
    for seed in SEEDS:
        flags = Game(make_searcher(task, seed=seed), loss, at_once=2).flags
        later += flags[2 : flags.index(best)]
    assert sum(map(failed, later)) < len(later) / 4


def test_hyperopt_finds_it_too() -> None:
    modelled = [found_after({"strategy": "bayesian", "sampler": "hyperopt"}, seed) for seed in SEEDS[:5]]
    assert sum(count < NOT_FOUND for count in modelled) >= 3, modelled


def test_cmaes_finds_the_best_of_lists_and_a_range_and_beats_luck() -> None:
    lists = {"x": list(range(12)), "y": [1, 2, 4, 8, 16, 32, 64, 128]}
    best = {"x": 7, "y": 8}

    def loss(flags: Flags) -> float:
        return bowl(flags, best, lists) + 4 * abs(flags["share"] - 0.8)

    def lowest(optimization: dict[str, Any], seed: int) -> float:
        usual = {"baseline": False, "confirm": 0, "max_iterations": 60}
        parameters = {**lists, "share": {"type": "float", "low": 0.0, "high": 1.0}}
        task = make_task({"parameters": parameters, "optimization": {**usual, **optimization}})
        return min(map(loss, Game(make_searcher(task, seed=seed), loss).flags))

    evolved = sorted(lowest({"sampler": "cmaes"}, seed) for seed in SEEDS)
    lucky = sorted(lowest({"strategy": "random"}, seed) for seed in SEEDS)
    assert sum(evolved) < sum(lucky) / 2, (evolved, lucky)


@pytest.mark.parametrize(
    ("parameters", "optimization", "said"),
    [
        ({"x": [1, 2, 3], "policy": ["lpm", "fcfs"]}, {}, "cmaes needs parameters with an order.*policy"),
        ({"x": [1, 2, 3], "y": [1]}, {}, "cmaes needs two parameters that vary"),
        ({"x": [1, 2, 3], "y": [1, 2]}, {"strategy": "hierarchical"}, "hierarchical needs auto, gp or tpe"),
        (
            {"x": [1, 2, 3], "y": [1, 2]},
            {"objective": ["minimize_ttft", "maximize_throughput"]},
            "cmaes has one objective",
        ),
    ],
)
def test_what_cmaes_cannot_search_is_told_with_the_reason(
    parameters: dict[str, Any], optimization: dict[str, Any], said: str
) -> None:
    with pytest.raises(TaskError, match=rf"optimization\.sampler.*{said}"):
        make_task({"parameters": parameters, "optimization": {"sampler": "cmaes", **optimization}})


# --- the encoding --------------------------------------------------------------------------------------

NUMBERS = st.lists(st.integers(-9, 99) | st.floats(-9, 9), min_size=1, max_size=6, unique=True)
WORDS = st.lists(st.sampled_from(["a", "b", None, True, False, 2]), min_size=1, max_size=4, unique_by=repr)
DOMAINS = st.one_of(
    NUMBERS.map(lambda values: Categorical(tuple(values))),
    NUMBERS.map(lambda values: Categorical(tuple(sorted(values)))),
    WORDS.map(lambda values: Categorical(tuple(values))),
    st.builds(
        lambda low, span, step, log: Integer(low, low + span, step, log),
        *(st.integers(1, 50), st.integers(0, 40) | st.just(2_000_000), st.integers(1, 7), st.booleans()),
    ),
    st.builds(
        lambda low, span, step, log: Float(low / 8, (low + span) / 8, step, log),
        *(st.integers(1, 50), st.integers(0, 40), st.sampled_from([None, 0.125, 0.3, 1e-7]), st.booleans()),
    ),
)


@pytest.mark.parametrize("integers", [optuna_integers, hyperopt_integers])
@given(data=st.data(), domains=st.lists(DOMAINS, min_size=1, max_size=4))
def test_whatever_a_sampler_draws_is_a_member(data: st.DataObject, domains: list[Any], integers: Any) -> None:
    space = SearchSpace({f"p{i}": domain for i, domain in enumerate(domains)})
    encoding = encode(space, integers=integers)
    assert encoding.constants.keys().isdisjoint(encoding.codes)
    point = {}
    for name, drawn_from in encoding.tune_space.items():
        if hasattr(drawn_from, "categories"):
            point[name] = data.draw(st.sampled_from(drawn_from.categories))
        elif type(drawn_from).__name__ == "Integer":
            point[name] = data.draw(st.integers(drawn_from.lower, drawn_from.upper - 1))
        else:
            ends = st.sampled_from([drawn_from.lower, drawn_from.upper])
            point[name] = data.draw(ends | st.floats(drawn_from.lower, drawn_from.upper))
    config = encoding.decode(point)
    assert list(config) == list(space.domains)
    assert space.contains(config), (point, config)


@pytest.mark.parametrize("integers", [optuna_integers, hyperopt_integers])
@pytest.mark.parametrize(
    "domain",
    [
        Categorical((1, 2, 4, 8)),
        Categorical((0.9, 0.5)),
        Categorical(("b", "a", True, None)),
        Integer(3, 9),
        Integer(3, 9, 2),
        Float(0.1, 0.5, 0.1),
        Integer(1, 6, log=True),
        Float(0.5, 2.0, 0.5, log=True),
    ],
)
def test_a_sampler_can_reach_every_member(domain: Any, integers: Any) -> None:
    encoding = encode(SearchSpace({"x": domain}), integers=integers)
    drawn = encoding.tune_space["x"].sample(size=400)
    reached = {config_key(encoding.decode({"x": value})) for value in drawn}
    assert reached == {config_key({"x": value}) for value in domain.values()}


def test_neighbours_in_an_ordered_list_are_neighbours_to_the_sampler() -> None:
    encoding = encode(SearchSpace({"x": Categorical((512, 1024, 4096))}), integers=optuna_integers)
    assert [encoding.decode({"x": index})["x"] for index in range(3)] == [512, 1024, 4096]
    words = encode(SearchSpace({"x": Categorical(("a", "b"))}), integers=optuna_integers)
    assert words.tune_space["x"].categories == [0, 1]


def test_what_has_one_value_is_never_asked_for() -> None:
    domains = {"a": Categorical((7,)), "b": Integer(1, 4), "c": Float(0.5, 0.5, 0.1)}
    encoding = encode(SearchSpace(domains), integers=optuna_integers)
    assert list(encoding.tune_space) == ["b"]
    assert encoding.decode({"b": 2}) == {"a": 7, "b": 2, "c": 0.5}


def test_constraints_that_leave_little_of_a_continuous_space_do_not_end_the_search() -> None:
    task = make_task(
        {
            "parameters": {
                "schedule-conservativeness": {"type": "float", "low": 0.0, "high": 1.0},
                "tp-size": [1, 2, 4, 8],
            },
            "constraints": [
                {
                    "when": {"tp-size": {"low": 1}},
                    "require": {"schedule-conservativeness": {"low": 0.5, "high": 0.51}},
                }
            ],
            "optimization": {"max_iterations": 12, "confirm": 0},
        }
    )
    searcher = make_searcher(task, seed=0)
    flags = []
    while (found := searcher.suggest(str(len(flags)))) != Searcher.FINISHED:
        flags.append(found["flags"])
        searcher.on_trial_complete(str(len(flags) - 1), {"loss": float(len(flags))})
    assert len(flags) == 12
    assert all(task.space.contains(config) for config in flags[1:])


def test_what_was_not_found_where_it_cannot_be_listed_is_sought_again_when_a_trial_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    half = {"low": 0.5, "high": 0.5}
    task = make_task(
        {
            "parameters": {name: {"type": "float", "low": 0.0, "high": 1.0} for name in ("x", "y", "z")},
            "constraints": [{"when": {"x": {"low": 0.0}}, "require": {"x": half, "y": half, "z": half}}],
            "optimization": {"strategy": "random", "max_iterations": 12, "confirm": 0},
        }
    )
    searcher = make_searcher(task, seed=0)
    assert isinstance(searcher.suggest("the baseline"), dict)
    assert searcher.suggest("more") is None, "one of a thousand million is left, and was not drawn"
    tried: list[Any] = []
    monkeypatch.setattr(SearchSpace, "allows", lambda space, config: tried.append(config))
    assert searcher.suggest("more") is None and not tried
    searcher.on_trial_complete("the baseline", {"loss": 1.0})
    assert searcher.suggest("more") == Searcher.FINISHED and tried
