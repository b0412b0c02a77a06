"""Features of other media, for the control answer: held-out ones of the sets that the served runs were trained on."""

from collections.abc import Mapping
from pathlib import Path

import torch

from periscope.errors import UserError
from periscope.inference import LoadedModel, Reader
from periscope.shards.read import FeatureSet
from periscope.training.config import named_sets
from periscope.training.run import Run

FEW = 8  # media of each modality

StandIns = Mapping[str, list[torch.Tensor]]  # modality -> features


def stand_ins_of(model: LoadedModel, places: Mapping[str | None, Path]) -> dict[str, list[torch.Tensor]]:
    """The features of a few held-out media for each modality of a model, as far as its runs' sets are here.

    places: modality, or None for all -> the run, as `load_models` has it.
    """
    found: dict[str, list[torch.Tensor]] = {}
    for named, place in places.items():
        for modality in [named] if named else list(model.readers):
            found[modality] = _held_out(place, modality, model.readers[modality])
    return found


def _held_out(place: Path, modality: str, reader: Reader) -> list[torch.Tensor]:
    """Features of held-out media that the reader's encoder made, in the shape that the adapter reads."""
    if not (place / "config.toml").is_file():
        return []
    try:
        for path in named_sets(Run.open(place).config.features):
            features = FeatureSet(path)
            encoder, keys = features.manifest["encoder"], sorted(features.heldout)[:FEW]
            fits = encoder["fingerprint"] == reader.encoder.describe().get("fingerprint")
            if fits and features.manifest["modality"] == modality and reader.kind in features.manifest["features"]:
                return [features.read(key, reader.kind) for key in keys]
    except (UserError, OSError):
        pass  # the set has moved or was changed: other media of the conversation stand in
    return []
