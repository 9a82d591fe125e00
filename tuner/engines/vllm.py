"""vLLM: its command line, what its server says of itself, and the signs of its failures."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from tuner.engines.base import Config, ServerInfo, Value
from tuner.engines.packaged import PackagedEngine, refused, size_in
from tuner.engines.server import OF_THE_GPUS, Server, Sign, call
from tuner.failures import Cause
from tuner.secrets import is_secret

# In this order: what is said last is generic ("Engine core initialization failed. See root cause above"),
# and what pydantic refuses ("Value error, ...") may be a model as well as a flag. Lines of vLLM 0.32.0;
# where an older one words it differently, both.
SIGNS = (
    Sign.of(r"error: (unrecognized arguments|argument |ambiguous option)", Cause.INVALID_FLAGS),
    Sign.of(r"Error in memory profiling", Cause.GPU_IN_USE),  # others gave memory back meanwhile
    Sign.of(r"OutOfMemoryError|CUDA out of memory|CUDA error: out of memory", Cause.OUT_OF_MEMORY),
    Sign.of(r"Cuda failure \d+ 'out of memory'|ALLOC_FAILED", Cause.OUT_OF_MEMORY),
    Sign.of(r"No available memory for the cache blocks", Cause.OUT_OF_MEMORY),
    Sign.of(r"KV cache is needed, which is larger than", Cause.OUT_OF_MEMORY),
    Sign.of(r"larger than the maximum number of tokens that can be stored in KV cache", Cause.OUT_OF_MEMORY),
    Sign.of(r"less than (desired GPU memory utilization|requested memory for kv)", Cause.OUT_OF_MEMORY),
    *OF_THE_GPUS,
    Sign.of(r"Failed to infer device type", Cause.DRIVER),  # it finds no GPU
    Sign.of(r"\[Errno 98\]|errno: 98\b", Cause.PORT_TAKEN),
    Sign.of(r"Invalid repository ID or local directory", Cause.MODEL_NOT_FOUND),
    Sign.of(r"is not a valid model identifier|Repo id must be in the form", Cause.MODEL_NOT_FOUND),
    Sign.of(r"(RepositoryNotFound|LocalEntryNotFound|GatedRepo)Error|gated repo", Cause.MODEL_NOT_FOUND),
    Sign.of(r"does not appear to have a file named|Cannot find any model weights", Cause.MODEL_NOT_FOUND),
    Sign.of(r"World size .* is larger than the number of available GPUs", Cause.NO_SUCH_GPUS),
    Sign.of(r"is greater than the derived max_model_len", Cause.INVALID_FLAGS),
    Sign.of(r"No common block size for", Cause.INVALID_FLAGS),
    Sign.of(r"^\s*Value error, |must be divisible|is not divisible", Cause.INVALID_FLAGS),
    Sign.of(r"\] ([\w.]+Error|[\w.]+Exception): .", Cause.CRASH),  # of a process below, in mid-log
)
_SIZES = (
    *("tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size"),
    "prefill-context-parallel-size",
)
# vLLM's parser makes every boolean an argparse.BooleanOptionalAction, but these, which only switch on.
_WITHOUT_NO = {
    *("disable-log-stats", "aggregate-engine-logging", "headless", "grpc"),
    *("data-parallel-multi-port-external-lb", "disable-log-requests"),
}
_OURS = {  # flags that this adapter gives, or whose effect its client would not survive
    **dict.fromkeys(("model", "model-tag"), "comes from model.id_or_path"),
    "served-model-name": "comes from benchmark.model_name",
    **dict.fromkeys(("host", "port", "uds"), "is chosen for each trial"),
    **dict.fromkeys(("api-key", "ssl-certfile"), "the load client speaks plain HTTP without a key"),
}
_ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",  # offers /reset_prefix_cache and /server_info; the server is on loopback
    "VLLM_NO_USAGE_STATS": "1",  # trials are no use of vLLM that its authors would want to count
}
_INFO_LIMIT_S = 60.0  # /server_info looks at the machine as well, which takes a busy one seconds
_SECTIONS = ("model_config", "cache_config", "parallel_config", "scheduler_config")
_SPELT = {"policy": "scheduling-policy", "cache-dtype": "kv-cache-dtype"}  # fields that are no flag's name
_KV_LINE = re.compile(r"KV cache size: (\d[\d,]{0,20}) tokens")
_ARGS = "non-default args: "


def flag_arguments(config: Config) -> list[str]:
    """`{"a": 1, "b": True, "c": False, "d": None}` as argv: `--a 1 --b --no-c`."""
    argv: list[str] = []
    for flag, value in config.items():
        if value is True:
            argv.append(f"--{flag}")
        elif value is False:
            argv += [] if flag.replace("_", "-") in _WITHOUT_NO else [f"--no-{flag}"]
        elif value is not None:
            argv += [f"--{flag}", str(value)]
    return argv


class VllmEngine(PackagedEngine):
    """vLLM's `vllm serve`."""

    name = "vllm"
    serve = ("vllm.entrypoints.cli.main", "serve")  # what the script `vllm` runs
    deployed = ("vllm", "serve")
    image = "vllm/vllm-openai"
    ours = _OURS
    sizes = gpu_flags = _SIZES
    signs = SIGNS
    flush_paths = ("reset_prefix_cache",)
    environment = _ENVIRONMENT

    def gpus(self, config: Config) -> int:
        flags = self._flags_of(config)
        return math.prod(size_in(flags.get(flag)) for flag in _SIZES)

    def check(self, config: Config) -> None:
        """Refuses what the installed version's own parser would refuse, and a batch that is too small."""
        flags = self._flags_of(config)
        tokens, sequences = flags.get("max-num-batched-tokens"), flags.get("max-num-seqs")
        if isinstance(tokens, int) and isinstance(sequences, int) and tokens < sequences:
            raise refused(f"max-num-batched-tokens ({tokens}) must be at least max-num-seqs ({sequences})")
        super().check(config)

    def given(self, config: Config) -> Config:
        """As they stand on the command line; without `compilation-config.mode`, a key of some JSON."""
        given: dict[str, Value] = {}
        for flag, value in self._flags_of(config).items():
            if value is False and flag not in _WITHOUT_NO:
                given[f"no-{flag}"] = True
            elif "." not in flag:
                given[flag] = value
        return given

    def _flags_of(self, config: Config) -> dict[str, Value]:
        """All flags with dashes: vLLM takes `max_num_seqs` for `max-num-seqs`."""
        flags = {**self.task.engine.args, **config}
        return {flag.replace("_", "-"): value for flag, value in flags.items()}

    def arguments(self, config: Config, host: str, port: int) -> list[str]:
        return [
            *(self.task.model.id_or_path, "--served-model-name", self.task.served_model_name),
            *("--host", host, "--port", str(port)),
            *flag_arguments({**self.task.engine.args, **config}),
        ]

    def info(self, server: Server) -> ServerInfo:
        """What the server resolved; where it does not tell, what its log says that it was given."""
        resolved = _resolved(_asked(f"{server.base_url}/server_info?config_format=json"))
        told = _asked(f"{server.base_url}/version").get("version")
        log = server.process.log()
        args = {**_given(log), **resolved}
        return ServerInfo(str(told or self.version()), _kv_tokens(args, log), args)


