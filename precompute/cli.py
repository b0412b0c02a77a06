"""The command line of precompute.py."""

import importlib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from periscope.errors import PrecomputeError

if TYPE_CHECKING:
    from periscope.precompute.encoders import Encoder
    from periscope.precompute.sources import Collection

EPILOGUE = """Media once through a frozen encoder, features into shards that train.py reads. --data is a folder or .zip
of pictures, sounds or clips (words in .txt files of the same names, one caption per line, or in metadata.jsonl, .csv
or .parquet with file_name and text; or no words); a folder with texts.jsonl (conversations) and its media, or such a
.jsonl file; a published set as it is unpacked: LLaVA conversations, COCO captions, Karpathy's splits, Flickr30k, VQAv2,
GQA, TextVQA, TextCaps, VizWiz, Visual7W, VSR, POPE, RefCOCO, AI2D, AudioCaps, Clotho, MSR-VTT, MSRVTT-QA, MSVD,
MSVD-QA; webdataset .tar files as img2dataset writes them (a folder, a
pattern like {00000..00009}.tar, or pipe:COMMAND); parquet with the media in it; a Hugging Face dataset saved to disk,
or hf:owner/name; ready-made vectors (.npy, .safetensors, parquet). What lies there decides, and is printed;
docs/data.md says how. Run the same command again to resume, or to add new media.
"""
FRAMES = 8  # of each clip, with an encoder of pictures
DEMOS = {"image": "scenes", "audio": "sounds", "video": "clips"}
TRIED = 64  # media of a tiny encoder
SUGGESTED = ("clip-l-336", "siglip2-b", "dinov2-b")


@dataclass
class PrecomputeConfig:
    """Fields are the flags; see `EPILOGUE`."""

    data: Path | None = None
    """Folder of media, or a .jsonl of conversations; without it the demo's media are made and used."""
    encoder: str = "demo"
    """Short name (clip-l-336, siglip2-b, dinov2-b ...), open_clip:ARCHITECTURE/TAG, Hub id, or folder."""
    kinds: tuple[Literal["pooled", "patches", "layers"], ...] = ("pooled", "patches")
    """Features to keep: pooled (one vector), patches (a vector per patch), layers (CLS of the last 6 blocks)."""
    recipe: str = ""
    """A recipe of recipes/ (or a TOML file) to take the other choices from; empty: none. train.py --list shows them."""
    tiny: bool = False
    """Try it: a tiny random encoder of the same class instead of the real one, 64 media, no network."""
    out: Path | None = None
    """Folder of the feature set; without it features/NAME-OF-DATA, or of the recipe where there is no --data."""
    store: tuple[str, ...] = ("fp16",)
    """fp16, int8 or int4 for patches (other kinds stay fp16), or KIND=CODEC, as in patches=int4 pooled=int8."""
    pool: str = "1x1"
    """Average rectangles of so many patches before storing, as in 2x2; 1x1: off."""
    views: int = 1
    """Views of each picture to store, training takes turns. All but one are augmented: cropped, distorted, and mirrored
    half of the time, which swaps left and right, whatever the captions say. 1: off."""
    min_side: int = 0
    """Leave out pictures whose shorter side has fewer pixels; 0: none."""
    duplicates: Literal["keep", "drop"] = "keep"
    """Of media with the same bytes, keep all or only the first; its words are then those of all."""
    similarity: float = 0.0
    """Leave out captions whose CLIP cosine with their picture is lower, and pictures left without; 0: none."""
    limit: int = 0
    """Encode only the first so many media; 0: all."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """Of the encoder's arithmetic; auto: fp16 on a GPU, fp32 on a CPU. For how it is stored see --store."""
    batch: int = 32
    """Media per forward pass."""
    workers: int = 0
    """Threads that decode; 0: one per core."""
    frames: int = 0
    """Frames of each clip, evenly spaced; 0: as many as the encoder was made for, 8 with an encoder of pictures."""
    windows: int = 0
    """Evenly spaced windows of each sound: means of their vectors, all their patches; 0: one, from the start."""
    resize: Literal["encoder", "stretch", "crop", "letterbox"] = "encoder"
    """How a picture gets the encoder's square shape; encoder: as its makers did."""
    normalise: Literal["encoder", "clip", "imagenet", "half"] = "encoder"
    """Whose mean and deviation of pixels to apply (half: 0.5); encoder: its makers'."""
    layer: int | None = None
    """Which hidden state gives the patches, -1 being the last; none: as the encoder's row says, mostly -2."""
    ray: str = ""
    """Encode on a Ray cluster: its address, or auto for the one this machine is of, else one on its own; empty: off."""
    demo: Literal["image", "audio", "video"] = "image"
    """Which of the demo's media: scenes, sounds or clips, each with an encoder of its own; only without --data."""
    demo_seed: int = 0
    """Seed of the demo's media; only without --data."""


