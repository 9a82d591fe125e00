"""`tuner report` and `export`: what a study that is kept found."""

from __future__ import annotations

from pathlib import Path

import click

from tuner.cli.options import examples, results_option, store_of, study_argument
from tuner.cli.screen import console_for, show_bench, show_report, write
from tuner.results import StudyResults

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


@click.command(
    epilog=examples("tuner report\ntuner report my-study --html report.html\ntuner report --png plots")
)
@study_argument
@results_option
@click.option("--html", "html_path", type=click.Path(path_type=Path), help="Write the page here as well.")
@click.option(
    "--png", "png_folder", type=click.Path(path_type=Path), help="Write each plot into this folder, as a PNG."
)
def report(study: str | None, results: str | None, html_path: Path | None, png_folder: Path | None) -> None:
    """Reports on STUDY (default: the newest), here and as one self-contained HTML file."""
    store = store_of(study, results, benches=True)
    found = store.read()
    if found.about.get("kind") == "bench":
        show_bench(console_for(), found)
    else:
        show_report(console_for(), found, store)
    if html_path:
        from tuner.export import launch_text
        from tuner.report import html

        write("--html", html_path, html(found, launch_text(found)).encode())
    if png_folder:
        _write_pictures(png_folder, found)
    for skipped in found.skipped:
        click.echo(f"skipped: {skipped}", err=True)


def _write_pictures(folder: Path, found: StudyResults) -> None:
    from tuner.report import pictures

    drawn = pictures(found)
    for name, content in drawn.items():
        write("--png", folder / f"{name}.png", content)
    click.echo(f"Plots    {len(drawn)} PNG files in {folder}")


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
    else:
        write("--output", output, text.encode())
