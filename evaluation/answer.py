"""What the model says to texts, with what they are about and without: the controls of a score."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from tqdm import tqdm

from periscope.adapters.model import AdaptedModel
from periscope.shards.read import FeatureSet
from periscope.shards.texts import Text
from periscope.training.data.dataset import Batch, TextFeatureDataset, question_of

AVERAGED = 256  # training media in the blank feature


@dataclass(frozen=True)
class Condition:
    """What stands in the place of a text's media: their own features; `instead`, a medium's name for each; `blank`, one
    feature for all `(width,)` or `(tokens, width)`; or, with `media` False, nothing.
    """

    instead: Callable[[str], str] | None = None
    blank: torch.Tensor | None = None
    media: bool = True

    @property
    def alike(self) -> bool:
        """Whether the answer depends on the words alone."""
        return self.blank is not None or not self.media

    def batch(self, encoded: TextFeatureDataset, texts: Sequence[Text], answer: bool) -> Batch:
        """The texts under this condition, with or without their answers."""
        batch = encoded.batch(texts, answer=answer, media=self.media, instead=self.instead)
        if self.blank is None:
            return batch
        return replace(batch, rows=self.blank.to(batch.rows.dtype).expand_as(batch.rows))


def conditions(names: Sequence[str], blank: torch.Tensor, stand_in: Mapping[str, str]) -> dict[str, Condition]:
    """The conditions by name: "real", and those of `names`; "shuffled" only where media can stand in for others."""
    known = {
        "real": Condition(),
        "shuffled": Condition(instead=stand_in.__getitem__),
        "blank": Condition(blank=blank),
        "none": Condition(media=False),
    }
    return {
        name: known[name] for name in known if name == "real" or (name in names and (name != "shuffled" or stand_in))
    }


def blank_feature(features: FeatureSet, kind: str) -> torch.Tensor:
    """The mean feature of up to 256 media that are trained on, from everywhere in the set.

    Of the ways to show nothing it is the one that lies where features lie: zeros have a norm that no feature has, and
    what a model says to them may only show that it never met such a thing.
    """
    keys = [key for key in features.keys if key not in features.heldout] or features.keys
    chosen = keys[:: max(1, len(keys) // AVERAGED)][:AVERAGED]
    return features.read_many(chosen, kind).float().mean(0)


def answer(
    model: AdaptedModel,
    encoded: TextFeatureDataset,
    texts: Sequence[Text],
    under: Mapping[str, Condition],
    batch: int,
    max_new_tokens: int,
    **decoding,
) -> dict[str, list[str]]:
    """For each condition the answers to `texts`, in their order. Where answers depend on the words alone, each question
    is asked once.
    """
    asked = {name: _each_once(texts) if condition.alike else list(range(len(texts)))
             for name, condition in under.items()}  # fmt: skip
    said = {}
    with tqdm(total=sum(len(set(firsts)) for firsts in asked.values()), unit=" answers", desc="answering") as bar:
        for name, condition in under.items():
            order = sorted(set(asked[name]), key=lambda i: _length(texts[i]))
            found: dict[int, str] = {}
            for start in range(0, len(order), batch):
                part = order[start : start + batch]
                given = condition.batch(encoded, [texts[i] for i in part], answer=False)
                found |= zip(part, model.generate(given.texts, given.features, max_new_tokens, **decoding), strict=True)
                bar.update(len(part))
            said[name] = [found[i] for i in asked[name]]
    return said


def caption_groups(texts: Sequence[Text]) -> list[tuple[Text, list[Text]]]:
    """Each text to be answered once, with all that answer the same: a question by itself, the captions of one medium
    together, in the texts' order.
    """
    groups: dict[tuple, list[Text]] = {}
    for text in texts:
        asked = any(turn["role"] == "user" for turn in text.turns)
        groups.setdefault((text.id,) if asked else (text.media, text.split), []).append(text)
    return [(group[0], group) for group in groups.values()]


def _length(text: Text) -> tuple[bool, int]:
    asked = question_of(text)
    return asked is not None, len(asked or "")


def _each_once(texts: Sequence[Text]) -> list[int]:
    """For each text the first that has the same words before the answer."""
    firsts: dict[str, int] = {}
    found = []
    for i, text in enumerate(texts):
        turns = text.turns[:-1] if text.turns and text.turns[-1]["role"] == "assistant" else text.turns
        found.append(firsts.setdefault(json.dumps([len(text.media), *turns]), i))
    return found
