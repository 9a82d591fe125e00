"""The page's plots as PNGs, for slides, chats and documents."""

from __future__ import annotations

from tuner.report.canvas import png
from tuner.report.plots import Plot, every_plot
from tuner.results import StudyResults


def pictures(results: StudyResults) -> dict[str, bytes]:
    """Each plot of the page by a file name without an ending: `search-convergence`, `effect-tp-size`."""
    return {plot.name: png(plot.figure, _title(plot)) for plot in every_plot(results)}


def _title(plot: Plot) -> str:
    """The title; on small plots, whose notes are short, the note as well."""
    return "\n".join([plot.title, plot.note] if plot.small and plot.note else [plot.title])
