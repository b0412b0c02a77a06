"""A run, loaded, beside the feature set that it is scored on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from periscope.adapters.io.card import is_hub_id
from periscope.adapters.io.schema import CONFIG, AdapterConfig
from periscope.adapters.model import AdaptedModel
from periscope.errors import RunError
from periscope.evaluation.options import ModelOptions, ScoringOptions
from periscope.inference import adapter_folders, load_adapted
from periscope.shards.read import FeatureSet
from periscope.shards.texts import Text, Texts
from periscope.training.data.dataset import feature_shape
from periscope.training.data.mix import named_sets
from periscope.training.run import Run


@dataclass(frozen=True)
class ScoredRun:
    """The run's folder, the feature set, all its texts, the model, and the adapter's config."""

    folder: Run
    features: FeatureSet
    texts: Texts
    model: AdaptedModel
    config: dict

    @property
    def step(self) -> str:
        """The checkpoint's, as its folder is called."""
        return self.folder.step_folder().name

    def held_out(self) -> list[Text]:
        """Texts about media that are not for training and say what is right. Raises RunError when there are none."""
        outside = self.texts.of_split(*(self.texts.splits - {"train"}))
        found = [text for text in outside if text.media]
        answered = [text for text in found if text.turns[-1]["role"] == "assistant"]
        if not any(text.media for text in self.texts):
            raise RunError(f"{self.features.path}: no text about a medium to score; name a file of such with --text")
        if not found:
            raise RunError(f"{self.features.path}: all texts about media are for training; none is held out to score")
        if not answered:
            raise RunError(
                f"{self.features.path} holds {len(found)} held-out questions without answers to compare with: make it "
                "again with the file of answers beside that of questions"
            )
        if len(answered) < len(found):
            print(f"{len(found) - len(answered)} of {len(found)} held-out texts have no answer and aren't scored")
        return answered

    def of_split(self, split: str) -> list[Text]:
        """The texts about media of a split, or of "all". Raises RunError naming the splits there are."""
        splits = sorted({text.split for text in self.texts if text.media})
        if split not in ("all", *splits):
            raise RunError(
                f"--gain {split}: {self.features.path} has no such texts; it has {', '.join(splits)}, or all"
            )
        return [text for text in self.texts if text.media and split in ("all", text.split)]

    def partial(self, limit: int) -> list[str]:
        """Why scores of these texts aren't those of the whole data."""
        rejected = self.features.manifest["counts"].get("rejected", 0)
        left_out = f"{rejected} items were left out when {self.features.path} was made (its rejected.jsonl lists them)"
        only = f"only the first {limit} texts were scored (--limit)"
        return [words for words, is_so in ((left_out, rejected), (only, limit)) if is_so]


def open_scored(
    path: Path, modality: str | None, scores: ScoringOptions, models: ModelOptions, device: str
) -> ScoredRun:
    """Load the run at `path` and what it is scored on: `scores.features`, or what it was trained on. Raises RunError
    when they don't fit, and for an adapter that is no run.
    """
    alone = "an adapter by itself, as of the Hub, answers about --image, --audio or --video FILE; scores are a run's"
    if (path / CONFIG).is_file():
        raise RunError(f"{path} is not a run but an adapter folder: {alone}")
    if not path.exists() and is_hub_id(str(path)):
        raise RunError(f"{path} is not a run: there is no such folder here ({alone})")
    folder = Run.open(path)
    settings = folder.config
    features = FeatureSet(scores.features or scored_set(settings["features"], modality))
    if modality is None and len(adapter_folders(path)) > 1:
        modality = features.manifest["modality"]
    model, config = load_adapted(path, device, models.precision, models.lm or None, modality, models.anyway)
    check_encoder(features, config, models.anyway)
    if feature_shape(features, model.adapter.features.kind) != model.adapter.features:
        raise RunError(
            f"{features.path} holds features of another shape than the adapter reads; encode it as in training"
        )
    texts = features.texts(scores.text or settings.get("text"), scores.partial)
    found = ScoredRun(folder, features, texts, model, config)
    print(f"{path}: {found.step} steps, language model {model.lm.precision} ({model.lm.reason})")
    return found


def named_runs(given: Sequence[str]) -> dict[str | None, Path]:
    """--run's PATH, or MODALITY=PATH ...: modality (None where none is named) -> path."""
    return {modality: Path(path) for modality, path in by_modality("--run", given).items()}


def by_modality(flag: str, given: Sequence[str]) -> dict[str | None, str]:
    """A flag's VALUE, or MODALITY=VALUE ...: modality (None where none is named) -> value. Raises RunError for both."""
    named: dict[str | None, str] = {}
    for one in given:
        name, equals, value = one.partition("=")
        modality, value = (name, value) if equals and name in ("image", "audio", "video") else (None, one)
        if modality in named or None in named or (named and modality is None):
            raise RunError(f"{flag} {' '.join(given)}: name one, or one for each modality, as image=A audio=B")
        named[modality] = value
    return named


def scored_set(trained: str | list[str], modality: str | None) -> str:
    """Of the feature sets that a run was trained on, the one to score: the first, or the first of a modality."""
    paths = list(named_sets(trained))
    fitting = [path for path in paths if modality in (None, FeatureSet(path).manifest["modality"])] or paths
    if others := [path for path in paths if path != fitting[0]]:
        print(f"features: {fitting[0]}; trained on {', '.join(others)} too, which --features names to score them")
    return fitting[0]


def check_encoder(features: FeatureSet, config: AdapterConfig, anyway: bool = False) -> None:
    """Refuse features of another encoder than the adapter was trained on, or with `anyway` say so."""
    theirs, ours = features.manifest["encoder"], config.encoder
    if theirs["fingerprint"] != ours.get("fingerprint"):
        other = (
            f"{features.path} was made with encoder {theirs['name']}, but the adapter was trained on "
            f"{ours.get('name')} (weights, layer or preprocessing differ)"
        )
        if not anyway:
            raise RunError(f"{other}; encode the media with that one")
        print(f"note: {other}")
    held, read = features.manifest["features"].get(config.features.kind, {}), config.storage
    if read and held.get("codec") != read.get("codec"):
        print(f"note: {features.path} stores {held.get('codec')}, the adapter was trained on {read.get('codec')}")
