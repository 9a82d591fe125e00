"""The Ray cluster that a study runs on: one that is there already, or a local one for its duration."""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray

from tuner.accelerators import kind_of
from tuner.capacity import Node
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
_ANSWERS_IN_S = 10.0
_SCRATCH, _HELD = "tuner-", "driver.lock"
_WORKER_ENV = {"RAY_CHDIR_TO_TRIAL_DIR": "0"}  # a relative model path stays relative to the task's folder


@contextmanager
def cluster(num_gpus: int | None, *, local_gpus: int | None = None) -> Iterator[None]:
    """Connects to the cluster that RAY_ADDRESS names, or starts a local one and ends it on exit.

    A local one has `num_gpus` GPUs, real or not; by default `local_gpus`, or those that Ray finds where
    that is None too. UsageError where `num_gpus` is given for a cluster that is there already.
    """
    for name, value in _TUNE_SETTINGS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what is lost is told in the study's own words
    if ray.is_initialized():
        yield
    elif address := os.environ.get("RAY_ADDRESS"):
        if num_gpus is not None:
            raise UsageError(
                f"--num-gpus describes a local machine; the cluster at {address} has its own GPUs: "
                "leave it out, or unset RAY_ADDRESS"
            )
        _connect(address)
        with _disconnecting():
            yield
    else:
        with _scratch() as folder:
            _start_local(folder, local_gpus if num_gpus is None else num_gpus)
            with _disconnecting():
                yield


@contextmanager
def _scratch() -> Iterator[str]:
    """A folder for a local cluster; those of drivers that were killed are removed first.

    Its path is short, because the sockets below it have a limit of 107 bytes. That its driver lives is told
    by a lock, which the kernel releases however that ends.
    """
    short = Path("/tmp" if Path("/tmp").is_dir() else tempfile.gettempdir())  # noqa: S108  a fresh folder in it
    for lock in short.glob(f"{_SCRATCH}*/{_HELD}"):
        with suppress(OSError), lock.open() as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
    with (
        tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=short, ignore_cleanup_errors=True) as folder,
        Path(folder, _HELD).open("w") as held,
    ):
        fcntl.flock(held, fcntl.LOCK_EX)
        yield folder


@contextmanager
def _disconnecting() -> Iterator[None]:
    """Disconnects at the end, with nothing left that would ask Ray afterwards.

    Tune leaves cycles with handles of actors in them. A collection in another thread, that which publishes
    for one, would ask Ray's core worker for them while it shuts down, and that ends this process.
    """
    try:
        yield
    finally:
        gc.collect()
        was_on = gc.isenabled()
        gc.disable()
        try:
            ray.shutdown()
        finally:
            if was_on:
                gc.enable()


def _connect(address: str) -> None:
    """UsageError where no cluster answers at `address`."""
    _require_answer(address)
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": _WORKER_ENV},
        )
    except (ConnectionError, ValueError) as error:
        reason = str(error).partition("\n")[0].partition(" To fix this")[0]
        raise UsageError(f"RAY_ADDRESS: no Ray cluster answers at {address!r}: {reason}") from error


def _require_answer(address: str) -> None:
    """UsageError where nothing listens at a `host:port`: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWERS_IN_S).close()
    except (OSError, OverflowError) as error:
        raise UsageError(f"RAY_ADDRESS: no Ray cluster answers at {address!r}: {error}") from error


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


def nodes() -> list[Node]:
    """The nodes that live at this moment."""
    every: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [_node(each) for each in every if each["Alive"]]


def _node(each: dict[str, Any]) -> Node:
    has, name = each["Resources"], f"{each['NodeName']} ({each['NodeID'][:8]})"
    return Node(each["NodeID"], name, has.get("GPU", 0.0), has.get("CPU", 0.0), kind_of(each["Labels"]))


def nodes_of(kind: str) -> list[Node]:
    """Those with GPUs of that kind; all where it is empty."""
    return [node for node in nodes() if not kind or node.kind == kind]


def gpus_by_kind() -> dict[str, float]:
    """The GPUs of the living nodes, by kind (see `accelerators`)."""
    found: dict[str, float] = {}
    for node in nodes():
        found[node.kind] = found.get(node.kind, 0.0) + node.gpus
    return found
