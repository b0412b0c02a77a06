"""Families of language models: those in the table are the tested ones, others are refused with a reason or tried."""

import sys
from functools import partial
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BartConfig,
    BertConfig,
    BertModel,
    FalconH1Config,
    Gemma3Config,
    Gemma3nTextConfig,
    GenerationConfig,
    GraniteMoeHybridConfig,
    JambaConfig,
    LayoutLMConfig,
    OpenAIGPTConfig,
    PretrainedConfig,
    RobertaConfig,
    RwkvConfig,
    StableLmConfig,
    T5Config,
    ViTConfig,
    WhisperConfig,
)

from periscope.adapters.lm.families import MODEL_FAMILIES, find_fault
from periscope.adapters.lm.load import load_language_model
from periscope.adapters.lm.selective_scan import SCANS
from periscope.errors import AdapterError

DOC = Path(__file__).parents[2] / "docs" / "language_models.md"
SIZE = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)


def save(config: PretrainedConfig, folder: Path) -> str:
    """A tiny random model with the tokenizer of another; only the config where it must not come to the weights."""
    tokenizer = tiny.byte_level()
    config.vocab_size = len(tokenizer)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if "norm" not in name.lower() and parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    model.generation_config = GenerationConfig()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


RWKV = RwkvConfig(vocab_size=60, hidden_size=32, num_hidden_layers=2)
GEMMA3N = Gemma3nTextConfig(
    vocab_size=60,
    vocab_size_per_layer_input=60,
    hidden_size_per_layer_input=8,
    head_dim=8,
    num_key_value_heads=2,
    num_kv_shared_layers=0,
    laurel_rank=4,
    layer_types=["sliding_attention", "full_attention"],
    activation_sparsity_pattern=[0.0, 0.0],
    **SIZE,
)
REFUSED = {
    "rwkv": (lambda: RWKV, "ignores the attention mask.* use "),
    "gemma3n": (lambda: GEMMA3N, "look up token ids again.* use "),
    "gemma4": (lambda: AutoConfig.for_model("gemma4_text"), "look up token ids again.* use "),
    "gemma3 with eyes": (Gemma3Config, "vision-language model.* use "),
    "t5": (T5Config, "an encoder of its own.* use "),
    "bart": (BartConfig, "an encoder of its own.* use "),
    "gpt1": (OpenAIGPTConfig, "OpenAIGPTLMHeadModel can't answer from vectors.* use "),
    "falcon-h1": (FalconH1Config, "FalconH1ForCausalLM can't answer from vectors.* use "),
    "vit": (ViTConfig, r"is an encoder \(vit\), not a language model; pass it to precompute"),
    "layoutlm": (LayoutLMConfig, "no causal language model of this family.* use "),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_cant_be_served_is_refused_before_its_weights_are_read(name, tmp_path):
    make_config, sentence = REFUSED[name]
    make_config().save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match=sentence) as refusal:
        load_language_model(str(tmp_path))
    assert len(str(refusal.value).splitlines()) == 1


FAULTY = {
    "bert": (lambda: BertConfig(**SIZE), "a word sees the words after it"),
    "roberta": (lambda: RobertaConfig(is_decoder=True, **SIZE), "vectors of words aren't read as the words"),
    "whisper": (
        lambda: WhisperConfig(d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=64,
                              encoder_layers=1, encoder_attention_heads=4, pad_token_id=0, is_encoder_decoder=False),
        "padding before a text changes it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTY)
def test_a_family_that_nobody_tested_is_tried_and_refused_when_wrong(name, tmp_path):
    make_config, fault = FAULTY[name]
    with pytest.raises(AdapterError, match=rf"{fault}.*use OPT"):
        load_language_model(save(make_config(), tmp_path))


def test_an_encoder_of_words_is_no_language_model_that_lacks_weights(tmp_path):
    folder = save(BertConfig(**SIZE), tmp_path)
    BertModel(BertConfig.from_pretrained(folder)).save_pretrained(folder)
    with pytest.raises(AdapterError, match=r"holds the weights of a BertModel, and BertLMHeadModel has .*; use OPT"):
        load_language_model(folder)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "8bit"])
