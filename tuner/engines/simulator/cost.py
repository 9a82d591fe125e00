"""How long a step takes: a roofline model of a transformer on a GPU, plus the host's time.

Every part of a step takes the longer of two times: to compute it, and to read what it needs from memory. The
formulas stand here, the numbers in `constants`, `gpus` and the model's architecture. A step is first taken
apart into what hangs on no fitted constant (`Parts`), and then timed: so a run that was traced once can be
timed again with other constants, which is how they are fitted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

from tuner.engines.simulator.architecture import Model
from tuner.engines.simulator.constants import Constants
from tuner.engines.simulator.flags import ServerArgs
from tuner.engines.simulator.gpus import Gpu
from tuner.engines.simulator.memory import Plan, attention_tp, kv_layer_bytes
from tuner.engines.simulator.models import find_model
from tuner.engines.simulator.weights import weights_of


class Parts(NamedTuple):
    """A step, in seconds at the datasheet's figures and in counts: numbers, or arrays of many steps'.

    `linear` and `experts` are arithmetic (`_fp8` where it is in fp8), `linear_read` and `experts_read` the
    reading of their weights, `prompts` the attention of a prefill, `cache` the arithmetic of a decode step's
    attention and `cache_read` its reading, `head` the reading of the output head, `link` the transfer of
    all-reduces. `allreduces` are counted by doublings of their GPUs, `layers` are those launched singly in a
    prefill, `eager` those in a decode step without a CUDA graph; `decodes` is 1 in a decode step. `requests`
    counts each by what is left of its host time. `serial` is 1 where the host's work is not overlapped.
    """

    linear: Any = 0.0
    linear_fp8: Any = 0.0
    linear_read: Any = 0.0
    experts: Any = 0.0
    experts_fp8: Any = 0.0
    experts_read: Any = 0.0
    prompts: Any = 0.0
    cache: Any = 0.0
    cache_read: Any = 0.0
    head: Any = 0.0
    link: Any = 0.0
    allreduces: Any = 0.0
    layers: Any = 0
    eager: Any = 0
    decodes: Any = 0
    requests: Any = 0.0
    draft: Any = 0.0  # what the model that guesses takes, timed already
    serial: Any = 0


def gpu_seconds(parts: Parts, c: Constants, longer: Callable[[Any, Any], Any] = max) -> Any:
    """What of a step the GPU takes."""
    linear = (parts.linear + parts.linear_fp8 / c.fp8_gemm) / c.gemm
    experts = (parts.experts + parts.experts_fp8 / c.fp8_gemm) / c.gemm
    busy = (
        longer(linear, parts.linear_read / c.memory)
        + longer(experts, parts.experts_read / c.memory)
        + parts.prompts / c.attention
        + longer(parts.cache / c.attention, parts.cache_read / c.memory)
        + parts.head / c.memory
        + parts.link
        + parts.allreduces * c.allreduce_s
        + parts.draft
    )
    return longer(busy, parts.eager * c.eager_layer_s)


def seconds(parts: Parts, c: Constants, longer: Callable[[Any, Any], Any] = max) -> Any:
    """How long a step of `parts` takes; with numpy's `maximum` for `longer`, many steps at once."""
    launches, work = (
        parts.layers * c.prefill_layer_s,
        parts.decodes * c.decode_s + parts.requests * c.request_s,
    )
    beside = launches + work * (1 - parts.serial)
    together = (gpu_seconds(parts, c, longer) ** c.overlap + beside**c.overlap) ** (1 / c.overlap)
    return together + work * parts.serial


