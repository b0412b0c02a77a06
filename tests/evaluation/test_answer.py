"""Answers under each condition: what is asked once, and what is answered together."""

import torch

from periscope.evaluation.answer import answer, caption_groups
from periscope.evaluation.controls import conditions
from periscope.shards.texts import Text
from periscope.training.data.dataset import Batch


class Parrot:
    """Says what it was given: the prompt's words and the features' sum; counts how much it was asked."""

    def __init__(self):
        self.asked = 0

    def batch(self, texts, *, answer, media, instead):
        rows = {key: torch.full((2,), float(instead(key) if instead else key)) for text in texts for key in text.media}
        keys = list(rows) if media else []
        return Batch(list(texts), keys, torch.stack([rows[key] for key in keys]) if keys else torch.zeros(0, 2), 0)

    def generate(self, texts, features, max_new_tokens, **decoding):
        self.asked += len(texts)
        return [f"{text.turns[0]['content']} {sum(features[k].sum().item() for k in text.media if k in features):g}"
                for text in texts]  # fmt: skip


def test_answers_that_depend_on_the_words_alone_are_asked_once():
    parrot = Parrot()
    words = [("1", "what"), ("2", "what"), ("3", "which one"), ("3", "what")]
    said = {"role": "assistant", "content": "x"}
    texts = [
        Text(f"t{i}", (key,), ({"role": "user", "content": asked}, said), "heldout")
        for i, (key, asked) in enumerate(words)
    ]
    stand_in = {"1": "2", "2": "3", "3": "1"}
    under = conditions(("shuffled", "blank", "none"), stand_in, torch.full((2,), 5.0))
    said = answer(parrot, parrot, texts, under, batch=3, max_new_tokens=4)
    assert said == {
        "real": ["what 2", "what 4", "which one 6", "what 6"],
        "shuffled": ["what 4", "what 6", "which one 2", "what 2"],
        "blank": ["what 10", "what 10", "which one 10", "what 10"],
        "none": ["what 0", "what 0", "which one 0", "what 0"],
    }
    assert parrot.asked == 4 + 4 + 2 + 2


def test_captions_of_one_medium_are_answered_once():
    said = ({"role": "assistant", "content": "x"},)
    asked = ({"role": "user", "content": "?"}, *said)
    texts = [Text(str(i), (key,), turns, "val") for i, (key, turns) in enumerate(
        [("a", said), ("b", said), ("a", said), ("a", asked), ("a", asked)]
    )]  # fmt: skip
    assert [[text.id for text in group] for _, group in caption_groups(texts)] == [["0", "2"], ["1"], ["3"], ["4"]]
