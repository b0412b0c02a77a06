"""Answers of a model to texts, under each condition (see `evaluation.controls`)."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from periscope.adapters.model import AdaptedModel, Features
from periscope.adapters.model import Texts as Prompts
from periscope.bars import progress_bar
from periscope.evaluation.controls import Condition
from periscope.shards.texts import Text
from periscope.training.data.dataset import TextFeatureDataset, question_of

Respond = Callable[[Prompts, Features], list[str]]


def answer(
    model: AdaptedModel,
    dataset: TextFeatureDataset,
    texts: Sequence[Text],
    under: Mapping[str, Condition],
    batch: int,
    max_new_tokens: int,
    **decoding,
) -> dict[str, list[str]]:
    """Condition -> the answers to `texts`, in their order.

    decoding: passed to `AdaptedModel.generate`.
    """
    return dict(answer_each(model, dataset, texts, under, batch, max_new_tokens, **decoding))


def answer_each(
    model: AdaptedModel,
    dataset: TextFeatureDataset,
    texts: Sequence[Text],
    under: Mapping[str, Condition],
    batch: int,
    max_new_tokens: int,
    respond: Respond | None = None,
    **decoding,
) -> Iterator[tuple[str, list[str]]]:
    """Each condition with the answers to `texts`, in their order, as soon as the condition is answered.

    Where answers depend on the text alone, each question is asked once. respond: what answers in place of
    `AdaptedModel.generate`, to which `decoding` is passed.
    """
    if respond is None:
        generate: Respond = partial(model.generate, max_new_tokens=max_new_tokens, **decoding)
        respond = generate
    every = list(range(len(texts)))
    asked = {name: _first_equal(texts) if condition.text_only else every for name, condition in under.items()}
    with progress_bar(
        desc="answering", total=sum(len(set(firsts)) for firsts in asked.values()), unit=" answers"
    ) as bar:
        for name, condition in under.items():
            order = sorted(set(asked[name]), key=lambda i: _length(texts[i]))
            generated: dict[int, str] = {}
            for start in range(0, len(order), batch):
                places = order[start : start + batch]
                made = condition.batch(dataset, [texts[i] for i in places], answer=False)
                words = respond(made.texts, made.features)
                generated |= zip(places, words, strict=True)
                bar.update(len(places))
            yield name, [generated[i] for i in asked[name]]


def caption_groups(texts: Sequence[Text]) -> list[tuple[Text, list[Text]]]:
    """Each text to be answered once, with all texts that share its answer, in the texts' order.

    A question stands alone; the captions of one medium go together.
    """
    groups: dict[tuple, list[Text]] = {}
    for text in texts:
        asked = any(turn["role"] == "user" for turn in text.turns)
        groups.setdefault((text.id,) if asked else (text.media, text.split), []).append(text)
    return [(group[0], group) for group in groups.values()]


def _length(text: Text) -> tuple[bool, int]:
    """What texts are sorted by, so that a batch holds prompts of similar length."""
    question = question_of(text)
    return question is not None, len(question or "")


def _first_equal(texts: Sequence[Text]) -> list[int]:
    """For each text the index of the first text with the same words before the answer."""
    firsts: dict[str, int] = {}
    found = []
    for i, text in enumerate(texts):
        turns = text.turns[:-1] if text.turns and text.turns[-1]["role"] == "assistant" else text.turns
        found.append(firsts.setdefault(json.dumps([len(text.media), *turns]), i))
    return found
