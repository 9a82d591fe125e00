"""The report for a terminal, 80 columns wide or more; the answer comes first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tuner.analysis import Status, Summary, Verdict, finished, next_steps, summary, without_repeats
from tuner.analysis.trials import Trial, is_true, objectives_of, rows
from tuner.objective import Objective
from tuner.report import sentences, words
from tuner.results import StudyResults

_TOP = 5
_VERDICT_STYLE = {Verdict.BETTER: "green", Verdict.NO_GAIN: "yellow", Verdict.UNKNOWN: "yellow"}


def terminal(results: StudyResults, launch: str | None) -> RenderableType:
    """The study's report; `launch` is the command that starts the engine with the best configuration."""
    answer = summary(results)
    unit = words.unit_of(results)
    return Group(
        *_title(results),
        *_answer(results, answer, unit),
        *_launch(launch),
        *_front(answer, objectives_of(results)),
        *_top(without_repeats(results), answer, unit),
        *_failures(answer),
        *_advice(results),
    )


def _title(results: StudyResults) -> Iterator[RenderableType]:
    if simulated := sentences.simulated_sentence(results):
        yield Text(simulated, style="bold yellow")
    yield Text.assemble((str(results.about["study"]), "bold"), f": {sentences.subject(results)}")
    for caveat in sentences.caveats(results):
        yield Text(caveat, style="yellow")
    if results.skipped:
        yield Text(f"{len(results.skipped)} result files were unreadable and are left out", style="yellow")


def _answer(results: StudyResults, answer: Summary, unit: words.Unit) -> Iterator[RenderableType]:
    if answer.best is None:
        yield _section(sentences.headline(answer))
        yield _indented(Text(answer.reason))
        if answer.slo is not None:
            yield _indented(Text(f"SLOs: {sentences.slo_sentence(answer)}"))
        return
    yield _section(sentences.headline(answer))
    if not answer.defaults_are_best:
        yield _indented(_flags(answer.best, answer.baseline))
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("Objective", sentences.objective_sentence(answer, unit))
    facts.add_row("Gain", Text(sentences.gain_sentence(answer), style=_VERDICT_STYLE[answer.verdict]))
    if others := sentences.other_objectives(answer, objectives_of(results)):
        facts.add_row("Also", others)
    if load := sentences.max_load_sentence(results, answer):
        facts.add_row("Max load", load)
    facts.add_row("SLOs", sentences.slo_sentence(answer))
    if gpus := sentences.gpu_sentence(results, answer):
        facts.add_row("GPUs", gpus)
    yield _indented(facts)


def _flags(best: Trial, baseline: Trial | None) -> Table:
    table = Table.grid(padding=(0, 3))
    table.add_column(overflow="fold")
    table.add_column(style="dim", overflow="fold")
    for flag, value in best["config"].items():
        note = words.against_default(flag, value, baseline)
        changed = "bold" if note.startswith("default") else ""
        table.add_row(Text(f"{flag}={words.value_text(value)}", style=changed), Text(note))
    return table


def _launch(launch: str | None) -> Iterator[RenderableType]:
    if launch:
        yield _section("Launch")
        yield _indented(Text(words.copyable(launch), overflow="fold", style="cyan"))


def _top(results: StudyResults, answer: Summary, unit: words.Unit) -> Iterator[RenderableType]:
    if answer.front:  # of several objectives, that is what is best
        return
    compared = finished(results.trials)
    ranked = [trial for trial in rows(compared.sort_values("loss")) if trial["trial"] not in answer.out]
    shown = ranked[:_TOP] + [trial for trial in ranked[_TOP:] if trial["kind"] == "baseline"]
    if not shown:
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("Trial", justify="right")
    table.add_column(unit.name, justify="right")
    table.add_column("Gain", justify="right")
    if answer.slo is not None:
        table.add_column("SLOs")
    table.add_column("Configuration", overflow="fold")
    for trial in shown:
        cells = [str(trial["trial"]), unit.number(float(trial["objective"])), words.gain_text(trial, answer)]
        if answer.slo is not None:
            cells.append("met" if is_true(trial["slo_met"]) else "missed")
        table.add_row(*cells, Text(words.config_text(trial["config"])))
    first = ", as first measured" if answer.gain is not None and answer.gain.rounds else ""
    yield _section(f"The best {min(_TOP, len(ranked))} of {len(compared)} finished trials{first}")
    yield _indented(table)


def _front(answer: Summary, objectives: Sequence[Objective]) -> Iterator[RenderableType]:
    """The front of several objectives, as first measured."""
    if not answer.front:
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("Trial", justify="right")
    for head in words.front_heads(objectives):
        table.add_column(head, justify="right")
    table.add_column("Configuration", overflow="fold")
    for trial in answer.front:
        cells = [str(trial["trial"]), *words.front_cells(trial, objectives)]
        table.add_row(*cells, Text(words.config_text(trial["config"])))
    yield _section(f"The Pareto front: {len(answer.front)} configurations, the knee first")
    yield _indented(table)


def _failures(answer: Summary) -> Iterator[RenderableType]:
    unfinished = {text: n for text, n in answer.outcomes.items() if text != Status.FINISHED}
    if not unfinished:
        return
    yield _section("Trials that did not finish")
    for text, n in sorted(unfinished.items(), key=lambda item: -item[1]):
        yield _indented(Text(f"{n:>4}  {text}"))


def _advice(results: StudyResults) -> Iterator[RenderableType]:
    if steps := next_steps(results):
        yield _section("What next")
        for step in steps:
            line = Table.grid(padding=(0, 1))
            line.add_row("•", Text(step))
            yield _indented(line)


def _section(title: str) -> RenderableType:
    return Padding(Text(title, style="bold"), (1, 0, 0, 0))


def _indented(content: RenderableType) -> RenderableType:
    return Padding(content, (0, 0, 0, 2))
