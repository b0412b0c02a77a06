"""An untrained adapter on tiny random models that lie in folders."""

from pathlib import Path

import tiny
import torch

from periscope.adapters.io.checkpoint import save_adapter
from periscope.adapters.lm.language_model import load_language_model
from periscope.adapters.model import Adapter
from periscope.adapters.projectors import FeatureShape
from periscope.adapters.prompting.prompt import default_template
from periscope.precompute import tiny_encoders
from periscope.precompute.encoders import load_encoder


def save_tiny_adapter(folder: Path, home: Path, training: dict, soft_prompt: int = 0) -> None:
    """Write an adapter folder; its language model goes into `home`/lm, its encoder into `home`/clip."""
    lm = load_language_model(str(tiny.save_language_model("llama", home / "lm")))
    encoder = load_encoder(str(tiny_encoders.open_clip_folder(home / "clip")), kinds=("pooled",))
    held = encoder.features(("pooled",))["pooled"]
    torch.manual_seed(0)
    shape = FeatureShape("pooled", 1, held["shape"][0])
    adapter = Adapter("mlp2", shape, lm.hidden_size, lm.embedding_rms, soft_prompt=soft_prompt)
    about = {
        "modality": "image",
        "encoder": encoder.describe(),
        "storage": held | {"codec": "fp16"},
        "language_model": {"name": str(home / "lm"), "identity": lm.identity()},
        "template": default_template(lm.tokenizer).to_dict(),
        "training": training,
    }
    save_adapter(folder, adapter, about)
