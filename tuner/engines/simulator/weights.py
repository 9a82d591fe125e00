"""How a model's weights lie in memory, and in which arithmetic they are multiplied."""

from __future__ import annotations

from dataclasses import dataclass

from tuner.engines.simulator.architecture import Model
from tuner.engines.simulator.flags import ServerArgs
from tuner.engines.simulator.gpus import Gpu

FP8 = {"fp8", "mxfp8", "w8a8_fp8"}  # methods that SGLang applies to an unquantised checkpoint
UNQUANTISED = {None, "unquant"}
# Bytes of a weight. AWQ and GPTQ: 4 bits (or 8), and for each group of 128 a scale of 16 bits and a zero of
# as many as a weight (arXiv:2306.00978). MXFP4: 4 bits, and a scale of 8 for each block of 32 (OCP
# Microscaling Formats v1.0).
_STORED_FP8 = dict.fromkeys(("fp8", "fbgemm_fp8", "compressed-tensors", "modelopt"), 1.0)
_STORED_BYTES = {
    **_STORED_FP8,
    **dict.fromkeys(("awq", "gptq"), 0.5 + 2.5 / 128),
    "gptq-int8": 1 + 3 / 128,
    "mxfp4": 0.5 + 1 / 32,
}
_SERVES = {  # the flags that go with a checkpoint of that kind, besides none
    "awq": {"awq", "awq_marlin"},
    "gptq": {"gptq", "gptq_marlin"},
    "gptq-int8": {"gptq", "gptq_marlin"},
    "modelopt": {"modelopt", "modelopt_fp8"},
}


@dataclass(frozen=True)
class Weights:
    """Bytes of a weight of the experts, and of the other linear layers; embeddings and head have `rest`."""

    linear: float
    experts: float
    rest: float
    linear_fp8: bool
    experts_fp8: bool

    def flops(self, gpu: Gpu) -> tuple[float, float]:
        """FLOP/s of the other linear layers and of the experts.

        fp8 is multiplied in fp8 where the GPU can, and so is MXFP4 where the GPU takes it; what is stored in
        4 bits else is multiplied in 16, as the kernels unpack it.
        """
        linear, experts = (
            gpu.flops_bf16 * (2 if fp8 and gpu.fp8 else 1) for fp8 in (self.linear_fp8, self.experts_fp8)
        )
        if self.experts == _STORED_BYTES["mxfp4"] and gpu.fp4:
            experts = 2 * gpu.flops_bf16
        return (linear / 2, experts / 2) if self.rest == 4 else (linear, experts)  # TF32


def weights_of(args: ServerArgs, model: Model) -> Weights:
    """What `args` make of the checkpoint of `model`."""
    plain = 4.0 if args.dtype in ("float", "float32") else 2.0
    method = model.stored or ("fp8" if args.quantization in FP8 else "")
    stored = _STORED_BYTES.get(method, plain)
    fp8 = method in _STORED_FP8
    # gpt-oss keeps all but its experts in 16 bits
    return Weights(plain if method == "mxfp4" else stored, stored, plain, fp8, fp8)


def mismatch(args: ServerArgs, model: Model) -> str:
    """What SGLang says where --quantization and the checkpoint do not go together; empty where they do."""
    asked = args.quantization
    if not model.stored:
        unknown = asked not in FP8 | UNQUANTISED
        return f"ValueError: Cannot find the config file for {asked}" if unknown else ""
    if asked is None or asked in _SERVES.get(model.stored, {model.stored}):
        return ""
    kind = model.stored.removesuffix("-int8")
    return (
        f"ValueError: Quantization method specified in the model config ({kind}) does not match the "
        f"quantization method specified in the `quantization` argument ({asked})."
    )
