"""Studies side by side, for the terminal and as JSON; what the page says, too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tuner.analysis.comparison import Comparison, Matched, Ratio, Side, spread
from tuner.analysis.trials import Trial
from tuner.report import sentences, words

HEADS = ("Study", "Best [95 %]", "Defaults [95 %]", "Gain [95 %]", "SLOs", "Trials", "GPU time")
_MOST_SHARED = 8  # configurations that the terminal shows of two studies
_OTHER_PROMPTS = (
    "Their prompts are others, which the intervals cover; studies with the same --seed compare more sharply."
)
_NO_VERDICT = "They do not compare, so there is no verdict"


def comparison_terminal(found: Comparison) -> RenderableType:
    """The comparison for a terminal of 80 columns or more."""
    return Group(*_lines(found))


def _lines(found: Comparison) -> Iterator[RenderableType]:
    for line in simulated_lines(found):
        yield Text(line, style="bold yellow")
    yield _section("What each found")
    table = _table(*HEADS)
    for side in found.sides:
        table.add_row(*map(Text, side_row(side)))
    yield _indented(table)
    yield _section("What differs")
    if not found.differences:
        yield _indented(Text("Nothing: the same task, on the same engine, version and GPUs."))
    for name, groups in _grouped(found):
        yield _indented(Text(name, style="dim"))
        for value, studies in groups:
            yield Padding(Text(f"{value}  ({', '.join(studies)})"), (0, 0, 0, 4))
    for match in found.matches:
        yield _section(pair_title(found, match))
        yield from (_indented(Text(line)) for line in verdicts(found, match))
        if match.shared:
            yield _indented(_shared_table(found, match))


def shared_heads(found: Comparison, match: Matched) -> list[str]:
    """The headings of what two studies both measured."""
    unit = words.unit_of(found.sides[match.first].results)
    names = [found.sides[place].study for place in (match.first, match.second)]
    return [*(f"{name} ({unit.name})" for name in names), "Difference [95 %]", "Configuration"]


def shared_rows(found: Comparison, match: Matched) -> list[list[str]]:
    """A line for each configuration that both measured."""
    unit = words.unit_of(found.sides[match.first].results)
    return [
        [
            unit.number(each.first),
            unit.number(each.second),
            ratio_text(each.ratio),
            words.config_text(each.config),
        ]
        for each in match.shared
    ]


def _shared_table(found: Comparison, match: Matched) -> Table:
    table = _table(*shared_heads(found, match))
    for row in shared_rows(found, match)[:_MOST_SHARED]:
        table.add_row(*map(Text, row))
    if (more := len(match.shared) - _MOST_SHARED) > 0:
        table.add_row("", "", f"and {more} more", "")
    return table


def simulated_lines(found: Comparison) -> list[str]:
    """What was no measurement, and of which studies where it is not all of them."""
    said = {side.study: sentences.simulated_sentence(side.results) for side in found.sides}
    lines = []
    for sentence in dict.fromkeys(filter(None, said.values())):
        names = [name for name in said if said[name] == sentence]
        lines.append(sentence if len(names) == len(said) else f"{', '.join(names)}: {sentence}")
    return lines


def side_row(side: Side) -> list[str]:
    """A study's line: best, defaults, gain, SLOs, trials, GPU time."""
    unit = words.unit_of(side.results)
    slo, gain = side.answer.slo, side.answer.gain
    trials = side.results.trials
    failed = int(trials["failure_cause"].notna().sum())
    return [
        side.study,
        _value_text(side, side.answer.best, unit),
        _value_text(side, side.answer.baseline, unit),
        "–" if gain is None else _share_text(gain.share, gain.low, gain.high),
        "none asked" if slo is None else f"{slo.met} of {slo.judged} met",
        f"{len(trials)}, {failed} failed" if failed else str(len(trials)),
        words.duration(side.gpu_s),
    ]


def _value_text(side: Side, trial: Trial | None, unit: words.Unit) -> str:
    if trial is None or not trial["objective"] > 0:
        return "–"
    text, around = unit.amount(float(trial["objective"])), spread(side, trial)
    return text if around is None else f"{text} [{unit.number(around.low)} to {unit.number(around.high)}]"


def pair_title(found: Comparison, match: Matched) -> str:
    return f"{found.sides[match.second].study} against {found.sides[match.first].study}"


