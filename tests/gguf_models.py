"""Tiny language models in GGUF, which transformers and llama.cpp both read."""

import json
from pathlib import Path

import numpy as np
import pytest

from periscope.adapters.lm.load import load_language_model

gguf = pytest.importorskip("gguf")
REAL = Path("~/.cache/periscope/real/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf").expanduser()
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "model.layers": "blk",
}  # fmt: skip


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of the rows of q and k, whose rotary embedding pairs neighbours."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def add_settings(writer, config, eps: float, file_type: str = "ALL_F32") -> None:
    """A language model's sizes, as llama.cpp reads them. eps: of its norms."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType[file_type])


def write_gguf(folder: Path, out: Path, parts: int = 1, kind: str = "F32") -> list[Path]:
    """The Llama in `folder` as GGUF; in several parts as llama.cpp's gguf-split names and marks them."""
    lm = load_language_model(str(folder))
    config, tokenizer = lm.model.config, lm.tokenizer
    options = {"split_max_tensors": -(-len(lm.model.state_dict()) // parts)} if parts > 1 else {}
    writer = gguf.GGUFWriter(out, "llama", **options)
    add_settings(writer, config, config.rms_norm_eps, {"F32": "ALL_F32", "Q8_0": "MOSTLY_Q8_0"}[kind])
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    special = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token in special else 1 for token in vocabulary])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
    for name, tensor in lm.model.state_dict().items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        values = tensor.numpy()
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        for part, count in heads.items():
            values = permuted(values, count) if part in name else values
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        if kind == "Q8_0" and values.ndim == 2:
            packed = gguf.quantize(values, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(out.parent.glob(f"{out.stem}*.gguf"))
