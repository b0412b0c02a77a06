"""Tiny random language models of real architecture classes, with tokenizers of the kinds that real models use."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    FalconMambaConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    MistralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from periscope.quiet import quiet_transformers

WORDS = [
    "a red circle and a small blue star", "What colour is the star? It is blue.", "user assistant Question: Answer:",
    "the quick brown fox jumps over the lazy dog", "in the top left, in the centre, to the right", "</image> <image>",
]  # fmt: skip

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


def byte_level(
    bos: bool = False, pad: bool = True, chat: str | None = None, eos: str = "</s>"
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, as of GPT-2, OPT (with `bos`) and Qwen (with `chat`)."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(WORDS, trainer)
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token=eos,
        pad_token="<pad>" if pad else None,
        chat_template=chat,
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )


def sentencepiece_like(chat: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer as of Llama 2 and Mistral: space before the first word, `<s>` added, byte fallback, no pad token."""
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.pre_tokenizer = pre_tokenizers.Split(Regex("▁"), "merged_with_next")
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)]
    core.train_from_iterator(WORDS, trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False))
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=chat
    )


_SIZE: dict[str, Any] = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=256)
_GATED: dict[str, Any] = dict(intermediate_size=64, num_key_value_heads=2, **_SIZE)
_HALF_ROTARY: dict[str, Any] = dict(partial_rotary_factor=0.5)
_SCAN: dict[str, Any] = dict(hidden_size=32, num_hidden_layers=2, state_size=4, expand=2)
FAMILIES: dict[str, tuple[Callable[[int], PretrainedConfig], Callable[[], PreTrainedTokenizerFast]]] = {
    "llama": (lambda v: LlamaConfig(vocab_size=v, intermediate_size=64, **_SIZE), sentencepiece_like),
    "smollm": (  # a Llama with tied embeddings
        lambda v: LlamaConfig(vocab_size=v, tie_word_embeddings=True, **_GATED),
        lambda: byte_level(chat=CHATML, eos="<|im_end|>"),
    ),
    "smollm3": (  # every other layer has no positional encoding
        lambda v: SmolLM3Config(vocab_size=v, no_rope_layers=[1, 0], **_GATED),
        lambda: byte_level(chat=CHATML, eos="<|im_end|>"),
    ),
    "opt": (
        lambda v: OPTConfig(
            vocab_size=v, ffn_dim=64, word_embed_proj_dim=32, dropout=0.1, do_layer_norm_before=True, **_SIZE
        ),
        lambda: byte_level(bos=True),
    ),
    "opt-350m": (  # word embeddings narrower than the layers
        lambda v: OPTConfig(vocab_size=v, ffn_dim=64, word_embed_proj_dim=16, do_layer_norm_before=False, **_SIZE),
        lambda: byte_level(bos=True),
    ),
    "gpt2": (  # learned positions
        lambda v: GPT2Config(vocab_size=v, n_embd=32, n_layer=2, n_head=4, n_positions=256),
        lambda: byte_level(pad=False),
    ),
    "gptj": (
        lambda v: GPTJConfig(vocab_size=v, n_embd=32, n_layer=2, n_head=4, n_positions=256, rotary_dim=4),
        lambda: byte_level(pad=False),
    ),
    "gemma": (lambda v: GemmaConfig(vocab_size=v, head_dim=8, **_GATED), sentencepiece_like),  # scales its embeddings
    "gemma2": (  # soft-caps its logits, and every other layer has a window of 40 tokens
        lambda v: Gemma2Config(vocab_size=v, head_dim=8, sliding_window=40, **_GATED),
        sentencepiece_like,
    ),
    "gemma3_text": (  # window layers have rotary embeddings of their own
        lambda v: Gemma3TextConfig(
            vocab_size=v, head_dim=8, sliding_window=40, layer_types=["sliding_attention", "full_attention"], **_GATED
        ),
        sentencepiece_like,
    ),
    "gpt_neox": (lambda v: GPTNeoXConfig(vocab_size=v, intermediate_size=64, **_SIZE), lambda: byte_level(pad=False)),
    "phi": (  # attention and feed-forward in parallel; rotary embedding on half of each head
        lambda v: PhiConfig(vocab_size=v, intermediate_size=64, **_HALF_ROTARY, **_SIZE),
        lambda: byte_level(pad=False),
    ),
    "phi3": (
        lambda v: Phi3Config(vocab_size=v, sliding_window=40, pad_token_id=None, **_GATED),
        lambda: sentencepiece_like(chat=INST),
    ),
    "qwen2": (lambda v: Qwen2Config(vocab_size=v, **_GATED), lambda: byte_level(chat=CHATML, eos="<|im_end|>")),
    "qwen3": (lambda v: Qwen3Config(vocab_size=v, head_dim=8, **_GATED), lambda: byte_level(chat=CHATML, eos="</s>")),
    "mistral": (
        lambda v: MistralConfig(vocab_size=v, sliding_window=40, **_GATED),
        lambda: sentencepiece_like(chat=INST),
    ),
    "olmo2": (lambda v: Olmo2Config(vocab_size=v, **_GATED), lambda: byte_level(chat=CHATML)),
    "granite": (  # scales its embeddings, residuals and logits
        lambda v: GraniteConfig(
            vocab_size=v, embedding_multiplier=12.0, residual_multiplier=0.22, logits_scaling=8.0, **_GATED
        ),
        lambda: byte_level(chat=CHATML),
    ),
    "mamba": (lambda v: MambaConfig(vocab_size=v, **_SCAN), byte_level),
    "mamba2": (lambda v: Mamba2Config(vocab_size=v, num_heads=8, head_dim=8, n_groups=2, **_SCAN), byte_level),
    "falcon_mamba": (lambda v: FalconMambaConfig(vocab_size=v, **_SCAN), byte_level),
}


def save_language_model(family: str, folder: Path, seed: int = 0, **overrides: Any) -> Path:
    """Write a tiny random model of `family` with its tokenizer to `folder`, for `from_pretrained` to read.

    `overrides` are fields of the model's config.
    """
    make_config, make_tokenizer = FAMILIES[family]
    tokenizer = make_tokenizer()
    config = make_config(len(tokenizer))
    for key, value in overrides.items():
        setattr(config, key, value)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id, None
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if "norm" not in name and parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    with quiet_transformers():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
