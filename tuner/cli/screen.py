"""What commands show: a report, a study while it runs, plain text where no terminal looks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tuner.errors import UsageError
from tuner.results import ResultStore, StudyResults

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from tuner.progress import StudyProgress


class Watching:
    """Shows a study's progress: a live display on a terminal, a line for each trial elsewhere.

    The title is printed with the first of them: what is refused before anything starts has none.
    """

    def __init__(self, console: Console, title: str) -> None:
        from rich.live import Live

        from tuner.live import LiveStudy

        self._console = console
        self._study = LiveStudy(title)
        self._live = Live(self._study, console=console, refresh_per_second=4, transient=True)
        self._lines = not console.is_terminal
        self._titled = False

    def __enter__(self) -> Watching:
        if not self._lines:
            self._live.start()
        return self

    def __exit__(self, *raised: object) -> None:
        if not self._lines:
            self._live.stop()

    def show(self, progress: StudyProgress) -> None:
        """Takes the newest progress of a study of this process, which misses none of its trials."""
        before, self._study.progress = self._study.progress, progress
        new = progress.last is not None and progress.last != getattr(before, "last", None)
        self._print(before, [progress.last] if new and progress.last else [])

    def caught_up(self, progress: StudyProgress | None, rows: Sequence[dict[str, Any]]) -> None:
        """Takes the newest progress of a study elsewhere, and the trials that have ended since the last."""
        before, self._study.progress = self._study.progress, progress
        self._print(before, rows)

    def _print(self, before: StudyProgress | None, rows: Sequence[dict[str, Any]]) -> None:
        """Where no terminal looks: a line for each trial that has ended, and for trouble that is new."""
        progress = self._study.progress
        if not self._lines:
            return
        if not self._titled:
            self._titled = True
            self._console.print(self._study.title)
        if progress is None:
            return
        from tuner.live import progress_line

        lines = [progress_line(progress, row) for row in rows]
        if progress.trouble and progress.trouble != getattr(before, "trouble", ""):
            lines.append(progress.trouble)
        for line in lines:
            self._console.print(line, soft_wrap=True, highlight=False, markup=False)


def console_for(*, stderr: bool = False) -> Console:
    """Where to print: standard output, or standard error where that is taken by JSON."""
    from rich.console import Console

    return Console(stderr=stderr)


def show(console: Console, content: RenderableType) -> None:
    """Prints `content`; into a file or another program without the blanks that fill a terminal's lines."""
    if console.is_terminal:
        console.print(content)
        return
    with console.capture() as shown:
        console.print(content)
    click.echo("\n".join(line.rstrip() for line in shown.get().splitlines()), file=console.file)


def write(option: str, path: Path, content: bytes) -> None:
    """Writes a file that `option` named, with the folder that it lies in."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise UsageError(f"{option}: {path} cannot be written: {error.strerror}") from error


def show_report(console: Console, found: StudyResults, store: ResultStore) -> None:
    """The report on the terminal, and as a page in the study's folder."""
    from tuner.export import launch_text
    from tuner.report import html, terminal

    launch = launch_text(found)
    show(console, terminal(found, launch))
    page = store.write_file("report.html", html(found, launch).encode())
    console.print(f"\nReport   {page}", soft_wrap=True, highlight=False)


def show_bench(console: Console, found: StudyResults) -> None:
    """The load levels of a server that was measured as it ran."""
    from tuner.analysis.trials import rows
    from tuner.report import level_table
    from tuner.report.sentences import simulated_sentence

    if simulated := simulated_sentence(found):
        console.print(simulated, style="bold yellow")
    console.print(f"{found.about['study']}: {found.about['base_url']}\n", highlight=False)
    for row in rows(found.steps):
        show(console, level_table(row))
