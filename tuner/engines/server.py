"""Starting an HTTP server engine: a free port, a process, a first token; and reading why it failed.

Adapters give the argv, the environment and the signs of each failure; everything else is here.
"""

from __future__ import annotations

import errno
import json
import math
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any

from tuner.engines.base import ServerInfo
from tuner.engines.ports import taken_by_another
from tuner.engines.process import EngineProcess
from tuner.failures import Cause, Failure, Stage, TrialFailed

HOST = "127.0.0.1"
_POLL_S = 0.05
_PORTS_TRIED = 3
_FLUSHES_TRIED = 100
_FINAL = {400, 404, 405, 422}  # the first token is asked for as every model must take it
_REFUSED_S = 30.0  # for which such an answer must last
_MOST_SAID = 300  # bytes of it that are shown
_MOST_BYTES = 64 * 2**20  # of an answer; a /server_info has 37 KB, a /metrics less than 1 MB
_NO_PROGRAM = {errno.ENOENT, errno.EACCES, errno.ENOEXEC}
_EVIDENCE_LINES = 25
_LINES_AFTER = 5
# Of any engine, where none of its own signs is found.
_HOST_MEMORY = re.compile(r"\bMemoryError\b|std::bad_alloc|Cannot allocate memory")
_LINE_CHARACTERS = 2000  # a pattern with `.*` in it takes their square, where a line repeats how it begins
_EXCEPTION = re.compile(r"(\w+\.)*\w*(Error|Exception)(: |$)")  # the last line of a Python traceback
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy stands before loopback


@dataclass(frozen=True)
class Sign:
    """A line of an engine's log that tells a cause: the first sign in an adapter's table that is found."""

    pattern: re.Pattern[str]
    cause: Cause

    @classmethod
    def of(cls, pattern: str, cause: Cause) -> Sign:
        return cls(re.compile(pattern), cause)


# The lines of CUDA, NCCL and torch (2.13), whatever engine prints them. NCCL reports memory that is short as
# an error of its own, so signs of a lack of memory stand before these.
OF_THE_GPUS = (
    Sign.of(r"NCCL error|nccl(System|UnhandledCuda|Remote|Internal)Error", Cause.DRIVER),
    Sign.of(r"no NVIDIA driver|driver version is insufficient|[Nn]o CUDA-capable device", Cause.DRIVER),
    Sign.of(r"CUDA driver initialization failed|Can't initialize NVML|uncorrectable .*ECC", Cause.DRIVER),
    Sign.of(r"CUDA error: (unknown error|initialization error|.*busy or unavailable)", Cause.DRIVER),
)


@dataclass
class Server:
    """A server that has served a token (a `RunningEngine`)."""

    process: EngineProcess
    signs: Sequence[Sign]
    base_url: str
    model: str
    info: ServerInfo = field(default_factory=lambda: ServerInfo(version=""))
    start_s: float = 0.0
    flush_paths: Sequence[str] = ("flush_cache",)  # to POST to, so that cached prefixes are forgotten
    api_key: str = ""  # it is of this trial alone, and asks for none

    def alive(self) -> bool:
        return self.process.poll() is None

    def raise_if_failed(self) -> None:
        code = self.process.poll()
        if code is not None:
            raise TrialFailed(self.failure(Stage.LOAD, code))

    def failure(self, stage: Stage, code: int) -> Failure:
        """Why it ended with exit code `code`, by its log and by what the kernel did meanwhile."""
        found = diagnose(stage, code, self.process.log(), self.signs)
        if found.cause is not Cause.CRASH or not self.process.starved():
            return found
        detail = f"the kernel has killed a process for lack of memory; {found.detail}"
        return replace(found, cause=Cause.OUT_OF_MEMORY, detail=detail)

    def flush_cache(self) -> None:
        with suppress(OSError, ValueError):  # a dead server is found by raise_if_failed
            for path in self.flush_paths:
                for _ in range(_FLUSHES_TRIED):
                    answer = call(f"{self.base_url}/{path}", body={}, timeout_s=30.0)
                    if not (isinstance(answer, dict) and answer.get("success") is False):
                        break
                    time.sleep(_POLL_S)  # vLLM refuses while a request that was cut off holds its blocks


