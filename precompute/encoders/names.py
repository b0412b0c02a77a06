"""Short names of encoders, as data. `python -m periscope.precompute.encoders` turns it into docs/encoders.md."""

import difflib
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from periscope.errors import PrecomputeError
from periscope.model_folders import is_language_model
from periscope.precompute.encoders.folders import find_folder

BY_IDENTIFIER = ("open_clip", "timm", "transformers", "imu2clip", "frames", "fused")  # families that need an identifier
NC = "CC BY-NC 4.0"


@dataclass(frozen=True)
class EncoderEntry:
    """encoder: what the short name stands for · size: of the weights to download · about: one line for people ·
    licence: of the weights · grid: (rows, columns) of the patches, (0, 0) without any · width: of patches and layers ·
    pooled: width of the pooled vector · layers: how many, 0 without a CLS that has a final norm · modality · choices:
    defaults for the further choices of `load_encoder` · tower: "clip", "siglip" or "other", which decides what adapters
    can be exported to.
    """

    encoder: str
    size: str
    about: str
    licence: str
    grid: tuple[int, int]
    width: int
    pooled: int
    layers: int = 6
    modality: str = "image"
    choices: Mapping = field(default_factory=dict)
    tower: str = "other"

    def features(self) -> dict[str, dict]:
        """The manifest's "features": kind -> {"shape", "dtype"}, with the "grid" of patches."""
        found = {"pooled": {"shape": [self.pooled], "dtype": "float16"}}
        if tokens := self.grid[0] * self.grid[1]:
            found["patches"] = {"shape": [tokens, self.width], "dtype": "float16", "grid": list(self.grid)}
        if self.layers:
            found["layers"] = {"shape": [self.layers, self.width], "dtype": "float16"}
        return found


def _clip(arch: str, size: str, about: str, grid: int, width: int, pooled: int) -> EncoderEntry:
    return EncoderEntry(f"open_clip:{arch}", size, about, "MIT", (grid, grid), width, pooled, tower="clip")


def _siglip(repo: str, size: str, about: str, grid: int, width: int) -> EncoderEntry:
    return EncoderEntry(
        f"transformers:google/{repo}", size, about, "Apache 2.0", (grid, grid), width, width, layers=0, tower="siglip"
    )


def _dino(repo: str, size: str, about: str, grid: int, width: int, licence: str = "Apache 2.0") -> EncoderEntry:
    return EncoderEntry(f"transformers:facebook/{repo}", size, about, licence, (grid, grid), width, width)


def _whisper(form: str, size: str, width: int) -> EncoderEntry:
    encoder, about = f"transformers:openai/whisper-{form}", f"Whisper {form}'s encoder: speech, 30 s"
    return EncoderEntry(encoder, size, about, "Apache 2.0", (1, 1500), width, width, layers=0, modality="audio")


DINO_AT_384 = "timm:vit_large_patch14_reg4_dinov2.lvd142m@384"
SIGLIP_AT_384 = "timm:vit_so400m_patch14_siglip_384.webli"

