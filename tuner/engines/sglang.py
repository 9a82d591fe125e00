"""SGLang: its command line, what its server says of itself, and the signs of its failures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tuner.engines.base import Config, ServerInfo
from tuner.engines.packaged import PackagedEngine, size_in
from tuner.engines.server import OF_THE_GPUS, Server, Sign, call
from tuner.failures import Cause
from tuner.secrets import is_secret

# In this order: the end of a log is generic ("Received sigquit from a child process", then SIGKILL), so
# exit code −9 alone proves nothing; the cause stands further up. docs/failures.md says where each line
# comes from (SGLang 0.5.23, torch 2.13).
SIGNS = (
    Sign.of(r"error: (unrecognized arguments|argument |ambiguous option)", Cause.INVALID_FLAGS),
    Sign.of(r"(?i)address already in use", Cause.PORT_TAKEN),
    Sign.of(r"memory capacity is unbalanced", Cause.GPU_IN_USE),  # of the GPUs of one configuration
    # No failure: DeepGEMM's "reducing max_m to avoid out of memory", and "Decode out of memory happened",
    # after which SGLang takes some requests back.
    Sign.of(r"OutOfMemoryError|(?<!avoid )out of memory(?! happened)|ALLOC_FAILED", Cause.OUT_OF_MEMORY),
    Sign.of(r"Not enough (host |GPU )?memory|leave no GPU memory|can't allocate memory", Cause.OUT_OF_MEMORY),
    *OF_THE_GPUS,
    Sign.of(r"is not a valid model identifier|Repo id must be in the form", Cause.MODEL_NOT_FOUND),
    Sign.of(r"RepositoryNotFound|Repository Not Found|GatedRepoError", Cause.MODEL_NOT_FOUND),
    Sign.of(  # but a model may do without generation_config.json, which 0.5.16 says in the same words
        r"^(?!.*Failed to load generation config).*"
        r"(couldn't find them in the cached files|does not appear to have a file named)",
        Cause.MODEL_NOT_FOUND,
    ),
    Sign.of(r"Cannot find any model weights|Can't load the configuration of", Cause.MODEL_NOT_FOUND),
    Sign.of(r"watchdog timeout|Watchdog caught collective operation timeout", Cause.HANG),
    Sign.of(r"is not divisible|must be divisible", Cause.INVALID_FLAGS),
    Sign.of(r"greater than the derived context", Cause.INVALID_FLAGS),
    # SGLang's own warm-up, refused: a user's prompt that is too long for the KV cache ends nothing.
    Sign.of(r"^AssertionError: .*exceeds the maximum allowed length", Cause.INVALID_FLAGS),
    Sign.of(r"^\[.*\] Subprocess \S+ \(pid=\d+\) crashed", Cause.CRASH),  # in mid-log, by SGLang's watcher
)
_SIZES = {  # by every spelling that SGLang takes
    **dict.fromkeys(("tp-size", "tensor-parallel-size"), "tp"),
    **dict.fromkeys(("pp-size", "pipeline-parallel-size"), "pp"),
    **dict.fromkeys(("dp-size", "data-parallel-size"), "dp"),
}
_OURS = {  # flags that this adapter gives, or whose effect its client would not survive
    **dict.fromkeys(("model-path", "model"), "comes from model.id_or_path"),
    "served-model-name": "comes from benchmark.model_name",
    **dict.fromkeys(("host", "port"), "is chosen for each trial"),
    **dict.fromkeys(("api-key", "ssl-certfile"), "the load client speaks plain HTTP without a key"),
}


def flag_arguments(config: Config) -> list[str]:
    """`{"a": 1, "b": True, "c": False, "d": None}` as argv: `--a 1 --b`."""
    argv: list[str] = []
    for flag, value in config.items():
        if value is True:
            argv.append(f"--{flag}")
        elif value is not None and value is not False:
            argv += [f"--{flag}", str(value)]
    return argv


class SGLangEngine(PackagedEngine):
    """SGLang's `sglang.launch_server`."""

    name = "sglang"
    serve = ("sglang.launch_server",)
    deployed = ("python", "-m", "sglang.launch_server")
    image = "lmsysorg/sglang"
    ours = _OURS
    sizes = tuple(_SIZES)
    gpu_flags = (*_SIZES, "enable-dp-attention", "device")
    signs = SIGNS
    flush_paths = ("flush_cache?timeout=20",)  # waits for requests that were cut off

    def gpus(self, config: Config) -> int:
        flags = self.given(config)
        return 0 if flags.get("device") == "cpu" else _ranks(flags)

    def cpus(self, config: Config) -> int:
        """The load generator's; where SGLang computes on the CPU, one for each rank as well."""
        flags = self.given(config)
        return 1 + (_ranks(flags) if flags.get("device") == "cpu" else 0)

    def arguments(self, config: Config, host: str, port: int) -> list[str]:
        return [
            *("--model-path", self.task.model.id_or_path),
            *("--served-model-name", self.task.served_model_name, "--host", host, "--port", str(port)),
            *flag_arguments(self.given(config)),
        ]

    def info(self, server: Server) -> ServerInfo:
        for path in ("server_info", "get_server_info"):  # the second is its name before 0.5.10
            try:
                said = call(f"{server.base_url}/{path}")
            except OSError:
                continue
            if isinstance(said, dict):
                return server_info(said)
        return ServerInfo(version="")


def server_info(said: Mapping[str, Any]) -> ServerInfo:
    """What /server_info says, secrets left out."""
    args = {
        key.replace("_", "-"): value
        for key, value in said.items()
        if _is_plain(value) and (value is None or not is_secret(key))
    }
    states = said.get("internal_states")
    first = states[0] if isinstance(states, list) and states else None
    told = [part.get("max_total_num_tokens") for part in (said, first) if isinstance(part, dict)]
    capacity = next((tokens for tokens in told if isinstance(tokens, int) and tokens > 0), None)
    return ServerInfo(str(said.get("version", "")), capacity, args)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _ranks(flags: Config) -> int:
    """Of a size that is given in two spellings the last holds, as with argparse."""
    sizes = {_SIZES[flag]: size_in(value) for flag, value in flags.items() if flag in _SIZES}
    if flags.get("enable-dp-attention"):
        sizes.pop("dp", None)  # which lies within tp there
    return math.prod(sizes.values())
