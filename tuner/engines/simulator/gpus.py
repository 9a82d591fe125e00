"""GPUs by name: memory, bandwidth and arithmetic as their vendor's datasheets give them.

Dense figures without sparsity: where a datasheet gives only the sparse one, half of it stands here. NVLink
and PCIe are one direction: half of a total of both. `memory_mib` is what nvidia-smi reports as total, because
SGLang's rules work on that number; it is a little less than the datasheet's round figure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU; `source` is the document that its figures stand in.

    `flops_bf16` in FLOP/s on the tensor cores with sums in fp32; `fp8` says whether they also compute in fp8
    (at twice that rate), `fp4` whether they take MXFP4 weights as they are. `hbm_bytes_s` is memory
    bandwidth, `link_bytes_s` the bandwidth to a peer GPU in one direction.
    """

    name: str
    memory_mib: int
    hbm_bytes_s: float
    flops_bf16: float
    fp8: bool
    link_bytes_s: float
    source: str
    fp4: bool = False


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu(
            *("h100", 81559, 3.35e12, 989e12, True, 450e9),
            "NVIDIA H100 Tensor Core GPU datasheet, SXM: 80 GB, 3.35 TB/s, 1,979 TFLOPS with sparsity, "
            "NVLink 900 GB/s",
        ),
        Gpu(
            *("h200", 143771, 4.8e12, 989e12, True, 450e9),
            "NVIDIA H200 Tensor Core GPU datasheet, SXM: 141 GB, 4.8 TB/s, 1,979 TFLOPS with sparsity, "
            "NVLink 900 GB/s",
        ),
        Gpu(
            *("a100", 81920, 2.039e12, 312e12, False, 300e9),
            "NVIDIA A100 Tensor Core GPU datasheet, SXM: 80 GB, 2,039 GB/s, 312 TFLOPS, NVLink 600 GB/s",
        ),
        Gpu(
            *("b200", 183359, 8.0e12, 2250e12, True, 900e9),
            "NVIDIA HGX B200 datasheet, one of eight: 180 GB, 8 TB/s, 4.5 PFLOPS with sparsity, "
            "NVLink 1.8 TB/s",
            fp4=True,
        ),
        Gpu(
            *("l4", 23034, 0.3e12, 121e12, True, 32e9),
            "NVIDIA L4 Tensor Core GPU datasheet: 24 GB, 300 GB/s, 242 TFLOPS with sparsity, "
            "PCIe Gen4 x16 64 GB/s",
        ),
        Gpu(
            *("l40s", 46068, 0.864e12, 362e12, True, 32e9),
            "NVIDIA L40S datasheet: 48 GB, 864 GB/s, 362.05 TFLOPS, PCIe Gen4 x16 64 GB/s",
        ),
        Gpu(
            *("rtx4090", 24564, 1.008e12, 165e12, True, 32e9),
            "NVIDIA Ada GPU architecture whitepaper, GeForce RTX 4090: 24 GB, 1,008 GB/s, 165.2 TFLOPS, "
            "PCIe Gen4 x16",
        ),
    )
}

_OTHER_FIGURES = {"pcie", "nvl", "40gb", "40g"}  # variants of H100 and A100 that are not in the table


def gpu_of(model: str) -> str | None:
    """The name here of what NVML calls `NVIDIA H100 80GB HBM3`; None where it is not in the table."""
    words = re.findall(r"[a-z0-9]+", model.lower().replace("rtx ", "rtx"))
    if _OTHER_FIGURES.intersection(words):
        return None
    return next((word for word in words if word in GPUS), None)
