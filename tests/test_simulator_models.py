"""Models and GPUs of the simulator: by name, from config.json, and what they mean for the memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tuner.engines.simulator.architecture import Model
from tuner.engines.simulator.flags import parse_args
from tuner.engines.simulator.gpus import GPUS
from tuner.engines.simulator.memory import kv_bytes_per_token, make_plan
from tuner.engines.simulator.models import ModelNotFound, find_model
from tuner.engines.simulator.weights import weights_of


@pytest.mark.parametrize(
    "name",
    [
        "meta-llama/Llama-3.2-1B-Instruct",
        "llama-3-2-1b-instruct",
        "llama-3.2-1b-instruct",
        "Llama_3.2_1B",
        "x/llama-3.2-1b",
    ],
)
def test_model_names_are_normalised(name: str) -> None:
    assert find_model(name).name == "llama-3-2-1b"


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("meta-llama/Llama-3.2-1B-Instruct", 1.24),
        ("meta-llama/Llama-3.2-3B", 3.21),
        ("meta-llama/Meta-Llama-3-8B-Instruct", 8.03),
        ("meta-llama/Llama-3.1-8B-Instruct", 8.03),
        ("meta-llama/Llama-3.3-70B-Instruct", 70.6),
        ("Qwen/Qwen2.5-0.5B-Instruct", 0.49),
        ("Qwen/Qwen2.5-7B-Instruct", 7.62),
        ("Qwen/Qwen2.5-72B-Instruct", 72.7),
        ("Qwen/Qwen3-0.6B", 0.60),
        ("Qwen/Qwen3-4B", 4.02),
        ("Qwen/Qwen3-32B", 32.8),
        ("mistralai/Mistral-7B-Instruct-v0.3", 7.25),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", 46.7),
        ("mistralai/Mixtral-8x22B-Instruct-v0.1", 140.6),
        ("mistralai/Mistral-Nemo-Instruct-2407", 12.2),
        ("mistralai/Mistral-Small-24B-Instruct-2501", 23.6),
        ("Qwen/Qwen3-30B-A3B", 30.5),
        ("Qwen/Qwen3-235B-A22B", 235.1),
        ("openai/gpt-oss-20b", 20.9),
        ("openai/gpt-oss-120b", 116.8),
        ("deepseek-ai/DeepSeek-V2-Lite", 15.7),
        ("deepseek-ai/DeepSeek-V3-0324", 671),
        ("deepseek-ai/DeepSeek-R1", 671),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, billions: float) -> None:
    assert find_model(name).parameters / 1e9 == pytest.approx(billions, rel=0.01)


def test_a_local_folder_is_read(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    (tmp_path / "config.json").write_text(json.dumps({**sizes, "vocab_size": 100}), encoding="utf-8")
    model = find_model(str(tmp_path))
    assert (model.heads, model.kv_heads, model.head_size, model.vocabulary) == (4, 4, 16, 100)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "{", '{"hidden_size": 1}', '{"num_attention_heads": 0, "hidden_size": 1}']
)
def test_a_folder_with_a_broken_config_is_no_model(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelNotFound):
        find_model(str(tmp_path))


# --- what is published of them -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("mixtral-8x7b", 12.9),
        ("qwen3-30b-a3b", 3.3),
        ("qwen3-235b-a22b", 22.2),
        ("gpt-oss-20b", 3.6),
        ("gpt-oss-120b", 5.1),
        ("deepseek-v2-lite", 2.4),
        ("deepseek-v3", 37),
    ],
)
def test_active_parameters_are_the_published_ones(name: str, billions: float) -> None:
    """OpenAI counts the output head and not the embedding, the others both or neither: 10 % for that."""
    model = find_model(name)
    active = model.always_parameters + model.active_experts * model.expert_parameters
    assert (active + model.head_parameters) / 1e9 == pytest.approx(billions, rel=0.1)


def kv_bytes(flags: str) -> float:
    args = parse_args(["--model-path", *flags.split()])
    return kv_bytes_per_token(args, find_model(args.model_path))


def test_a_latent_takes_as_much_as_published_and_is_copied_to_every_gpu() -> None:
    """DeepSeek-V2 (arXiv:2405.04434, table 1): (512 + 64) values a token and layer."""
    assert kv_bytes("deepseek-v3") == 61 * 576 * 2
    assert kv_bytes("deepseek-v3 --tp 8") == kv_bytes("deepseek-v3")
    assert kv_bytes("deepseek-v3 --tp 8 --dp 8 --enable-dp-attention") == kv_bytes("deepseek-v3") / 8
    assert kv_bytes("llama-3.1-8b --tp 8") == kv_bytes("llama-3.1-8b") / 8
    assert kv_bytes("llama-3.1-8b --tp 16") == kv_bytes("llama-3.1-8b --tp 8")


def test_sliding_layers_keep_fewer_tokens() -> None:
    assert kv_bytes("gpt-oss-20b") == pytest.approx((12 + 0.8 * 12) * 2 * 8 * 64 * 2)


@pytest.mark.parametrize(
    ("name", "gib"),
    [
        ("gpt-oss-120b", 60.8),  # its card: one GPU of 80 GB
        ("gpt-oss-20b", 12.9),  # its card: within 16 GB
        ("deepseek-v3 --tp 8", 640 / 8),  # 689 GB of files, the head of the next-token prediction in them
        ("qwen2.5-7b-awq", 5.2),  # 5.6 GB of files
        ("llama-3.1-8b-fp8", 8.5),  # 9.1 GB of files
    ],
)
def test_weights_take_what_their_checkpoints_take(name: str, gib: float) -> None:
    args = parse_args(["--model-path", *name.split(), "--gpu", "b200"])
    plan = make_plan(args, find_model(args.model_path), GPUS["b200"])
    assert plan.weights_gib == pytest.approx(gib, rel=0.04)


def test_every_gpu_names_the_document_of_its_figures() -> None:
    assert set(GPUS) == {"a100", "h100", "h200", "b200", "l4", "l40s", "rtx4090"}
    for gpu in GPUS.values():
        assert "datasheet" in gpu.source or "whitepaper" in gpu.source
        assert gpu.memory_mib > 20_000 and 1e11 < gpu.hbm_bytes_s < 1e13
        assert 1e14 < gpu.flops_bf16 < 1e16 and 1e10 < gpu.link_bytes_s < 1e12


# --- from config.json ----------------------------------------------------------------------------------


def written(folder: Path, **config: Any) -> Model:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return find_model(str(folder))


def test_a_mixture_with_latent_attention_is_read(tmp_path: Path) -> None:
    """The keys of DeepSeek-V3's config.json."""
    model = written(
        tmp_path,
        **{"hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 128, "vocab_size": 129280},
        **{"num_key_value_heads": 128, "intermediate_size": 18432, "moe_intermediate_size": 2048},
        **{"n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8},
        **{"first_k_dense_replace": 3, "kv_lora_rank": 512, "q_lora_rank": 1536, "v_head_dim": 128},
        **{"qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "max_position_embeddings": 163840},
        **{"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
    )
    known = find_model("deepseek-v3")
    assert model.parameters == known.parameters
    assert (model.latent, model.stored, model.context) == (known.latent, "fp8", 163840)
    assert model.always_parameters == known.always_parameters


SMALL = {
    **{"hidden_size": 4096, "num_hidden_layers": 4, "num_attention_heads": 32, "num_key_value_heads": 8},
    **{"intermediate_size": 14336, "vocab_size": 1000},
}


@pytest.mark.parametrize(
    ("quantization", "size"),
    [
        ({}, 2.0),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, 0.52),
        ({"quant_method": "gptq", "bits": 8, "group_size": 128}, 1.023),
        ({"quant_method": "awq", "bits": 4}, 0.52),
        ({"quant_method": "fbgemm_fp8"}, 1.0),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, 1.0),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, 1.0),
    ],
)
def test_a_quantised_checkpoint_has_its_own_size(
    tmp_path: Path, quantization: dict[str, Any], size: float
) -> None:
    model = written(tmp_path, **SMALL, quantization_config=quantization)
    assert weights_of(parse_args(["--model-path", "m"]), model).linear == pytest.approx(size, rel=1e-2)


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "gptq", "bits": 3},
        {"quant_method": "compressed-tensors", "format": "pack-quantized"},
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
        {"quant_method": "bitsandbytes"},
    ],
)
def test_one_whose_size_is_not_known_is_refused_and_said(
    tmp_path: Path, quantization: dict[str, Any]
) -> None:
    with pytest.raises(ModelNotFound, match=f"{quantization['quant_method']} with .* is not modelled"):
        written(tmp_path, **SMALL, quantization_config=quantization)


