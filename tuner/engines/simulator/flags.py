"""The command line: SGLang's own flags, and the simulator's `--gpu` and `--noise`.

A modelled flag becomes a field of `ServerArgs`; a flag that SGLang has and the simulator does not model is
taken and listed in `ServerArgs.ignored`; any other ends the process with argparse's message and exit code 2.
Defaults are SGLang 0.5.23's.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

from tuner.engines.simulator import accepted
from tuner.engines.simulator.constants import DEFAULT, Constants, read_constants
from tuner.engines.simulator.gpus import GPUS

DEFAULT_NOISE = 0.007  # CV of throughput over repeats of one configuration on real servers: 0.5-1.1 %

SPECULATIVE = ("EAGLE", "EAGLE3", "NEXTN", "STANDALONE", "NGRAM")
BALANCE = ("auto", "round_robin", "follow_bootstrap_room", "total_requests", "total_tokens")
POLICIES = (
    *("lpm", "random", "fcfs", "dfs-weight", "lof"),
    *("priority", "routing-key", "hrrn", "shortest-prefill-first"),  # ordered as fcfs here
)
KV_DTYPES = ("auto", "fp8_e5m2", "fp8_e4m3", "mxfp8", "bf16", "bfloat16", "nvfp4", "fp4_mx_block16")
QUANTIZATIONS = (
    "awq fp8 mxfp8 gptq gptq_marlin awq_marlin bitsandbytes gguf modelopt modelopt_fp8 modelopt_fp4 "
    "nvfp4_online modelopt_mixed petit_nvfp4 w8a8_int8 w8a8_fp8 moe_wna16 w4afp8 mxfp4 auto-round "
    "auto-round-int8 compressed-tensors modelslim mxfp_w4a8 quark quark_int4fp8_moe quark_mxfp4 "
    "mlx_q4 mlx_q8 unquant humming"
)


@dataclass(frozen=True)
class ServerArgs:
    """The modelled arguments, named as SGLang names them; None where SGLang chooses a value itself."""

    model_path: str
    served_model_name: str | None
    host: str
    port: int
    random_seed: int | None
    tp_size: int
    dp_size: int
    load_balance_method: str
    enable_dp_attention: bool
    context_length: int | None
    dtype: str
    quantization: str | None
    kv_cache_dtype: str
    mem_fraction_static: float | None
    max_running_requests: int | None
    max_queued_requests: int | None
    max_total_tokens: int | None
    chunked_prefill_size: int | None  # -1 turns chunking off
    max_prefill_tokens: int
    prefill_max_requests: int | None
    enable_mixed_chunk: bool
    schedule_policy: str
    schedule_conservativeness: float
    disable_radix_cache: bool
    disable_overlap_schedule: bool
    stream_interval: int
    cuda_graph_max_bs: int | None
    disable_cuda_graph: bool
    speculative_algorithm: str | None
    speculative_num_steps: int | None
    speculative_eagle_topk: int | None
    speculative_num_draft_tokens: int | None
    speculative_draft_model_path: str | None
    enable_cache_report: bool
    decode_log_interval: int
    gpu: str
    noise: float
    speculative_acceptance: float | None
    calibration: str | None
    ignored: tuple[str, ...] = ()  # flags that were given and have no effect

    @property
    def constants(self) -> Constants:
        """Those of the cost model, calibrated or not."""
        return DEFAULT if self.calibration is None else read_constants(self.calibration)


def human_readable_int(text: str) -> int:
    """`16384`, `16k` (thousands) or `16K` (times 1024), and the same with m and g."""
    factor = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:])
    return int(float(text[:-1]) * factor) if factor else int(text)


def _share(text: str) -> float:
    """A number from 0 to 1."""
    share = float(text)
    if not 0 <= share <= 1:
        raise ValueError(text)
    return share


def _calibration(text: str) -> str:
    """As it is, once it has been read."""
    try:
        read_constants(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


class _Ignored(argparse.Action):
    """Remembers that a flag was given."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        namespace.ignored = (*namespace.ignored, option_string or self.option_strings[0])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tuner.engines.simulator",
        usage="%(prog)s --model-path MODEL [--gpu GPU] [any flag of SGLang]",
        description="A SIMULATION of an SGLang server.",
    )
    add = parser.add_argument
    add("--model-path", "--model", required=True)
    add("--served-model-name")
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=30000)
    add("--random-seed", type=int)
    add("--tp-size", "--tensor-parallel-size", type=int, default=1)
    add("--dp-size", "--data-parallel-size", type=int, default=1)
    add("--load-balance-method", choices=BALANCE, default="auto")
    add("--enable-dp-attention", action="store_true")
    add("--context-length", type=human_readable_int)
    add("--dtype", choices=["auto", "half", "float16", "bfloat16", "float", "float32"], default="auto")
    add("--quantization", choices=QUANTIZATIONS.split())
    add("--kv-cache-dtype", choices=KV_DTYPES, default="auto")
    add("--mem-fraction-static", type=float)
    add("--max-running-requests", type=int)
    add("--max-queued-requests", type=int)
    add("--max-total-tokens", type=human_readable_int)
    add("--chunked-prefill-size", type=int)
    add("--max-prefill-tokens", type=human_readable_int, default=16384)
    add("--prefill-max-requests", type=int)
    add("--enable-mixed-chunk", action="store_true")
    add("--schedule-policy", choices=POLICIES, default="fcfs")
    add("--schedule-conservativeness", type=float, default=1.0)
    add("--disable-radix-cache", action="store_true")
    add("--disable-overlap-schedule", action="store_true")
    add("--stream-interval", type=int, default=1)
    add("--cuda-graph-max-bs", "--cuda-graph-max-bs-decode", type=int)
    add("--disable-cuda-graph", "--disable-decode-cuda-graph", action="store_true")
    add("--speculative-algorithm", choices=SPECULATIVE)
    add("--speculative-num-steps", type=int)
    add("--speculative-eagle-topk", type=int)
    add("--speculative-num-draft-tokens", type=int)
    add("--speculative-draft-model-path", "--speculative-draft-model")
    add("--enable-cache-report", action="store_true")
    add("--decode-log-interval", type=int, default=40)
    add("--gpu", choices=sorted(GPUS), default="h100", help="the GPU that is simulated")
    add("--noise", type=float, default=DEFAULT_NOISE, help="run-to-run CV of throughput; 0 turns it off")
    add("--speculative-acceptance", type=_share, help="the chance that one draft token is accepted")
    add("--calibration", type=_calibration, help="constants of the cost model: JSON, or a file of it")
    _accept_the_rest(parser)
    parser.set_defaults(ignored=())
    return parser


