"""Models by name, or from a folder's config.json.

Every figure of the table is that of the config.json that the model is published with.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tuner.engines.simulator.architecture import Latent, Model

_LARGEST = 2**31 - 1  # of any size in a config.json


class ModelNotFound(LookupError):
    """No model of that name is known and no folder of that name holds a config.json."""


_llama = partial(Model, vocabulary=128256, context=131072)
_qwen2_5 = partial(Model, vocabulary=151936, context=32768)
_qwen2_5_large = partial(Model, vocabulary=152064, context=32768)
_qwen3 = partial(Model, vocabulary=151936, context=40960)
_gpt_oss = partial(Model, vocabulary=201088, context=131072, active_experts=4, window=128, stored="mxfp4")

_DEEPSEEK_V3 = Model(
    *("deepseek-v3", 7168, 61, 128, 128, 192, 2048, 129280, 163840),
    experts=256,
    active_experts=8,
    shared_intermediate=2048,
    dense_layers=3,
    dense_intermediate=18432,
    latent=Latent(rank=512, rope=64, nope=128, value=128, query_rank=1536),
    stored="fp8",
)

_MODELS = (
    #                hidden layers heads kv_heads head_size intermediate
    _llama("llama-3-2-1b", 2048, 16, 32, 8, 64, 8192, tied=True),
    _llama("llama-3-2-3b", 3072, 28, 24, 8, 128, 8192, tied=True),
    _llama("llama-3-1-8b", 4096, 32, 32, 8, 128, 14336),
    _llama("llama-3-1-70b", 8192, 80, 64, 8, 128, 28672),
    _llama("llama-3-3-70b", 8192, 80, 64, 8, 128, 28672),
    Model("llama-3-8b", 4096, 32, 32, 8, 128, 14336, 128256, 8192),
    Model("llama-3-70b", 8192, 80, 64, 8, 128, 28672, 128256, 8192),
    _qwen2_5("qwen2-5-0-5b", 896, 24, 14, 2, 64, 4864, tied=True),
    _qwen2_5("qwen2-5-1-5b", 1536, 28, 12, 2, 128, 8960, tied=True),
    _qwen2_5("qwen2-5-3b", 2048, 36, 16, 2, 128, 11008, tied=True),
    _qwen2_5_large("qwen2-5-7b", 3584, 28, 28, 4, 128, 18944),
    _qwen2_5_large("qwen2-5-14b", 5120, 48, 40, 8, 128, 13824),
    _qwen2_5_large("qwen2-5-32b", 5120, 64, 40, 8, 128, 27648),
    _qwen2_5_large("qwen2-5-72b", 8192, 80, 64, 8, 128, 29568),
    _qwen3("qwen3-0-6b", 1024, 28, 16, 8, 128, 3072, tied=True),
    _qwen3("qwen3-1-7b", 2048, 28, 16, 8, 128, 6144, tied=True),
    _qwen3("qwen3-4b", 2560, 36, 32, 8, 128, 9728, tied=True),
    _qwen3("qwen3-8b", 4096, 36, 32, 8, 128, 12288),
    _qwen3("qwen3-14b", 5120, 40, 40, 8, 128, 17408),
    _qwen3("qwen3-32b", 5120, 64, 64, 8, 128, 25600),
    _qwen3("qwen3-30b-a3b", 2048, 48, 32, 4, 128, 768, experts=128, active_experts=8),
    _qwen3("qwen3-235b-a22b", 4096, 94, 64, 4, 128, 1536, experts=128, active_experts=8),
    Model("mistral-7b", 4096, 32, 32, 8, 128, 14336, 32768, 32768),
    Model("mistral-nemo-2407", 5120, 40, 32, 8, 128, 14336, 131072, 131072),
    Model("mistral-small-24b-2501", 5120, 40, 32, 8, 128, 32768, 131072, 32768),
    Model("mixtral-8x7b", 4096, 32, 32, 8, 128, 14336, 32000, 32768, experts=8, active_experts=2),
    Model("mixtral-8x22b", 6144, 56, 48, 8, 128, 16384, 32000, 65536, experts=8, active_experts=2),
    _gpt_oss("gpt-oss-20b", 2880, 24, 64, 8, 64, 2880, experts=32, sliding_layers=12),
    _gpt_oss("gpt-oss-120b", 2880, 36, 64, 8, 64, 2880, experts=128, sliding_layers=18),
    Model(
        *("deepseek-v2-lite", 2048, 27, 16, 16, 192, 1408, 102400, 163840),
        experts=64,
        active_experts=6,
        shared_intermediate=2816,
        dense_layers=1,
        dense_intermediate=10944,
        latent=Latent(rank=512, rope=64, nope=128, value=128, query_rank=0),
    ),
    _DEEPSEEK_V3,
    replace(_DEEPSEEK_V3, name="deepseek-v3-0324"),
    replace(_DEEPSEEK_V3, name="deepseek-v3-1"),
    replace(_DEEPSEEK_V3, name="deepseek-r1"),
    replace(_DEEPSEEK_V3, name="deepseek-r1-0528"),
)
_BY_NAME = {model.name: model for model in _MODELS}
_DECORATION = re.compile(r"^(meta-)(?=llama-)|-(instruct|chat|it|base)(?=-|$)|-v0-\d$|-hf$")
_STORED = re.compile(r"-(awq(?=$|-int4)|gptq-int8|gptq(?=$|-int4)|fp8(?=$|-dynamic))(-int4|-dynamic)?$")
# What a quantization_config says beside its method, of the methods that the cost model knows.
_STORED_AS: dict[str, dict[str, Any]] = {
    "fp8": {},
    "fbgemm_fp8": {},
    "mxfp4": {},
    "awq": {"bits": 4},
    "gptq": {"bits": 4},
    "compressed-tensors": {"format": "float-quantized"},
    "modelopt": {"quant_algo": "FP8"},
}


def normalise(model_path: str) -> str:
    """The name under which a model is known: no organisation, lower case, `.` and `_` as `-`."""
    name = re.sub(r"[._]", "-", model_path.rstrip("/").rsplit("/", 1)[-1].lower())
    return _DECORATION.sub("", name)


def find_model(model_path: str) -> Model:
    """The model of that name or, where `model_path` is a folder with a config.json, what stands there.

    A name that ends in AWQ, GPTQ or FP8 is that of a quantised checkpoint of the model.
    """
    config = Path(model_path) / "config.json"
    if config.is_file():
        return _from_file(config)
    name = normalise(model_path)
    if name in _BY_NAME:
        return _BY_NAME[name]
    if (quantised := _STORED.search(name)) and (plain := _BY_NAME.get(name[: quantised.start()])):
        return replace(plain, name=name, stored=quantised.group(1))
    raise ModelNotFound(model_path)


def _from_file(path: Path) -> Model:
    try:
        return _from_config(json.loads(path.read_text(encoding="utf-8")), normalise(str(path.parent)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelNotFound(f"{path}: {error!r}") from error


def _from_config(config: Mapping[str, Any], name: str) -> Model:
    """Reads the keys that transformers writes for Llama, Qwen, Mistral, Mixtral, gpt-oss and DeepSeek."""
    config = {**config, **(config.get("text_config") or {})}
    heads, hidden = _size(config, "num_attention_heads"), _size(config, "hidden_size")
    experts = _size(config, "n_routed_experts", "num_local_experts", "num_experts", default=0)
    dense = _size(config, "intermediate_size", "moe_intermediate_size")
    expert = _size(config, "moe_intermediate_size", default=dense)
    sliding = (config.get("layer_types") or []).count("sliding_attention")
    shared = _size(config, "n_shared_experts", default=0) * expert
    return Model(
        name=name,
        hidden=hidden,
        layers=_size(config, "num_hidden_layers"),
        heads=heads,
        kv_heads=_size(config, "num_key_value_heads", default=heads),
        head_size=_size(config, "head_dim", default=max(hidden // heads, 1)),
        intermediate=expert if experts else dense,
        vocabulary=_size(config, "vocab_size"),
        context=_size(config, "max_position_embeddings", default=4096),
        tied=config.get("tie_word_embeddings") is True,
        experts=experts or 1,
        active_experts=_size(config, "num_experts_per_tok", "experts_per_token", default=1),
        shared_intermediate=_size(config, "shared_expert_intermediate_size", default=shared),
        dense_layers=_size(config, "first_k_dense_replace", default=0) if experts else 0,
        dense_intermediate=dense,
        sliding_layers=sliding,
        window=_size(config, "sliding_window", default=0) if sliding else 0,
        latent=_latent(config),
        stored=_stored(config.get("quantization_config") or {}),
    )


def _stored(quantization: Mapping[str, Any]) -> str:
    """How the weights are stored, as `weights` calls it; ValueError where their size is not known."""
    if not (method := quantization.get("quant_method")):
        return ""
    if method == "gptq" and quantization.get("bits") == 8:
        return "gptq-int8"
    known = _STORED_AS.get(method)
    if known is None or any(quantization.get(key, value) != value for key, value in known.items()):
        told = {key: quantization[key] for key in ("bits", "format", "quant_algo") if key in quantization}
        raise ValueError(f"quantization_config: {method} with {told or 'nothing more'} is not modelled")
    return str(method)


def _latent(config: Mapping[str, Any]) -> Latent | None:
    if not config.get("kv_lora_rank"):
        return None
    return Latent(
        rank=_size(config, "kv_lora_rank"),
        rope=_size(config, "qk_rope_head_dim"),
        nope=_size(config, "qk_nope_head_dim"),
        value=_size(config, "v_head_dim"),
        query_rank=_size(config, "q_lora_rank", default=0),
    )


def _size(config: Mapping[str, Any], *keys: str, default: int | None = None) -> int:
    """The first of `keys` that says anything, or `default`; ValueError where that is no size."""
    value = next((told for key in keys if (told := config.get(key))), default)
    if value == default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _LARGEST:
        raise ValueError(f"{keys[-1]} is {value!r}")
    return value
