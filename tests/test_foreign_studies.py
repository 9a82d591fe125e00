"""Studies that were torn, copied, or written by somebody else: read with what is wrong named, or refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import studies
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tuner.analysis import next_steps, summary
from tuner.errors import ResultsError, TunerError
from tuner.export import FORMATS, best_deployment
from tuner.report import html, page, terminal
from tuner.results import TABLES, ResultStore, StudyResults

CONFIGS = studies.grid(studies.PARAMETERS, 4, 1)
NAME = "llama-tune"


def used(found: StudyResults) -> None:
    """Whatever is done with a study; a TunerError is an answer."""
    for use in (summary, next_steps, lambda each: terminal(each, "x"), lambda each: html(each, "x")):
        with suppress(TunerError):
            use(found)  # type: ignore[operator]
    for form in FORMATS.values():
        with suppress(TunerError):
            form(best_deployment(found))


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots are made, but not turned into text: that is matplotlib's, and takes most of a second."""
    monkeypatch.setattr(page, "svg", lambda figure, title, name: "")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """The folder of a small sound study."""
    studies.make(CONFIGS, requests=3, repeats=CONFIGS[:1] * 2).write(tmp_path)
    return tmp_path / NAME


def read(folder: Path) -> StudyResults:
    return ResultStore(folder.parent, folder.name).read()


# --- rows ----------------------------------------------------------------------------------------------


def cells(kind: pa.DataType) -> st.SearchStrategy[Any]:
    if pa.types.is_list(kind):
        return st.none() | st.lists(st.text(max_size=3), max_size=2)
    if pa.types.is_timestamp(kind):
        return st.none()
    if pa.types.is_boolean(kind):
        return st.none() | st.booleans()
    if pa.types.is_integer(kind):
        return st.none() | st.sampled_from([-1, 0, 1, 2**31 - 1])
    if pa.types.is_floating(kind):
        return st.none() | st.sampled_from([math.nan, math.inf, -math.inf, -1.0, 0.0, 1e300])
    return st.none() | st.sampled_from(
        ["", "x", "<b>", "[]", "{}", '{"a": 1}', '{"a": {"loss": 1}}', "\x1b[31m"]
    )


@st.composite
def changes(draw: st.DrawFn) -> tuple[str, int, str, Any]:
    """(table, row, column, value)."""
    table = draw(st.sampled_from(list(TABLES)))
    column = draw(st.sampled_from([name for name in TABLES[table].names if name != "trial"]))
    return table, draw(st.integers(0, 5)), column, draw(cells(TABLES[table].field(column).type))


@given(made=st.lists(changes(), min_size=1, max_size=4), about=st.none() | st.just("maximize_throughput"))
@settings(max_examples=15)
@example(made=[("trials", number, "score", None) for number in range(6)], about=None)
@example(made=[("trials", number, "kind", None) for number in range(6)], about=None)
def test_any_row_of_the_right_types_is_used_or_left_out(
    made: list[tuple[str, int, str, Any]], about: str | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    study = studies.make(CONFIGS[:3], requests=2, repeats=CONFIGS[:1] * 2)
    if about:
        study.about["task"]["optimization"] = {"objective": about}
    for table, number, column, value in made:
        rows = getattr(study, table)
        rows[number % len(rows)][column] = value
    used(study.write(tmp_path_factory.mktemp("rows")).read())


# --- files ----------------------------------------------------------------------------------------------

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "without its end": lambda content: content[:-9],
    "a page of HTML": lambda content: b"<html>503 Service Unavailable</html>",
    "JSON": lambda content: b'{"trial": 1}',
}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named_and_the_rest_is_used(study: Path, table: str, damage: str) -> None:
    path = study / table / "00001.parquet"
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    found = read(study)
    assert [line.partition(": ")[0] for line in found.skipped] == [str(path)]
    assert list(found.trials["trial"]) == [0, *([] if table == "trials" else [1]), *range(2, 7)]
    assert all("\n" not in line for line in found.skipped)
    used(found)


