"""The control without a medium where nothing else precedes the answer: a tokenizer that adds no begin-of-text token."""

import pytest
import tiny
import torch

from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.template import default_template
from periscope.evaluation.answer import answer
from periscope.evaluation.controls import conditions, text_losses
from periscope.shards.texts import Text
from periscope.training.data.dataset import TextFeatureDataset

CAPTION = Text("c", ("a",), ({"role": "assistant", "content": "a red circle"},), "heldout")
QUESTION = Text("q", ("b",), ({"role": "user", "content": "What colour?"}, *CAPTION.turns), "heldout")
MARKED = Text("m", ("b",), ({"role": "user", "content": "Is <image> red?"}, *CAPTION.turns), "heldout")


class Features:
    """Features `(12,)` that differ from medium to medium."""

    def read_many(self, keys, kind):
        return torch.stack([torch.full((12,), float(ord(key))) for key in keys]) if keys else torch.zeros(0, 12)


def dataset(tmp_path, family="gpt2", **template):
    plain = {"style": "plain", "delimiters": ("", "")} | template
    model = tiny.adapted(tiny.save_language_model(family, tmp_path / family), template=plain)
    return model, TextFeatureDataset(Features(), model.prompt, model.adapter)


def targets(segments):
    return [token for segment in segments if segment.target for token in segment.ids]


@pytest.mark.parametrize("template", [{}, {"caption_prompt": "A picture of"}, {"loss_on": "all"},
                                      {"media": "after", "loss_on": "all"}, {"delimiters": ("<image>", "</image>")},
                                      {"loss_on": "all", "delimiters": ("<image>", "</image>")}])  # fmt: skip
@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_without_a_medium_the_targets_are_the_same(tmp_path, family, template):
    _, texts = dataset(tmp_path, family, **template)
    for text in (CAPTION, QUESTION):
        assert targets(texts.segments(text, media=False)) == targets(texts.segments(text)), text.id
    asked = texts.segments(MARKED, media=False)
    assert targets(asked)[-4:] == targets(texts.segments(MARKED))[-4:]


def test_the_losses_of_all_controls_are_over_the_same_tokens(tmp_path):
    model, texts = dataset(tmp_path)
    under = conditions(("shuffled", "none"), {"a": "b", "b": "a"})
    losses = text_losses(model, texts, [CAPTION, QUESTION], under, batch=2)
    assert [n for _, n in losses["none"]] == [n for _, n in losses["real"]] == [n for _, n in losses["shuffled"]]


def test_a_caption_without_a_medium_can_be_generated(tmp_path):
    model, texts = dataset(tmp_path)
    assert texts.segments(CAPTION, answer=False, media=False), "an empty prompt can't be continued"
    said = answer(model, texts, [CAPTION], conditions(("none",)), batch=1, max_new_tokens=3)
    assert isinstance(said["none"][0], str)
    bare = texts.segments(CAPTION, media=False)
    assert [*texts.segments(CAPTION, answer=False, media=False)[0].ids] == [*bare[0].ids], "the prompt is a prefix"


def test_the_start_token_is_bos_or_else_eos():
    tokenizer = tiny.byte_level()
    assert Prompt(tokenizer, default_template(tokenizer)).start_ids == (tokenizer.bos_token_id,)
    tokenizer.bos_token = None
    assert Prompt(tokenizer, default_template(tokenizer)).start_ids == (tokenizer.eos_token_id,)
