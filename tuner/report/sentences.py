"""The sentences that the terminal and the page have in common: what was found, and what to know before."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd

from tuner.analysis import Gain, SloStatus, Summary, Verdict, gpu_use, without_repeats
from tuner.analysis.answer import CONFIDENCE
from tuner.analysis.trials import Trial, busy_s, is_true
from tuner.failures import INFRASTRUCTURE
from tuner.load.limit import HELD_BACK
from tuner.objective import Objective
from tuner.report.words import (
    SIMULATED,
    VIRTUAL,
    Unit,
    digits,
    display_unit,
    duration,
    engine_text,
    max_loads_text,
    percent,
    seconds,
)
from tuner.results import StudyResults

_MORE_CPU = "Give it more CPU, or put less load on."
_MORE_STREAMS = "Lower the rate; or raise benchmark.max_concurrency, to see how far behind it falls."


def simulated_sentence(results: StudyResults) -> str:
    """That nothing real was measured; empty where something was."""
    if results.about.get("virtual"):
        return VIRTUAL
    return SIMULATED if results.about.get("simulated") else ""


def subject(results: StudyResults) -> str:
    """What was tuned, on what, with how many trials: one line."""
    about = results.about
    model = about["task"].get("model", {}).get("id_or_path", "?")
    engine = engine_text(about.get("engine", "?"), about.get("engine_version"))
    ended = len(without_repeats(results).trials)
    repeats = len(results.trials) - ended
    planned = about.get("planned_trials") or ended
    count = f"{ended} trial{'s' * (ended != 1)}" if ended >= planned else f"{ended} of {planned} trials"
    if why := about.get("ended_early"):
        count += f" (then {why})"
    if repeats:
        count += f" and {repeats} repeat{'s' * (repeats != 1)}"
    return f"{model} on {engine}, {count}{_elapsed(results.trials)}"


def _elapsed(trials: pd.DataFrame) -> str:
    return f" in {duration(busy_s(trials))}" if trials["started_at"].notna().any() else ""


def caveats(results: StudyResults) -> list[str]:
    """What a reader must know before believing the figures, a sentence or two each."""
    return [text for text in (_client_limit(results), _infrastructure(results)) if text]


def _infrastructure(results: StudyResults) -> str:
    """Which trials were lost to nodes, and which nodes were left out for it."""
    trials, left_out = results.trials, results.about.get("nodes_left_out") or []
    lost = [cause for cause in trials["failure_cause"].dropna() if cause in INFRASTRUCTURE]
    again = int((trials["attempts"] > 1).sum()) - len(lost)
    parts = []
    if again:
        parts.append(f"{again} trial{'s were' if again != 1 else ' was'} lost by a node and run again")
    if lost:
        kinds = ", ".join(sorted(set(lost)))
        parts.append(f"{len(lost)} had to be given up ({kinds}); no configuration is judged by that")
    if left_out:
        nodes = f"node{'s' * (len(left_out) != 1)} {', '.join(left_out)}"
        parts.append(f"{nodes} lost one trial after the other, and got no more")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _client_limit(results: StudyResults) -> str:
    """Which load levels tell of the load client, or of too few streams; empty where none does."""
    limited = results.steps[results.steps["client_limit"].notna()]
    held = limited["client_limit"].astype(str).str.startswith(HELD_BACK)
    return " ".join(
        f"In {len(found)} of {len(results.steps)} load levels {what} ({_numbers(found)}): "
        f"{found.iloc[0]['client_limit']}. {remedy}"
        for found, what, remedy in (
            (limited[~held], "the load client was the limit, not the engine", _MORE_CPU),
            (limited[held], "the engine fell behind the rate", _MORE_STREAMS),
        )
        if len(found)
    )


def _numbers(steps: pd.DataFrame) -> str:
    numbers = sorted(steps["trial"].unique())
    return f"trial{'s' * (len(numbers) != 1)} {', '.join(map(str, numbers[:10]))}"


def headline(answer: Summary) -> str:
    """`Best: trial 17`."""
    if answer.best is None:
        return "No best configuration"
    return (
        "Best: the engine's defaults" if answer.defaults_are_best else f"Best: trial {answer.best['trial']}"
    )


def objective_sentence(answer: Summary, unit: Unit) -> str:
    """`412 ms mean end-to-end latency of a request (engine's defaults: 630 ms)`."""
    assert answer.best is not None
    text = f"{unit.amount(float(answer.best['objective']))} {answer.objective.meaning}"
    known = answer.gain is not None or answer.verdict is Verdict.BETTER
    if not known or answer.baseline is None or answer.defaults_are_best:
        return text
    return f"{text} (engine's defaults: {unit.amount(float(answer.baseline['objective']))})"


def other_objectives(answer: Summary, objectives: Sequence[Objective]) -> str:
    """What the best does for the objectives after the first, as first measured; empty for one objective."""
    if answer.best is None or not answer.best["objectives"]:
        return ""
    texts = []
    for each in objectives[1:]:
        unit, own = display_unit(each), _value(answer.best, each)
        other = None if answer.defaults_are_best else _value(answer.baseline, each)
        if own is None:
            continue
        texts.append(f"{unit.amount(own)} {each.meaning}")
        if other:
            change = f"{percent(abs(own / other - 1))} {'more' if own >= other else 'less'}"
            texts[-1] += f" (engine's defaults: {unit.amount(other)}, so {change})"
    return "; ".join(texts)


def _value(trial: Trial | None, objective: Objective) -> float | None:
    """A trial's value of one of several objectives; None where it has none."""
    value = (trial["objectives"].get(objective.name) or {}).get("objective") if trial is not None else None
    return value if isinstance(value, float) else None


