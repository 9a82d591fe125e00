"""A study in an Optuna storage: what Optuna reads there is what the study found; see also tests/publish."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
import warnings
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
import studies
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from tuner.analysis import summary
from tuner.cli import main
from tuner.errors import ResultsError, StudyError, UsageError
from tuner.objective import SloTerm
from tuner.progress import StudyProgress
from tuner.publish import follow, publish
from tuner.publish.alongside import Alongside
from tuner.publish.mlflow import is_over
from tuner.publish.optuna import distribution
from tuner.space import Categorical, Domain, Float, Integer

GRID = studies.grid(studies.PARAMETERS, 8, 1)


def told(*words: str) -> int:
    """The exit code of a command line."""
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    assert isinstance(ended.value.code, int)
    return ended.value.code


def url(folder: Path) -> str:
    return f"sqlite:///{folder}/optuna.db"


def loaded(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="llama-tune", storage=url(folder))


@pytest.mark.parametrize("objective", ["minimize_latency", "maximize_throughput"])
def test_optunas_best_trial_is_ours(tmp_path: Path, objective: str) -> None:
    made = studies.make(GRID, objective=objective, repeats=[GRID[0], {}])
    results = made.results()
    [published] = publish(results, {"optuna": url(tmp_path)})
    best = results.trials[results.trials["kind"] == "search"].sort_values("loss").iloc[0]
    found = loaded(tmp_path).best_trial
    assert found.user_attrs["tuner_trial"] == best["trial"]
    assert found.value == best["score"] and found.params == best["config"]
    assert published.added == len(GRID)  # the defaults are not in this space, and repeats are no trials
    attributes = loaded(tmp_path).user_attrs
    assert len(json.loads(attributes["repeats"])) == 2
    answer = summary(results)
    assert answer.best is not None and attributes["best_trial"] == answer.best["trial"]


def test_how_trials_ended_and_what_was_measured_of_them(tmp_path: Path) -> None:
    made = studies.make(studies.grid(studies.PARAMETERS, 24), stopped=[3], simulated=True)
    publish(made.results(), {"optuna": url(tmp_path)})
    trials = {trial.user_attrs["tuner_trial"]: trial for trial in loaded(tmp_path).trials}
    states = set()
    for row in made.trials[1:]:
        trial = trials[row["trial"]]
        failed, cut_off = row["failure_cause"] is not None, row["stopped_early"]
        states.add(trial.state)
        assert (trial.state is TrialState.FAIL) is failed
        assert (trial.state is TrialState.PRUNED) is cut_off
        assert trial.user_attrs.get("failure_cause") == row["failure_cause"]
        assert trial.user_attrs["simulated"] is True and trial.user_attrs["engine_version"] == "0.5.2"
        levels = [step["latency_mean_s"] for step in made.steps if step["trial"] == row["trial"]]
        assert trial.intermediate_values == {number + 1: value for number, value in enumerate(levels)}
        assert trial.duration is not None
        assert abs(trial.duration.total_seconds() - row["duration_s"]) < 1e-3
    assert states == {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
    assert loaded(tmp_path).user_attrs["simulated"] is True


def test_the_baseline_is_a_trial_where_the_space_holds_the_defaults(tmp_path: Path) -> None:
    parameters = {**studies.PARAMETERS, "mem-fraction-static": [0.7, 0.8, 0.88]}
    made = studies.make(studies.grid(parameters, 5), parameters=parameters)
    publish(made.results(), {"optuna": url(tmp_path)})
    first = loaded(tmp_path).trials[0]
    assert first.user_attrs["kind"] == "baseline" and first.params == studies.DEFAULTS
    assert set(optuna.importance.get_param_importances(loaded(tmp_path))) == set(parameters)


def test_a_hard_slo_failure_is_not_feasible(tmp_path: Path) -> None:
    terms = [SloTerm("latency", "p90", 0.9, hard_fail=True, fail_ratio=0.1)]
    results = studies.make(studies.grid(studies.PARAMETERS, 24), terms=terms).results()
    publish(results, {"optuna": url(tmp_path)})
    answer = summary(results)
    assert answer.best is not None and results.trials["slo_hard_failed"].any()
    assert loaded(tmp_path).best_trial.user_attrs["tuner_trial"] == answer.best["trial"]
    infeasible = {
        trial.user_attrs["tuner_trial"]
        for trial in loaded(tmp_path).trials
        if any(value > 0 for value in (trial.constraints or {}).values())
    }
    searched = results.trials[results.trials["kind"] == "search"]
    assert infeasible == set(searched[searched["slo_hard_failed"].astype(bool)]["trial"])


def test_a_second_call_adds_only_what_is_new(tmp_path: Path) -> None:
    part, whole = (studies.make(GRID[:n], fails=studies.never_fails).results() for n in (5, 8))
    for results, added, total in ((part, 5, 5), (part, 0, 5), (whole, 3, 8), (whole, 0, 8)):
        [published] = publish(results, {"optuna": url(tmp_path)})
        assert (published.added, published.total) == (added, total)
    numbers = [trial.user_attrs["tuner_trial"] for trial in loaded(tmp_path).trials]
    assert numbers == list(range(1, 9))


def test_another_study_of_that_name_is_left_alone(tmp_path: Path) -> None:
    theirs = optuna.create_study(study_name="llama-tune", storage=url(tmp_path))
    theirs.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    with pytest.raises(StudyError, match="has another study called llama-tune"):
        publish(studies.make(GRID).results(), {"optuna": url(tmp_path)})
    assert len(loaded(tmp_path).trials) == 2 and not loaded(tmp_path).user_attrs


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("sqlite:////no/such/folder/optuna.db", "cannot write to sqlite:////no/such/folder"),
        ("nonsense", "nonsense"),
        ("mysql://u:s3cret-password@127.0.0.1:1/db", "mysql://"),
    ],
)
def test_a_storage_that_cannot_be_used_is_named_without_its_password(storage: str, message: str) -> None:
    with pytest.raises((ResultsError, UsageError)) as failed:
        publish(studies.make(GRID[:2]).results(), {"optuna": storage})
    assert message in str(failed.value) and "s3cret" not in str(failed.value)


def test_what_is_no_storage_is_refused_as_the_options_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    studies.make(GRID[:2]).write(tmp_path)
    assert told("publish", "--results", str(tmp_path), "--optuna", "nonsense") == 2
    assert capsys.readouterr().err.startswith("error: --optuna: nonsense is no storage")


DOMAINS = st.one_of(
    st.lists(st.integers(-9, 9), min_size=1, max_size=4, unique=True).map(lambda v: Categorical(tuple(v))),
    st.builds(
        lambda low, steps, step, log: Integer(low, low + steps, step, log),
        *[st.integers(1, 50), st.integers(0, 40), st.integers(1, 7), st.booleans()],
    ),
    st.builds(
        lambda low, width, step, log: Float(low, low + width, None if log else step, log),
        *[
            st.integers(100, 2000).map(lambda n: n / 1000),
            st.integers(100, 3000).map(lambda n: n / 1000),
            st.sampled_from([None, 0.05, 0.1]),
            st.booleans(),
        ],
    ),
)


@given(DOMAINS, st.floats(0, 1, exclude_max=True))
@settings(max_examples=200)
def test_every_value_of_a_parameter_is_one_to_optuna(domain: Domain, share: float) -> None:
    value = domain.draw(share)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        found = distribution(domain)
    assert found._contains(found.to_internal_repr(value))
    assert not warned  # that the range was cut


# --- the command and following -------------------------------------------------------------------------


def test_the_command_publishes_and_says_what_was_added(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    studies.make(GRID, requests=2).write(tmp_path)
    for added in (8, 0):
        assert told("publish", "--results", str(tmp_path), "--optuna", url(tmp_path)) == 0
        said = capsys.readouterr().out
        assert said == f"llama-tune in {url(tmp_path)}: {added} trials added, 8 there\n"
    assert told("publish", "--results", str(tmp_path)) == 2
    assert "give --optuna URL" in capsys.readouterr().err


def test_a_bench_is_no_study_to_publish(tmp_path: Path) -> None:
    made = studies.make(GRID[:1])
    made.about["kind"] = "bench"
    with pytest.raises(StudyError, match="is no study with trials"):
        publish(made.results(), {"optuna": url(tmp_path)})


def test_a_study_that_runs_is_followed_to_its_end(tmp_path: Path) -> None:
    whole = studies.make(GRID, requests=2, fails=studies.never_fails)
    first = studies.Made(whole.about, whole.trials[:4], whole.steps, whole.requests)
    store = first.write(tmp_path)
    left, seen = list(whole.trials[4:]), []
    with store.locked() as held:
        assert held is None and store.held() is not False

        def wait() -> bool:
            """Another trial ends meanwhile; then the driver is gone."""
            if left:
                row: Any = left.pop(0)
                store.write_trial(row, [], [])
            return bool(left)

        seen += [each.added for [each] in follow(store, {"optuna": url(tmp_path)}, wait)]
    assert seen == [3, 1, 1, 1, 1]
    assert store.held() is False
    assert [each.added for [each] in follow(store, {"optuna": url(tmp_path)}, lambda: True)] == [1]
    assert len(loaded(tmp_path).trials) == len(GRID)


def progress(trial: dict[str, Any]) -> StudyProgress:
    return StudyProgress(planned=9, running=1, finished=1, failed=0, elapsed_s=1.0, last=trial)


def test_a_study_that_runs_here_is_published_after_each_trial_and_at_the_end(tmp_path: Path) -> None:
    whole = studies.make(GRID, requests=2, fails=studies.never_fails)
    store = studies.Made(whole.about, whole.trials[:3], whole.steps, whole.requests).write(tmp_path)
    told: list[str] = []
    with Alongside(str(tmp_path), {"optuna": url(tmp_path)}, told.append) as publishing:
        publishing.saw(progress(whole.trials[2]))
        deadline = time.monotonic() + 60
        while _count(tmp_path) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for row in whole.trials[3:]:
            store.write_trial(row, [], [])
    assert _count(tmp_path) == len(GRID) and told == []


def _count(folder: Path) -> int:
    """Trials in the storage; 0 while it is being made. Not by Optuna, which would make it as well."""
    try:
        with closing(sqlite3.connect(f"file:{folder}/optuna.db?mode=ro", uri=True)) as database:
            return int(database.execute("SELECT COUNT(*) FROM trials").fetchone()[0])
    except sqlite3.OperationalError:
        return 0


def test_what_cannot_be_published_stops_nothing_and_is_told_once(tmp_path: Path) -> None:
    whole = studies.make(GRID[:3], requests=2)
    whole.write(tmp_path)
    told: list[str] = []
    with Alongside(str(tmp_path), {"optuna": "sqlite:////no/such/folder/x.db"}, told.append) as publishing:
        for row in whole.trials:
            publishing.saw(progress(row))
            time.sleep(0.2)
    assert len(told) == 1 and told[0].startswith("not published: cannot write to sqlite:")


def test_an_exception_of_a_library_stops_nothing_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("theirs")

    whole = studies.make(GRID[:1], requests=2)
    whole.write(tmp_path)
    monkeypatch.setattr("tuner.publish.alongside.publish", broken)
    told: list[str] = []
    with Alongside(str(tmp_path), {"optuna": "sqlite:///x.db"}, told.append) as publishing:
        publishing.saw(progress(whole.trials[0]))
    assert told == ["not published: KeyError: 'theirs'"]


def test_a_storage_of_another_optuna_is_told_in_a_line(tmp_path: Path) -> None:
    results = studies.make(GRID[:2]).results()
    publish(results, {"optuna": url(tmp_path)})
    with closing(sqlite3.connect(tmp_path / "optuna.db")) as database:
        database.execute("UPDATE alembic_version SET version_num = 'v2.6.0.a'")
        database.commit()
    with pytest.raises(ResultsError, match=r"cannot write to sqlite:.*optuna storage upgrade"):
        publish(results, {"optuna": url(tmp_path)})


def test_to_mlflow_a_search_is_over_when_all_of_it_was_measured() -> None:
    results = studies.make(GRID[:4]).results()
    results.about["planned_trials"] = len(results.trials)
    assert is_over(results)
    results.trials.loc[2:, "attempts"] = 0  # refused, which cost no trial
    assert not is_over(results)
    results.about["ended_early"] = "no better configuration in 5 trials"
    assert is_over(results)


@pytest.mark.ray
@pytest.mark.slow
def test_a_study_is_published_while_it_runs(tmp_path: Path) -> None:
    task = {
        "parameters": {"tp-size": [1, 2], "chunked-prefill-size": [2048, 4096]},
        "optimization": {"strategy": "grid_search", "confirm": 0},
        "benchmark": {"max_requests_per_iteration": 5},
    }
    (tmp_path / "task.json").write_text(json.dumps(task))
    command = ["-m", "tuner.cli", "run", str(tmp_path / "task.json"), "--virtual", "--study", "llama-tune"]
    command += ["--results", str(tmp_path), "--optuna", url(tmp_path)]
    env = {**os.environ, "RAY_ADDRESS": ""}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, env=env, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert len([t for t in loaded(tmp_path).trials if t.user_attrs["kind"] == "search"]) == 4


def test_without_mlflow_it_says_what_to_install(tmp_path: Path) -> None:
    studies.make(GRID[:2], requests=2).write(tmp_path)
    command = ["-m", "tuner.cli", "publish", "--results", str(tmp_path), "--mlflow", "sqlite:///x.db"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "pip install 'inference-autotuner[mlflow]'" in done.stderr


def test_help_does_not_wait_for_optuna() -> None:
    program = "import tuner.cli, tuner.publish, sys; print(*{'optuna', 'mlflow'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
