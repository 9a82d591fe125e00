"""The sentences and figures that the terminal and the page have in common. Milliseconds live here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from tuner.analysis import (
    Gain,
    SloStatus,
    Status,
    Summary,
    Verdict,
    finished,
    gpu_use,
    objective_of,
    status,
    without_repeats,
)
from tuner.analysis.answer import CONFIDENCE
from tuner.analysis.trials import Trial, default_of, is_true
from tuner.failures import INFRASTRUCTURE
from tuner.objective import Objective
from tuner.results import StudyResults

SIMULATED = "SIMULATED: these numbers come from a model of the engine. No GPU was measured."
VIRTUAL = (
    "SIMULATED in virtual time: these numbers come from a model of the engine. No GPU was measured, and no "
    "server was asked."
)


@dataclass(frozen=True)
class Unit:
    """How values are displayed: multiplied by `factor`, then named `name`."""

    name: str
    factor: float

    def number(self, value: float) -> str:
        """The value alone: `412`."""
        return digits(value * self.factor)

    def amount(self, value: float) -> str:
        """The value with its unit: `412 ms`."""
        return f"{digits(value * self.factor, trim=True)} {self.name}"


def seconds(typical: float) -> Unit:
    """Milliseconds where a typical value is below a second."""
    return Unit("ms", 1000.0) if typical < 1 else Unit("s", 1.0)


def unit_of(results: StudyResults) -> Unit:
    """The unit for the study's objective, the same in all of its report."""
    objective = objective_of(results)
    if objective.unit != "s":
        return Unit(objective.unit_on(int(results.trials["gpus"].max())), 1.0)
    compared = finished(results.trials)
    values = (compared if len(compared) else results.trials)["objective"].astype(float)
    return seconds(float(values.min()) if values.notna().any() else 0.0)


def digits(value: float, *, trim: bool = False) -> str:
    """About three significant digits, with a comma between thousands; `trim` drops zeros at the end."""
    if not math.isfinite(value):
        return "–"
    if abs(value) >= 1e9:
        return f"{value:.1e}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if trim and decimals else text


def percent(share: float) -> str:
    """`12.3 %`, with a true minus sign."""
    return f"{100 * share + 0.0:.1f} %".replace("-0.0", "0.0").replace("-", "−")


def duration(seconds_: float) -> str:
    """`48 s`, `12 min` or `2 h 05 min`."""
    minutes = round(seconds_ / 60)
    if seconds_ < 120:
        return f"{seconds_:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def value_text(value: Any) -> str:
    """A flag's value as a task file spells it, strings without quotes."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def config_text(config: Mapping[str, Any]) -> str:
    """`tp-size=2 schedule-policy=lpm`; an empty configuration is the engine's defaults."""
    return " ".join(f"{flag}={value_text(value)}" for flag, value in config.items()) or "engine's defaults"


def against_default(flag: str, value: Any, baseline: Trial | None) -> str:
    """`default 0.88`, `as by default`, or nothing where the engine did not say."""
    if (default := default_of(flag, baseline)) is None:
        return ""
    return "as by default" if default == (value,) else f"default {value_text(default[0])}"


def level_text(row: Mapping[str, Any]) -> str:
    """`D(100,100), 8 at a time`: a load level by its row of `steps`."""
    return f"{row['scenario']}, {load_text(row)}"


def load_text(row: Mapping[str, Any]) -> str:
    """`8 at a time` or `2.5 requests/s`: the load alone."""
    if pd.isna(row["request_rate"]):
        return f"{row['concurrency']:.0f} at a time"
    return f"{row['request_rate']:g} requests/s"


def simulated_sentence(results: StudyResults) -> str:
    """That nothing real was measured; empty where something was."""
    if results.about.get("virtual"):
        return VIRTUAL
    return SIMULATED if results.about.get("simulated") else ""


def engine_text(name: str, version: str | None) -> str:
    """`sglang 0.5.23`; a version that says the name itself is enough."""
    return str(version) if version and version.startswith(name) else f"{name} {version or ''}".strip()


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
    if not trials["started_at"].notna().any():
        return ""
    durations = trials["duration_s"].where(trials["duration_s"].between(0, 1e9), 0.0)
    ends = trials["started_at"] + pd.to_timedelta(durations, unit="s")
    return f" in {duration((ends.max() - trials['started_at'].min()).total_seconds())}"


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
    """Which load levels tell of the load client rather than of the engine; empty where none does."""
    limited = results.steps[results.steps["client_limit"].notna()]
    if limited.empty:
        return ""
    numbers = sorted(limited["trial"].unique())
    trials = f"trial{'s' * (len(numbers) != 1)} {', '.join(map(str, numbers[:10]))}"
    return (
        f"In {len(limited)} of {len(results.steps)} load levels the load client was the limit, not the "
        f"engine ({trials}): {limited.iloc[0]['client_limit']}. Give it more CPU, or put less load on."
    )


