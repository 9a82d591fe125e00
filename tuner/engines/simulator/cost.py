"""How long a step takes: a roofline model of a transformer on a GPU, plus the host's time.

Formulas and constants were held against measured SGLang rows (`benchmarks/simulator_fidelity.py`; the
figures stand in docs/simulator.md). A constant marked *fitted* was chosen to match them, one marked
*estimate* rests on a published figure or on a measurement of another machine.
"""

from __future__ import annotations

from collections.abc import Iterable

from tuner.engines.simulator.flags import ServerArgs
from tuner.engines.simulator.gpus import Gpu
from tuner.engines.simulator.memory import Plan, kv_bytes_per_token, weight_bytes
from tuner.engines.simulator.models import Model

GEMM_EFFICIENCY = 0.65  # share of the datasheet's FLOP/s that matrix products reach; fitted
ATTENTION_EFFICIENCY = 0.42  # the same for prefill attention; fitted
WEIGHT_BANDWIDTH = 0.9  # share of the memory bandwidth while weights stream; fitted
KV_BANDWIDTH = 0.9  # the same for the gather of cached keys and values; fitted
LINK_BANDWIDTH = 0.76  # share of the link's bandwidth that an all-reduce reaches; fitted
ALLREDUCE_LATENCY_S = 16e-6  # one all-reduce of a few kilobytes; fitted
PREFILL_LAYER_S = 0.32e-3  # host time of one layer in a prefill, whose kernels are launched singly; fitted
DECODE_HOST_S = 1.9e-3  # host time of one decode step that the GPU does not hide; fitted
REQUEST_HOST_S = 28e-6  # the same per running request: sampling, detokenising, output; fitted

# What --disable-overlap-schedule adds to the host's time, as a share of it; estimate: SGLang's release notes
# of v0.4 give 10 % throughput for overlapping.
NO_OVERLAP = 0.5
# The part of REQUEST_HOST_S that --stream-interval saves all but one in so many times; estimate: the real
# server on a CPU gained 10 % throughput from an interval of 16.
OUTPUT_SHARE = 0.5
# Eager launches of one layer's kernels, when no CUDA graph covers the batch; estimate: an 8B model on an H100
# then decodes at about 60 tokens/s for a single stream.
EAGER_LAYER_S = 0.45e-3


class StepCost:
    """Durations in seconds of one model's steps on `args.tp_size` GPUs of one kind."""

    def __init__(self, args: ServerArgs, plan: Plan, model: Model, gpu: Gpu) -> None:
        tp = args.tp_size
        self._model = model
        self._tp = tp
        self._weight_bytes = weight_bytes(args)
        flops = gpu.flops_bf16
        if self._weight_bytes == 1 and gpu.fp8:
            flops *= 2
        elif self._weight_bytes == 4:
            flops /= 2  # TF32
        self._gemm_flops = tp * GEMM_EFFICIENCY * flops
        self._weight_rate = tp * WEIGHT_BANDWIDTH * gpu.hbm_bytes_s
        self._kv_s_per_token = kv_bytes_per_token(args, model) / (KV_BANDWIDTH * gpu.hbm_bytes_s)
        self._attention_s = (4 * model.layers * model.heads * model.head_size) / (
            tp * ATTENTION_EFFICIENCY * gpu.flops_bf16
        )  # per pair of a query and a key
        self._head_s = 2 * model.head_parameters / self._weight_rate
        self._allreduce_s_per_token = (
            2 * (tp - 1) / tp * model.hidden * 2 / (LINK_BANDWIDTH * gpu.link_bytes_s)
        )
        serial = 1 + NO_OVERLAP if args.disable_overlap_schedule else 1.0
        self._step_host_s = DECODE_HOST_S * serial
        output = 1 - OUTPUT_SHARE + OUTPUT_SHARE / max(1, args.stream_interval)
        self._request_host_s = REQUEST_HOST_S * output * serial
        self._graph_max_bs = plan.cuda_graph_max_bs

    def decode_s(self, requests: int, context_tokens: int) -> float:
        """One token for each of `requests`, which attend to `context_tokens` in all."""
        gpu = (
            self._linear_s(requests)
            + self._kv_s_per_token * context_tokens
            + self._head_s
            + self._allreduce_s(requests)
        )
        if requests > self._graph_max_bs:
            gpu = max(gpu, EAGER_LAYER_S * self._model.layers)
        return gpu + self._step_host_s + self._request_host_s * requests

    def prefill_s(
        self, parts: Iterable[tuple[int, int]], requests: int = 0, context_tokens: int = 0
    ) -> float:
        """`parts` are (new, cached) tokens of each prompt; `requests` decode in the same (mixed) step."""
        tokens = requests
        pairs = 0.0
        for new, cached in parts:
            tokens += new
            pairs += new * (cached + new / 2)
        return (
            self._linear_s(tokens)
            + self._attention_s * pairs
            + self._kv_s_per_token * context_tokens
            + self._head_s
            + self._allreduce_s(tokens)
            + PREFILL_LAYER_S * self._model.layers
            + self._request_host_s * requests
        )

    def _linear_s(self, tokens: int) -> float:
        """All linear layers but the head: bound by arithmetic or by reading the weights once."""
        model = self._model
        used = model.attention_parameters + model.active_experts * model.expert_parameters
        untouched = (1 - model.active_experts / model.experts) ** tokens  # share of experts no token chose
        read = model.attention_parameters + model.experts * (1 - untouched) * model.expert_parameters
        return max(2 * used * tokens / self._gemm_flops, read * self._weight_bytes / self._weight_rate)

    def _allreduce_s(self, tokens: int) -> float:
        if self._tp == 1:
            return 0.0
        return 2 * self._model.layers * (ALLREDUCE_LATENCY_S + self._allreduce_s_per_token * tokens)
