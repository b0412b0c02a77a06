"""The feature sets of a training: usually one, or several that are mixed (training.data.mix)."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from periscope.adapters.model import AdaptedModel, Adapter
from periscope.adapters.projectors import FeatureShape, find_projector
from periscope.errors import RunError
from periscope.evaluation.controls import evenly, stand_ins
from periscope.shards.manifest import differences
from periscope.shards.read import FeatureSet
from periscope.shards.texts import Text, Texts
from periscope.training.config import TrainConfig, named_sets
from periscope.training.data.dataset import (
    TextFeatureDataset,
    TextIndex,
    feature_shape,
    medium_contents,
    question_of,
)
from periscope.training.data.mix import MixedSteps
from periscope.training.data.steps import TrainingSteps

MAX_HELDOUT = 256  # texts; eval.py evaluates all of them
SPAN_BYTES = 1 << 30  # size of the spans read sequentially with --disk hdd; two of them are in the page cache


@dataclass(frozen=True, eq=False)
class OpenedSet:
    """A feature set with its texts and the configuration of its modality's adapter.

    shape: what the adapter reads · weight: in a mix; None: by size · key_prefix: stands before the names of its media
    in a mix, else "" · adapter_modality: its modality where several adapters are trained, else "".
    """

    features: FeatureSet
    texts: Texts
    config: TrainConfig
    shape: FeatureShape
    weight: float | None = None
    key_prefix: str = ""
    adapter_modality: str = ""

    @property
    def modality(self) -> str:
        return self.features.manifest["modality"]


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """What is trained on: an opened set whose texts were chosen for a model.

    index: texts to train on · heldout: texts to evaluate on · stand_ins: held-out medium -> the medium whose features
    replace its own in the shuffled control; empty where there is no such medium · answers: held-out texts that are
    answered in each evaluation (None: as many as usual).
    """

    source: OpenedSet
    dataset: TextFeatureDataset
    index: TextIndex
    heldout: list[Text]
    stand_ins: Mapping[str, str]
    answers: int | None = None

    def learns_from_words(self, model: AdaptedModel) -> bool:
        """Whether training changes what the model says without media, by LoRA, its own weights, or a soft prompt."""
        return learns_from_words(model, self.dataset.adapter)

    @property
    def features(self) -> FeatureSet:
        return self.source.features

    @property
    def modality(self) -> str:
        return self.source.modality


def open_sets(config: TrainConfig, partial: bool = False) -> list[OpenedSet]:
    """Open what --features names, with the texts. `partial` accepts texts whose media are missing.

    Raises RunError for sets of one modality that one projector can't share, and for options that go with one adapter
    only.
    """
    weights = named_sets(config.features)
    if len(weights) > 1 and config.data.text:
        raise RunError("--text goes with one feature set; with several, each has its own texts")
    opened = {path: FeatureSet(path) for path in weights}
    modalities = list(dict.fromkeys(features.manifest["modality"] for features in opened.values()))
    sets = []
    for number, (path, features) in enumerate(opened.items()):
        modality = features.manifest["modality"]
        own_config = config.of_modality(modality)
        sets.append(
            OpenedSet(
                features,
                features.texts(config.data.text, partial=partial),
                own_config,
                feature_shape(features, find_projector(own_config.adapter)[0].kind),
                weights[path],
                f"{number}/" if len(opened) > 1 else "",
                modality if len(modalities) > 1 else "",
            )
        )
    first = first_by_modality(sets)
    for opened_set in sets:
        _refuse_other_features(first[opened_set.modality], opened_set)
    for name, value in (("init", config.init), ("lora", config.lora.lora), ("train-lm", config.tune.train_lm)):
        if len(modalities) > 1 and value:
            raise RunError(
                f"--{name} goes with one adapter, and these features are of {' and '.join(modalities)}; train each "
                "alone (periscope.load and eval.py --run combine adapters on one frozen model afterwards)"
            )
    return sets


def _refuse_other_features(first: OpenedSet, other: OpenedSet) -> None:
    """Raise RunError when one projector can't read both sets."""
    encoders = [opened_set.features.manifest["encoder"] for opened_set in (first, other)]
    paths = first.features.path, other.features.path
    if encoders[0]["fingerprint"] != encoders[1]["fingerprint"]:
        raise RunError(
            f"{paths[0]} was made with encoder {encoders[0]['name']} and {paths[1]} with {encoders[1]['name']} "
            f"(what differs: {differences(*encoders)}), and one projector reads all {other.modality} features; "
            "encode both with one, or train apart"
        )
    if other.shape != first.shape:
        raise RunError(
            f"{paths[0]} and {paths[1]} hold {other.shape.kind} of different shapes, and one projector reads both; "
            "encode them alike (or: python -m precompute recode)"
        )


