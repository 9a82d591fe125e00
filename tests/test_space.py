"""The search space: domains that enumerate themselves, constraints, and what is a member."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.space import (
    Categorical,
    Condition,
    Constraint,
    Float,
    Integer,
    SearchSpace,
    Value,
    config_key,
)

VALUES: st.SearchStrategy[Value] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 9),
    st.sampled_from([0.5, 0.75, 1.0, 2.0]),
    st.sampled_from("abc"),
)
CHOICES = st.lists(VALUES, min_size=1, max_size=5, unique_by=lambda v: (isinstance(v, bool), v)).map(tuple)


@st.composite
def decimal_ranges(draw: st.DrawFn, most_steps: int = 12) -> tuple[Float, list[float]]:
    """A stepped range written with a few decimals, and its exact members."""
    unit = Decimal(1).scaleb(-draw(st.integers(0, 6)))
    low = unit * draw(st.integers(-2000, 2000))
    step = unit * draw(st.integers(1, 300))
    count = draw(st.integers(0, most_steps))
    rest = step * draw(st.sampled_from([Decimal(0), Decimal("0.5"), Decimal("0.999")]))
    high = low + count * step + rest
    members = [float(low + k * step) for k in range(count + 1)]
    return Float(float(low), float(high), float(step)), members


@st.composite
def integer_ranges(draw: st.DrawFn) -> Integer:
    low = draw(st.integers(-50, 50))
    return Integer(low, low + draw(st.integers(0, 30)), draw(st.integers(1, 9)))


DOMAINS = st.one_of(CHOICES.map(Categorical), integer_ranges(), decimal_ranges(4).map(lambda pair: pair[0]))
CONDITIONS = st.one_of(
    st.builds(Condition, any_of=CHOICES),
    st.builds(Condition, low=st.none() | st.integers(-5, 5), high=st.none() | st.floats(-5, 20)),
    st.builds(Condition, any_of=CHOICES, low=st.integers(-5, 5)),
)
NAMES = ("a", "b", "c")
SIDES = st.dictionaries(st.sampled_from(NAMES), CONDITIONS, min_size=1, max_size=2)
CONSTRAINTS = st.lists(st.builds(Constraint, SIDES, SIDES), max_size=3).map(tuple)


@st.composite
def spaces(draw: st.DrawFn, constrained: bool = True) -> SearchSpace:
    names = NAMES[: draw(st.integers(1, 3))]
    domains = {name: draw(DOMAINS) for name in names}
    while math.prod(domain.size() for domain in domains.values()) > 500:
        domains[next(reversed(domains))] = Categorical((draw(VALUES),))
        domains = dict(sorted(domains.items(), key=lambda item: item[1].size()))
    return SearchSpace(domains, draw(CONSTRAINTS) if constrained else ())


def matches(condition: Condition, value: Any) -> bool:
    """What a condition says, written once more and differently."""
    if condition.any_of is not None:
        known = [repr(choice) for choice in condition.any_of]
        number = type(value) in (int, float)
        if not (
            repr(value) in known
            or (number and {repr(float(value)), repr(int(value))} & set(known) and int(value) == value)
        ):
            return False
    bounded = condition.low is not None or condition.high is not None
    if bounded and type(value) not in (int, float):
        return False
    return not bounded or (
        (-math.inf if condition.low is None else condition.low)
        <= value
        <= (math.inf if condition.high is None else condition.high)
    )


def obeys(config: Mapping[str, Any], constraint: Constraint) -> bool:
    applies = all(name in config and matches(test, config[name]) for name, test in constraint.when.items())
    kept = [matches(test, config[name]) for name, test in constraint.require.items() if name in config]
    return not applies or all(kept)


# --- domains -------------------------------------------------------------------------------------------


@given(DOMAINS)
def test_a_domain_holds_what_it_lists_and_nothing_between(domain: Any) -> None:
    values = domain.values()
    assert len(values) == domain.size()
    assert len({(isinstance(value, bool), value) for value in values}) == len(values)
    assert all(domain.contains(value) for value in values)
    if not isinstance(domain, Categorical):
        assert list(values) == sorted(values)
        assert not any(domain.contains((a + b) / 2) for a, b in itertools.pairwise(values))
        assert not domain.contains(values[0] - domain.step)
        assert not domain.contains(values[-1] + domain.step)


@given(decimal_ranges())
def test_stepped_floats_are_exact_decimals(pair: tuple[Float, list[float]]) -> None:
    domain, members = pair
    assert domain.values() == tuple(members)


@pytest.mark.parametrize(
    ("domain", "values"),
    [
        (Float(0.7, 0.9, 0.05), (0.7, 0.75, 0.8, 0.85, 0.9)),
        (Float(0.1, 0.3, 0.1), (0.1, 0.2, 0.3)),
        (Float(0.0, 0.35, 0.1), (0.0, 0.1, 0.2, 0.3)),
        (Float(0.1, 0.29999999995, 0.1), (0.1, 0.2)),
        (Float(1e6, 1e6 + 3e-7, 1e-7), (1000000.0, 1000000.0000001, 1000000.0000002, 1000000.0000003)),
        (Float(1e15, 1e15 + 2, 1), (1e15, 1e15 + 1, 1e15 + 2)),
        (Float(1.0, 1.0, 0.1), (1.0,)),
        (Float(1.0, 1.0), (1.0,)),
        (Integer(1, 10, 4), (1, 5, 9)),
        (Integer(-3, -3), (-3,)),
    ],
)
def test_the_members_of_a_range(domain: Any, values: tuple[Value, ...]) -> None:
    assert domain.values() == values


@given(domain=integer_ranges() | decimal_ranges().map(lambda pair: pair[0]), value=st.floats(-1e4, 1e4))
def test_snap_gives_the_nearest_member(domain: Integer | Float, value: float) -> None:
    snapped = domain.snap(value)
    assert domain.contains(snapped)
    assert type(snapped) is (int if isinstance(domain, Integer) else float)
    nearest = min(abs(value - float(member)) for member in domain.values() or ())  # type: ignore[arg-type]
    assert abs(value - snapped) <= nearest + 1e-9 * max(1.0, abs(value))
    assert domain.snap(snapped) == snapped


@given(low=st.floats(-1e9, 1e9), span=st.floats(0, 1e9), value=st.floats(allow_nan=False))
def test_snap_into_a_continuous_range(low: float, span: float, value: float) -> None:
    domain = Float(low, low + span)
    assert domain.contains(domain.snap(value))
    if domain.low < domain.high:
        assert domain.values() is None and domain.size() == math.inf
    else:
        assert domain.values() == (low,) and domain.size() == 1
    snapped = domain.snap(value)
    assert domain.snap(snapped) == snapped
    if domain.contains(value):
        assert abs(snapped - value) <= (domain.high - domain.low) / 1000 + math.ulp(value)


def test_continuous_values_are_of_few_digits() -> None:
    assert [Float(0.3, 1.3).draw(share) for share in (0.0, 0.1234567, 0.999999)] == [0.3, 0.423, 1.3]
    assert Float(1e-6, 1e3, log=True).draw(0.123456) == 1.292e-05
    assert Float(0.70001, 0.70002).draw(0.123456) == 0.700011235


def test_true_is_not_one() -> None:
    assert Categorical((1, 2)).contains(1) and not Categorical((1, 2)).contains(True)
    assert Categorical((True,)).contains(True) and not Categorical((True,)).contains(1)
    assert Categorical((0, 1)).values() == (0, 1) and not Categorical((0, 1)).contains(False)
    assert not Integer(0, 3).contains(True) and not Float(0.0, 1.0).contains(True)
    assert not Condition((1,)).matches(True) and not Condition((True,)).matches(1)
    assert not Condition(low=0).matches(True)
    assert config_key({"a": 1}) != config_key({"a": True})


def test_text_is_no_number() -> None:
    for domain in (Integer(0, 3), Float(0.0, 3.0), Float(0.0, 3.0, 1.0), Categorical((1, 2))):
        assert not domain.contains("1") and not domain.contains(None)
    assert not Condition(low=0).matches("1")
    assert not Integer(0, 3).contains(1.0)
    assert not Float(0.0, 1.0).contains(math.nan) and not Float(0.0, 1.0).contains(math.inf)


@pytest.mark.parametrize(
    ("choices", "ordered"),
    [
        ((512, 1024, 2048), True),
        ((0.9, 0.8, 0.5), True),
        ((1,), True),
        ((1, 3, 2), False),
        (("a", "b"), False),
        ((1, "b"), False),
        ((False, True), False),
        ((1, None), False),
    ],
)
def test_lists_of_numbers_in_order_are_ordered(choices: tuple[Value, ...], ordered: bool) -> None:
    assert Categorical(choices).ordered is ordered


# --- spaces --------------------------------------------------------------------------------------------


@given(spaces(constrained=False))
def test_without_constraints_the_size_is_that_of_the_grid(space: SearchSpace) -> None:
    grid = list(space.grid())
    assert len(grid) == space.size
    assert len({config_key(config) for config in grid}) == len(grid)
    assert all(list(config) == list(space.domains) for config in grid)


@given(spaces())
def test_the_grid_is_what_the_constraints_leave(space: SearchSpace) -> None:
    everything = SearchSpace(space.domains).grid()
    left = [c for c in everything if all(obeys(c, constraint) for constraint in space.constraints)]
    assert list(space.grid()) == left
    assert all(space.contains(config) for config in left)


@given(space=spaces(), data=st.data())
def test_only_members_are_contained(space: SearchSpace, data: st.DataObject) -> None:
    config = {name: data.draw(st.sampled_from(domain.values())) for name, domain in space.domains.items()}  # type: ignore[arg-type]
    allowed = all(obeys(config, constraint) for constraint in space.constraints)
    assert space.contains(config) is space.allows(config) is allowed
    name = data.draw(st.sampled_from(list(config)))
    assert not space.contains({key: value for key, value in config.items() if key != name})
    assert not space.contains({**config, "other": 1})
    assert not space.contains({**config, name: "no such value"})


def test_a_constraint_speaks_of_what_is_set() -> None:
    constraint = Constraint({"a": Condition((1,))}, {"b": Condition(high=2), "c": Condition(("x",))})
    assert constraint.allows({})
    assert constraint.allows({"a": 1})
    assert constraint.allows({"a": 2, "b": 9, "c": "y"})
    assert constraint.allows({"a": 1, "b": 2, "c": "x"})
    assert not constraint.allows({"a": 1, "b": 3})
    assert not constraint.allows({"a": 1, "c": "y"})
    both = Constraint({"a": Condition((1,)), "b": Condition((1,))}, {"c": Condition(("x",))})
    assert both.allows({"a": 1, "b": 2, "c": "y"})
    assert not both.allows({"a": 1, "b": 1, "c": "y"})


@pytest.mark.parametrize(
    "domains",
    [
        {"a": Float(0.0, 1.0)},
        {"a": Integer(0, 1_000_000)},
        {"a": Integer(0, 999), "b": Integer(0, 1000)},
        {"a": Float(0.0, 1.0, 1e-9), "b": Categorical((1,))},
    ],
)
def test_what_cannot_be_listed_has_no_grid(domains: dict[str, Any]) -> None:
    space = SearchSpace(domains)
    assert not space.enumerable()
    with pytest.raises(ValueError, match="give it a step"):
        next(space.grid())


def test_a_size_beyond_floats_is_infinite() -> None:
    assert SearchSpace({f"p{i}": Integer(0, 2**53) for i in range(25)}).size == math.inf


@given(st.dictionaries(st.sampled_from("abcd"), VALUES))
def test_a_key_is_the_same_in_any_order(config: dict[str, Value]) -> None:
    assert config_key(config) == config_key(dict(reversed(config.items())))
