"""A running study as a terminal shows it."""

from __future__ import annotations

from pathlib import Path

import pytest
import studies
from rich.console import Console
from test_security import told

from tuner.cli.screen import Watching, console_for
from tuner.live import LiveStudy, progress_line
from tuner.progress import Place, StudyProgress


def shown(progress: StudyProgress | None) -> str:
    study = LiveStudy("Tuning llama")
    study.progress = progress
    console = Console(width=100, force_terminal=False)
    with console.capture() as captured:
        console.print(study)
    return captured.get()


def test_before_the_cluster_is_up() -> None:
    assert "starting Ray" in shown(None)


def test_who_waits_and_where_the_others_run() -> None:
    places = (Place(7, "node-a", ("0", "1")), Place(8, "node-b", ("3",)), Place(9, "node-b", ()))
    text = shown(StudyProgress(30, 3, 5, 1, 60.0, waiting=2, places=places))
    assert "6 of 30 trials" in text and "about 4 min left" in text
    assert "3 running   2 waiting for GPUs   5 finished   1 failed" in text
    for line in ("trial 7 on node-a, GPUs 0 1", "trial 8 on node-b, GPU 3", "trial 9 on node-b\n"):
        assert line in text


def test_of_many_trials_some_are_listed() -> None:
    text = shown(StudyProgress(90, 20, 0, 0, 1.0, places=tuple(Place(n, "node", ()) for n in range(20))))
    assert text.count(" on node") == 8 and "and 12 more" in text and "waiting" not in text


def test_what_is_refused_before_anything_starts_has_no_title(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = tmp_path / "task.json"
    task.write_text('{"base_runtime": "simulator"}')
    assert told("run", str(task), "--calibration", "none.json") == 2
    said = capsys.readouterr()
    assert not said.out and said.err.startswith("error: ")


def test_the_title_stands_once_before_the_first_trial(capsys: pytest.CaptureFixture[str]) -> None:
    progress = StudyProgress(planned=3, running=1, finished=0, failed=0, elapsed_s=1.0)
    with Watching(console_for(), "Tuning llama") as watching:
        watching.show(progress)
        watching.show(progress)
    assert capsys.readouterr().out == "Tuning llama\n"


def test_of_several_objectives_a_line_has_each_and_names_no_best() -> None:
    made = studies.make([{"tp-size": 2}], fails=studies.never_fails)
    made.with_objectives(lambda config: (0.5 - len(config), -2.0), "minimize_ttft", "maximize_goodput")
    row = made.trials[1]
    progress = StudyProgress(2, 0, 2, 0, 1.0, best=row)
    assert progress_line(progress, row).startswith("[2/2] 607 ms, 7.39 requests/s/GPU  trial 1")
    assert "NEW BEST" not in progress_line(progress, row)
    assert "best minimize_ttft so far: 607 ms, 7.39 requests/s/GPU" in " ".join(shown(progress).split())
    alone = studies.make([{"tp-size": 2}], fails=studies.never_fails).trials[1]
    assert progress_line(StudyProgress(2, 0, 2, 0, 1.0, best=alone), alone).endswith("  NEW BEST")
