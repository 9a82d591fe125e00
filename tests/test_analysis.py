"""What a study's results are said to show: the best, the gain and its interval, patterns, advice."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import studies
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner import analysis
from tuner.analysis import Status, Verdict
from tuner.analysis.trials import at_levels, rows
from tuner.failures import Cause
from tuner.objective import OBJECTIVES, SloTerm
from tuner.report.sentences import objective_sentence
from tuner.report.words import unit_of
from tuner.space import config_key

LATENCY = OBJECTIVES["minimize_latency"]
# The geometric mean of the objective of `studies.make`'s engine at 4 at a time, noise 0.3, 20 requests.
_TRUTH = 0.8 * math.exp(0.3**2 / 2 - (math.exp(0.3**2) - 1) / 20 / 2)


def frame(scores: list[float | None], *, maximise: bool = False) -> pd.DataFrame:
    """A trials table with these scores; None is a trial that failed."""
    failed = [score is None for score in scores]
    losses = [2100.0 if score is None else math.log(score) * (-1 if maximise else 1) for score in scores]
    return pd.DataFrame(
        {
            "trial": range(len(scores)),
            "kind": "search",
            "config": [{"flag": number % 3} for number in range(len(scores))],
            "score": pd.array(scores, dtype="Float64").to_numpy(float, na_value=math.nan),
            "loss": losses,
            "objectives": [{}] * len(scores),
            "failure_cause": pd.array(["crash" if f else None for f in failed], dtype="str"),
            "slo_hard_failed": False,
            "stopped_early": False,
        }
    )


def equal_trials(seed: int = 0) -> studies.Made:
    """24 configurations that are all the same but for noise."""
    return studies.make(effect=lambda _: 1.0, fails=studies.never_fails, seed=seed, requests=100)


scores = st.lists(st.none() | st.floats(0.01, 100), min_size=1, max_size=40)


class TestStatus:
    @pytest.mark.parametrize(
        ("row", "expected"),
        [
            ({}, Status.FINISHED),
            ({"stopped_early": True}, Status.STOPPED),
            ({"slo_hard_failed": True, "stopped_early": True}, Status.HARD_SLO),
            ({"failure_cause": "crash", "slo_hard_failed": True}, Status.FAILED),
            ({"slo_hard_failed": None, "stopped_early": math.nan}, Status.FINISHED),
        ],
    )
    def test_of_a_row(self, row: dict[str, object], expected: Status) -> None:
        plain = {"failure_cause": math.nan, "slo_hard_failed": False, "stopped_early": False}
        assert analysis.status({**plain, **row}) is expected

    def test_a_failure_names_its_cause(self) -> None:
        trials = studies.make(fails=lambda _: Cause.HANG).results().trials
        assert {analysis.outcome(trial) for trial in rows(trials)} == {"failed: hang"}


class TestBest:
    def test_is_the_fastest_and_its_gain_is_the_true_one(self) -> None:
        answer = analysis.summary(studies.make(requests=100).results())
        assert answer.best is not None and answer.gain is not None
        assert (answer.best["config"]["tp-size"], answer.best["config"]["mem-fraction-static"]) == (2, 0.9)
        true = 1 - studies.factor(answer.best["config"]) / studies.factor({})
        assert answer.gain.low is not None and answer.gain.high is not None
        assert answer.gain.low < true < answer.gain.high
        assert answer.verdict is Verdict.BETTER

    def test_survives_the_disk(self, tmp_path: Path) -> None:
        made = studies.make(studies.grid(studies.PARAMETERS, 5))
        written, in_memory = made.write(tmp_path).read(), made.results()
        assert analysis.summary(written).gain == analysis.summary(in_memory).gain
        assert analysis.next_steps(written) == analysis.next_steps(in_memory)

    def test_is_never_a_trial_that_was_stopped_or_failed(self) -> None:
        fastest = int(analysis.summary(studies.make().results()).best["trial"])  # type: ignore[index]
        best = analysis.summary(studies.make(stopped=[fastest]).results()).best
        assert best is not None and best["trial"] != fastest

    @pytest.mark.parametrize("objective", OBJECTIVES)
    def test_has_the_lowest_loss_and_the_best_score(self, objective: str) -> None:
        results = studies.make(objective=objective).results()
        best, compared = analysis.summary(results).best, analysis.finished(results.trials)
        assert best is not None and best["loss"] == compared["loss"].min()
        assert best["score"] == (
            compared["score"].max() if OBJECTIVES[objective].maximise else compared["score"].min()
        )

    @pytest.mark.parametrize("objective", OBJECTIVES)
    def test_an_objective_is_the_mean_of_its_load_levels(self, objective: str) -> None:
        results = studies.make(studies.grid(studies.PARAMETERS, 5), objective=objective).results()
        for trial in rows(analysis.finished(results.trials)):
            values = at_levels(results, trial).values()
            assert len(values) == 2 and np.mean(list(values)) == pytest.approx(trial["objective"])

    @given(scores)
    def test_of_any_study_has_the_lowest_loss(self, values: list[float | None]) -> None:
        results = replace(studies.make([]).results(), trials=frame(values))
        best = analysis.summary(results).best
        present = [value for value in values if value is not None]
        if best is None:
            assert not present
        else:  # of two that differ in the last bit, the one with the fewest overrides may be taken
            assert best["score"] == pytest.approx(min(present), rel=1e-12)


class TestVerdict:
    def test_equal_trials_are_no_gain(self) -> None:
        verdicts = [analysis.summary(equal_trials(seed).results()).verdict for seed in range(8)]
        assert set(verdicts) == {Verdict.NO_GAIN}

    def test_defaults_that_nothing_beats(self) -> None:
        answer = analysis.summary(studies.make([{"tp-size": 1, "chunked-prefill-size": 512}]).results())
        assert answer.defaults_are_best and answer.verdict is Verdict.NO_GAIN
        assert answer.gain is not None and answer.gain.share == 0

    def test_is_unknown_without_a_baseline(self) -> None:
        answer = analysis.summary(studies.make(baseline=False).results())
        assert (answer.gain, answer.verdict) == (None, Verdict.UNKNOWN)
        assert "not measured" in answer.reason

    def test_is_unknown_where_the_baseline_failed(self) -> None:
        made = studies.make(fails=lambda config: None if config else Cause.CRASH)
        answer = analysis.summary(made.results())
        assert (answer.gain, answer.verdict) == (None, Verdict.UNKNOWN)
        assert "failed: crash" in answer.reason

    def test_is_unknown_where_nothing_finished(self) -> None:
        for made in (studies.make(fails=lambda _: Cause.CRASH), studies.make([], baseline=False)):
            answer = analysis.summary(made.results())
            assert (answer.best, answer.gain, answer.verdict) == (None, None, Verdict.UNKNOWN)

    @pytest.mark.parametrize(("gain", "verdict"), [(1.02, Verdict.NO_GAIN), (1.04, Verdict.BETTER)])
    def test_of_a_throughput_asks_for_more_than_starts_differ_by(self, gain: float, verdict: Verdict) -> None:
        made = studies.make(
            [{"tp-size": 1}],
            objective="maximize_throughput",
            effect=lambda config: 1 / gain if config else 1.0,
            noise=0.0,
        )
        answer = analysis.summary(made.results())
        assert answer.gain is not None and answer.gain.low is not None
        assert answer.gain.share == pytest.approx(gain - 1) and answer.verdict is verdict
        assert answer.gain.share - answer.gain.low == pytest.approx(0.028, rel=0.05)  # 1.96 · √2 · 1 %

    def test_luck_among_many_equal_configurations_is_not_called_better(self) -> None:
        """Each measured once, where starts differ by 0.8 %: the best of 24 is 2 % better by luck."""
        verdicts = [
            analysis.summary(
                studies.make(
                    effect=lambda _: 1.0, noise=0.02, drift=0.008, seed=seed, fails=studies.never_fails
                ).results()
            ).verdict
            for seed in range(40)
        ]
        assert verdicts.count(Verdict.BETTER) <= 4  # 5 % are allowed

    def test_from_nothing_to_something_is_better_and_has_no_share(self) -> None:
        made = studies.make([{"tp-size": 2}], repeats=[{"tp-size": 2}, {}] * 2, fails=studies.never_fails)
        for row in made.trials:
            goodput = 5.0 if row["config"] != "{}" else 0.0
            row |= {"objective_name": "maximize_goodput", "objective": goodput, "score": goodput}
            row["loss"] = -math.log(max(goodput, 1e-9))
        made.about["task"]["optimization"]["objective"] = "maximize_goodput"
        results = made.results()
        for each in (results, analysis.without_repeats(results)):
            answer = analysis.summary(each)
            assert (answer.verdict, answer.gain) == (Verdict.BETTER, None)
            assert answer.reason == "The engine's defaults served no request within the SLOs."
            assert "(engine's defaults: 0 " in objective_sentence(answer, unit_of(each))

    def test_keeping_slos_that_the_defaults_break_is_better(self) -> None:
        made = studies.make([{"tp-size": 2}], terms=[SloTerm("latency", "p90", 1.0)])
        answer = analysis.summary(made.results())
        assert answer.verdict is Verdict.BETTER and "SLOs" in answer.reason

    def test_interval_is_the_same_every_time_and_narrows_with_requests(self) -> None:
        few, again, many = (analysis.summary(studies.make(requests=n).results()).gain for n in (20, 20, 320))
        assert few == again
        assert few and many and few.low and few.high and many.low and many.high
        assert many.high - many.low < (few.high - few.low) / 1.5  # what starts differ by is in both

    def test_what_differs_between_prompts_cancels(self) -> None:
        widths = []
        for sizes in (0.0, 0.8):
            gain = analysis.summary(studies.make(sizes=sizes, noise=0.02).results()).gain
            assert gain and gain.low and gain.high
            widths.append((gain.high - gain.low) / (1 - gain.share))
        assert widths[1] == pytest.approx(widths[0], rel=0.1)

    def test_requests_that_only_one_of_the_two_sent_do_no_harm(self) -> None:
        results = studies.make().results()
        sent = results.requests[(results.requests["trial"] > 0) | (results.requests["request"] < 15)]
        gain = analysis.summary(replace(results, requests=sent)).gain
        assert gain and gain.low and gain.high and gain.low < gain.share < gain.high

    def test_a_trial_that_sent_fewer_requests_is_compared_by_those_that_both_sent(self) -> None:
        results = studies.make(sizes=0.8, noise=0.0, drift=0.0, fails=studies.never_fails).results()
        whole = analysis.summary(results)
        assert whole.gain is not None
        cut = results.requests[(results.requests["trial"] != 0) | (results.requests["request"] < 10)]
        trials = results.trials.copy()
        trials.loc[0, "objective"] *= 1.5  # the mean of other prompts
        gain = analysis.summary(replace(results, requests=cut, trials=trials)).gain
        assert gain is not None
        assert gain.share == pytest.approx(whole.gain.share, rel=1e-6)

    def test_has_the_interval_of_starts_alone_where_requests_are_missing(self) -> None:
        results = studies.make(drift=0.02).results()
        whole = analysis.summary(results).gain
        gain = analysis.summary(replace(results, requests=results.requests.iloc[:0])).gain
        assert gain and gain.low and gain.high and whole and whole.low and whole.high
        assert 0.05 < (gain.high - gain.low) / (1 - gain.share) < (whole.high - whole.low) / (1 - whole.share)


class TestSlo:
    def test_none_asked_for(self) -> None:
        assert analysis.summary(studies.make().results()).slo is None

    def test_counts_trials_that_meet_all(self) -> None:
        results = studies.make(terms=[SloTerm("latency", "p90", 0.8)]).results()
        slo = analysis.summary(results).slo
        met = analysis.finished(results.trials)["slo_met"].sum()
        assert slo is not None and 0 < slo.met == met < slo.judged

    def test_names_the_nearest_and_what_held_it_back(self) -> None:
        terms = [SloTerm("latency", "p90", 0.5, hard_fail=True), SloTerm("ttft", "mean", 10.0)]
        results = studies.make(terms=terms).results()
        answer = analysis.summary(results)
        assert answer.best is None and answer.slo is not None and answer.slo.met == 0
        assert answer.slo.held_back_by == "latency p90"
        worst = analysis.measured(results.trials)["slo_worst_violation"]
        assert answer.slo.violation == worst.min() > 0


class TestConvergence:
    @given(scores, st.booleans())
    def test_is_monotone_and_ends_at_the_best(self, values: list[float | None], maximise: bool) -> None:
        objective = OBJECTIVES["maximize_throughput"] if maximise else LATENCY
        best = analysis.convergence(frame(values, maximise=maximise), objective)
        assert len(best) == len(values)
        for before, after in itertools.pairwise(best.dropna()):
            assert before == after or objective.better(after, before)
        present = [value for value in values if value is not None]
        if present:
            assert best.iloc[-1] == (max(present) if maximise else min(present))

    def test_is_nan_until_a_trial_finished(self) -> None:
        best = analysis.convergence(frame([None, 2.0, 3.0]), LATENCY)
        assert math.isnan(best[0]) and list(best[1:]) == [2.0, 2.0]


class TestRandomExpectation:
    @given(st.lists(st.integers(-50, 50), min_size=1, max_size=7), st.data())
    @settings(max_examples=50)
    def test_is_the_mean_over_all_draws(self, values: list[int], data: st.DataObject) -> None:
        n = data.draw(st.integers(1, len(values)))
        every = [min(draw) for draw in itertools.combinations(values, n)]
        assert analysis.random_expectation(values, n) == pytest.approx(np.mean(every))

    @pytest.mark.parametrize("n", [0, 4])
    def test_refuses_draws_that_cannot_be(self, n: int) -> None:
        with pytest.raises(ValueError, match="cannot draw"):
            analysis.random_expectation([1.0, 2.0, 3.0], n)


class TestPareto:
    @given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=25))
    def test_nothing_in_it_is_beaten_and_everything_else_is(self, points: list[tuple[int, int]]) -> None:
        steps = pd.DataFrame(points, columns=["latency_mean_s", "total_tok_s_per_gpu"], dtype=float)
        front = set(analysis.pareto(steps).itertuples(index=False, name=None))
        for x, y in points:
            beaten = any(a <= x and b >= y and (a, b) != (x, y) for a, b in points)
            assert ((x, y) in front) is not beaten

    def test_leaves_out_what_was_not_measured(self) -> None:
        steps = pd.DataFrame({"latency_mean_s": [1.0, math.nan], "total_tok_s_per_gpu": [5.0, 9.0]})
        assert list(analysis.pareto(steps).index) == [0]


class TestImportance:
    def test_finds_what_matters_and_what_does_not(self) -> None:
        shares = analysis.importance(studies.make(studies.grid(studies.PARAMETERS, 60)).results())
        assert shares is not None and all(0 <= share <= 1 for share in shares.values())
        assert next(iter(shares)) == "tp-size"
        assert shares["schedule-policy"] < 0.1 < shares["chunked-prefill-size"]

    def test_of_a_continuous_parameter(self) -> None:
        rng = np.random.default_rng(0)
        configs = [
            {"mem-fraction-static": float(x), "schedule-policy": str(rng.choice(["lpm", "fcfs"]))}
            for x in rng.uniform(0.3, 0.9, 40)
        ]
        space = {
            "mem-fraction-static": {"type": "float", "low": 0.3, "high": 0.9},
            "schedule-policy": ["lpm", "fcfs"],
        }
        made = studies.make(configs, parameters=space, fails=studies.never_fails, noise=0.02)
        shares = analysis.importance(made.results())
        assert shares is not None
        assert shares["mem-fraction-static"] > 0.7 and shares["schedule-policy"] < 0.2

    def test_needs_trials_and_values(self) -> None:
        few = studies.make(studies.grid(studies.PARAMETERS, 5))
        same = studies.make([{"tp-size": 2}] * 20)
        for made in (few, same, studies.make([], baseline=False), studies.make(fails=lambda _: Cause.CRASH)):
            assert analysis.importance(made.results()) is None

    @pytest.mark.parametrize("places", [(3, 2, 1, 0), (2, 0, 3, 1)])
    def test_is_the_same_however_a_list_is_written(self, places: tuple[int, ...]) -> None:
        sizes = studies.PARAMETERS["chunked-prefill-size"]
        shares = [
            analysis.importance(
                studies.make(parameters={**studies.PARAMETERS, "chunked-prefill-size": listed}).results()
            )
            for listed in (sizes, [sizes[place] for place in places])
        ]
        assert shares[0] is not None and shares[1] == pytest.approx(shares[0])

    def test_of_a_long_list_that_descends(self) -> None:
        sizes = list(range(32))
        shares = [
            analysis.importance(
                studies.make(
                    [{"x": size, "y": size % 3} for size in sizes],
                    parameters={"x": listed, "y": [0, 1, 2]},
                    effect=lambda config: 1.0 + (config.get("x", 0) >= 29),
                    fails=studies.never_fails,
                ).results()
            )
            for listed in (sizes, sizes[::-1])
        ]
        assert shares[0] is not None and shares[1] == pytest.approx(shares[0])

    def test_of_what_exists_only(self) -> None:
        """Where one parameter decides another, each by itself explains all that differs."""
        sizes = [1, 2, 3, 4, 5, 6, 7, 8]
        parameters = {"tp-size": sizes, "max-running-requests": sizes}
        made = studies.make(
            [{"tp-size": n, "max-running-requests": n} for n in sizes],
            parameters=parameters,
            effect=lambda config: float(config.get("tp-size", 1)),
            fails=studies.never_fails,
        )
        made.about["task"]["constraints"] = [
            {"when": {"tp-size": n}, "require": {"max-running-requests": n}} for n in sizes
        ]
        shares = analysis.importance(made.results())
        assert shares == pytest.approx({"tp-size": 1.0, "max-running-requests": 1.0})


class TestEffects:
    def test_by_value_in_natural_order(self) -> None:
        results = studies.make().results()
        table = analysis.effects(results.trials, "mem-fraction-static")
        assert [group.first for group in table["group"]] == [0.7, 0.75, 0.8, 0.85, 0.9]
        assert table["trials"].sum() == 24
        assert table["n"].sum() == len(analysis.finished(results.trials)) - 1  # the baseline sets no flag
        shown = table[table["n"] > 0]
        assert ((shown["low"] < shown["mean"]) & (shown["mean"] < shown["high"])).all()

    def test_many_numbers_are_cut_into_bins(self) -> None:
        configs = [{"flag": float(value)} for value in np.linspace(0, 1, 40)]
        table = analysis.effects(studies.make(configs).results().trials, "flag")
        assert len(table) == 5 and list(table["trials"]) == [8] * 5
        ends = [end for group in table["group"] for end in (group.first, group.last)]
        assert ends == sorted(ends) and (ends[0], ends[-1]) == (0.0, 1.0)

    def test_intervals_hold_the_truth_as_often_as_they_say(self) -> None:
        held = 0
        for seed in range(60):
            configs = [{"flag": value, "other": k} for value in (1, 2, 3) for k in range(4)]
            made = studies.make(configs, effect=lambda _: 1.0, noise=0.3, seed=seed, requests=20, levels=(4,))
            table = analysis.effects(made.results().trials, "flag")
            held += int(((table["low"] < _TRUTH) & (table["high"] > _TRUTH)).sum())
        assert held >= 0.88 * 180

    def test_an_objective_of_zero_has_no_logarithm_and_takes_no_interval_away(self) -> None:
        configs = [{"flag": value} for value in (1, 1, 2, 2, 3)]
        trials = studies.make(configs).results().trials
        trials.loc[trials["trial"] == 5, "objective"] = 0.0  # as where no request keeps the SLOs
        table = analysis.effects(trials, "flag")
        assert list(table["n"]) == [2, 2, 1]
        assert np.isfinite(table[["mean", "low", "high"]].to_numpy(float)).all(axis=1).tolist() == [
            True,
            True,
            False,
        ]

    def test_tells_one_from_true_and_handles_none(self) -> None:
        configs = [{"flag": value} for value in (True, 1, "b", None, "a", 1, 0.5)]
        table = analysis.effects(studies.make(configs).results().trials, "flag")
        assert [repr(group.first) for group in table["group"]] == ["0.5", "1", "None", "True", "'a'", "'b'"]
        assert list(table["n"]) == [1, 2, 1, 1, 1, 1]

    def test_of_an_unknown_parameter_is_empty(self) -> None:
        assert analysis.effects(studies.make().results().trials, "nothing").empty


class TestPairs:
    def test_cells_hold_what_was_measured_and_nothing_else(self) -> None:
        made = studies.make([{"a": 1, "b": "x"}, {"a": 1, "b": "x"}, {"a": 2, "b": "y"}, {"a": 3, "b": "x"}])
        made.trials[-1].update(failure_cause="crash", slo_met=None)
        results = made.results()
        found = analysis.pair(results.trials, "a", "b")
        assert [group.first for group in found.first] == [1, 2, 3]
        assert [group.first for group in found.second] == ["x", "y"]
        assert found.n.tolist() == [[2, 0, 0], [0, 1, 0]]
        assert found.trials.tolist() == [[2, 0, 1], [0, 1, 0]]
        assert np.isnan(found.mean).tolist() == [[False, True, True], [True, False, True]]
        first = results.trials["objective"][1:3]
        assert found.mean[0, 0] == pytest.approx(math.sqrt(first.prod()))


class TestFailures:
    def test_by_value_and_cause(self) -> None:
        trials = studies.make(studies.grid(studies.PARAMETERS, 60)).results().trials
        assert analysis.where_trials_fail(trials)[0] == "mem-fraction-static"
        table = analysis.failures(trials, "mem-fraction-static")
        assert list(table.loc[table["out of memory"] > 0].index) == [analysis.Group(0.9, 0.9)]
        assert int(table.to_numpy().sum()) == 60

    def test_a_rare_cause_is_not_hidden_by_a_common_one(self) -> None:
        configs = [{"a": k % 2, "b": k % 5} for k in range(60)]

        def fails(config: studies.Config) -> Cause | None:
            return Cause.CRASH if config.get("a") else Cause.HANG if config.get("b") == 4 else None

        trials = studies.make(configs, fails=fails).results().trials
        assert set(analysis.where_trials_fail(trials)) == {"a", "b"}

    def test_without_failures_there_is_nothing_to_show(self) -> None:
        trials = studies.make(fails=studies.never_fails).results().trials
        assert analysis.where_trials_fail(trials) == []


class TestRandomSearch:
    def test_finds_what_random_draws_of_a_known_space_find(self) -> None:
        """24 of 80 configurations were tried; the truth is the average over draws of all of them."""
        every = studies.grid(studies.PARAMETERS, 80)
        made = studies.make(every[:24], fails=studies.never_fails, noise=0.01)
        found = analysis.random_search(made.results(), 24)
        assert found is not None and found.size == 80 and len(found.scores) == 24
        assert (np.diff(found.scores) <= 1e-12).all()
        whole = studies.make(every, fails=studies.never_fails, noise=0.01).results()
        losses = list(whole.trials["loss"][1:])
        for n in (1, 5, 24):
            truth = math.exp(analysis.random_expectation(losses, n))
            assert found.scores[n - 1] == pytest.approx(truth, rel=0.1)

    def test_what_failed_in_a_repeat_only_is_worth_what_it_was(self) -> None:
        configs = studies.grid(studies.PARAMETERS, 24)
        best = min(configs, key=studies.factor)
        made = studies.make(configs, fails=studies.never_fails, repeats=[best])
        results = made.results()
        before = analysis.random_search(results, 24)
        repeated = results.trials["kind"] == "confirm"
        results.trials.loc[repeated, "failure_cause"] = str(Cause.OUT_OF_MEMORY)
        after = analysis.random_search(results, 24)
        assert before is not None and after is not None
        assert after.scores == pytest.approx(before.scores, rel=0.01)  # the forest draws in another order

    def test_of_a_throughput_rises(self) -> None:
        found = analysis.random_search(studies.make(objective="maximize_throughput").results(), 10)
        assert found is not None and (np.diff(found.scores) >= -1e-9).all()

    def test_of_a_continuous_space_has_no_end(self) -> None:
        rng = np.random.default_rng(0)
        spec = {
            "x": {"type": "float", "low": 0.0, "high": 1.0},
            "y": {"type": "integer", "low": 1, "high": 99},
        }
        configs = [{"x": float(rng.random()), "y": int(rng.integers(1, 99))} for _ in range(20)]
        found = analysis.random_search(studies.make(configs, parameters=spec).results(), 20)
        assert found is not None and math.isinf(found.size)

    def test_is_not_told_where_it_cannot_be(self) -> None:
        few = studies.make(studies.grid(studies.PARAMETERS, 5))
        other = studies.make()
        other.about["task"]["parameters"] = {"tp-size": "?"}
        missed = studies.make(terms=[SloTerm("latency", "p90", 0.001)])
        for made in (few, other, missed, studies.make([], baseline=False)):
            assert analysis.random_search(made.results(), 10) is None


class TestNextSteps:
    def test_before_anything_ended(self) -> None:
        assert analysis.next_steps(studies.make([], baseline=False).results()) == ("No trial has ended yet.",)

    def test_nothing_matters(self) -> None:
        (advice,) = analysis.next_steps(equal_trials().results())
        assert "equal within noise" in advice

    def test_too_few_trials(self) -> None:
        advice = " ".join(analysis.next_steps(studies.make(studies.grid(studies.PARAMETERS, 4)).results()))
        assert "Fewer than 8 trials finished" in advice
        assert "Fewer" not in " ".join(analysis.next_steps(studies.make().results()))

    def test_the_best_came_late_unless_it_was_lucky_only(self) -> None:
        configs = studies.grid(studies.PARAMETERS, 20)

        def advice(effect: dict[str, float], luck: float) -> str:
            made = studies.make(
                configs,
                repeats=[configs[2], configs[-1]] * 3,
                effect=lambda config: effect.get(config_key(config), 1.0),
                fails=studies.never_fails,
            )
            lucky = next(row for row in made.trials if json.loads(row["config"]) == configs[-1])
            lucky |= {name: lucky[name] * luck for name in ("objective", "score")}
            lucky["loss"] += math.log(luck)
            return " ".join(analysis.next_steps(made.results()))

        first, last = config_key(configs[2]), config_key(configs[-1])
        assert "came late" in advice({first: 0.9, last: 0.8}, luck=1.0)
        assert "came late" not in advice({first: 0.9}, luck=0.8)

    def test_too_much_noise(self) -> None:
        configs = studies.grid(studies.PARAMETERS, 24)
        for drift, said in ((0.15, "Runs of one configuration differ by"), (0.005, "")):
            made = studies.make(configs, repeats=[configs[0], {}] * 4, drift=drift, fails=studies.never_fails)
            advice = " ".join(analysis.next_steps(made.results()))
            assert (said in advice) if said else ("Runs of one" not in advice)

    def test_a_gain_that_may_be_noise(self) -> None:
        made = studies.make(
            [{"tp-size": 2}], repeats=[{"tp-size": 2}, {}], effect=lambda c: 0.95 if c else 1.0, drift=0.03
        )
        results = made.results()
        gain = analysis.summary(results).gain
        assert gain is not None and gain.low is not None and gain.low < 0 and gain.share > 0.03
        assert "drowns in noise" in " ".join(analysis.next_steps(results))

    def test_the_edge_of_the_space(self) -> None:
        advice = " ".join(analysis.next_steps(studies.make().results()))
        assert "edge of the space in tp-size=2, chunked-prefill-size=4096" in advice
        assert "mem-fraction-static" not in advice  # explains 1 % of the differences

    def test_one_is_no_edge(self) -> None:
        made = studies.make(effect=lambda config: float(config.get("tp-size", 1)))
        assert not any("edge" in advice for advice in analysis.next_steps(made.results()))

    def test_failures_and_what_they_have_in_common(self) -> None:
        space = {**studies.PARAMETERS, "tp-size": [1], "mem-fraction-static": [0.8, 0.9]}
        (advice, *_) = analysis.next_steps(studies.make(studies.grid(space, 16)).results())
        assert advice.startswith("8 of 17 trials failed: out of memory, all with mem-fraction-static=0.9.")

    def test_everything_failed(self) -> None:
        (advice,) = analysis.next_steps(studies.make(fails=lambda _: Cause.CRASH).results())
        assert "25 of 25 trials failed: crash" in advice and "log" in advice

    def test_the_machine_was_at_fault(self) -> None:
        made = studies.make(fails=lambda config: Cause.NODE_LOST if config.get("tp-size") == 2 else None)
        assert any("machine's fault" in advice for advice in analysis.next_steps(made.results()))

    def test_slos_that_cannot_be_met(self) -> None:
        advice = analysis.next_steps(studies.make(terms=[SloTerm("latency", "p90", 0.3)]).results())
        assert "No trial met the SLOs" in advice[0] and "latency p90" in advice[0]

    def test_a_space_that_is_exhausted(self) -> None:
        made = studies.make(studies.grid(studies.PARAMETERS, 80))
        assert any(
            "All 80 configurations were tried" in advice for advice in analysis.next_steps(made.results())
        )

    def test_a_search_that_still_improves(self) -> None:
        space = {"flag": {"type": "float", "low": 0.0, "high": 100.0}}
        configs = [{"flag": float(number)} for number in range(1, 21)]
        made = studies.make(configs, parameters=space, effect=lambda config: 1 / (1 + config.get("flag", 0)))
        assert any("20 configurations were tried" in step for step in analysis.next_steps(made.results()))
