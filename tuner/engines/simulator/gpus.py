"""GPUs by name: memory, bandwidth and arithmetic as their vendor's datasheets give them.

Dense figures without sparsity. `memory_mib` is what nvidia-smi reports as total, because SGLang's rules
work on that number. Where a datasheet gives NVLink as a total of both directions, half of it stands here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU.

    `flops_bf16` in FLOP/s on the tensor cores; `fp8` says whether they also compute in fp8 (at twice that
    rate). `hbm_bytes_s` is memory bandwidth, `link_bytes_s` the bandwidth to a peer GPU in one direction.
    """

    name: str
    memory_mib: int
    hbm_bytes_s: float
    flops_bf16: float
    fp8: bool
    link_bytes_s: float


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("h100", 81559, 3.35e12, 989e12, True, 450e9),  # H100 SXM5 80 GB, NVLink 4
        Gpu("h200", 143771, 4.8e12, 989e12, True, 450e9),  # H200 SXM 141 GB, NVLink 4
        Gpu("a100", 81920, 2.039e12, 312e12, False, 300e9),  # A100 SXM4 80 GB, NVLink 3
        Gpu("b200", 183359, 8.0e12, 2250e12, True, 900e9),  # B200 SXM 192 GB, NVLink 5
        Gpu("l4", 23034, 0.3e12, 121e12, True, 32e9),  # L4 24 GB, PCIe 4.0 x16
        Gpu("l40s", 46068, 0.864e12, 362e12, True, 32e9),  # L40S 48 GB, PCIe 4.0 x16
        Gpu("rtx4090", 24564, 1.008e12, 165e12, True, 32e9),  # GeForce RTX 4090 24 GB, PCIe 4.0 x16
    )
}
