"""Options and arguments that several commands share, and what they name."""

from __future__ import annotations

from pathlib import Path

import click

from tuner.errors import StudyError
from tuner.results import ResultStore, default_root, studies

results_option = click.option(
    "--results",
    metavar="DIR-or-URI",
    help="Where studies are kept [default: $XDG_DATA_HOME/autotuner/results].",
)
engine_option = click.option(
    "--engine", metavar="NAME", help="The engine, in place of the task's base_runtime."
)
virtual_option = click.option(
    "--virtual", is_flag=True, help="On the simulator in virtual time: seconds in place of minutes."
)
calibration_option = click.option(
    "--calibration", metavar="FILE", type=click.Path(path_type=Path), help="What `tuner calibrate` wrote."
)
task_argument = click.argument("task_path", metavar="TASK", type=click.Path(path_type=Path))
study_argument = click.argument("study", required=False)
num_gpus_option = click.option(
    "--num-gpus", type=click.IntRange(min=1), help="GPUs, real or logical, of a local Ray cluster."
)
at_once_option = click.option(
    "--max-concurrent", type=click.IntRange(min=1), help="Trials at once [default: all that fit]."
)


def examples(text: str) -> str:
    """Command lines, one on each line of `text`, as the end of a command's help."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in text.splitlines())


def store_of(study: str | None, results: str | None) -> ResultStore:
    """The study of that name in `results`, or the newest there; StudyError where there is none."""
    root = results or default_root()
    if study is None:
        kept = studies(root)
        if not kept:
            raise StudyError(f"no study is kept in {root}; `tuner run TASK` makes one")
        study = kept[0]
    store = ResultStore(root, study)
    if not store.exists():
        raise StudyError(f"no study {study!r} in {store.root}")
    return store
