"""genai-bench as a load generator: its command is run, its JSON is read. For a second opinion.

It needs some 5 s around each load level, rounds time up to whole minutes, does not keep to the number of
requests, and counts the time in which it stops as time that it served: rates are low by some 20 %. When
requests were sent is not in its results.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

from tuner.errors import UsageError
from tuner.load.base import Glance, LoadResult, Target
from tuner.loopback import unproxied
from tuner.metrics import RequestError, RequestRecord
from tuner.scenarios import Deterministic
from tuner.workload import LoadLevel

PROGRAM = "GENAI_BENCH"  # the environment variable that names it where it is not on the PATH
_POLL_S = 0.25
_MOST = 2**31  # seconds or tokens that are believed
_KINDS = {  # by the code that it gives to what has none
    408: RequestError.TIMEOUT,
    503: RequestError.CONNECTION,  # none came about, or it broke
}


class GenaiBench:
    """Load by the command `genai-bench` 0.0.5, a process of its own for each level."""

    name = "genai-bench"

    def require(self) -> None:
        _program()

    def run(
        self,
        target: Target,
        level: LoadLevel,
        *,
        healthy: Callable[[], bool],
        timeout_s: float,
        stall_s: float = math.inf,
        seen: Callable[[Glance], None] | None = None,
    ) -> LoadResult:
        """Puts `level` on `target`; see `LoadGenerator.run`. UsageError where the tool is not there.

        Its warm-up and its seeds are its own. That nothing comes back cannot be seen from here: `stall_s`
        is not kept, nothing is `seen` before the end; of a run that was cut short no more than that is known.
        """
        deadline_s = time.monotonic() + timeout_s
        with tempfile.TemporaryDirectory(prefix="genai-bench-") as folder:
            with _running(_command(target, level, folder), folder) as process:
                while process.poll() is None and healthy() and time.monotonic() < deadline_s:
                    time.sleep(_POLL_S)
                ended, aborted = process.poll() is not None, not healthy()
            found = list(Path(folder, "run").glob("*_time_*s.json"))
            if not ended or not found:
                error = RequestError.TIMEOUT if not ended and not aborted else RequestError.CONNECTION
                return _failed(error, aborted=aborted)
            return read_results(found[0].read_bytes(), level)


def read_results(content: bytes, level: LoadLevel) -> LoadResult:
    """What genai-bench wrote of a level. Failures are counted from its requests, not from its error rate.

    What is no such file counts as one request with a malformed answer: the level has failed.
    """
    asked = level.scenario.output_tokens if isinstance(level.scenario, Deterministic) else 0
    try:
        found = json.loads(content)
        records = [_record(request, asked) for request in found["individual_request_metrics"]]
        numbered = tuple(replace(record, number=number) for number, record in enumerate(records))
        return LoadResult(numbered, _seconds(found["aggregated_metrics"]["run_duration"]))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return _failed(RequestError.MALFORMED)


def _failed(error: RequestError, *, aborted: bool = False) -> LoadResult:
    return LoadResult((RequestRecord(0.0, None, None, 0, 0, error),), 0.0, aborted=aborted)


def _record(seen: dict[str, Any], asked: int) -> RequestRecord:
    code = seen.get("error_code")
    if code:
        status = _tokens(code)
        return RequestRecord(0.0, None, None, 0, 0, _KINDS.get(status, RequestError.HTTP), status)
    tokens = _tokens(seen["num_output_tokens"])
    error = RequestError.TRUNCATED if tokens < asked else None
    ttft_s, e2e_s = _seconds(seen["ttft"]), _seconds(seen["e2e_latency"])
    if ttft_s > e2e_s:
        raise ValueError("an answer that ends before it begins")
    return RequestRecord(0.0, ttft_s, e2e_s, _tokens(seen["num_input_tokens"]), tokens, error, HTTPStatus.OK)


def _seconds(value: Any) -> float:
    if not 0 <= (seconds := float(value)) < _MOST:
        raise ValueError(f"{value} is no number of seconds")
    return seconds


def _tokens(value: Any) -> int:
    """Of tokens, or a status."""
    if not 0 <= (number := int(value)) < _MOST:
        raise ValueError(f"{value} is no number of tokens")
    return number


def _program() -> str:
    program = os.environ.get(PROGRAM) or shutil.which("genai-bench")
    if program is None:
        raise UsageError(f"benchmark.tool: genai-bench is not on the PATH, and {PROGRAM} does not name it")
    return program


def _command(target: Target, level: LoadLevel, folder: str) -> list[str]:
    options = {
        "api-backend": "sglang",  # as OpenAI's, but lets ignore_eos through
        "api-base": target.base_url,
        "api-key": "none",
        "api-model-name": target.model,
        "model-tokenizer": target.tokenizer or target.model,
        "task": "text-to-text",
        "traffic-scenario": str(level.scenario),
        "num-concurrency": level.concurrency,
        "max-time-per-run": max(1, math.ceil(level.max_time_s / 60)),  # minutes
        "max-requests-per-run": level.max_requests,
        "additional-request-params": json.dumps(dict(target.extra_params)),
        "experiment-base-dir": folder,
        "experiment-folder-name": "run",
        "log-dir": folder,
    }
    if level.prefix_tokens:
        options["prefix-len"] = level.prefix_tokens
    return [_program(), "benchmark", *(f"--{name}={value}" for name, value in options.items())]


@contextmanager
def _running(command: list[str], folder: str) -> Iterator[subprocess.Popen[bytes]]:
    """The tool as a process group of its own, of which nothing is left afterwards."""
    environment = unproxied(os.environ | {"ENABLE_UI": "false", "TRANSFORMERS_VERBOSITY": "error"})
    with Path(folder, "output.log").open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, start_new_session=True
        )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
