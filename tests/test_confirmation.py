"""What repeats at a study's end are worth: luck is not called gain, and gain is found."""

from __future__ import annotations

import io
import json
import math

import pytest
import studies
from rich.console import Console

from tuner.analysis import Verdict, summary, without_repeats
from tuner.analysis.answer import CONFIDENCE
from tuner.analysis.confirmation import SURE_AT_EACH_LOOK, confirmation
from tuner.analysis.trials import Trial
from tuner.failures import Cause
from tuner.report import terminal
from tuner.results import StudyResults

GRID = studies.grid(studies.PARAMETERS, 24)


def equal(config: studies.Config) -> float:
    return 1.0


def repeated(made: studies.Made, rounds: int = 2) -> list[studies.Config]:
    """What a study would measure again after `made`: its two best and the baseline, in turn."""
    first = without_repeats(made.results()).trials
    searched = first[(first["kind"] == "search") & first["failure_cause"].isna()].sort_values("loss")
    return [config for _ in range(rounds) for config in [{}, *searched["config"][:2]]]


def study(seed: int, **options: object) -> studies.Made:
    """A study with its repeats."""
    first = studies.make(GRID, seed=seed, **options)  # type: ignore[arg-type]
    return studies.make(GRID, seed=seed, repeats=repeated(first), **options)  # type: ignore[arg-type]


def verdicts(effect: object, drift: float, runs: int) -> list[Verdict]:
    return [
        summary(
            study(
                seed, effect=effect, drift=drift, fails=studies.never_fails, noise=0.02, requests=8
            ).results()
        ).verdict
        for seed in range(runs)
    ]


def test_the_luckiest_of_equal_configurations_is_not_called_better() -> None:
    found = verdicts(equal, drift=0.02, runs=40)
    assert found.count(Verdict.BETTER) <= 4  # 5 % are expected, in one direction half of that


def test_a_gain_well_above_the_drift_is_found() -> None:
    found = verdicts(studies.factor, drift=0.01, runs=20)
    assert found.count(Verdict.BETTER) >= 18


def test_the_answer_is_of_the_repeats_and_says_so() -> None:
    made = study(1, drift=0.02, fails=studies.never_fails)
    answer = summary(made.results())
    assert answer.best is not None and answer.gain is not None and answer.gain.low is not None
    again = [row for row in made.trials if row["kind"] == "confirm" and row["config"] == _text(answer.best)]
    mean = math.exp(sum(math.log(row["objective"]) for row in again) / len(again))
    assert answer.best["objective"] == pytest.approx(mean)
    assert answer.best["kind"] == "search"
    assert answer.gain.rounds == len(again) == 2
    assert answer.gain.low < answer.gain.share < (answer.gain.high or 0)
    assert "2 repeats" in answer.reason


def test_the_defaults_win_where_the_repeats_favour_them() -> None:
    first = studies.make(GRID[:4], effect=equal, drift=0.1, seed=3)
    made = studies.make(GRID[:4], effect=equal, drift=0.1, seed=3, repeats=repeated(first))
    for row in made.trials:
        if row["kind"] == "confirm" and row["config"] != "{}":
            row["loss"] += 1.0
    answer = summary(made.results())
    assert answer.defaults_are_best and answer.verdict is Verdict.NO_GAIN


def test_a_finalist_that_fails_when_repeated_is_not_recommended() -> None:
    first = studies.make(GRID[:4], effect=studies.factor, fails=studies.never_fails)
    again = repeated(first)
    made = studies.make(GRID[:4], effect=studies.factor, fails=studies.never_fails, repeats=again)
    winner = summary(made.results()).best
    assert winner is not None
    for row in made.trials:
        if row["kind"] == "confirm" and row["config"] == _text(winner):
            row["failure_cause"] = "crash"
    other = summary(made.results()).best
    assert other is not None and other["config"] != winner["config"]


def with_failed_repeats(made: studies.Made, cause: Cause, *configs: studies.Config) -> StudyResults:
    """`made` as though the repeats of these had failed."""
    for row in made.trials:
        if row["kind"] == "confirm" and json.loads(row["config"]) in configs:
            row |= {"failure_cause": cause, "failure_stage": "load", "objective": None, "score": None}
            row["loss"] = 2100.0
    return made.results()


FAST, SLOW = {"tp-size": 2}, {"tp-size": 1, "chunked-prefill-size": 512}


def test_the_defaults_are_recommended_where_all_that_beat_them_failed_when_repeated() -> None:
    for repeats in ([{}, FAST], [FAST], [{}, FAST, {}, FAST]):
        made = studies.make([FAST, SLOW], fails=studies.never_fails, repeats=repeats)
        answer = summary(with_failed_repeats(made, Cause.OUT_OF_MEMORY, FAST))
        assert answer.defaults_are_best and answer.verdict is Verdict.NO_GAIN
        assert "Trial 1 is out: measured again, it ended as “failed: out of memory”." in answer.reason


