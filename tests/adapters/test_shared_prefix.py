"""Texts that share a pass over their beginning: the losses and gradients of separate rows, for every family."""

from dataclasses import replace

import pytest
import tiny
import torch

from periscope.adapters import model as adapters_model
from periscope.adapters.lm.gradient_checkpointing import checkpoint_layers
from periscope.adapters.lm.load import load_language_model
from periscope.adapters.model import AdaptedModel, Adapter
from periscope.adapters.packing import SharedPass
from periscope.adapters.projectors import FeatureShape
from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.segments import Segment
from periscope.adapters.prompting.template import default_template
from periscope.adapters.shared_prefix import (
    can_share,
    choose_pass,
    group_by_prefix,
    pack_shared_prefix,
    why_no_words,
)
from periscope.adapters.splice import length_of

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
        packed = pack_shared_prefix(model.lm, len(texts), SharedPass(group_by_prefix(texts), []), slots)
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
    assert choose_pass(captions, tokens, 0, None).groups == [one] and choose_pass(texts[:1], tokens, 0, None) is None
    questions = group_by_prefix(texts[5:8])[0]
    said = model.lm.tokenizer.decode(questions.prefix[-1].ids)
    assert said.endswith(" What") or "What" in said


LONG = [
    ("What is the colour of the small star in the picture?", "blue"),
    ("What is the lazy dog doing while the brown fox jumps?", "it sleeps"),
]


def questions_first(model):
    """Questions before pictures: one asked of three pictures, one of two, twice of one of them, a short one, and words
    alone.
    """
    ask = lambda q, a: [{"role": "user", "content": q}, {"role": "assistant", "content": a}]  # noqa: E731
    (one, two), short = LONG, QUESTIONS[2]
    rows = [(one, ["one"]), (one, ["two"]), (two, ["two"]), (one, ["three"]), (two, ["one"]), (short, ["two"])]
    rows += [((two[0], "nothing"), ["two"]), (("Who jumps over the lazy dog of the house?", "the fox"), [])]
    draw = torch.Generator().manual_seed(2)
    features = {name: torch.randn(PATCHES, WIDTH, generator=draw) for name in ("one", "two", "three")}
    return [model.prompt.segments(ask(*pair), media, soft_prompt=bool(media)) for pair, media in rows], features


def behind_the_same(texts, model, count):
    """The texts behind `count` words."""
    words = tuple(3 + 5 * i % (len(model.lm.tokenizer) - 3) for i in range(count))
    return [[Segment(ids=words), *text] for text in texts]


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
@pytest.mark.parametrize("before", [0, 20], ids=["alone", "behind a prefix"])
def test_a_question_before_the_picture_is_computed_once(family, before, language_model_folder, monkeypatch):
    """With the losses and gradients of rows that are computed whole, of which this takes fewer positions."""
    model = adapted(language_model_folder(family), media="after", soft_prompt="after")
    texts, features = questions_first(model)
    texts = behind_the_same(texts, model, before)
    chosen, choose = [], adapters_model.choose_pass
    monkeypatch.setattr(adapters_model, "choose_pass", lambda *given: chosen.append(choose(*given)) or chosen[-1])
    shared, each = losses_and_gradients(model, texts, features), model.text_losses(texts, features)
    assert bool(model.no_words) == model.lm.family.recurrent == (not chosen)
    assert model.lm.family.recurrent or [len(one.words) for one in chosen] == [4, 4]
    model.reuses_words = False
    alone, each_alone = losses_and_gradients(separate(model), texts, features), model.text_losses(texts, features)
    assert shared[0] == pytest.approx(alone[0], rel=1e-5)
    for one, other in zip(shared[2], alone[2], strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-5 * other.abs().max().item() + 1e-6)
    assert [loss for loss, _ in each] == pytest.approx([loss for loss, _ in each_alone], rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "opt"])
@pytest.mark.parametrize("every", [0, 1])
def test_lora_learns_through_a_question_before_the_picture(family, every, language_model_folder):
    model = adapted(language_model_folder(family), media="after", soft_prompt="after")
    tiny.add_random_lora(model.lm)
    checkpoint_layers(model.lm, every)
    texts, features = questions_first(model)
    texts = behind_the_same([text for text in texts if any(s.slot for s in text)], model, 20)
    weights = list(model.trained().values())
    shape = model.shape_of(texts)
    assert shape.words > 20 and shape.positions < sum(length_of(text, PATCHES) for text in texts)
    shared = torch.autograd.grad(model.loss(texts, features)[0], weights)
    model.reuses_words = False
    alone = torch.autograd.grad(separate(model).loss(texts, features)[0], weights)
    for one, other in zip(shared, alone, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-5 * other.abs().max().item() + 1e-6)


def test_a_text_reads_no_question_but_its_own(language_model_folder):
    """In a sliding window too; and the nearest wrong masks miss: all questions read, and keys at others' positions."""
    model = adapted(language_model_folder("mistral"), media="after", soft_prompt="after")
    texts, features = questions_first(model)
    model.lm.model.config.sliding_window = 12
    right = model.text_losses(texts, features)
    model.reuses_words = False
    alone = separate(model).text_losses(texts, features)
    assert [loss for loss, _ in right] == pytest.approx([loss for loss, _ in alone], rel=1e-5)
    model.lm.model.config.sliding_window = None
    model.reuses_words = model._can_share = True
    with torch.no_grad():
        slots = model.slots(texts, features)
        shared = choose_pass(texts, {name: len(of) for name, of in slots.items()}, 0, 0.5)
        packed = pack_shared_prefix(model.lm, len(texts), shared, slots)
        losses = model._shared_prefix_losses(packed, model._behind_words(shared.words, packed, None))
        cached = packed.cached.shape[1]
        open_mask = packed.attention_mask.clone()
        open_mask[..., :cached] = 0
        wrong = replace(packed, attention_mask=open_mask)
        assert (
            model._shared_prefix_losses(wrong, model._behind_words(shared.words, wrong, None)) - losses
        ).abs().max() > 1e-3
        wrong = replace(packed, cached=packed.cached.flip(0))
        assert (
            model._shared_prefix_losses(wrong, model._behind_words(shared.words, wrong, None)) - losses
        ).abs().max() > 1e-3


def test_where_questions_cant_be_computed_once_the_reason_is_said(language_model_folder):
    lm = load_language_model(str(language_model_folder("mamba")))
    assert "one state" in why_no_words(lm)
    lm = load_language_model(str(language_model_folder("llama")))
    assert not why_no_words(lm) and "a row for each" in why_no_words(lm, injects=True)


def test_equal_texts_and_no_text_of_its_own():
    """A text that is wholly in the stem of another still counts, as often as it stands there."""
    head = [Segment(ids=(1,)), Segment(slot="m")]
    texts = [[*head, Segment(ids=(5, 6), target=True)], [*head, Segment(ids=(5, 6, 7), target=True)]]
    (one,) = group_by_prefix([*texts, texts[0]])
    assert one.prefix[-1].ids == (5, 6) and [rest[0].ids for rest in one.suffixes] == [(), (7,), ()]
