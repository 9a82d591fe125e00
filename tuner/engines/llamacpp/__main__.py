"""Serves a GGUF file with the llama.cpp inside `xllamacpp`, with llama-server's own flags and defaults.

Run by its path, so that an interpreter which has xllamacpp and not this project will do; hence the
standard library only. Exits with 2 for a bad flag, with 1 for a model that cannot be served; SIGTERM ends it.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

MOST_THREADS = 512  # GGML_MAX_N_THREADS: beyond, it ends by a segmentation fault
_CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
_FLASH_ATTN = {"auto": "AUTO", "on": "ENABLED", "off": "DISABLED"}
_PLAIN = {  # flags that are a field of CommonParams
    "batch_size": "n_batch",
    "ubatch_size": "n_ubatch",
    "parallel": "n_parallel",
    "ctx_size": "n_ctx",
    "n_gpu_layers": "n_gpu_layers",
    "cache_prompt": "cache_prompt",
    "cache_reuse": "n_cache_reuse",
    "cache_ram": "cache_ram_mib",
    "cont_batching": "cont_batching",
    "kv_unified": "kv_unified",
    "threads_http": "n_threads_http",
    "port": "port",
}
_SHARE_OF_MEMORY = 0.8
_LOG_WRITTEN_S = (
    1.0  # llama.cpp's log has a thread of its own: on a busy machine an exit came before the reason
)


def _whole(low: int, high: int = 2**31 - 1, *, also: int | None = None) -> Callable[[str], int]:
    """An argument type: a whole number from `low` to `high`, or `also`, which has a meaning of its own."""

    def number(text: str) -> int:
        value = int(text)
        if value != also and not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} is not between {low} and {high}")
        return value

    return number


def parser() -> argparse.ArgumentParser:
    """The flags, named and defaulting as llama-server's; `--memory-limit` is this launcher's own."""
    flags = argparse.ArgumentParser(
        "llamacpp", usage="%(prog)s --model PATH [--FLAG VALUE ...]", allow_abbrev=False
    )
    switch = argparse.BooleanOptionalAction
    flags.add_argument("--model", required=True, help="path of a GGUF file")
    flags.add_argument("--alias", default="", help="name under which it is served")
    flags.add_argument("--host", default="127.0.0.1")
    flags.add_argument("--port", type=_whole(0, 65535), default=8080)
    flags.add_argument("--threads", type=_whole(1, MOST_THREADS, also=-1), default=-1)
    flags.add_argument("--threads-batch", type=_whole(1, MOST_THREADS, also=-1), default=-1)
    flags.add_argument("--threads-http", type=_whole(1, MOST_THREADS, also=-1), default=-1)
    flags.add_argument("--poll", type=_whole(0, 100), default=50)
    flags.add_argument("--batch-size", type=_whole(1), default=2048)
    flags.add_argument("--ubatch-size", type=_whole(1), default=512)
    flags.add_argument(
        "--parallel", type=_whole(1, also=-1), default=-1, help="slots; -1: four, one KV cache"
    )
    flags.add_argument("--ctx-size", type=_whole(0), default=0, help="of all slots together; 0: the model's")
    flags.add_argument("--kv-unified", action=switch, default=False)
    flags.add_argument("--cont-batching", action=switch, default=True)
    flags.add_argument("--cache-prompt", action=switch, default=True)
    flags.add_argument("--cache-reuse", type=_whole(0), default=0)
    flags.add_argument(
        "--cache-ram", type=_whole(0, also=-1), default=8192, help="MiB; -1: no limit, 0: none"
    )
    flags.add_argument("--cache-type-k", choices=_CACHE_TYPES, default="f16")
    flags.add_argument("--cache-type-v", choices=_CACHE_TYPES, default="f16")
    flags.add_argument("--flash-attn", choices=_FLASH_ATTN, default="auto")
    flags.add_argument("--repack", action=switch, default=True)
    flags.add_argument("--n-gpu-layers", type=_whole(0, also=-1), default=-1, help="of a build that has GPUs")
    flags.add_argument("--memory-limit", type=_whole(1), help="MiB; default: 80 %% of the machine's")
    return flags


def memory_mib() -> int | None:
    """Memory of this machine, or of the container where that has less; None where nothing tells."""
    known = []
    with suppress(OSError, ValueError):
        known.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(OSError, ValueError):  # "max" where the container has no limit
        known.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(known) // 2**20 if known else None


def _limit_memory(limit_mib: int | None) -> None:
    """Refuses this process more: a context of 4e8 tokens takes 20 GiB, and the machine with it."""
    import resource  # noqa: PLC0415  not on Windows

    if limit_mib is None:
        machine_mib = memory_mib()
        if machine_mib is None:
            return
        limit_mib = int(machine_mib * _SHARE_OF_MEMORY)
    with suppress(OSError, ValueError):  # a lower one stands already; macOS knows none
        resource.setrlimit(resource.RLIMIT_AS, (limit_mib * 2**20, limit_mib * 2**20))
        sys.stderr.write(f"memory limit: {limit_mib} MiB\n")


def _server(asked: argparse.Namespace) -> Any:
    """llama.cpp's server with these flags, ready to serve; RuntimeError where it cannot be."""
    import xllamacpp  # noqa: PLC0415  under the memory limit; `parser` needs none of it

    sys.stderr.write(f"llama.cpp of xllamacpp {version('xllamacpp')}\n")
    params = xllamacpp.CommonParams()
    params.model.path = asked.model
    params.model_alias = {asked.alias or asked.model}
    params.hostnames = [asked.host]
    for flag, name in _PLAIN.items():
        setattr(params, name, getattr(asked, flag))
    params.cpuparams.n_threads = asked.threads
    params.cpuparams_batch.n_threads = asked.threads if asked.threads_batch == -1 else asked.threads_batch
    params.cpuparams.poll = params.cpuparams_batch.poll = asked.poll
    params.no_extra_bufts = not asked.repack
    params.cache_type_k = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{asked.cache_type_k.upper()}")
    params.cache_type_v = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{asked.cache_type_v.upper()}")
    flash_attn = f"LLAMA_FLASH_ATTN_TYPE_{_FLASH_ATTN[asked.flash_attn]}"
    params.flash_attn_type = getattr(xllamacpp.llama_flash_attn_type, flash_attn)
    params.endpoint_metrics = True
    params.ui = False
    params.slot_save_path = os.devnull  # without one no slot can be erased; nothing is ever saved
    return xllamacpp.Server(params)


def main() -> NoReturn:
    """Serves until SIGTERM."""
    asked = parser().parse_args()
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # gdb's would bury the reason of an abort
    _limit_memory(asked.memory_limit)
    try:
        server = _server(asked)
    except RuntimeError as error:
        time.sleep(_LOG_WRITTEN_S)
        sys.exit(f"not served: {error}")
    while server:
        signal.pause()
    sys.exit()


if __name__ == "__main__":
    main()
