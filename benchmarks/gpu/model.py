"""Models without weights: a folder with config.json and a tokenizer, for servers that make the weights up
(`--load-format dummy`). Nothing is downloaded.

    python -m benchmarks.gpu.model llama-3.2-1b .gpu/models/llama-3.2-1b

The sizes are those that the simulator knows by name. A prompt has one token a byte; the other tokens are
short words of ASCII, so that what random weights answer can be decoded token by token, as with a real model.
"""

from __future__ import annotations

import argparse
import json
from itertools import count, islice, product
from pathlib import Path
from string import ascii_letters, digits

from tuner.engines.simulator.architecture import Model
from tuner.engines.simulator.models import find_model

_END = "<|end|>"
_BYTES = 256


def write_model(folder: Path, model: Model) -> Path:
    """Writes a Llama of these sizes into `folder`; returns it."""
    end = model.vocabulary - 1
    files = {
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": model.hidden,
            "intermediate_size": model.intermediate,
            "num_hidden_layers": model.layers,
            "num_attention_heads": model.heads,
            "num_key_value_heads": model.kv_heads,
            "head_dim": model.head_size,
            "vocab_size": model.vocabulary,
            "max_position_embeddings": model.context,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": model.tied,
            "bos_token_id": end,
            "eos_token_id": end,
            "torch_dtype": "bfloat16",
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": _END,
            "model_max_length": model.context,
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
            "model": {"type": "BPE", "vocab": _vocabulary(end), "merges": []},
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return folder


def _vocabulary(size: int) -> dict[str, int]:
    """`size` tokens: every byte, then words that no text is split into, for there are no merges."""
    words = ("".join(word) for n in count(2) for word in product(ascii_letters + digits, repeat=n))
    return {
        token: number for number, token in enumerate([*_byte_characters(), *islice(words, size - _BYTES)])
    }


def _byte_characters() -> list[str]:
    """The printable character that stands for each byte in a byte-level tokenizer (GPT-2's)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(_BYTES)]


def main() -> None:
    """Writes the model that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help="as the simulator knows it")
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    write_model(args.folder, find_model(args.name))


if __name__ == "__main__":
    main()
