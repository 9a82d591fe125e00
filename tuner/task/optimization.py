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
    sampler: Literal["auto", "tpe", "hyperopt", "gp", "cmaes", "random"] = Field(
        "auto",
        description="Of the strategies that model: tpe is Optuna's, hyperopt is Hyperopt's TPE, gp a "
        "Gaussian process over the configurations that exist, cmaes Optuna's CMA-ES, of parameters that all "
        "have an order, random no model; auto takes what measures best.",
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