def _grouped(found: Comparison) -> Iterator[tuple[str, list[tuple[str, list[str]]]]]:
    """By what differs: each value with the studies that have it."""
    for name, values in found.differences.items():
        studies: dict[str, list[str]] = {}
        for value, side in zip(values, found.sides, strict=True):
            studies.setdefault(value, []).append(side.study)
        yield name, list(studies.items())


def verdicts(found: Comparison, match: Matched) -> list[str]:
    """What can be said of two studies, a sentence each."""
    if match.obstacles:
        return [f"{_NO_VERDICT}:", *match.obstacles]
    lines = []
    if match.best is not None:
        lines.append(f"Its best: {ratio_text(match.best)}")
    elif any(found.sides[place].answer.best is None for place in (match.first, match.second)):
        lines.append("One of them has no best configuration.")
    else:
        lines.append("No request of one of them kept the SLOs, so there is no ratio of both.")
    if match.overall is not None:
        count = len(match.shared)
        text = f"{count} configuration{'s' * (count != 1)} that both measured, on average"
        lines.append(f"{text}: {ratio_text(match.overall)}")
    elif found.sides[match.first].facts["engine"] != found.sides[match.second].facts["engine"]:
        lines.append("The engines differ, so that a configuration of one is none of the other.")
    else:
        lines.append("No configuration was measured by both.")
    if len({found.sides[place].facts["prompts"] for place in (match.first, match.second)}) > 1:
        lines.append(_OTHER_PROMPTS)
    return lines


def ratio_text(ratio: Ratio) -> str:
    """`8.3 % better [6.1 to 10.4]`, or `equal within noise: 0.4 % [−1.2 to 2.0]`."""
    if not ratio.certain:
        return f"equal within noise: {_share_text(ratio.share, ratio.low, ratio.high)}"
    if ratio.share > 0:
        return f"{_share_text(ratio.share, ratio.low, ratio.high, 'better')}"
    low, high = (None if end is None else -end for end in (ratio.high, ratio.low))
    return _share_text(-ratio.share, low, high, "worse")


def _share_text(share: float, low: float | None, high: float | None, word: str = "") -> str:
    text = f"{words.percent(share)} {word}".rstrip()
    ends = [words.percent(end).removesuffix(" %") for end in (low, high) if end is not None]
    return f"{text} [{' to '.join(ends)}]" if ends else text


def comparison_json(found: Comparison) -> dict[str, Any]:
    """The comparison as JSON has it: values in the objective's own unit, shares from 0 to 1."""

    def ratio(value: Ratio | None) -> dict[str, Any] | None:
        return None if value is None else dict(vars(value))

    return {
        "studies": [_side_json(side) for side in found.sides],
        "differences": {
            name: dict(zip((side.study for side in found.sides), values, strict=True))
            for name, values in found.differences.items()
        },
        "pairs": [
            {
                "first": found.sides[match.first].study,
                "second": found.sides[match.second].study,
                "obstacles": list(match.obstacles),
                "best": ratio(match.best),
                "overall": ratio(match.overall),
                "shared": [
                    {
                        "config": dict(each.config),
                        "first": each.first,
                        "second": each.second,
                        **(ratio(each.ratio) or {}),
                    }
                    for each in match.shared
                ],
            }
            for match in found.matches
        ],
    }


def _side_json(side: Side) -> dict[str, Any]:
    def value(trial: Trial | None) -> dict[str, Any] | None:
        if trial is None or not trial["objective"] > 0:
            return None
        around = spread(side, trial)
        found = {"trial": int(trial["trial"]), "config": trial["config"], "value": float(trial["objective"])}
        return found if around is None else {**found, **vars(around)}

    gain = side.answer.gain
    return {
        "study": side.study,
        "facts": dict(side.facts),
        "objective": side.answer.objective.name,
        "best": value(side.answer.best),
        "baseline": value(side.answer.baseline),
        "gain": None if gain is None else {"share": gain.share, "low": gain.low, "high": gain.high},
        "slo_met": None if side.answer.slo is None else side.answer.slo.met,
        "trials": len(side.results.trials),
        "gpu_s": side.gpu_s,
    }


def _table(*heads: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for head in heads:
        table.add_column(head, overflow="fold")
    return table


def _section(title: str) -> RenderableType:
    return Padding(Text(title, style="bold"), (1, 0, 0, 0))


def _indented(content: RenderableType) -> RenderableType:
    return Padding(content, (0, 0, 0, 2))
