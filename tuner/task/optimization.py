"""The section `optimization`: how to search, towards what, and when to end."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from tuner.task.fields import FlagName, Seconds, Section

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

    patience: int | None = Field(
        None, ge=1, description="Ends the search after so many trials in a row without a better one."
    )
    least_gain: float | None = Field(
        0.001,
        gt=0,
        lt=1,
        allow_inf_nan=False,
        description="Share of the objective: a `gp` search ends when it expects to gain less by its next "
        "trials; `null` for never.",
    )


class Optimization(Section):
    """How to search, towards what, and when to end. docs/search.md explains all of it."""

    strategy: Literal["bayesian", "grid_search", "grid", "random", "hybrid", "hierarchical"] = Field(
        "bayesian",
        description="`bayesian` learns from every trial; `hybrid` begins with a coarse grid; `hierarchical` "
        "takes groups of parameters in turn, then all together; `grid_search` (also `grid`) tries every "
        "configuration; `random` draws.",
    )
    sampler: Literal["auto", "tpe", "hyperopt", "gp", "cmaes", "random"] = Field(
        "auto",
        description="Of the strategies that learn: `gp` is a Gaussian process over the configurations that "
        "exist, `tpe` Optuna's, `hyperopt` Hyperopt's TPE, `cmaes` Optuna's CMA-ES (of parameters that all "
        "have an order), `random` none; `auto` takes what measures best.",
    )
    stages: list[Annotated[list[FlagName], Field(min_length=1)]] = Field(
        [],
        description='Of `hierarchical`: groups of parameters, `[["tp-size"], ["mem-fraction-static", '
        '"chunked-prefill-size"]]`. Default: what the number of GPUs depends on, then the others two by two.',
    )
    objective: _Objectives = Field(
        "minimize_latency",
        description="What is optimised: a latency in seconds, or tokens or requests per second and GPU "
        "(docs/search.md#objective-score-loss); a list asks for the Pareto front of several.",
    )
    max_iterations: int = Field(
        100,
        ge=1,
        le=100_000,
        description="Trials of the search, the baseline included; a grid runs whole unless this is given.",
    )
    n_initial_random: int = Field(
        5,
        ge=0,
        le=100_000,
        description="Random trials before the model's own; 10 to 20 % of `max_iterations` is usual. `gp` "
        "begins with 2, spread over the space, unless this is given.",
    )
    convergence: Convergence = Field(
        Convergence(), validate_default=True, description="When a search ends before its last trial."
    )
    early_stopping: bool = Field(True, description="Stop trials that are clearly losing, but for a grid's.")
    max_time: Seconds | None = Field(
        None,
        description="Ends the search in time for the whole study, its repeats included, to take so long.",
    )
    max_gpu_hours: float | None = Field(
        None,
        gt=0,
        le=1e6,
        allow_inf_nan=False,
        description="The same for the GPU hours that its trials hold.",
    )
    timeout_per_iteration: Seconds = Field(
        600.0, description="Limit of one whole trial, the engine's start included."
    )
    seed: int | None = Field(
        None,
        ge=0,
        lt=2**32,
        description="Of the search and of the load's prompts. Default: drawn, and recorded in study.json.",
    )
    baseline: bool = Field(True, description="Measure the engine's own defaults first, as trial 0.")
    confirm: int = Field(
        2,
        ge=0,
        le=20,
        description="Rounds at the end in which the leaders and the baseline are measured again, and more "
        "where that cannot tell them apart and trials are left over.",
    )

    @property
    def objectives(self) -> list[ObjectiveName]:
        """The names of all objectives, the first being the one that gains are told in."""
        return self.objective if isinstance(self.objective, list) else [self.objective]

    @property
    def enumerates(self) -> bool:
        """Whether the strategy runs through the whole grid."""
        return self.strategy in ("grid", "grid_search")
