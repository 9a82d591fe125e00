"""The task: what to tune, on which load, towards what. Frozen pydantic models, checked when made.

Keys are the documents' own. Engines and samplers read the plain objects that the properties of `Task`
give: its `space`, `objective`, `slo_terms` and `levels()`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from tuner import objective as scoring
from tuner import space as spaces
from tuner.registry import unknown_engine
from tuner.scenarios import parse_scenario
from tuner.secrets import is_secret, is_switch, reference
from tuner.task.benchmark import Benchmark
from tuner.task.fields import FlagName, Prose, Seconds, Section, Text, Value, VariableName, refuse, shown
from tuner.task.optimization import Optimization
from tuner.task.parameters import CategoricalSpec, ConstraintSpec, IntegerSpec, Parameter
from tuner.task.slo import SloSpec
from tuner.vocabulary import vocabulary_of
from tuner.workload import LoadLevel

DEFAULT_MODEL = "llama-3.2-1b-instruct"  # only where the simulator serves it
# The documents' own space, for a task that names no parameters.
DEFAULT_PARAMETERS: dict[str, Any] = {
    "tp-size": [1, 2],
    "mem-fraction-static": [0.7, 0.75, 0.8, 0.85, 0.9],
    "schedule-policy": ["lpm", "fcfs"],
    "chunked-prefill-size": [512, 1024, 2048, 4096],
}
_SET_BY_TUNER = "is set by the tuner itself, for each trial anew"
RESERVED = {
    "host": _SET_BY_TUNER,
    "port": _SET_BY_TUNER,
    "model": "is the task's model.id_or_path",
    "model-path": "is the task's model.id_or_path",
    "served-model-name": "is the task's benchmark.model_name",
}
_ON_COMMAND_LINE = "is a secret, and every user of a machine sees its command lines: use engine.env"
GPU_FLAGS = ("tp-size", "pp-size", "dp-size", "tensor-parallel-size", "pipeline-parallel-size")
_MOST_GPUS = 4096  # that one flag may ask for


def reserved(flag: str) -> str:
    """Why a task may not give a flag, however it spells it; empty where it may."""
    spelt = flag.replace("_", "-")
    for name, why in RESERVED.items():
        if spelt == name or (len(spelt) > 1 and name.startswith(spelt)):  # argparse takes abbreviations
            return why
    return _ON_COMMAND_LINE if is_secret(flag) else ""


class Model(Section):
    """The model to serve."""

    id_or_path: Text = Field(
        min_length=1,
        description="Hub id or local folder. The engine is given it as it is; a relative folder is one below "
        "the working directory. Only a task of the simulator may leave it out.",
    )
    namespace: Text = Field("", description="Kubernetes namespace of exported manifests. Default: none.")


class EngineOptions(Section):
    """How the engine is run, beside the flags that are tuned."""

    python: Text | None = Field(
        None, description="Interpreter that has the engine. Default: the tuner's own."
    )
    command: list[Text] | None = Field(
        None,
        min_length=1,
        description="Words that start the server, in place of `python -m MODULE`; the flags follow them: "
        '`["numactl", "-N", "0", "python3", "-m", "sglang.launch_server"]`.',
    )
    args: dict[FlagName, Value] = Field({}, description="Flags that are the same in every trial.")
    env: dict[VariableName, Text] = Field(
        {},
        description="Environment variables of the engine's process. A secret is written `${NAME}`: the value "
        "of that variable where the study is started.",
    )
    start_timeout: Seconds = Field(
        300.0, description="From launch until the first token must be served; large models take minutes."
    )
    hang_timeout: Seconds = Field(
        60.0, description="Under load without any token; then the engine hangs, and the trial has failed."
    )

    def problems(self) -> list[tuple[str, str]]:
        """(key, message) of what does not go together, and of secrets."""
        found = []
        if self.command and self.python:
            found.append(("command", "names the interpreter as well; leave engine.python out"))
        for number, word in enumerate(self.command or ()):
            name, assigned, value = word.partition("=")
            named = is_secret(name) and (assigned or name.startswith("--"))
            if named and not (assigned and is_switch(value)):
                found.append((f"command[{number}]", _ON_COMMAND_LINE))
        for name, value in self.env.items():
            if is_secret(name) and not (reference(value) or is_switch(value)):
                found.append((f"env.{name}", f"is a secret, which no file should hold: write ${{{name}}}, "
                              "the variable of that name where the study is started"))  # fmt: skip
        return found


class Resources(Section):
    """What a trial needs of the cluster, beside as many GPUs as its sizes ask for."""

    accelerator_type: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")] | None = Field(
        None,
        description="Kind of GPU that every trial needs, as Ray names it: `H100`, `A100-80G`, `L4` ... "
        "(docs/cluster.md#who-gets-which-gpus). Default: any.",
    )


def _engine(name: str) -> str:
    if problem := unknown_engine(name):
        raise refuse(problem)
    return name


EngineName = Annotated[Text, AfterValidator(_engine)]


class Task(Section):
    """A whole task file."""

    task_name: Text = Field("", description="Names the study. Default: the file's name.")
    description: Prose = Field("", description="For people; the report shows it. Default: none.")
    model: Model = Field(description="give model.id_or_path, a hub id or a local folder")
    base_runtime: EngineName = Field(
        "simulator",
        description="The engine: `sglang`, `vllm`, `llamacpp`, `simulator`, or a plug-in's; `tuner engines` "
        "lists them.",
    )
    runtime_image_tag: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$")] | None = Field(
        None,
        description="Tag of the engine's container image: in exports, and in trials where the engine is not "
        "installed and docker or podman is there.",
    )
    parameters: dict[FlagName, Parameter] = Field(
        DEFAULT_PARAMETERS,
        min_length=1,
        validate_default=True,
        description="What is tuned: by flag of the engine, without dashes, a list of values or an object as "
        "below. Default: four of SGLang's, `tp-size`, `mem-fraction-static`, `schedule-policy` and "
        "`chunked-prefill-size`.",
    )
    constraints: list[ConstraintSpec] = Field([], description="What may not be combined.")
    optimization: Optimization = Optimization()
    slo: SloSpec = SloSpec()
    benchmark: Benchmark = Benchmark()
    engine: EngineOptions = EngineOptions()
    resources: Resources = Resources()

    @model_validator(mode="before")
    @classmethod
    def _simulator_serves_a_model_of_its_own(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("base_runtime", "simulator") == "simulator":
            return {"model": {"id_or_path": DEFAULT_MODEL}, **data}
        return data

    @property
    def space(self) -> spaces.SearchSpace:
        """The configurations to search."""
        domains = {
            name: spaces.Categorical(tuple(spec)) if isinstance(spec, list) else spec.domain()
            for name, spec in self.parameters.items()
        }
        return spaces.SearchSpace(domains, tuple(spec.constraint() for spec in self.constraints))

    @property
    def objective(self) -> scoring.Objective:
        """What is optimised."""
        return self.objectives[0]

    @property
    def stops_trials(self) -> bool:
        """Whether trials that lose are stopped.

        A grid is seen whole; of several objectives, one that loses in one may win in another; and where
        each trial looks for its own highest load, the load levels of two do not compare.
        """
        options = self.optimization
        alike = self.benchmark.find is None and len(options.objectives) == 1
        return options.early_stopping and not options.enumerates and alike

    @property
    def objectives(self) -> tuple[scoring.Objective, ...]:
        """All that is optimised; more than one where the Pareto front is asked for."""
        return tuple(scoring.OBJECTIVES[name] for name in self.optimization.objectives)

    @property
    def slo_terms(self) -> scoring.Slo:
        """The promises to keep."""
        return self.slo.terms()

    @property
    def steering(self) -> tuple[scoring.Steering, ...]:
        """The statistics that decisions hang on: the objectives' and the promises'."""
        promised = ((term.latency, term.statistic) for term in self.slo_terms.terms)
        return tuple(dict.fromkeys((*(each.steered_by for each in self.objectives), *promised)))

    @property
    def served_model_name(self) -> str:
        """The name under which the engine serves the model and requests ask for it."""
        return self.benchmark.model_name or self.model.id_or_path

    def levels(self, seed: int) -> tuple[LoadLevel, ...]:
        """The load levels of one trial: every scenario at every concurrency or rate, in the file's order."""
        load = self.benchmark
        return tuple(
            LoadLevel(
                scenario=scenario,
                concurrency=concurrency,
                max_requests=load.max_requests_per_iteration,
                max_time_s=load.max_time_per_iteration,
                warmup_requests=warmup if load.warmup_requests is None else load.warmup_requests,
                seed=seed,
                request_rate=rate,
                arrivals=load.arrivals,
                dataset=load.dataset or "",
                prefix_tokens=load.prefix_tokens(scenario),
                vocabulary=vocabulary_of(load.model_tokenizer or self.model.id_or_path),
            )
            for scenario in map(parse_scenario, load.traffic_scenarios)
            for concurrency, rate, warmup in load.loads()
        )

    def gpu_range(self, gpus: Callable[[Mapping[str, Any]], int]) -> tuple[int, int]:
        """The fewest and the most GPUs of a configuration, by the engine's own count `gpus(config)`."""
        counts = {flag: self.space.domains[flag].values() for flag in GPU_FLAGS if flag in self.parameters}
        ordered = {flag: sorted(map(int, map(str, values or ()))) for flag, values in counts.items()}
        fewest = gpus({flag: values[0] for flag, values in ordered.items()})
        return fewest, gpus({flag: values[-1] for flag, values in ordered.items()})

    def cross_problems(self) -> list[tuple[str, str]]:
        """(path, message) of what only the task as a whole shows to be wrong."""
        found = []
        for path, flags in (("parameters", self.parameters), ("engine.args", self.engine.args)):
            found += [(f"{path}.{flag}", why) for flag in flags if (why := reserved(flag))]
        for section in ("benchmark", "engine"):
            found += [(f"{section}.{key}", message) for key, message in getattr(self, section).problems()]
        found += self._promise_problems()
        for flag in sorted(self.engine.args.keys() & self.parameters.keys()):
            found.append((f"engine.args.{flag}", "is a parameter as well; it is either fixed or tuned"))
        for number, constraint in enumerate(self.constraints):
            for side in ("when", "require"):
                for flag in getattr(constraint, side):
                    if flag not in self.parameters:
                        path = f"constraints[{number}].{side}.{flag}"
                        found.append((path, f"is not one of the parameters{self._nearest(flag)}"))
        for flag in GPU_FLAGS:
            for path, value in self._values_of(flag):
                if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MOST_GPUS:
                    found.append((path, f"must be an integer from 1 to {_MOST_GPUS}, got {shown(value)}"))
        found += self._stage_problems() + self._front_problems() + self._cmaes_problems()
        if self.optimization.enumerates and not self.space.enumerable():
            found.append(("optimization.strategy", "grid_search needs a step on every continuous parameter"))
        elif self.constraints and self.space.size <= 10**6 and next(self.space.grid(), None) is None:
            found.append(("constraints", "leave no configuration at all"))
        return found

    def _front_problems(self) -> list[tuple[str, str]]:
        """What several objectives at once do not go with."""
        options, found = self.optimization, []
        if twice := [name for name, count in Counter(options.objectives).items() if count > 1]:
            found.append(("optimization.objective", f"names {' and '.join(twice)} twice"))
        if len(options.objectives) > 1:
            if options.sampler in ("gp", "hyperopt", "cmaes"):
                found.append(
                    ("optimization.sampler", f"{options.sampler} has one objective; use auto or tpe")
                )
            if options.strategy == "hierarchical":
                found.append(("optimization.strategy", "hierarchical has one objective; use bayesian"))
        return found

    def _cmaes_problems(self) -> list[tuple[str, str]]:
        """Where CMA-ES cannot search: it moves an ellipsoid, which needs directions and two of them."""
        options = self.optimization
        if options.sampler != "cmaes" or options.enumerates or options.strategy == "random":
            return []
        domains = {name: domain for name, domain in self.space.domains.items() if domain.size() > 1}
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

    def _stage_problems(self) -> list[tuple[str, str]]:
        found, seen = [], set[str]()
        options = self.optimization
        if options.strategy == "hierarchical" and options.sampler in ("hyperopt", "cmaes"):
            why = f"{options.sampler} cannot be told what another stage has found"
            found.append(("optimization.sampler", f"hierarchical needs auto, gp or tpe: {why}"))
        if options.stages and options.strategy != "hierarchical":
            found.append(("optimization.stages", f"is of no use where strategy is {options.strategy}"))
        for number, group in enumerate(options.stages):
            for place, flag in enumerate(group):
                path = f"optimization.stages[{number}][{place}]"
                if flag not in self.parameters:
                    message = f"is not one of the parameters, got {shown(flag)}{self._nearest(flag)}"
                    found.append((path, message))
                elif flag in seen:
                    found.append((path, f"{flag} is in a stage already"))
                seen.add(flag)
        return found

    def _nearest(self, flag: str) -> str:
        near = get_close_matches(flag, self.parameters, n=1)
        return f" (did you mean {near[0]}?)" if near else f" (known here: {', '.join(self.parameters)})"

    def _promise_problems(self) -> list[tuple[str, str]]:
        """What needs promises, and there are none."""
        if "maximize_goodput" in self.optimization.objectives and not self.slo_terms.terms:
            return [("optimization.objective", "maximize_goodput counts what keeps the SLOs; give slo")]
        if self.benchmark.find is None:
            return []
        found = []
        if not self.slo_terms.terms:
            found.append(("benchmark.find", "looks for the load that keeps the SLOs; give slo"))
        if len(set(self.benchmark.loads())) < 2:
            found.append(("benchmark.find", "needs a lowest and a highest load to search between"))
        if not all(objective.maximise for objective in self.objectives):
            found.append(
                ("benchmark.find", "goes with an objective that is maximised: latencies grow with load")
            )
        return found

    def _values_of(self, flag: str) -> list[tuple[str, Any]]:
        spec = self.parameters.get(flag)
        if flag in self.engine.args:
            return [(f"engine.args.{flag}", self.engine.args[flag])]
        if isinstance(spec, list):
            return [(f"parameters.{flag}[{i}]", value) for i, value in enumerate(spec)]
        if isinstance(spec, CategoricalSpec):
            return [(f"parameters.{flag}.values[{i}]", value) for i, value in enumerate(spec.values)]
        if isinstance(spec, IntegerSpec):
            return [(f"parameters.{flag}.low", spec.low), (f"parameters.{flag}.high", spec.high)]
        return [] if spec is None else [(f"parameters.{flag}.type", spec.type)]
