"""The task: what to tune, on which load, towards what. Frozen pydantic models, checked when made.

Keys are the documents' own. Engines and samplers read the plain objects that the properties of `Task`
give: its `space`, `objective`, `slo_terms` and `levels()`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from tuner import objective as scoring
from tuner import space as spaces
from tuner.scenarios import Scenario, parse_scenario
from tuner.task.benchmark import Benchmark
from tuner.task.engine import EngineName, EngineOptions, Model, Resources
from tuner.task.fields import FlagName, Prose, Section, Text
from tuner.task.optimization import Optimization
from tuner.task.parameters import ConstraintSpec, Parameter
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
        scenarios = map(parse_scenario, self.benchmark.traffic_scenarios)
        return tuple(self.level(each, load, seed) for each in scenarios for load in self.benchmark.loads)

    def level(self, scenario: Scenario, load: float, seed: int) -> LoadLevel:
        """One load level: `scenario` at a concurrency or, where the task has rates, at a rate."""
        options = self.benchmark
        at_rate = options.request_rate is not None
        max_requests, warmup_requests = options.requests(load)
        return LoadLevel(
            scenario=scenario,
            concurrency=options.max_concurrency if at_rate else int(load),
            max_requests=max_requests,
            max_time_s=options.max_time_per_iteration,
            warmup_requests=warmup_requests,
            seed=seed,
            request_rate=float(load) if at_rate else None,
            arrivals=options.arrivals,
            dataset=options.dataset or "",
            prefix_tokens=options.prefix_tokens(scenario),
            vocabulary=vocabulary_of(options.model_tokenizer or self.model.id_or_path),
        )
