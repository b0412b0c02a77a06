"""Words written anew: a set's texts without those that their media don't explain, and new captions of media."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from periscope.adapters.model import AdaptedModel
from periscope.errors import PrecomputeError, RunError
from periscope.evaluation.controls import stand_ins
from periscope.evaluation.gain import LossDrop, rank
from periscope.inference import LoadedModel
from periscope.precompute.media import suits
from periscope.precompute.remote import collected
from periscope.shards.atomic import json_line, replace_bytes
from periscope.shards.read import FeatureSet
from periscope.shards.texts import Text
from periscope.training.data.dataset import TextFeatureDataset, medium_contents, question_of


def ranked(model: AdaptedModel, features: FeatureSet, texts: Sequence[Text], batch: int) -> list[LossDrop]:
    """The texts by what looking gains on each, the worst first; those that can't be learnt from are left out. Raises
    RunError when none is left.
    """
    encoded = TextFeatureDataset(features, model.prompt, model.adapter)
    kept = encoded.keep([text for text in texts if text.media], model.lm.max_length).texts
    if not kept:
        raise RunError(f"{features.path} holds no such text about a medium that could be learnt from")
    stand_in = stand_ins(medium_contents(features, kept))
    return rank(model, encoded, kept, stand_in, batch)


def gain_lines(found: Iterable[LossDrop], features: FeatureSet) -> Iterator[dict]:
    """Lines of gain.jsonl: what looking gains, the losses it comes from, and what the text says."""
    for one in found:
        losses = {name: None if value is None else round(value, 4) for name, value in
                  (("gain", one.gain), ("real", one.real), ("shuffled", one.shuffled), ("none", one.none))}  # fmt: skip
        origins = [features.info(key)["origin"] for key in one.text.media]
        yield losses | {"id": one.text.id, "split": one.text.split, "origin": origins, "turns": list(one.text.turns)}


def shown(one: LossDrop, features: FeatureSet) -> str:
    """A text in a line: where its medium came from, and its words."""
    asked = question_of(one.text)
    words = f"{asked} {one.text.turns[-1]['content']}" if asked else one.text.turns[-1]["content"]
    return f"{features.info(one.text.media[0])['origin']}  {' '.join(words.split())[:80]}"


def worst(found: Sequence[LossDrop], share: float) -> set[str]:
    """The ids of the texts to leave out: that share of all, the worst first; for 0 those that looking makes dearer."""
    count = round(share * len(found)) if share else sum(one.gain < 0 for one in found)
    return {one.text.id for one in found[:count]}


def without(texts: Sequence[Text], dropped: set[str]) -> Iterator[dict]:
    """The lines of a texts file: all `texts` but those with an id in `dropped`."""
    for text in texts:
        if text.id not in dropped:
            yield {"id": text.id, "media": list(text.media), "turns": list(text.turns), "split": text.split,
                   "meta": text.meta}  # fmt: skip


def captions_of_set(model: AdaptedModel, features: FeatureSet, batch: int, max_new_tokens: int) -> Iterator[dict]:
    """A new caption for each medium of a feature set, as lines of a texts file; who trains on it is decided by what
    the set holds out.
    """
    encoded = TextFeatureDataset(features, model.prompt, model.adapter)
    keys = features.keys
    for start in tqdm(range(0, len(keys), batch), desc="captioning", unit=" batches"):
        part = keys[start : start + batch]
        given = encoded.batch([Text(key, (key,), (), "train") for key in part], answer=False)
        for key, said in zip(part, model.generate(given.texts, given.features, max_new_tokens), strict=True):
            yield _line(f"{key}-said", key, said)


def captions_of_folder(eyes: LoadedModel, data: Path, batch: int, max_new_tokens: int) -> Iterator[dict]:
    """A new caption for each medium below `data`, named by its path there, so that the lines fit a feature set made
    from the same folder. What can't be read is counted and left out. Raises PrecomputeError when nothing can,
    RunError for several adapters at once.
    """
    if len(eyes.readers) > 1:
        raise RunError(f"this run reads {' and '.join(eyes.readers)}: say with which, as in --run image=runs/first")
    ((modality, reader),), bad, done = eyes.readers.items(), [], 0
    with collected(data) as found:
        media = [one for one in found.media.values() if suits(one.origin, one.modality, reader.encoder.modality)]
        for start in tqdm(range(0, len(media), batch), desc="captioning", unit=" batches"):
            features = {}
            for medium in media[start : start + batch]:
                try:
                    features[medium.origin] = reader.features(medium.read())
                except PrecomputeError as error:
                    bad.append(f"{medium.origin}: {error}")
            named = {f"{modality}:{i}": rows for i, rows in enumerate(features.values())}
            asked = [eyes.model.prompt.segments([], [name], answer=False) for name in named]
            answers = eyes.model.generate(asked, named, max_new_tokens) if asked else []
            for origin, said in zip(features, answers, strict=True):
                yield _line(f"{origin}-said", origin, said)
            done += len(features)
    if not done:
        raise PrecomputeError(f"{data} holds no {modality} that can be read{f' ({bad[0]})' if bad else ''}")
    if bad:
        print(f"{len(bad)} media can't be read and have no caption ({bad[0]})")


def write_lines(lines: Iterable[dict], out: Path) -> int:
    """Write a .jsonl whole or not at all; returns how many lines it has. Raises RunError when it can't be written."""
    made = [json_line(line) for line in lines]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(out, b"".join(made))
    except OSError as error:
        raise RunError(f"{out} can't be written: {error.strerror}") from None
    return len(made)


def _line(name: str, medium: str, said: str) -> dict:
    return {"id": name, "media": [medium], "turns": [{"role": "assistant", "content": said}]}
