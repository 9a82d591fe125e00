"""`tuner serve` while it runs: a Ray, the application on it, and the end of both."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, NoReturn

from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig

from tuner.cluster import cluster
from tuner.engines.gpus import all_gpus
from tuner.errors import TunerError, UsageError
from tuner.results import fixed_root, require_place
from tuner.serve.deployment import NAME, application
from tuner.serve.head import own_head
from tuner.serve.ray_jobs import RayJobs
from tuner.serve.tokens import digest
from tuner.study import LOGICAL_GPUS

_STOP_WITHIN_S = 70  # a job: Ray kills it after 60 s
_QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)


@dataclass(frozen=True)
class Place:
    """Where the server listens, and what it serves."""

    host: str = "127.0.0.1"
    port: int = 8000
    results: str | None = None
    num_gpus: int | None = None

    @property
    def root(self) -> str:
        """Where studies are kept; its jobs run in folders of their own, which Ray removes."""
        return fixed_root(self.results)

    @property
    def url(self) -> str:
        """Its address in a browser on this machine."""
        name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        return f"http://{f'[{name}]' if ':' in name else name}:{self.port}/"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server there."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


@contextmanager
def serving(place: Place, token: str | None) -> Iterator[str]:
    """Serves until it is left: on the cluster that RAY_ADDRESS names, or on one of its own, which ends too.

    It is given the address of its own cluster's dashboard, empty for another's. Studies that run on its own
    are interrupted at the end, and can be resumed. Without a `token` nobody is asked for one, which only
    loopback allows. UsageError before anything is started where it cannot be.
    """
    if token is None and not is_loopback(place.host):
        raise UsageError(f"--no-token: only on loopback, not on {place.host}")
    _require_free(place)
    require_place(place.root)
    own = not os.environ.get("RAY_ADDRESS")
    dashboard = ""
    with ExitStack() as running:
        if own:
            dashboard = running.enter_context(
                own_head(place.num_gpus or (None if all_gpus() else LOGICAL_GPUS))
            )
        running.enter_context(cluster(None if own else place.num_gpus))
        logging.getLogger("ray.serve").setLevel(logging.WARNING)  # its start is told in our own words
        options = HTTPOptions(host=place.host, port=place.port)
        serve.start(proxy_location="HeadOnly", http_options=options, logging_config=_QUIET)
        try:
            with _deaf_at_the_end():
                serve.run(application(place.root, token and digest(token)), name=NAME, logging_config=_QUIET)
                yield dashboard
        finally:
            if own:
                _stop_jobs(place.root)  # all else ends with Ray
            else:
                serve.delete(NAME)


def wait_for_the_end() -> None:
    """Returns at Ctrl-C or SIGTERM."""

    def interrupt(number: int, frame: Any) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        return


@contextmanager
def _deaf_at_the_end() -> Iterator[None]:
    """A second Ctrl-C would break into the clean-up, and leave a cluster behind."""
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _stop_jobs(root: str) -> None:
    """Ends the studies that still run, as `cancel` does, and waits for that."""
    jobs = RayJobs()
    try:
        for job in jobs.known(root):
            if not job.state.over:
                jobs.stop(job.id)
        deadline = time.monotonic() + _STOP_WITHIN_S
        while not all(job.state.over for job in jobs.known(root)) and time.monotonic() < deadline:
            time.sleep(0.2)
    except TunerError:
        return  # the cluster is gone already, and with it all that ran there


def _require_free(place: Place) -> None:
    """UsageError where another program listens there: Serve would say so in a log, and wait."""
    try:
        family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
        socket.create_server((place.host, place.port), family=family).close()
    except OSError as error:
        raise UsageError(f"--host {place.host} --port {place.port}: {error.strerror or error}") from error
