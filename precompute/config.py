"""The options of precompute.py: one typed dataclass, read from flags and from a recipe's `[precompute]` table."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from periscope.console import spelled
from periscope.errors import PrecomputeError
from periscope.exports.ways import NEEDS, Target
from periscope.flags import Metavar, check_ranges, from_flat, parse

Kind = Literal["pooled", "patches", "layers"]
Words = Annotated[tuple[str, ...], Metavar("CODEC|KIND=CODEC ...")]

TINY_MEDIA = 64  # that --tiny encodes
DESCRIPTION = """Encode media once with a frozen encoder into a feature set that train.py reads. Run the same command
again to resume it, or to add new media.

--data takes: a folder or .zip of images, sounds or clips, with or without captions (.txt files of the same names, or a
table such as metadata.jsonl or captions.csv with file_name and text); texts.jsonl (conversations), alone or in a folder
with its media; a published dataset as it unpacks (LLaVA conversations, COCO captions, Karpathy's splits, Flickr30k,
VQAv2, GQA, TextVQA, TextCaps, VizWiz, Visual7W, VSR, POPE, RefCOCO, AI2D, OCR-VQA, Visual Genome, GRIT, AudioCaps,
Clotho, MSR-VTT, MSRVTT-QA, MSVD, MSVD-QA, Ego4D's IMU, ClipCap's and LiMBeR's captions); webdataset .tar files as
img2dataset writes them (a folder, a pattern like {00000..00009}.tar, or pipe:COMMAND); parquet files that contain the
media; a Hugging Face dataset saved to disk, or hf:owner/name; ready-made vectors (.npy, .safetensors, parquet). The
layout is detected and printed; see docs/data.md.
"""
EXAMPLES = (
    "python precompute.py                                               the demo's images",
    "python precompute.py --data photos/ --encoder clip-l-336           a folder of images with captions",
    "python precompute.py --data photos/ --encoder siglip2-b --tiny     the same in miniature, without downloads",
    "python precompute.py --recipe llava-1.5 --data llava/              as a published system",
)


@dataclass
class StorageOptions:
    """How features are stored."""

    store: Words = ("fp16",)
    """fp16, int8 or int4 for patches (other kinds stay fp16), or KIND=CODEC, e.g. patches=int4 pooled=int8."""
    pool: Annotated[str, Metavar("ROWSxCOLUMNS")] = "1x1"
    """Average patches over rectangles of this size before storing, e.g. 2x2; 1x1: off."""
    views: Annotated[int, Meta(ge=1)] = 1
    """Views of each image to store; all but the first are augmented (cropped, distorted, mirrored half of the time,
    which swaps left and right whatever the caption says). 1: no augmentation."""


@dataclass
class SelectionOptions:
    """Which media and captions are left out."""

    min_side: Annotated[int, Meta(ge=0)] = 0
    """Leave out images whose shorter side is below this many pixels; 0: off."""
    one_colour: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Leave out images of which one colour takes more than this share of the pixels, e.g. 0.85; 0: off."""
    duplicates: Literal["keep", "drop"] = "keep"
    """Of media with identical bytes keep all, or only the first, with the texts of all."""
    language: Annotated[str, Metavar("CODE")] = ""
    """Of words beside the media in several languages (cat.en.txt, or lines like en=A cat.) take these alone, e.g. en;
    without it all."""
    similarity: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Leave out captions whose CLIP cosine similarity to their image is lower, and images left without any; 0: off."""
    similarity_by: Annotated[str, Metavar("NAME")] = ""
    """Encoder of open_clip that --similarity compares by; without it --encoder."""


@dataclass
class PreprocessingOptions:
    """What the encoder sees, where it should differ from the encoder's own choice."""

    frames: Annotated[int, Meta(ge=0)] = 0
    """Evenly spaced frames per clip; 0: the encoder's own number, 8 with an image encoder."""
    windows: Annotated[int, Meta(ge=0)] = 0
    """Evenly spaced windows per sound: vectors are averaged, patches concatenated; 0: one window, from the start."""
    resize: Literal["encoder", "stretch", "crop", "letterbox", "pad", "llama.cpp"] = "encoder"
    """How images are made square; encoder: as the encoder was trained; letterbox: padded as LLaVA does, pad: as
    Prismatic, which differ by one pixel; llama.cpp: padded and resized exactly as llama.cpp will."""
    normalise: Literal["encoder", "clip", "imagenet", "half"] = "encoder"
    """Mean and standard deviation of the pixels (half: 0.5 for both); encoder: as the encoder was trained."""
    layer: int | None = None
    """Hidden state that gives the patches, -1 is the last. Without it the encoder's own choice, usually -2."""
    cls_token: bool = False
    """Keep the CLS token in front of the patches, which then lie on no grid, as MAPL reads them."""


@dataclass
class ComputeOptions:
    """Speed and precision."""

    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """Encoder dtype; auto: fp16 on a GPU, fp32 on a CPU. For the stored dtype see --store."""
    batch: Annotated[int, Meta(ge=1)] = 32
    """Media per forward pass at most; a slow encoder on a CPU takes fewer."""
    workers: Annotated[int, Meta(ge=0)] = 0
    """Decoding processes; 0: one per CPU core."""
    ray: Annotated[str, Metavar("ADDRESS")] = ""
    """Encode on the Ray cluster at this address; auto: join the running cluster, or start a local one."""


@dataclass
class LimitOptions:
    """What is left out as too large, so that no single file fills the memory or stops the run."""

    max_pixels: Annotated[int, Meta(ge=1)] = 200_000_000
    """Pixels per picture; a quarter of it per WebP, AVIF, HEIC or JPEG 2000 picture and per frame of a clip."""
    max_bytes: Annotated[int, Meta(ge=1)] = 1_000_000_000
    """Bytes per file."""
    max_seconds: Annotated[float, Meta(gt=0)] = 60.0
    """Seconds of processor time for decoding one file, or four times as many by the clock; then it is given up."""
    max_memory: Annotated[int, Meta(ge=1)] = 1_200_000_000
    """Bytes of memory that decoding one file may take, beside the file itself, in each decoding process."""


@dataclass
class DemoOptions:
    """The demo's media, used without --data."""

    demo: Literal["image", "audio", "video"] = "image"
    """Which media to draw: scenes, sounds or clips, each with an encoder of its own."""
    demo_seed: int = 0
    """Seed of the drawing."""


@dataclass
class PrecomputeConfig:
    """All options; the eight most used ones come first, the others in groups."""

    data: Annotated[Path | None, Metavar("PATH")] = None
    """Folder, file or address of the media. Without it the demo's media are drawn and used."""
    encoder: Annotated[str, Metavar("NAME")] = "demo"
    """Short name (clip-l-336, siglip2-b, dinov2-b, ...), open_clip:ARCHITECTURE/TAG, Hub id, or folder."""
    kinds: Annotated[tuple[Kind, ...], Meta(min_length=1)] | None = None
    """Features to keep: pooled (one vector), patches (one vector per patch), layers (CLS of the last 6 blocks). Without
    it pooled and patches, as far as the encoder gives them."""
    out: Annotated[Path | None, Metavar("FOLDER")] = None
    """Folder of the feature set. Without it features/NAME, named after --data or the recipe."""
    recipe: Annotated[str, Metavar("NAME|FILE")] = ""
    """Take the other options from this recipe or TOML file; `train.py --list` lists the recipes."""
    limit: Annotated[int, Meta(ge=0)] = 0
    """Encode only the first N media; 0: all."""
    for_: Target | None = None
    """Choose the encoder, framing and kinds that an export to this program needs, where nothing else is given, and
    refuse what can't be exported to it."""
    tiny: bool = False
    """Try it out: 64 media through a tiny random encoder of the same architecture, without downloads."""
    device: Annotated[str, Metavar("DEVICE")] = "auto"
    """auto, cuda, cuda:N, mps (Apple's GPU) or cpu."""
    storage: StorageOptions = field(default_factory=StorageOptions)
    selection: SelectionOptions = field(default_factory=SelectionOptions)
    preprocessing: PreprocessingOptions = field(default_factory=PreprocessingOptions)
    compute: ComputeOptions = field(default_factory=ComputeOptions)
    limits: LimitOptions = field(default_factory=LimitOptions)
    demo_media: DemoOptions = field(default_factory=DemoOptions)

    def encoder_choices(self) -> dict[str, int | str]:
        """The preprocessing choices that differ from the encoder's own, as `load_encoder` takes them."""
        chosen = self.preprocessing
        choices = {
            "frames": chosen.frames or None,
            "windows": chosen.windows or None,
            "resize": None if chosen.resize == "encoder" else chosen.resize,
            "normalise": None if chosen.normalise == "encoder" else chosen.normalise,
            "patch_layer": chosen.layer,
            "cls_token": chosen.cls_token or None,
        }
        return {name: choice for name, choice in choices.items() if choice is not None}


def read_config(args: Sequence[str] | None = None) -> PrecomputeConfig:
    """The options of a command line (None: `sys.argv`), over those of the recipe it names, over what `--for` sets, over
    the defaults.

    Raises PrecomputeError for a value out of range and for a recipe that sets an unknown or ill-typed option,
    RecipeError or RunError for a recipe that can't be read.
    """
    config = _parse(args)
    needs = dict(NEEDS[config.for_].precompute) if config.for_ else {}
    if config.recipe:
        from periscope.recipes import load_recipe

        source = f"the recipe {config.recipe}"
        needs |= load_recipe(config.recipe).precompute
    elif needs:
        source = f"--for {config.for_}"
    if needs:
        config = _parse(args, from_flat(PrecomputeConfig, needs, source, PrecomputeError))
    check_ranges(config, PrecomputeError)
    return config


def _parse(args: Sequence[str] | None, default: PrecomputeConfig | None = None) -> PrecomputeConfig:
    return parse(
        PrecomputeConfig,
        args,
        prog=spelled("precompute.py"),
        description=DESCRIPTION,
        examples=EXAMPLES,
        default=default,
        path="--data",
    )
