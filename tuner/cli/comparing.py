"""`tuner compare`: studies of several models, GPUs or engine versions side by side."""

from __future__ import annotations

import json
from pathlib import Path

import click

from tuner.cli.options import examples, results_option, store_of
from tuner.cli.screen import console_for, show, write


@click.command(
    epilog=examples(
        "tuner compare llama-h100 llama-h200\n"
        "tuner compare before after --html comparison.html\n"
        "tuner compare before after --json"
    )
)
@click.argument("studies", nargs=-1, required=True, metavar="STUDY STUDY...")
@results_option
@click.option("--html", "html_path", type=click.Path(path_type=Path), help="Write a page here as well.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compare(studies: tuple[str, ...], results: str | None, html_path: Path | None, as_json: bool) -> None:
    """Sets two or more studies side by side: what differs, what each found, which configurations they share.

    Studies of another objective, load or SLOs are shown, and no verdict is given on them.
    """
    if len(set(studies)) < 2:
        same = f"{studies[0]} is named twice: " if len(studies) > 1 else ""
        raise click.UsageError(f"{same}name two studies or more; `tuner studies` lists them")
    from tuner.analysis.comparison import compare as compared
    from tuner.report import comparison_html, comparison_json, comparison_terminal

    found = compared([store_of(study, results).read() for study in dict.fromkeys(studies)])
    if as_json:
        click.echo(json.dumps(comparison_json(found), indent=2))
    else:
        show(console_for(), comparison_terminal(found))
    if html_path:
        write("--html", html_path, comparison_html(found).encode())
