"""Encoders of the true classes with tiny random weights, written to disk in their libraries' own forms."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

OPEN_CLIP = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 8, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
}
OPEN_CLIP_PREPROCESSING = {
    "mean": [0.48, 0.46, 0.41],
    "std": [0.27, 0.26, 0.28],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 8,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


def roughen(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Large random weights, biases and norms too, so that a wrong layer, norm or activation shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = 0.5 if parameter.ndim < 2 else 1.5 / max(1.0, parameter[0].numel() ** 0.5)
            parameter.copy_(noise * scale + (parameter if parameter.ndim < 2 else 0))
    return model.eval()


def open_clip_folder(folder: Path, **changes: object) -> Path:
    """A folder in open_clip's local-dir form: config and safetensors."""
    import open_clip

    config = json.loads(json.dumps(OPEN_CLIP)) | changes
    model = roughen(open_clip.CLIP(**json.loads(json.dumps(config))))
    for block in model.visual.transformer.resblocks:  # let the activation weigh against the residual stream
        block.mlp.c_proj.weight.data *= 4
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": OPEN_CLIP_PREPROCESSING})
    )
    return folder


def transformers_folder(folder: Path, kind: str) -> Path:
    """A folder as save_pretrained writes it; kinds are the keys of `models`."""
    import transformers as t

    crop = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}
    squash = {"size": {"height": 32, "width": 32}}
    text = {**VISION, "vocab_size": 64, "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2}
    for name in ("image_size", "patch_size"):
        text.pop(name)
    models = {
        "clip": lambda: t.CLIPModel(t.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)),
        "clip_vision": lambda: t.CLIPVisionModel(t.CLIPVisionConfig(**VISION)),
        "clip_projected": lambda: t.CLIPVisionModelWithProjection(t.CLIPVisionConfig(**VISION, projection_dim=24)),
        "siglip": lambda: t.SiglipModel(t.SiglipConfig(text_config=text, vision_config=VISION)),
        "dinov2": lambda: t.Dinov2Model(t.Dinov2Config(**_plain_vit(), mlp_ratio=2)),
        "registers": lambda: t.Dinov2WithRegistersModel(
            t.Dinov2WithRegistersConfig(**_plain_vit(), mlp_ratio=2, num_register_tokens=4)
        ),
        "vit": lambda: t.ViTModel(t.ViTConfig(**VISION), add_pooling_layer=False),
    }
    processors = {
        "siglip": lambda: t.SiglipImageProcessorPil(**squash),
        "dinov2": lambda: t.BitImageProcessorPil(**crop),
        "registers": lambda: t.BitImageProcessorPil(**crop),
        "vit": lambda: t.ViTImageProcessorPil(**squash),
    }
    torch.manual_seed(0)
    roughen(models[kind]()).save_pretrained(folder)
    processors.get(kind, lambda: t.CLIPImageProcessorPil(**crop))().save_pretrained(folder)
    return folder


def _plain_vit() -> dict:
    return {name: value for name, value in VISION.items() if name != "intermediate_size"}
