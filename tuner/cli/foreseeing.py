"""`tuner check`, `predict` and `calibrate`: what a task would cost and give, before a GPU is held."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from tuner.cli.options import (
    calibration_option,
    engine_option,
    examples,
    results_option,
    store_of,
    study_argument,
    task_argument,
)
from tuner.cli.screen import console_for
from tuner.errors import UsageError, told_of


@click.command(epilog=examples("tuner check configs/quickstart.json\ntuner check task.json --engine sglang"))
@task_argument
@engine_option
def check(task_path: Path, engine: str | None) -> None:
    """Says what TASK would cost, and every problem in it (exit code 2 where there is one)."""
    from tuner.check import check_task

    for line in check_task(task_path, engine):
        click.echo(line)


@click.command(
    epilog=examples(
        "tuner predict configs/quickstart.json\n"
        "tuner predict task.json --gpu h200 --top 10\n"
        "tuner predict task.json --json"
    )
)
@task_argument
@click.option(
    "--gpu", metavar="NAME", help="The GPU to simulate, such as h200 [default: the task's, or h100]."
)
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="How many to show.")
@click.option("--seed", type=click.IntRange(min=0, max=2**32 - 1), help="In place of the task's seed.")
@calibration_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")
def predict(
    task_path: Path, gpu: str | None, top: int, seed: int | None, calibration: Path | None, as_json: bool
) -> None:
    """Predicts the best configurations of TASK in virtual time; nothing is started and nothing measured.

    Takes tasks of the simulator and of SGLang, and up to 300 configurations of a larger space. Ends with exit
    code 4 where no configuration would run.
    """
    from tuner.forecast import forecast
    from tuner.task import load_task

    task = load_task(task_path)
    seed = (task.optimization.seed or 0) if seed is None else seed
    with told_of(str(task_path)), console_for(stderr=True).status("predicting, in virtual time"):
        found = forecast(task, gpu=gpu, top=top, seed=seed, calibration=calibration)
    for line in [json.dumps(found.document(), indent=2)] if as_json else found.lines():
        click.echo(line)
    sys.exit(0 if found.best else 4)


@click.command(
    epilog=examples(
        "tuner calibrate\n"
        "tuner calibrate my-study --gpu h100 --output h100.json\n"
        "tuner predict task.json --calibration h100.json"
    )
)
@study_argument
@results_option
@click.option("--gpu", metavar="NAME", help="What it ran on [default: what the results say].")
@click.option("--output", type=click.Path(path_type=Path), help="The file [default: in the study's folder].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")
def calibrate(
    study: str | None, results: str | None, gpu: str | None, output: Path | None, as_json: bool
) -> None:
    """Fits the simulator's constants to the trials of STUDY (default: the newest).

    It is to be one of SGLang, or of the simulator. Says how far off it is before, after, and on
    configurations that were held out. Ends with exit code 3, and writes nothing, where that is no nearer.
    """
    from tuner.calibrate import calibrate as fitted

    store = store_of(study, results)
    found = fitted(store.read(), gpu=gpu)
    text = json.dumps(found.document(), indent=2)
    for line in [text] if as_json else found.lines():
        click.echo(line)
    if not found.helps:
        click.echo("No nearer on what was held out: nothing is written.", err=True)
        sys.exit(3)
    if output is None:
        place = store.write_file("calibration.json", text.encode())
    else:
        place = str(output)
        try:
            output.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UsageError(f"--output: {output} cannot be written: {error.strerror}") from error
    if not as_json:
        click.echo(f"\nFile     {place}")
