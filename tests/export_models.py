"""An untrained adapter on a tiny random encoder and language model, to export."""

import random
from pathlib import Path

import numpy as np
import tiny
import torch
from PIL import Image

from periscope.adapters.io.checkpoint import load_adapter, save_adapter
from periscope.adapters.lm.load import load_language_model
from periscope.adapters.lm.lora import FOLDER, add_lora, load_lora, lora_parameters
from periscope.adapters.model import AdaptedModel, Adapter
from periscope.adapters.names import kind_of
from periscope.adapters.projectors import FeatureShape
from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.template import Template, default_template
from periscope.precompute import tiny_encoders
from periscope.precompute.encoders.base import Encoder
from periscope.precompute.encoders.framing import llama_cpp_resize
from periscope.precompute.encoders.registry import load_encoder, load_encoder_like


def tower_folder(home: Path, kind: str) -> str:
    """What `load_encoder` takes for a tiny tower: "open_clip", or a kind of transformers' or timm's SigLIP."""
    place = home / kind
    if kind == "open_clip":
        return f"open_clip:{tiny_encoders.open_clip_folder(place)}"
    if kind == "timm_siglip":
        name = "vit_base_patch16_siglip_224.webli"
        return f"timm:{tiny_encoders.timm_folder(place, name, img_size=48)}"
    return f"transformers:{tiny_encoders.transformers_folder(place, kind)}"


def save_patch_adapter(
    folder: Path,
    home: Path,
    tower: str = "siglip",
    family: str = "qwen2",
    spec: str = "mlp",
    layer: int = -2,
    inner: int = 0,
    template: dict | None = None,
    choices: dict | None = None,
    lora: bool = False,
    lm_folder: Path | None = None,
    **more: object,
) -> Path:
    """Write an adapter folder; its language model goes into `home`/FAMILY unless it is in `lm_folder`, its encoder into
    `home`/TOWER.

    template: fields that differ from the tokenizer's default · choices: the encoder's · more: soft_prompt, output_norm
    (False here), and fields of adapter.json.
    """
    place = lm_folder or tiny.save_language_model(family, home / family)
    lm = load_language_model(str(place), precision="fp32")
    if lora:
        torch.manual_seed(1)
        add_lora(lm, 4, 8)
        for parameter in lora_parameters(lm.model).values():
            torch.nn.init.normal_(parameter, std=0.1)
    kind = kind_of(spec)
    encoder = load_encoder(tower_folder(home, tower), kinds=(kind,), patch_layer=layer, **(choices or {}))
    held = encoder.features((kind,))[kind]
    torch.manual_seed(0)
    tokens, width = (1, *held["shape"])[-2:]
    shape = FeatureShape(kind, tokens, width, tuple(held["grid"]) if "grid" in held else None)
    own = {name: more.pop(name) for name in ("soft_prompt", "output_norm") if name in more}
    adapter = Adapter(
        spec, shape, lm.hidden_size, lm.embedding_rms, **{"output_norm": False, **own}, projector_hidden=inner
    )
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    samples = [encoder.encode(encoder.preprocess(picture)[None], [kind])[kind] for picture in pictures()]
    adapter.match_scale(torch.cat(samples))
    fields = default_template(lm.tokenizer).to_dict() | (template or {})
    about = {
        "modality": "image",
        "encoder": encoder.describe(),
        "storage": held | {"codec": "fp16"},
        "language_model": {"name": str(place), "identity": lm.identity()},
        "template": Template.from_dict(fields).to_dict(),
        "training": {},
        **more,
    }
    save_adapter(folder, adapter, about, lm=lm if lora else None)
    return folder


def pictures() -> list[Image.Image]:
    """Pictures of several sizes: wide, high, square, and small ones."""
    made = []
    for k, size in enumerate(((97, 64), (48, 80), (64, 64), (32, 32), (20, 31))):
        noise = Image.frombytes("L", size, random.Random(k).randbytes(size[0] * size[1]))
        ramp = Image.linear_gradient("L").resize(size)
        made.append(Image.merge("RGB", (noise, ramp, ramp.transpose(Image.Transpose.ROTATE_180))))
    return made


def load_here(folder: Path) -> tuple[AdaptedModel, Encoder]:
    """An adapter as Periscope runs it, on its language model in fp32, and its encoder."""
    adapter, config = load_adapter(folder)
    lm = load_language_model(config.language_model.name, precision="fp32")
    if config.lora:
        load_lora(lm, folder / FOLDER)
    prompt = Prompt(lm.tokenizer, config.template)
    return AdaptedModel(lm, adapter, prompt), load_encoder_like(config.encoder)


def turns_of(question: str | None) -> list[dict]:
    """A question's turns; a caption's where there is none."""
    return [] if question is None else [{"role": "user", "content": question}]


def tokens_here(folder: Path, image: Image.Image, legacy: bool = False) -> torch.Tensor:
    """The image tokens that Periscope gives a picture framed as llama.cpp does: (tokens, hidden_size)."""
    model, encoder = load_here(folder)
    framed = llama_cpp_resize(image, encoder.image_size, legacy)
    facts = encoder.preprocessing
    mean, std = (torch.tensor(facts.get(name) or facts[f"image_{name}"]) for name in ("mean", "std"))
    pixels = ((torch.from_numpy(np.asarray(framed, np.float32) / 255) - mean) / std).permute(2, 0, 1)
    with torch.no_grad():
        return model.adapter(encoder.encode(pixels[None], ["patches"])["patches"])[0]