def test_the_bits_in_a_name_count() -> None:
    args = parse_args(["--model-path", "m"])
    four, eight = (
        weights_of(args, find_model(f"Qwen/Qwen2.5-72B-Instruct-GPTQ-{bits}")).linear
        for bits in ("Int4", "Int8")
    )
    assert (four, eight) == pytest.approx((0.52, 1.023), rel=1e-2)
    assert find_model("llama-3.1-8b-fp8-dynamic").stored == "fp8"
    for unknown in ("qwen2.5-7b-awq-int8", "qwen2.5-7b-fp8-int4"):
        with pytest.raises(ModelNotFound):
            find_model(unknown)


def test_alternating_windows_are_read(tmp_path: Path) -> None:
    """The keys of gpt-oss-20b's config.json."""
    model = written(
        tmp_path,
        **{"hidden_size": 2880, "num_hidden_layers": 24, "num_attention_heads": 64, "vocab_size": 201088},
        **{"num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 2880, "num_local_experts": 32},
        **{"num_experts_per_tok": 4, "experts_per_token": 4, "sliding_window": 128},
        **{"layer_types": ["sliding_attention", "full_attention"] * 12, "max_position_embeddings": 131072},
        **{"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}},
    )
    known = find_model("gpt-oss-20b")
    assert model.parameters == known.parameters
    assert (model.sliding_layers, model.window, model.stored) == (12, 128, "mxfp4")


def test_a_window_that_no_layer_uses_is_none(tmp_path: Path) -> None:
    """Qwen2.5 has sliding_window with use_sliding_window false."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    model = written(tmp_path, **sizes, vocab_size=100, sliding_window=4096, use_sliding_window=False)
    assert (model.sliding_layers, model.window) == (0, 0)


def test_what_a_model_that_sees_has_for_its_text_is_read(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    assert written(tmp_path, model_type="vl", text_config={**sizes, "vocab_size": 100}).layers == 2