ENCODERS = {
    "demo": EncoderEntry(
        "open_clip:demo/backbones/clip",
        "a few MB",
        "the demo's own, trained on drawn scenes only",
        "MIT",
        (6, 6),
        192,
        288,
        0,
        tower="clip",
    ),
    "demo-dino": EncoderEntry(
        "transformers:demo/backbones/dino",
        "a few MB",
        "the demo's own without words, of drawn scenes",
        "MIT",
        (6, 6),
        192,
        192,
        4,
    ),
    "demo-audio": EncoderEntry(
        "transformers:demo/backbones/ast",
        "a few MB",
        "the demo's own AST, trained on drawn sounds only",
        "MIT",
        (4, 12),
        192,
        192,
        4,
        modality="audio",
    ),
    "demo-video": EncoderEntry(
        "transformers:demo/backbones/timesformer",
        "a few MB",
        "the demo's own TimeSformer, of drawn clips",
        "MIT",
        (8 * 4, 4),
        144,
        144,
        4,
        modality="video",
    ),
    "clip-b-32": _clip("ViT-B-32-quickgelu/openai", "0.6 GB", "OpenAI CLIP ViT-B/32, 224 px", 7, 768, 512),
    "clip-b-16": _clip("ViT-B-16-quickgelu/openai", "0.6 GB", "OpenAI CLIP ViT-B/16, 224 px", 14, 768, 512),
    "clip-l": _clip("ViT-L-14-quickgelu/openai", "1.7 GB", "OpenAI CLIP ViT-L/14, 224 px", 16, 1024, 768),
    "clip-l-336": _clip(
        "ViT-L-14-336-quickgelu/openai", "1.7 GB", "OpenAI CLIP ViT-L/14, 336 px: LLaVA's", 24, 1024, 768
    ),
    "eva02-clip-l-336": EncoderEntry(
        *("open_clip:EVA02-L-14-336/merged2b_s6b_b61k", "1.7 GB", "EVA-02 CLIP ViT-L/14, 336 px: VL-Mamba's", "MIT"),
        (24, 24),
        1024,
        768,
    ),
    "siglip-b": _siglip("siglip-base-patch16-224", "0.8 GB", "SigLIP ViT-B/16, 224 px", 14, 768),
    "siglip-so400m-384": _siglip("siglip-so400m-patch14-384", "3.5 GB", "SigLIP so400m, 384 px", 27, 1152),
    "siglip2-b": _siglip("siglip2-base-patch16-224", "1.5 GB", "SigLIP 2 ViT-B/16, 224 px", 14, 768),
    "siglip2-so400m-384": _siglip("siglip2-so400m-patch14-384", "4.5 GB", "SigLIP 2 so400m, 384 px", 27, 1152),
    "dinov2-s": _dino("dinov2-small", "0.1 GB", "DINOv2 ViT-S/14, no words in its training", 16, 384),
    "dinov2-b": _dino("dinov2-base", "0.4 GB", "DINOv2 ViT-B/14", 16, 768),
    "dinov2-l": _dino("dinov2-large", "1.2 GB", "DINOv2 ViT-L/14", 16, 1024),
    "dinov2-b-reg": _dino("dinov2-with-registers-base", "0.4 GB", "DINOv2 ViT-B/14, registers", 16, 768),
    "dinov2-l-reg": _dino("dinov2-with-registers-large", "1.2 GB", "DINOv2 ViT-L/14, registers", 16, 1024),
    "dinov3-b": _dino(
        "dinov3-vitb16-pretrain-lvd1689m", "0.4 GB", "DINOv3 ViT-B/16, asks for a licence", 14, 768, "DINOv3"
    ),
    "dinov3-l": _dino(
        "dinov3-vitl16-pretrain-lvd1689m", "1.2 GB", "DINOv3 ViT-L/16, asks for a licence", 14, 1024, "DINOv3"
    ),
    "vit-b": EncoderEntry(
        "transformers:google/vit-base-patch16-224-in21k",
        "0.4 GB",
        "ViT-B/16 trained on ImageNet-21k labels",
        "Apache 2.0",
        (14, 14),
        768,
        768,
    ),
    "vit-b-augreg": EncoderEntry(
        "timm:vit_base_patch16_224.augreg_in21k_ft_in1k",
        "0.4 GB",
        "ViT-B/16: eP-ALM's, with --normalise clip",
        "Apache 2.0",
        (14, 14),
        768,
        768,
    ),
    "vit-l-augreg": EncoderEntry(
        "timm:vit_large_patch16_224.augreg_in21k_ft_in1k",
        "1.2 GB",
        "ViT-L/16: eP-ALM's, with --normalise clip",
        "Apache 2.0",
        (14, 14),
        1024,
        1024,
    ),
    "dinosiglip-384": EncoderEntry(
        *(f"{DINO_AT_384}+{SIGLIP_AT_384}", "2.9 GB", "DINOv2 ViT-L/14 with registers and SigLIP so400m: Cobra's"),
        "Apache 2.0",
        (27, 27),
        1024 + 1152,
        1024 + 1152,
        0,
        choices={"resize": "stretch"},
    ),
    "ast": EncoderEntry(
        "transformers:MIT/ast-finetuned-audioset-10-10-0.4593",
        "0.3 GB",
        "AST: sounds, 10 s: eP-ALM's",
        "BSD 3-Clause",
        (12, 101),
        768,
        768,
        modality="audio",
    ),
    "clap": EncoderEntry(
        "transformers:laion/clap-htsat-unfused",
        "0.6 GB",
        "CLAP: sounds, 10 s, in one space with words",
        "Apache 2.0",
        (2, 32),
        768,
        512,
        0,
        modality="audio",
    ),
    "whisper-base": _whisper("base", "0.3 GB", 512),
    "whisper-small": _whisper("small", "1.0 GB", 768),
    "whisper-medium": _whisper("medium", "3.1 GB", 1024),
    "whisper-large-v3": _whisper("large-v3", "6.2 GB", 1280),
    "timesformer": EncoderEntry(
        *("transformers:facebook/timesformer-base-finetuned-k600", "0.5 GB", "TimeSformer: 8 frames: eP-ALM's", NC),
        (8 * 14, 14),
        768,
        768,
        modality="video",
    ),
    "videomae": EncoderEntry(
        *("transformers:MCG-NJU/videomae-base", "0.4 GB", "VideoMAE ViT-B/16: 16 frames, by two", NC),
        (8 * 14, 14),
        768,
        768,
        0,
        modality="video",
    ),
    "vivit": EncoderEntry(
        "transformers:google/vivit-b-16x2-kinetics400",
        "0.4 GB",
        "ViViT-B/16x2: 32 frames, by two",
        "MIT",
        (16 * 14, 14),
        768,
        768,
        modality="video",
    ),
    "vjepa2-l": EncoderEntry(
        "transformers:facebook/vjepa2-vitl-fpc64-256",
        "1.5 GB",
        "V-JEPA 2 ViT-L/16: 64 frames, by two",
        "MIT",
        (32 * 16, 16),
        1024,
        1024,
        0,
        modality="video",
    ),
    "imu2clip": EncoderEntry(
        "imu2clip:imu2clip",
        "-",
        "IMU2CLIP: motion, 5 s: AnyMAL's; weights of your own in a folder imu2clip/",
        "its code: CC BY-NC-SA 4.0",
        (0, 0),
        512,
        512,
        0,
        modality="imu",
    ),
}


