"""The task: what to tune, on which load, towards what. Frozen pydantic models, checked when made.

Keys are the documents' own. Engines and samplers read the plain objects that the properties of `Task`
give: its `space`, `objective`, `slo_terms` and `levels()`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from tuner import objective as scoring
from tuner import space as spaces
from tuner.datasets import read_dataset
from tuner.registry import unknown_engine
from tuner.scenarios import parse_scenario
from tuner.task.fields import FlagName, Prose, Seconds, Section, Text, Value, VariableName, refuse, shown
from tuner.task.parameters import CategoricalSpec, ConstraintSpec, IntegerSpec, Parameter
from tuner.vocabulary import vocabulary_of
from tuner.workload import Arrivals, LoadLevel

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
GPU_FLAGS = ("tp-size", "pp-size", "dp-size", "tensor-parallel-size", "pipeline-parallel-size")
_MOST_GPUS = 4096  # that one flag may ask for


class Model(Section):
    """The model to serve."""

    id_or_path: Text = Field(min_length=1, description="Hub id or local folder.")
    namespace: Text = Field("", description="Kubernetes namespace of exported manifests.")


class EngineOptions(Section):
    """How the engine is run, beside the flags that are tuned."""

    python: Text | None = Field(None, description="Interpreter that has the engine; default: this one.")
    command: list[Text] | None = Field(
        None,
        min_length=1,
        description="Words that start the server, in place of `python -m MODULE`; the flags follow them.",
    )
    args: dict[FlagName, Value] = Field({}, description="Fixed flags, the same in every trial.")
    env: dict[VariableName, Text] = Field({}, description="Environment variables of the engine's process.")
    start_timeout: Seconds = Field(300.0, description="Seconds until the first token must be served.")
    hang_timeout: Seconds = Field(60.0, description="Seconds under load without any token.")


ObjectiveName = Literal[
    "minimize_latency",
    "minimize_ttft",
    "minimize_tpot",
    "maximize_throughput",
    "maximize_output_throughput",
    "maximize_goodput",
]


def _objective_kind(value: Any) -> str:
    return "<list>" if isinstance(value, list | tuple) else "<name>"


_Objectives = Annotated[
    Annotated[ObjectiveName, Tag("<name>")]
    | Annotated[list[ObjectiveName], Field(min_length=1, max_length=4), Tag("<list>")],
    Discriminator(_objective_kind),
]


class Convergence(Section):
    """When a search is over before its last trial."""

    patience: int | None = Field(None, ge=1, description="Trials in a row without a better one.")
    least_gain: float | None = Field(
        0.001,
        gt=0,
        lt=1,
        allow_inf_nan=False,
        description="Share of the objective: less is no gain. A gp search ends when it expects less.",
    )


class Optimization(Section):
    """How to search."""

    strategy: Literal["bayesian", "grid_search", "grid", "random", "hybrid", "hierarchical"] = Field(
        "bayesian",
        description="hybrid: a coarse grid, then bayesian; hierarchical: groups of parameters in turn, "
        "then all together.",
    )
    sampler: Literal["auto", "tpe", "hyperopt", "gp"] = Field(
        "auto",
        description="Of the strategies that model: tpe is Optuna's, hyperopt is Hyperopt's TPE, gp a "
        "Gaussian process over the configurations that exist; auto takes what measures best.",
    )
    stages: list[Annotated[list[FlagName], Field(min_length=1)]] = Field(
        [],
        description="Of the hierarchical strategy: the groups of parameters; default: the sizes that take "
        "GPUs, then the others two by two.",
    )
    objective: _Objectives = Field(
        "minimize_latency", description="What is optimised; a list asks for the Pareto front of several."
    )
    max_iterations: int = Field(
        100, ge=1, le=100_000, description="Trials of the search, the baseline included."
    )
    n_initial_random: int = Field(5, ge=0, le=100_000, description="Random trials before the model's own.")
    convergence: Convergence = Field(
        Convergence(), validate_default=True, description="When a search ends before its last trial."
    )
    early_stopping: bool = Field(True, description="Stop trials that are clearly losing (not of a grid).")
    max_time: Seconds | None = Field(None, description="Seconds for the whole study, the repeats included.")
    max_gpu_hours: float | None = Field(
        None, gt=0, le=1e6, allow_inf_nan=False, description="GPU hours for the whole study."
    )
    timeout_per_iteration: Seconds = Field(600.0, description="Seconds for one whole trial.")
    seed: int | None = Field(None, ge=0, lt=2**32, description="Default: drawn, and recorded in study.json.")
    baseline: bool = Field(True, description="Measure the engine's own defaults first, as trial 0.")
    confirm: int = Field(
        2, ge=0, le=20, description="Times that the best two and the baseline are measured again at the end."
    )

    @property
    def objectives(self) -> list[ObjectiveName]:
        """The names of all objectives, the first being the one that gains are told in."""
        return self.objective if isinstance(self.objective, list) else [self.objective]

    @property
    def enumerates(self) -> bool:
        """Whether the strategy runs through the whole grid."""
        return self.strategy in ("grid", "grid_search")


class SloTermSpec(Section):
    """A promise on one statistic."""

    threshold: Seconds = Field(description="Seconds.")
    weight: float = Field(1.0, ge=0, le=1e6, allow_inf_nan=False)
    hard_fail: bool = False
    fail_ratio: float = Field(0.5, ge=0, le=1e6, allow_inf_nan=False)


class SloStatistics(Section):
    """Promises by statistic."""

    mean: SloTermSpec | None = None
    p50: SloTermSpec | None = None
    p90: SloTermSpec | None = None
    p95: SloTermSpec | None = None
    p99: SloTermSpec | None = None


def _promise_kind(value: Any) -> str:
    alone = isinstance(value, SloTermSpec) or (isinstance(value, Mapping) and "threshold" in value)
    return "<term>" if alone else "<statistics>"


# `{"threshold": 1}` alone is a promise on the mean.
_Promises = Annotated[
    Annotated[SloStatistics, Tag("<statistics>")] | Annotated[SloTermSpec, Tag("<term>")],
    Discriminator(_promise_kind),
]


class SloSpec(Section):
    """Promises on latency (end to end), time to first token and time per output token."""

    latency: _Promises = SloStatistics()
    ttft: _Promises = SloStatistics()
    tpot: _Promises = SloStatistics()
    steepness: float = Field(0.1, ge=1e-3, le=1e3, allow_inf_nan=False)

    def terms(self) -> scoring.Slo:
        """The promises as `objective` judges them."""
        found = []
        for latency in ("latency", "ttft", "tpot"):
            promises = getattr(self, latency)
            for statistic, term in [("mean", promises)] if isinstance(promises, SloTermSpec) else promises:
                if term is not None:
                    options = (term.weight, term.hard_fail, term.fail_ratio)
                    found.append(scoring.SloTerm(latency, statistic, term.threshold, *options))
        return scoring.Slo(tuple(found), self.steepness)


def _scenario(text: str) -> str:
    try:
        return str(parse_scenario(text))
    except ValueError as error:
        raise refuse(str(error)) from error


def _body_params(params: dict[str, Any]) -> dict[str, Any]:
    for key in ("stream", "stream_options", "prompt", "messages", "model", "n"):
        if key in params:
            raise refuse(f"{key} is set by the load generator and cannot be changed")
    try:
        json.dumps(params, allow_nan=False)
    except ValueError as error:
        raise refuse(f"must hold finite numbers of a few digits, got {shown(params)}") from error
    return params


class Benchmark(Section):
    """The load, in genai-bench's vocabulary."""

    task: Literal["text-to-text"] = "text-to-text"
    tool: Literal["native", "genai-bench"] = Field("native", description="The load generator.")
    model_name: Text | None = Field(None, description="Name under which the model is served and asked for.")
    model_tokenizer: Text | None = Field(
        None,
        description="A folder with the model's tokenizer.json, for prompts of exact lengths; "
        "default: model.id_or_path.",
    )
    traffic_scenarios: list[Annotated[str, AfterValidator(_scenario)]] = Field(
        ["D(100,100)"], min_length=1, max_length=1000
    )
    find: Literal["max_load"] | None = Field(
        None, description="Search each trial for the highest of these loads that keeps the SLOs."
    )
    dataset: Text | None = Field(
        None, min_length=1, description="File of the scenario `dataset`: JSON lines, or ShareGPT's format."
    )
    num_concurrency: list[Annotated[int, Field(ge=1, le=4096)]] = Field([4, 8], min_length=1, max_length=1000)
    request_rate: list[Annotated[float, Field(gt=0, le=10_000)]] | None = Field(
        None, min_length=1, max_length=1000, description="Requests per second, in place of num_concurrency."
    )
    arrivals: Arrivals = Field("poisson", description="Of a request_rate: gaps at random, or all the same.")
    max_concurrency: int = Field(
        1024, ge=1, le=65_536, description="Requests of a request_rate that may be open at once."
    )
    max_time_per_iteration: Seconds = Field(30.0, description="Seconds of sending in one load level.")
    max_requests_per_iteration: int = Field(
        100, ge=1, le=1_000_000, description="Requests of one load level."
    )
    warmup_requests: int | None = Field(
        None, ge=0, le=10_000, description="Requests before each load level, out of the figures; "
        "default: as many as the level's concurrency, or a tenth of the requests of a request_rate."
    )  # fmt: skip
    keep_cache: bool = Field(False, description="Keep cached prefixes from one load level to the next.")
    max_error_rate: float = Field(0.05, ge=0, lt=1, description="A load level with more has failed.")
    additional_params: Annotated[dict[str, Any], AfterValidator(_body_params)] = Field(
        {}, description="Sent with every request."
    )

    def loads(self) -> list[tuple[int, float | None, int]]:
        """(most requests at once, rate, usual warm-up requests) of each load, in the file's order."""
        if self.request_rate is None:
            return [(concurrency, None, concurrency) for concurrency in self.num_concurrency]
        warmup = math.ceil(self.max_requests_per_iteration / 10)
        return [(self.max_concurrency, float(rate), warmup) for rate in self.request_rate]

    def problems(self) -> list[tuple[str, str]]:
        """(key, message) of keys that do not go together."""
        given, found = self.model_fields_set, []
        if self.request_rate is None:
            lost = sorted(given & {"arrivals", "max_concurrency"})
            found += [(key, "is for a request_rate, and there is none") for key in lost]
        elif "num_concurrency" in given:
            found.append(("request_rate", "stands in place of num_concurrency; leave one of them out"))
        if ("dataset" in self.traffic_scenarios) != (self.dataset is not None):
            found.append(("dataset", "goes with the scenario `dataset` in traffic_scenarios; give both"))
        elif self.dataset is not None:
            try:
                read_dataset(self.dataset)
            except ValueError as error:
                found.append(("dataset", f"{self.dataset}: {error}"))
        return [*found, *self._beyond_genai_bench()]

    def _beyond_genai_bench(self) -> list[tuple[str, str]]:
        """What that tool does not do, where it is to put the load on."""
        if self.tool != "genai-bench":
            return []
        closed = [] if self.request_rate is None else [("request_rate", "is more than genai-bench does")]
        return closed + [
            (f"traffic_scenarios[{number}]", f"{scenario} is not among genai-bench's D, N and U")
            for number, scenario in enumerate(self.traffic_scenarios)
            if scenario[0] not in "DNU"
        ]