@given(place=st.integers(0, 20_000), value=st.integers(0, 255), table=st.sampled_from(list(TABLES)))
@settings(max_examples=60)
def test_a_byte_that_has_changed_is_survived(
    place: int, value: int, table: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("flipped")
    studies.make(CONFIGS[:1], requests=2).write(root)
    path = root / NAME / table / "00001.parquet"
    content = bytearray(path.read_bytes())
    content[place % len(content)] = value
    path.write_bytes(content)
    found = read(root / NAME)
    assert len(found.skipped) <= 1 and set(found.trials["trial"]) <= {0, 1}


@pytest.mark.parametrize(
    "name", ["00009.parquet", "00001 (copy).parquet", "1.parquet", "x.parquet", "0000１.parquet"]
)
def test_a_copy_under_another_name_is_named_and_counts_once(study: Path, name: str) -> None:
    (study / "trials" / name).write_bytes((study / "trials" / "00001.parquet").read_bytes())
    found = read(study)
    assert [line.partition(": ")[0] for line in found.skipped] == [str(study / "trials" / name)]
    assert list(found.trials["trial"]) == list(range(7))


@pytest.mark.parametrize(
    "name", ["README.md", "00001.parquet.bak", ".00001.parquet.part", "below/00001.parquet"]
)
def test_what_is_no_parquet_file_is_nobodys_business(study: Path, name: str) -> None:
    (study / "trials" / name).parent.mkdir(exist_ok=True)
    (study / "trials" / name).write_bytes(b"x")
    found = read(study)
    assert found.skipped == () and len(found.trials) == 7


ROW = {"study": NAME, "trial": 1, "config": "{}"}


@pytest.mark.parametrize(
    "columns",
    [
        {"x": [1]},
        {**{name: [value] for name, value in ROW.items()}, "loss": ["not a number"]},
        {**{name: [value] * 2 for name, value in ROW.items()}},
        {**{name: [] for name in ROW}},
        {**{name: [value] for name, value in ROW.items()}, "trial": [None]},
        {**{name: [value] for name, value in ROW.items()}, "trial": ["1.5"]},
        {**{name: [value] for name, value in ROW.items()}, "config": ["[" * 10_000]},
        {**{name: [value] for name, value in ROW.items()}, "config": ["[1]"]},
    ],
    ids=["columns", "types", "rows", "no rows", "no trial", "half a trial", "deep", "no object"],
)
def test_a_table_that_is_none_of_ours_is_named(study: Path, columns: dict[str, list[Any]]) -> None:
    path = study / "trials" / "00001.parquet"
    pq.write_table(pa.table(columns), path)
    found = read(study)
    assert [line.partition(": ")[0] for line in found.skipped] == [str(path)]
    assert 1 not in set(found.trials["trial"])


def test_text_that_is_no_utf8_is_named(study: Path) -> None:
    table = pq.read_table(study / "trials" / "00001.parquet", partitioning=None)
    broken = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")]
    )
    index = table.column_names.index("node")
    pq.write_table(table.set_column(index, "node", broken), study / "trials" / "00001.parquet")
    found = read(study)
    assert len(found.skipped) == 1 and 1 not in set(found.trials["trial"])
    used(found)


# --- study.json -----------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=5,
)


@given(content=st.binary(max_size=20) | JSON.map(json.dumps).map(str.encode))
@settings(max_examples=10)
@example(content=b"[" * 100_000)
@example(content=b'"\\ud800"')
@example(content=b"{}")
def test_any_study_json_is_read_or_a_results_error(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("about")
    studies.make(CONFIGS[:1], requests=2).write(root)
    (root / NAME / "study.json").write_bytes(content)
    try:
        found = read(root / NAME)
    except ResultsError as error:
        assert NAME in str(error)
    else:
        used(found)


ABOUT_KEYS = [
    *("study", "task", "engine", "engine_version", "simulated", "seed", "kind", "planned_trials"),
    *("ended_early", "started_at", "base_url", "space_size"),
]
TASK_KEYS = [
    *("model", "parameters", "optimization", "slo", "benchmark", "engine", "task_name", "description"),
    "runtime_image_tag",
]


@given(st.dictionaries(st.sampled_from(ABOUT_KEYS), JSON), st.dictionaries(st.sampled_from(TASK_KEYS), JSON))
@settings(max_examples=25)
def test_any_change_to_a_study_json_is_read_or_refused(about: dict[str, Any], task: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "svg", lambda figure, title, name: "")
        study = studies.make(CONFIGS[:1], requests=2)
        store = ResultStore("memory", NAME)
        changed = {**study.about, "task": {**study.about["task"], **task}, **about}
        try:
            sound = store._readable(changed)
        except ResultsError:
            return
        study.about.clear()
        study.about.update(sound)
        used(study.results())
