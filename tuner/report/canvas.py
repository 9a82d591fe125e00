"""How plots look: axes, colours, the score axis, and SVG that takes the page's colours and width.

Colours are Okabe & Ito's (2008), told apart with every common colour blindness; markers, line styles and
hatches differ as well, for print in grey. Nothing here touches pyplot.
"""

from __future__ import annotations

import html
import io
import re

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from tuner.analysis import Status
from tuner.report.words import Unit, digits

BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9"
INK, PAPER = "#1c2128", "#fffffe"  # like BLUE, svg() turns them into the page's own colours
_PAGE_COLOURS = {INK: "currentColor", PAPER: "var(--paper)", BLUE: "var(--mark)"}
MARKERS = {
    Status.FINISHED: ("o", BLUE),
    Status.STOPPED: ("s", SKY),
    Status.HARD_SLO: ("^", ORANGE),
    Status.FAILED: ("X", RED),
}
WIDE = (4.9, 3.2)  # inches; a phone shows it at about this size, so text stays legible
NARROW = (3.4, 2.5)  # three or four beside each other
MAP = (3.5, 2.9)
TEXT_PT = 10.0
_PNG_DPI = 200
_TITLE_HEIGHT = 0.2  # inches a line


def axes_of(size: tuple[float, float]) -> tuple[Figure, Axes]:
    """A figure of `size` inches with one plot."""
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(colors=INK, labelsize=TEXT_PT - 1)
    axes.xaxis.label.set(color=INK, size=TEXT_PT)
    axes.yaxis.label.set(color=INK, size=TEXT_PT)
    axes.grid(color=INK, alpha=0.12, lw=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def legend(figure: Figure, columns: int = 3) -> None:
    """A legend above the plot, each label once."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(
        unique.values(),
        unique.keys(),
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        fontsize=TEXT_PT - 1,
        labelcolor=INK,
        handletextpad=0.5,
        columnspacing=1.2,
    )


class ValueAxis:
    """A y axis for the objective's values: logarithmic where they differ by more than a factor of 20.

    Values beyond 1000 times the best are drawn there.
    """

    def __init__(self, values: pd.Series[float], unit: Unit, *, maximise: bool) -> None:
        best = float(values.max() if maximise else values.min())
        self._range = (best / 1000, best) if maximise else (best, best * 1000)
        self._factor = unit.factor
        self._shown = self(values)

    def __call__(self, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Where `values` are drawn."""
        shown: npt.NDArray[np.float64] = np.clip(np.asarray(values, dtype=float), *self._range)
        return shown * self._factor

    def fit(self, axes: Axes, label: str) -> None:
        """Makes it the y axis of `axes`, with room above for what has no value."""
        low, high = float(np.nanmin(self._shown)), float(np.nanmax(self._shown))
        if high > 20 * low > 0:
            axes.set_yscale("log")
            axes.set_ylim(low / 1.3, high * (high / low) ** 0.15)
        else:
            room = (high - low) or 0.1 * high
            axes.set_ylim(low - 0.1 * room, high + 0.25 * room)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: digits(value, trim=True)))
        axes.set_ylabel(label)


def svg(figure: Figure, title: str, name: str) -> str:
    """The figure as an <svg> element: text stays text, and the page chooses size and ink.

    `name` keeps its inner ids apart from those of the page's other figures.
    """
    sink = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(sink, format="svg", transparent=True, metadata={"Date": None})
    text = sink.getvalue()
    text = text[text.index("<svg") :]
    for stand_in, colour in _PAGE_COLOURS.items():
        text = text.replace(stand_in, colour)
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)


def png(figure: Figure, title: str) -> bytes:
    """The figure under its title as a PNG on paper, for slides and chats."""
    if figure.legends:  # a title of the figure itself would lie on the legend
        above = figure.legends[0]
        above.set_title(title)
        above.set_alignment("left")
        heading = above.get_title()
    else:
        heading = figure.suptitle(title, x=0.02, ha="left")
    heading.set(color=INK, size=TEXT_PT, weight="bold", parse_math=False)
    figure.set_figheight(figure.get_figheight() + _TITLE_HEIGHT * (1 + title.count("\n")))
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=_PNG_DPI, facecolor=PAPER, metadata={"Software": None})
    return sink.getvalue()
