"""A Llama of two small layers for servers that make up its weights (`--load-format dummy`)."""

from __future__ import annotations

import json
from pathlib import Path

_END = "<|end|>"
_CONTEXT = 4096


def write_tiny_model(folder: Path) -> Path:
    """Writes config and tokenizer, one token a byte, into `folder`; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {character: number for number, character in enumerate(_byte_characters())}
    end = len(vocabulary)
    files = {
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "vocab_size": end + 1,
            "max_position_embeddings": _CONTEXT,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "bos_token_id": end,
            "eos_token_id": end,
            "torch_dtype": "bfloat16",
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": _END,
            "model_max_length": _CONTEXT,
            "chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}",
        },
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {
                    "id": end,
                    "content": _END,
                    "special": True,
                    **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
                }
            ],
            "normalizer": None,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
            "post_processor": None,
            "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
            "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return folder


def _byte_characters() -> list[str]:
    """The printable character that stands for each byte in a byte-level tokenizer (GPT-2's)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
