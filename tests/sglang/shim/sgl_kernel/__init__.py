"""The CPU kernels of SGLang in name only, but for the one that has no torch-native fallback in SGLang.

`torch.ops.sgl_kernel` stays empty, so SGLang finds no AMX support and computes with torch itself.
"""

from collections.abc import Callable
from typing import Any


def assign_req_to_token_pool_cpu(
    request_rows: Any, table: Any, starts: Any, ends: Any, slots: Any, width: int
) -> None:
    """Writes each request's new KV slots into its row of `table`, from `starts` to `ends`."""
    used = 0
    for row, start, end in zip(request_rows.tolist(), starts.tolist(), ends.tolist(), strict=True):
        table[row, start:end] = slots[used : used + end - start].to(table.dtype)
        used += end - start


def __getattr__(name: str) -> Callable[..., None]:
    if name.startswith("__") or not name.endswith("_cpu"):
        raise AttributeError(name)  # SGLang asks for GPU kernels to find out what it runs on

    def missing(*_: Any, **__: Any) -> None:
        raise NotImplementedError(f"sgl_kernel.{name} is not built")

    return missing
