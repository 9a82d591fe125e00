"""Where studies are kept: a folder, or any URI that pyarrow.fs opens."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.fs

from tuner.errors import ResultsError, StudyError
from tuner.secrets import looks_secret

STUDY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")  # one folder's, and no path out of the root


def data_home() -> Path:
    """`$XDG_DATA_HOME/autotuner`, by default `~/.local/share/autotuner`."""
    configured = os.environ.get("XDG_DATA_HOME", "")
    home = Path(configured) if Path(configured).is_absolute() else Path.home() / ".local" / "share"
    return home / "autotuner"


def default_root() -> Path:
    """Where studies are kept unless told otherwise."""
    return data_home() / "results"


def studies(root: str | Path) -> list[str]:
    """Names of the studies below `root`, the newest first."""
    filesystem, base = filesystem_of(root)
    selector = pa.fs.FileSelector(base, allow_not_found=True)
    found = []
    with io_errors(f"list the studies in {root}"):
        for folder in filesystem.get_file_info(selector):
            about = filesystem.get_file_info(f"{folder.path}/study.json")
            if about.type == pa.fs.FileType.File and STUDY_NAME.fullmatch(folder.base_name):
                found.append((about.mtime_ns or 0, str(folder.base_name)))
    return [name for _, name in sorted(found, reverse=True)]


def below(root: str, name: str) -> str:
    """`name` below a folder or a URI, whose options stay at its end."""
    place, mark, options = root.partition("?") if "://" in root else (root, "", "")
    return f"{place.rstrip('/')}/{name}{mark}{options}"


def filesystem_of(root: str | Path) -> tuple[pa.fs.FileSystem, str]:
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
def io_errors(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException, ValueError, RecursionError) as error:
        raise ResultsError(f"cannot {what}: {error}") from error
