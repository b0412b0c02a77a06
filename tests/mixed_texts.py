"""Untrained adapters of several kinds with texts to read, and what PyTorch makes of words and vectors."""

import torch

from periscope.adapters.lm.runtimes.sequence import VECTOR, MixedSequence
from periscope.adapters.model import AdaptedModel, Adapter
from periscope.adapters.projectors import FeatureShape
from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.template import default_template

PATCHES, POOLED = FeatureShape("patches", 4, 6, (2, 2)), FeatureShape("pooled", 1, 12)
ADAPTERS = {
    "pooled": ("mlp3", POOLED, 0, {}),
    "perceiver": ("perceiver4", PATCHES, 0, {}),
    "patches and a soft prompt": ("mlp", PATCHES, 3, {"row_separator": "&", "rows": 2, "soft_prompt": "around"}),
    "a soft prompt alone": ("none", POOLED, 3, {"soft_prompt": "first"}),
}
MORE = {
    "mlp": ("mlp", PATCHES, 0, {}),
    "linear": ("linear", PATCHES, 0, {}),
    "group": ("group2", PATCHES, 0, {}),
    "shuffle": ("shuffle2", PATCHES, 0, {}),
    "window": ("window2", PATCHES, 0, {}),
    "mlp, narrower": ("mlp", PATCHES, 0, {}),
    "mlp, wider": ("mlp", PATCHES, 0, {}),
    **{spec: (spec, PATCHES, 0, {}) for spec in ("ldp", "ldpv2", "fusedldp", "fusedmlp", "mapl4", "mapl-post4")},
    **{spec: (spec, POOLED, 0, {}) for spec in ("linear3", "clipcap3", "clipcap-transformer3")},
}
HOW = {"mlp, narrower": {"projector_hidden": 12}, "mlp, wider": {"projector_hidden": 48}}  # further options
QUESTIONS = ["What colour is the star?", "the quick brown fox", "is it blue"]


@torch.no_grad()
def logits_of(lm, sequence: MixedSequence) -> torch.Tensor:
    """Logits after every position of a sequence in PyTorch: (positions, vocabulary)."""
    ids = torch.tensor(sequence.ids)
    embeds = lm.embed(ids.clamp(min=0)).float()
    embeds[ids == VECTOR] = sequence.vectors[: int((ids == VECTOR).sum())]
    return lm.model(inputs_embeds=embeds[None].to(lm.dtype)).logits[0].float()


def model_of(lm, name: str, modality: str = "image") -> AdaptedModel:
    spec, shape, soft, fields = (ADAPTERS | MORE)[name]
    torch.manual_seed(1)
    adapter = Adapter(spec, shape, lm.hidden_size, lm.embedding_rms, soft_prompt=soft, **HOW.get(name, {}))
    return AdaptedModel(lm, adapter, Prompt(lm.tokenizer, default_template(lm.tokenizer, **fields), modality))


def features_of(model: AdaptedModel, names: str) -> dict[str, torch.Tensor]:
    shape = model.adapter.features
    size = (shape.width,) if shape.kind == "pooled" else (shape.tokens, shape.width)
    return {name: torch.randn(size, generator=torch.Generator().manual_seed(ord(name))) for name in names}


def texts_of(model: AdaptedModel, answer: bool) -> list:
    told = [{"role": "assistant", "content": "a red circle and a blue star"}] if answer else []
    return [
        model.prompt.segments([{"role": "user", "content": words}, *told], [name], answer=answer)
        for name, words in zip("abc", QUESTIONS, strict=True)
    ]
