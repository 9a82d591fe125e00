"""Where studies are kept: a folder, or any URI that pyarrow.fs opens."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.fs

from tuner.errors import ResultsError, StudyError
from tuner.secrets import looks_secret

READERS = 16  # files at a time: an object store takes tens of milliseconds for each
STUDY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")  # one folder's, and no path out of the root


def data_home() -> Path:
    """`$XDG_DATA_HOME/autotuner`, by default `~/.local/share/autotuner`."""
    configured = os.environ.get("XDG_DATA_HOME", "")
    home = Path(configured) if Path(configured).is_absolute() else Path.home() / ".local" / "share"
    return home / "autotuner"


def default_root() -> Path:
    """Where studies are kept unless told otherwise."""
    return data_home() / "results"


def fixed_root(root: str | Path | None) -> str:
    """`root`, or the default one, by a name that means the same in whatever folder a process runs."""
    if not root:
        return str(default_root())
    return str(root) if "://" in str(root) else str(Path(root).expanduser().absolute())


def new_study_name(task_name: str) -> str:
    """A name for a study of that task which begins now."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", task_name).strip("-._")[:60] or "study"
    return f"{slug}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def require_place(root: str | Path) -> None:
    """Makes the folder `root` where there is none; StudyError where no study can be kept there.

    ResultsError where that is an object store's fault.
    """
    filesystem, base = filesystem_of(root)
    if not isinstance(filesystem, pa.fs.LocalFileSystem):
        with io_errors(f"create {root}"):
            filesystem.create_dir(base, recursive=True)
        return
    _require_folder(root, base)
    try:
        Path(base).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(f"--results: results cannot be kept at {root}: {error.strerror}") from error
    if not os.access(base, os.W_OK | os.X_OK):
        raise StudyError(f"--results: results cannot be kept at {root}: it is not yours to write")


def _require_folder(root: str | Path, base: str) -> None:
    if Path(base).exists() and not Path(base).is_dir():
        raise StudyError(f"--results: results cannot be kept at {root}: it is no folder")


def studies(root: str | Path) -> list[str]:
    """Names of the studies below `root`, the one that began last first, whichever was resumed since.

    StudyError where `root` is a file.
    """
    filesystem, base = filesystem_of(root)
    if isinstance(filesystem, pa.fs.LocalFileSystem):
        _require_folder(root, base)
    selector = pa.fs.FileSelector(base, allow_not_found=True)
    with io_errors(f"list the studies in {root}"), ThreadPoolExecutor(READERS) as pool:
        folders = [
            each for each in filesystem.get_file_info(selector) if STUDY_NAME.fullmatch(each.base_name)
        ]
        began = pool.map(lambda folder: _began_s(filesystem, f"{folder.path}/study.json"), folders)
        found = [(at, str(each.base_name)) for at, each in zip(began, folders, strict=True) if at is not None]
    return [name for _, name in sorted(found, reverse=True)]


def _began_s(filesystem: pa.fs.FileSystem, path: str) -> float | None:
    """When a study began by its study.json, or else when that was written; None where there is none."""
    info = filesystem.get_file_info(path)
    if info.type != pa.fs.FileType.File:
        return None
    try:
        with filesystem.open_input_stream(path) as stream:
            return datetime.fromisoformat(json.loads(stream.read())["started_at"]).timestamp()
    except (OSError, KeyError, TypeError, ValueError, OverflowError, RecursionError):
        return (info.mtime_ns or 0) / 1e9


def below(root: str, name: str) -> str:
    """`name` below a folder or a URI, whose options stay at its end."""
    place, mark, options = root.partition("?") if "://" in root else (root, "", "")
    return f"{place.rstrip('/')}/{name}{mark}{options}"


def filesystem_of(root: str | Path) -> tuple[pa.fs.FileSystem, str]:
    if "://" not in str(root):
        return pa.fs.LocalFileSystem(), fixed_root(root)
    if looks_secret(str(root)):
        raise StudyError(
            "--results: results cannot be kept at a URI with keys in it, which process lists and logs would "
            "show: leave them to the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
        )
    try:
        filesystem, base = pa.fs.FileSystem.from_uri(str(root))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise StudyError(f"--results: results cannot be kept at {root}: {error}") from error
    return filesystem, base


@contextmanager
def io_errors(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException, ValueError, RecursionError) as error:
        raise ResultsError(f"cannot {what}: {error}") from error
