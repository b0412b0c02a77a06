"""New captions by a trained model, as lines of a texts file."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from periscope.adapters.generation.decoding import Decoding
from periscope.adapters.model import AdaptedModel
from periscope.atomic import json_line, replace_bytes
from periscope.bars import progress_bar
from periscope.errors import PrecomputeError, RunError
from periscope.inference import LoadedModel
from periscope.precompute.media import suits
from periscope.precompute.remote import collected
from periscope.shards.read import FeatureSet
from periscope.shards.texts import Text
from periscope.text import printable
from periscope.training.data.dataset import TextFeatureDataset


def captions_of_set(model: AdaptedModel, features: FeatureSet, batch: int, decoding: Decoding) -> Iterator[dict]:
    """A new caption for each medium of a feature set. The lines name no split: the set decides what is held out."""
    dataset = TextFeatureDataset(features, model.prompt, model.adapter)
    keys = features.keys
    for start in progress_bar(range(0, len(keys), batch), desc="captioning", unit=" batches"):
        part = keys[start : start + batch]
        made = dataset.batch([Text(key, (key,), (), "train") for key in part], answer=False)
        captions = model.generate(made.texts, made.features, decoding.max_new_tokens, **decoding.arguments())
        for key, caption in zip(part, captions, strict=True):
            yield caption_line(key, caption)


def captions_of_folder(loaded: LoadedModel, data: Path, batch: int, decoding: Decoding) -> Iterator[dict]:
    """A new caption for each medium below `data`. Each is named by its path there, so that the lines fit a feature set
    made from the same folder. Unreadable media are counted and left out.

    Raises PrecomputeError when no medium can be read, RunError for several adapters.
    """
    if len(loaded.readers) > 1:
        raise RunError(
            f"this run reads {' and '.join(loaded.readers)}: name the adapter to use, as in image=runs/first"
        )
    ((modality, reader),) = loaded.readers.items()
    bad, done = [], 0
    with collected(data) as collection:
        takes = reader.encoder.modality
        media = [each for each in collection.media.values() if suits(each.origin, each.modality, takes)]
        with progress_bar(desc="captioning", total=len(media), unit=" media") as bar:
            for start in range(0, len(media), batch):
                features = {}
                for medium in media[start : start + batch]:
                    try:
                        features[medium.origin] = reader.features(medium.read())
                    except PrecomputeError as error:
                        bad.append(f"{medium.origin}: {error}")
                    bar.update()
                named = {f"{modality}:{i}": rows for i, rows in enumerate(features.values())}
                prompts = [loaded.model.prompt.segments([], [name], answer=False) for name in named]
                how = decoding.arguments()
                captions = loaded.model.generate(prompts, named, decoding.max_new_tokens, **how) if prompts else []
                for origin, caption in zip(features, captions, strict=True):
                    yield caption_line(origin, caption)
                done += len(features)
    if not done:
        raise PrecomputeError(f"{data} holds no {modality} that can be read{f' ({bad[0]})' if bad else ''}")
    if bad:
        print(f"{len(bad)} media can't be read and have no caption ({printable(bad[0])})")


def write_lines(lines: Iterable[dict], out: Path) -> int:
    """Write a .jsonl file, whole or not at all, and return its number of lines. Raises RunError when it can't."""
    made = [json_line(line) for line in lines]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(out, b"".join(made))
    except OSError as error:
        raise RunError(f"{out} can't be written: {error.strerror}") from None
    return len(made)


def caption_line(medium: str, caption: str) -> dict:
    """A line of a texts file."""
    return {"id": f"{medium}-said", "media": [medium], "turns": [{"role": "assistant", "content": caption}]}
