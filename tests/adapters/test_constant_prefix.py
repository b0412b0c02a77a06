"""A prefix computed once for all rows: the losses, gradients and answers of rows that are computed whole."""

from dataclasses import replace

import pytest
import tiny
import torch

from periscope.adapters.constant_prefix import MIN_PREFIX, leading_ids, without_leading
from periscope.adapters.lm.gradient_checkpointing import checkpoint_layers
from periscope.adapters.lm.injection import injection_into
from periscope.adapters.lm.load import load_language_model
from periscope.adapters.lm.lora import add_lora
from periscope.adapters.lm.prefix_cache import KEPT_TOKENS, PrefixCaches
from periscope.adapters.model import AdaptedModel, Adapter
from periscope.adapters.projectors import FeatureShape
from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.segments import Segment
from periscope.adapters.prompting.template import default_template
from periscope.adapters.shared_prefix import why_no_prefix

WIDTH, PATCHES, PREFIX = 12, 9, 20
ANSWERS = ["a red circle", "a small blue star and a lazy dog", "the quick brown fox", "blue"]
WINDOWS = ["mistral", "gemma2", "gemma3_text", "phi3"]


def adapted(folder, injects=False):
    lm = load_language_model(str(folder))
    torch.manual_seed(1)
    prompt = Prompt(lm.tokenizer, default_template(lm.tokenizer))
    if injects:
        shape = FeatureShape("layers", 2, WIDTH)
        adapter = Adapter("epalm", shape, lm.hidden_size, lm.embedding_rms, injection=injection_into(lm, 2))
        return AdaptedModel(lm, adapter, prompt)
    shape = FeatureShape("patches", PATCHES, WIDTH, (3, 3))
    adapter = Adapter("mlp", shape, lm.hidden_size, lm.embedding_rms, soft_prompt=2)
    return AdaptedModel(lm, adapter, prompt)


def words(model, count=PREFIX):
    return tuple(3 + 5 * i % (len(model.lm.tokenizer) - 3) for i in range(count))


def summed(one, other):
    """Two results of `losses_and_gradients` as one."""
    return one[0] + other[0], [sum(both) for both in zip(one[1], other[1], strict=True)]


def batch(model, answer=True, media="abca", soft=True):
    """Captions behind the same words; of one picture two."""
    turns = [[{"role": "assistant", "content": answer}] for answer in ANSWERS]
    draw = torch.Generator().manual_seed(2)
    shape = model.adapter.features
    features = {name: torch.randn(shape.tokens, WIDTH, generator=draw) for name in "abc"}
    texts = [
        [Segment(ids=words(model)), *model.prompt.segments(text, [medium], answer=answer, soft_prompt=soft)]
        for text, medium in zip(turns, media, strict=True)
    ]
    return texts, features


def whole(model):
    """The model without cached prefixes."""
    model.reuses_words = False
    return model


def losses_and_gradients(model, texts, features):
    total, _ = model.loss(texts, features)
    return total.item(), torch.autograd.grad(total, list(model.trained().values()), allow_unused=True)


def assert_same(one, other):
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    for mine, theirs in zip(one[1], other[1], strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item() + 1e-6)


def assert_close(one, other):
    assert [number for _, number in one] == [number for _, number in other]
    assert [loss for loss, _ in one] == pytest.approx([loss for loss, _ in other], rel=1e-5)


