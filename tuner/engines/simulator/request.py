"""One request as the scheduler sees it."""

from __future__ import annotations

from dataclasses import dataclass

from tuner.engines.simulator.radix import Node, Tokens
from tuner.engines.simulator.text import output_tokens


@dataclass(slots=True, eq=False)
class Request:
    """What was asked for, how far it has come, and what it holds.

    `generated` tokens have come out. `computed` tokens have keys and values in memory; the first `prefix` of
    them lie in the prefix cache, locked through `node`, the others belong to this request alone.
    `cached_tokens` is the part of the prompt that was found in the cache at the first admission.
    `finish_reason` is None, "length" or "abort"; `error` says why it was aborted, if the server did.
    """

    prompt: Tokens
    max_new_tokens: int
    ignore_eos: bool = False
    arrival_s: float = 0.0
    generated: int = 0
    computed: int = 0
    prefix: int = 0
    node: Node | None = None
    cached_tokens: int | None = None
    retractions: int = 0
    finish_reason: str | None = None
    error: str = ""

    def all_tokens(self) -> Tokens:
        """The prompt and what has been generated: what a prefill has to compute."""
        return self.prompt + output_tokens(self.generated) if self.generated else self.prompt

    def tokens_left(self) -> int:
        return self.max_new_tokens - self.generated
