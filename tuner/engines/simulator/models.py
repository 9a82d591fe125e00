"""Model architectures by name, or from a folder's config.json: the sizes that cost and memory follow from.

The figures are those of the config.json that each model is published with.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

_LARGEST = 2**31 - 1  # of any size in a config.json


class ModelNotFound(LookupError):
    """No model of that name is known and no folder of that name holds a config.json."""


@dataclass(frozen=True)
class Model:
    """A decoder-only transformer with a gated MLP; a token uses `active_experts` of a layer's `experts`."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    context: int  # tokens
    tied: bool = False  # whether the output head shares the embedding's weights
    experts: int = 1
    active_experts: int = 1

    @property
    def attention_parameters(self) -> int:
        """Weights of the attention projections, all layers."""
        return self.layers * self.hidden * self.head_size * (2 * self.heads + 2 * self.kv_heads)

    @property
    def expert_parameters(self) -> int:
        """Weights of one expert's MLP, all layers."""
        return self.layers * 3 * self.hidden * self.intermediate

    @property
    def head_parameters(self) -> int:
        """Weights of the output head."""
        return self.hidden * self.vocabulary

    @property
    def parameters(self) -> int:
        """All weights that are loaded."""
        embeddings = self.head_parameters * (1 if self.tied else 2)
        return self.attention_parameters + self.experts * self.expert_parameters + embeddings


_llama = partial(Model, vocabulary=128256, context=131072)
_qwen2_5 = partial(Model, vocabulary=151936, context=32768)
_qwen2_5_large = partial(Model, vocabulary=152064, context=32768)
_qwen3 = partial(Model, vocabulary=151936, context=40960)

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
    Model("mistral-7b", 4096, 32, 32, 8, 128, 14336, 32768, 32768),
    Model("mixtral-8x7b", 4096, 32, 32, 8, 128, 14336, 32000, 32768, experts=8, active_experts=2),
    Model("mistral-nemo-2407", 5120, 40, 32, 8, 128, 14336, 131072, 131072),
    Model("mistral-small-24b-2501", 5120, 40, 32, 8, 128, 32768, 131072, 32768),
    Model("mixtral-8x22b", 6144, 56, 48, 8, 128, 16384, 32000, 65536, experts=8, active_experts=2),
    _qwen3("qwen3-30b-a3b", 2048, 48, 32, 4, 128, 768, experts=128, active_experts=8),
    _qwen3("qwen3-235b-a22b", 4096, 94, 64, 4, 128, 1536, experts=128, active_experts=8),
)
_BY_NAME = {model.name: model for model in _MODELS}
_DECORATION = re.compile(r"^(meta-)(?=llama-)|-(instruct|chat|it|base)(?=-|$)|-v0-\d$|-hf$")


def normalise(model_path: str) -> str:
    """The name under which a model is known: no organisation, lower case, `.` and `_` as `-`."""
    name = re.sub(r"[._]", "-", model_path.rstrip("/").rsplit("/", 1)[-1].lower())
    return _DECORATION.sub("", name)


def find_model(model_path: str) -> Model:
    """The model of that name or, where `model_path` is a folder with a config.json, what stands there."""
    config = Path(model_path) / "config.json"
    if config.is_file():
        return _from_config(config)
    try:
        return _BY_NAME[normalise(model_path)]
    except KeyError:
        raise ModelNotFound(model_path) from None


def _from_config(path: Path) -> Model:
    """Reads the keys that transformers writes for Llama, Qwen, Mistral and Mixtral."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        heads, hidden = _size(config, "num_attention_heads"), _size(config, "hidden_size")
        return Model(
            name=normalise(str(path.parent)),
            hidden=hidden,
            layers=_size(config, "num_hidden_layers"),
            heads=heads,
            kv_heads=_size(config, "num_key_value_heads", default=heads),
            head_size=_size(config, "head_dim", default=max(hidden // heads, 1)),
            intermediate=_size(config, "moe_intermediate_size", "intermediate_size"),
            vocabulary=_size(config, "vocab_size"),
            context=_size(config, "max_position_embeddings", default=4096),
            tied=config.get("tie_word_embeddings") is True,
            experts=_size(config, "num_local_experts", "num_experts", default=1),
            active_experts=_size(config, "num_experts_per_tok", default=1),
        )
    except (OSError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise ModelNotFound(f"{path}: {error!r}") from error


def _size(config: Any, *keys: str, default: int | None = None) -> int:
    """The first of `keys` that says anything; ValueError where that is no size."""
    value = next((told for key in keys if (told := config.get(key))), default)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _LARGEST:
        raise ValueError(f"{keys[-1]} is {value!r}")
    return value
