"""`tuner watch`: a study that another process runs, here or elsewhere."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from tuner.cli.options import examples, results_option, store_of, study_argument
from tuner.cli.screen import Watching, console_for, show_report

if TYPE_CHECKING:
    from rich.console import Console

    from tuner.results import ResultStore
    from tuner.standing import Standing


@click.command(
    epilog=examples(
        "tuner watch                                      (the newest study)\n"
        "tuner watch my-study --results s3://bucket/studies\n"
        "tuner watch my-study --once\n"
        "tuner watch my-study --json > progress.jsonl"
    )
)
@study_argument
@results_option
@click.option("--once", is_flag=True, help="Say how it stands now, and leave.")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON whenever something is new.")
def watch(study: str | None, results: str | None, once: bool, as_json: bool) -> None:
    """Shows STUDY (default: the newest) while it runs, wherever it runs, and its report at the end.

    Reads the study's folder and nothing else; Ctrl-C ends the watching and leaves the study alone. Ends with
    the exit code of the study: 130 where it was interrupted, 1 where it ended in an error.
    """
    from tuner.standing import standing

    store = store_of(study, results)
    if once:
        found = standing(store)
        click.echo(json.dumps(found.document()) if as_json else "\n".join(_lines(found)))
        return
    found = _followed_as_json(store) if as_json else _followed(store, console_for())
    sys.exit(_exit_code(found, store))


def _followed_as_json(store: ResultStore) -> Standing:
    from tuner.standing import follow

    shown: dict[str, Any] = {}
    for found, _ in follow(store):
        document = {**found.document(), "updated_at": None}  # it alone is no news
        if document != shown:
            click.echo(json.dumps(found.document()))
        shown = document
    return found


def _followed(store: ResultStore, console: Console) -> Standing:
    from tuner.standing import State, follow

    with Watching(console, f"Watching {store.study}") as watching:
        for found, rows in follow(store):
            watching.caught_up(found.progress, rows)
    if found.state is not State.FINISHED:
        console.print(f"[bold]{found.state.capitalize()}[/bold]; `tuner resume {store.study}` goes on.")
    if found.error:
        console.print(found.error, soft_wrap=True, highlight=False, markup=False)
    results = store.read()
    if len(results.trials):
        show_report(console, results, store)
    return found


def _exit_code(found: Standing, store: ResultStore) -> int:
    from tuner.analysis import summary
    from tuner.standing import State

    if found.state is State.BROKEN:
        return 1
    return 130 if found.state is State.INTERRUPTED else summary(store.read()).exit_code


def _lines(found: Standing) -> list[str]:
    """How a study stands, in plain lines."""
    from tuner.live import best_head, counts_text, trial_text

    lines = [f"{found.study}: {found.state}"]
    if found.error:
        lines.append(found.error)
    if progress := found.progress:
        lines.append(counts_text(progress))
        if progress.best is not None:
            lines.append(f"{best_head(progress.best)}{trial_text(progress.best)}")
        lines += [str(place) for place in progress.places]
        if progress.trouble:
            lines.append(progress.trouble)
    return lines