def front_heads(objectives: Sequence[Objective]) -> list[str]:
    """A heading for each objective, with its unit: `ttft (ms)`."""
    return [f"{_short(objective)} ({display_unit(objective).name})" for objective in objectives]


def front_cells(trial: Trial, objectives: Sequence[Objective]) -> list[str]:
    """A trial's value of each objective."""
    values = trial["objectives"]
    return [display_unit(each).number(float(values[each.name]["objective"])) for each in objectives]


def display_unit(objective: Objective) -> Unit:
    """How an objective's values are shown where several stand side by side."""
    return Unit("ms", 1e3) if objective.unit == "s" else Unit(objective.unit, 1.0)


def _short(objective: Objective) -> str:
    return objective.name.removeprefix("minimize_").removeprefix("maximize_").replace("_", " ")


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
    if answer.gain is None or answer.baseline is None or answer.defaults_are_best:
        return text
    return f"{text} (engine's defaults: {unit.amount(float(answer.baseline['objective']))})"


def gain_sentence(answer: Summary) -> str:
    """What tuning bought, and how sure that is."""
    if answer.gain is None or answer.defaults_are_best:
        return answer.reason
    if answer.verdict is Verdict.BETTER:
        return f"{_change(answer.gain, answer.objective)} than the engine's defaults. {answer.reason}"
    size = f"{percent(answer.gain.share)}{_interval(answer.gain)}"
    return f"No significant gain over the engine's defaults ({size}). {answer.reason}"


def gain_text(trial: Trial, answer: Summary) -> str:
    """One trial's gain over the baseline, where all of its load levels were measured: `12.3 %`."""
    comparable = status(trial) in (Status.FINISHED, Status.HARD_SLO)
    if answer.gain is None or answer.baseline is None or trial["kind"] == "baseline" or not comparable:
        return "–"
    return percent(answer.objective.gain(float(trial["objective"]), float(answer.baseline["objective"])))


def _change(gain: Gain, objective: Objective) -> str:
    more = (gain.share >= 0) == objective.maximise
    return f"{percent(abs(gain.share))} {'more' if more else 'less'}{_interval(gain)}"


def _interval(gain: Gain) -> str:
    if gain.low is None or gain.high is None:
        return ""
    return f" [{100 * CONFIDENCE:.0f} %: {percent(gain.low)} to {percent(gain.high)}]"


def max_load_sentence(answer: Summary) -> str:
    """`34 within the SLOs (engine's defaults: 20)`; empty where no highest load was looked for."""
    best, baseline = (_max_loads(trial) for trial in (answer.best, answer.baseline))
    if not best:
        return ""
    text = f"{max_loads_text(best)} within the SLOs"
    if not baseline or answer.defaults_are_best:
        return text
    return f"{text} (engine's defaults: {max_loads_text(baseline)})"


def max_loads_text(loads: Mapping[str, float]) -> str:
    """`34`; of several scenarios `34 of D(100,100), 20 of D(2000,100)`."""
    numbers = {scenario: digits(load, trim=True) for scenario, load in loads.items()}
    if len(numbers) == 1:
        return next(iter(numbers.values()))
    return ", ".join(f"{number} of {scenario}" for scenario, number in numbers.items())


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


def promises_text(trial: Trial) -> str:
    """`all kept` or `broken: ttft p95 by 12 %`, of one trial."""
    if is_true(trial["slo_met"]):
        return "all kept"
    violation = float(trial["slo_worst_violation"])
    return f"broken: {trial['slo_worst']} by {percent(violation)} at its worst load level"


def violation_text(slo: SloStatus) -> str:
    """`latency p90 754 ms, promised 500 ms`."""
    term = next((term for term in slo.terms if term.name == slo.held_back_by), None)
    if term is None or not math.isfinite(slo.violation):
        return f"{slo.held_back_by} was not measured"
    unit = seconds(term.threshold_s)
    reached = unit.amount(term.threshold_s * (1 + slo.violation))
    return f"{term.name} {reached}, promised {unit.amount(term.threshold_s)}"


def copyable(launch: str) -> str:
    """The command with a flag on each line, joined by backslashes; as it is where it has quotes or lines."""
    return launch if set("'\"\n") & set(launch) else launch.replace(" --", " \\\n    --")


def score_label(answer: Summary, unit: Unit) -> str:
    """The score axis: `penalised mean ttft (ms)`; without SLOs there is no penalty."""
    name = _short(answer.objective)
    mean = "" if answer.objective.maximise else "mean "
    return f"{'penalised ' if answer.slo is not None else ''}{mean}{name} ({unit.name})"
