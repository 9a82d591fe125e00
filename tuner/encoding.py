"""How a search space looks to a TPE sampler: each parameter as a number or a choice, and back.

Ordered lists and stepped ranges become an index, so that the sampler knows which values are
neighbours. That also goes round what the Ray adapters get wrong: quantised ranges whose upper bound is
no multiple of the step, 0.7000000000000001, the lost step of qloguniform, True taken for 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ray import tune

from tuner.space import Categorical, Domain, Float, Integer, SearchSpace, Value


@dataclass(frozen=True)
class Code:
    """One parameter: the Tune domain that a sampler draws from, and the value that a draw stands for."""

    domain: Any
    decode: Callable[[Any], Value]


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
    if isinstance(domain, Integer | Float) and domain.log:
        return Code(tune.loguniform(domain.low, domain.high), domain.snap)
    if isinstance(domain, Integer) and domain.step == 1:
        return Code(integers(domain.low, domain.high), domain.snap)
    if isinstance(domain, Float) and domain.step is None:
        return Code(tune.uniform(domain.low, domain.high), domain.snap)
    values = domain.values()
    if values is None:  # stepped, but too many steps to list
        assert isinstance(domain, Integer | Float)
        return Code(tune.uniform(domain.low, domain.high), domain.snap)
    count = len(values)
    if isinstance(domain, Categorical) and not domain.ordered:
        return Code(tune.choice(list(range(count))), lambda index: values[int(index)])
    return Code(integers(0, count - 1), lambda index: values[_nearest(index, count)])


def _nearest(index: float, count: int) -> int:
    return min(max(math.floor(index + 0.5), 0), count - 1)
