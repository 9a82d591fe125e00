"""How values, units and configurations are written on the terminal and on pages. Milliseconds live here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from tuner.analysis import Status, Summary, finished, objective_of, status
from tuner.analysis.trials import Trial, default_of, is_true
from tuner.load.limit import HELD_BACK
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
        gpus = results.trials["gpus"].max()  # NaN before the first trial
        return Unit(objective.unit_on(int(gpus) if pd.notna(gpus) else 1), 1.0)
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


def engine_text(name: str, version: str | None) -> str:
    """`sglang 0.5.23`; a version that says the name itself is enough."""
    return str(version) if version and version.startswith(name) else f"{name} {version or ''}".strip()


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


def gain_text(trial: Trial, answer: Summary) -> str:
    """One trial's gain over the baseline, where all of its load levels were measured: `12.3 %`."""
    comparable = status(trial) in (Status.FINISHED, Status.HARD_SLO)
    if answer.gain is None or answer.baseline is None or trial["kind"] == "baseline" or not comparable:
        return "–"
    return percent(answer.objective.gain(float(trial["objective"]), float(answer.baseline["objective"])))


def max_loads_text(loads: Mapping[str, float], *, at_rate: bool) -> str:
    """`34 at a time`, `2.5 requests/s`; of several scenarios `34 at a time of D(100,100), 20 …`."""
    unit = "requests/s" if at_rate else "at a time"
    found = {scenario: f"{digits(load, trim=True)} {unit}" for scenario, load in loads.items()}
    if len(found) == 1:
        return next(iter(found.values()))
    return ", ".join(f"{load} of {scenario}" for scenario, load in found.items())


def limit_text(mark: str) -> str:
    """`the load client was the limit: …`, of what marks a load level."""
    who = "the engine fell behind the rate" if mark.startswith(HELD_BACK) else "the load client was the limit"
    return f"{who}: {mark}"


def promises_text(trial: Trial) -> str:
    """`all kept` or `broken: ttft p95 by 12 %`, of one trial."""
    if is_true(trial["slo_met"]):
        return "all kept"
    violation = float(trial["slo_worst_violation"])
    return f"broken: {trial['slo_worst']} by {percent(violation)} at its worst load level"


def copyable(launch: str) -> str:
    """The command with a flag on each line, joined by backslashes; as it is where it has quotes or lines."""
    return launch if set("'\"\n") & set(launch) else launch.replace(" --", " \\\n    --")


def value_label(answer: Summary, unit: Unit) -> str:
    """The axis of the objective: `mean ttft (ms)`."""
    mean = "" if answer.objective.maximise else "mean "
    return f"{mean}{_short(answer.objective)} ({unit.name})"
