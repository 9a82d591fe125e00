"""docs/failures.md says what is so: every cause, and where every golden log comes from."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from tuner.failures import Cause

TEXT = (Path(__file__).parents[1] / "docs" / "failures.md").read_text()
LOGS = Path(__file__).parent / "data" / "logs"
CAUSES = re.findall(r"^\| `([^`.]+)` \| [^|]{10,} \| [^|]+ \|$", TEXT, re.MULTILINE)
LOG_ROWS = re.findall(r"^\| `(\S+\.log)` \| ([^|]+) \| (recorded|source) \|$", TEXT, re.MULTILINE)


def test_every_cause_is_explained() -> None:
    causes = sorted(Cause, key=lambda cause: cause.infrastructure)  # what the machine is to blame for last
    assert list(map(str, causes)) == CAUSES
    assert "The last five" in TEXT and sum(cause.infrastructure for cause in Cause) == 5


def test_every_log_is_listed() -> None:
    assert [name for name, _, _ in LOG_ROWS] == sorted(path.name for path in LOGS.glob("*.log"))


@pytest.mark.parametrize(("name", "cause", "origin"), LOG_ROWS)
def test_a_log_says_where_it_comes_from_and_is_tested_for_its_cause(
    name: str, cause: str, origin: str
) -> None:
    first = (LOGS / name).read_text().splitlines()[0]
    assert first.startswith("# Written from ") == (origin == "source")
    engine, _, log = name.removesuffix(".log").partition("-")
    [table] = [
        mark
        for mark in importlib.import_module(f"test_{engine}").test_a_log_tells_the_cause.pytestmark
        if mark.name == "parametrize"
    ]
    assert cause in {str(value) for row in table.args[1] if row[0] == log for value in row}
