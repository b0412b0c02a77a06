"""The controls of a score: what an answer or a loss is worth when the medium's own features are taken away.

- real: the medium's own features
- shuffled: the features of another medium that shows something else
- blank: the mean feature of media that are trained on
- none: no medium at all

Both training (held-out losses) and evaluation (answers, loss drops) use these. The module imports no torch.
"""

import random
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from periscope.shards.texts import Text

if TYPE_CHECKING:
    import torch

    from periscope.shards.read import FeatureSet

REAL = "real"
CONTROLS = ("shuffled", "blank", "none")
BASELINES = (*CONTROLS, "majority")  # majority: the commonest answer to that kind of question, without any model
T = TypeVar("T")
BLANK_MEDIA = 256  # training media averaged for the blank feature


class Dataset(Protocol):
    """What a condition needs of `training.data.dataset.TextFeatureDataset`."""

    def batch(
        self,
        texts: Sequence[Text],
        *,
        answer: bool = True,
        media: bool = True,
        instead: Callable[[str], str] | None = None,
    ) -> Any:
        """A batch with `texts` (token segments) and `features` (vectors by media key); `rows` holds the features."""


class TextLossModel(Protocol):
    """What `text_losses` needs of `adapters.model.AdaptedModel`."""

    def text_losses(self, texts: Any, features: Any) -> list[tuple[float, int]]:
        """For each text its summed cross-entropy and its number of target tokens."""


@dataclass(frozen=True)
class Condition:
    """What replaces the features of a text's media.

    instead: medium -> the medium whose features it gets · blank: one feature for all media, `(width,)` or
    `(tokens, width)` · media: False leaves the media out. With the defaults nothing is replaced.
    """

    instead: Callable[[str], str] | None = None
    blank: "torch.Tensor | None" = None
    media: bool = True

    @property
    def text_only(self) -> bool:
        """Whether the answer depends on the text alone, so that equal texts get equal answers."""
        return self.blank is not None or not self.media

    def batch(self, dataset: Dataset, texts: Sequence[Text], answer: bool) -> Any:
        """A batch of `texts` under this condition, with or without their answers."""
        batch = dataset.batch(texts, answer=answer, media=self.media, instead=self.instead)
        if self.blank is None:
            return batch
        return replace(batch, rows=self.blank.to(batch.rows.dtype).expand_as(batch.rows))


def conditions(
    names: Sequence[str], stand_in: Mapping[str, str] | None = None, blank: "torch.Tensor | None" = None
) -> dict[str, Condition]:
    """The condition "real" and the controls in `names`, in the order real, shuffled, blank, none.

    stand_in: medium -> the medium whose features it gets under "shuffled"; when empty, "shuffled" is left out.
    """
    found = {REAL: Condition()}
    if "shuffled" in names and stand_in:
        found["shuffled"] = Condition(instead=stand_in.__getitem__)
    if "blank" in names:
        if blank is None:
            raise ValueError("the control blank needs a blank feature")
        found["blank"] = Condition(blank=blank)
    if "none" in names:
        found["none"] = Condition(media=False)
    return found


def blank_feature(features: "FeatureSet", kind: str) -> "torch.Tensor":
    """The mean feature of up to 256 media that are trained on, spread over the set: `(width,)` or `(tokens, width)`.

    A mean lies where features lie. Zeros have a norm that no feature has, so an answer to zeros may only show that the
    model never met such an input.
    """
    keys = [key for key in features.keys if key not in features.heldout] or features.keys
    return features.read_many(evenly(keys, BLANK_MEDIA), kind).float().mean(0)


def evenly(items: Sequence[T], most: int) -> Sequence[T]:
    """At most `most` of the items, spread over all of them and in their order."""
    if len(items) <= most:
        return items
    return [items[(2 * i + 1) * len(items) // (2 * most)] for i in range(most)]


def derangement(contents: Sequence[Hashable], seed: int = 0) -> list[int] | None:
    """A permutation that maps every sample to one with different content, or None when there is no such permutation.

    `contents[i]` identifies what sample i shows.
    """
    if not contents:
        return None
    order = list(range(len(contents)))
    random.Random(seed).shuffle(order)
    order.sort(key=lambda i: str(contents[i]))  # samples with equal content become neighbours
    largest = max(Counter(contents).values())
    if 2 * largest > len(contents):
        return None
    stand_in = [0] * len(contents)
    for place, i in enumerate(order):
        stand_in[i] = order[(place + largest) % len(order)]
    return stand_in


def stand_ins(contents: Mapping[str, Hashable]) -> dict[str, str]:
    """For each medium another one that shows something else (`contents` identifies what each shows); empty when there
    is no such assignment.
    """
    keys, order = list(contents), derangement(list(contents.values()))
    return {key: keys[i] for key, i in zip(keys, order, strict=True)} if order else {}


def text_losses(
    model: TextLossModel,
    dataset: Dataset,
    texts: Sequence[Text],
    under: Mapping[str, Condition],
    batch: int,
    advance: Callable[[int], object] | None = None,
) -> dict[str, list[tuple[float, int]]]:
    """Condition -> for each text its summed cross-entropy in nats and its number of target tokens, in order.

    advance: called with the number of texts done after each batch, for a progress bar.
    """
    losses: dict[str, list[tuple[float, int]]] = {}
    for name, condition in under.items():
        rows = losses[name] = []
        for start in range(0, len(texts), batch):
            made = condition.batch(dataset, texts[start : start + batch], answer=True)
            rows += model.text_losses(made.texts, made.features)
            if advance:
                advance(len(made.texts))
    return losses
