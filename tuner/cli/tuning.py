"""`tuner run` and `tuner resume`: a study, shown while it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import click

from tuner.cli.options import (
    at_once_option,
    calibration_option,
    engine_option,
    examples,
    num_gpus_option,
    results_option,
    store_of,
    study_argument,
    task_argument,
    virtual_option,
)
from tuner.cli.screen import Watching, console_for, show_report
from tuner.errors import UsageError
from tuner.results import ResultStore, default_root

if TYPE_CHECKING:
    from tuner.task import Task


@click.command(
    epilog=examples(
        "tuner run configs/quickstart.json\n"
        "tuner run task.json --engine simulator --num-gpus 8 --seed 1\n"
        "tuner run task.json --resume                     (goes on where it was left)\n"
        "tuner run task.json --virtual\n"
        "RAY_ADDRESS=auto tuner run task.yaml --results s3://bucket/studies"
    )
)
@task_argument
@engine_option
@num_gpus_option
@results_option
@click.option("--study", metavar="NAME", help="The new study's name [default: task name and time].")
@at_once_option
@click.option("--seed", type=click.IntRange(min=0, max=2**32 - 1), help="In place of the task's seed.")
@click.option("--warm-start", multiple=True, metavar="STUDY", help="Learn from an earlier study; repeatable.")
@click.option("--prior", type=click.Choice(["simulator"]), help="Begin where the simulator would.")
@click.option(
    "--resume", is_flag=True, help="Go on with this task's newest study (or --study), if there is one."
)
@click.option("--adopt", is_flag=True, help="With --resume: although the task has changed since.")
@virtual_option
@calibration_option
def run(
    task_path: Path,
    engine: str | None,
    num_gpus: int | None,
    results: str | None,
    study: str | None,
    max_concurrent: int | None,
    seed: int | None,
    warm_start: tuple[str, ...],
    prior: Literal["simulator"] | None,
    resume: bool,
    adopt: bool,
    virtual: bool,
    calibration: Path | None,
) -> None:
    """Searches the space of TASK and reports the best configuration.

    Ends with exit code 3 where no configuration met the SLOs, 4 where no trial finished, 130 after
    Ctrl-C (everything that was finished is kept).
    """
    from tuner.task import load_task

    task = load_task(task_path)
    if adopt and not resume:
        raise UsageError("--adopt: only together with --resume")
    _run(
        task,
        engine=engine,
        num_gpus=num_gpus,
        results=results,
        study=study,
        max_concurrent=max_concurrent,
        seed=seed,
        warm_start=warm_start,
        prior=prior,
        resume=resume,
        adopt=adopt,
        virtual=virtual,
        calibration=calibration,
        source=str(task_path),
    )


@click.command(
    epilog=examples(
        "tuner resume                            (the newest study)\n"
        "tuner resume my-study\n"
        "tuner resume my-study --task task.json --adopt"
    )
)
@study_argument
@results_option
@num_gpus_option
@at_once_option
@click.option(
    "--task", "task_path", metavar="TASK", type=click.Path(path_type=Path), help="The task as it is."
)
@click.option("--adopt", is_flag=True, help="Go on with TASK although it has changed.")
def resume(
    study: str | None,
    results: str | None,
    num_gpus: int | None,
    max_concurrent: int | None,
    task_path: Path | None,
    adopt: bool,
) -> None:
    """Goes on with STUDY (default: the newest) where it was left, however that came about.

    What was measured is kept and not measured again. The study goes on with the task that it was begun with,
    or with TASK; a TASK that has changed since is refused, unless --adopt takes it and the trials so far
    compare with further ones.
    """
    from tuner.task import load_task, make_task

    store = store_of(study, results)
    about = store.about()
    task = (
        load_task(task_path) if task_path else make_task(about.get("task", {}), f"{store.study}/study.json")
    )
    source = str(task_path or about.get("source", ""))
    _run(
        task,
        engine=about.get("engine"),
        virtual=bool(about.get("virtual")),
        num_gpus=num_gpus,
        results=results,
        study=store.study,
        max_concurrent=max_concurrent,
        resume=True,
        adopt=adopt,
        source=source,
    )


def _run(task: Task, *, results: str | None, **how: Any) -> NoReturn:
    """Runs a study, shows it, and leaves with its exit code."""
    console = console_for()
    with Watching(console, f"Tuning {task.task_name}") as watching:
        from tuner.study import run_study

        outcome = run_study(task, results=results, watch=watching.show, **how)
    kept, name = len(outcome.results.trials), outcome.results.about["study"]
    if outcome.interrupted:
        console.print(f"[bold]Interrupted[/bold]; {kept} trials are kept, `tuner resume {name}` goes on.")
    if kept:
        show_report(console, outcome.results, ResultStore(results or default_root(), name))
    console.print(
        f"\nResults  {outcome.location}\nLog      {outcome.log_path}", soft_wrap=True, highlight=False
    )
    sys.exit(outcome.exit_code)
