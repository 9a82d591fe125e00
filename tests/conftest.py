"""What every test shares: a data folder of its own, and how long hypothesis looks."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import settings

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a shell's background job; children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("tuner", deadline=None, max_examples=60)
settings.load_profile("tuner")

_PLUGINS = Path(__file__).parent / "plugins"  # packages with engines of their own, as if installed
# Tests of real engines, and tools, by the variable that names an interpreter which has it, or its command.
_OPT_IN = {
    "VLLM_PYTHON": "vllm",
    "SGLANG_PYTHON": "sglang",
    "GENAI_BENCH": "genai_bench",
    "MOTO_SERVER": "s3",
    "PUBLISH_PACKAGES": "publish",
}
collect_ignore = [folder for variable, folder in _OPT_IN.items() if not os.environ.get(variable)]


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One local Ray cluster with eight logical GPUs for the whole session; its workers have the plug-ins."""
    from tuner.cluster import cluster

    with ExitStack() as running:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(_PLUGINS), prepend=os.pathsep)
            patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("cluster")))  # its workers' own
            running.enter_context(cluster(8))
        yield


@pytest.fixture(autouse=True)
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`$XDG_DATA_HOME` of this test alone: no test reads or leaves anything in the user's home.

    Nor in the environment, which commands that a test calls may add to.
    """
    home = tmp_path_factory.mktemp("data")
    with mock.patch.dict(os.environ, {"XDG_DATA_HOME": str(home)}):
        yield home / "autotuner"
