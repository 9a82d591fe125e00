"""`tuner report`, `export` and `studies`: what the studies that are kept found."""

from __future__ import annotations

from pathlib import Path

import click

from tuner.cli.options import examples, results_option, store_of, study_argument
from tuner.cli.screen import console_for, launch_text, show_bench, show_report
from tuner.errors import UsageError
from tuner.results import default_root, studies

FORMATS = (
    "shell",
    "docker",
    "compose",
    "kubernetes",
    "ome",
    "ray-serve",
    "json",
    "yaml",
)


@click.command(epilog=examples("tuner report\ntuner report quickstart-20260101-120000 --html report.html"))
@study_argument
@results_option
@click.option("--html", "html_path", type=click.Path(path_type=Path), help="Write the page here as well.")
def report(study: str | None, results: str | None, html_path: Path | None) -> None:
    """Reports on STUDY (default: the newest), here and as one self-contained HTML file."""
    store = store_of(study, results, benches=True)
    found = store.read()
    if found.about.get("kind") == "bench":
        show_bench(console_for(), found)
    else:
        show_report(console_for(), found, store)
    if html_path:
        from tuner.report import html

        try:
            html_path.write_text(html(found, launch_text(found)), encoding="utf-8")
        except OSError as error:
            raise UsageError(f"--html: {html_path} cannot be written: {error.strerror}") from error
    for skipped in found.skipped:
        click.echo(f"skipped: {skipped}", err=True)


@click.command(
    epilog=examples(
        "tuner export\n"
        "tuner export my-study --format kubernetes > engine.yaml\n"
        "tuner export my-study --format compose --trial 7 --output compose.yaml"
    )
)
@study_argument
@results_option
@click.option("--format", "form", type=click.Choice(FORMATS), default="shell", help="What to make of it.")
@click.option("--trial", "number", type=click.IntRange(min=0), help="This trial's [default: the best's].")
@click.option("--output", type=click.Path(path_type=Path), help="Write it to this file instead.")
def export(
    study: str | None, results: str | None, form: str, number: int | None, output: Path | None
) -> None:
    """Prints how to launch the best configuration of STUDY (default: the newest)."""
    from tuner import export as exports

    text = exports.FORMATS[form](exports.deployment_of(store_of(study, results).read(), number))
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--output: {output} cannot be written: {error.strerror}") from error


@click.command("studies", epilog=examples("tuner studies\ntuner studies --results s3://bucket/studies"))
@results_option
def list_studies(results: str | None) -> None:
    """Lists the studies that are kept, the newest first."""
    for name in studies(results or default_root()):
        click.echo(name)
