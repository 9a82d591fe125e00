"""What every test shares: a data folder of its own, and how long hypothesis looks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("tuner", deadline=None, max_examples=60)
settings.load_profile("tuner")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray cluster with eight logical GPUs for the whole session."""
    from tuner.cluster import cluster

    with cluster(8):
        yield


@pytest.fixture(autouse=True)
def data_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`$XDG_DATA_HOME` of this test alone: no test reads or leaves anything in the user's home."""
    home = tmp_path_factory.mktemp("data")
    monkeypatch.setenv("XDG_DATA_HOME", str(home))
    return home / "autotuner"
