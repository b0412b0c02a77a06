"""Sizes of the language models that recipes name, so that a training's memory can be counted without a download."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from periscope.adapters.names import PROJECT
from periscope.errors import RunError
from periscope.paths import expanded

if TYPE_CHECKING:  # the names are needed before torch is imported, which takes seconds
    import torch
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class ModelSize:
    """What a language model's config.json says.

    config: fields that differ from transformers' defaults for this `model_type` · family: in `adapters.lm.tiny`, whose
    tiny models have the same class and the same kind of tokenizer; "": `model_type`.
    """

    model_type: str
    config: dict
    licence: str
    family: str = ""


def _opt(width: int, layers: int, heads: int, **more: object) -> ModelSize:
    return ModelSize(
        "opt",
        {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "ffn_dim": 4 * width, **more},
        "OPT, not commercial",
    )


def _mistral(vocabulary: int) -> ModelSize:
    return ModelSize(
        "mistral", {"vocab_size": vocabulary, "num_key_value_heads": 8, "intermediate_size": 14336}, "Apache 2.0"
    )


def _smollm2(width: int, layers: int, heads: int, key_value_heads: int, inner: int) -> ModelSize:
    return ModelSize(
        "llama",
        {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "vocab_size": 49152}
        | {"num_key_value_heads": key_value_heads, "intermediate_size": inner, "tie_word_embeddings": True},
        "Apache 2.0",
        "smollm",
    )


def _llama_3(width: int, layers: int, heads: int) -> ModelSize:
    return ModelSize(
        "llama",
        {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "vocab_size": 128256}
        | {"num_key_value_heads": 8, "intermediate_size": 8192, "tie_word_embeddings": True},
        "Llama 3.2",
    )


def _qwen(model_type: str, width: int, layers: int, heads: tuple[int, int], inner: int, **more: object) -> ModelSize:
    return ModelSize(
        model_type,
        {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads[0], "vocab_size": 151936}
        | {"num_key_value_heads": heads[1], "intermediate_size": inner, "tie_word_embeddings": True, **more},
        "Apache 2.0",
    )


LANGUAGE_MODELS = {
    "facebook/opt-350m": _opt(1024, 24, 16, word_embed_proj_dim=512, do_layer_norm_before=False),
    "facebook/opt-2.7b": _opt(2560, 32, 32, word_embed_proj_dim=2560),
    "facebook/opt-6.7b": _opt(4096, 32, 32, word_embed_proj_dim=4096),
    "NousResearch/Nous-Hermes-2-Mistral-7B-DPO": _mistral(32002),
    "mistralai/Mistral-7B-Instruct-v0.2": _mistral(32000),
    "mistralai/Mistral-7B-Instruct-v0.3": _mistral(32768),
    "meta-llama/Llama-2-7b-chat-hf": ModelSize("llama", {}, "Llama 2"),
    "lmsys/vicuna-7b-v1.5": ModelSize("llama", {}, "Llama 2"),
    "state-spaces/mamba-2.8b-hf": ModelSize(
        "mamba", {"hidden_size": 2560, "num_hidden_layers": 64, "vocab_size": 50280}, "Apache 2.0"
    ),
    "EleutherAI/pythia-2.8b": ModelSize(
        "gpt_neox",
        {"hidden_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 10240}
        | {"vocab_size": 50304},
        "Apache 2.0",
    ),
    "EleutherAI/gpt-j-6b": ModelSize("gptj", {}, "Apache 2.0"),
    "openai-community/gpt2": ModelSize("gpt2", {}, "MIT"),
    "HuggingFaceTB/SmolLM2-135M-Instruct": _smollm2(576, 30, 9, 3, 1536),
    "HuggingFaceTB/SmolLM2-360M": _smollm2(960, 32, 15, 5, 2560),
    "HuggingFaceTB/SmolLM2-360M-Instruct": _smollm2(960, 32, 15, 5, 2560),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": _smollm2(2048, 24, 32, 32, 8192),
    "meta-llama/Llama-3.2-1B-Instruct": _llama_3(2048, 16, 32),
    "meta-llama/Llama-3.2-3B-Instruct": _llama_3(3072, 28, 24),
    "Qwen/Qwen2.5-0.5B-Instruct": _qwen("qwen2", 896, 24, (14, 2), 4864),
    "Qwen/Qwen2.5-1.5B-Instruct": _qwen("qwen2", 1536, 28, (12, 2), 8960),
    "Qwen/Qwen3-1.7B": _qwen("qwen3", 2048, 28, (16, 8), 6144, head_dim=128),
    "Qwen/Qwen3-4B-Instruct-2507": _qwen("qwen3", 2560, 36, (32, 8), 9728, head_dim=128),
}


def check_tiny(name: str) -> None:
    """Raise RunError for a language model that `--tiny` can't stand in for: neither listed nor a folder."""
    folders = (expanded(name), PROJECT / name)
    if name not in LANGUAGE_MODELS and not any((folder / "config.json").is_file() for folder in folders):
        raise RunError(f"--tiny doesn't know what {name} is; it knows {', '.join(LANGUAGE_MODELS)}, and folders")


def size_of(name: str) -> ModelSize:
    """The size of a language model. Raises RunError for one that isn't listed."""
    if name not in LANGUAGE_MODELS:
        raise RunError(f"the size of {name} isn't known here; known: {', '.join(LANGUAGE_MODELS)}")
    return LANGUAGE_MODELS[name]


def full_config(name: str) -> "PretrainedConfig":
    """The transformers configuration of a listed language model. Raises RunError as `size_of`."""
    from transformers import AutoConfig

    size = size_of(name)
    return AutoConfig.for_model(size.model_type, **size.config)


def skeleton(config: "PretrainedConfig", dtype: "torch.dtype | None" = None) -> "PreTrainedModel":
    """A model on the meta device, shapes without weights (dtype: fp32 unless given); frozen, in evaluation mode."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype or torch.float32, trust_remote_code=False)
    return model.requires_grad_(False).eval()