def first_by_modality(sets: Sequence[OpenedSet]) -> dict[str, OpenedSet]:
    """Modality -> its first set, whose configuration describes the adapter."""
    first: dict[str, OpenedSet] = {}
    for opened_set in sets:
        first.setdefault(opened_set.modality, opened_set)
    return first


def identity_of(sets: Sequence[OpenedSet], text: str | None = None) -> dict[str, str]:
    """Hashes of the features and the texts, by which a resumed run recognises them. `text`: the file of --text."""
    if text:
        texts = [hashlib.sha256(Path(text).read_bytes()).hexdigest()]
    else:
        texts = [opened_set.features.texts_sha256 for opened_set in sets]
    hashes = {"features": [opened_set.features.sha256 for opened_set in sets], "texts": texts}
    return {
        name: values[0] if len(values) == 1 else hashlib.sha256(" ".join(values).encode()).hexdigest()
        for name, values in hashes.items()
    }


def choose_texts(source: OpenedSet, model: AdaptedModel, limit: int) -> TrainingSet:
    """Choose the texts to train on (the first `limit`; 0: all) and those held out, and print how many.

    Raises RunError when there is nothing to train on.
    """
    dataset = TextFeatureDataset(
        source.features, model.prompt, model.adapter, source.key_prefix, source.adapter_modality
    )
    every = source.texts.with_captions(model.prompt.template.captions_read)
    texts = every.of_split("train")[: limit or None]
    index = dataset.keep(texts, model.lm.max_length, words_alone=learns_from_words(model, model.adapter))
    if not index.texts:
        raise RunError(
            f"{source.features.path} has no words to train on ({len(source.texts)} texts, {len(texts)} of them for "
            "training); put a .txt beside each picture and run precompute.py again, or pass --text FILE"
        )
    heldout = choose_heldout(dataset, every, index, model.lm.max_length)
    dropped = "".join(f"; {count} left out: {reason}" for reason, count in index.dropped.items())
    label = f"texts of {source.features.path}" if source.key_prefix else "texts"
    print(f"{label}: {len(index.texts):,} to learn from, {len(heldout)} held out for the loss{dropped}")
    return TrainingSet(source, dataset, index, heldout, stand_ins(medium_contents(source.features, heldout)))


def learns_from_words(model: AdaptedModel, adapter: Adapter) -> bool:
    """Whether training changes what a model with this adapter says without media."""
    return bool(model.lm.changes or adapter.soft_tokens)


def choose_heldout(dataset: TextFeatureDataset, texts: Texts, trained: TextIndex, max_length: int) -> list[Text]:
    """Up to 256 held-out texts, captions or questions as those `trained` on: of the split "heldout", else of "val",
    else of any split other than "train".
    """
    splits = texts.splits - {"train"}
    split = next((name for name in ("heldout", "val", *sorted(splits)) if name in splits), "")
    outside, kinds = texts.of_split(split), set(trained.is_question)
    fitting = [(i, text.media) for i, text in enumerate(outside) if (question_of(text) is not None) in kinds]
    chosen = [i for i, media in fitting if media] or [i for i, _ in fitting]  # rather texts with a medium to see
    heldout = dataset.keep(outside.pick(chosen), max_length).texts
    return list(evenly(heldout, MAX_HELDOUT))


def make_steps(
    sets: Sequence[TrainingSet], config: TrainConfig, rank: int = 0, ranks: int = 1
) -> TrainingSteps | MixedSteps:
    """All steps of a training; prints how several sets are mixed."""
    sizes = (config.texts_per_step, config.seed, config.data.texts_per_medium)
    spans = [media_per_span(each.features, SPAN_BYTES) if config.data.disk == "hdd" else 0 for each in sets]
    if len(sets) == 1:
        return TrainingSteps(sets[0].dataset, sets[0].index, *sizes, rank, ranks, spans[0], config.data.feature_shift)
    weights = [each.source.weight for each in sets if each.source.weight is not None]
    pairs = [(each.dataset, each.index) for each in sets]
    mix = MixedSteps(pairs, weights or None, *sizes, rank, ranks, spans, config.data.feature_shift)
    shares = ", ".join(f"{each.features.path} {share:.3f}" for each, share in zip(sets, mix.shares, strict=True))
    print(f"mix: {shares}, an epoch of {mix.per_epoch} steps")
    return mix


def media_per_span(features: FeatureSet, size: int) -> int:
    """How many media of a feature set take `size` bytes on disk."""
    stored = sum(shard["bytes"] for shard in features.manifest["shards"])
    return max(1, size * len(features) // max(1, stored))
