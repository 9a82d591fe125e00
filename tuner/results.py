"""Results on disk: the versioned Parquet schema and the store; the only reader and writer of results.

    <root>/<study>/study.json              what was asked for: the task, the engine, the seed, versions
    <root>/<study>/trials/00007.parquet    one row: configuration, score, failure
    <root>/<study>/steps/00007.parquet     a row for each load level that was finished
    <root>/<study>/requests/00007.parquet  a row for each measured request

A trial's three files are written once, when it ends, requests first and the trial's own row last:
where `trials/00007.parquet` stands, trial 7 is whole. Each is written under a temporary name and then
renamed. `<root>` is a folder or any URI that pyarrow.fs opens. docs/results.md explains every column.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from tuner.errors import ResultsError, StudyError
from tuner.secrets import looks_secret

SCHEMA_VERSION = 1
_READERS = 16  # files at a time: an object store takes tens of milliseconds for each
STUDY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")  # one folder's, and no path out of the root
_NUMBERED = re.compile(r"\.?(\d+)\.parquet")  # a trial's file, or what was on its way to be one
_PART = re.compile(r"\..+\.part")


def _schema(*fields: tuple[str, pa.DataType]) -> pa.Schema:
    return pa.schema(fields, metadata={"tuner_schema_version": str(SCHEMA_VERSION)})


_TEXT, _F64, _I32, _I64, _BOOL = pa.string(), pa.float64(), pa.int32(), pa.int64(), pa.bool_()
_TIME = pa.timestamp("us", tz="UTC")

TRIALS = _schema(
    ("study", _TEXT),
    ("trial", _I32),
    ("kind", _TEXT),
    ("config", _TEXT),
    ("command", _TEXT),
    ("gpus", _I32),
    ("gpu_ids", pa.list_(_TEXT)),
    ("gpu_model", _TEXT),
    ("gpu_others", _TEXT),
    ("node", _TEXT),
    ("model", _TEXT),
    ("engine", _TEXT),
    ("engine_version", _TEXT),
    ("simulated", _BOOL),
    ("effective_args", _TEXT),
    ("kv_tokens", _I64),
    ("objective_name", _TEXT),
    ("objective_unit", _TEXT),
    ("objective", _F64),
    ("score", _F64),
    ("loss", _F64),
    ("objectives", _TEXT),
    ("slo_met", _BOOL),
    ("slo_hard_failed", _BOOL),
    ("slo_worst", _TEXT),
    ("slo_worst_violation", _F64),
    ("failure_stage", _TEXT),
    ("failure_cause", _TEXT),
    ("failure_detail", _TEXT),
    ("failure_evidence", _TEXT),
    ("failure_progress", _F64),
    ("exit_code", _I32),
    ("stopped_early", _BOOL),
    ("curve", _TEXT),
    ("attempts", _I32),
    ("lost", _TEXT),
    ("levels_planned", _I32),
    ("levels_finished", _I32),
    ("max_load", _F64),
    ("max_loads", _TEXT),
    ("started_at", _TIME),
    ("start_s", _F64),
    ("duration_s", _F64),
    ("log_path", _TEXT),
)

LATENCIES = ("latency", "ttft", "tpot", "itl")
STATISTICS = ("mean", "p50", "p90", "p95", "p99")

STEPS = _schema(
    ("study", _TEXT),
    ("trial", _I32),
    ("step", _I32),
    ("scenario", _TEXT),
    ("concurrency", _I32),
    ("request_rate", _F64),
    ("duration_s", _F64),
    ("requests_ok", _I32),
    ("requests_failed", _I32),
    ("errors", _TEXT),
    *((f"{latency}_{statistic}_s", _F64) for latency in LATENCIES for statistic in STATISTICS),
    *((f"{latency}_ci95_s", _F64) for latency in LATENCIES),
    *((f"{latency}_n", _I64) for latency in LATENCIES),
    ("input_tok_s", _F64),
    ("output_tok_s", _F64),
    ("total_tok_s", _F64),
    ("total_tok_s_per_gpu", _F64),
    ("output_tok_s_per_gpu", _F64),
    ("requests_per_s", _F64),
    ("goodput", _F64),
    ("success_rate", _F64),
    ("client_lag_s", _F64),
    ("client_lag_mean_s", _F64),
    ("client_lag_p99_s", _F64),
    ("client_cpu", _F64),
    ("client_limit", _TEXT),
    ("late_p99_s", _F64),
    ("requests_held", _I32),
    ("engine_running_mean", _F64),
    ("engine_queued_mean", _F64),
    ("engine_queued_max", _F64),
    ("engine_kv_use_mean", _F64),
    ("engine_kv_use_max", _F64),
    ("engine_cache_hit_rate", _F64),
    ("gpu_memory_max_bytes", _F64),
    ("gpu_memory_max_share", _F64),
    ("gpu_use_mean", _F64),
    ("gpu_power_mean_w", _F64),
    ("gpu_energy_j", _F64),
    ("gpu_energy_per_token_j", _F64),
    ("gpu_energy_per_output_token_j", _F64),
)

REQUESTS = _schema(
    ("study", _TEXT),
    ("trial", _I32),
    ("step", _I32),
    ("request", _I32),
    ("sent_s", _F64),
    ("ttft_s", _F64),
    ("tpot_s", _F64),
    ("e2e_s", _F64),
    ("input_tokens", _I64),
    ("output_tokens", _I64),
    ("error", _TEXT),
    ("http_status", _I32),
    ("late_s", _F64),
)

_ABOUT: dict[str, tuple[type, ...]] = {  # what is asked of a study.json, and what it has to be
    **dict.fromkeys(("study", "engine"), (str,)),
    **dict.fromkeys(("engine_version", "kind", "ended_early", "base_url"), (str, type(None))),
    "planned_trials": (int,),
    "space_size": (int, float, type(None)),
    "task": (dict,),
    **dict.fromkeys(("task.task_name", "task.description", "task.runtime_image_tag"), (str,)),
    **dict.fromkeys(
        ("task.model", "task.parameters", "task.optimization", "task.slo", "task.engine"), (dict,)
    ),
    **dict.fromkeys(("task.model.id_or_path", "task.model.namespace"), (str,)),
    **dict.fromkeys(("task.engine.args", "task.engine.env"), (dict,)),
    "task.optimization.objective": (str, list),
}
TABLES = {"requests": REQUESTS, "steps": STEPS, "trials": TRIALS}  # in the order of writing


_JSON_COLUMNS = (
    ("trials", "config"),
    ("trials", "effective_args"),
    ("trials", "objectives"),
    ("trials", "curve"),
    ("trials", "max_loads"),
    ("steps", "errors"),
)


def _decoded(text: Any) -> dict[str, Any]:
    """A JSON column's value; a null is an empty object. ValueError where it is no object."""
    value = json.loads(text) if isinstance(text, str) else {}
    if not isinstance(value, dict):
        raise ValueError(f"{text!r} is not a JSON object")
    return value


