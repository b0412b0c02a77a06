"""What families of language models need when they are driven by vectors, and which can't be served and why."""

import inspect
from dataclasses import dataclass

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class ModelFamily:
    """What a family of models needs.

    `tested` names the class that the tests drive, on tiny random weights; a family without is checked as it is loaded.
    `trait` says what it does unlike a plain Llama, and what is done about it. `refuse` says why it can't be served,
    and what can; `keep` names the layers that bitsandbytes must leave; `recurrent`: no layer has attention, so no mask
    can hide a row; `overflows`: real weights of this family give activations beyond fp16. `lora`: the linear layers
    that LoRA goes on, where that isn't all of them.
    """

    tested: str = ""
    trait: str = ""
    refuse: str | None = None
    keep: tuple[str, ...] = ()
    recurrent: bool = False
    overflows: bool = False
    lora: tuple[str, ...] = ()


# The scan multiplies by these weights directly, which a packed 8-bit or 4-bit weight can't do.
_SCANNED = ("lm_head", "dt_proj", "x_proj", "out_proj")
# dt_proj's weight is multiplied without the layer, so LoRA there would learn nothing; out_proj's is too by Mamba's
# kernels, and PEFT refuses it.
_LORA = ("in_proj", "x_proj")
_OWN_IDS = "its layers look up token ids again, so vectors can't stand in for words; use Gemma 3 (text), Qwen3 or Llama"

MODEL_FAMILIES: dict[str, ModelFamily] = {
    "llama": ModelFamily("LlamaForCausalLM", "also SmolLM, Vicuna, TinyLlama; the head may be the embeddings"),
    "mistral": ModelFamily("MistralForCausalLM", "may look back a window only: the model makes that mask from ours"),
    "qwen2": ModelFamily("Qwen2ForCausalLM", "its turns end in `<|im_end|>`, which the template says"),
    "qwen3": ModelFamily("Qwen3ForCausalLM", "its template thinks first, unless told not to, as it is here"),
    "smollm3": ModelFamily("SmolLM3ForCausalLM", "some layers have no positions"),
    "olmo2": ModelFamily("Olmo2ForCausalLM", "norms after its layers instead of before"),
    "granite": ModelFamily("GraniteForCausalLM", "multiplies embeddings inside: vectors are matched before that"),
    "gemma": ModelFamily("GemmaForCausalLM", "scales embeddings in the module: vectors are matched to what it returns"),
    "gemma2": ModelFamily(
        "Gemma2ForCausalLM", "as gemma; caps attention and logits: its own head is used; windows", overflows=True
    ),
    "gemma3_text": ModelFamily(
        "Gemma3ForCausalLM", "as gemma; windows with rotary positions of their own", overflows=True
    ),
    "phi": ModelFamily(
        "PhiForCausalLM", "attention and feed-forward side by side; rotary positions on part of each head"
    ),
    "phi3": ModelFamily("Phi3ForCausalLM", "may look back a window only"),
    "gpt_neox": ModelFamily(
        "GPTNeoXForCausalLM", "Pythia; side by side, rotary positions on part of each head; no pad token"
    ),
    "gpt2": ModelFamily("GPT2LMHeadModel", "learned positions, which are given"),
    "gptj": ModelFamily("GPTJForCausalLM", "side by side; rotary positions on part of each head"),
    "opt": ModelFamily(
        "OPTForCausalLM", "learned positions, counted from the mask; OPT-350M's words are narrower than it"
    ),
    "mamba": ModelFamily(
        "MambaForCausalLM",
        "no mask hides a row: padding is emptied before each scan",
        keep=_SCANNED,
        recurrent=True,
        lora=_LORA,
    ),
    "mamba2": ModelFamily("Mamba2ForCausalLM", "as mamba", recurrent=True, lora=("in_proj",)),
    "falcon_mamba": ModelFamily("FalconMambaForCausalLM", "as mamba", keep=_SCANNED, recurrent=True, lora=_LORA),
    "rwkv": ModelFamily(
        refuse="it ignores the attention mask, so texts of different lengths can't share a batch; use Mamba instead"
    ),
    "gemma3": ModelFamily(
        refuse="it is a model with eyes of its own, whose class can't answer from vectors; use Gemma 3's text model "
        "(google/gemma-3-1b-it), Qwen3 or Llama"
    ),
    "gemma3n": ModelFamily(refuse=_OWN_IDS),
    "gemma3n_text": ModelFamily(refuse=_OWN_IDS),
    "gemma4": ModelFamily(refuse=_OWN_IDS),
    "gemma4_text": ModelFamily(refuse=_OWN_IDS),
}


def quirk_of(config: PretrainedConfig) -> ModelFamily:
    """The row of a config's family, an empty one for a family without."""
    return MODEL_FAMILIES.get(config.model_type, ModelFamily())


def why_refused(config: PretrainedConfig) -> str | None:
    """Say why a model of this config can't be driven by vectors, before its weights are fetched; None when it can."""
    if refuse := quirk_of(config).refuse:
        return refuse
    if config.is_encoder_decoder:
        return "it reads with an encoder of its own; use a decoder alone, as OPT, Llama, Qwen or Mamba"
    cls = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if cls is None:
        return "transformers has no causal language model of this family; use OPT, Llama, Qwen or Mamba"
    for method in (cls.forward, cls.prepare_inputs_for_generation):
        if "inputs_embeds" not in inspect.signature(method).parameters:
            return f"its class {cls.__name__} can't answer from vectors; use OPT, Llama, Qwen or Mamba"
    return None


@torch.no_grad()
def find_fault(model: PreTrainedModel, bound: float) -> str | None:
    """Drive a frozen model by vectors of a few words, and say what goes wrong; None when nothing does.

    What is asked: vectors of words are read as the words, no word sees a later one, and neither padding nor a
    neighbour in the batch changes a text. `bound`: the largest root mean square error of logits, as a share of their
    spread.
    """
    embedding = model.get_input_embeddings()
    ids = torch.linspace(3, len(embedding.weight) - 3, 8, device=embedding.weight.device).long()[None]
    whole, short = embedding(ids), embedding(ids[:, 2:5])
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def logits(vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        positions = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if takes_positions else {}
        return model(inputs_embeds=vectors, attention_mask=mask, use_cache=False, **positions).logits.float()

    def differ(found: torch.Tensor, wanted: torch.Tensor) -> bool:
        return not (found - wanted).square().mean().sqrt() <= bound * wanted.std()

    try:
        alone, everywhere = logits(whole, torch.ones_like(ids)), torch.ones_like(ids)
        if differ(alone, model(input_ids=ids, attention_mask=everywhere, use_cache=False).logits.float()):
            return "vectors of words aren't read as the words"
        later = torch.cat([whole[:, :4], whole[:, :4]], 1)
        if differ(logits(later, everywhere)[:, :4], alone[:, :4]):
            return "a word sees the words after it"
        wanted = logits(short, everywhere[:, :3])
        for before in (0, 5):
            padded, mask = torch.zeros_like(whole), torch.zeros_like(ids)
            padded[:, before : before + 3], mask[:, before : before + 3] = short, 1
            found = logits(torch.cat([padded, whole]), torch.cat([mask, everywhere]))
            if differ(found[:1, before : before + 3], wanted) or differ(found[1:], alone):
                return f"padding {'before' if before else 'after'} a text changes it"
    except Exception as error:  # whatever a class that nobody has tried here raises
        return f"its class fails ({str(error).strip().splitlines()[0]})"
    return None
