"""The feature sets of a training: one mostly, or several that are mixed (training.mix)."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from periscope.adapters.model import AdaptedModel
from periscope.adapters.projectors import FeatureShape, find_projector
from periscope.errors import RunError
from periscope.shards.read import FeatureSet
from periscope.shards.texts import Text, Texts
from periscope.training.config import TrainConfig
from periscope.training.data.dataset import TextFeatureDataset, TextIndex, TrainingSteps, feature_shape
from periscope.training.data.mix import MixedSteps, named_sets
from periscope.training.distributed import ALONE, Ranks
from periscope.training.heldout import choose_heldout, heldout_losses, scale_ratio, still_blind

RUN = 1 << 30  # bytes of features that lie side by side; two such are in the system's cache


@dataclass(eq=False)
class TrainingSet:
    """One feature set with its `texts` and what its modality is set to; `weight` in the mix, None: its size. `name`
    stands before its media's names where there are several.

    Filled by `choose`: `encoded`, what is `kept` to learn from, what is `heldout`, and by the caller `stand_in`, which
    medium's features stand in for another's.
    """

    features: FeatureSet
    texts: Texts
    config: TrainConfig
    shape: FeatureShape
    weight: float | None = None
    name: str = ""
    owner: str = ""
    encoded: TextFeatureDataset | None = None
    kept: TextIndex | None = None
    heldout: list[Text] = field(default_factory=list)
    stand_in: Mapping[str, str] = field(default_factory=dict)

    @property
    def modality(self) -> str:
        return self.features.manifest["modality"]

    def choose(self, model: AdaptedModel, limit: int, words_alone: bool) -> None:
        """Fill in what is learnt from and what is held out, and print how many. Raises RunError where there is
        nothing.
        """
        self.encoded = TextFeatureDataset(self.features, model.prompt, model.adapter, self.name, self.owner)
        learn = self.texts.of_split("train")[: limit or None]
        longest = model.lm.max_length
        self.kept = self.encoded.keep(learn, longest, words_alone=words_alone)
        if not self.kept.texts:
            raise RunError(
                f"{self.features.path} has no words to train on ({len(self.texts)} texts, {len(learn)} of them for "
                "training); put a .txt beside each picture and run precompute.py again, or pass --text FILE"
            )
        self.heldout = choose_heldout(self.encoded, self.texts, self.kept, longest)
        left_out = "".join(f"; {count} left out: {reason}" for reason, count in self.kept.dropped.items())
        where = f"texts of {self.features.path}" if self.name else "texts"
        print(f"{where}: {len(self.kept.texts):,} to learn from, {len(self.heldout)} held out for the loss{left_out}")


def open_sets(config: TrainConfig, partial: bool = False) -> list[TrainingSet]:
    """Open what --features names, with the texts.

    Raises RunError for sets of one modality that no projector could share, and for what goes with one adapter only.
    """
    named = named_sets(config.features)
    if len(named) > 1 and config.data.text:
        raise RunError("--text goes with one feature set; with several, each has its own texts")
    sets: list[TrainingSet] = []
    for number, (path, weight) in enumerate(named.items()):
        features = FeatureSet(path)
        own = config.of_modality(features.manifest["modality"])
        shape = feature_shape(features, find_projector(own.adapter)[0].kind)
        texts = features.texts(config.data.text, partial=partial)
        sets.append(TrainingSet(features, texts, own, shape, weight, f"{number}/" if len(named) > 1 else ""))
    first = by_modality(sets)
    for one in sets:
        other = first[one.modality]
        if one.features.manifest["encoder"]["fingerprint"] != other.features.manifest["encoder"]["fingerprint"]:
            makers = [source.features.manifest["encoder"]["name"] for source in (other, one)]
            raise RunError(
                f"{other.features.path} was made with encoder {makers[0]} and {one.features.path} with {makers[1]} "
                f"(weights, layer or preprocessing differ), and one projector reads all {one.modality} features; "
                "encode both with one, or train apart"
            )
        if one.shape != other.shape:
            raise RunError(
                f"{other.features.path} and {one.features.path} hold {one.shape.kind} of different shapes, and one "
                "projector reads both; encode them alike (or: periscope features recode)"
            )
        one.owner = one.modality if len(first) > 1 else ""
    for name, value in (("init", config.init), ("lora", config.lora.lora)):
        if len(first) > 1 and value:
            raise RunError(
                f"--{name} goes with one adapter, and these features are of {' and '.join(first)}; train each alone"
                " (periscope.load and eval.py --run put adapters without LoRA together afterwards)"
            )
    return sets


def by_modality(sets: list[TrainingSet]) -> dict[str, TrainingSet]:
    """The first set of each modality."""
    first: dict[str, TrainingSet] = {}
    for one in sets:
        first.setdefault(one.modality, one)
    return first


def identity_of(sets: list[TrainingSet], text: str | None = None) -> dict[str, str]:
    """Hashes of the features and of the texts, by which a resumed run knows them again."""
    features = [one.features.sha256 for one in sets]
    texts = [hashlib.sha256(Path(text).read_bytes()).hexdigest()] if text else [s.features.texts_sha256 for s in sets]
    both = {"features": features, "texts": texts}
    return {
        name: found[0] if len(found) == 1 else hashlib.sha256(" ".join(found).encode()).hexdigest()
        for name, found in both.items()
    }


def make_steps(
    sets: list[TrainingSet], config: TrainConfig, rank: int = 0, ranks: int = 1
) -> TrainingSteps | MixedSteps:
    """All steps of a training, and print how several sets are mixed."""
    sizes = [config.batch, config.seed, config.data.texts_per_medium]
    runs = [media_in(RUN, one.features) if config.data.disk == "hdd" else 0 for one in sets]
    if len(sets) == 1:
        return TrainingSteps(sets[0].encoded, sets[0].kept, *sizes, rank, ranks, *runs)
    weights = [one.weight for one in sets]
    pairs = [(one.encoded, one.kept) for one in sets]
    mix = MixedSteps(pairs, None if None in weights else weights, *sizes, rank, ranks, runs)
    shares = ", ".join(f"{one.features.path} {share:.3f}" for one, share in zip(sets, mix.shares, strict=True))
    print(f"mix: {shares}, an epoch of {mix.per_epoch} steps")
    return mix


def media_in(size: int, features: FeatureSet) -> int:
    """How many media of a feature set take `size` bytes on the disk."""
    stored = sum(shard["bytes"] for shard in features.manifest["shards"])
    return max(1, size * len(features) // max(1, stored))


def look(
    model: AdaptedModel, sets: list[TrainingSet], seen: Sequence[int], micro: int, ranks: Ranks = ALONE
) -> tuple[dict[str, float], float, dict[str, dict]]:
    """The held-out losses and the tokens' scale, over the sets with held-out texts by their share of the `seen` texts;
    and for each such set these two and how many of its texts were learnt from, by its path.
    """
    each, shares = {}, []
    for one, count in zip(sets, seen, strict=True):
        if not one.heldout:
            continue
        losses = heldout_losses(model, one.encoded, one.heldout, one.stand_in, micro, ranks)
        ratio = scale_ratio(one.encoded.adapter, one.features, one.heldout)
        each[str(one.features.path)] = {"heldout": losses, "rms_ratio": ratio, "texts": count}
        shares.append(count)
    found = list(each.values())
    names = [name for name in found[0]["heldout"] if all(name in one["heldout"] for one in found)]

    def mean(values: list[float]) -> float:
        weights = shares if sum(shares) else [1] * len(shares)
        return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights) if len(values) > 1 else values[0]

    losses = {name: mean([one["heldout"][name] for one in found]) for name in names}
    return losses, mean([one["rms_ratio"] for one in found]), each


def shown(step: int, found: dict, name: str = "") -> str:
    """What `look` found of one set, for people."""
    losses = ", ".join(f"{kind} {value:.4f}" for kind, value in found["heldout"].items())
    line = f"step {step}: {name}{': ' if name else ''}held-out loss {losses}; "
    line += f"tokens at {found['rms_ratio']:.2f} of the embeddings' RMS"
    if name:
        line += f"; {found['texts']:,} texts learnt from"
    if still_blind(step, found["heldout"]):
        line += (
            "\nstill blind: another medium's features do as well. Look whether the captions fit the media, "
            "try a higher --lr, or an adapter that reads patches (--adapter mlp)"
        )
    return line