def test_a_family_that_nobody_tested_is_served_when_right(precision, tmp_path):
    folder = save(StableLmConfig(num_key_value_heads=2, max_position_embeddings=64, **SIZE), tmp_path)
    lm = load_language_model(folder, precision=precision)
    assert lm.note == "stablelm isn't a tested family; it passed a trial"


HYBRID = dict(num_key_value_heads=2, max_position_embeddings=64, mamba_d_state=4, **SIZE)


@pytest.mark.parametrize(
    "config",
    [
        JambaConfig(
            attn_layer_period=2, attn_layer_offset=1, num_experts=2, mamba_dt_rank=4, use_mamba_kernels=False, **HYBRID
        ),
        GraniteMoeHybridConfig(
            layer_types=["mamba", "attention"], mamba_n_heads=4, mamba_d_head=16, mamba_n_groups=1, num_local_experts=2,
            num_experts_per_tok=1, shared_intermediate_size=16, **HYBRID
        ),
    ],
    ids=lambda config: config.model_type,
)  # fmt: skip
def test_layers_that_scan_among_others_scan_in_chunks_too(config, tmp_path, monkeypatch):
    folder = save(config, tmp_path)
    used = []
    for name, scan in dict(SCANS).items():
        monkeypatch.setitem(SCANS, name, lambda *given, scan=scan, **named: used.append(1) or scan(*given, **named))
    module = sys.modules[f"transformers.models.{config.model_type}.modeling_{config.model_type}"]
    (name,) = (name for name in SCANS if hasattr(module, name))
    scan = getattr(module, name)
    monkeypatch.setattr(module, name, scan.args[0] if isinstance(scan, partial) else scan)
    lm = load_language_model(folder)
    assert used and "it passed a trial; selective scan in PyTorch, in chunks" in lm.note


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_trial_finds_nothing_wrong_with_the_tested_families(family, language_model_folder):
    lm = load_language_model(str(language_model_folder(family)))
    entry = lm.family
    assert entry.tested == type(lm.model).__name__ and not entry.refuse
    assert find_fault(lm.model, 1e-3) is None


@pytest.mark.parametrize(
    "config, fault",
    [(RWKV, "padding before a text changes it"), (GEMMA3N, "vectors of words aren't read as the words")],
    ids=["rwkv", "gemma3n"],
)
def test_the_trial_finds_what_is_wrong_with_the_refused_families(config, fault):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    assert find_fault(model, 1e-3) == fault


def test_a_class_that_fails_is_a_fault(language_model_folder, monkeypatch):
    model = load_language_model(str(language_model_folder("llama"))).model
    monkeypatch.setattr(model.model, "forward", lambda *_, **__: 1 / 0)
    assert find_fault(model, 1e-3) == "its class fails (division by zero)"


def test_weights_that_are_not_there_are_not_made_up(tmp_path):
    folder = tiny.save_language_model("llama", tmp_path / "lm")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AdapterError, match=r"lacks 1 of its weights, such as model\.layers\.1\.mlp\.up_proj"):
        load_language_model(str(folder))


def test_the_page_is_the_table():
    rows = [
        f"| `{name}` | `{entry.tested}` | {entry.trait} | {'all but fp16' if entry.overflows else 'all'} |"
        for name, entry in MODEL_FAMILIES.items()
        if entry.tested
    ]
    refused = [f"| `{name}` | {entry.refuse} |" for name, entry in MODEL_FAMILIES.items() if entry.refuse]
    page = DOC.read_text().partition("## Answers on quantized weights")[0]
    found = [line for line in page.splitlines() if line.startswith("| `")]
    assert found == rows + refused
    tested = {AutoConfig.for_model(name).model_type for name in MODEL_FAMILIES}
    assert tested == set(MODEL_FAMILIES)
