"""The space in a task file: parameters and the constraints between them, as pydantic models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    WithJsonSchema,
    model_validator,
)

from tuner import space as spaces
from tuner.task.fields import LIMIT, FlagName, Number, Section, Value, Whole, plain_value, refuse, shown


def _choices(values: list[Any]) -> list[Any]:
    if not values:
        raise refuse("must not be empty")
    seen = set()
    for value in values:
        key = (isinstance(value, bool), value)
        if key in seen:
            raise refuse(f"holds {shown(value)} twice")
        seen.add(key)
    return values


Choices = Annotated[list[Value], Field(max_length=10_000), AfterValidator(_choices)]


# The forms of a parameter share keys, and a key one meaning.
_KIND = "What the values are; `continuous` is another name for `float`."
_LOW = "The smallest value, in the flag's own unit."
_HIGH = "The largest value, itself included."
_STEP = "From one value to the next; a `float` without it takes any value between."


class CategoricalSpec(Section):
    """One of a list of values."""

    type: Literal["categorical"] = Field(description=_KIND)
    values: Choices = Field(description="The values of a `categorical`.")

    def domain(self) -> spaces.Domain:
        return spaces.Categorical(tuple(self.values))


class BooleanSpec(Section):
    """A flag that is given or not."""

    type: Literal["boolean"] = Field(description=_KIND)

    def domain(self) -> spaces.Domain:
        return spaces.Categorical((False, True))


class _RangeSpec(Section):
    log: bool = Field(False, description="Space values by ratio instead of by difference; `low` is above 0.")

    @model_validator(mode="after")
    def _ordered(self) -> _RangeSpec:
        low, high = getattr(self, "low", 0), getattr(self, "high", 0)
        if low > high:
            raise refuse(f"low must not exceed high, got low {shown(low)} and high {shown(high)}")
        if self.log and low <= 0:
            raise refuse(f"log needs low > 0, got low {shown(low)}")
        step = getattr(self, "step", None)
        if step and (high - low) / step > LIMIT:
            raise refuse(f"step is too small for the range, got {shown(step)}")
        return self


class IntegerSpec(_RangeSpec):
    """Integers from low to high, both included."""

    type: Literal["integer"] = Field(description=_KIND)
    low: Whole = Field(description=_LOW)
    high: Whole = Field(description=_HIGH)
    step: int = Field(1, ge=1, le=LIMIT, description=_STEP)

    def domain(self) -> spaces.Domain:
        return spaces.Integer(self.low, self.high, self.step, self.log)


class FloatSpec(_RangeSpec):
    """Real numbers from low to high, both included."""

    type: Literal["float", "continuous"] = Field(description=_KIND)
    low: Number = Field(description=_LOW)
    high: Number = Field(description=_HIGH)
    step: Number | None = Field(None, gt=0, description=_STEP)

    def domain(self) -> spaces.Domain:
        return spaces.Float(self.low, self.high, self.step, self.log)


_SPECS = {
    "categorical": "categorical",
    "boolean": "boolean",
    "integer": "integer",
    "float": "float",
    "continuous": "float",
}


def _of_known_kind(spec: Any) -> Any:
    if not isinstance(spec, list | Mapping):
        raise refuse(f"must be a list of values or an object with a type, got {shown(spec)}")
    if isinstance(spec, Mapping) and spec.get("type") not in list(_SPECS):
        raise refuse(f"type must be one of {', '.join(_SPECS)}, got {shown(spec.get('type'))}")
    return spec


def _kind(spec: Any) -> str:
    if isinstance(spec, list):
        return "<list>"
    kind = spec["type"] if isinstance(spec, Mapping) else spec.type  # an object's where it is written out
    return f"<{_SPECS[kind]}>"


Parameter = Annotated[
    Annotated[Choices, Tag("<list>")]
    | Annotated[CategoricalSpec, Tag("<categorical>")]
    | Annotated[BooleanSpec, Tag("<boolean>")]
    | Annotated[IntegerSpec, Tag("<integer>")]
    | Annotated[FloatSpec, Tag("<float>")],
    Discriminator(_kind),
    BeforeValidator(_of_known_kind),
]


class Range(Section):
    """Numbers from low to high, either of which may be left out."""

    low: Number | None = Field(None, description="At least this much.")
    high: Number | None = Field(None, description="At most this much.")

    @model_validator(mode="after")
    def _bounded(self) -> Range:
        if self.low is None and self.high is None:
            raise refuse("must have low or high, or both")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise refuse(f"low must not exceed high, got low {shown(self.low)} and high {shown(self.high)}")
        return self


def _condition(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Range.model_validate(value)
    if value == []:
        raise refuse("must not be an empty list")
    return [plain_value(v) for v in value] if isinstance(value, list) else [plain_value(value)]


ConditionSpec = Annotated[
    Any,
    PlainValidator(_condition),
    WithJsonSchema({"description": "A value, a list of values, or an object with low and/or high."}),
]


class ConstraintSpec(Section):
    """Where every `when` matches, every `require` must."""

    when: dict[FlagName, ConditionSpec] = Field(
        min_length=1,
        description="Conditions by parameter, each a value, a list of values, or a range with `low` and/or "
        "`high`: where all of them hold ...",
    )
    require: dict[FlagName, ConditionSpec] = Field(min_length=1, description="... all of these must.")

    def constraint(self) -> spaces.Constraint:
        def conditions(side: Mapping[str, Any]) -> dict[str, spaces.Condition]:
            return {
                name: spaces.Condition(low=test.low, high=test.high)
                if isinstance(test, Range)
                else spaces.Condition(any_of=tuple(test))
                for name, test in side.items()
            }

        return spaces.Constraint(conditions(self.when), conditions(self.require))