class StepCost:
    """Durations in seconds of one model's steps on `args.tp_size` GPUs of one kind."""

    def __init__(self, args: ServerArgs, plan: Plan, model: Model, gpu: Gpu, constants: Constants) -> None:
        self.constants = constants
        self._model = model
        self._tp = args.tp_size
        self._graph_max_bs = plan.cuda_graph_max_bs
        self._serial = int(args.disable_overlap_schedule)
        self._per_request = 1 - constants.output + constants.output / max(1, args.stream_interval)
        self._set_linear(args, gpu)
        self._set_attention(args, gpu)
        self._speculation = plan.speculation
        self._draft = _draft_cost(args, plan, model, gpu, constants)

    def _set_linear(self, args: ServerArgs, gpu: Gpu) -> None:
        """Seconds of the linear layers: for each token to compute, and to read their weights."""
        model, tp, weights = self._model, args.tp_size, weights_of(args, self._model)
        linear_flops, expert_flops = weights.flops(gpu)
        self._linear_s = 2 * model.always_parameters / (tp * linear_flops)
        self._experts_s = 2 * model.active_experts * model.expert_parameters / (tp * expert_flops)
        self._fp8 = weights.linear_fp8 and gpu.fp8, weights.experts_fp8 and gpu.fp8
        copies = tp // attention_tp(args)  # of the attention's weights, one for each of its ranks
        always = model.always_parameters + (copies - 1) * model.attention_parameters
        read = tp * gpu.hbm_bytes_s
        self._linear_read_s = always * weights.linear / read
        self._experts_read_s = model.experts * model.expert_parameters * weights.experts / read
        self._head_s = weights.rest * model.head_parameters / read

    def _set_attention(self, args: ServerArgs, gpu: Gpu) -> None:
        """Seconds of attention: for each pair of a query and a key in one layer, and for each cached token.

        A latent is multiplied out for a prefill, and read as it is in a decode step, by every head
        (arXiv:2405.04434, section 2.1.2).
        """
        model = self._model
        heads_s = 2 * model.heads / (args.tp_size * gpu.flops_bf16)
        if (latent := model.latent) is None:
            self._pair_s = heads_s * 2 * model.head_size
            self._decode_pair_s = 0.0  # reading the keys takes longer than multiplying them
        else:
            self._pair_s = heads_s * (latent.nope + latent.rope + latent.value)
            self._decode_pair_s = heads_s * (2 * latent.rank + latent.rope)
        self._kv_s = kv_layer_bytes(args, model) / gpu.hbm_bytes_s
        reduced = 2 * (self._tp - 1) / self._tp * model.hidden * 2  # bytes of a token, by a ring
        self._link_s = 2 * model.layers * reduced / gpu.link_bytes_s
        self._allreduces = 2 * model.layers * math.log2(self._tp)

    def decode_s(self, requests: int, context_tokens: int) -> float:
        """One step of `requests`, which attend to `context_tokens` in all; drafts included."""
        return float(seconds(self.decode(requests, context_tokens), self.constants))

    def prefill_s(
        self, parts: Iterable[tuple[int, int]], requests: int = 0, context_tokens: int = 0
    ) -> float:
        """`parts` are (new, cached) tokens of each prompt; `requests` decode in the same (mixed) step."""
        return float(seconds(self.prefill(parts, requests, context_tokens), self.constants))

    def decode(self, requests: int, context_tokens: int) -> Parts:
        """The parts of `decode_s`."""
        verified = requests if self._speculation is None else requests * self._speculation.draft_tokens
        draft = 0.0
        if self._speculation is not None and self._draft is not None:
            branches = requests * self._speculation.topk
            draft = self._speculation.steps * self._draft.forward_s(branches, context_tokens)
        return self._parts(
            verified,
            cached=self._cached(requests, context_tokens, verified),
            eager=self._model.layers if requests > self._graph_max_bs else 0,
            decodes=1,
            requests=requests,
            draft=draft,
        )

    def prefill(self, parts: Iterable[tuple[int, int]], requests: int = 0, context_tokens: int = 0) -> Parts:
        """The parts of `prefill_s`."""
        tokens, prompts = requests, 0.0
        for new, cached in parts:
            tokens += new
            prompts += self._prompt_s(new, cached)
        return self._parts(
            tokens,
            cached=self._cached(requests, context_tokens, requests),
            prompts=prompts,
            layers=self._model.layers,
            requests=requests,
        )

    def forward_s(self, tokens: int, context_tokens: int) -> float:
        """A forward pass of one token each within another model's step: no host time of its own."""
        parts = self._parts(tokens, cached=self._cached(tokens, context_tokens, tokens))
        return float(gpu_seconds(parts, self.constants))

    def _parts(
        self, tokens: int, *, cached: tuple[float, float], requests: int = 0, **others: float
    ) -> Parts:
        model, (linear_fp8, experts_fp8) = self._model, self._fp8
        untouched = (1 - model.active_experts / model.experts) ** tokens  # share of experts no token chose
        linear, experts = self._linear_s * tokens, self._experts_s * tokens
        return Parts(
            linear=0.0 if linear_fp8 else linear,
            linear_fp8=linear if linear_fp8 else 0.0,
            linear_read=self._linear_read_s,
            experts=0.0 if experts_fp8 else experts,
            experts_fp8=experts if experts_fp8 else 0.0,
            experts_read=self._experts_read_s * (1 - untouched),
            cache=cached[0],
            cache_read=cached[1],
            head=self._head_s,
            link=self._link_s * tokens,
            allreduces=self._allreduces,
            requests=requests * self._per_request,
            serial=self._serial,
            **others,
        )

    def _prompt_s(self, new: int, cached: int) -> float:
        """Attention of `new` tokens of a prompt to each other and to the `cached` ones before them."""
        model = self._model
        pairs = new * (cached + new / 2)
        seen = pairs
        if model.sliding_layers:
            growing = max(0, min(new, model.window - cached))  # tokens that see less than the window
            seen = growing * (cached + growing / 2) + (new - growing) * model.window
        full = model.layers - model.sliding_layers
        return self._pair_s * (full * pairs + model.sliding_layers * min(seen, pairs))

    def _cached(self, requests: int, context_tokens: int, queries: int) -> tuple[float, float]:
        """Attention of a decode step: computing with what is cached, and reading it."""
        if not requests:
            return 0.0, 0.0
        model = self._model
        seen = min(context_tokens, requests * model.window) if model.sliding_layers else 0
        tokens = (model.layers - model.sliding_layers) * context_tokens + model.sliding_layers * seen
        return tokens * self._decode_pair_s * queries / requests, tokens * self._kv_s


def _draft_cost(
    args: ServerArgs, plan: Plan, model: Model, gpu: Gpu, constants: Constants
) -> StepCost | None:
    """The cost of the model that guesses: one of its own, or a layer of this one; NGRAM has none."""
    if args.speculative_algorithm in (None, "NGRAM"):
        return None
    if args.speculative_algorithm == "STANDALONE":
        draft = find_model(args.speculative_draft_model_path or "")
    else:
        draft = replace(model, layers=1, dense_layers=0, sliding_layers=0)
    alone = replace(args, speculative_algorithm=None, quantization=None)
    return StepCost(alone, replace(plan, speculation=None), draft, gpu, constants)