def _asked(url: str) -> Mapping[str, Any]:
    with suppress(OSError):
        said = call(url, timeout_s=_INFO_LIMIT_S)
        if isinstance(said, dict):
            return said
    return {}


def _resolved(said: Mapping[str, Any]) -> dict[str, Any]:
    """The plain fields of a /server_info, spelt as flags; none of a version that answers with text."""
    config = said.get("vllm_config")
    if not isinstance(config, dict):
        return {}
    sections = [section for name in _SECTIONS if isinstance(section := config.get(name), dict)]
    return _as_flags({key: value for section in [config, *sections] for key, value in section.items()})


def _given(log: str) -> dict[str, Any]:
    """The arguments of the log's last line `non-default args: {...}`."""
    lines = [line for line in log.splitlines() if _ARGS in line]
    with suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        if lines and isinstance(given := ast.literal_eval(lines[-1].rpartition(_ARGS)[2]), dict):
            return _as_flags({str(key): value for key, value in given.items()})
    return {}


def _as_flags(fields: Mapping[str, Any]) -> dict[str, Any]:
    spelt = {key.replace("_", "-"): value for key, value in fields.items() if _is_plain(value)}
    return {_SPELT.get(flag, flag): value for flag, value in spelt.items() if not is_secret(flag)}


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _kv_tokens(args: Mapping[str, Any], log: str) -> int | None:
    """Of one replica, as vLLM counts them."""
    told = args.get("kv-cache-size-tokens")
    if isinstance(told, int) and told > 0:
        return told
    lines = _KV_LINE.findall(log)
    return int(lines[-1].replace(",", "")) if lines else None
