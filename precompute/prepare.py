"""From options and media to a job: which media, which encoder, which filters."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from periscope.device import rules_of
from periscope.errors import PrecomputeError
from periscope.exports.ways import WAYS, closed_by_encoder, encoder_facts, refusal
from periscope.precompute.config import TINY_MEDIA, PrecomputeConfig
from periscope.precompute.decoding import Source, shared_pool
from periscope.precompute.encoders.base import Encoder
from periscope.precompute.encoders.names import ENCODERS
from periscope.precompute.encoders.registry import load_encoder, over_frames
from periscope.precompute.encoders.vectors import encoder_for
from periscope.precompute.media import is_sound, read_file, suits
from periscope.precompute.pipeline.filters import Filters
from periscope.precompute.pipeline.job import Job
from periscope.precompute.pipeline.similarity import Similarity
from periscope.precompute.plan import describe_words, other_media
from periscope.precompute.sources import Collection, Medium
from periscope.recipes import load_recipe
from periscope.text import printable

FRAMES = 8  # of each clip, with an image encoder
USUAL_KINDS = ("pooled", "patches")  # where --kinds is not given
SUGGESTED = ("clip-l-336", "siglip2-b", "dinov2-b")
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def prepare(config: PrecomputeConfig, collection: Collection, out: Path, device: str) -> Job:
    """The job that the options ask for. Takes media that won't be encoded out of `collection`; prints its choices.

    Raises PrecomputeError for an unknown encoder, for media that no encoder asked for can take, and for features that
    can't be exported as `--for` says.
    """
    if config.encoder == "demo" and _modalities(collection.media.values()) == {"vector"}:
        name, kind = encoder_for(list(collection.media.values()))
        config = replace(config, encoder=name, kinds=(kind,))
        print(f"the media are ready-made vectors: --encoder {name}, --kinds {kind}")
    kinds = kinds_of(config)
    encoder = choose_encoder(config, kinds, collection.media.values(), device)
    kinds = kinds or usual_kinds(encoder)
    refuse_closed(config, encoder, kinds)
    drop_other_media(collection, encoder)
    take_subset(collection, config.limit, config.tiny)
    for line in describe_words(collection, *prompt_options(config.recipe, encoder.modality)):
        print(line)
    storage, compute = config.storage, config.compute
    return Job(
        collection=collection,
        encoder=encoder,
        kinds=kinds,
        out=out,
        batch=compute.batch,
        workers=compute.workers or os.cpu_count() or 1,
        store=storage.store,
        pool=storage.pool,
        views=storage.views,
        filters=_filters(config, collection, encoder),
        ray=compute.ray,
    )


def refuse_closed(config: PrecomputeConfig, encoder: Encoder, kinds: tuple[str, ...]) -> None:
    """Raise PrecomputeError where what is trained on these features can't leave as `--for` says."""
    if config.for_:
        facts = encoder_facts(encoder.describe(), encoder.modality, kinds, config.storage.pool != "1x1")
        if reasons := closed_by_encoder(WAYS[config.for_], facts):
            raise PrecomputeError(refusal(config.for_, reasons))


def prompt_options(name: str, modality: str) -> tuple[dict[str, Any], str]:
    """(what a recipe says of training, for this modality; its name), both empty without one."""
    if not name:
        return {}, ""
    recipe = load_recipe(name)
    return recipe.train | recipe.modality.get(modality, {}), recipe.name


def kinds_of(config: PrecomputeConfig) -> tuple[str, ...]:
    """The kinds of features asked for. Where none are: of ready-made vectors the one kind that they are, else ()."""
    kinds = tuple(dict.fromkeys(config.kinds or ()))
    if config.encoder.startswith("vectors:") and not kinds:
        form = config.encoder.removeprefix("vectors:").rpartition("/")[2]
        return ("patches",) if form.startswith("patches-") else ("pooled",)
    return kinds


def usual_kinds(encoder: Encoder) -> tuple[str, ...]:
    """Those of pooled and patches that the encoder gives; prints which one it doesn't."""
    kinds = tuple(kind for kind in USUAL_KINDS if kind in encoder.kinds)
    if lacking := [kind for kind in USUAL_KINDS if kind not in kinds]:
        print(f"{encoder.name} gives no {' and no '.join(lacking)} features: --kinds {' '.join(kinds)}")
    return kinds


