"""What every result store must do. Subclass `ResultStoreContract` and override `root`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from tuner.errors import StudyError
from tuner.results import TABLES, ResultStore, studies

ABOUT = {"study": "first", "seed": 7, "task": {"task_name": "été"}}


def value_of(kind: pa.DataType, number: int) -> Any:
    """Some value of an Arrow type, another one for another number."""
    if pa.types.is_timestamp(kind):
        return datetime(2026, 1, 2, 3, 4, 5, number, tzinfo=UTC)
    if pa.types.is_list(kind):
        return [f"gpu-{number}", "é"]
    if pa.types.is_boolean(kind):
        return number % 2 == 0
    if pa.types.is_integer(kind):
        return number
    return number + 0.1 if pa.types.is_floating(kind) else f"text {number}\nünd"


def full_row(table: str, trial: int, **values: Any) -> dict[str, Any]:
    """A row with a value in every column."""
    row = {field.name: value_of(field.type, i + trial) for i, field in enumerate(TABLES[table])}
    for name in ("config", "effective_args", "objectives", "max_loads", "curve", "errors"):
        if name in row:
            row[name] = json.dumps({"a": [1, None, "é"]})
    return {**row, "study": "first", "trial": trial, **values}


def row(trial: int, **values: Any) -> dict[str, Any]:
    return {"study": "first", "trial": trial, "config": json.dumps({"n": trial}), **values}


class Disk:
    """A root as pyarrow sees it, to break what a store wrote."""

    def __init__(self, root: str | Path) -> None:
        if "://" in str(root):
            self.fs, self.base = pa.fs.FileSystem.from_uri(str(root))
        else:
            self.fs, self.base = pa.fs.LocalFileSystem(), str(root)

    def put(self, path: str, content: bytes) -> None:
        with self.fs.open_output_stream(f"{self.base}/{path}") as stream:
            stream.write(content)

    def get(self, path: str) -> bytes:
        with self.fs.open_input_stream(f"{self.base}/{path}") as stream:
            return bytes(stream.read())

    def remove(self, path: str) -> None:
        self.fs.delete_file(f"{self.base}/{path}")

    def names(self, folder: str) -> list[str]:
        found = self.fs.get_file_info(pa.fs.FileSelector(f"{self.base}/{folder}", recursive=True))
        return sorted(Path(info.path).name for info in found if info.type == pa.fs.FileType.File)


def parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue())


class ResultStoreContract:
    """Holds wherever results are kept; `root` is an empty place that this test has for itself."""

    @pytest.fixture
    def root(self, tmp_path: Path) -> str | Path:
        """The folder or URI to keep studies at."""
        raise AssertionError("a subclass gives its root")

    @pytest.fixture
    def store(self, root: str | Path) -> ResultStore:
        """A store with its study made."""
        store = ResultStore(root, "first")
        store.create(ABOUT)
        return store

    @pytest.fixture
    def disk(self, root: str | Path) -> Disk:
        return Disk(root)

    def test_a_study_exists_once_it_was_created(self, root: str | Path) -> None:
        store = ResultStore(root, "first")
        assert not store.exists()
        assert studies(root) == []
        with pytest.raises(StudyError, match="no study 'first' in"):
            store.read()
        store.create(ABOUT)
        assert store.exists()
        assert ResultStore(root, "first").exists()
        assert not ResultStore(root, "second").exists()

    def test_a_new_study_is_empty_and_has_every_column(self, store: ResultStore) -> None:
        found = store.read()
        assert (found.about, found.skipped) == (ABOUT, ())
        for name, schema in TABLES.items():
            frame = getattr(found, name)
            assert (len(frame), list(frame.columns)) == (0, schema.names)

    def test_a_study_is_never_created_over_another(self, root: str | Path, store: ResultStore) -> None:
        store.write_trial(row(0), [], [])
        for again in (store, ResultStore(root, "first")):
            with pytest.raises(StudyError, match="exists already"):
                again.create({"seed": 8})
        assert store.read().about == ABOUT
        assert len(store.read().trials) == 1

    def test_every_column_comes_back_as_it_was_written(self, root: str | Path, store: ResultStore) -> None:
        steps = [full_row("steps", 3, step=0), full_row("steps", 3, step=1, concurrency=99)]
        requests = [full_row("requests", 3, request=number) for number in range(3)]
        trial = full_row("trials", 3)
        store.write_trial(trial, steps, requests)
        found = ResultStore(root, "first").read()
        assert found.skipped == ()
        for name, rows in {"trials": [trial], "steps": steps, "requests": requests}.items():
            frame = getattr(found, name)
            assert len(frame) == len(rows)
            for (_, got), expected in zip(frame.iterrows(), rows, strict=True):
                for column, value in expected.items():
                    if column in ("config", "effective_args", "objectives", "max_loads", "curve", "errors"):
                        assert got[column] == json.loads(value)
                    elif column == "gpu_ids":
                        assert list(got[column]) == value
                    else:
                        assert got[column] == value, column

    def test_what_a_row_lacks_is_null(self, store: ResultStore, disk: Disk) -> None:
        store.write_trial(row(0, score=None), [{"study": "first", "trial": 0, "step": 0}], [])
        found = store.read()
        trial, step = found.trials.iloc[0], found.steps.iloc[0]
        encoded = ("config", "effective_args", "objectives", "max_loads", "curve")
        for column in set(TABLES["trials"].names) - {"study", "trial", *encoded}:
            assert trial[column] is None or pd.isna(trial[column]), column
        assert (trial["effective_args"], step["errors"]) == ({}, {})
        kept = pq.read_table(pa.BufferReader(disk.get("first/trials/00000.parquet")))
        assert kept.schema.names == TABLES["trials"].names
        assert kept["score"].null_count == kept["effective_args"].null_count == 1

    def test_trials_come_in_the_order_of_their_numbers(self, store: ResultStore) -> None:
        numbers = [7, 0, 100_000, 99_999, 12]
        for number in numbers:
            store.write_trial(row(number), [{"trial": number, "step": 0}], [{"trial": number, "request": 0}])
        found = store.read()
        for frame in (found.trials, found.steps, found.requests):
            assert list(frame["trial"]) == sorted(numbers)
            assert list(frame.index) == list(range(len(numbers)))

    def test_a_trial_written_again_replaces_the_first(self, store: ResultStore) -> None:
        store.write_trial(row(0, score=1.0), [{"trial": 0, "step": 0}, {"trial": 0, "step": 1}], [])
        store.write_trial(row(0, score=2.0), [{"trial": 0, "step": 0}], [])
        found = store.read()
        assert (list(found.trials["score"]), len(found.steps)) == ([2.0], 1)

    def test_a_half_written_trial_is_invisible(self, store: ResultStore, disk: Disk) -> None:
        for number in (0, 1):
            store.write_trial(row(number), [{"trial": number, "step": 0}], [{"trial": number, "request": 0}])
        disk.remove("first/trials/00001.parquet")
        disk.put("first/trials/.00001.parquet.part", disk.get("first/trials/00000.parquet")[:200])
        found = store.read()
        assert [list(frame["trial"]) for frame in (found.trials, found.steps, found.requests)] == [[0]] * 3
        assert found.skipped == ()

    def test_nothing_temporary_is_left_behind(self, store: ResultStore, disk: Disk) -> None:
        store.write_trial(row(0), [], [])
        store.write_file("report.html", b"x")
        assert disk.names("first") == ["00000.parquet"] * 3 + ["report.html", "study.json"]

    @pytest.mark.parametrize("kept", [0, 4, -30])
    def test_a_torn_file_is_named_and_skipped(self, store: ResultStore, disk: Disk, kept: int) -> None:
        for number in (0, 1):
            store.write_trial(row(number), [{"trial": number, "step": 0}], [])
        disk.put("first/trials/00000.parquet", disk.get("first/trials/00000.parquet")[:kept])
        found = store.read()
        assert list(found.trials["trial"]) == list(found.steps["trial"]) == [1]
        assert len(found.skipped) == 1
        assert "first/trials/00000.parquet: " in found.skipped[0]

    def test_a_foreign_file_is_named_and_skipped(self, store: ResultStore, disk: Disk) -> None:
        store.write_trial(row(0), [], [])
        disk.put("first/trials/a.parquet", b"not parquet at all")
        disk.put("first/trials/b.parquet", parquet(pa.table({"x": [1]})))
        disk.put("first/steps/c.parquet", parquet(pa.table({name: ["x"] for name in TABLES["steps"].names})))
        disk.put("first/trials/README.txt", b"is no table")
        found = store.read()
        assert list(found.trials["trial"]) == [0]
        assert len(found.steps) == 0
        assert sorted(line.partition(": ")[0][-9:] for line in found.skipped) == [
            "a.parquet",
            "b.parquet",
            "c.parquet",
        ]

    def test_a_newer_file_with_further_columns_is_read(self, store: ResultStore, disk: Disk) -> None:
        store.write_trial(row(0, score=1.5), [], [])
        table = pq.read_table(pa.BufferReader(disk.get("first/trials/00000.parquet")))
        disk.put("first/trials/00000.parquet", parquet(table.append_column("later", pa.array(["x"]))))
        found = store.read()
        assert (list(found.trials["score"]), found.skipped) == ([1.5], ())
        assert list(found.trials.columns) == TABLES["trials"].names

    def test_a_further_file_is_written_whole(self, store: ResultStore, disk: Disk) -> None:
        for content in (b"first", b"second"):
            place = store.write_file("report.html", content)
            folder, mark, options = store.location.partition("?")
            assert place == f"{folder}/report.html{mark}{options}"
            assert disk.get("first/report.html") == content

    def test_studies_do_not_see_each_other(self, root: str | Path, store: ResultStore, disk: Disk) -> None:
        other = ResultStore(root, "second")
        other.create({"study": "second"})
        other.write_trial(row(5), [], [])
        disk.put("stray.txt", b"no study")
        assert len(store.read().trials) == 0
        assert list(other.read().trials["trial"]) == [5]
        assert sorted(studies(root)) == ["first", "second"]