@pytest.fixture
def counted(monkeypatch):
    """Return a function from a model to a list that gets the positions of each of its forward passes."""

    def count(model):
        positions, forward = [], model.lm.model.forward

        def counting(*args, inputs_embeds, **kwargs):
            positions.append(inputs_embeds.shape[:2].numel())
            return forward(*args, inputs_embeds=inputs_embeds, **kwargs)

        monkeypatch.setattr(model.lm.model, "forward", counting)
        return positions

    return count


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("media", ["abca", "aaaa"], ids=["rows", "shared"])
def test_losses_and_gradients_are_those_of_whole_rows(family, media, language_model_folder):
    model = adapted(language_model_folder(family))
    texts, features = batch(model, media=media, soft=media == "abca")
    assert not model.no_prefix and leading_ids(texts)[:PREFIX] == words(model)
    assert model._can_share == (not model.lm.family.recurrent)
    cached, each = losses_and_gradients(model, texts, features), model.text_losses(texts, features)
    assert_same(cached, losses_and_gradients(whole(model), texts, features))
    assert_close(each, model.text_losses(texts, features))


@pytest.mark.parametrize("family", WINDOWS)
def test_windows_reach_back_into_the_prefix(family, language_model_folder):
    model = adapted(language_model_folder(family))
    texts, features = batch(model)
    shared, _ = batch(model, media="aaaa")
    far = model.text_losses(texts, features)
    model.lm.model.config.sliding_window = 12  # shorter than a text, longer than a part of one
    model._prefixes = type(model._prefixes)(model.lm)
    near, near_shared = model.text_losses(texts, features), model.text_losses(shared, features)
    assert all(abs(one - other) > 1e-3 for (one, _), (other, _) in zip(far, near, strict=True))
    assert_close(near, whole(model).text_losses(texts, features))
    assert_close(near_shared, model.text_losses(shared, features))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_answers_are_those_of_whole_rows(family, language_model_folder):
    model = adapted(language_model_folder(family))
    even, features = batch(model, answer=False)
    texts = [even[0], [*even[1], Segment(ids=words(model, 5))]]  # the first is padded, behind the prefix
    slots = model.slots(even, features)
    has_window = bool(getattr(model.lm.model.config, "sliding_window", None)) and family in WINDOWS
    assert (model._generation_prefix(even, slots, 5)[1] is None) == model.lm.family.recurrent
    assert (model._generation_prefix(texts, slots, 8)[1] is None) == (model.lm.family.recurrent or has_window)
    cached = model.generate(texts, features, max_new_tokens=8)
    beams = model.generate(even, features, max_new_tokens=5, num_beams=2)
    assert any(cached)
    assert cached == whole(model).generate(texts, features, max_new_tokens=8)
    assert beams == model.generate(even, features, max_new_tokens=5, num_beams=2)


def test_a_prefix_is_computed_once_and_again_for_other_weights(language_model_folder, counted):
    model = adapted(language_model_folder("llama"))
    texts, features = batch(model)
    positions = counted(model)
    first, second = (losses_and_gradients(model, texts, features) for _ in range(2))
    length = len(leading_ids(texts))
    assert positions[0] == length and positions[1] == positions[2] and len(positions) == 3
    assert first[0] == second[0] and all(map(torch.equal, first[1], second[1]))
    fresh = losses_and_gradients(adapted(language_model_folder("llama")), texts, features)
    assert fresh[0] == first[0] and all(map(torch.equal, fresh[1], first[1])), "a resumed run computes it anew"
    with torch.no_grad():
        model.lm.model.model.layers[0].self_attn.v_proj.weight.mul_(1.5)
    assert_same(losses_and_gradients(model, texts, features), losses_and_gradients(whole(model), texts, features))


