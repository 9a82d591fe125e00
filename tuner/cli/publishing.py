"""`tuner publish`: a study in an Optuna storage or on an MLflow server, once or while it runs."""

from __future__ import annotations

import time

import click

from tuner.cli.options import (
    examples,
    mlflow_option,
    optuna_option,
    published_to,
    results_option,
    store_of,
    study_argument,
)
from tuner.errors import UsageError

LOOKS_EVERY_S = 5.0


@click.command(
    epilog=examples(
        "tuner publish --optuna sqlite:///optuna.db        (then: optuna-dashboard sqlite:///optuna.db)\n"
        "tuner publish my-study --mlflow http://127.0.0.1:5000\n"
        "tuner publish my-study --optuna sqlite:///optuna.db --follow"
    )
)
@study_argument
@results_option
@optuna_option
@mlflow_option
@click.option("--follow", is_flag=True, help="Go on until the study that runs has ended.")
def publish(
    study: str | None, results: str | None, optuna: str | None, mlflow: str | None, follow: bool
) -> None:
    """Writes STUDY (default: the newest) to where other tools open it; trials that are there are left alone.

    A password belongs into the environment variables, not onto the command line.
    """
    from tuner.publish import follow as following
    from tuner.publish import publish as once

    targets = published_to(optuna, mlflow)
    if not targets:
        raise UsageError("give --optuna URL, --mlflow URI or both")
    store = store_of(study, results)

    def wait() -> bool:
        time.sleep(LOOKS_EVERY_S)
        return True

    for published in following(store, targets, wait) if follow else [once(store.read(), targets)]:
        for each in published:
            click.echo(f"{store.study} in {each}")
