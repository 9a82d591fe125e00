"""A llama of a few random megabytes as a GGUF file, made in a second: real tokens without any download."""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np

from tuner.vocabulary import WORDS

CONTEXT = 4096  # tokens it says that it was trained for
_HEADS, _KV_HEADS = 4, 2
_SPACE = "\u0120"  # a blank, as GPT-2's byte-level BPE spells it


def _vocabulary() -> tuple[list[str], list[str]]:
    """Tokens and merges: every byte, every word of the load's prompts behind a blank, and `</s>`."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    tokens = [*map(chr, printable), *(chr(256 + number) for number in range(len(others)))]
    merges = []
    for word in WORDS:
        for end in range(len(word)):  # only ever at a word's beginning, so that no two merges compete
            left, right = _SPACE + word[:end], word[end]
            if left + right not in tokens:
                tokens.append(left + right)
                merges.append(f"{left} {right}")
    return [*tokens, "</s>"], merges


def write_tiny_gguf(path: Path, *, hidden: int = 256, layers: int = 2, seed: int = 0) -> Path:
    """Writes the model and returns `path`. A word of a prompt is a token, and so is what it answers with."""
    rng = np.random.default_rng(seed)
    tokens, merges = _vocabulary()
    kv_width, inner = hidden // _HEADS * _KV_HEADS, hidden * 4

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(hidden // _HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * (len(tokens) - 1) + [gguf.TokenType.CONTROL])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(len(tokens) - 1)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_add_bos_token(False)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) * columns**-0.5).astype(np.float16)

    output = matrix(len(tokens), hidden)
    output[[number for number, token in enumerate(tokens) if len(token) < 5]] = 0  # whole words are likelier
    writer.add_tensor("token_embd.weight", matrix(len(tokens), hidden))
    writer.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
    writer.add_tensor("output.weight", output)
    for layer in range(layers):
        block = f"blk.{layer}"
        writer.add_tensor(f"{block}.attn_norm.weight", np.ones(hidden, np.float32))
        writer.add_tensor(f"{block}.attn_q.weight", matrix(hidden, hidden))
        writer.add_tensor(f"{block}.attn_k.weight", matrix(kv_width, hidden))
        writer.add_tensor(f"{block}.attn_v.weight", matrix(kv_width, hidden))
        writer.add_tensor(f"{block}.attn_output.weight", matrix(hidden, hidden))
        writer.add_tensor(f"{block}.ffn_norm.weight", np.ones(hidden, np.float32))
        writer.add_tensor(f"{block}.ffn_gate.weight", matrix(inner, hidden))
        writer.add_tensor(f"{block}.ffn_up.weight", matrix(inner, hidden))
        writer.add_tensor(f"{block}.ffn_down.weight", matrix(hidden, inner))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


if __name__ == "__main__":  # python tests/tiny_gguf.py PATH HIDDEN LAYERS: to measure on a model of some size
    write_tiny_gguf(Path(sys.argv[1]), hidden=int(sys.argv[2]), layers=int(sys.argv[3]))
