"""A loaded run together with the feature set that it is scored on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from periscope.adapters.io.schema import AdapterConfig
from periscope.adapters.model import AdaptedModel
from periscope.errors import RunError
from periscope.evaluation.config import ModelOptions, ScoringOptions, no_split
from periscope.inference import load_adapted, trained_on_questions
from periscope.places import Checkpoint, find_checkpoint, no_set, own_set, split_modality
from periscope.shards.manifest import differences
from periscope.shards.read import FeatureSet
from periscope.shards.texts import Text, Texts
from periscope.training.config import named_sets
from periscope.training.data.dataset import feature_shape


@dataclass(frozen=True)
class ScoredRun:
    """A checkpoint's place, the feature set, all of its texts, the model, and the adapter's config."""

    place: Checkpoint
    features: FeatureSet
    texts: Texts
    model: AdaptedModel
    config: AdapterConfig

    @property
    def path(self) -> Path:
        """The folder that scores are written into."""
        return self.place.results

    @property
    def step(self) -> str:
        """The step of the checkpoint that was loaded, as its folder is named; "" where nothing tells."""
        return self.place.step

    @property
    def asks(self) -> bool | None:
        """Whether the adapter was trained on questions; None where its adapter.json doesn't tell (an older one)."""
        return trained_on_questions(self.config)

    def held_out(self) -> list[Text]:
        """The texts about media that aren't trained on and have an answer. Raises RunError when there are none."""
        outside = self.texts.of_split(*(self.texts.splits - {"train"}))
        about_media = [text for text in outside if text.media]
        answered = [text for text in about_media if text.turns[-1]["role"] == "assistant"]
        if not any(text.media for text in self.texts):
            raise RunError(f"{self.features.path}: no text about a medium to score; name a texts file with --text")
        if not about_media:
            raise RunError(f"{self.features.path}: all texts about media are for training; none is held out to score")
        if not answered:
            raise RunError(
                f"{self.features.path} holds {len(about_media)} held-out questions without answers to compare with: "
                "make it again with the file of answers beside that of questions"
            )
        if len(answered) < len(about_media):
            missing = len(about_media) - len(answered)
            print(f"{missing} of {len(about_media)} held-out texts have no answer and aren't scored")
        return answered

    def of_split(self, split: str) -> list[Text]:
        """The texts about media of a split, or of "all". Raises RunError, naming the splits, for an unknown one."""
        splits = sorted({text.split for text in self.texts if text.media})
        if split not in ("all", *splits):
            raise no_split(split, self.features.path, splits)
        return [text for text in self.texts if text.media and split in ("all", text.split)]

    def restrictions(self, limit: int) -> list[str]:
        """Reasons why these scores aren't those of the whole data."""
        rejected = self.features.manifest["counts"].get("rejected", 0)
        left_out = f"{rejected} items were left out when {self.features.path} was made (its rejected.jsonl lists them)"
        only = f"only the first {limit} texts were scored (--limit)"
        return [words for words, is_so in ((left_out, rejected), (only, limit)) if is_so]


def open_scored(
    path: Path, modality: str | None, options: ScoringOptions, models: ModelOptions, device: str
) -> ScoredRun:
    """Load the checkpoint at `path` (see `find_checkpoint`) and the feature set it is scored on: `options.features`, or
    the one it was trained on.

    Raises RunError when they don't fit together, and where an adapter alone names no feature set.
    """
    place = find_checkpoint(path, options.last)
    settings = place.run.config.to_flat() if place.run else {}
    if not options.features and not settings:
        raise no_set(path)
    features = FeatureSet(options.features or scored_set(settings["features"], modality))
    if modality is None and len(place.adapters) > 1:
        modality = features.manifest["modality"]
    model, config = load_adapted(
        place.adapter(modality),
        device,
        models.precision,
        models.lm or None,
        modality,
        models.anyway,
        models.trust_remote_code,
        models.runtime,
    )
    check_encoder(features, config, models.anyway)
    if feature_shape(features, model.adapter.features.kind) != model.adapter.features:
        raise RunError(
            f"{features.path} holds features of another shape than the adapter reads; encode it as in training"
        )
    texts = features.texts(options.text or settings.get("text"), options.partial)
    texts = texts.with_captions(model.prompt.template.captions_read)
    run = ScoredRun(place, features, texts, model, config)
    print(f"{path}: {run.step.lstrip('0')} steps, language model {model.lm.precision} ({model.lm.reason})")
    return run


def named_runs(given: Sequence[str]) -> dict[str | None, Path]:
    """The values of --run, PATH or MODALITY=PATH ..., as modality (None where none is named) -> path."""
    return {modality: Path(path) for modality, path in by_modality("--run", given).items()}


def by_modality(flag: str, given: Sequence[str]) -> dict[str | None, str]:
    """A flag's values, VALUE or MODALITY=VALUE ..., as modality (None where none is named) -> value. Raises RunError
    for a mixture.
    """
    named: dict[str | None, str] = {}
    for argument in given:
        modality, value = split_modality(argument)
        if modality in named or None in named or (named and modality is None):
            raise RunError(f"{flag} {' '.join(given)}: name one, or one for each modality, as image=A audio=B")
        named[modality] = value
    return named


def scored_set(trained: Sequence[str], modality: str | None) -> str:
    """The feature set to score, see `own_set`; says which are left out."""
    chosen = own_set(trained, modality)
    if others := [path for path in named_sets(trained) if path != chosen]:
        print(f"features: {chosen}; trained on {', '.join(others)} too, which --features names to score them")
    return chosen


def check_encoder(features: FeatureSet, config: AdapterConfig, anyway: bool = False) -> None:
    """Refuse features of another encoder than the adapter was trained on; with `anyway` print a note instead."""
    of_set, of_adapter = features.manifest["encoder"], config.encoder
    if of_set["fingerprint"] != of_adapter.get("fingerprint"):
        other = (
            f"{features.path} was made with encoder {of_set['name']}, but the adapter was trained on "
            f"{of_adapter.get('name')} (what differs: {differences(of_set, of_adapter)})"
        )
        if not anyway:
            raise RunError(f"{other}; encode the media with that one")
        print(f"note: {other}")
    stored, trained_on = features.manifest["features"].get(config.features.kind, {}), config.storage
    if trained_on and stored.get("codec") != trained_on.get("codec"):
        print(
            f"note: {features.path} stores {stored.get('codec')}, the adapter was trained on {trained_on.get('codec')}"
        )
