"""Tiny encoders: the real classes with small random weights, saved in their libraries' own formats, to try a recipe or
run a test in seconds and offline.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from periscope.errors import PrecomputeError
from periscope.precompute.encoders.names import ENCODERS
from periscope.precompute.encoders.registry import resolve
from periscope.quiet import quiet_transformers

OPEN_CLIP: dict[str, Any] = {
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
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 8,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
TEXT: dict[str, Any] = {  # of the text tower that a two-tower model brings along
    **{"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64},
    **{"vocab_size": 64, "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
}


def roughen(model: Any, seed: int = 0) -> Any:
    """Set large random weights, biases and norms, so that a wrong layer, norm or activation shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = 0.5 if parameter.ndim < 2 else 1.5 / max(1.0, parameter[0].numel() ** 0.5)
            parameter.copy_(noise * scale + (parameter if parameter.ndim < 2 else 0))
    return model.eval()


def open_clip_folder(folder: Path, **changes: Any) -> Path:
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
    import transformers

    t: Any = transformers

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
    with quiet_transformers():
        roughen(models[kind]()).save_pretrained(folder)
    processors.get(kind, lambda: t.CLIPImageProcessorPil(**crop))().save_pretrained(folder)
    return folder


def _plain_vit() -> dict:
    return {name: value for name, value in VISION.items() if name != "intermediate_size"}


# Every short name's config as its model card on the Hub has it, in short: builder and sizes. `image` is what its
# preprocessing gives, which for DINOv2 isn't what its position embedding was made for.
_B: dict[str, Any] = {"width": 768, "layers": 12, "heads": 12, "mlp": 3072, "image": 224, "patch": 16}
_L = {**_B, "width": 1024, "layers": 24, "heads": 16, "mlp": 4096}
_SO400M = {"width": 1152, "layers": 27, "heads": 16, "mlp": 4304, "image": 384, "patch": 14}
REAL: dict[str, tuple[str, dict[str, Any]]] = {
    "siglip-b": ("siglip", _B),
    "siglip-so400m-384": ("siglip", _SO400M),
    "siglip2-b": ("siglip", _B),
    "siglip2-so400m-384": ("siglip", _SO400M),
    "dinov2-s": ("dinov2", {**_B, "width": 384, "heads": 6, "patch": 14}),
    "dinov2-b": ("dinov2", {**_B, "patch": 14}),
    "dinov2-l": ("dinov2", {**_L, "patch": 14}),
    "dinov2-b-reg": ("registers", {**_B, "patch": 14}),
    "dinov2-l-reg": ("registers", {**_L, "patch": 14}),
    "dinov3-b": ("dinov3", _B),
    "dinov3-l": ("dinov3", _L),
    "vit-b": ("vit", _B),
    "ast": ("ast", {**_B, "frames": 1024, "mels": 128}),
    "clap": ("clap", {"width": 768, "embed": 96, "depths": [2, 2, 6, 2], "heads": [4, 8, 16, 32], "spec": 256}),
    "whisper-base": ("whisper", {"width": 512, "layers": 6, "heads": 8, "mlp": 2048}),
    "whisper-small": ("whisper", {"width": 768, "layers": 12, "heads": 12, "mlp": 3072}),
    "whisper-medium": ("whisper", {"width": 1024, "layers": 24, "heads": 16, "mlp": 4096}),
    "whisper-large-v3": ("whisper", {"width": 1280, "layers": 32, "heads": 20, "mlp": 5120, "mels": 128}),
    "timesformer": ("timesformer", {**_B, "frames": 8}),
    "videomae": ("videomae", {**_B, "frames": 16}),
    "vivit": ("vivit", {**_B, "frames": 32}),
    "vjepa2-l": ("vjepa2", {**_L, "image": 256, "frames": 64}),
}
_TINY: dict[str, Any] = {"width": 32, "layers": 8, "heads": 2, "mlp": 64, "image": 32, "patch": 8}
TINY: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("siglip", "dinov2", "registers", "dinov3", "vit"), _TINY),
    **{kind: {**_TINY, "frames": 4} for kind in ("timesformer", "videomae", "vivit")},
    "vjepa2": {**_TINY, "frames": 4, "layers": 4},
    "ast": {**_TINY, "frames": 104, "mels": 64, "patch": 16},
    "clap": {"width": 64, "embed": 16, "depths": [1, 1, 1], "heads": [1, 2, 2], "spec": 64, "mels": 16, "seconds": 1},
    "whisper": {"width": 32, "layers": 8, "heads": 2, "mlp": 64, "mels": 16, "seconds": 1},
}


