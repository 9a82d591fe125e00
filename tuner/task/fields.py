"""What values in a task file may be: the field types that every section shares.

Messages made here are kept as they are; `problems` adds the path.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")
_FLAG = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,99}")
_NEGATIVE = re.compile(r"-(\d+\.?\d*|\.\d+)")  # as argparse reads one
LIMIT = 2**53  # integers beyond are not exact in JSON, nor as floats


def refuse(message: str) -> PydanticCustomError:
    """A problem whose text pydantic leaves as it is."""
    return PydanticCustomError("task", "{message}", {"message": message})


class _Short(reprlib.Repr):
    """`repr` with JSON's null, true and NaN, which never walks the whole of a huge value.

    YAML's aliases make such a one of a small file.
    """

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, 60, 60

    def repr_NoneType(self, x: None, level: int) -> str:
        return "null"

    def repr_bool(self, x: bool, level: int) -> str:
        return str(x).lower()

    def repr_float(self, x: float, level: int) -> str:
        return repr(x) if math.isfinite(x) else json.dumps(x)

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if abs(x) < 10**50 else f"an integer of {x.bit_length()} bits"


_SHORT = _Short()


def shown(value: Any) -> str:
    """`value` as a message quotes it: short, on one line."""
    text = _SHORT.repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def key_path(path: str, key: str | int) -> str:
    """The place of a key or an index below `path`, on one line whatever the key."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    name = key if key.isprintable() and len(key) <= 100 else shown(key)
    return f"{path}.{name}" if path else name


def value_problem(value: Any) -> str:
    """What is wrong with the value of a flag; empty where nothing is.

    A text is one word of the engine's command line and nothing more: one that began with a dash could be read
    as another flag, `--host=0.0.0.0` after a switch for one.
    """
    if isinstance(value, str):
        if "\0" in value:
            return f"must not hold a NUL character, got {shown(value)}"
        if value.startswith("-") and not _NEGATIVE.fullmatch(value):
            return f"must not begin with a dash, which reads as another flag, got {shown(value)}"
    elif isinstance(value, float) and not math.isfinite(value):
        return f"must be a finite number, got {shown(value)}"
    elif isinstance(value, int | float):
        if abs(value) > LIMIT:
            return f"must be within ±2^53, got {shown(value)}"
    elif value is not None:
        return f"must be a number, a string, a boolean or null, got {shown(value)}"
    return ""


def plain_value(value: Any) -> Any:
    if problem := value_problem(value):
        raise refuse(problem)
    return value


def _flag(name: str) -> str:
    if not _FLAG.fullmatch(name):
        raise refuse(
            f"must be an engine flag without leading dashes (letters, digits, - _ .), got {shown(name)}"
        )
    return name


def _text(value: str) -> str:
    if any(not character.isprintable() for character in value):
        raise refuse(f"must be printable text, got {shown(value)}")
    return value


def _prose(value: str) -> str:
    _text("".join(value.split()))
    return value


def _variable(name: str) -> str:
    if not _VARIABLE.fullmatch(name):
        raise refuse(f"must be the name of an environment variable (letters, digits, _), got {shown(name)}")
    return name


Value = Annotated[
    Any, PlainValidator(plain_value), WithJsonSchema({"type": ["number", "string", "boolean", "null"]})
]
FlagName = Annotated[str, AfterValidator(_flag)]
Text = Annotated[str, Field(max_length=1000), AfterValidator(_text)]
Prose = Annotated[str, Field(max_length=10_000), AfterValidator(_prose)]
VariableName = Annotated[str, AfterValidator(_variable)]
Number = Annotated[float, Field(allow_inf_nan=False, ge=-LIMIT, le=LIMIT)]
Whole = Annotated[int, Field(ge=-LIMIT, le=LIMIT)]
Seconds = Annotated[
    float, Field(gt=0, le=30 * 86400, allow_inf_nan=False, json_schema_extra={"unit": "seconds"})
]


class Section(BaseModel):
    """A part of a task file: unknown keys are refused, types are not coerced, nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
