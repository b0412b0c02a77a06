"""Tiny random models for tests: the library's language models, and adapters on them."""

from pathlib import Path

import torch

from periscope.adapters.io.checkpoint import save_adapter
from periscope.adapters.lm.language_model import LanguageModel
from periscope.adapters.lm.load import load_language_model
from periscope.adapters.lm.lora import add_lora, lora_parameters
from periscope.adapters.lm.tiny import *  # noqa: F403
from periscope.adapters.lm.tiny import save_language_model
from periscope.adapters.model import AdaptedModel, Adapter
from periscope.adapters.projectors import FeatureShape
from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.template import default_template


def adapted(folder: Path, spec: str = "mlp3", width: int = 12, template: dict | None = None, **options) -> AdaptedModel:
    """An untrained adapter of pooled features on the language model in `folder`; `options` are those of `Adapter`."""
    lm = load_language_model(str(folder))
    torch.manual_seed(1)
    adapter = Adapter(spec, FeatureShape("pooled", 1, width), lm.hidden_size, lm.embedding_rms, **options)
    return AdaptedModel(lm, adapter, Prompt(lm.tokenizer, default_template(lm.tokenizer, **(template or {}))))


def save_tiny_adapter(folder: Path, home: Path, training: dict, soft_prompt: int = 0, family: str = "llama") -> None:
    """Write an untrained adapter folder; its language model goes into `home`/lm, its encoder into `home`/clip."""
    from periscope.precompute import tiny_encoders
    from periscope.precompute.encoders import load_encoder

    lm = load_language_model(str(save_language_model(family, home / "lm")))
    encoder = load_encoder(str(tiny_encoders.open_clip_folder(home / "clip")), kinds=("pooled",))
    pooled = encoder.features(("pooled",))["pooled"]
    torch.manual_seed(0)
    shape = FeatureShape("pooled", 1, pooled["shape"][0])
    adapter = Adapter("mlp2", shape, lm.hidden_size, lm.embedding_rms, soft_prompt=soft_prompt)
    about = {
        "modality": "image",
        "encoder": encoder.describe(),
        "storage": pooled | {"codec": "fp16"},
        "language_model": {"name": str(home / "lm"), "identity": lm.identity()},
        "template": default_template(lm.tokenizer),
        "training": training,
    }
    save_adapter(folder, adapter, about)


def add_random_lora(lm: LanguageModel) -> None:
    """LoRA of rank 4 that changes what the model says; at its start it would change nothing."""
    add_lora(lm, 4, 4)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in lora_parameters(lm.model).values():
            parameter.normal_(std=0.1)
