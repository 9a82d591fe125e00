"""Speculative decoding as a rate: a step yields as many tokens as a chain of guesses holds.

No text is guessed. Each draft token is accepted with one probability, whatever came before, until the first
that is not (Leviathan et al. 2023, arXiv:2211.17192, section 2.1); the model's own token comes on top. What
is accepted really hangs on model, draft and text: give what you measured with `--speculative-acceptance`.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from tuner.engines.simulator.architecture import Model
from tuner.engines.simulator.flags import ServerArgs

# The chance that one draft token is accepted. EAGLE and EAGLE3: chosen so that SGLang's defaults for Llama
# speed up a single stream of Llama-3.1-8B on an H100 as SGLang's documentation has it for MT-bench (158
# tokens/s, 244 with EAGLE-2, 373 with EAGLE-3). NEXTN: DeepSeek-V3's report (arXiv:2412.19437, section 5.4.3)
# has 85 to 90 % for the second token. STANDALONE and NGRAM: guesses, as draft models and texts differ most.
ACCEPTANCE = {"EAGLE": 0.43, "EAGLE3": 0.63, "NEXTN": 0.85, "STANDALONE": 0.6, "NGRAM": 0.3}
MAX_RUNNING_REQUESTS = 48  # SGLang's default while it speculates
_NGRAM_DRAFT_TOKENS = 12


@dataclass(frozen=True)
class Speculation:
    """`steps` draft tokens in a row, `topk` branches, `draft_tokens` in all to be verified at once.

    `acceptance` is the chance of one draft token.
    """

    algorithm: str
    steps: int
    topk: int
    draft_tokens: int
    acceptance: float

    @property
    def chance(self) -> float:
        """That the next token is among the drafts for its place.

        As many drafts stand there on average as the tree has room for; each has the same chance at what the
        likelier ones left over. An estimate.
        """
        width = min(self.topk, (self.draft_tokens - 1) / self.steps)
        return float(1 - (1 - self.acceptance) ** width)

    def draw(self, rng: Random) -> int:
        """The tokens of one step for one request."""
        tokens = 1
        while tokens <= self.steps and rng.random() < self.chance:
            tokens += 1
        return tokens


def speculation_of(args: ServerArgs, model: Model) -> Speculation | None:
    """What the flags ask for, with SGLang's defaults; None without --speculative-algorithm.

    ValueError, in SGLang's words, for sizes that it refuses.
    """
    if (algorithm := args.speculative_algorithm) is None:
        return None
    steps, topk, drafts = (
        args.speculative_num_steps,
        args.speculative_eagle_topk,
        args.speculative_num_draft_tokens,
    )
    if algorithm == "NGRAM":
        drafts = drafts or _NGRAM_DRAFT_TOKENS
        steps, topk = drafts - 1, 1
    elif steps is None:
        if topk is not None or drafts is not None:
            raise ValueError("AssertionError")  # SGLang's has no text either
        steps, topk, drafts = _defaults(algorithm, model)
    if steps is None or topk is None or drafts is None or min(steps, topk, drafts - 1) < 1:
        raise ValueError("TypeError: speculative sizes must all be given, and positive")
    if topk == 1:
        drafts = steps + 1
    acceptance = args.speculative_acceptance
    return Speculation(
        algorithm, steps, topk, drafts, ACCEPTANCE[algorithm] if acceptance is None else acceptance
    )


def _defaults(algorithm: str, model: Model) -> tuple[int, int, int]:
    """(steps, topk, draft tokens) that SGLang 0.5.23 chooses: a tree for Llama, else a chain."""
    llama = model.name.startswith("llama") and algorithm != "STANDALONE"
    return (5, 4, 8) if llama else (3, 1, 4)
