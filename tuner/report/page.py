"""The report as one HTML file: no network, no fonts or scripts from elsewhere; the answer comes first.

Everything that a task, an engine or a model wrote is escaped where it enters the page.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd

from tuner.analysis import (
    Status,
    Summary,
    Verdict,
    next_steps,
    outcome,
    status,
    summary,
)
from tuner.analysis.trials import Trial, command_of, is_number, is_true, objectives_of, parameters_of, rows
from tuner.report import sentences, words
from tuner.report.canvas import svg
from tuner.report.plots import Plot, every_plot
from tuner.report.style import document
from tuner.results import StudyResults

_KINDS = {"baseline": " (engine's defaults)", "confirm": " (measured again)"}
_SECTIONS = {  # of the page, by what `plots` calls them
    "search": ("The search", ""),
    "requests": (
        "Single requests: the best against the engine's defaults",
        "How many requests were faster than what, at the highest load that both were measured at, over all "
        "runs of either. A curve further to the left is faster; it keeps the promise of a percentile where "
        "it passes above and to the left of the cross.",
    ),
    "effect": (
        "Effect of each parameter",
        "Points are finished trials, hollow where they broke an SLO. Bars are their geometric mean, the "
        "shade its 95 % interval (Student's, variance pooled over the values). A cross counts the trials "
        "that did not finish. Trials with a value differ in other parameters, too.",
    ),
    "pair": (
        "Parameters in pairs",
        "The geometric mean over the finished trials, darker where it is better, in brackets where none "
        "kept the SLOs. Blank was not measured, a cross is where no trial finished; the star has the best.",
    ),
    "failures": (
        "Where trials fail",
        "Trials by the values of the parameters that failures depend on most.",
    ),
}


def html(results: StudyResults, launch: str | None) -> str:
    """The whole page; `launch` is the command that starts the engine with the best configuration."""
    answer = summary(results)
    unit = words.unit_of(results)
    every = every_plot(results)
    title = escape(str(results.about["study"]))
    body = "\n".join(
        [
            *_head(results, title),
            *_answer(results, answer, unit, launch),
            *_front(results, answer, every),
            *_advice(results),
            *_plots(every),
            *_trials(results, answer, unit),
            *_task(results),
        ]
    )
    return document(title, body)


def _head(results: StudyResults, title: str) -> Iterator[str]:
    if simulated := sentences.simulated_sentence(results):
        yield f'<p class="simulated">{simulated}</p>'
    yield f"<h1>{title}</h1>"
    if description := results.about["task"].get("description"):
        yield f"<p>{escape(description)}</p>"
    yield f'<p class="soft">{escape(sentences.subject(results))}</p>'
    for caveat in sentences.caveats(results):
        yield f'<p class="simulated">{escape(caveat)}</p>'
    if results.skipped:
        files = "".join(f"<li>{escape(name)}</li>" for name in results.skipped)
        yield f"<details><summary>{len(results.skipped)} unreadable files</summary><ul>{files}</ul></details>"


def _answer(results: StudyResults, answer: Summary, unit: words.Unit, launch: str | None) -> Iterator[str]:
    yield f'<section class="answer"><h2>{sentences.headline(answer)}</h2>'
    if answer.best is not None and not answer.defaults_are_best:
        yield _flags(answer.best, answer.baseline)
    style = "better" if answer.verdict is Verdict.BETTER else "open"
    gain = f'<dd class="{style}">{escape(sentences.gain_sentence(answer))}</dd>'
    yield "<dl>"
    if answer.best is None:
        yield f"<dt>Why</dt>{gain}"
    else:
        yield f"<dt>Objective</dt><dd>{escape(sentences.objective_sentence(answer, unit))}</dd>"
        yield f"<dt>Gain</dt>{gain}"
        if others := sentences.other_objectives(answer, objectives_of(results)):
            yield f"<dt>Also</dt><dd>{escape(others)}</dd>"
        if load := sentences.max_load_sentence(results, answer):
            yield f"<dt>Max load</dt><dd>{load}</dd>"
    yield f"<dt>SLOs</dt><dd>{escape(sentences.slo_sentence(answer))}</dd>"
    if gpus := sentences.gpu_sentence(results, answer):
        yield f"<dt>GPUs</dt><dd>{escape(gpus)}</dd>"
    yield "</dl>"
    if launch:
        command = f'<pre id="launch">{escape(words.copyable(launch))}</pre>'
        yield f'<div class="launch">{command}<button data-copy="launch">Copy</button></div>'
    yield "</section>"


def _flags(best: Trial, baseline: Trial | None) -> str:
    lines = []
    for flag, value in best["config"].items():
        note = words.against_default(flag, value, baseline)
        changed = ' class="changed"' if note.startswith("default") else ""
        setting = escape(f"{flag}={words.value_text(value)}")
        lines.append(f'<tr><td{changed}><code>{setting}</code></td><td class="soft">{escape(note)}</td></tr>')
    return f'<table class="flags">{"".join(lines)}</table>'


def _front(results: StudyResults, answer: Summary, every: Sequence[Plot]) -> Iterator[str]:
    """The Pareto front of several objectives: a plot of the first two, and all of it as a table."""
    if not answer.front:
        return
    objectives = objectives_of(results)
    drawn = "".join(_figure(plot) for plot in every if plot.section == "front")
    yield f'<h2>Pareto front</h2><div class="plots">{drawn}</div><div class="scroll">'
    heads = ["Trial", *words.front_heads(objectives), "Configuration"]
    cells = "".join(f"<th>{escape(head)}</th>" for head in heads)
    yield f'<table class="trials"><thead><tr>{cells}</tr></thead><tbody>'
    for trial in answer.front:
        values = [trial["objectives"][each.name]["objective"] for each in objectives]
        numbers = "".join(map(_number, values, words.front_cells(trial, objectives)))
        config = escape(words.config_text(trial["config"]))
        yield f"<tr>{_number(trial['trial'], str(trial['trial']))}{numbers}<td>{config}</td></tr>"
    yield "</tbody></table></div>"


def _advice(results: StudyResults) -> Iterator[str]:
    if steps := next_steps(results):
        yield "<h2>What next</h2><ul>"
        yield from (f"<li>{escape(step)}</li>" for step in steps)
        yield "</ul>"


def _plots(every: Sequence[Plot]) -> Iterator[str]:
    for section, (heading, explanation) in _SECTIONS.items():
        own = [plot for plot in every if plot.section == section]
        if not own:
            continue
        said = f'<p class="soft">{escape(explanation)}</p>' if explanation else ""
        size = "plots small" if all(plot.small for plot in own) else "plots"
        yield f'<h2>{heading}</h2>{said}<div class="{size}">{"".join(map(_figure, own))}</div>'


def _figure(plot: Plot) -> str:
    caption = f"<figcaption>{escape(plot.note)}</figcaption>" if plot.note else ""
    drawn = svg(plot.figure, f"{plot.section}: {plot.title}", plot.name)
    return f"<figure><h3>{escape(plot.title)}</h3>{drawn}{caption}</figure>"


def _trials(results: StudyResults, answer: Summary, unit: words.Unit) -> Iterator[str]:
    if results.trials.empty:
        return
    names = parameters_of(results.trials)
    slos = ["SLOs"] if answer.slo else []
    heads = ["Trial", "Outcome", f"Objective ({unit.name})", "Gain", *slos, *names, "GPUs", "Seconds"]
    yield '<h2>All trials</h2><p class="soft">A click on a heading sorts; one on an outcome shows why, '
    yield "with the command and the engine's last words.</p>"
    yield '<input class="filter" type="search" data-table="trials" aria-label="Show trials that contain" '
    yield 'placeholder="Show trials that contain …"><div class="scroll">'
    cells = "".join(f"<th>{escape(head)}</th>" for head in heads)
    yield f'<table class="trials" id="trials"><thead><tr>{cells}</tr></thead><tbody>'
    for trial in rows(results.trials):
        best = answer.best is not None and trial["trial"] == answer.best["trial"]
        kind = "best" if best else trial["kind"]
        yield f'<tr class="{escape(str(kind))}">{"".join(_cells(trial, answer, unit, names))}</tr>'
    yield "</tbody></table></div>"


def _cells(trial: Trial, answer: Summary, unit: words.Unit, names: list[str]) -> Iterator[str]:
    yield _number(trial["trial"], str(trial["trial"]))
    yield f"<td>{_outcome(trial)}</td>"
    value = trial["objective"]
    yield _number(value, unit.number(float(value)) if pd.notna(value) else "–")
    sign = 1 if answer.objective.maximise else -1
    yield _number(sign * value if pd.notna(value) else None, words.gain_text(trial, answer))
    if answer.slo:
        judged = status(trial) in (Status.FINISHED, Status.HARD_SLO)
        yield f"<td>{('met' if is_true(trial['slo_met']) else 'missed') if judged else '–'}</td>"
    for name in names:
        chosen = trial["config"].get(name)
        text = escape(words.value_text(chosen)) if name in trial["config"] else ""
        yield _number(chosen, text) if is_number(chosen) else f"<td>{text}</td>"
    for column in ("gpus", "duration_s"):
        yield _number(trial[column], words.digits(float(trial[column]), trim=True))


def _number(value: Any, text: str) -> str:
    key = "" if pd.isna(value) else f"{value!r}"
    return f'<td class="number" data-value="{escape(key)}">{text}</td>'


def _outcome(trial: Trial) -> str:
    """How the trial ended; a click shows why, with the engine's last words, its command and its log."""
    facts: Mapping[str, Any] = {
        "Stage": trial["failure_stage"],
        "Reason": trial["failure_detail"],
        "Exit code": trial["exit_code"],
        "Log": trial["log_path"],
    }
    texts = (trial["failure_evidence"], shlex.join(command_of(trial)))
    lines = [
        f'<p><span class="soft">{name}</span> {escape(f"{value:g}" if is_number(value) else str(value))}</p>'
        for name, value in facts.items()
        if pd.notna(value)
    ]
    lines += [f"<pre>{escape(text)}</pre>" for text in texts if pd.notna(text) and text]
    ended = escape(outcome(trial) + _KINDS.get(trial["kind"], ""))
    return f"<details><summary>{ended}</summary>{''.join(lines)}</details>" if lines else ended


def _task(results: StudyResults) -> Iterator[str]:
    about = results.about
    task = escape(json.dumps(about["task"], indent=2, ensure_ascii=False))
    yield f"<h2>The task</h2><details><summary>Task file as it was run</summary><pre>{task}</pre></details>"
    facts = [
        f"seed {about.get('seed')}",
        f"started {about.get('started_at')}",
        f"inference-autotuner {about.get('tuner_version')}",
    ]
    yield f'<p class="soft">{escape(", ".join(facts))}</p>'
