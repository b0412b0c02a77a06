"""Answers chosen among given ones, and tokens that are drawn."""

import pytest
import tiny
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from periscope.adapters.generation.decoding import draw
from periscope.adapters.generation.ranking import by_first_token, candidates_of, likeliest
from periscope.errors import AdapterError

ANSWERS = ("red", "blue", "a red star", "the lazy dog", "a small circle")


@pytest.fixture(scope="module", params=[("llama", "answer"), ("gpt_neox", "all"), ("mamba", "answer")])
def asked(request, tmp_path_factory):
    """A model, two prompts of different length about media, and features."""
    family, loss_on = request.param
    folder = tiny.save_language_model(family, tmp_path_factory.mktemp(family))
    model = tiny.adapted(folder, template={"loss_on": loss_on})
    generator = torch.Generator().manual_seed(0)
    features = {name: 3 * torch.randn(12, generator=generator) for name in "mn"}
    questions = ("What colour is the star?", "what?")
    turns = [[{"role": "user", "content": question}] for question in questions]
    texts = [model.prompt.segments(each, [name], answer=False) for each, name in zip(turns, "mn", strict=True)]
    return model, texts, features, turns


@torch.no_grad()
def loss_of(model, turns, name, answer, features):
    """The answer's cross-entropy, by a plain pass over the whole text."""
    asking = model.prompt.segments(turns, [name], answer=False)
    whole = model.prompt.segments([*turns, {"role": "assistant", "content": answer}], [name])
    count = sum(len(each.ids) for each in whole) - sum(len(each.ids) for each in asking)
    batch, _ = model._splice([whole], model.slots([whole], features), train=False)
    ids = [token for each in whole for token in each.ids][-count:]
    scores = model.lm.model(inputs_embeds=batch.inputs_embeds).logits[0, -count - 1 : -1].log_softmax(-1)
    return -scores[torch.arange(count), ids].sum().item(), scores[0], ids[0]


def test_the_likeliest_answer_is_that_of_plain_passes(asked):
    model, texts, features, turns = asked
    found = likeliest(model, texts, features, candidates_of(model.prompt, ANSWERS), keep=len(ANSWERS))
    for each, name, answer in zip(turns, "mn", found, strict=True):
        losses = {words: loss_of(model, each, name, words, features)[0] for words in ANSWERS}
        assert answer == min(losses, key=losses.get) and len(set(losses.values())) == len(ANSWERS)


def test_the_first_tokens_share_is_that_of_plain_passes(asked):
    model, texts, features, turns = asked
    words = ("red", "blue", "the lazy dog")
    shares = by_first_token(model, texts, features, candidates_of(model.prompt, words))
    assert shares.shape == (2, 3) and torch.allclose(shares.sum(-1), torch.ones(2))
    for row, each, name in zip(shares, turns, "mn", strict=True):
        plain = [loss_of(model, each, name, answer, features)[1:] for answer in words]
        expected = torch.stack([scores[token] for scores, token in plain]).softmax(-1)
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-5)
    first = likeliest(model, texts, features, candidates_of(model.prompt, words), keep=1)
    assert first == [words[i] for i in shares.argmax(-1).tolist()]
    with pytest.raises(AdapterError, match="'a red star' and 'a red dog' begin with the same token"):
        by_first_token(model, texts, features, candidates_of(model.prompt, ("a red star", "a red dog")))


@pytest.mark.parametrize("top_p, top_k", [(1.0, 0), (0.7, 0), (1.0, 3), (0.8, 5), (1e-6, 0)])
def test_tokens_are_drawn_as_transformers_does(top_p, top_k):
    logits = 2 * torch.randn(4, 20, generator=torch.Generator().manual_seed(1))
    warpers = [TemperatureLogitsWarper(0.7)]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    warped = logits.clone()
    for warper in warpers:
        warped = warper(None, warped)
    for seed in range(5):
        torch.manual_seed(seed)
        expected = torch.multinomial(warped.softmax(-1), 1)[:, 0]
        torch.manual_seed(seed)
        assert torch.equal(draw(logits, 0.7, top_p, top_k), expected)
