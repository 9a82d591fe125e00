"""A table of results as JSON, CSV or Parquet, for whoever reads it elsewhere. Knows nothing of HTTP."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import numpy as np
import pandas as pd

from tuner.errors import UsageError
from tuner.results import TABLES


class Form(StrEnum):
    """How a table is written."""

    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"

    @property
    def media_type(self) -> str:
        """Its Content-Type."""
        return {
            "json": "application/json",
            "csv": "text/csv; charset=utf-8",
            "parquet": "application/vnd.apache.parquet",
        }[self]


def written(frame: pd.DataFrame, table: str, form: Form, columns: Sequence[str] = ()) -> bytes:
    """`frame`, which has the columns of `table`, or of them `columns`; times are ISO 8601, nulls are null.

    In JSON the columns with objects are objects, in CSV and Parquet they are JSON text, as in the files of
    the study; so are lists in CSV. UsageError for a column that the table has not.
    """
    schema = TABLES[table]
    if unknown := [name for name in columns if name not in schema.names]:
        raise UsageError(f"{table} has no {', '.join(map(repr, unknown))}")
    chosen = [name for name in schema.names if not columns or name in columns]
    frame = frame[chosen]
    if form is Form.JSON:
        records = frame.to_dict("records")
        return json.dumps([{name: _plain(row[name]) for name in chosen} for row in records]).encode()
    as_text = dict | list | np.ndarray if form is Form.CSV else dict
    texts = frame.map(lambda value: json.dumps(_plain(value)) if isinstance(value, as_text) else value)
    if form is Form.CSV:
        return texts.to_csv(index=False).encode()
    sink = io.BytesIO()
    texts.to_parquet(sink, index=False, schema=_of(schema, chosen))
    return sink.getvalue()


def _of(schema: Any, names: Sequence[str]) -> Any:
    for name in [each for each in schema.names if each not in names]:
        schema = schema.remove(schema.get_field_index(name))
    return schema


def _plain(value: Any) -> Any:
    """A cell as JSON has it, which knows no infinity."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if hasattr(value, "isoformat"):
        return None if pd.isna(value) else value.isoformat()
    if hasattr(value, "tolist"):  # numpy's scalars and arrays
        value = value.tolist()
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return None if value is pd.NA else value
