"""Model families: what each needs when driven through `inputs_embeds`, which are refused, and why.

This table is the one place for a family's peculiarities. Everything else asks `family_of(config)`.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class ModelFamily:
    """What models of one family need.

    - `tested`: the class that the tests drive, on tiny random weights. A family without one is checked when loaded.
    - `trait`: how it differs from a plain Llama, and what is done about it.
    - `refuse`: why it can't be used, and what can.
    - `unquantized`: layers that bitsandbytes must leave alone.
    - `recurrent`: no layer has attention, so no mask can hide a position.
    - `overflows`: activations of real weights exceed fp16.
    - `lora`: names of the linear layers that LoRA goes on, where that isn't all of them.
    """

    tested: str = ""
    trait: str = ""
    refuse: str | None = None
    unquantized: tuple[str, ...] = ()
    recurrent: bool = False
    overflows: bool = False
    lora: tuple[str, ...] = ()


# Mamba's scan multiplies by these weights directly, which a packed 8-bit or 4-bit weight doesn't allow.
_USED_BY_SCAN = ("lm_head", "dt_proj", "x_proj", "out_proj")
# dt_proj's weight is multiplied without calling the layer, so LoRA on it would learn nothing; so is out_proj's by
# Mamba's kernels, and PEFT refuses it.
_MAMBA_LORA = ("in_proj", "x_proj")
_LOOKS_UP_IDS = (
    "its layers look up token ids again, so vectors can't stand in for words; use Gemma 3 (text), Qwen3 or Llama"
)

MODEL_FAMILIES: dict[str, ModelFamily] = {
    "llama": ModelFamily("LlamaForCausalLM", "also SmolLM, Vicuna, TinyLlama; the head may share the embeddings"),
    "mistral": ModelFamily("MistralForCausalLM", "may have sliding-window attention, in a mask made from ours"),
    "qwen2": ModelFamily("Qwen2ForCausalLM", "turns end in `<|im_end|>`, which its chat template prints"),
    "qwen3": ModelFamily("Qwen3ForCausalLM", "its chat template has a thinking mode, which is switched off"),
    "smollm3": ModelFamily("SmolLM3ForCausalLM", "some layers have no positional encoding"),
    "olmo2": ModelFamily("Olmo2ForCausalLM", "normalises after its layers instead of before"),
    "granite": ModelFamily("GraniteForCausalLM", "scales embeddings inside the model: vectors are matched before that"),
    "gemma": ModelFamily(
        "GemmaForCausalLM", "scales embeddings in the embedding module: vectors are matched to its output"
    ),
    "gemma2": ModelFamily(
        "Gemma2ForCausalLM",
        "as gemma; soft-caps attention and logits, so its own head is used; sliding windows",
        overflows=True,
    ),
    "gemma3_text": ModelFamily(
        "Gemma3ForCausalLM", "as gemma; sliding windows with rotary embeddings of their own", overflows=True
    ),
    "phi": ModelFamily(
        "PhiForCausalLM", "attention and feed-forward in parallel; rotary embedding on part of each head"
    ),
    "phi3": ModelFamily("Phi3ForCausalLM", "may have sliding-window attention"),
    "gpt_neox": ModelFamily("GPTNeoXForCausalLM", "Pythia; parallel layers, partial rotary embedding; no pad token"),
    "gpt2": ModelFamily("GPT2LMHeadModel", "learned positions, passed as position_ids"),
    "gptj": ModelFamily("GPTJForCausalLM", "parallel layers, partial rotary embedding"),
    "opt": ModelFamily(
        "OPTForCausalLM", "learned positions, counted from the mask; OPT-350M's embeddings are narrower than its layers"
    ),
    "mamba": ModelFamily(
        "MambaForCausalLM",
        "no mask hides a position: padding is zeroed before each scan",
        unquantized=_USED_BY_SCAN,
        recurrent=True,
        lora=_MAMBA_LORA,
    ),
    "mamba2": ModelFamily("Mamba2ForCausalLM", "as mamba", recurrent=True, lora=("in_proj",)),
    "falcon_mamba": ModelFamily(
        "FalconMambaForCausalLM", "as mamba", unquantized=_USED_BY_SCAN, recurrent=True, lora=_MAMBA_LORA
    ),
    "rwkv": ModelFamily(
        refuse="it ignores the attention mask, so texts of different lengths can't share a batch; use Mamba instead"
    ),
    "gemma3": ModelFamily(
        refuse="it is a vision-language model whose class can't generate from vectors; use Gemma 3's text model "
        "(google/gemma-3-1b-it), Qwen3 or Llama"
    ),
    "gemma3n": ModelFamily(refuse=_LOOKS_UP_IDS),
    "gemma3n_text": ModelFamily(refuse=_LOOKS_UP_IDS),
    "gemma4": ModelFamily(refuse=_LOOKS_UP_IDS),
    "gemma4_text": ModelFamily(refuse=_LOOKS_UP_IDS),
}


def family_of(config: PretrainedConfig) -> ModelFamily:
    """The row of a config's family; an empty one for a family without a row."""
    return MODEL_FAMILIES.get(config.model_type or "", ModelFamily())