def data_home() -> Path:
    """`$XDG_DATA_HOME/autotuner`, by default `~/.local/share/autotuner`."""
    configured = os.environ.get("XDG_DATA_HOME", "")
    home = Path(configured) if Path(configured).is_absolute() else Path.home() / ".local" / "share"
    return home / "autotuner"


def default_root() -> Path:
    """Where studies are kept unless told otherwise."""
    return data_home() / "results"


@dataclass(frozen=True)
class StudyResults:
    """A study as read from disk.

    `trials`, `steps` and `requests` have the columns of the schemas above, ordered by trial; the JSON
    columns (`config`, `effective_args`, `objectives`, `curve`, `errors`) are dictionaries. `skipped` names
    the files that were unreadable, and why.
    """

    about: dict[str, Any]
    trials: pd.DataFrame
    steps: pd.DataFrame
    requests: pd.DataFrame
    skipped: tuple[str, ...] = ()


class ResultStore:
    """One study's results below `root`, a local folder or a URI that pyarrow.fs opens."""

    def __init__(self, root: str | Path, study: str) -> None:
        if not STUDY_NAME.fullmatch(study):
            raise StudyError(
                f"no study can be called {study!r}: letters, digits, - _ and . only, at most 120"
            )
        self.study = study
        self.root = str(root)
        self._fs, base = _filesystem(root)
        self._folder = f"{base.rstrip('/')}/{study}"
        self.location = _below(self.root, study)

    def exists(self) -> bool:
        """Whether the study was created."""
        with _io_errors(f"look for {self.location}"):
            return bool(self._fs.get_file_info(f"{self._folder}/study.json").type == pa.fs.FileType.File)

    def require_new(self) -> None:
        """StudyError where the study exists already, ResultsError where nothing can be written here."""
        if self.exists():
            raise StudyError(f"study {self.study!r} exists already in {self.root}")
        with _io_errors(f"create {self.location}"):
            self._fs.create_dir(self._folder.rpartition("/")[0], recursive=True)

    def create(self, about: dict[str, Any]) -> None:
        """Makes the study's folders and its study.json, which names the study and says what is `about`.

        StudyError where it exists already.
        """
        if self.exists():
            raise StudyError(f"study {self.study!r} exists already in {self.root}")
        with _io_errors(f"create {self.location}"):
            for table in TABLES:
                self._fs.create_dir(f"{self._folder}/{table}", recursive=True)
            self._write("study.json", json.dumps({"study": self.study, **about}, indent=2).encode())

    def amend(self, **about: Any) -> None:
        """Adds to study.json what is known at the end only."""
        with _io_errors(f"amend {self.location}"):
            self._write("study.json", json.dumps({**self.about(), **about}, indent=2).encode())

    def about(self) -> dict[str, Any]:
        """What study.json says, with what everybody asks of it; ResultsError where it is something else."""
        with (
            _io_errors(f"read {self.location}/study.json"),
            self._fs.open_input_stream(f"{self._folder}/study.json") as stream,
        ):
            return self._readable(json.loads(stream.read()))

    def _readable(self, about: Any) -> dict[str, Any]:
        """`about` with its defaults: another version may have written it, or nobody who knows of studies."""
        if not isinstance(about, dict):
            raise ResultsError(f"cannot read {self.location}: study.json holds no object")
        whole: dict[str, Any] = {"study": self.study, "task": {}, **about}
        for path, kinds in _ABOUT.items():
            *above, key = path.split(".")
            section: Any = whole
            for name in above:
                section = section.get(name, {})
            found = section.get(key, kinds)  # JSON has no tuples: one says that there is nothing
            if not isinstance(found, (*kinds, tuple)):
                raise ResultsError(f"cannot read {self.location}: in study.json {path} is {found!r:.60}")
        return whole

    def next_number(self) -> int:
        """The first number that no file bears, whole, torn or foreign, so that none is overwritten."""
        selectors = [pa.fs.FileSelector(f"{self._folder}/{table}", allow_not_found=True) for table in TABLES]
        with _io_errors(f"list {self.location}"):
            names = [info.base_name for each in selectors for info in self._fs.get_file_info(each)]
        numbers = [int(found[1]) for found in map(_NUMBERED.match, names) if found]
        return max(numbers, default=-1) + 1

    def tidy(self) -> None:
        """Removes what a driver that was killed had half written."""
        with _io_errors(f"tidy {self.location}"):
            for info in self._fs.get_file_info(pa.fs.FileSelector(self._folder, recursive=True)):
                if _PART.fullmatch(info.base_name):
                    self._fs.delete_file(info.path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other drivers of this machine out of the study; StudyError where one is in it.

        The lock goes with the process that holds it, however that ends. A URI has no lock. Leaves nothing
        behind where the study was not created meanwhile.
        """
        if not isinstance(self._fs, pa.fs.LocalFileSystem):
            yield
            return
        path = Path(self._folder, ".lock")
        with _io_errors(f"lock {self.location}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = path.open("w")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StudyError(f"study {self.study!r} is being run by another process") from None
            try:
                yield
            finally:
                if not self.exists():
                    path.unlink(missing_ok=True)
                    with suppress(OSError):
                        path.parent.rmdir()

    def in_use(self) -> bool:
        """Whether a driver is in the study; True as well where that cannot be told."""
        if not isinstance(self._fs, pa.fs.LocalFileSystem):
            return True
        try:
            with Path(self._folder, ".lock").open("r") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def write_trial(
        self, trial: dict[str, Any], steps: list[dict[str, Any]], requests: list[dict[str, Any]]
    ) -> None:
        """Writes a trial's rows, the `trials` row last; columns that a row lacks are null."""
        rows = {"requests": requests, "steps": steps, "trials": [trial]}
        with _io_errors(f"write trial {trial['trial']} to {self.location}"):
            for name, schema in TABLES.items():
                table = pa.Table.from_pylist(rows[name], schema=schema)
                sink = pa.BufferOutputStream()
                pq.write_table(table, sink)
                self._write(f"{name}/{trial['trial']:05d}.parquet", sink.getvalue())

    def write_file(self, name: str, content: bytes) -> str:
        """Writes a further file of the study (a report, say) whole; returns where it lies."""
        with _io_errors(f"write {name} to {self.location}"):
            self._write(name, content)
        return _below(self.location, name)

    def read(self) -> StudyResults:
        """Everything that is on disk; StudyError where there is no such study."""
        if not self.exists():
            raise StudyError(f"no study {self.study!r} in {self.root}")
        with _io_errors(f"read {self.location}"):
            about = self.about()
            frames: dict[str, pd.DataFrame] = {}
            skipped: list[str] = []
            for name, schema in TABLES.items():
                frames[name] = self._read_table(name, schema, skipped)
        for name in ("steps", "requests"):  # those of a trial without a row of its own were cut off
            whole = frames[name]["trial"].isin(frames["trials"]["trial"])
            frames[name] = frames[name][whole].reset_index(drop=True)
        for name, column in _JSON_COLUMNS:
            frames[name][column] = frames[name][column].map(_decoded)
        return StudyResults(about=about, skipped=tuple(skipped), **frames)

    def _read_table(self, name: str, schema: pa.Schema, skipped: list[str]) -> pd.DataFrame:
        selector = pa.fs.FileSelector(f"{self._folder}/{name}", allow_not_found=True)
        tables = [schema.empty_table()]
        found = sorted(self._fs.get_file_info(selector), key=lambda info: (len(info.path), info.path))
        files = [
            info for info in found if info.path.endswith(".parquet") and not info.base_name.startswith(".")
        ]
        with ThreadPoolExecutor(_READERS) as pool:
            contents = list(pool.map(self._content, files))
        for info, content in zip(files, contents, strict=True):
            try:
                if isinstance(content, OSError):
                    raise content
                table = pq.read_table(pa.BufferReader(content))
                table = _with_missing_columns(table, schema).select(schema.names).cast(schema)
                _require_sound(table, name, info.base_name)
                tables.append(table)
            except (pa.ArrowException, OSError, KeyError, ValueError, RecursionError) as error:
                skipped.append(f"{info.path}: {' '.join(str(error).split())}")
        frame: pd.DataFrame = pa.concat_tables(tables).to_pandas()
        return frame

    def _content(self, info: pa.fs.FileInfo) -> bytes | OSError:
        """A whole file, which asked for part by part takes an object store three times as long.

        The error where it cannot be read; raised where that is the network's, and says nothing of the file.
        """
        try:
            with self._fs.open_input_stream(info.path) as stream:
                return bytes(stream.read())
        except OSError as error:
            if isinstance(self._fs, pa.fs.LocalFileSystem) or isinstance(error, FileNotFoundError):
                return error
            raise

    def _write(self, name: str, content: Any) -> None:
        folder, _, base = f"{self._folder}/{name}".rpartition("/")
        temporary = f"{folder}/.{base}.part"
        try:
            with self._fs.open_output_stream(temporary) as stream:
                stream.write(content)
            self._fs.move(temporary, f"{folder}/{base}")
        except BaseException:
            with suppress(OSError):
                self._fs.delete_file(temporary)
            raise


def studies(root: str | Path) -> list[str]:
    """Names of the studies below `root`, the newest first."""
    filesystem, base = _filesystem(root)
    selector = pa.fs.FileSelector(base, allow_not_found=True)
    found = []
    with _io_errors(f"list the studies in {root}"):
        for folder in filesystem.get_file_info(selector):
            about = filesystem.get_file_info(f"{folder.path}/study.json")
            if about.type == pa.fs.FileType.File and STUDY_NAME.fullmatch(folder.base_name):
                found.append((about.mtime_ns or 0, str(folder.base_name)))
    return [name for _, name in sorted(found, reverse=True)]


def _with_missing_columns(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table` with nulls for the columns that an earlier version did not write."""
    if "trial" not in table.column_names or "study" not in table.column_names:
        raise ValueError("is no table of this schema")
    for column in schema:
        if column.name not in table.column_names:
            table = table.append_column(column, pa.nulls(len(table), column.type))
    return table


def _require_sound(table: pa.Table, name: str, file: str) -> None:
    """ValueError or ArrowException for what is not a trial's, though it has the columns: a copy, say."""
    number = re.fullmatch(r"([0-9]{5,9})\.parquet", file)
    if number is None:
        raise ValueError("is not called like a trial's")
    table.validate(full=True)  # also that texts are UTF-8
    if any(trial != int(number[1]) for trial in table["trial"].to_pylist()):
        raise ValueError("holds another trial's rows")
    if name == "trials" and len(table) != 1:
        raise ValueError(f"holds {len(table)} rows, and a trial has one")
    for column in (column for owner, column in _JSON_COLUMNS if owner == name):
        list(map(_decoded, table[column].to_pylist()))


def _below(root: str, name: str) -> str:
    """`name` below a folder or a URI, whose options stay at its end."""
    place, mark, options = root.partition("?") if "://" in root else (root, "", "")
    return f"{place.rstrip('/')}/{name}{mark}{options}"


def _filesystem(root: str | Path) -> tuple[pa.fs.FileSystem, str]:
    if "://" not in str(root):
        return pa.fs.LocalFileSystem(), str(Path(root).expanduser().absolute())
    if looks_secret(str(root)):
        raise StudyError(
            "results cannot be kept at a URI with keys in it, which process lists and logs would show: "
            "leave them to the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
        )
    try:
        filesystem, base = pa.fs.FileSystem.from_uri(str(root))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise StudyError(f"results cannot be kept at {root}: {error}") from error
    return filesystem, base


@contextmanager
def _io_errors(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException, ValueError, RecursionError) as error:
        raise ResultsError(f"cannot {what}: {error}") from error
