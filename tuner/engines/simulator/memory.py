"""GPU memory at start: what SGLang chooses for itself, how many tokens the KV cache holds, what does not fit.

The rules are SGLang 0.5.23's (`arg_groups/memory_hook.py`, `mem_cache/kv_cache_configurator.py`), all in
MiB there and here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tuner.engines.simulator.architecture import Model
from tuner.engines.simulator.flags import ServerArgs
from tuner.engines.simulator.gpus import Gpu
from tuner.engines.simulator.models import find_model
from tuner.engines.simulator.speculation import MAX_RUNNING_REQUESTS, Speculation, speculation_of
from tuner.engines.simulator.weights import mismatch, weights_of

MIB = 1 << 20

# The CUDA context and libraries: 81559 MiB less the 78.81 GiB that SGLang's published log of Llama-3.1-8B on
# an H100 names as available before loading.
CUDA_CONTEXT_MIB = 859

# What loading takes beside the weights, per layer: the same log has 15.09 GiB for 14.96 GiB of weights in 32
# layers, as the allocator rounds each tensor up to 2 MiB.
LAYER_OVERHEAD_MIB = 4.3

# SGLang's reserve is a generous estimate of what activations and CUDA graphs take. No measurement of the
# true need was at hand: this share of the estimate makes 0.9 with chunks up to 16384 live on an 80 GB GPU,
# as it does in practice, and 0.97 with 16384 die.
RESERVE_REALLY_NEEDED = 0.3

# Tokens of a sliding-window layer for each of a full one (--swa-full-tokens-ratio).
SLIDING_RATIO = 0.8

_KV_BYTES = {"auto": 2.0, "bf16": 2.0, "bfloat16": 2.0, "nvfp4": 0.5625, "fp4_mx_block16": 0.5625}  # else fp8


class StartFailure(Exception):
    """The server cannot start; the message is what SGLang logs, below `heading`.

    `killed` says that SGLang meets it in a child process and dies by SIGKILL; otherwise its exit code is 1.
    """

    def __init__(
        self, message: str, *, heading: str = "Scheduler hit an exception: ", killed: bool = True
    ) -> None:
        super().__init__(message)
        self.heading = heading
        self.killed = killed


@dataclass(frozen=True)
class Plan:
    """What the server runs with after every default has been resolved; tokens unless named otherwise."""

    context_length: int
    chunked_prefill_size: int | None  # None: chunking is off
    cuda_graph_max_bs: int  # 0: no CUDA graphs
    mem_fraction_static: float
    max_running_requests: int
    kv_tokens: int
    weights_gib: float  # per GPU
    available_gib: float  # per GPU, after weights and KV cache
    speculation: Speculation | None = None


def attention_tp(args: ServerArgs) -> int:
    """GPUs that share one token's attention: of --tp-size, or of one rank of --enable-dp-attention."""
    return args.tp_size // args.dp_size if args.enable_dp_attention else args.tp_size


def replicas(args: ServerArgs) -> int:
    """Schedulers beside each other, each with GPUs of its own."""
    return 1 if args.enable_dp_attention else args.dp_size


