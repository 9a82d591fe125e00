"""What to do next: short sentences, each said only where the results carry it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd

from tuner.analysis.answer import Summary, standard_error, summary
from tuner.analysis.confirmation import deviation, runs_of
from tuner.analysis.landscape import importance
from tuner.analysis.patterns import MIN_TRIALS, convergence
from tuner.analysis.trials import Status, Trial, finished, is_number, rows, status, without_repeats
from tuner.failures import Cause
from tuner.results import StudyResults
from tuner.space import config_key

_MANY_FAILURES = 0.2  # share of the trials
_MATTERS = 0.1  # share of variance from which a parameter counts as one that matters
_NOISY = 0.05  # standard deviation between runs of one configuration: five times what is usual
_WORTH_HAVING = 0.03  # share from which a gain would be worth having, were it sure
_LATE = 0.8  # an improvement after this share of the trials may not be the last
_MACHINE = "That is the machine's fault, not the configuration's: run it again."
_REMEDY = {
    Cause.OUT_OF_MEMORY: "A constraint takes such configurations out of the space.",
    Cause.INVALID_FLAGS: "Check the flags' names and values, or take them out by a constraint.",
    Cause.START_TIMEOUT: "If the model only loads slowly, raise engine.start_timeout.",
    Cause.TRIAL_TIMEOUT: "Raise optimization.timeout_per_iteration, or make the load shorter.",
    **{cause: _MACHINE for cause in Cause if cause.infrastructure},
}
_QUIETER = (
    "Measure longer (benchmark.max_requests_per_iteration), repeat more often (optimization.confirm), or "
    "look for what else runs on these machines."
)
_EVERY_TRIAL = "Nothing of this space works here: run one trial by itself and read the engine's log."
_NOTHING_MATTERS = (
    "All finished trials are equal within noise: none of these parameters matters for this load. "
    "Keep the defaults, or tune other parameters."
)


def next_steps(results: StudyResults) -> tuple[str, ...]:
    """Advice in order of weight; empty where there is none to give."""
    if results.trials.empty:
        return ("No trial has ended yet.",)
    answer = summary(results)
    noise = deviation(list(runs_of(results).values()))
    results = without_repeats(results)
    found = [*_promises(answer), *_failures(results.trials), *_noise(noise)]
    found += [_NOTHING_MATTERS] if _alike(results) else [*_drowned(answer), *_space(results, answer)]
    return tuple(found)


def _promises(answer: Summary) -> Iterator[str]:
    slo = answer.slo
    if slo is not None and slo.nearest is not None and not slo.met:
        over = f"{100 * slo.violation:.0f} % over" if math.isfinite(slo.violation) else "not measured"
        yield (
            f"No trial met the SLOs; trial {slo.nearest} came nearest, and {slo.held_back_by} holds it back "
            f"({over}). Promise less, lower the load, or add GPUs."
        )


def _failures(trials: pd.DataFrame) -> Iterator[str]:
    failed = [trial for trial in rows(trials) if status(trial) is Status.FAILED]
    shared_by_all = _common(config for config in trials["config"] if config)
    for cause, n in Counter(trial["failure_cause"] for trial in failed).most_common():
        if n < 2 or n < _MANY_FAILURES * len(trials):
            continue
        common = _common(trial["config"] for trial in failed if trial["failure_cause"] == cause)
        telling = [f"{flag}={value}" for flag, value in common.items() if flag not in shared_by_all]
        where = f", all with {', '.join(telling)}" if telling else ""
        remedy = _EVERY_TRIAL if n == len(trials) else _REMEDY.get(cause, "")
        yield f"{n} of {len(trials)} trials failed: {cause}{where}. {remedy}".rstrip()


def _noise(noise: tuple[float, int] | None) -> Iterator[str]:
    """Whether runs of one configuration differ by more than usual."""
    if noise is not None and noise[0] > _NOISY:
        yield f"Runs of one configuration differ by {100 * noise[0]:.0f} % (standard deviation). {_QUIETER}"


def _drowned(answer: Summary) -> Iterator[str]:
    """Whether noise hides what tuning was worth."""
    gain = answer.gain
    if gain is not None and gain.low is not None and gain.low <= 0 and gain.share >= _WORTH_HAVING:
        yield f"A gain of {100 * gain.share:.0f} % drowns in noise. {_QUIETER}"


def _common(configs: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The flags that all configurations set to the same value."""
    every = list(configs)
    return {
        flag: value
        for flag, value in (every[0] if every else {}).items()
        if all(flag in config and config[flag] == value for config in every)
    }


def _alike(results: StudyResults) -> bool:
    """Whether the finished trials spread by less than 1 %, or little more than one is uncertain by."""
    compared = finished(results.trials).sort_values("loss")
    if len(compared) < MIN_TRIALS:
        return False
    best, worst = int(compared["trial"].iloc[0]), int(compared["trial"].iloc[-1])
    error = (standard_error(results, best, worst) or 0.0) / math.sqrt(2)  # of one trial
    spread = float(compared["loss"].astype(float).std())  # of log(score): a share
    return spread <= max(0.01, 1.5 * error)


def _space(results: StudyResults, answer: Summary) -> Iterator[str]:
    """Whether the best lies at the edge of the space, and whether more trials may find a better one."""
    if answer.best is None:
        return
    tried = len({config_key(config) for config in results.trials["config"] if config})
    size = results.about.get("space_size")
    if edges := ", ".join(_edges(results, answer.best)):
        yield f"The best lies at the edge of the space in {edges}: wider ranges may hold a better one."
    if size is not None and tried >= size:
        yield f"All {size:g} configurations were tried: more trials of this space find nothing better."
    elif len(finished(results.trials)) < MIN_TRIALS:
        yield f"Fewer than {MIN_TRIALS} trials finished: too few to tell what matters, or if more would help."
    elif _found_late(convergence(results.trials, answer.objective), int(answer.best["trial"])):
        of = f" of {size:g}" if size is not None else ""
        yield f"The best came late and only {tried}{of} configurations were tried: more trials may help."


def _edges(results: StudyResults, best: Trial) -> Iterator[str]:
    """The best's values that end their range, of parameters that matter; 0 and 1 have nothing below."""
    shares = importance(results) or {}
    for flag, spec in results.about["task"].get("parameters", {}).items():
        value, numbers = best["config"].get(flag), _range(spec)
        if shares.get(flag, 0.0) < _MATTERS or len(set(numbers)) < 2:
            continue
        if value == max(numbers) or (value == min(numbers) and value not in (0, 1)):
            yield f"{flag}={value}"


def _range(spec: Any) -> list[float]:
    """The numbers that bound a parameter of the task file; empty where it has no order."""
    if isinstance(spec, dict):
        spec = [spec["low"], spec.get("high")] if "low" in spec else spec.get("values")
    return spec if isinstance(spec, list) and all(map(is_number, spec)) else []


def _found_late(best: pd.Series[float], trial: int) -> bool:
    """Whether the best so far still improved by over 1 % near the end, by the `trial` that is the best."""
    place = int(_LATE * (len(best) - 1))
    early, last = best.iloc[place], best.iloc[-1]
    improved = not abs(math.log(last / early)) <= 0.01  # NaN: nothing had finished
    return len(best) >= MIN_TRIALS and improved and trial > best.index[place]