def unknown_encoder(name: str, families: Collection[str]) -> PrecomputeError:
    """What to raise for a name that is neither a short name nor one of `families`, with the nearest names."""
    known = [*ENCODERS, *(family for family in families if family not in BY_IDENTIFIER)]
    longer = [other for other in known if other.startswith(f"{name}-")]
    near = longer[:3] or difflib.get_close_matches(name, known, 3, 0.4)
    nearest = f"nearest: {', '.join(near)}; " if near else ""
    return PrecomputeError(
        f"no encoder is called {name!r}; {nearest}known: {', '.join(known)}; or open_clip:ARCHITECTURE/TAG, a Hub id "
        "like facebook/dinov2-base, or a folder"
    )


def check_encoder(name: str) -> None:
    """Raise PrecomputeError for a plain word that is no short name, no folder and no family, and for a folder or file
    with a language model.

    Reads the families' files as text, because importing them imports torch. Where that is done already, nothing is
    said: the registry has the last word.
    """
    folder = find_folder(re.sub("^(transformers|timm|open_clip):", "", name))
    if name.endswith(".gguf") or (folder is not None and is_language_model(folder)):
        raise PrecomputeError(f"--encoder {name} is a language model, not an encoder; pass it to train.py --lm")
    if "periscope.precompute.encoders.registry" in sys.modules or re.search(r"[:/+]", name):
        return
    if name in ENCODERS or folder is not None:
        return
    files = sorted(Path(__file__).parent.rglob("*.py"))
    families = [
        found
        for file in files
        for found in re.findall(r'^@register\("([^"]+)"', file.read_text(encoding="utf-8"), re.M)
    ]
    if name not in families:
        raise unknown_encoder(name, families)
