"""Texts that share a pass over their beginning: the losses and gradients of separate rows, for every family."""

import pytest
import tiny
import torch

from periscope.adapters import model as adapters_model
from periscope.adapters.lm.load import load_language_model
from periscope.adapters.model import AdaptedModel, Adapter
from periscope.adapters.projectors import FeatureShape
from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.segments import Segment
from periscope.adapters.prompting.template import default_template
from periscope.adapters.shared_prefix import can_share, group_by_prefix, pack_shared_prefix, sharing_pays

WIDTH, PATCHES = 12, 9
WORDS = ["a red circle", "a small blue star and a lazy dog", "the quick brown fox", "the lazy dog"]
QUESTIONS = [("What colour is the star?", "blue"), ("What colour is the dog?", "brown"), ("What jumps?", "the fox")]


def adapted(folder, **template):
    lm = load_language_model(str(folder))
    torch.manual_seed(1)
    adapter = Adapter("mlp", FeatureShape("patches", PATCHES, WIDTH, (3, 3)), lm.hidden_size, lm.embedding_rms, 2)
    return AdaptedModel(lm, adapter, Prompt(lm.tokenizer, default_template(lm.tokenizer, **template)))


def batch(model):
    """Two pictures with captions and questions, one caption twice, a text without a picture, one about both."""
    caption = lambda words: [{"role": "assistant", "content": words}]  # noqa: E731
    ask = lambda q, a: [{"role": "user", "content": q}, {"role": "assistant", "content": a}]  # noqa: E731
    rows = [(caption(words), ["one"]) for words in (*WORDS, WORDS[0])]
    rows += [(ask(*pair), ["one"]) for pair in QUESTIONS] + [(ask(*pair), ["two"]) for pair in QUESTIONS]
    rows += [(ask("Who jumps over the dog?", "the fox"), []), (ask("Which is red?", "the first"), ["one", "two"])]
    rows += [(caption(WORDS[1]), ["two"])]
    draw = torch.Generator().manual_seed(2)
    features = {name: torch.randn(PATCHES, WIDTH, generator=draw) for name in ("one", "two")}
    return [model.prompt.segments(turns, media, soft_prompt=True) for turns, media in rows], features


def separate(model):
    model._can_share = False
    return model


def losses_and_gradients(model, texts, features):
    total, count = model.loss(texts, features)
    return total.item(), count, torch.autograd.grad(total, list(model.adapter.parameters()))


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
def test_losses_and_gradients_are_those_of_separate_rows(family, language_model_folder, monkeypatch):
    model, planted = adapted(language_model_folder(family)), []
    monkeypatch.setattr(
        adapters_model, "pack_shared_prefix", lambda *given: planted.append(pack_shared_prefix(*given)) or planted[-1]
    )
    texts, features = batch(model)
    shared, each = losses_and_gradients(model, texts, features), model.text_losses(texts, features)
    assert len(planted) == (2 if can_share(model.lm) else 0)
    assert can_share(model.lm) != model.lm.family.recurrent
    separate(model)
    alone, each_alone = losses_and_gradients(model, texts, features), model.text_losses(texts, features)
    assert shared[1] == alone[1] and abs(shared[0] - alone[0]) < 1e-4 * alone[0]
    for one, other in zip(shared[2], alone[2], strict=True):
        assert torch.allclose(one, other, atol=1e-5 + 1e-4 * other.abs().max().item())
    for (one, n), (other, m) in zip(each, each_alone, strict=True):
        assert n == m and abs(one - other) < 1e-4 * max(1, other)


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text", "phi3"])
def test_windows_count_from_the_text_not_from_the_row(family, language_model_folder):
    """A window shorter than a stem: what a branch sees of it is what it would see alone."""
    model = adapted(language_model_folder(family))
    texts, features = batch(model)
    far = model.text_losses(texts, features)
    model.lm.model.config.sliding_window = 6
    shared = model.text_losses(texts, features)
    alone = separate(model).text_losses(texts, features)
    assert all(abs(one - other) > 1e-3 for (one, _), (other, _) in zip(far, alone, strict=True))
    assert all(abs(one - other) < 1e-4 * max(1, other) for (one, _), (other, _) in zip(shared, alone, strict=True))


def test_branches_and_stems_see_none_but_their_own(language_model_folder):
    """And the nearest wrong masks miss: branches that see one another, and positions that go on through them."""
    model = adapted(language_model_folder("llama"))
    texts, features = batch(model)
    with torch.no_grad():
        slots = model.slots(texts, features)
        packed = pack_shared_prefix(model.lm, texts, group_by_prefix(texts), slots)
        right = model._shared_prefix_losses(packed)
        row_wise = torch.ones(packed.keep.shape[1], packed.keep.shape[1], dtype=torch.bool).tril()
        causal = torch.zeros(row_wise.shape).masked_fill(~row_wise, torch.finfo(torch.float32).min)
        own = packed.attention_mask
        packed.attention_mask = causal[None, None].expand_as(own)
        assert (model._shared_prefix_losses(packed) - right).abs().max() > 1e-2
        packed.attention_mask = own
        packed.position_ids = torch.arange(packed.keep.shape[1])[None].expand_as(packed.position_ids)
        assert (model._shared_prefix_losses(packed) - right).abs().max() > 1e-3


def test_a_picture_is_laid_out_once_however_many_texts_it_has(language_model_folder):
    model = adapted(language_model_folder("llama"))
    texts, features = batch(model)
    captions = texts[:5]
    (one,) = group_by_prefix(captions)
    assert sum(segment.slot == "one" for segment in one.prefix) == 1 and not any(
        s.slot for r in one.suffixes for s in r
    )
    tokens = {name: len(vectors) for name, vectors in model.slots(texts, features).items()}
    assert sharing_pays(captions, [one], tokens) and not sharing_pays(texts[:1], group_by_prefix(texts[:1]), tokens)
    questions = group_by_prefix(texts[5:8])[0]
    said = model.lm.tokenizer.decode(questions.prefix[-1].ids)
    assert said.endswith(" What") or "What" in said


def test_the_question_before_the_picture_shares_nothing_and_costs_nothing(language_model_folder):
    model = adapted(language_model_folder("llama"), media="after")
    ask = lambda q, a: [{"role": "user", "content": q}, {"role": "assistant", "content": a}]  # noqa: E731
    texts = [model.prompt.segments(ask(*pair), ["one"], soft_prompt=True) for pair in QUESTIONS]
    features = {"one": torch.randn(PATCHES, WIDTH)}
    assert len(group_by_prefix(texts)) == 3
    shared = model.text_losses(texts, features)
    alone = separate(model).text_losses(texts, features)
    assert [n for _, n in shared] == [n for _, n in alone]
    assert all(abs(one - other) < 1e-4 for (one, _), (other, _) in zip(shared, alone, strict=True))


def test_equal_texts_and_no_text_of_its_own():
    """A text that is wholly in the stem of another still counts, as often as it stands there."""
    head = [Segment(ids=(1,)), Segment(slot="m")]
    texts = [[*head, Segment(ids=(5, 6), target=True)], [*head, Segment(ids=(5, 6, 7), target=True)]]
    (one,) = group_by_prefix([*texts, texts[0]])
    assert one.prefix[-1].ids == (5, 6) and [rest[0].ids for rest in one.suffixes] == [(), (7,), ()]