def _accept_the_rest(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    quiet: dict[str, Any] = {"action": _Ignored, "dest": "ignored", "help": argparse.SUPPRESS}
    for name in accepted.SWITCHES.split():
        add(f"--{name}", nargs=0, **quiet)
    for table, kind in ((accepted.INTEGERS, int), (accepted.NUMBERS, float), (accepted.TEXTS, str)):
        for name in table.split():
            add(f"--{name}", nargs="+", type=kind, **quiet)
    for name, choices in accepted.CHOICES.items():
        add(f"--{name}", choices=choices.split(), **quiet)


@cache
def _actions() -> Mapping[str, argparse.Action]:
    """By full spelling; argparse has no public list."""
    return _parser()._option_string_actions


def spellings() -> Collection[str]:
    """`--tp-size`, `--tensor-parallel-size` ...: every flag that is taken, abbreviations left out."""
    return _actions().keys()


def effect_of(flag: str) -> bool | None:
    """Whether `flag`, without its dashes, is modelled; False: taken without effect, None: not known."""
    action = _actions().get(f"--{flag}")
    return None if action is None else not isinstance(action, _Ignored)


def parse_args(argv: Sequence[str]) -> ServerArgs:
    """`argv` without the program's name; SystemExit(2) with argparse's message for what SGLang refuses."""
    namespace = _parser().parse_args(argv)
    return ServerArgs(**{field.name: getattr(namespace, field.name) for field in fields(ServerArgs)})