def main(args: list[str] | None = None) -> None:
    """Read the flags and make the feature set. Flags override the `[precompute]` table of a recipe.

    Raises PrecomputeError, RecipeError or FeatureSetError for what the user can mend.
    """
    import sys

    import tyro

    from periscope.recipes import load_recipe

    sys.stdout.reconfigure(errors="backslashreplace")  # file names needn't be Unicode
    options = tyro.cli(PrecomputeConfig, description=" ".join(EPILOGUE.split()), args=args)
    if options.recipe:
        options = tyro.cli(
            PrecomputeConfig, default=_with(options.recipe, load_recipe(options.recipe).precompute), args=args
        )
    if options.limit < 0 or options.batch < 1 or options.workers < 0:
        raise PrecomputeError("--limit and --workers can't be negative, --batch is at least 1")
    if options.views < 1 or options.min_side < 0 or not 0 <= options.similarity < 1:
        raise PrecomputeError("--views is at least 1, --min-side can't be negative, --similarity is from 0 to below 1")
    if not options.kinds:
        raise PrecomputeError("--kinds needs at least one of pooled, patches, layers")
    run(options)


def _with(name: str, table: dict) -> PrecomputeConfig:
    """The options that a recipe sets. Raises PrecomputeError for what isn't one."""
    if unknown := sorted(set(table) - {field.name for field in fields(PrecomputeConfig)}):
        raise PrecomputeError(f"the recipe {name} sets {', '.join(unknown)}, which precompute.py doesn't know")
    return replace(
        PrecomputeConfig(), **{key: tuple(given) if isinstance(given, list) else given for key, given in table.items()}
    )


def make_demo(modality: str, folder: Path, seed: int) -> Path:
    """Draw the demo's media into `folder`, unless they are there, and return it."""
    print(f"the demo's {DEMOS[modality]}: {folder} (drawn now if they aren't there)")
    try:
        return importlib.import_module(f"periscope.demo.{DEMOS[modality]}").make(folder, seed=seed)
    except ValueError as error:
        raise PrecomputeError(str(error)) from error


def run(options: PrecomputeConfig) -> None:
    """Do what the flags ask."""
    from periscope.device import choose_device
    from periscope.precompute.remote import collected

    kind = "" if options.demo == "image" else f"-{options.demo}"
    name = _name(options.data) if options.data else Path(options.recipe).name.removesuffix(".toml") or f"demo{kind}"
    out = options.out or Path("features") / (name + "-tiny" * options.tiny)
    device = choose_device(options.device)
    data = options.data
    if data is None:
        data = make_demo(options.demo, Path("demo/media") / f"seed-{options.demo_seed}{kind}", options.demo_seed)
        if options.encoder == "demo":
            options = replace(options, encoder=f"demo{kind}")
    with collected(data) as found:
        encode(options, found, out, device)


