"""What a folder with a config.json holds, an encoder or a language model. Told before torch is imported."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Ends of the names of classes that continue a text, as config.json gives them under `architectures`.
WRITERS = ("ForCausalLM", "LMHeadModel")
# Of transformers, by `model_type`: those that precompute.py reads (a test compares them), and others alike.
ENCODERS = frozenset(
    {
        *("clip", "clip_vision_model", "siglip", "siglip_vision_model", "siglip2", "siglip2_vision_model"),
        *("dinov2", "dinov2_with_registers", "dinov3_vit", "dinov3_convnext", "vit", "vit_mae", "deit", "beit"),
        *("swin", "swinv2", "convnext", "convnextv2", "resnet", "regnet", "efficientnet", "mobilenet_v1"),
        *("mobilenet_v2", "audio-spectrogram-transformer", "clap", "clap_audio_model", "whisper", "wav2vec2"),
        *("hubert", "timesformer", "videomae", "vivit", "vjepa2"),
    }
)


def read_facts(file: Path) -> Mapping[str, Any]:
    """The object in a JSON file; empty where there is none that can be read."""
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, Mapping) else {}


def is_language_model(folder: Path) -> bool:
    """Whether config.json names a class that continues a text."""
    classes = read_facts(folder / "config.json").get("architectures")
    return isinstance(classes, list) and any(str(name).endswith(WRITERS) for name in classes)


def encoder_in(folder: Path) -> str:
    """What kind of encoder the folder holds, of transformers, timm or open_clip; "" where it holds none."""
    facts = read_facts(folder / "config.json")
    if is_language_model(folder):
        return ""
    if "model_type" not in facts:  # timm's config.json names an architecture alone
        named = facts.get("architecture") or ("open_clip" if (folder / "open_clip_config.json").is_file() else "")
        return str(named)
    return str(facts["model_type"]) if facts["model_type"] in ENCODERS else ""
