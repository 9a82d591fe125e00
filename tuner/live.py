"""A running study as a terminal shows it. Draws only; `cli` prints."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from tuner.evaluate import Report
from tuner.objective import OBJECTIVES
from tuner.progress import StudyProgress
from tuner.report.words import Unit, config_text, display_unit, duration, limit_text, seconds

_BAR_WIDTH = 40
_MOST_PLACES = 8  # running trials that are listed


class LiveStudy:
    """A rich renderable of a study's newest `progress`; None before the cluster is up."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.progress: StudyProgress | None = None
        self._spinner = Spinner("dots", "starting Ray")

    def __rich__(self) -> RenderableType:
        if self.progress is None:
            return Group(Text(self.title, style="bold"), self._spinner)
        progress = self.progress
        ended = progress.finished + progress.failed
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            ProgressBar(progress.planned, ended, width=_BAR_WIDTH),
            f"{ended} of {progress.planned} trials",
            _time_left(progress),
        )
        counts = Text(counts_text(progress))
        if progress.failed:
            counts.highlight_words([f"{progress.failed} failed"], "red")
        lines: list[RenderableType] = [Text(self.title, style="bold"), bar, counts]
        if progress.trouble:
            lines.append(Text(progress.trouble, style="bold yellow"))
        if progress.best is not None:
            lines.append(Text.assemble(best_head(progress.best), (trial_text(progress.best), "green")))
        lines += [Text(str(place), style="dim") for place in progress.places[:_MOST_PLACES]]
        if (more := len(progress.places) - _MOST_PLACES) > 0:
            lines.append(Text(f"and {more} more", style="dim"))
        return Group(*lines)


def counts_text(progress: StudyProgress) -> str:
    """How many trials run, wait and have ended."""
    waiting = f"{progress.waiting} waiting for GPUs   " if progress.waiting else ""
    ended = f"{progress.finished} finished   {progress.failed} failed"
    return f"{progress.running} running   {waiting}{ended}"


def _time_left(progress: StudyProgress) -> str:
    left = progress.remaining_s
    return "" if left is None else f"about {duration(left)} left"


def best_head(row: dict[str, Any]) -> str:
    """Before the best trial so far; of several objectives, it is the first one's."""
    return f"best {row['objective_name']} so far: " if row.get("objectives") else "best so far: "


def trial_text(row: dict[str, Any]) -> str:
    """One line on a trial that has ended: its score, or why it failed, and its configuration."""
    where = f"trial {row['trial']}: {config_text(json.loads(row['config']))}"
    if row["failure_cause"]:
        return f"{row['failure_cause']}  {where}"
    if row["stopped_early"]:
        return f"stopped, losing  {where}"
    missed = "  (SLO missed)" if row["slo_met"] is False else ""
    return f"{_objective(row)}{missed}  {where}"


def _objective(row: dict[str, Any]) -> str:
    value = row["objective"]
    if value is None:
        return "no result"
    if several := json.loads(row.get("objectives") or "{}"):
        return ", ".join(
            display_unit(OBJECTIVES[name]).amount(each["objective"]) for name, each in several.items()
        )
    unit = seconds(value) if row["objective_unit"] == "s" else Unit(row["objective_unit"], 1.0)
    return unit.amount(value)


def progress_line(progress: StudyProgress, row: dict[str, Any]) -> str:
    """A line for logs: how far the study is, and a trial of it that has ended."""
    ended = progress.finished + progress.failed
    best = progress.best is not None and progress.best["trial"] == row["trial"]
    new = (
        "  NEW BEST" if best and not row.get("objectives") else ""
    )  # of several, none is told before the end
    return f"[{ended}/{progress.planned}] {trial_text(row)}{new}"


def report_line(report: Report) -> str:
    """What a trial's newest load level showed, or why it failed, with the engine's last words."""
    if report.failure:
        failure = report.failure
        return f"failed ({failure.stage}): {failure.cause}: {failure.detail}\n{failure.evidence}".rstrip()
    if report.step is None:
        return "the last load was more than the server takes"
    metrics, level = report.step.metrics, report.step.level
    parts = [f"{level}:"]
    for name in ("latency", "ttft", "tpot"):
        values = getattr(metrics, name)
        if values is not None:
            parts.append(f"{name} mean {values.mean * 1e3:.1f} ms, p99 {values.p99 * 1e3:.1f} ms;")
    parts.append(f"{metrics.output_tok_s:,.0f} output tok/s, {metrics.requests_ok} requests")
    if limit := report.step.client_limit:
        parts.append(f"({limit_text(limit)})")
    return " ".join(parts)
