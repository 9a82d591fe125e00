"""What values in a task file may be: the field types that every section shares.

Messages made here are kept as they are; `problems` adds the path.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

_FLAG = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,99}")
_LIMIT = 2**53  # integers beyond are not exact in JSON, nor as floats


def refuse(message: str) -> PydanticCustomError:
    """A problem whose text pydantic leaves as it is."""
    return PydanticCustomError("task", "{message}", {"message": message})


def shown(value: Any) -> str:
    """`value` as a message quotes it: short, on one line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def plain_value(value: Any) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        if not math.isfinite(value):
            raise refuse(f"must be a finite number, got {shown(value)}")
        if abs(value) > _LIMIT:
            raise refuse(f"must be within ±2^53, got {shown(value)}")
        return value
    raise refuse(f"must be a number, a string, a boolean or null, got {shown(value)}")


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


Value = Annotated[
    Any, PlainValidator(plain_value), WithJsonSchema({"type": ["number", "string", "boolean", "null"]})
]
FlagName = Annotated[str, AfterValidator(_flag)]
Text = Annotated[str, Field(max_length=1000), AfterValidator(_text)]
Number = Annotated[float, Field(allow_inf_nan=False, ge=-_LIMIT, le=_LIMIT)]
Whole = Annotated[int, Field(ge=-_LIMIT, le=_LIMIT)]
Seconds = Annotated[float, Field(gt=0, le=30 * 86400, allow_inf_nan=False)]


class Section(BaseModel):
    """A part of a task file: unknown keys are refused, types are not coerced, nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
