"""`tuner report` and `export`: what a study that is kept found."""

from __future__ import annotations

from pathlib import Path

import click

from tuner.cli.options import examples, results_option, store_of, study_argument
from tuner.cli.screen import console_for, launch_text, show_bench, show_report, write
from tuner.results import StudyResults


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
    store = store_of(study, results)
    found = store.read()
    if found.about.get("kind") == "bench":
        show_bench(console_for(), found)
    else:
        show_report(console_for(), found, store)
    if html_path:
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


@click.command(epilog=examples("tuner export\ntuner export my-study --format kubernetes > engine.yaml"))
@study_argument
@results_option
@click.option(
    "--format", "form", type=click.Choice(["shell", "docker", "kubernetes", "json"]), default="shell"
)
def export(study: str | None, results: str | None, form: str) -> None:
    """Prints how to launch the best configuration of STUDY (default: the newest)."""
    from tuner.export import FORMATS, best_deployment

    click.echo(FORMATS[form](best_deployment(store_of(study, results).read())), nl=False)
