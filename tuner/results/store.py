"""The store of one study: the only reader and writer of its files.

A trial's three files are written once, when it ends, requests first and the trial's own row last:
where `trials/00007.parquet` stands, trial 7 is whole. Each is written under a temporary name and then
renamed.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pandas as pd
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from tuner.errors import ResultsError, StudyError
from tuner.results.places import READERS, STUDY_NAME, below, filesystem_of, io_errors, require_place
from tuner.results.schema import ABOUT, JSON_COLUMNS, TABLES, decoded, require_sound, with_missing_columns

_LOCK_TRIED, _LOCK_POLL_S = 10, 0.05
_NUMBERED = re.compile(r"\.?(\d+)\.parquet")  # a trial's file, or what was on its way to be one
_PART = re.compile(r"\..+\.part")


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
        self._fs, base = filesystem_of(root)
        self._folder = f"{base.rstrip('/')}/{study}"
        self.location = below(self.root, study)

    def exists(self) -> bool:
        """Whether the study was created."""
        with io_errors(f"look for {self.location}"):
            return bool(self._fs.get_file_info(f"{self._folder}/study.json").type == pa.fs.FileType.File)

    def require_new(self) -> None:
        """StudyError where the study exists already, or no study can be kept here (see `require_place`)."""
        require_place(self.root)
        if self.exists():
            raise StudyError(f"study {self.study!r} exists already in {self.root}")

    def create(self, about: dict[str, Any]) -> None:
        """Makes the study's folders and its study.json, which names the study and says what is `about`.

        StudyError where it exists already.
        """
        if self.exists():
            raise StudyError(f"study {self.study!r} exists already in {self.root}")
        with io_errors(f"create {self.location}"):
            for table in TABLES:
                self._fs.create_dir(f"{self._folder}/{table}", recursive=True)
            self._write("study.json", json.dumps({"study": self.study, **about}, indent=2).encode())

    def amend(self, **about: Any) -> None:
        """Adds to study.json what is known at the end only."""
        with io_errors(f"amend {self.location}"):
            self._write("study.json", json.dumps({**self.about(), **about}, indent=2).encode())

    def about(self) -> dict[str, Any]:
        """What study.json says, with what everybody asks of it; ResultsError where it is something else."""
        with (
            io_errors(f"read {self.location}/study.json"),
            self._fs.open_input_stream(f"{self._folder}/study.json") as stream,
        ):
            return self._readable(json.loads(stream.read()))

    def _readable(self, about: Any) -> dict[str, Any]:
        """`about` with its defaults: another version may have written it, or nobody who knows of studies."""
        if not isinstance(about, dict):
            raise ResultsError(f"cannot read {self.location}: study.json holds no object")
        whole: dict[str, Any] = {"study": self.study, "task": {}, **about}
        for path, kinds in ABOUT.items():
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
        with io_errors(f"list {self.location}"):
            names = [info.base_name for each in selectors for info in self._fs.get_file_info(each)]
        numbers = [int(found[1]) for found in map(_NUMBERED.match, names) if found]
        return max(numbers, default=-1) + 1

    def tidy(self) -> None:
        """Removes what a driver that was killed had half written."""
        with io_errors(f"tidy {self.location}"):
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
        with self._lock(path):
            try:
                yield
            finally:
                if not self.exists():
                    path.unlink(missing_ok=True)
                    with suppress(OSError):
                        path.parent.rmdir()

    def _lock(self, path: Path) -> IO[str]:
        """The lock at `path`, held until it is closed."""
        for left in range(_LOCK_TRIED, -1, -1):
            with io_errors(f"lock {self.location}"), suppress(FileNotFoundError), ExitStack() as opened:
                path.parent.mkdir(parents=True, exist_ok=True)
                lock = opened.enter_context(path.open("w"))
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if os.path.samestat(os.fstat(lock.fileno()), path.stat()):  # else its holder removed it
                        opened.pop_all()
                        return lock
                except BlockingIOError:  # a driver holds it for long, whoever asks about one for an instant
                    time.sleep(_LOCK_POLL_S if left else 0)
        raise StudyError(f"study {self.study!r} is being run by another process")

    def held(self) -> bool | None:
        """Whether a driver of this machine is in the study; None where no lock tells: a URI has none."""
        if not isinstance(self._fs, pa.fs.LocalFileSystem):
            return None
        try:
            with Path(self._folder, ".lock").open() as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def write_trial(
        self, trial: dict[str, Any], steps: list[dict[str, Any]], requests: list[dict[str, Any]]
    ) -> None:
        """Writes a trial's rows, the `trials` row last; columns that a row lacks are null."""
        rows = {"requests": requests, "steps": steps, "trials": [trial]}
        with io_errors(f"write trial {trial['trial']} to {self.location}"):
            for name, schema in TABLES.items():
                table = pa.Table.from_pylist(rows[name], schema=schema)
                sink = pa.BufferOutputStream()
                pq.write_table(table, sink)
                self._write(f"{name}/{trial['trial']:05d}.parquet", sink.getvalue())

    def write_file(self, name: str, content: bytes) -> str:
        """Writes a further file of the study (a report, say) whole; returns where it lies."""
        with io_errors(f"write {name} to {self.location}"):
            self._write(name, content)
        return below(self.location, name)

    def read_file(self, name: str) -> bytes | None:
        """What `write_file` wrote; None where there is no such file."""
        with io_errors(f"read {name} of {self.location}"):
            try:
                with self._fs.open_input_stream(f"{self._folder}/{name}") as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                return None

    def new_trials(self, known: Container[int]) -> list[dict[str, Any]]:
        """The rows of the trials that are not `known`, as they were written, in the order of their numbers.

        Files that cannot be read are left out: `read` names them.
        """
        with io_errors(f"read {self.location}"):
            tables = self._read_tables("trials", TABLES["trials"], [], known)
            return [row for table in tables for row in table.to_pylist()]

    def read(self) -> StudyResults:
        """Everything that is on disk; StudyError where there is no such study."""
        if not self.exists():
            raise StudyError(f"no study {self.study!r} in {self.root}")
        with io_errors(f"read {self.location}"):
            about = self.about()
            frames: dict[str, pd.DataFrame] = {}
            skipped: list[str] = []
            for name, schema in reversed(TABLES.items()):  # a trial that ends meanwhile is not half there
                frames[name] = pa.concat_tables(self._read_tables(name, schema, skipped)).to_pandas()
        for name in ("steps", "requests"):  # those of a trial without a row of its own were cut off
            whole = frames[name]["trial"].isin(frames["trials"]["trial"])
            frames[name] = frames[name][whole].reset_index(drop=True)
        for name, column in JSON_COLUMNS:
            frames[name][column] = frames[name][column].map(decoded)
        return StudyResults(about=about, skipped=tuple(skipped), **frames)

    def _read_tables(
        self, name: str, schema: pa.Schema, skipped: list[str], known: Container[int] = ()
    ) -> list[pa.Table]:
        """A table for each trial that is not `known`, after an empty one; adds to `skipped` what is none."""
        selector = pa.fs.FileSelector(f"{self._folder}/{name}", allow_not_found=True)
        tables = [schema.empty_table()]
        found = sorted(self._fs.get_file_info(selector), key=lambda info: (len(info.path), info.path))
        files = [
            info
            for info in found
            if info.path.endswith(".parquet") and not info.base_name.startswith(".")
            if not ((number := _NUMBERED.match(info.base_name)) and int(number[1]) in known)
        ]
        with ThreadPoolExecutor(READERS) as pool:
            contents = list(pool.map(self._content, files))
        for info, content in zip(files, contents, strict=True):
            try:
                if isinstance(content, OSError):
                    raise content
                table = pq.read_table(pa.BufferReader(content))
                table = with_missing_columns(table, schema).select(schema.names).cast(schema)
                require_sound(table, name, info.base_name)
                tables.append(table)
            except (pa.ArrowException, OSError, KeyError, ValueError, RecursionError) as error:
                skipped.append(f"{info.path}: {' '.join(str(error).split())}")
        return tables

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