def test_one_that_failed_when_repeated_is_neither_on_the_front_nor_among_the_best_that_are_shown() -> None:
    first = studies.make(GRID[:6], fails=studies.never_fails)
    winner = summary(first.results()).best
    assert winner is not None
    again = [{}, winner["config"]]
    made = studies.make(GRID[:6], fails=studies.never_fails, repeats=again)
    results = with_failed_repeats(made, Cause.CRASH, winner["config"])
    answer = summary(results)
    assert answer.best is not None and answer.best["trial"] != winner["trial"]
    assert answer.out == {winner["trial"]}
    shown = io.StringIO()
    Console(file=shown, width=200).print(terminal(results, None))
    listed = shown.getvalue().partition("The best 5 of 7")[2]
    numbers = [int(line.split()[0]) for line in listed.splitlines()[2:7]]
    assert answer.best["trial"] in numbers and winner["trial"] not in numbers


def test_a_repeat_that_a_machine_lost_says_nothing_of_its_configuration() -> None:
    made = studies.make([FAST, SLOW], fails=studies.never_fails, repeats=[{}, FAST, {}, FAST])
    made.trials[-1]["failure_cause"] = Cause.NODE_LOST
    answer = summary(made.results())
    assert answer.best is not None and answer.best["config"] == FAST and not answer.out
    assert answer.gain is not None and (answer.gain.rounds, answer.gain.baseline_rounds) == (1, 2)
    results = with_failed_repeats(made, Cause.NODE_LOST, FAST)
    best = summary(results).best
    assert best is not None and best["config"] == FAST


def test_defaults_that_failed_when_repeated_leave_the_gain_unknown() -> None:
    for repeats in ([{}, FAST, {}, FAST], [{}]):
        made = studies.make([FAST, SLOW], fails=studies.never_fails, repeats=repeats)
        answer = summary(with_failed_repeats(made, Cause.CRASH, {}))
        assert answer.best is not None and answer.best["config"] == FAST
        assert (answer.gain, answer.verdict) == (None, Verdict.UNKNOWN)
        assert answer.reason == "The engine's defaults ended as “failed: crash”: the gain is unknown."
    made = studies.make([FAST], fails=studies.never_fails, repeats=[{}, FAST])
    answer = summary(with_failed_repeats(made, Cause.CRASH, {}, FAST))
    assert answer.best is None and "Nothing held" in answer.reason


def test_one_round_has_an_interval_through_the_baselines_first_run() -> None:
    first = studies.make(GRID[:6], fails=studies.never_fails)
    made = studies.make(GRID[:6], fails=studies.never_fails, repeats=repeated(first, rounds=1))
    gain = summary(made.results()).gain
    assert gain is not None and gain.rounds == 1 and gain.low is not None


def _text(trial: Trial) -> str:
    return json.dumps(trial["config"])


def test_among_equals_the_one_with_the_fewest_overrides_is_recommended() -> None:
    one = {"tp-size": 2, "mem-fraction-static": 0.85, "schedule-policy": "fcfs", "chunked-prefill-size": 2048}
    two = {"tp-size": 2, "mem-fraction-static": 0.9, "schedule-policy": "lpm", "chunked-prefill-size": 4096}
    made = studies.make([one, two], effect=equal, fails=studies.never_fails, repeats=[{}, one, two])
    for lead, chosen in ((0.005, one), (0.05, two)):
        for row in made.trials:
            config = json.loads(row["config"])
            row["loss"] = 1.0 if config == {} else 0.5 - lead * (config == two)
        best = summary(made.results()).best
        assert best is not None and best["config"] == chosen


def test_the_defaults_are_recommended_where_nothing_is_better_by_more_than_a_start_differs() -> None:
    one = {"tp-size": 2}
    made = studies.make([one], effect=equal, fails=studies.never_fails, repeats=[{}, one])
    for row in made.trials:
        row["loss"] = 1.0 if row["config"] == "{}" else 0.995
    answer = summary(made.results())
    assert answer.defaults_are_best and answer.verdict is Verdict.NO_GAIN


@pytest.mark.parametrize("others", [[], [{"tp-size": 1, "chunked-prefill-size": 512}]])
def test_the_interval_is_wider_where_more_was_measured_than_the_rounds_of_one_alone(
    others: list[studies.Config],
) -> None:
    """Of one that beats the defaults alone, a round is two repeats, whatever else was tried."""
    margins = []
    for again in (4, 5, 6):
        repeats = [{}, FAST, {}, FAST, FAST, {}][:again]
        made = studies.make([FAST, *others], fails=studies.never_fails, drift=0.05, repeats=repeats)
        results = made.results()
        found, sure = (confirmation(results, level) for level in (CONFIDENCE, SURE_AT_EACH_LOOK))
        assert found is not None and sure is not None
        margins.append((found.margin, sure.margin))
    within, *beyond = margins
    assert within[0] < within[1]
    assert all(found == sure for found, sure in beyond)


def test_a_round_of_two_that_beat_the_defaults_is_three_repeats() -> None:
    other = {"tp-size": 2, "chunked-prefill-size": 4096}
    made = studies.make([FAST, other], fails=studies.never_fails, drift=0.05, repeats=[{}, FAST, other] * 2)
    found, sure = (confirmation(made.results(), level) for level in (CONFIDENCE, SURE_AT_EACH_LOOK))
    assert found is not None and sure is not None
    assert found.margin is not None and sure.margin is not None and found.margin < sure.margin