def take_subset(collection: Collection, limit: int, tiny: bool) -> None:
    """Keep the first `limit` media (0: all), or 64 evenly spaced ones for a tiny encoder, so that some are held out;
    and the texts about these alone.
    """
    if not limit and not tiny:
        return
    media = list(collection.media.items())
    step = 1 if limit else max(1, len(media) // TINY_MEDIA)
    collection.media = dict(media[::step][: limit or TINY_MEDIA])
    collection.words = collection.words.only(lambda words: all(origin in collection.media for origin in words.media))


def choose_encoder(config: PrecomputeConfig, kinds: tuple[str, ...], media: Iterable[Medium], device: str) -> Encoder:
    """Load the encoder that was asked for, or a tiny one of its class. Over clips, an image encoder sees 8 frames each.

    Raises PrecomputeError when it can't be loaded or can't give these kinds.
    """
    name, choices = config.encoder, dict[str, Any](config.encoder_choices())
    if config.tiny:
        from periscope.paths import tiny_folder
        from periscope.precompute.tiny_encoders import tiny_encoder

        usual = ENCODERS[name].choices if name in ENCODERS else {}
        name, choices = tiny_encoder(name, tiny_folder()), {**usual, **choices}
    auto = torch.float16 if rules_of(device).half else torch.float32
    encoder = load_encoder(name, device, PRECISIONS.get(config.compute.precision, auto), kinds, **choices)
    encoder.name = encoder.name.replace(name, f"tiny {config.encoder}" if config.tiny else name)
    if encoder.modality == "image" and _modalities(media) == {"video"}:
        encoder = over_frames(encoder, FRAMES)
        print(f"the media are clips, and {config.encoder} takes pictures: it looks at {FRAMES} frames of each")
    if config.encoder == "demo" and config.data is not None and encoder.modality == "image":
        real = "; ".join(f"{name} ({ENCODERS[name].about}, {ENCODERS[name].size})" for name in SUGGESTED)
        print(f"note: --encoder demo was trained on drawn scenes only and sees little in photos. Real ones: {real}")
    return encoder


def drop_other_media(collection: Collection, encoder: Encoder) -> None:
    """Leave the media that the encoder doesn't take, and texts about them, out of `collection`, and print how many.

    Raises PrecomputeError when none is left.
    """
    media = collection.media
    if encoder.modality == "audio":
        media.update({origin: replace(media[origin], modality="audio") for origin in sounds_among(media)})
    others = {origin for origin, medium in media.items() if not suits(origin, medium.modality, encoder.modality)}
    if len(others) == len(media):
        raise other_media(encoder.name, encoder.modality, _modalities(media.values()))
    if others:
        counts = Counter(media[origin].modality for origin in others)
        kinds = ", ".join(f"{number} {modality}" for modality, number in sorted(counts.items()))
        takes = f"{encoder.name} takes {encoder.modality} media"
        print(f"{len(others)} media are passed over: {takes} ({kinds}; {printable(min(others))})")
        collection.media = {origin: medium for origin, medium in media.items() if origin not in others}
        collection.words = collection.words.only(lambda words: others.isdisjoint(words.media))


def sounds_among(media: Mapping[str, Medium]) -> list[str]:
    """Of files with the names of clips, those that have sound and no pictures, as browsers' recordings (.webm) do."""
    origins = [origin for origin, it in media.items() if it.modality == "video" and it.part is read_file]
    outcomes = shared_pool().outcomes([Source(partial(is_sound, Path(media[origin].path))) for origin in origins])
    return [origin for origin, outcome in zip(origins, outcomes, strict=True) if outcome.value]


def _filters(config: PrecomputeConfig, collection: Collection, encoder: Encoder) -> Filters:
    selection = config.selection
    threshold = 0.0 if config.tiny else selection.similarity  # random features resemble no caption
    similarity = None
    if threshold and selection.similarity_by not in ("", config.encoder):
        judge = load_encoder(selection.similarity_by, str(encoder.device), encoder.dtype, ("pooled",))
        if judge.modality != encoder.modality:
            raise PrecomputeError(
                f"--similarity-by {selection.similarity_by} takes {judge.modality} media, and {encoder.name} takes "
                f"{encoder.modality}; name an encoder of the same"
            )
        similarity = Similarity(judge, collection.words, threshold, apart=True)
    elif threshold:
        similarity = Similarity(encoder, collection.words, threshold)
    return Filters(selection.min_side, selection.duplicates == "drop", similarity, selection.one_colour)


def _modalities(media: Iterable[Medium]) -> set[str]:
    return {medium.modality for medium in media}