def encode(options: PrecomputeConfig, found: "Collection", out: Path, device: str) -> None:
    """Load the encoder that was asked for and make the set."""
    import os

    import torch

    from periscope.precompute.encoders import load_encoder
    from periscope.precompute.encoders.names import ENCODERS
    from periscope.precompute.encoders.vectors import encoder_for
    from periscope.precompute.pipeline.allocator import keep_freed_memory
    from periscope.precompute.pipeline.filters import Filters
    from periscope.precompute.pipeline.job import precompute
    from periscope.precompute.pipeline.similarity import Similarity

    if options.limit or options.tiny:
        media = list(found.media.items())
        apart = 1 if options.limit else max(1, len(media) // TRIED)  # from everywhere, so that some are held out
        found.media = dict(media[::apart][: options.limit or TRIED])
        found.words = found.words.only(lambda words: all(origin in found.media for origin in words.media))
    if options.encoder == "demo" and {medium.modality for medium in found.media.values()} == {"vector"}:
        name, kind = encoder_for(list(found.media.values()))
        options = replace(options, encoder=name, kinds=(kind,))
        print(f"the media are ready-made vectors: --encoder {name}, --kinds {kind}")
    precisions = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    auto = torch.float16 if device.startswith("cuda") else torch.float32
    kinds = tuple(dict.fromkeys(options.kinds))
    choices = {
        "frames": options.frames or None,
        "windows": options.windows or None,
        "resize": None if options.resize == "encoder" else options.resize,
        "normalise": None if options.normalise == "encoder" else options.normalise,
        "patch_layer": options.layer,
    }
    name, usual = options.encoder, {}
    if options.tiny:
        from periscope.paths import tiny_folder
        from periscope.precompute.tiny_encoders import tiny_encoder

        usual = ENCODERS[name].choices if name in ENCODERS else {}
        name = tiny_encoder(name, tiny_folder())
    choices = {**usual, **{key: choice for key, choice in choices.items() if choice is not None}}
    encoder = load_encoder(name, device, precisions.get(options.precision, auto), kinds, **choices)
    encoder.name = encoder.name.replace(name, f"tiny {options.encoder}" if options.tiny else name)
    if encoder.modality == "image" and {medium.modality for medium in found.media.values()} == {"video"}:
        encoder = encoder.over_frames(FRAMES)
        print(f"the media are clips, and {options.encoder} takes pictures: it looks at {FRAMES} frames of each")
    if options.encoder == "demo" and options.data is not None and encoder.modality == "image":
        real = "; ".join(f"{name} ({ENCODERS[name].about}, {ENCODERS[name].size})" for name in SUGGESTED)
        print(f"note: --encoder demo was trained on drawn scenes only and sees little in photos. Real ones: {real}")
    _take(found, encoder)
    threshold = 0.0 if options.tiny else options.similarity  # random features are like no words
    similarity = Similarity(encoder, found.words, threshold) if threshold else None
    filters = Filters(options.min_side, options.duplicates == "drop", similarity)
    workers = options.workers or os.cpu_count() or 1
    store, pool, views = options.store, options.pool, options.views
    keep_freed_memory()
    precompute(found, encoder, kinds, out, options.batch, workers, store, pool, views, filters, options.ray)


def _take(found: "Collection", encoder: "Encoder") -> None:
    """Leave the media of other kinds than the encoder's, and their words, out of `found`, and say so."""
    from periscope.precompute.media import suits

    others = {origin for origin, medium in found.media.items() if not suits(origin, medium.modality, encoder.modality)}
    if len(others) == len(found.media):
        kinds = sorted({medium.modality for medium in found.media.values()})
        raise PrecomputeError(
            f"--encoder {encoder.name} takes {encoder.modality} media and there are only {', '.join(kinds)} media here"
        )
    if others:
        print(f"{len(others)} media are passed over: {encoder.name} takes {encoder.modality} media ({min(others)})")
        found.media = {origin: medium for origin, medium in found.media.items() if origin not in others}
        found.words = found.words.only(lambda words: others.isdisjoint(words.media))


def _name(data: Path) -> str:
    """The name of the feature set when --out is missing."""
    data = data.resolve()
    return (
        data.parent.name
        if data.name == "texts.jsonl"
        else data.stem
        if data.suffix == ".jsonl"
        else data.name or "data"
    )
