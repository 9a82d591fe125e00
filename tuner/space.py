"""The search space: which configurations exist. Knows nothing of samplers or engines.

A configuration is a dictionary from parameter name to value. Domains enumerate themselves where they
are finite; lists of numbers are *ordered*, and samplers are told so (see `search`).
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol

Value = bool | int | float | str | None
_LARGEST_GRID = 1_000_000


class Domain(Protocol):
    """The values that one parameter may take."""

    def values(self) -> tuple[Value, ...] | None:
        """Every value in order; None where they are not a (reasonably small) finite set."""
        ...

    def contains(self, value: Value) -> bool:
        """Whether `value` is one of them, of the same type."""
        ...

    def size(self) -> float:
        """How many there are; infinity for a continuous range."""
        ...

    def draw(self, share: float) -> Value:
        """The member at `share` of the way from the first to the last, 0 to 1 (exclusive).

        Of a range the nearest one: its ends are drawn less often, half as often where its steps are equal.
        """
        ...


@dataclass(frozen=True)
class Categorical:
    """An explicit list of values, kept in the order given."""

    choices: tuple[Value, ...]

    @property
    def ordered(self) -> bool:
        """True for numbers that ascend or descend: neighbours in the list are neighbours in effect."""
        numbers = [c for c in self.choices if isinstance(c, int | float) and not isinstance(c, bool)]
        if len(numbers) != len(self.choices):
            return False
        return numbers in (sorted(numbers), sorted(numbers, reverse=True))

    def values(self) -> tuple[Value, ...]:
        return self.choices

    def contains(self, value: Value) -> bool:
        return any(_same(value, choice) for choice in self.choices)

    def size(self) -> float:
        return len(self.choices)

    def draw(self, share: float) -> Value:
        return self.choices[int(share * len(self.choices))]


@dataclass(frozen=True)
class Integer:
    """Integers from `low` to `high`, both included, `step` apart; `log` spaces them by ratio."""

    low: int
    high: int
    step: int = 1
    log: bool = False

    def values(self) -> tuple[Value, ...] | None:
        return tuple(range(self.low, self.high + 1, self.step)) if self.size() <= _LARGEST_GRID else None

    def contains(self, value: Value) -> bool:
        if not isinstance(value, int) or isinstance(value, bool):
            return False
        return self.low <= value <= self.high and (value - self.low) % self.step == 0

    def size(self) -> float:
        return (self.high - self.low) // self.step + 1

    def draw(self, share: float) -> Value:
        return self.snap(_between(self.low, self.high, share, log=self.log))

    def snap(self, value: float) -> int:
        """The member nearest to `value`."""
        steps = round((min(max(value, self.low), self.high) - self.low) / self.step)
        return self.low + min(steps, (self.high - self.low) // self.step) * self.step


@dataclass(frozen=True)
class Float:
    """Real numbers from `low` to `high`, both included; with `step`, that grid; `log`: by ratio."""

    low: float
    high: float
    step: float | None = None
    log: bool = False

    @property
    def steps(self) -> int:
        """Number of whole steps between low and high (requires `step`)."""
        assert self.step is not None
        return int((_decimal(self.high) - _decimal(self.low)) // _decimal(self.step))

    def values(self) -> tuple[Value, ...] | None:
        if self.low == self.high:
            return (self.low,)
        if self.step is None or self.steps >= _LARGEST_GRID:
            return None
        return tuple(self._at(k) for k in range(self.steps + 1))

    def contains(self, value: Value) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            return False
        if not self.low <= value <= self.high:
            return False
        return self.step is None or math.isclose(self.snap(value), value, rel_tol=1e-9, abs_tol=1e-12)

    def size(self) -> float:
        if self.low == self.high:
            return 1
        return math.inf if self.step is None else self.steps + 1

    def draw(self, share: float) -> Value:
        return self.snap(_between(self.low, self.high, share, log=self.log))

    def snap(self, value: float) -> float:
        """The member nearest to `value`; of a continuous range, one of about a thousand of few digits."""
        inside = min(max(float(value), self.low), self.high)
        if self.step is None:
            return min(max(self._readable(inside), self.low), self.high)
        return self._at(min(round((inside - self.low) / self.step), self.steps))

    def _readable(self, value: float) -> float:
        """`value` to four significant digits of the range, or of itself on a logarithmic one."""
        size = abs(value) if self.log else self.high - self.low
        return round(value, 3 - math.floor(math.log10(size))) if size > 0 else value

    def _at(self, k: int) -> float:
        assert self.step is not None
        return float(_decimal(self.low) + k * _decimal(self.step))


@dataclass(frozen=True)
class Constraint:
    """Where every `when` matches, every `require` must. A condition is a list of values, or a range."""

    when: Mapping[str, Condition]
    require: Mapping[str, Condition]

    def allows(self, config: Mapping[str, Value]) -> bool:
        """Whether `config` obeys; a parameter that it does not set matches nothing and breaks nothing."""
        if not all(name in config and test.matches(config[name]) for name, test in self.when.items()):
            return True
        return all(name not in config or test.matches(config[name]) for name, test in self.require.items())


@dataclass(frozen=True)
class Condition:
    """One of `any_of` (where given), and within [low, high] (where given)."""

    any_of: tuple[Value, ...] | None = None
    low: float | None = None
    high: float | None = None

    def possible(self, domain: Domain) -> bool:
        """Whether any value of `domain` meets the condition."""
        if (values := domain.values()) is not None:
            return any(map(self.matches, values))
        if self.any_of is not None:
            return any(domain.contains(value) and self.matches(value) for value in self.any_of)
        first, last = domain.draw(0.0), domain.draw(1 - 1e-9)
        assert isinstance(first, int | float) and isinstance(last, int | float)  # else it is a list
        return (self.low is None or last >= self.low) and (self.high is None or first <= self.high)

    def matches(self, value: Value) -> bool:
        """Whether `value` meets the condition; only numbers lie within a range."""
        if self.any_of is not None and not any(_same(value, choice) for choice in self.any_of):
            return False
        if self.low is None and self.high is None:
            return True
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)


@dataclass(frozen=True)
class SearchSpace:
    """Named domains and the constraints between them."""

    domains: Mapping[str, Domain]
    constraints: tuple[Constraint, ...] = ()

    @property
    def size(self) -> float:
        """Number of combinations before constraints; infinity with a continuous parameter."""
        return math.prod(float(domain.size()) for domain in self.domains.values())

    def allows(self, config: Mapping[str, Value]) -> bool:
        """Whether every constraint is obeyed."""
        return all(constraint.allows(config) for constraint in self.constraints)

    def contains(self, config: Mapping[str, Value]) -> bool:
        """Whether `config` sets exactly this space's parameters to values that it allows."""
        if config.keys() != self.domains.keys() or not self.allows(config):
            return False
        return all(domain.contains(config[name]) for name, domain in self.domains.items())

    def enumerable(self) -> bool:
        """Whether every configuration can be listed."""
        return self.size <= _LARGEST_GRID and all(d.values() is not None for d in self.domains.values())

    def grid(self) -> Iterator[dict[str, Value]]:
        """Every allowed configuration; ValueError where the space cannot be listed."""
        if not self.enumerable():
            raise ValueError("a continuous or huge parameter has no grid; give it a step")
        values = [domain.values() or () for domain in self.domains.values()]
        for combination in itertools.product(*values):
            config = dict(zip(self.domains, combination, strict=True))
            if self.allows(config):
                yield config

    def only(self, names: Sequence[str]) -> SearchSpace:
        """The space of these parameters alone, without constraints, which may need the others."""
        return SearchSpace({name: self.domains[name] for name in names})

    def coarse(self, most: int, seed: int) -> list[dict[str, Value]]:
        """A coarse grid: first, middle and last of each parameter, `most` combinations of them at the most.

        Where there are more, a balanced part: each of a parameter's values comes equally often.
        """
        chance = random.Random(seed)  # noqa: S311  a reproducible order, no secret
        columns = []
        for domain in self.domains.values():
            values = list({config_key({"": v}): v for v in map(domain.draw, (0.0, 0.5, 1 - 1e-9))}.values())
            column = [values[place % len(values)] for place in range(16 * most)]
            chance.shuffle(column)
            columns.append(column)
        found = (dict(zip(self.domains, row, strict=True)) for row in zip(*columns, strict=True))
        allowed = {config_key(config): config for config in found if self.allows(config)}
        return list(allowed.values())[:most]


def config_key(config: Mapping[str, Any]) -> str:
    """The same text for the same configuration, whatever the order of its keys; tells 1 from True."""
    return json.dumps(config, sort_keys=True)


def _decimal(value: float) -> Decimal:
    """`value` as it is written: 0.7 + 1·0.05 is then 0.75, not 0.7500000000000001."""
    return Decimal(repr(float(value)))


def _same(a: Value, b: Value) -> bool:
    """Equality that tells True from 1 and 0.5 from "0.5", but not 1 from 1.0."""
    return isinstance(a, bool) == isinstance(b, bool) and a == b


def _between(low: float, high: float, share: float, *, log: bool) -> float:
    if log:
        return float(low * (high / low) ** share)
    return low + share * (high - low)
