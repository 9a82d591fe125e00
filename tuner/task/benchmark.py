"""The section `benchmark`: the load, in genai-bench's vocabulary."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from tuner.datasets import read_dataset
from tuner.scenarios import MAX_TOKENS, Deterministic, Normal, Scenario, Uniform, parse_scenario
from tuner.secrets import is_secret, is_switch
from tuner.task.fields import Seconds, Section, Text, refuse, shown
from tuner.workload import Arrivals

_LEAST_REQUESTS, _REQUESTS_OF_A_STREAM, _MOST_REQUESTS = 100, 10, 1_000_000
_MOST_WARMUP = 10_000
_HARMLESS = "prompt_cache_key"  # of OpenAI's requests, though it is called a key


def _scenario(text: str) -> str:
    try:
        return str(parse_scenario(text))
    except ValueError as error:
        raise refuse(str(error)) from error


def _body_params(params: dict[str, Any]) -> dict[str, Any]:
    for key in ("stream", "stream_options", "prompt", "messages", "model", "n"):
        if key in params:
            raise refuse(f"{key} is set by the load generator and cannot be changed")
    if secret := next(_secrets(params), None):
        raise refuse(f"{secret} is a secret, which no file should hold")
    try:
        json.dumps(params, allow_nan=False)
    except ValueError as error:
        raise refuse(f"must hold finite numbers of a few digits, got {shown(params)}") from error
    return params


def _secrets(value: Any) -> Iterator[str]:
    """The keys, at any depth, of texts that are secrets by their key."""
    if isinstance(value, dict):
        for key, below in value.items():
            if isinstance(below, str) and is_secret(str(key)) and not is_switch(below):
                if key != _HARMLESS:
                    yield key
            else:
                yield from _secrets(below)
    elif isinstance(value, list):
        for below in value:
            yield from _secrets(below)


class Benchmark(Section):
    """The load that is put on the engine, in genai-bench's vocabulary."""

    task: Literal["text-to-text"] = Field("text-to-text", description="The only kind of load there is.")
    tool: Literal["native", "genai-bench"] = Field(
        "native",
        description="The load generator; `genai-bench` for a second opinion (docs/load.md#genai-bench).",
    )
    model_name: Text | None = Field(
        None,
        description="Name under which the model is served and asked for. Default: `model.id_or_path`.",
    )
    model_tokenizer: Text | None = Field(
        None,
        description="Folder with the model's tokenizer.json: where it and the library `tokenizers` are "
        "there, prompts have exact lengths. Default: `model.id_or_path`.",
    )
    traffic_scenarios: list[Annotated[str, AfterValidator(_scenario)]] = Field(
        ["D(100,100)"],
        min_length=1,
        max_length=1000,
        description="Sizes of requests in tokens, such as `D(in,out)`; docs/load.md#scenarios has all.",
    )
    find: Literal["max_load"] | None = Field(
        None,
        description="`max_load`: each trial looks for the highest load between the lowest and the highest of "
        "these that keeps the SLOs, and is scored by it (docs/load.md#the-highest-load-within-the-slos).",
    )
    dataset: Text | None = Field(
        None,
        min_length=1,
        description="File of the scenario `dataset`, relative to the task file: JSON lines, or ShareGPT's "
        "format.",
    )
    prefix_len: int | None = Field(
        None,
        ge=0,
        le=MAX_TOKENS,
        description="Tokens that all prompts of `D`, `N` and `U` begin with alike, part of their own length.",
    )
    prefix_ratio: float | None = Field(
        None,
        ge=0,
        le=1,
        description="In place of `prefix_len`, where all scenarios are `D`: as a share of the prompt.",
    )
    num_concurrency: list[Annotated[int, Field(ge=1, le=4096)]] = Field(
        [4, 8],
        min_length=1,
        max_length=1000,
        description="Requests in flight at any moment; every scenario at every one of these is a load level.",
    )
    request_rate: list[Annotated[float, Field(gt=0, le=10_000)]] | None = Field(
        None,
        min_length=1,
        max_length=1000,
        description="In place of `num_concurrency`: requests per second, whatever became of those before; "
        "every scenario at every rate is a load level.",
    )
    arrivals: Arrivals = Field(
        "poisson",
        description="Of a `request_rate`: gaps between requests at `poisson`'s random, or `constant`.",
    )
    max_concurrency: int = Field(
        1024,
        ge=1,
        le=65_536,
        description="Of a `request_rate`: requests that may be open at once; a level that was held back by "
        "it is marked.",
    )
    max_time_per_iteration: Seconds = Field(30.0, description="Time for which one load level sends.")
    max_requests_per_iteration: int | None = Field(
        None,
        ge=1,
        le=_MOST_REQUESTS,
        description="Requests of one load level, one for each stream at the least: it ends with the last of "
        "them, or with its time. Default: ten for each stream, and 100 at the least; at a rate, as many as "
        "are due in its time.",
    )
    warmup_requests: int | None = Field(
        None,
        ge=0,
        le=_MOST_WARMUP,
        description="Requests before each load level, out of the figures. Default: as many as the level's "
        "concurrency; at a rate, a third of its requests.",
    )
    keep_cache: bool = Field(
        False,
        description="Keep cached prefixes from one load level to the next; else the cache is flushed before "
        "each.",
    )
    max_error_rate: float = Field(
        0.05, ge=0, lt=1, description="Share of requests; a load level in which more of them fail has failed."
    )
    additional_params: Annotated[dict[str, Any], AfterValidator(_body_params)] = Field(
        {}, description='Sent with every request: `{"temperature": 0.0}` for one.'
    )

    @property
    def loads(self) -> Sequence[float]:
        """The concurrencies, or the rates in requests per second, in the file's order."""
        return self.num_concurrency if self.request_rate is None else self.request_rate

    def requests(self, load: float) -> tuple[int, int]:
        """(measured requests at the most, requests of the warm-up) at a concurrency or at a rate.

        Latencies at a rate are those of the rate once as many requests are open as it keeps open: until then
        the server fills, and one that is too slow looks fast enough.
        """
        most, warmup = self.max_requests_per_iteration, self.warmup_requests
        if self.request_rate is None:
            most = max(most or max(_LEAST_REQUESTS, _REQUESTS_OF_A_STREAM * int(load)), int(load))
            usual = int(load)
        else:
            due = min(math.ceil(load * self.max_time_per_iteration), _MOST_REQUESTS)
            most = most or due
            usual = math.ceil(min(most, due) / 3)
        return most, min(usual, _MOST_WARMUP) if warmup is None else warmup

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
        return [*found, *self._prefix_problems(), *self._beyond_genai_bench()]

    def prefix_tokens(self, scenario: Scenario) -> int:
        """Tokens with which all prompts of a scenario begin alike, beside what its own form says."""
        if self.prefix_ratio is not None and isinstance(scenario, Deterministic):
            return int(scenario.input_tokens * self.prefix_ratio)
        return self.prefix_len or 0

    def _prefix_problems(self) -> list[tuple[str, str]]:
        """What genai-bench refuses of its options of the same names."""
        if self.prefix_len is None and self.prefix_ratio is None:
            return []
        if self.prefix_len is not None and self.prefix_ratio is not None:
            return [("prefix_ratio", "is prefix_len in another form; leave one of them out")]
        found = []
        for scenario in map(parse_scenario, self.traffic_scenarios):
            if self.prefix_ratio is not None and not isinstance(scenario, Deterministic):
                found.append(("prefix_ratio", f"goes with D alone, not with {scenario}; use prefix_len"))
            elif not isinstance(scenario, Deterministic | Normal | Uniform):
                found.append(("prefix_len", f"goes with D, N and U, not with {scenario}"))
            elif scenario.shortest_input < (self.prefix_len or 0):
                shortest = f"{scenario.shortest_input} tokens"
                found.append(("prefix_len", f"is longer than prompts of {scenario} may be ({shortest})"))
        return found

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