def test_few_prefixes_are_kept(language_model_folder):
    caches = PrefixCaches(load_language_model(str(language_model_folder("llama"))))
    first, second = (caches.of(tuple(range(3, 3 + length))) for length in (100, 150))
    assert caches.of(tuple(range(3, 103))) is first and caches.of(tuple(range(3, 153))) is second
    for length in range(160, 176):
        caches.of(tuple(range(3, 3 + length)))
    assert caches.of(tuple(range(3, 103))) is not first
    assert sum(cache.length for cache in caches._kept.values()) <= KEPT_TOKENS


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "opt", "mamba2"])
@pytest.mark.parametrize("every", [0, 1])
def test_lora_learns_through_the_prefix(family, every, language_model_folder):
    """With gradient through the prefix, recomputed layers or not; where a scan's state has none, in whole rows."""
    model = adapted(language_model_folder(family))
    tiny.add_random_lora(model.lm)
    checkpoint_layers(model.lm, every)
    texts, features = batch(model)
    assert bool(model.no_prefix) == model.lm.family.recurrent
    cached = losses_and_gradients(model, texts, features)
    halves = [losses_and_gradients(model, part, features) for part in (texts[:2], texts[2:])]
    expected = losses_and_gradients(whole(model), texts, features)
    assert_same(cached, expected)
    assert_same(summed(*halves), expected)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "mamba", "mamba2"])
def test_recomputed_layers_find_the_prefix_as_it_was(family, language_model_folder):
    model = adapted(language_model_folder(family))
    checkpoint_layers(model.lm, 1)
    texts, features = batch(model)
    cached = [losses_and_gradients(model, texts, features) for _ in range(2)][1]
    checkpoint_layers(model.lm, 0)
    assert_same(cached, losses_and_gradients(whole(model), texts, features))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "mamba", "mamba2"])
def test_an_injected_image_stands_behind_the_prefix(family, language_model_folder):
    model = adapted(language_model_folder(family), injects=True)
    texts, features = batch(model, soft=False)
    texts = [[*text[:2], Segment(ids=words(model, 4)), *text[2:]] for text in texts]
    cached = losses_and_gradients(model, texts, features)
    prompts, _ = batch(model, answer=False, soft=False)
    prompts = [[*text, Segment(ids=words(model, 2 + i))] for i, text in enumerate(prompts)]
    answers = model.generate(prompts, features, max_new_tokens=6)
    assert_same(cached, losses_and_gradients(whole(model), texts, features))
    assert any(answers) and answers == model.generate(prompts, features, max_new_tokens=6)


def test_what_is_a_prefix(language_model_folder):
    model = adapted(language_model_folder("smollm"))
    caption = [{"role": "assistant", "content": "a red circle"}]
    text = [Segment(ids=words(model)), *model.prompt.segments(caption, ["a"], soft_prompt=True)]
    assert leading_ids([text]) == words(model) + text[1].ids and text[2].slot
    model.prompt.template = replace(model.prompt.template, soft_prompt="first")
    first = model.prompt.segments(caption, ["a"], soft_prompt=True)
    assert leading_ids([first]) == leading_ids([text, first]) == (), "a soft prompt at the very beginning is trained"
    target = [Segment(ids=tuple(range(20))), Segment(ids=(1, 2), target=True)]
    assert leading_ids([target]) == tuple(range(19)), "what predicts the first target is computed in each row"
    assert leading_ids([target[:1]]) == (), "words to be answered, of which the next prompt shares few"
    short = [Segment(ids=tuple(range(MIN_PREFIX - 1))), Segment(slot="a"), *target]
    assert leading_ids([short]) == ()
    assert leading_ids([target, [Segment(ids=(*range(9), 50)), *target]]) == tuple(range(9))
    assert without_leading([Segment(ids=(1, 2)), Segment(ids=(3, 4)), Segment(slot="a")], 3) == [
        Segment(ids=(4,)),
        Segment(slot="a"),
    ]


def test_where_a_prefix_cant_be_had_the_reason_is_said(language_model_folder, monkeypatch):
    lm = load_language_model(str(language_model_folder("mamba")))
    assert not why_no_prefix(lm)
    add_lora(lm, 2, 2)
    assert "no gradient" in why_no_prefix(lm)
    lm = load_language_model(str(language_model_folder("llama")))
    assert not why_no_prefix(lm) and "come before" in why_no_prefix(lm, image_first=True)
    lm.model.config._attn_implementation = "flash_attention_2"
    assert "sdpa or eager" in why_no_prefix(lm)
