"""What is wrong with a task only as a whole: keys that are right each for itself, and do not go together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from difflib import get_close_matches
from typing import Any

from tuner import space as spaces
from tuner.errors import Problem
from tuner.scenarios import parse_scenario
from tuner.task.engine import reserved
from tuner.task.fields import shown
from tuner.task.model import Task
from tuner.task.parameters import CategoricalSpec, IntegerSpec, Parameter

_MOST_GPUS = 4096  # that one flag may ask for


def cross_problems(task: Task) -> list[Problem]:
    """What only the task as a whole shows to be wrong."""
    found = _flag_problems(task)
    for section in ("benchmark", "engine"):
        found += [(f"{section}.{key}", message) for key, message in getattr(task, section).problems()]
    found += _promise_problems(task) + _tpot_problems(task) + _constraint_problems(task)
    found += _stage_problems(task) + _front_problems(task) + _cmaes_problems(task) + _space_problems(task)
    return [Problem(path, message) for path, message in found]


def size_problems(task: Task, sizes: Collection[str]) -> list[Problem]:
    """Values of `sizes`, flags of the task's engine spelt with dashes, that are no numbers of GPUs."""
    values: list[tuple[str, Any]] = []
    for flag, spec in task.parameters.items():
        values += _values_of(f"parameters.{flag}", spec) if flag.replace("_", "-") in sizes else []
    for flag, value in task.engine.args.items():
        values += [(f"engine.args.{flag}", value)] if flag.replace("_", "-") in sizes else []
    return [
        Problem(path, f"must be an integer from 1 to {_MOST_GPUS}, got {shown(value)}")
        for path, value in values
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MOST_GPUS
    ]


def _flag_problems(task: Task) -> list[tuple[str, str]]:
    """Flags that no task may give, and those that are both fixed and tuned."""
    found = []
    for path, flags in (("parameters", task.parameters), ("engine.args", task.engine.args)):
        found += [(f"{path}.{flag}", why) for flag in flags if (why := reserved(flag))]
    for flag in sorted(task.engine.args.keys() & task.parameters.keys()):
        found.append((f"engine.args.{flag}", "is a parameter as well; it is either fixed or tuned"))
    return found


def _tpot_problems(task: Task) -> list[tuple[str, str]]:
    """Answers of one token where the time per output token counts."""
    promised = any(term.latency == "tpot" for term in task.slo_terms.terms)
    if not promised and "minimize_tpot" not in task.optimization.objectives:
        return []
    why = "answers with one token, which has no time per output token (TPOT), and the task goes by that"
    return [
        (f"benchmark.traffic_scenarios[{number}]", f"{text} {why}")
        for number, text in enumerate(task.benchmark.traffic_scenarios)
        if getattr(parse_scenario(text), "output_tokens", None) == 1
    ]


def _promise_problems(task: Task) -> list[tuple[str, str]]:
    """What needs promises, and there are none."""
    if "maximize_goodput" in task.optimization.objectives and not task.slo_terms.terms:
        return [("optimization.objective", "maximize_goodput counts what keeps the SLOs; give slo")]
    if task.benchmark.find is None:
        return []
    found = []
    if not task.slo_terms.terms:
        found.append(("benchmark.find", "looks for the load that keeps the SLOs; give slo"))
    if len(set(task.benchmark.loads)) < 2:
        found.append(("benchmark.find", "needs a lowest and a highest load to search between"))
    if not all(objective.maximise for objective in task.objectives):
        found.append(("benchmark.find", "goes with an objective that is maximised: latencies grow with load"))
    return found


def _constraint_problems(task: Task) -> list[tuple[str, str]]:
    found = []
    for number, constraint in enumerate(task.constraints):
        for side in ("when", "require"):
            for flag in getattr(constraint, side):
                if flag not in task.parameters:
                    path = f"constraints[{number}].{side}.{flag}"
                    found.append((path, f"is not one of the parameters{_nearest(task, flag)}"))
    return found


def _space_problems(task: Task) -> list[tuple[str, str]]:
    """A space that cannot be listed where it must be, or that is empty."""
    if task.optimization.enumerates and not task.space.enumerable():
        return [("optimization.strategy", "grid_search needs a step on every continuous parameter")]
    if task.constraints and task.space.size <= 10**6 and next(task.space.grid(), None) is None:
        return [("constraints", "leave no configuration at all")]
    return []


def _front_problems(task: Task) -> list[tuple[str, str]]:
    """What several objectives at once do not go with."""
    options, found = task.optimization, []
    if twice := [name for name, count in Counter(options.objectives).items() if count > 1]:
        found.append(("optimization.objective", f"names {' and '.join(twice)} twice"))
    if len(options.objectives) > 1:
        if options.sampler in ("gp", "hyperopt", "cmaes"):
            found.append(("optimization.sampler", f"{options.sampler} has one objective; use auto or tpe"))
        if options.strategy == "hierarchical":
            found.append(("optimization.strategy", "hierarchical has one objective; use bayesian"))
    return found


def _cmaes_problems(task: Task) -> list[tuple[str, str]]:
    """Where CMA-ES cannot search: it moves an ellipsoid, which needs directions and two of them."""
    options = task.optimization
    if options.sampler != "cmaes" or options.enumerates or options.strategy == "random":
        return []
    domains = {name: domain for name, domain in task.space.domains.items() if domain.size() > 1}
    choices = [
        name
        for name, domain in domains.items()
        if isinstance(domain, spaces.Categorical) and not domain.ordered
    ]
    if choices:
        why = f"cmaes needs parameters with an order, which {', '.join(choices)} lack"
        return [("optimization.sampler", f"{why}; use auto, gp or tpe")]
    if len(domains) < 2:
        return [("optimization.sampler", "cmaes needs two parameters that vary; use auto, gp or tpe")]
    return []


def _stage_problems(task: Task) -> list[tuple[str, str]]:
    found, seen = [], set[str]()
    options = task.optimization
    if options.strategy == "hierarchical" and options.sampler in ("hyperopt", "cmaes"):
        why = f"{options.sampler} cannot be told what another stage has found"
        found.append(("optimization.sampler", f"hierarchical needs auto, gp or tpe: {why}"))
    if options.stages and options.strategy != "hierarchical":
        found.append(("optimization.stages", f"is of no use where strategy is {options.strategy}"))
    for number, group in enumerate(options.stages):
        for place, flag in enumerate(group):
            path = f"optimization.stages[{number}][{place}]"
            if flag not in task.parameters:
                message = f"is not one of the parameters, got {shown(flag)}{_nearest(task, flag)}"
                found.append((path, message))
            elif flag in seen:
                found.append((path, f"{flag} is in a stage already"))
            seen.add(flag)
    return found


def _nearest(task: Task, flag: str) -> str:
    near = get_close_matches(flag, task.parameters, n=1)
    return f" (did you mean {near[0]}?)" if near else f" (known here: {', '.join(task.parameters)})"


def _values_of(path: str, spec: Parameter) -> list[tuple[str, Any]]:
    """Path and value of what a parameter may be; its type where that is no list and no integer."""
    if isinstance(spec, list):
        return [(f"{path}[{i}]", value) for i, value in enumerate(spec)]
    if isinstance(spec, CategoricalSpec):
        return [(f"{path}.values[{i}]", value) for i, value in enumerate(spec.values)]
    if isinstance(spec, IntegerSpec):
        return [(f"{path}.low", spec.low), (f"{path}.high", spec.high)]
    return [(f"{path}.type", spec.type)]
