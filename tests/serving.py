"""The server of the tests: over real HTTP, its jobs in memory, so that no Ray is needed."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import uvicorn

from tuner.serve.api import create_app
from tuner.serve.jobs import Job, JobState, Order
from tuner.serve.tokens import digest

TOKEN = "a-token-of-the-tests"


class JobsInMemory:
    """Keeps what was ordered and runs nothing; a test says what became of it, or every job is `begun` so."""

    def __init__(self, begun: JobState = JobState.RUNNING) -> None:
        self._begun = begun
        self.orders: list[Order] = []
        self.jobs: list[Job] = []
        self.printed = "what the job printed\n"
        self._numbers = itertools.count()

    def start(self, order: Order) -> Job:
        job = Job(f"job-{next(self._numbers)}", order.study, self._begun, time.time())
        self.orders.append(order)
        self.jobs.insert(0, job)
        return job

    def stop(self, job: str) -> None:
        self.become(job, JobState.STOPPED)

    def become(self, job: str, state: JobState) -> None:
        ended = replace(self._job(job), state=state, ended_s=time.time() if state.over else 0.0)
        self.jobs = [ended if each.id == job else each for each in self.jobs]

    def _job(self, job: str) -> Job:
        return next(each for each in self.jobs if each.id == job)

    def known(self, root: str) -> list[Job]:
        return list(self.jobs)

    def output(self, job: str) -> str:
        return self.printed


@dataclass(frozen=True)
class Answer:
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def text(self) -> str:
        return self.content.decode()


@dataclass
class Served:
    """A server and how to ask it."""

    url: str
    root: Path
    jobs: JobsInMemory = field(default_factory=JobsInMemory)
    token: str | None = TOKEN

    def ask(
        self,
        path: str,
        *,
        method: str = "GET",
        body: Any = None,
        token: str | None = "",
        **headers: str,
    ) -> Answer:
        """`path` is below /api/v1/ unless it begins with a slash; `token` None sends none."""
        address = self.url + (path[1:] if path.startswith("/") else f"api/v1/{path}")
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if (token := self.token if token == "" else token) is not None:
            sent["Authorization"] = f"Bearer {token}"
        request = urllib.request.Request(address, data=body, method=method, headers=sent)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return Answer(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.headers, error.read())

    def post(self, path: str, body: Any = b"", **headers: str) -> Answer:
        """A POST of a task as bytes, or of plain data as JSON."""
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        return self.ask(path, method="POST", body=body, **headers)


@contextmanager
def served(root: Path, *, token: str | None = TOKEN, jobs: JobsInMemory | None = None) -> Iterator[Served]:
    """The application over `root`, on loopback, in a thread of its own."""
    jobs = jobs or JobsInMemory()
    app = create_app(str(root), jobs, token and digest(token))
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield Served(f"http://127.0.0.1:{listening.getsockname()[1]}/", root, jobs, token)
    finally:
        server.should_exit = True
        thread.join()
