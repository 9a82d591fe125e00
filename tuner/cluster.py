"""The Ray cluster that a study runs on: one that is there already, or a local one for its duration."""

from __future__ import annotations

import logging
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from tuner.accelerators import kind_of
from tuner.errors import TunerError, UsageError

# Read by Tune in the driver: no CSV, JSON and TensorBoard files beside ours, no checkpoints of its own
# state (results on disk are the truth), and Ctrl-C is this package's.
_TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "RAY_AIR_NEW_OUTPUT": "0",  # the other one prints tables at verbosity 0
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
_WORKER_ENV = {"RAY_CHDIR_TO_TRIAL_DIR": "0"}  # a relative model path stays relative to the task's folder


@dataclass(frozen=True)
class Resources:
    """What the cluster's living nodes have; the largest node's bound a single trial."""

    gpus: float
    largest_node_gpus: float
    cpus: float
    largest_node_cpus: float


@contextmanager
def cluster(num_gpus: int | None, *, local_gpus: int | None = None) -> Iterator[Resources]:
    """Connects to the cluster that RAY_ADDRESS names, or starts a local one and ends it on exit.

    A local one has `num_gpus` GPUs, real or not; by default `local_gpus`, or those that Ray finds where
    that is None too. UsageError where `num_gpus` is given for a cluster that is there already.
    """
    for name, value in _TUNE_SETTINGS.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        yield _resources()
    elif address := os.environ.get("RAY_ADDRESS"):
        if num_gpus is not None:
            raise UsageError(
                f"--num-gpus describes a local machine; the cluster at {address} has its own GPUs"
            )
        ray.init(address=address, log_to_driver=False, runtime_env={"env_vars": _WORKER_ENV})
        with _disconnecting():
            yield _resources()
    else:
        # Short, because the sockets below it have a limit of 107 bytes.
        short = "/tmp" if Path("/tmp").is_dir() else None  # noqa: S108  a fresh folder below it
        with tempfile.TemporaryDirectory(prefix="tuner-", dir=short, ignore_cleanup_errors=True) as folder:
            _start_local(folder, local_gpus if num_gpus is None else num_gpus)
            with _disconnecting():
                yield _resources()


@contextmanager
def _disconnecting() -> Iterator[None]:
    try:
        yield
    finally:
        ray.shutdown()


def _start_local(folder: str, num_gpus: int | None) -> None:
    """Starts Ray once, and once again: on a busy machine its start can time out (ray issue 65983)."""
    for last in (False, True):
        try:
            ray.init(
                address="local",
                num_gpus=num_gpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": _WORKER_ENV},
                _temp_dir=folder,
            )
            return
        except (RuntimeError, TimeoutError, ConnectionError) as error:
            ray.shutdown()
            if last:
                raise TunerError(f"Ray did not start: {error}") from error


def gpus_by_kind() -> dict[str, float]:
    """The GPUs of the living nodes, by kind (see `accelerators`)."""
    found: Counter[str] = Counter()
    for node in _living():
        found[kind_of(node["Labels"])] += node["Resources"].get("GPU", 0.0)
    return dict(found)


def resources_of(kind: str) -> Resources:
    """What the living nodes with GPUs of that kind have."""
    return _resources([node for node in _living() if kind_of(node["Labels"]) == kind])


def _living() -> list[dict[str, Any]]:
    every: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in every if node["Alive"]]


def _resources(living: list[dict[str, Any]] | None = None) -> Resources:
    nodes = [node["Resources"] for node in (_living() if living is None else living)]
    gpus = [node.get("GPU", 0.0) for node in nodes]
    cpus = [node.get("CPU", 0.0) for node in nodes]
    return Resources(sum(gpus), max(gpus, default=0.0), sum(cpus), max(cpus, default=0.0))