def build(kind: str, sizes: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """(transformers class as saved on the Hub, config, preprocessing) of a kind of encoder in these sizes."""
    size = {"width": 0, "layers": 0, "heads": 0, "mlp": 0, "image": 0, "patch": 0, "frames": 0, **sizes}
    if kind in ("ast", "clap", "whisper"):
        return _build_audio(kind, size)
    if kind in ("timesformer", "videomae", "vivit", "vjepa2"):
        return _build_video(kind, size)
    return _build_image(kind, size)


def _tower(size: Mapping[str, Any]) -> dict[str, Any]:
    """What the configs of most towers call their sizes."""
    wide = {"hidden_size": size["width"], "num_hidden_layers": size["layers"], "num_attention_heads": size["heads"]}
    return {**wide, "intermediate_size": size["mlp"], "image_size": size["image"], "patch_size": size["patch"]}


def _build_image(kind: str, size: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    import transformers

    t: Any = transformers
    tower = _tower(size)
    side = {"height": size["image"], "width": size["image"]}
    crop = {"size": {"shortest_edge": size["image"] * 8 // 7}, "crop_size": side}
    dino = {**{k: v for k, v in tower.items() if k != "intermediate_size"}, "mlp_ratio": 2}
    dino["image_size"] = size["image"] + 2 * size["patch"]  # another one, as on the Hub
    if kind == "siglip":
        config = t.SiglipConfig(text_config=TEXT, vision_config=tower)
        return t.SiglipModel, config, t.SiglipImageProcessorPil(size=side)
    if kind == "dinov2":
        return t.Dinov2Model, t.Dinov2Config(**dino), t.BitImageProcessorPil(**crop)
    if kind == "registers":
        config = t.Dinov2WithRegistersConfig(**dino, num_register_tokens=4)
        return t.Dinov2WithRegistersModel, config, t.BitImageProcessorPil(**crop)
    if kind == "dinov3":
        return t.DINOv3ViTModel, t.DINOv3ViTConfig(**tower, num_register_tokens=4), t.DINOv3ViTImageProcessor(size=side)
    return t.ViTForImageClassification, t.ViTConfig(**tower), t.ViTImageProcessorPil(size=side)


def _build_audio(kind: str, size: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    import transformers

    t: Any = transformers
    mels, seconds = size.get("mels"), size.get("seconds")
    if kind == "ast":
        audio = {"max_length": size["frames"], "num_mel_bins": mels}
        config = t.ASTConfig(**{k: v for k, v in _tower(size).items() if k != "image_size"}, **audio)
        return t.ASTForAudioClassification, config, t.ASTFeatureExtractor(**audio)
    if kind == "clap":
        audio = {"patch_embeds_hidden_size": size["embed"], "depths": size["depths"], "spec_size": size["spec"]}
        audio |= {"hidden_size": size["width"], "num_attention_heads": size["heads"], "num_mel_bins": mels or 64}
        if seconds:
            audio |= {"window_size": 4}
        config = t.ClapConfig(text_config=TEXT, audio_config=audio, projection_dim=24 if seconds else 512)
        rate = {"sampling_rate": 16000, "frequency_max": 8000, "hop_length": 160} if seconds else {"hop_length": 480}
        extractor = t.ClapFeatureExtractor(
            feature_size=mels or 64, max_length_s=seconds or 10, truncation="rand_trunc", **rate
        )
        return t.ClapModel, config, extractor
    config = t.WhisperConfig(
        d_model=size["width"],
        encoder_layers=size["layers"],
        encoder_attention_heads=size["heads"],
        encoder_ffn_dim=size["mlp"],
        **{"decoder_layers": 1, "decoder_attention_heads": size["heads"], "decoder_ffn_dim": 64},
        num_mel_bins=mels or 80,
        max_source_positions=50 * (seconds or 30),
        **{"vocab_size": 64, "decoder_start_token_id": 1, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    )
    extractor = t.WhisperFeatureExtractor(feature_size=mels or 80, chunk_length=seconds or 30)
    return t.WhisperForConditionalGeneration, config, extractor


def _build_video(kind: str, size: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    import transformers

    t: Any = transformers
    tower, frames = _tower(size), {"num_frames": size["frames"]}
    side = {"height": size["image"], "width": size["image"]}
    fill = {"size": {"shortest_edge": size["image"]}, "crop_size": side}
    if kind == "timesformer":
        config = t.TimesformerConfig(**tower, **frames)
        return t.TimesformerForVideoClassification, config, t.VideoMAEImageProcessorPil(**fill)
    if kind == "videomae":
        decoder = {"decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
        config = t.VideoMAEConfig(**tower, **frames, **decoder, decoder_intermediate_size=64, use_mean_pooling=False)
        return t.VideoMAEForPreTraining, config, t.VideoMAEImageProcessorPil(**fill)
    if kind == "vivit":
        tower.pop("patch_size")
        config = t.VivitConfig(**tower, **frames, tubelet_size=[2, size["patch"], size["patch"]])
        return t.VivitForVideoClassification, config, t.VivitImageProcessor(**fill)
    wide = {name: tower[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    config = t.VJEPA2Config(
        **wide,
        **{"crop_size": size["image"], "frames_per_clip": size["frames"], "patch_size": size["patch"]},
        **{"pred_hidden_size": 24, "pred_num_hidden_layers": 1, "pred_num_attention_heads": 2},
    )
    crop = {"size": {"shortest_edge": size["image"] * 8 // 7}, "crop_size": side}
    return t.VJEPA2Model, config, t.VJEPA2VideoProcessor(**crop)


def tiny_folder(folder: Path, kind: str, **changes: Any) -> Path:
    """A tiny random encoder of a kind of `TINY`, as save_pretrained writes it."""
    model, config, processor = build(kind, {**TINY[kind], **changes})
    torch.manual_seed(0)
    with quiet_transformers():
        roughen(model(config)).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


TINY_TIMM: dict[str, Any] = {"embed_dim": 32, "depth": 8, "num_heads": 2}


def timm_folder(folder: Path, name: str, **changes: Any) -> Path:
    """A folder as timm writes it, of the architecture of this tag with tiny random weights."""
    import timm
    from timm.models import save_for_hf

    arguments = {**TINY_TIMM, **changes}
    model = roughen(timm.create_model(name, **arguments))
    save_for_hf(model, str(folder), model_args=arguments, safe_serialization=True)
    return folder


def imu2clip_folder(folder: Path) -> Path:
    """A folder with a tiny random encoder of motion, under the names that IMU2CLIP's code saves."""
    from periscope.precompute.encoders.imu2clip import MotionEncoder

    kernels = {"net.1.net.0.weight": (8, 6, 10), "net.2.net.0.weight": (8, 8, 5), "net.3.net.0.weight": (8, 8, 5)}
    shapes = {**kernels, "net.5.weight_ih_l0": (48, 32)}
    model = roughen(MotionEncoder({name: torch.Size(shape) for name, shape in shapes.items()}))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: weight.contiguous() for name, weight in model.state_dict().items()}, folder / "encoder.safetensors"
    )
    return folder


SIDE = 6  # patches per side of a tiny image encoder; divisible by 2 and 3


def tiny_encoder(name: str, folder: Path) -> str:
    """The name for `load_encoder` of a tiny random encoder of the class that `name` stands for, saved once in `folder`.

    It has eight blocks, and a 6 x 6 grid of patches for images. Raises PrecomputeError for a name whose class isn't
    known here.
    """
    family, identifier = resolve(name)
    if family == "fused":
        return "+".join(tiny_encoder(part, folder) for part in identifier.split("+"))
    place = folder / re.sub(r"[^\w.-]", "-", name)
    library, make = _maker(name, family, identifier)
    if not place.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=folder))
        make(made)
        try:
            os.rename(made, place)
        except OSError:  # another process was first
            shutil.rmtree(made)
    return f"{library}:{place}"


def _maker(name: str, family: str, identifier: str) -> tuple[str, Callable[[Path], Path]]:
    """(the library that reads the tiny encoder, the function that saves it in a folder)."""
    if family == "open_clip":
        import open_clip

        config = open_clip.get_model_config(identifier.partition("/")[0]) or {}
        tower = config.get("vision_cfg", {}).get("timm_model_name")
        if tower:  # open_clip can't load such a tower in other sizes than its own
            family, identifier = "timm", tower
        elif config:
            vision = {**OPEN_CLIP["vision_cfg"], "image_size": SIDE * OPEN_CLIP["vision_cfg"]["patch_size"]}
            changes = {"quick_gelu": bool(config.get("quick_gelu")), "vision_cfg": vision}
            return "open_clip", lambda place: open_clip_folder(place, **changes)
    if family == "imu2clip":
        return "imu2clip", imu2clip_folder
    if family == "timm" and (patch := re.search(r"patch(\d+)", identifier)):
        side = SIDE * int(patch[1])
        return "timm", lambda place: timm_folder(place, identifier.partition("@")[0], img_size=side)
    if name in REAL:
        kind = REAL[name][0]
        pictures = {"image": SIDE * _TINY["patch"]} if ENCODERS[name].modality == "image" else {}
        return "transformers", lambda place: tiny_folder(place, kind, **pictures)
    known = ", ".join(name for name in ENCODERS if not name.startswith("demo"))
    raise PrecomputeError(f"--tiny has no small model of the class of {name}; it knows {known}")
