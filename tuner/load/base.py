"""What a load generator is. Knows nothing of engines: a base URL and a model name are all it gets."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tuner.metrics import Distribution, RequestRecord
from tuner.prompts import Prompt
from tuner.workload import LoadLevel


@dataclass(frozen=True)
class Target:
    """The server that a load is put on: an OpenAI-compatible one at `base_url` (without /v1).

    `tokenizer` is where the model's is to be had, a folder or a hub id, for a tool that wants one. With an
    `api_key` every request bears it (`Authorization: Bearer`); no text of this object shows it.
    """

    base_url: str
    model: str
    extra_params: Mapping[str, Any]
    tokenizer: str = ""
    api_key: str = field(default="", repr=False)


def completion_call(target: Target, prompt: Prompt) -> tuple[bytes, int]:
    """The body of a streamed /v1/completions call for `prompt`, and how many tokens it asks for."""
    body = {
        "model": target.model,
        "prompt": prompt.text,
        "max_tokens": prompt.output_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
        **target.extra_params,
    }
    asked = body["max_tokens"]
    return json.dumps(body).encode(), asked if isinstance(asked, int) else prompt.output_tokens


@dataclass(frozen=True)
class LoadResult:
    """Every measured request of one load level.

    `window_s` is the length of the measured window: from the first measured request's sending to the
    moment at which a slot came free and stayed so, because the number or the time was reached (so the
    concurrency is whole within it); in an open loop, to when the next request would have been due.
    `client_lag_s` is the longest time for which the client's event loop answered nothing, `client_lag` how
    late it was at any moment; `client_cpu` is the share of one core that it used (a tool that does not tell
    has zeros and None). `aborted` says
    that the run ended early because `healthy` said no, `stalled` that it did because nothing came back for
    any request in flight. `held` counts the requests of an open loop that had to wait when they were due,
    because as many as may be were open. `warmup` are warm-up requests that were in flight when the window
    began, with a negative `sent_s`: what was served of them within it was throughput. `gaps_s` are the
    times between successive reads that brought tokens, of all requests that succeeded. `started_s` is when
    the window began (`perf_counter`; None where the tool does not tell). `said` is how the first answer with
    a status of failure began.
    """

    records: tuple[RequestRecord, ...]
    window_s: float
    client_lag_s: float = 0.0
    aborted: bool = False
    stalled: bool = False
    held: int = 0
    warmup: tuple[RequestRecord, ...] = ()
    gaps_s: Sequence[float] = ()
    client_lag: Distribution | None = None
    client_cpu: float = 0.0
    started_s: float | None = None
    said: str = ""

    @property
    def window(self) -> tuple[float, float] | None:
        """From when to when (`perf_counter`) it was measured; None where that is not known."""
        return None if self.started_s is None else (self.started_s, self.started_s + self.window_s)


@dataclass(frozen=True)
class Glance:
    """What a load level has shown when `share` of it was done, by its time or by its requests.

    `records` are those of the requests that have ended well so far, from stamps alone: nothing is read
    within the window, so a first read counts as the first token, and every token asked for as served.
    """

    share: float
    records: tuple[RequestRecord, ...]
    window_s: float


GLANCES = (0.25, 0.5, 0.75)  # the shares of a load level at which a glance is taken


class LoadGenerator(Protocol):
    """Puts load levels on a server."""

    name: str

    def require(self) -> None:
        """UsageError where this machine lacks what it takes to run."""
        ...

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
        """Puts `level` on `target` and returns what every request showed.

        Never raises for what the server does: a refused, broken or late response is a record with an
        error. Returns within `timeout_s` (whatever is still in flight then is a TIMEOUT record), within
        about a second after `healthy()` has turned False (`aborted`), and after `stall_s` seconds in which
        nothing came back (`stalled`; what is in flight is TIMEOUT records). `seen` is given a glance at
        each of `GLANCES`, by a generator that can take one.
        """
        ...
