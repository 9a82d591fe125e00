"""Studies side by side as one HTML file; what tasks and engines wrote is escaped where it enters the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from matplotlib.figure import Figure

from tuner.analysis.comparison import Comparison, Side, spread
from tuner.report import words
from tuner.report.canvas import GREEN, INK, ORANGE, WIDE, axes_of, legend, svg
from tuner.report.comparing import (
    HEADS,
    pair_title,
    shared_heads,
    shared_rows,
    side_row,
    simulated_lines,
    verdicts,
)
from tuner.report.style import document


def comparison_html(found: Comparison) -> str:
    """The comparison as one page that needs no network."""
    title = escape(f"{len(found.sides)} studies side by side")
    simulated = [f'<p class="simulated">{escape(line)}</p>' for line in simulated_lines(found)]
    body = "\n".join([*simulated, f"<h1>{title}</h1>", *_parts(found)])
    return document(title, body)


def _parts(found: Comparison) -> Iterator[str]:
    yield "<h2>What each found</h2>"
    if (figure := _values_plot(found.sides)) is not None:
        drawn = svg(figure, "Best and defaults of each study", "values")
        note = "Bars are 95 % intervals, where they can be told."
        yield f'<div class="plots"><figure>{drawn}<figcaption>{note}</figcaption></figure></div>'
    heads = [*HEADS, "Best configuration"]
    yield _html_table(heads, [[*side_row(side), _best_text(side)] for side in found.sides])
    yield "<h2>What differs</h2>"
    if found.differences:
        rows = [[name, *values] for name, values in found.differences.items()]
        yield _html_table(["", *(side.study for side in found.sides)], rows)
    else:
        yield "<p>Nothing: the same task, on the same engine, version and GPUs.</p>"
    for match in found.matches:
        yield f"<h2>{escape(pair_title(found, match))}</h2>"
        yield from (f"<p>{escape(line)}</p>" for line in verdicts(found, match))
        if match.shared:
            yield _html_table(shared_heads(found, match), shared_rows(found, match))


def _html_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    lines = ["".join(f"<td>{escape(text)}</td>" for text in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return (
        f'<div class="scroll"><table class="trials fixed"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _values_plot(sides: Sequence[Side]) -> Figure | None:
    """Best and defaults of each study; None where the objectives differ or nothing was measured."""
    if len({side.facts["objective"] for side in sides}) > 1:
        return None
    shown = [side for side in sides if side.answer.best is not None]
    if not shown:
        return None
    figure, axes = axes_of((WIDE[0], 1.2 + 0.5 * len(shown)))
    unit = words.unit_of(shown[0].results)
    looks = {"best": ("*", ORANGE, 12, -0.12), "engine's defaults": ("D", GREEN, 7, 0.12)}
    for place, side in enumerate(shown):
        for name, trial in zip(looks, (side.answer.best, side.answer.baseline), strict=True):
            if trial is None or not trial["objective"] > 0:
                continue
            marker, colour, size, offset = looks[name]
            value, around = float(trial["objective"]) * unit.factor, spread(side, trial)
            if around is not None:
                ends = [around.low * unit.factor, around.high * unit.factor]
                axes.plot(ends, [place + offset] * 2, color=INK, lw=2, alpha=0.5)
            options: dict[str, Any] = {"color": colour, "mec": INK, "mew": 0.7, "ms": size, "ls": "none"}
            axes.plot([value], [place + offset], marker, label=name, **options)
    names = [side.study if len(side.study) <= 28 else f"…{side.study[-27:]}" for side in shown]
    axes.set_yticks(range(len(shown)), names, parse_math=False)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlabel(words.value_label(shown[0].answer, unit))
    legend(figure)
    return figure


def _best_text(side: Side) -> str:
    return "–" if side.answer.best is None else words.config_text(side.answer.best["config"])