def gain_sentence(answer: Summary) -> str:
    """What tuning bought, and how sure that is."""
    if answer.gain is None or answer.defaults_are_best:
        return answer.reason
    if answer.verdict is Verdict.BETTER:
        return f"{_change(answer.gain, answer.objective)} than the engine's defaults. {answer.reason}"
    size = f"{percent(answer.gain.share)}{_interval(answer.gain)}"
    return f"No significant gain over the engine's defaults ({size}). {answer.reason}"


def _change(gain: Gain, objective: Objective) -> str:
    more = (gain.share >= 0) == objective.maximise
    if gain.share < 0:  # the better for it, as where only the best keeps the SLOs
        low, high = (None if end is None else -end for end in (gain.high, gain.low))
        gain = replace(gain, share=-gain.share, low=low, high=high)
    return f"{percent(gain.share)} {'more' if more else 'less'}{_interval(gain)}"


def _interval(gain: Gain) -> str:
    if gain.low is None or gain.high is None:
        return ""
    return f" [{100 * CONFIDENCE:.0f} %: {percent(gain.low)} to {percent(gain.high)}]"


def max_load_sentence(results: StudyResults, answer: Summary) -> str:
    """`34 at a time within the SLOs (engine's defaults: 20 at a time)`; empty where none was looked for."""
    best, baseline = (_max_loads(trial) for trial in (answer.best, answer.baseline))
    if not best:
        return ""
    at_rate = bool((results.about["task"].get("benchmark") or {}).get("request_rate"))
    text = f"{max_loads_text(best, at_rate=at_rate)} within the SLOs"
    if not baseline or answer.defaults_are_best:
        return text
    return f"{text} (engine's defaults: {max_loads_text(baseline, at_rate=at_rate)})"


def gpu_sentence(results: StudyResults, answer: Summary) -> str:
    """`0.31 J per output token, 640 W, … (engine's defaults: 0.42 J)`; empty where the GPUs did not tell."""
    best, baseline = (gpu_use(results, trial) for trial in (answer.best, answer.baseline))
    if best is None:
        return ""
    memory = f"{digits(best.memory_bytes / 2**30)} GiB in use at most ({percent(best.memory_share)})"
    text = f"{digits(best.joules_per_output_token)} J per output token, {digits(best.power_w)} W, {memory}"
    if baseline is None or answer.defaults_are_best:
        return text
    return f"{text} (engine's defaults: {digits(baseline.joules_per_output_token)} J)"


def _max_loads(trial: Trial | None) -> Mapping[str, float]:
    """The highest loads of a trial by scenario; empty where none was looked for."""
    if trial is None or pd.isna(trial["max_load"]):
        return {}
    return trial["max_loads"] or {"": float(trial["max_load"])}  # of one scenario, by an earlier version


def slo_sentence(answer: Summary) -> str:
    """Whether the promises are kept, and if not, which one is furthest off."""
    slo = answer.slo
    if slo is None:
        return "none were asked for"
    if not slo.judged:
        return "unknown: no trial was measured to its end"
    met = f"{slo.met} of {slo.judged} trials met all of them"
    if answer.best is not None and is_true(answer.best["slo_met"]):
        return f"all met by the best configuration; {met}"
    if answer.best is not None and slo.met:
        worst = answer.best["slo_worst"], float(answer.best["slo_worst_violation"])
        return f"the best configuration misses {worst[0]} by {percent(worst[1])}; {met}"
    return f"never met; nearest is trial {slo.nearest}: {violation_text(slo)}"


def violation_text(slo: SloStatus) -> str:
    """`latency p90 754 ms, promised 500 ms`."""
    term = next((term for term in slo.terms if term.name == slo.held_back_by), None)
    if term is None or not math.isfinite(slo.violation):
        return f"{slo.held_back_by} was not measured"
    unit = seconds(term.threshold_s)
    reached = unit.amount(term.threshold_s * (1 + slo.violation))
    return f"{term.name} {reached}, promised {unit.amount(term.threshold_s)}"