def kv_layer_bytes(args: ServerArgs, model: Model) -> float:
    """Bytes of one token's keys and values in one layer on one GPU.

    Heads are copied where the GPUs exceed them, a latent is copied to all; with --enable-dp-attention a token
    lies on one rank of several, which are taken for balanced.
    """
    width = _KV_BYTES.get(args.kv_cache_dtype, 1.0)
    if model.latent is not None:
        values = model.latent.rank + model.latent.rope
    else:
        values = 2 * max(1, model.kv_heads // attention_tp(args)) * model.head_size
    return values * width * attention_tp(args) / args.tp_size


def kv_bytes_per_token(args: ServerArgs, model: Model) -> float:
    """Bytes that the KV cache of one GPU takes for a token, all layers; those of a draft model too."""
    layers = model.layers - model.sliding_layers * (1 - SLIDING_RATIO)
    return kv_layer_bytes(args, model) * (layers + draft_layers(args))


def draft_layers(args: ServerArgs) -> int:
    """Layers of the draft model: EAGLE's and NEXTN's have one, NGRAM needs none."""
    if args.speculative_algorithm == "STANDALONE":
        return find_model(args.speculative_draft_model_path or "").layers
    return 0 if args.speculative_algorithm in (None, "NGRAM") else 1


def make_plan(args: ServerArgs, model: Model, gpu: Gpu) -> Plan:
    """Resolves SGLang's defaults and lays out the memory; StartFailure where SGLang would not start."""
    _check_shapes(args, model)
    speculation = _speculation(args, model)
    chunk, graph_max_bs = _capacity_defaults(args, gpu)
    reserve = _reserve_mib(args, chunk, graph_max_bs)
    floor = 10 * 1024 if gpu.memory_mib > 60 * 1024 else 0
    automatic = round((gpu.memory_mib - max(reserve, floor)) / gpu.memory_mib, 3)
    fraction = args.mem_fraction_static if args.mem_fraction_static is not None else automatic

    before = gpu.memory_mib - CUDA_CONTEXT_MIB
    weights = _weights_mib(args, model)
    if weights > before:
        raise StartFailure(_cuda_out_of_memory(512, before % 512, gpu))
    for_kv = before * fraction - weights
    if for_kv <= 0:
        raise StartFailure(_no_room_for_kv(fraction, weights / before))
    token_mib = kv_bytes_per_token(args, model) / MIB
    kv_tokens = int(for_kv / token_mib)
    if args.max_total_tokens is not None:
        kv_tokens = min(kv_tokens, args.max_total_tokens)
    if kv_tokens <= 0:
        raise StartFailure(
            "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static. "
            f"Current value: mem_fraction_static={fraction}"
        )
    available = before - weights - kv_tokens * token_mib
    if available < reserve * RESERVE_REALLY_NEEDED:
        raise StartFailure(_out_of_memory(reserve * RESERVE_REALLY_NEEDED, available, gpu, graph_max_bs))
    context = args.context_length or model.context
    if kv_tokens < 16:
        raise StartFailure(
            f"ValueError: Input length (12 tokens) exceeds the maximum allowed "
            f"length ({max(0, kv_tokens - 6)} tokens). Use a shorter input or enable --allow-auto-truncate.",
            heading="Initialization failed. warmup error: ",
        )
    return Plan(
        context_length=context,
        chunked_prefill_size=chunk,
        cuda_graph_max_bs=graph_max_bs,
        mem_fraction_static=fraction,
        max_running_requests=args.max_running_requests or _most_running(kv_tokens, context, speculation),
        kv_tokens=kv_tokens,
        weights_gib=weights / 1024,
        available_gib=available / 1024,
        speculation=speculation,
    )


def _speculation(args: ServerArgs, model: Model) -> Speculation | None:
    try:
        return speculation_of(args, model)
    except ValueError as error:
        raise StartFailure(str(error), heading="", killed=False) from error


def _most_running(kv_tokens: int, context: int, speculation: Speculation | None) -> int:
    if speculation is not None:
        return MAX_RUNNING_REQUESTS
    return min(max(int(kv_tokens / context * 512), 2048), 4096)


def _check_shapes(args: ServerArgs, model: Model) -> None:
    if args.dp_size < 1 or (args.enable_dp_attention and args.tp_size % args.dp_size):
        raise StartFailure(f"AssertionError: {args.tp_size} is not divisible by {args.dp_size}")
    tp = attention_tp(args)
    few, many = sorted((model.kv_heads, tp))  # key-value heads are split over GPUs, or copied to several
    for size, parts in ((model.heads, tp), (many, few), (model.intermediate, args.tp_size)):
        if parts < 1 or size % parts:
            raise StartFailure(f"AssertionError: {size} is not divisible by {parts}")
    if wrong := mismatch(args, model):
        if not model.stored:
            raise StartFailure(wrong)
        raise StartFailure(wrong, heading="", killed=False)  # SGLang sees that before its child processes
    if args.context_length is not None and args.context_length > model.context:
        raise StartFailure(
            f"ValueError: User-specified context_length ({args.context_length}) is greater than the derived "
            f"context_length ({model.context}).",
            heading="",
            killed=False,
        )


def _capacity_defaults(args: ServerArgs, gpu: Gpu) -> tuple[int | None, int]:
    """(chunked prefill size, largest batch with a CUDA graph), by the GPU's memory as SGLang chooses them."""
    many = args.tp_size >= 4
    table = (
        (20, 2048, 8),
        (35, 4096, 160 if many else 48),
        (60, 4096, 160 if many else 32),
        (160, 8192, 512 if many else 256),
        (math.inf, 16384, 512),
    )
    chunk, graphs = next(
        (chunk, graphs) for below_gib, chunk, graphs in table if gpu.memory_mib < below_gib * 1024
    )
    if args.max_running_requests is not None:
        graphs = min(graphs, args.max_running_requests)
    if args.cuda_graph_max_bs is not None:
        graphs = args.cuda_graph_max_bs
    if args.chunked_prefill_size is not None:
        chunk = args.chunked_prefill_size
    return (chunk if chunk > 0 else None), (0 if args.disable_cuda_graph else graphs)


def _reserve_mib(args: ServerArgs, chunk: int | None, graph_max_bs: int) -> float:
    """SGLang's estimate of what activations and CUDA graphs take."""
    tokens = max(chunk or args.max_prefill_tokens, 2048)
    return 512 + 1.5 * tokens + 1024 * args.tp_size / 8 + 2 * graph_max_bs


def _weights_mib(args: ServerArgs, model: Model) -> float:
    """Loaded weights on one GPU; quantisation leaves embeddings and output head in 16 bit."""
    weights = weights_of(args, model)
    attention = model.attention_parameters * weights.linear / attention_tp(args)
    others = (model.always_parameters - model.attention_parameters) * weights.linear
    experts = model.experts * model.expert_parameters * weights.experts
    embeddings = model.parameters - model.always_parameters - model.experts * model.expert_parameters
    split = others + experts + embeddings * weights.rest + _draft_bytes(args, model)
    return (attention + split / args.tp_size) / MIB + LAYER_OVERHEAD_MIB * model.layers


def _draft_bytes(args: ServerArgs, model: Model) -> float:
    """Weights of the draft model, in 16 bit: another model, or one more layer of this one."""
    if args.speculative_algorithm == "STANDALONE":
        return 2 * find_model(args.speculative_draft_model_path or "").parameters
    return draft_layers(args) * 2 * (model.parameters - model.head_parameters) / model.layers


def _no_room_for_kv(fraction: float, least: float) -> str:
    return (
        "ValueError: Loaded weights leave no GPU memory for the KV cache under "
        f"--mem-fraction-static={fraction}. "
        f"Raise --mem-fraction-static above {math.ceil(least * 1000) / 1000:.3f} (minimum viable = "
        f"1 - available/pre = {least:.4f}). If using speculative decoding, draft weights are now counted."
    )


def _cuda_out_of_memory(wanted_mib: float, free_mib: float, gpu: Gpu) -> str:
    return (
        f"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate {wanted_mib / 1024:.2f} GiB. "
        f"GPU 0 has a total capacity of {gpu.memory_mib / 1024:.2f} GiB of which "
        f"{max(free_mib, 0) / 1024:.2f} GiB is free."
    )


def _out_of_memory(needed_mib: float, available_mib: float, gpu: Gpu, graph_max_bs: int) -> str:
    error = _cuda_out_of_memory(needed_mib, available_mib, gpu)
    if graph_max_bs == 0:
        return error  # the first prefill dies instead of the capture
    return (
        f"{error}\nException: Capture cuda graph failed: {error.split(': ', 1)[1]}\n"
        "Possible solutions:\n"
        "1. set --mem-fraction-static to a smaller value (e.g., 0.8 or 0.7)\n"
        "2. set --cuda-graph-max-bs-decode to a smaller value (e.g., 16)"
    )
