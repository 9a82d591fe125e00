"""What a study knows of itself when it goes on, and with which task it may."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import studies
from contracts.strategy_contract import Game

from tuner import run_study
from tuner.analysis.trials import busy_s
from tuner.engines import make_engine
from tuner.errors import StudyError, UsageError
from tuner.failures import Cause
from tuner.past import Past, PastTrial, Setup, newest_of, past_of, seed_of
from tuner.results import ResultStore
from tuner.search import make_searcher
from tuner.task import Task, make_task

ENGINE_VERSION = "0.5.2"


def kept(store: ResultStore, *, adopt: bool = False, version: str = ENGINE_VERSION, **sections: Any) -> Past:
    """What is known of the study when it goes on, with `sections` of its task merged in."""
    about = store.about()
    task = changed(about["task"], sections)
    return past_of(store, task, make_engine(task, about["engine"]), version, adopt=adopt)


def changed(document: dict[str, Any], sections: dict[str, Any]) -> Task:
    merged = {
        name: {**document.get(name, {}), **section} if isinstance(section, dict) else section
        for name, section in sections.items()
    }
    return make_task({**document, **merged})


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    """A study of 25 trials, of which 2 were stopped early and some failed, and 3 repeats."""
    return studies.make(stopped=(3, 5), repeats=[{}, {"tp-size": 2}, {}]).write(tmp_path)


def test_every_trial_comes_back_as_it_was(store: ResultStore) -> None:
    past, results = kept(store), store.read()
    assert [trial.number for trial in past.trials] == list(range(28))
    assert past.next_number == 28
    assert past.failed == results.trials["failure_cause"].notna().sum() > 0
    assert past.finished == 28 - past.failed
    for trial, config, loss in zip(
        past.trials, results.trials["config"], results.trials["loss"], strict=True
    ):
        assert trial.config == config
        assert trial.losses == (loss,)
    assert {trial.number for trial in past.trials if trial.share < 1} == {3, 5}
    assert all(trial.curve[1.0] == trial.losses[0] for trial in past.trials if trial.whole)
    assert past.best is not None
    lasting = results.trials[results.trials["kind"] != "confirm"].drop([3, 5])
    assert past.best["loss"] == lasting["loss"].min()


def test_what_was_expected_of_a_trial_comes_back_but_to_another_task(tmp_path: Path) -> None:
    made = studies.make()
    made.trials[4]["expected_gain"] = 0.02
    store = made.write(tmp_path)
    assert [trial.expected_gain for trial in kept(store).trials[3:6]] == [None, 0.02, None]
    adopted = kept(store, adopt=True, optimization={"max_iterations": 60})
    assert all(trial.expected_gain is None for trial in adopted.trials), "there is more to gain, it may be"


def test_the_time_in_which_a_study_lay_idle_does_not_count(store: ResultStore) -> None:
    trials = store.read().trials
    half = len(trials) // 2
    busy = busy_s(trials)
    later = trials["started_at"].where(trials.index < half, trials["started_at"] + pd.Timedelta(days=1))
    assert busy_s(trials.assign(started_at=later)) == pytest.approx(busy)


def test_what_infrastructure_took_away_is_not_known(tmp_path: Path) -> None:
    lost = studies.make(fails=lambda config: Cause.NODE_LOST if config.get("tp-size") == 2 else None)
    past = kept(lost.write(tmp_path))
    assert past.trials and all(trial.config.get("tp-size") != 2 for trial in past.trials)
    assert past.next_number == 25


def test_what_was_refused_cost_no_trial(tmp_path: Path) -> None:
    made = studies.make(fails=lambda config: Cause.INVALID_FLAGS if config.get("tp-size") == 2 else None)
    refused = [trial for trial in made.trials if trial["failure_cause"]]
    for trial in refused[1:]:
        trial["attempts"] = 0
    past = kept(made.write(tmp_path))
    assert (past.finished, past.failed) == (25 - len(refused), 1)
    assert sum(trial.refused for trial in past.trials) == len(refused) - 1 > 0


def test_that_no_node_had_the_gpus_is_not_known_of_the_nodes_there_are_now(tmp_path: Path) -> None:
    small = studies.make(fails=lambda config: Cause.NO_SUCH_GPUS if config.get("tp-size") == 2 else None)
    results = small.results()
    refused = results.trials["failure_cause"] == "no such GPUs"
    store = small.write(tmp_path)
    past = kept(store)
    assert len(past.trials) == 25 - refused.sum() < 25
    assert all(trial.config.get("tp-size") != 2 for trial in past.trials)
    assert past.next_number == 25
    assert past.lacked == {}, "their engine said so, once it was started"


def test_torn_missing_and_foreign_files_are_named_and_skipped(store: ResultStore) -> None:
    folder = Path(store.location)
    (folder / "trials" / "00004.parquet").write_bytes(b"PAR1 torn")
    (folder / "trials" / "00006.parquet").unlink()
    (folder / "steps" / "00007.parquet").write_bytes(b"")
    (folder / "trials" / "00040.parquet").write_text("not a table")
    (folder / "trials" / ".00050.parquet.part").write_bytes(b"half a row")
    (folder / "trials" / "notes.txt").write_text("mine")
    past = kept(store)
    assert not {trial.number for trial in past.trials} & {4, 6}
    assert past.next_number == 51  # no file of anyone is overwritten
    assert [Path(each.partition(": ")[0]).name for each in past.skipped] == [
        "00004.parquet",
        "00040.parquet",
        "00007.parquet",
    ]


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"optimization": {"max_iterations": 60}}, "optimization.max_iterations: 25 -> 60"),
        ({"parameters": {"tp-size": [1, 2, 4]}}, "parameters.tp-size: [1, 2] -> [1, 2, 4]"),
    ],
)
def test_a_changed_task_is_refused_with_what_changed_or_adopted(
    store: ResultStore, sections: dict[str, Any], named: str
) -> None:
    with pytest.raises(StudyError) as refused:
        kept(store, **sections)
    assert named in str(refused.value) and "--adopt" in str(refused.value)
    assert refused.value.exit_code == 2
    assert len(kept(store, adopt=True, **sections).trials) == 28


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"benchmark": {"num_concurrency": [4, 16]}}, "benchmark.num_concurrency: [4, 8] -> [4, 16]"),
        ({"optimization": {"objective": "minimize_ttft"}}, "optimization.objective"),
        ({"model": {"id_or_path": "another"}}, "model.id_or_path"),
        ({"slo": {"ttft": {"mean": {"threshold": 0.2}}}}, "slo.ttft"),
    ],
)
def test_a_task_whose_trials_would_not_compare_is_never_adopted(
    store: ResultStore, sections: dict[str, Any], named: str
) -> None:
    with pytest.raises(StudyError) as refused:
        kept(store, adopt=True, **sections)
    assert named in str(refused.value) and "--warm-start llama-tune" in str(refused.value)


def test_another_version_of_the_engine_is_a_change(store: ResultStore) -> None:
    with pytest.raises(StudyError, match=r'engine_version: "0.5.2" -> "0.6.0"'):
        kept(store, version="0.6.0")
    assert kept(store, version="0.6.0", adopt=True).trials


def test_what_only_reads_otherwise_is_no_change(store: ResultStore) -> None:
    assert kept(store, task_name="renamed", description="said better", optimization={"confirm": 2}).trials


def test_adopting_a_change_opens_a_search_that_had_ended(store: ResultStore) -> None:
    store.amend(ended_early="no better configuration in 5 trials")
    assert kept(store).ended_early == "no better configuration in 5 trials"
    assert kept(store, adopt=True, optimization={"max_iterations": 60}).ended_early == ""


def test_the_newest_study_of_a_task_is_found_by_its_name(tmp_path: Path) -> None:
    stores = [studies.make(name=name).write(tmp_path) for name in ("one", "two", "three")]
    for age, store in enumerate(stores):
        document = {**store.about()["task"], "task_name": "mine" if age < 2 else "other"}
        store.amend(task=document, started_at=f"2026-01-01T00:00:0{age}+00:00")
    task = make_task({**stores[0].about()["task"], "task_name": "mine"})
    assert newest_of(task, str(tmp_path)) == "two"
    assert newest_of(make_task({"task_name": "nobody's"}), str(tmp_path)) is None
    assert newest_of(task, str(tmp_path), virtual=True) is None
    stores[0].amend(virtual=True)
    assert newest_of(task, str(tmp_path), virtual=True) == "one"


def test_a_study_keeps_its_beginning() -> None:
    about = {"seed": 7, "num_gpus": 4, "max_concurrent": None, "warm_start": ["a"], "prior": None}
    assert Setup(max_concurrent=2).going_on(about) == Setup(4, 2, ("a",), None)
    assert seed_of(make_task({}), None, about) == 7
    with pytest.raises(UsageError, match="--seed: the study was begun with 7"):
        seed_of(make_task({}), 8, about)
    with pytest.raises(UsageError, match="--seed: the study was begun with 0"):
        seed_of(make_task({}), 8, {"seed": 0})
    with pytest.raises(UsageError, match="--prior: the study was begun with none"):
        Setup(prior="simulator").going_on(about)
    with pytest.raises(UsageError, match="--calibration: the study was begun with none"):
        Setup(calibration="/other.json").going_on(about)


def test_the_gpus_of_the_machine_that_a_study_was_begun_on_are_not_those_of_a_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Started(Exception):
        pass

    def start(folder: str, num_gpus: int | None) -> None:
        raise Started(num_gpus)

    def resume(**options: Any) -> None:
        run_study(task, study="s", results=tmp_path, resume=True, engine="simulator", **options)

    task = make_task({"optimization": {"max_iterations": 2}})
    begun = {"seed": 1, "started_at": "2026-01-01T00:00:00+00:00", "num_gpus": 2}
    version = make_engine(task, "simulator").version()
    engine = {"engine": "simulator", "engine_version": version}
    ResultStore(tmp_path, "s").create({**begun, **engine, "task": task.model_dump(exclude_unset=True)})
    monkeypatch.setattr("tuner.cluster.ray.is_initialized", lambda: False)
    monkeypatch.setattr("tuner.cluster._start_local", start)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for options, gpus in (({}, 2), ({"num_gpus": 3}, 3)):
        with pytest.raises(Started, match=str(gpus)):
            resume(**options)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UsageError, match="RAY_ADDRESS: no Ray cluster answers"):
        resume()
    with pytest.raises(UsageError, match=r"--num-gpus describes .* leave it out, or unset RAY_ADDRESS"):
        resume(num_gpus=2)


@pytest.mark.parametrize("key", ["engine", "engine_version", "seed", "started_at"])
def test_a_study_that_does_not_say_how_it_began_cannot_go_on(store: ResultStore, key: str) -> None:
    path = Path(store.location) / "study.json"
    about = json.loads(path.read_text())
    task = make_task(about["task"])
    path.write_text(json.dumps({name: value for name, value in about.items() if name != key}))
    with pytest.raises(StudyError, match=f"lacks {key}"):
        past_of(store, task, make_engine(task), "1", adopt=False)


@pytest.mark.parametrize(
    "optimization", [{"strategy": "grid_search", "confirm": 0}, {"max_iterations": 50, "confirm": 0}]
)
def test_an_adopted_space_is_searched_whole_whatever_was_tried_elsewhere(optimization: Any) -> None:
    def ended(number: int, kind: str, config: dict[str, Any]) -> PastTrial:
        return PastTrial(number, kind, config, (0.5,), 1.0, {1.0: 0.5}, 1, 10.0, refused=False, finished=True)

    elsewhere = [ended(number, "search", {"a": number}) for number in (1, 2, 3)]
    past = Past({}, (ended(0, "baseline", {}), *elsewhere), 4, 10.0, (), 4, 0, None)
    task = make_task({"parameters": {"a": [3, 4, 5]}, "optimization": optimization})
    game = Game(make_searcher(task, seed=0, past=past), lambda flags: flags["a"])
    assert sorted(flags["a"] for flags in game.flags) == [4, 5]


def test_two_drivers_never_run_one_study(store: ResultStore) -> None:
    holder = (
        "import sys; from tuner.results import ResultStore\n"
        "with ResultStore(sys.argv[1], sys.argv[2]).locked(): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", holder, store.root, store.study]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout and other.stdout.readline() == b"held\n"
        with pytest.raises(StudyError, match="is being run by another process"), store.locked():
            pass
        other.kill()
        other.wait()
        with store.locked():
            assert store.exists()
    finally:
        other.kill()
        other.communicate()


def test_two_studies_that_begin_in_one_second_have_two_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Begun(Exception):
        pass

    def begun(*_: Any, **__: Any) -> None:
        raise Begun([store.name for store in tmp_path.iterdir()])

    monkeypatch.setattr("tuner.study.new_study_name", lambda task_name: "now")
    monkeypatch.setattr("tuner.study.cluster", begun)
    with ResultStore(tmp_path, "now").locked(), pytest.raises(Begun, match="now-2"):
        run_study(make_task({}), engine="simulator", results=tmp_path)
    with ResultStore(tmp_path, "now").locked(), pytest.raises(StudyError, match="is being run"):
        run_study(make_task({}), engine="simulator", results=tmp_path, study="now")


def test_a_lock_that_its_holder_removes_is_not_held_by_who_waited_for_it(tmp_path: Path) -> None:
    inside, leave = threading.Event(), threading.Event()

    def waits() -> None:
        with ResultStore(tmp_path, "new").locked():
            inside.set()
            leave.wait()

    with ResultStore(tmp_path, "new").locked():
        waiting = threading.Thread(target=waits)
        waiting.start()
        time.sleep(0.1)  # it waits for the file that goes with this lock
    try:
        assert inside.wait(5)
        with pytest.raises(StudyError, match="is being run"), ResultStore(tmp_path, "new").locked():
            pass
    finally:
        leave.set()
        waiting.join()


def test_a_lock_leaves_nothing_of_a_study_that_was_not_begun(tmp_path: Path) -> None:
    with ResultStore(tmp_path, "new").locked():
        assert (tmp_path / "new").exists()
    assert not list(tmp_path.iterdir())
