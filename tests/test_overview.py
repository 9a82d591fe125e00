"""`tuner studies`: a line on each study, whatever state its folder is in."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import studies
from click.testing import CliRunner, Result

from tuner import analysis
from tuner.cli import cli
from tuner.failures import Cause
from tuner.overview import overview
from tuner.results import ResultStore
from tuner.standing import Journal, State


def run(root: Path, *words: str) -> Result:
    return CliRunner().invoke(cli, ["studies", "--results", str(root), *words])


def written(root: Path, name: str, age_s: int = 0, **options: object) -> studies.Made:
    made = studies.make(name=name, **options)  # type: ignore[arg-type]
    made.about["started_at"] = (datetime(2026, 1, 1, tzinfo=UTC) - timedelta(seconds=age_s)).isoformat()
    made.write(root)
    return made


def test_the_newest_first_with_what_they_found(tmp_path: Path) -> None:
    fastest = analysis.summary(studies.make().results()).best
    assert fastest is not None
    older = written(tmp_path, "older", age_s=60, repeats=[fastest["config"], {}] * 2)
    written(tmp_path, "newer", fails=lambda _: Cause.CRASH)
    first, second = run(tmp_path).output.splitlines()[1:]
    assert first.split()[:2] == ["newer", "finished"] and "25 of 25" in first
    best = analysis.summary(older.results()).best
    assert best is not None
    assert re.match(
        r"older +finished +25 of 25 +\d+ ms +\d+\.\d %  llama-3-2-1b-instruct +sglang 0.5.2", second
    )
    told = json.loads(run(tmp_path, "--json").output)[1]
    assert told["best"] == pytest.approx(best["objective"]) and told["config"] == best["config"]
    assert told["model"] == "llama-3-2-1b-instruct" and told["state"] == "finished"


def test_of_several_objectives_the_document_has_each(tmp_path: Path) -> None:
    made = studies.make([{"tp-size": 2}], name="several", fails=studies.never_fails)
    made.with_objectives(lambda config: (-len(config), 1.0), "minimize_ttft", "minimize_tpot").write(tmp_path)
    written(tmp_path, "one", age_s=60)
    several, one = json.loads(run(tmp_path, "--json").output)
    assert several["config"] == {"tp-size": 2} and several["best"] == several["objectives"]["minimize_ttft"]
    assert several["objectives"]["minimize_tpot"] == pytest.approx(2.718, 1e-3)
    assert one["objectives"] == {}


def test_what_may_be_chance_is_no_gain(tmp_path: Path) -> None:
    tried = studies.grid(studies.PARAMETERS, 2)
    repeats = [each for _ in range(4) for each in ({}, *tried)]
    written(tmp_path, "equal", configs=tried, effect=lambda _: 1.0, drift=0.02, repeats=repeats)
    told = json.loads(run(tmp_path, "--json").output)[0]
    assert told["verdict"] == "no significant gain" and isinstance(told["gain"], float)
    assert re.search(r" ms +none  llama", run(tmp_path).output)


def test_broken_folders_are_a_line_each_and_stop_nothing(tmp_path: Path) -> None:
    written(tmp_path, "good")
    written(tmp_path, "torn")
    (tmp_path / "torn" / "trials" / "00003.parquet").write_bytes(b"no Parquet")
    for name, text in (
        ("list", "[]"),
        ("cut", '{"study": "cut", "ta'),
        ("odd", '{"task": {"slo": {"x": 1}}}'),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "study.json").write_text(text)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("no study")
    done = run(tmp_path)
    assert done.exit_code == 0
    lines = {line.split()[0].rstrip(":"): line for line in done.output.splitlines()[1:]}
    assert lines.keys() == {"good", "torn", "list", "cut", "odd"}
    assert "holds no object" in lines["list"] and "cannot read" in lines["cut"]
    assert "24 of 25" in lines["torn"]
    told = {each["study"]: each for each in json.loads(run(tmp_path, "--json").output)}
    assert told["cut"]["error"] and not told["good"]["error"]


def test_how_a_study_stands(tmp_path: Path) -> None:
    made = studies.make(name="now")
    made.trials[5:] = []
    store = made.write(tmp_path)
    assert overview(store).state == State.INTERRUPTED  # no driver, and 5 of 25 trials
    with store.locked(), Journal(store) as journal:
        assert overview(store).state == State.STARTING
        journal.end(State.FINISHED)
    assert overview(store).state == State.FINISHED
    assert overview(ResultStore(tmp_path, "now")).trials == 5


def test_what_was_refused_cost_no_trial(tmp_path: Path) -> None:
    made = studies.make(name="mine", fails=lambda config: Cause.NO_SUCH_GPUS if config == {} else None)
    made.trials[0]["attempts"] = 0
    assert overview(made.write(tmp_path)).trials == 24


def test_only_the_newest_unless_all_are_asked_for(tmp_path: Path) -> None:
    for number in range(27):
        written(tmp_path, f"s{number:02d}", age_s=number, configs=[], requests=2)
    lines = run(tmp_path).output.splitlines()
    assert len(lines) == 1 + 25 + 1 and lines[-1] == "and 2 older ones: --all"
    assert len(run(tmp_path, "--all").output.splitlines()) == 1 + 27


def test_nothing_is_kept(tmp_path: Path) -> None:
    assert "No study is kept" in run(tmp_path / "none").output
    assert json.loads(run(tmp_path / "none", "--json").output) == []


def test_requests_are_not_read(tmp_path: Path) -> None:
    """They are most of a study: a line takes a fraction of the time."""
    store = studies.make(name="big").write(tmp_path)
    for file in (tmp_path / "big" / "requests").iterdir():
        file.write_bytes(b"")
    assert overview(store).answer is not None


def test_pictures_are_written_where_they_were_asked_for(tmp_path: Path) -> None:
    written(tmp_path, "drawn")
    folder = tmp_path / "new" / "plots"
    done = CliRunner().invoke(cli, ["report", "--results", str(tmp_path), "--png", str(folder)])
    assert done.exit_code == 0 and str(folder) in done.output
    found = {file.name for file in folder.iterdir()}
    assert "search-convergence.png" in found and f"{len(found)} PNG files" in done.output
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in folder.iterdir())


def test_a_folder_that_cannot_be_written_is_a_message(tmp_path: Path) -> None:
    written(tmp_path, "drawn")
    (tmp_path / "taken").write_text("")
    words = ["report", "drawn", "--results", str(tmp_path), "--png", str(tmp_path / "taken")]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code != 0 and "cannot be written" in str(done.exception)
