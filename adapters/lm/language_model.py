"""The causal language model, driven through `inputs_embeds`: frozen, unless it is trained as a whole."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial, update_wrapper
from threading import Lock
from typing import Any, cast

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from periscope.adapters.lm.families import ModelFamily, family_of
from periscope.adapters.lm.identity import LanguageModelIdentity, identify
from periscope.adapters.lm.runtimes.sequence import Runtime
from periscope.adapters.lm.selective_scan import use_selective_scan
from periscope.adapters.recorded import LoraSize


@dataclass
class LanguageModel:
    """A causal language model with its tokenizer, frozen unless `trained`.

    `reason` says why `precision` was chosen, `note` what else was chosen, both for people. `embedding_rms` is the
    median RMS of what the embedding module returns for words of the vocabulary (its output: Gemma's is scaled). `lora`
    is the size of the LoRA on the model, which the identity leaves out (`periscope.adapters.lm.lora`). `trained` says
    that its own weights change from step to step (`unfreeze`). `runtime` computes it in place of `model`, which then
    has no weights. `generating` is held while it generates: injected vectors are hooks on it, which two threads would
    mix up.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    precision: str
    reason: str
    embedding_rms: float
    note: str = ""
    lora: LoraSize | None = None
    trained: bool = False
    runtime: Runtime | None = None
    generating: Any = field(default_factory=Lock, repr=False, compare=False)

    @property
    def hidden_size(self) -> int:
        """Width of the word embeddings. OPT-350M's are narrower than its layers."""
        return self._embedding_weight.shape[1]

    @property
    def layer_size(self) -> int:
        """Width of the layers."""
        return self.model.config.get_text_config().hidden_size

    @property
    def depth(self) -> int:
        """Number of layers."""
        return self.model.config.get_text_config().num_hidden_layers

    @property
    def family(self) -> ModelFamily:
        """What models of its family need."""
        return family_of(self.model.config)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the word embeddings, which is that of all activations."""
        return self._embedding_weight.dtype

    @property
    def device(self) -> torch.device:
        return self._embedding_weight.device

    @property
    def max_length(self) -> int:
        """The longest sequence, in tokens, that its positions allow; unlimited for a model without positions."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Word embeddings as the model itself sees them: `(...)` ids to `(..., hidden_size)` in the model's dtype."""
        return self.model.get_input_embeddings()(ids)

    def own_parameters(self) -> dict[str, nn.Parameter]:
        """Its weights by name, without LoRA's; those that two layers share, once."""
        return {name: weight for name, weight in self.model.named_parameters() if ".lora_" not in name}

    @property
    def changes(self) -> bool:
        """Whether a training step changes what it computes: no result of its own may be kept."""
        return self.trained or self.lora is not None

    def identity(self) -> LanguageModelIdentity:
        """What an adapter records to recognise this model."""
        return identify(self.model, self.tokenizer, self.precision)

    @property
    def _embedding_weight(self) -> torch.Tensor:
        weight = self.model.get_input_embeddings().weight
        assert isinstance(weight, torch.Tensor)
        return weight


def freeze(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    precision: str = "fp32",
    reason: str = "",
) -> LanguageModel:
    """Freeze a loaded model: no gradient on any weight, no dropout, greedy decoding unless a caller asks otherwise."""
    model.requires_grad_(False).eval()
    # A model's own generation settings may sample or penalise, and would be mixed into every greedy request.
    model.generation_config = GenerationConfig()
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # bitsandbytes would repack 4-bit weights in place, with rounded scales.
            cast(Any, module).support_avx512bf16_for_cpu = False
    embedding = model.get_input_embeddings()
    weight = embedding.weight
    assert isinstance(weight, torch.Tensor)
    count = min(len(weight), len(tokenizer))
    ids = torch.linspace(0, count - 1, min(count, 1024), device=weight.device).long()
    with torch.no_grad():
        rms = embedding(ids).float().pow(2).mean(-1).sqrt().median().item()
    return LanguageModel(name, model, tokenizer, precision, reason, rms, use_selective_scan(model))


def unfreeze(lm: LanguageModel, compute: torch.dtype | None = None) -> None:
    """Let all of a language model's weights be trained. It stays in `eval()`: there is no dropout.

    compute: the dtype that its passes compute in by autocast, where that isn't the weights' own.
    """
    for weight in lm.own_parameters().values():
        # A file's own memory isn't aligned, and matmul picks another kernel for such weights (`tensors.load_tensors`).
        weight.data = weight.data.clone()
        weight.requires_grad_()
    lm.trained = True
    if compute not in (None, lm.dtype):
        forward: Any = partial(_in_autocast, lm.model.forward, lm.device.type, compute)
        cast(Any, lm.model).forward = update_wrapper(forward, lm.model.forward)


def _in_autocast(
    forward: Callable[..., Any], device: str, dtype: torch.dtype, /, *args: object, **kwargs: object
) -> Any:
    with torch.autocast(device, dtype):
        return forward(*args, **kwargs)