def call(url: str, *, body: Any = None, timeout_s: float = 5.0, api_key: str = "") -> Any:
    """GET, or POST of `body` as JSON; the answer as JSON or text. OSError unless it is 200, and whole.

    A key is for this server only: where it sends one on to another, the key stays behind.
    """
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310  http only
    if api_key:
        request.add_unredirected_header("Authorization", f"Bearer {api_key}")
    try:
        with _direct.open(request, timeout=timeout_s) as response:
            content = response.read(_MOST_BYTES + 1)
    except HTTPException as error:  # who answers speaks no HTTP, or went away in mid-answer
        raise OSError(f"answers what is no HTTP: {error!r}") from error
    if len(content) > _MOST_BYTES:
        raise OSError(f"answers more than {_MOST_BYTES:,} bytes")
    text = content.decode(errors="replace")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def free_port() -> int:
    """A port of loopback that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def on_loopback(arguments: Sequence[str], port: int) -> list[str]:
    """`arguments` of a server with loopback for their `--host` and `port` for their `--port`.

    TrialFailed where they do not say each exactly once, and by its name: the last word would be another's.
    """
    found = list(arguments)
    for flag, value in (("--host", HOST), ("--port", str(port))):
        said = [place for place, word in enumerate(found) if _may_mean(word, flag)]
        if [found[place] for place in said] != [flag] or said[0] + 1 == len(found):
            detail = f"the command must give {flag} once, so that it can be another"
            raise TrialFailed(Failure(Stage.CHECK, Cause.INVALID_FLAGS, detail))
        found[said[0] + 1] = value
    return found


def _may_mean(word: str, flag: str) -> bool:
    """Whether `word` is the flag, the flag with its value, or an abbreviation, which argparse takes."""
    name = word.partition("=")[0]
    return len(name) > 3 and flag.startswith(name)


def diagnose(stage: Stage, code: int | None, log: str, signs: Sequence[Sign]) -> Failure:
    """The failure that exit code and log tell; CRASH, with the last exception, where no sign is found.

    The evidence is the lines up to the telling one, and a few after it.
    """
    lines = [line[:_LINE_CHARACTERS].rstrip() for line in log.splitlines() if line.strip()]
    for sign in (*signs, Sign(_HOST_MEMORY, Cause.OUT_OF_MEMORY)):
        for number in range(len(lines) - 1, -1, -1):
            if sign.pattern.search(lines[number]):
                detail = lines[number].strip()[:300]
                return Failure(stage, sign.cause, detail, _around(lines, number), code)
    raised = [number for number, line in enumerate(lines) if _EXCEPTION.match(line)]
    told = raised[-1] if raised else len(lines) - 1
    last = lines[told].strip()[:200] if lines else "no output"
    ended = f"ended by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
    what = "last exception" if raised else "last line"
    return Failure(stage, Cause.CRASH, f"{ended}; {what}: {last}", _around(lines, told), code)


def _status_of(error: OSError) -> tuple[str, bool]:
    """`HTTP 404: ...` of a server that answers, and whether such an answer is its last word."""
    if not isinstance(error, urllib.error.HTTPError):
        return "", False
    with suppress(OSError, HTTPException):
        text = " ".join(error.read(_MOST_SAID).decode(errors="replace").split())
        return f"HTTP {error.code}: {text or error.reason}", error.code in _FINAL
    return f"HTTP {error.code}", error.code in _FINAL


def _around(lines: Sequence[str], number: int) -> str:
    end = min(len(lines), number + 1 + _LINES_AFTER)
    return "\n".join(lines[max(0, end - _EVIDENCE_LINES) : end])


def _last_lines(log: str) -> str:
    return "\n".join(line[:_LINE_CHARACTERS] for line in log.splitlines()[-_EVIDENCE_LINES:])


@contextmanager
def launched(
    argv_for_port: Any,
    *,
    env: Mapping[str, str],
    log_path: Path,
    timeout_s: float,
    model: str,
    signs: Sequence[Sign],
    then: Sequence[str] = (),
) -> Iterator[Server]:
    """Starts `argv_for_port(port)`, waits for its first token, ends its process tree on exit.

    A port that was taken in between is no fault of the configuration: two more are tried. That the
    server which answers is the one started is known by the owner of its socket. `then` is given for a
    server in a container, which is no descendant of the process: it ends that container.
    """
    for attempt in range(1, _PORTS_TRIED + 1):
        port = free_port()
        began = time.monotonic()
        with _started(argv_for_port(port), env, log_path, then) as process:
            server = Server(process, signs, f"http://{HOST}:{port}", model)
            try:
                _await_token(server, began + timeout_s, may_be_anothers=not then)
            except TrialFailed as failed:
                if failed.failure.cause is Cause.PORT_TAKEN and attempt < _PORTS_TRIED:
                    continue
                raise
            server.start_s = time.monotonic() - began
            yield server
            return


def _started(
    argv: Sequence[str], env: Mapping[str, str], log_path: Path, then: Sequence[str]
) -> EngineProcess:
    """TrialFailed where it cannot be: by CRASH if its program is none, else the machine is at fault."""
    try:
        return EngineProcess(argv, env=env, log_path=log_path, then=then)
    except OSError as error:
        is_none = error.filename == argv[0] and error.errno in _NO_PROGRAM
        cause = Cause.CRASH if is_none else Cause.INTERNAL
        raise TrialFailed(Failure(Stage.START, cause, f"cannot be started: {error}")) from error


def _require_own(server: Server) -> None:
    """PORT_TAKEN where another process listens: SGLang waits twelve minutes for one that says nothing."""
    port = int(server.base_url.rpartition(":")[2])
    if taken_by_another(server.process.pid, port) and server.alive():
        detail = f"port {port} is another server's: none of this engine's processes listens on it"
        raise TrialFailed(Failure(Stage.START, Cause.PORT_TAKEN, detail, _last_lines(server.process.log())))


def _await_token(server: Server, deadline: float, *, may_be_anothers: bool) -> None:
    body = {"model": server.model, "prompt": "Hello", "max_tokens": 1, "temperature": 0}
    said, refused_at = "", math.inf
    while True:
        if (code := server.process.poll()) is not None:
            raise TrialFailed(server.failure(Stage.START, code))
        now = time.monotonic()
        if now >= deadline:
            detail = "no token was served within the start timeout" + (f"; it answers {said}" if said else "")
            evidence = _last_lines(server.process.log())
            raise TrialFailed(Failure(Stage.START, Cause.START_TIMEOUT, detail, evidence))
        if may_be_anothers:
            _require_own(server)
        if now > refused_at + _REFUSED_S:
            detail = f"answers a completion with {said}"
            raise TrialFailed(Failure(Stage.START, Cause.CRASH, detail, _last_lines(server.process.log())))
        try:
            answer = call(f"{server.base_url}/v1/completions", body=body, timeout_s=min(deadline - now, 60.0))
        except OSError as error:  # refused while it loads, 503 while it warms up
            said, final = _status_of(error)
            refused_at = min(refused_at, now) if final else math.inf
            time.sleep(_POLL_S)
            continue
        if may_be_anothers:
            _require_own(server)  # who may have come in between
        if isinstance(answer, dict) and answer.get("choices"):
            return
        detail = f"answers a completion with {str(answer)[:200]!r}"
        raise TrialFailed(Failure(Stage.START, Cause.CRASH, detail, _last_lines(server.process.log())))
