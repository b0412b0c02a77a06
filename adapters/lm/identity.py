"""Recognising a language model by content: adapters are pinned to the model that they were trained with."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Annotated

import torch
from msgspec import Meta
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from periscope.adapters.limits import MAX_LOOPS, Finite, Name, Size
from periscope.adapters.lm.precision import DTYPES

ROUNDING = 0.006  # relative; a larger difference is another value

Sample = Annotated[list[Finite], Meta(max_length=MAX_LOOPS)]
# Config fields that say nothing about what the model computes.
_VOLATILE = {"_name_or_path", "dtype", "torch_dtype", "transformers_version", "quantization_config", "use_cache"}


@dataclass(frozen=True)
class LanguageModelIdentity:
    """What an adapter records to recognise its language model, whatever precision that is loaded in.

    `config` and `tokenizer` are SHA-256 hashes. `embedding_sample` holds a few values of the word embeddings,
    `weight_sample` a few of matrices inside, by name, which reveal a fine-tune that left the embeddings alone. Values
    are compared with a tolerance, because fp16, bf16 and fp32 copies of one model round differently. bitsandbytes
    leaves embeddings alone; of its copies no matrix is recorded. Fields are None where an adapter doesn't say.
    """

    model_type: Name | None = None
    hidden_size: Size | None = None
    config: Name | None = None
    tokenizer: Name | None = None
    embedding_sample: Sample | None = None
    weight_sample: Annotated[dict[str, Sample], Meta(max_length=MAX_LOOPS)] = field(default_factory=dict)
    precision: Name | None = None


def identify(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, precision: str) -> LanguageModelIdentity:
    """The identity of a loaded model with its tokenizer, LoRA left out."""
    config = {key: value for key, value in model.config.to_dict().items() if key not in _VOLATILE}
    vocabulary = sorted(tokenizer.get_vocab().items())
    return LanguageModelIdentity(
        model_type=model.config.model_type,
        hidden_size=_matrix(model.get_input_embeddings()).shape[1],
        config=_sha256(json.dumps(config, sort_keys=True, default=str)),
        tokenizer=_sha256(json.dumps([vocabulary, tokenizer.chat_template], default=str)),
        embedding_sample=_embedding_sample(model),
        weight_sample=_weight_sample(model) if precision in DTYPES else {},
        precision=precision,
    )


def same_language_model(recorded: LanguageModelIdentity, loaded: LanguageModelIdentity) -> str | None:
    """How the loaded model differs from the one that an adapter recorded, in a few words; None when it is the same.

    Another precision is no difference; see `precisions_differ`.
    """
    for name in ("model_type", "hidden_size", "config", "tokenizer", "embedding_sample"):
        expected, actual = getattr(recorded, name), getattr(loaded, name)
        if expected is None:
            return f"the adapter doesn't say what its {name.replace('_', ' ')} was"
        if name != "embedding_sample" and expected != actual:
            values = "" if len(str(actual)) > 20 else f" ({actual} instead of {expected})"
            return f"its {name.replace('_', ' ')} differs{values}"
    if _differ(recorded.embedding_sample or [], loaded.embedding_sample or []):
        return "its weights differ"
    ours, theirs = recorded.weight_sample, loaded.weight_sample
    if any(_differ(ours[name], theirs[name]) for name in ours.keys() & theirs.keys()):
        return "its weights differ, though not its embeddings"
    return None


def precisions_differ(recorded: LanguageModelIdentity, loaded: LanguageModelIdentity) -> str | None:
    """A note when the model is held in another precision than the adapter was trained with; None when it isn't.

    That is no mistake: AnyMAL (arXiv 2309.16058, section 3) trains on 4 and 8 bits and answers in full precision.
    """
    if recorded.precision in (None, loaded.precision):
        return None
    return f"trained with {recorded.precision} weights, here in {loaded.precision}"


def weights_sha256(model: torch.nn.Module) -> str:
    """SHA-256 of every weight and buffer, to verify that training left a frozen model unchanged.

    LoRA's own weights, and the names it moves the model's to, don't change the hash.
    """
    digest = hashlib.sha256()
    own = {key.replace(".base_layer.", "."): t for key, t in model.state_dict().items() if ".lora_" not in key}
    for key, tensor in sorted(own.items()):
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _matrix(module: torch.nn.Module) -> torch.Tensor:
    """The weight of an embedding or linear layer."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight


def _embedding_sample(model: PreTrainedModel) -> list[float]:
    weight = _matrix(model.get_input_embeddings())
    rows = torch.linspace(0, len(weight) - 1, 16, device=weight.device).long()
    columns = torch.linspace(0, weight.shape[1] - 1, 16, device=weight.device).long()
    return [round(value, 6) for value in weight[rows, columns].float().tolist()]


def _weight_sample(model: PreTrainedModel) -> dict[str, list[float]]:
    """Four values of each of eight matrices, evenly chosen; never of LoRA, the embeddings or the head."""
    own = {name.replace(".base_layer.", "."): value for name, value in model.named_parameters()}
    outer = {id(layer.weight) for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer}
    names = sorted(n for n, v in own.items() if v.dim() == 2 and ".lora_" not in n and id(v) not in outer)
    sample = {}
    for index in torch.linspace(0, len(names) - 1, min(8, len(names))).long().tolist():
        flat = own[names[index]].detach().flatten()
        values = flat[torch.linspace(0, len(flat) - 1, 4, dtype=torch.float64, device=flat.device).long()]
        sample[names[index]] = [float(f"{value:.6g}") for value in values.float().tolist()]
    return sample


def _differ(recorded: list[float], loaded: list[float]) -> bool:
    """Whether values differ by more than rounding to bf16, which moves a number by up to 0.4% when done twice."""
    if len(recorded) != len(loaded):
        return True
    a, b = torch.tensor(recorded, dtype=torch.float64), torch.tensor(loaded, dtype=torch.float64)
    return not bool(((a - b).abs() <= ROUNDING * torch.maximum(a.abs(), b.abs()) + 1e-6).all())


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
