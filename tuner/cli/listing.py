"""`tuner studies`: what is kept, a line on each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import click

from tuner.cli.options import examples, results_option
from tuner.cli.screen import console_for, show
from tuner.results import default_root, studies

_NEWEST = 25
_WIDE = 240  # columns, where no terminal looks: a line is a study's then

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tuner.analysis import Summary
    from tuner.overview import Overview


@click.command(
    "studies",
    epilog=examples("tuner studies\ntuner studies --results s3://bucket/studies\ntuner studies --json"),
)
@results_option
@click.option("--all", "every", is_flag=True, help=f"All of them [default: the {_NEWEST} newest].")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_studies(results: str | None, every: bool, as_json: bool) -> None:
    """Lists the studies that are kept, the newest first: how they stand, and what they found."""
    from tuner.overview import overviews

    root = results or default_root()
    names = studies(root)
    shown = names if every else names[:_NEWEST]
    found = overviews(root, shown)
    if as_json:
        click.echo(json.dumps([each.document() for each in found], indent=2))
        return
    if not found:
        click.echo(f"No study is kept in {root}; `tuner run TASK` makes one.")
    elif readable := [each for each in found if each.standing is not None]:
        console = console_for()
        if not console.is_terminal:
            console.width = _WIDE
        show(console, _table(readable))
    for each in found:
        if each.standing is None:
            click.echo(f"{each.study}: {each.error}")
    if len(names) > len(shown):
        click.echo(f"and {len(names) - len(shown)} older ones: --all")


def _table(found: Sequence[Overview]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    numbers = ("Trials", "Best", "Gain")
    for head in ("Study", "State", *numbers, "Model", "Engine", "Started"):
        table.add_column(head, overflow="fold", justify="right" if head in numbers else "left")
    for each in found:
        table.add_row(*map(Text, _row(each)))
    return table


def _row(each: Overview) -> list[str]:
    from tuner.report.words import engine_text, unit_of

    assert each.standing is not None and each.results is not None
    about, answer = each.standing.about, each.answer
    best = answer.best if answer is not None else None
    planned = f" of {about['planned_trials']}" if about.get("planned_trials") else ""
    model = about.get("base_url") or about["task"].get("model", {}).get("id_or_path", "")
    engine = engine_text(str(about.get("engine", "")), about.get("engine_version"))
    return [
        each.study,
        each.state,
        f"{each.trials}{planned}",
        "–" if best is None else unit_of(each.results).amount(float(best["objective"])),
        _gain(answer),
        str(model),
        "simulator" if about.get("simulated") else engine,
        _started(about.get("started_at")),
    ]


def _gain(answer: Summary | None) -> str:
    from tuner.analysis import Verdict
    from tuner.report.words import percent

    if answer is None or answer.gain is None:
        return "–"
    return "none" if answer.verdict is Verdict.NO_GAIN else percent(answer.gain.share)


def _started(text: object) -> str:
    """Local time, to the minute."""
    try:
        return f"{datetime.fromisoformat(str(text)).astimezone():%Y-%m-%d %H:%M}"
    except ValueError:
        return "–"