def why_refused(config: PretrainedConfig, own_code: bool = False) -> str | None:
    """Why a model with this config can't be driven by vectors, known before its weights are fetched; None if it can.

    own_code: its own Python code may be run, whose class is only known once it is loaded.
    """
    if refuse := family_of(config).refuse:
        return refuse
    if config.is_encoder_decoder:
        return "it has an encoder of its own; use a decoder-only model such as OPT, Llama, Qwen or Mamba"
    cls: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if cls is None and own_code and "AutoModelForCausalLM" in getattr(config, "auto_map", {}):
        return None
    if cls is None:
        return "transformers has no causal language model of this family; use OPT, Llama, Qwen or Mamba"
    for method in (cls.forward, cls.prepare_inputs_for_generation):
        if "inputs_embeds" not in inspect.signature(method).parameters:
            return f"its class {cls.__name__} can't answer from vectors; use OPT, Llama, Qwen or Mamba"
    return None


@torch.no_grad()
def find_fault(model: PreTrainedModel, bound: float) -> str | None:
    """Drive a frozen model by a few vectors and say what goes wrong; None when nothing does.

    Checked: word embeddings give the logits of the words' ids, no token sees a later one, and neither padding nor a
    neighbour in the batch changes a text. `bound` is the largest RMS error of logits, relative to their standard
    deviation.
    """
    embedding = model.get_input_embeddings()
    weight = embedding.weight
    assert isinstance(weight, torch.Tensor)
    ids = torch.linspace(3, len(weight) - 3, 8, device=weight.device).long()[None]
    whole, short = embedding(ids), embedding(ids[:, 2:5])
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def logits(vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        positions = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if takes_positions else {}
        return model(inputs_embeds=vectors, attention_mask=mask, use_cache=False, **positions).logits.float()

    def differ(actual: torch.Tensor, expected: torch.Tensor) -> bool:
        return not bool((actual - expected).square().mean().sqrt() <= bound * expected.std())

    try:
        alone, everywhere = logits(whole, torch.ones_like(ids)), torch.ones_like(ids)
        if differ(alone, model(input_ids=ids, attention_mask=everywhere, use_cache=False).logits.float()):
            return "vectors of words aren't read as the words"
        later = torch.cat([whole[:, :4], whole[:, :4]], 1)
        if differ(logits(later, everywhere)[:, :4], alone[:, :4]):
            return "a word sees the words after it"
        expected = logits(short, everywhere[:, :3])
        for before in (0, 5):
            padded, mask = torch.zeros_like(whole), torch.zeros_like(ids)
            padded[:, before : before + 3], mask[:, before : before + 3] = short, 1
            batch = logits(torch.cat([padded, whole]), torch.cat([mask, everywhere]))
            if differ(batch[:1, before : before + 3], expected) or differ(batch[1:], alone):
                return f"padding {'before' if before else 'after'} a text changes it"
    except Exception as error:  # whatever an untested class raises
        return f"its class fails ({str(error).strip().splitlines()[0]})"
    return None