def _engine(name: str) -> str:
    if problem := unknown_engine(name):
        raise refuse(problem)
    return name


EngineName = Annotated[Text, AfterValidator(_engine)]


class Task(Section):
    """A whole task file."""

    task_name: Text = ""
    description: Prose = ""
    model: Model = Field(description="give model.id_or_path, a hub id or a local folder")
    base_runtime: EngineName = Field("simulator", description="The engine.")
    runtime_image_tag: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$")] | None = Field(
        None, description="Tag of the container image, for exports and where the engine is not installed."
    )
    parameters: dict[FlagName, Parameter] = Field(DEFAULT_PARAMETERS, min_length=1, validate_default=True)
    constraints: list[ConstraintSpec] = Field([])
    optimization: Optimization = Optimization()
    slo: SloSpec = SloSpec()
    benchmark: Benchmark = Benchmark()
    engine: EngineOptions = EngineOptions()

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
    def served_model_name(self) -> str:
        """The name under which the engine serves the model and requests ask for it."""
        return self.benchmark.model_name or self.model.id_or_path

    def levels(self, seed: int) -> tuple[LoadLevel, ...]:
        """The load levels of one trial: every scenario at every concurrency or rate, in the file's order."""
        load = self.benchmark
        return tuple(
            LoadLevel(
                scenario=parse_scenario(scenario),
                concurrency=concurrency,
                max_requests=load.max_requests_per_iteration,
                max_time_s=load.max_time_per_iteration,
                warmup_requests=warmup if load.warmup_requests is None else load.warmup_requests,
                seed=seed,
                request_rate=rate,
                arrivals=load.arrivals,
                dataset=load.dataset or "",
                vocabulary=vocabulary_of(load.model_tokenizer or self.model.id_or_path),
            )
            for scenario in load.traffic_scenarios
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
            found += [(f"{path}.{flag}", RESERVED[flag]) for flag in flags if flag in RESERVED]
        found += [(f"benchmark.{key}", message) for key, message in self.benchmark.problems()]
        found += self._promise_problems()
        if self.engine.command and self.engine.python:
            found.append(("engine.command", "names the interpreter as well; leave engine.python out"))
        for flag in sorted(self.engine.args.keys() & self.parameters.keys()):
            found.append((f"engine.args.{flag}", "is a parameter as well; it is either fixed or tuned"))
        for number, constraint in enumerate(self.constraints):
            for side in ("when", "require"):
                for flag in getattr(constraint, side):
                    if flag not in self.parameters:
                        near = get_close_matches(flag, self.parameters, n=1)
                        hint = f"; nearest: {near[0]}" if near else ""
                        path = f"constraints[{number}].{side}.{flag}"
                        found.append((path, f"is not one of the parameters{hint}"))
        for flag in GPU_FLAGS:
            for path, value in self._values_of(flag):
                if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MOST_GPUS:
                    found.append((path, f"must be an integer from 1 to {_MOST_GPUS}, got {shown(value)}"))
        found += self._stage_problems() + self._front_problems()
        if self.optimization.enumerates and not self.space.enumerable():
            found.append(("optimization.strategy", "grid_search needs a step on every continuous parameter"))
        elif self.constraints and self.space.size <= 10**6 and next(self.space.grid(), None) is None:
            found.append(("constraints", "leave no configuration at all"))
        return found

    def _front_problems(self) -> list[tuple[str, str]]:
        """What several objectives at once do not go with."""
        options, found = self.optimization, []
        if len(set(options.objectives)) < len(options.objectives):
            found.append(("optimization.objective", "names one twice"))
        if len(options.objectives) > 1:
            if options.sampler in ("gp", "hyperopt"):
                found.append(
                    ("optimization.sampler", f"{options.sampler} has one objective; use auto or tpe")
                )
            if options.strategy == "hierarchical":
                found.append(("optimization.strategy", "hierarchical has one objective; use bayesian"))
        return found

    def _stage_problems(self) -> list[tuple[str, str]]:
        found, seen = [], set[str]()
        options = self.optimization
        if options.strategy == "hierarchical" and options.sampler == "hyperopt":
            found.append(("optimization.sampler", "hierarchical needs auto, gp or tpe: Hyperopt's cannot "
                          "be told what another stage has found"))  # fmt: skip
        if options.stages and options.strategy != "hierarchical":
            found.append(("optimization.stages", f"is of no use where strategy is {options.strategy}"))
        for number, group in enumerate(options.stages):
            for place, flag in enumerate(group):
                path = f"optimization.stages[{number}][{place}]"
                if flag not in self.parameters:
                    near = get_close_matches(flag, self.parameters, n=1)
                    hint = f"; nearest: {near[0]}" if near else ""
                    found.append((path, f"is not one of the parameters{hint}"))
                elif flag in seen:
                    found.append((path, f"{flag} is in a stage already"))
                seen.add(flag)
        return found

    def _promise_problems(self) -> list[tuple[str, str]]:
        """What needs promises, and there are none."""
        if "maximize_goodput" in self.optimization.objectives and not self.slo_terms.terms:
            return [("optimization.objective", "maximize_goodput counts what keeps the SLOs; give slo")]
        if self.benchmark.find is None:
            return []
        found = []
        if not self.slo_terms.terms:
            found.append(("benchmark.find", "looks for the load that keeps the SLOs; give slo"))
        if len(self.benchmark.traffic_scenarios) > 1:
            found.append(("benchmark.find", "takes one traffic scenario"))
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
