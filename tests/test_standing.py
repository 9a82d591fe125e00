"""How a study stands, as whoever does not run it sees it; `tuner watch`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import studies
from contracts.store_contract import row

from tuner import ResultStore, load_task, run_study
from tuner import standing as module
from tuner.cli import main
from tuner.errors import StudyError
from tuner.progress import Place, StudyProgress
from tuner.results import default_root
from tuner.secrets import HIDDEN
from tuner.standing import FILE, Journal, State, follow, standing

CONFIG = Path(__file__).parent.parent / "configs" / "quickstart.json"


def progress(trial: int = 1) -> StudyProgress:
    best = {**row(trial), "config": '{"tp-size": 2}', "objective": 0.5, "objective_unit": "s"}
    return StudyProgress(3, 1, trial, 0, 12.5, best=best, last=best, places=(Place(2, "node", ("0", "1")),))


def told(store: ResultStore, **changes: Any) -> None:
    """The file as a driver would have written it."""
    written = {
        "study": store.study,
        "state": "running",
        "error": "",
        "updated_at": datetime.now(UTC).isoformat(),
        "progress": progress().document(),
    }
    store.write_file(FILE, json.dumps({**written, **changes}).encode())


def until(holds: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.01)


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    store = ResultStore(tmp_path / "results", "s")
    store.create({"planned_trials": 3})
    return store


@pytest.fixture
def far() -> ResultStore:
    """Where no lock tells whether its driver lives."""
    store = ResultStore(f"fsspec+memory://{time.monotonic_ns()}", "s")
    store.create({})
    return store


def test_what_is_told_comes_back() -> None:
    """But for the columns of a trial that nobody looks at."""
    there = StudyProgress.of(json.loads(json.dumps(progress().document())))
    assert there.document() == progress().document()
    assert replace(there, best=None, last=None) == replace(progress(), best=None, last=None)


def test_from_the_start_to_the_end(store: ResultStore) -> None:
    assert standing(store).state is State.INTERRUPTED  # nobody runs it
    with store.locked():
        assert standing(store).state is State.STARTING
        with Journal(store) as journal:
            journal.show(progress())
            until(lambda: standing(store).progress is not None)
            found = standing(store)
            assert (found.state, found.about["planned_trials"]) == (State.RUNNING, 3)
            assert found.progress and found.progress.places == progress().places
            journal.end(State.FINISHED)
    found = standing(store)
    assert found.state is State.FINISHED and found.progress
    with store.locked():  # resumed
        assert standing(store).state is State.STARTING


@pytest.mark.parametrize(
    ("raised", "state", "error"),
    [
        (KeyboardInterrupt(), State.INTERRUPTED, ""),
        (SystemExit(1), State.INTERRUPTED, ""),
        (
            StudyError("no node is left, token sesame-open-123"),
            State.BROKEN,
            f"StudyError: no node is left, token {HIDDEN}",
        ),
    ],
)
def test_a_study_that_ends_otherwise(
    raised: BaseException, state: State, error: str, store: ResultStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "sesame-open-123")
    with suppress(type(raised)), store.locked(), Journal(store) as journal:
        journal.show(progress())
        raise raised
    found = standing(store)
    assert (found.state, found.error) == (state, error)
    assert found.progress is not None  # the newest, though it ended at once


def test_a_driver_that_is_gone_is_no_running_study(store: ResultStore, far: ResultStore) -> None:
    for each in (store, far):
        told(each)
    assert standing(store).state is State.INTERRUPTED  # its lock is free
    assert standing(far).state is State.RUNNING
    told(far, updated_at=(datetime.now(UTC) - timedelta(seconds=120)).isoformat())
    assert standing(far).state is State.INTERRUPTED


def test_nothing_of_a_study_that_is_over_runs_or_holds_gpus(store: ResultStore) -> None:
    told(store)  # by a driver that was killed
    for state in ("running", "interrupted", "finished"):
        told(store, state=state)
        found = standing(store).progress
        assert found is not None and (found.running, found.waiting, found.places) == (0, 0, ())
        assert found.finished == progress().finished and found.best is not None


def test_a_time_without_a_zone_is_taken_as_utc(store: ResultStore, far: ResultStore) -> None:
    now = datetime.now(UTC)
    for each in (store, far):
        told(each, updated_at=now.replace(tzinfo=None).isoformat())
        assert standing(each).updated_at == now
    assert (standing(store).state, standing(far).state) == (State.INTERRUPTED, State.RUNNING)


def test_a_driver_says_that_it_lives_though_nothing_happens(
    far: ResultStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_HEARTBEAT_S", 0.01)
    monkeypatch.setattr(module, "_WRITTEN_S", 0.01)
    with Journal(far) as journal:
        journal.show(progress())
        until(lambda: standing(far).state is State.RUNNING)
        first = standing(far).updated_at
        until(lambda: standing(far).updated_at != first)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b'{"state": "asleep"}', b'{"progress": 7}'])
def test_what_is_no_journal_is_none(content: bytes, store: ResultStore) -> None:
    store.write_file(FILE, content)
    assert standing(store).state is State.INTERRUPTED


def test_a_journal_that_cannot_be_written_stops_nothing(
    store: ResultStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(module.LOG, "warning", lambda text, *words: said.append(text % words))
    (Path(store.location) / FILE).mkdir()
    seen: list[StudyProgress] = []
    with Journal(store, seen.append) as journal:
        journal.show(progress())
    assert seen == [progress()]
    [once] = said
    assert once.startswith("Whoever watches this study sees nothing new: cannot write progress.json")


def test_following_tells_of_every_trial_once(store: ResultStore) -> None:
    with store.locked(), Journal(store) as journal:
        looks = follow(store, every_s=0.0)
        seen = []
        for number in range(3):
            store.write_trial(row(number), [], [])
            seen += [each["trial"] for each in next(looks)[1]]
        (Path(store.location) / "trials" / "00007.parquet").write_bytes(b"torn")
        store.write_trial(row(3), [], [])
        journal.end(State.FINISHED)
    [(found, rows)] = looks
    assert seen + [each["trial"] for each in rows] == [0, 1, 2, 3]
    assert found.state is State.FINISHED


def test_whether_one_is_in_it_is_asked_without_getting_in_its_way(store: ResultStore) -> None:
    with store.locked():
        assert store.held()
        with pytest.raises(StudyError, match="is being run by another process"), store.locked():
            pass
    assert not store.held()
    asking = subprocess.Popen(
        [sys.executable, "-c", f"import tuner\nwhile True: tuner.ResultStore({store.root!r}, 's').held()"]
    )
    try:
        until(lambda: asking.poll() is None)
        for _ in range(50):
            with store.locked():
                pass
    finally:
        asking.kill()
        asking.wait()


# --- the command ---------------------------------------------------------------------------------------


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(["watch", *words])
    return int(left.value.code or 0)


def test_a_study_that_has_ended_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = studies.make()
    store = made.write(default_root())
    told(store, state="finished")
    code = run(store.study)
    text = capsys.readouterr().out
    assert code == 0
    assert text.startswith(f"Watching {store.study}\n")
    assert sum(line.startswith("[1/3] ") for line in text.splitlines()) == 25
    assert "Report   " in text


def test_how_it_stands_now(capsys: pytest.CaptureFixture[str]) -> None:
    store = studies.make().write(default_root())
    told(store)
    with store.locked():
        assert run("--once") == 0
        assert capsys.readouterr().out.splitlines()[:2] == [
            f"{store.study}: running",
            "1 running   1 finished   0 failed",
        ]
        assert run("--once", "--json") == 0
        document = json.loads(capsys.readouterr().out)
        assert (document["state"], document["progress"]["best"]["config"]) == ("running", '{"tp-size": 2}')
    told(store, state="broken", error="InfrastructureLost: no nodes")
    assert run() == 1
    assert (
        "Broken; `tuner resume" in (text := capsys.readouterr().out)
        and "InfrastructureLost: no nodes" in text
    )


def test_there_is_no_such_study(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("nowhere") == 2
    assert capsys.readouterr().err.startswith("error: no study 'nowhere' in ")


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_study_that_runs_elsewhere_is_watched_to_its_end(tmp_path: Path) -> None:
    """And who watches is interrupted without the study."""
    task = load_task(CONFIG)
    watchers: list[subprocess.Popen[str]] = []

    def start(newest: StudyProgress) -> None:
        if not watchers and newest.finished:
            command = [sys.executable, "-m", "tuner.cli", "watch", "s", "--results", str(tmp_path)]
            pipe = subprocess.PIPE
            watchers.extend(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) for _ in range(2))
            line = watchers[0].stdout.readline()  # type: ignore[union-attr]
            assert line == "Watching s\n"
            os.kill(watchers[0].pid, signal.SIGINT)
            assert watchers[0].wait(60) == 130

    outcome = run_study(task, results=tmp_path, study="s", virtual=True, watch=start)
    assert outcome.exit_code == 0
    text, errors = watchers[1].communicate(timeout=120)
    assert watchers[1].returncode == 0, errors
    trials = outcome.results.trials["trial"]
    assert sum(line.startswith("[") for line in text.splitlines()) == len(trials)
    assert "NEW BEST" in text and "SIMULATED" in text
    assert standing(ResultStore(tmp_path, "s")).state is State.FINISHED
