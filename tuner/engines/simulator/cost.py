"""How long a step takes: a roofline model of a transformer on a GPU, plus the host's time.

Every part of a step takes the longer of two times: to compute it, and to read what it needs from memory. The
formulas stand here, the numbers in `constants`, `gpus` and the model's architecture.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from tuner.engines.simulator.architecture import Model
from tuner.engines.simulator.constants import DEFAULT, Constants
from tuner.engines.simulator.flags import ServerArgs
from tuner.engines.simulator.gpus import Gpu
from tuner.engines.simulator.memory import Plan, attention_tp, kv_layer_bytes
from tuner.engines.simulator.models import find_model
from tuner.engines.simulator.weights import weights_of


class StepCost:
    """Durations in seconds of one model's steps on `args.tp_size` GPUs of one kind."""

    def __init__(
        self, args: ServerArgs, plan: Plan, model: Model, gpu: Gpu, constants: Constants = DEFAULT
    ) -> None:
        self._model = model
        self._tp = args.tp_size
        self._eager_layer_s = constants.eager_layer_s
        self._graph_max_bs = plan.cuda_graph_max_bs
        self._set_linear(args, gpu, constants)
        self._set_attention(args, gpu, constants)
        self._set_host(args, constants)
        self._speculation = plan.speculation
        self._draft = _draft_cost(args, plan, model, gpu, constants)

    def _set_linear(self, args: ServerArgs, gpu: Gpu, constants: Constants) -> None:
        """Seconds of the linear layers: for each token to compute, and to read their weights."""
        model, tp, weights = self._model, args.tp_size, weights_of(args, self._model)
        linear_flops, expert_flops = weights.flops(gpu)
        read = tp * constants.weight_read * gpu.hbm_bytes_s
        compute = tp * constants.gemm
        self._linear_s_per_token = 2 * model.always_parameters / (compute * linear_flops)
        copies = tp // attention_tp(args)  # of the attention's weights, one for each of its ranks
        always = model.always_parameters + (copies - 1) * model.attention_parameters
        self._linear_read_s = always * weights.linear / read
        self._experts_s_per_token = (
            2 * model.active_experts * model.expert_parameters / (compute * expert_flops)
        )
        self._experts_read_s = model.experts * model.expert_parameters * weights.experts / read
        self._head_s = weights.rest * model.head_parameters / read

    def _set_attention(self, args: ServerArgs, gpu: Gpu, constants: Constants) -> None:
        """Seconds of attention: for each pair of a query and a key in one layer, and for each cached token.

        A latent is multiplied out for a prefill, and read as it is in a decode step, by every head
        (arXiv:2405.04434, section 2.1.2).
        """
        model = self._model
        heads_s = 2 * model.heads / (args.tp_size * constants.attention * gpu.flops_bf16)
        if (latent := model.latent) is None:
            self._pair_s = heads_s * 2 * model.head_size
            self._decode_pair_s = 0.0  # reading the keys takes longer than multiplying them
        else:
            self._pair_s = heads_s * (latent.nope + latent.rope + latent.value)
            self._decode_pair_s = heads_s * (2 * latent.rank + latent.rope)
        self._kv_s = kv_layer_bytes(args, model) / (constants.kv_read * gpu.hbm_bytes_s)
        self._allreduce_s_per_token = (
            2 * (self._tp - 1) / self._tp * model.hidden * 2 / (constants.link * gpu.link_bytes_s)
        )
        self._allreduce_start_s = constants.allreduce_s

    def _set_host(self, args: ServerArgs, constants: Constants) -> None:
        serial = 1 + constants.no_overlap if args.disable_overlap_schedule else 1.0
        self._step_host_s = constants.decode_s * serial
        output = 1 - constants.output + constants.output / max(1, args.stream_interval)
        self._request_host_s = constants.request_s * output * serial
        self._prefill_host_s = constants.prefill_layer_s * self._model.layers

    def decode_s(self, requests: int, context_tokens: int) -> float:
        """One step of `requests`, which attend to `context_tokens` in all; drafts included."""
        verified = requests if self._speculation is None else requests * self._speculation.draft_tokens
        gpu = (
            self._linear_s(verified)
            + self._attention_s(requests, context_tokens, verified)
            + self._head_s
            + self._allreduce_s(verified)
        )
        if self._speculation is not None and self._draft is not None:
            branches = requests * self._speculation.topk
            gpu += self._speculation.steps * self._draft.forward_s(branches, context_tokens)
        if requests > self._graph_max_bs:
            gpu = max(gpu, self._eager_layer_s * self._model.layers)
        return gpu + self._step_host_s + self._request_host_s * requests

    def forward_s(self, tokens: int, context_tokens: int) -> float:
        """A forward pass of one token each within another model's step: no host time of its own."""
        attention = self._attention_s(tokens, context_tokens, tokens)
        return self._linear_s(tokens) + attention + self._head_s + self._allreduce_s(tokens)

    def prefill_s(
        self, parts: Iterable[tuple[int, int]], requests: int = 0, context_tokens: int = 0
    ) -> float:
        """`parts` are (new, cached) tokens of each prompt; `requests` decode in the same (mixed) step."""
        tokens = requests
        attention = 0.0
        for new, cached in parts:
            tokens += new
            attention += self._prompt_s(new, cached)
        return (
            self._linear_s(tokens)
            + attention
            + self._attention_s(requests, context_tokens, requests)
            + self._head_s
            + self._allreduce_s(tokens)
            + self._prefill_host_s
            + self._request_host_s * requests
        )

    def _linear_s(self, tokens: int) -> float:
        """All linear layers but the head."""
        model = self._model
        untouched = (1 - model.active_experts / model.experts) ** tokens  # share of experts no token chose
        always = max(self._linear_s_per_token * tokens, self._linear_read_s)
        chosen = max(self._experts_s_per_token * tokens, self._experts_read_s * (1 - untouched))
        return always + chosen

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

    def _attention_s(self, requests: int, context_tokens: int, queries: int) -> float:
        """Attention of a decode step: reading what is cached or, of a latent, computing with it."""
        model = self._model
        seen = min(context_tokens, requests * model.window) if model.sliding_layers else 0
        tokens = (model.layers - model.sliding_layers) * context_tokens + model.sliding_layers * seen
        per_query = queries / requests if requests else 0.0
        return tokens * max(self._kv_s, self._decode_pair_s * per_query)

    def _allreduce_s(self, tokens: int) -> float:
        if self._tp == 1:
            return 0.0
        return 2 * self._model.layers * (self._allreduce_start_s + self._allreduce_s_per_token * tokens)


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
