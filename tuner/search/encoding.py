"""How a search space looks to a TPE sampler: each parameter as a number or a choice, and back.

Ordered lists and stepped ranges become an index, so that the sampler knows which values are
neighbours. That also goes round what the Ray adapters get wrong: quantised ranges whose upper bound is
no multiple of the step, 0.7000000000000001, the lost step of qloguniform, True taken for 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray import tune

from tuner.space import Categorical, Domain, Float, Integer, SearchSpace, Value


@dataclass(frozen=True)
class Code:
    """One parameter: the Tune domain that a sampler draws from, and the value that a draw stands for.

    `encode` is the way back; `position` places a value on [0, 1], or numbers it where there is no order.
    """

    domain: Any
    decode: Callable[[Any], Value]
    encode: Callable[[Value], Any]
    position: Callable[[Value], float]
    ordered: bool = True


@dataclass(frozen=True)
class Encoding:
    """A whole space; parameters with a single value are constants that samplers never see."""

    names: tuple[str, ...]
    codes: Mapping[str, Code]
    constants: Mapping[str, Value]

    @property
    def tune_space(self) -> dict[str, Any]:
        """The space as Tune domains, without the constants."""
        return {name: code.domain for name, code in self.codes.items()}

    @property
    def unordered(self) -> np.ndarray:
        """Which parameters that a sampler sees have no order, as booleans."""
        return np.array([not code.ordered for code in self.codes.values()], dtype=bool)

    def encode(self, config: Mapping[str, Value]) -> dict[str, Any]:
        """The sampler's point for a configuration."""
        return {name: code.encode(config[name]) for name, code in self.codes.items()}

    def points(self, configs: Sequence[Mapping[str, Value]]) -> np.ndarray:
        """Configurations as points of the unit cube, (configurations, parameters)."""
        rows = [[code.position(config[name]) for name, code in self.codes.items()] for config in configs]
        return np.array(rows, dtype=float).reshape(len(configs), len(self.codes))

    def decode(self, point: Mapping[str, Any]) -> dict[str, Value]:
        """The configuration that a sampler's point stands for, in the task's order."""
        return {
            name: self.codes[name].decode(point[name]) if name in self.codes else self.constants[name]
            for name in self.names
        }


def encode(space: SearchSpace, *, integers: Callable[[int, int], Any]) -> Encoding:
    """The encoding of `space`; `integers(low, high)` is the sampler's own domain of whole numbers."""
    codes, constants = {}, {}
    for name, domain in space.domains.items():
        if domain.size() == 1:
            constants[name] = (domain.values() or (None,))[0]
        else:
            codes[name] = _code(domain, integers)
    return Encoding(tuple(space.domains), codes, constants)


def optuna_integers(low: int, high: int) -> Any:
    """Whole numbers from low to high for Optuna."""
    return tune.randint(low, high + 1)


def hyperopt_integers(low: int, high: int) -> Any:
    """Whole numbers for Hyperopt, whose randint is unordered and whose quniform halves the two ends."""
    return tune.uniform(low - 0.5, high + 0.5)


def _code(domain: Domain, integers: Callable[[int, int], Any]) -> Code:
    values = domain.values()
    if isinstance(domain, Integer | Float) and domain.log:
        return _range(domain, tune.loguniform(domain.low, domain.high))
    if isinstance(domain, Integer) and domain.step == 1:
        return _range(domain, integers(domain.low, domain.high))
    if isinstance(domain, Integer | Float) and values is None:  # continuous, or too many steps to list
        return _range(domain, tune.uniform(domain.low, domain.high))
    assert values is not None
    count = len(values)
    ordered = not isinstance(domain, Categorical) or domain.ordered

    places = {(isinstance(value, bool), value): place for place, value in enumerate(values)}  # 1 is not True

    def index(value: Value) -> int:
        if isinstance(domain, Integer | Float) and isinstance(value, int | float):  # 1 may stand for 1.0
            value = domain.snap(value)
        return places[isinstance(value, bool), value]

    if not ordered:
        return Code(
            tune.choice(list(range(count))), lambda drawn: values[int(drawn)], index, index, ordered=False
        )
    return Code(
        integers(0, count - 1),
        lambda drawn: values[_nearest(drawn, count)],
        index,
        lambda value: index(value) / (count - 1),
    )


def _range(domain: Integer | Float, tune_domain: Any) -> Code:
    """A range as it is, its members the nearest to what is drawn."""
    low, high = domain.low, domain.high

    def position(value: Value) -> float:
        number = float(value)  # type: ignore[arg-type]  # a member of a range is a number
        if domain.log:
            return math.log(number / low) / math.log(high / low)
        return (number - low) / (high - low)

    return Code(tune_domain, domain.snap, lambda value: value, position)


def _nearest(index: float, count: int) -> int:
    return min(max(math.floor(index + 0.5), 0), count - 1)
