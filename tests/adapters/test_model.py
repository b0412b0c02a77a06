"""The adapted model: losses do not depend on the batch, generation stops where it should, only the adapter learns."""

import pytest
import tiny
import torch

from periscope.adapters.model import Adapter
from periscope.adapters.projectors import FeatureShape
from periscope.adapters.prompting.segments import SOFT_PROMPT, Segment
from periscope.errors import AdapterError

CAPTION = [{"role": "assistant", "content": "a red circle"}]
QUESTION = [{"role": "user", "content": "What colour is the star?"}, {"role": "assistant", "content": "blue"}]
LONG = [{"role": "user", "content": "What jumps? " * 9}, {"role": "assistant", "content": "the quick brown fox"}]


@pytest.fixture
def model(language_model_folder):
    return tiny.adapted(language_model_folder("llama"), soft_prompt=2)


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(2)
    return {name: torch.randn(12, generator=generator) for name in "abc"}


def texts_of(model, answer=True):
    asked = ((CAPTION, "a"), (QUESTION, "b"), (LONG, "c"), (QUESTION, "a"))
    return [model.prompt.segments(turns, media, answer=answer, soft_prompt=True) for turns, media in asked]


def test_the_loss_of_a_batch_is_the_sum_of_single_texts(model, features):
    texts = texts_of(model)
    total, count = model.loss(texts, features)
    single = [model.loss([text], features) for text in texts]
    assert count == sum(number for _, number in single) == sum(len(s.ids) for text in texts for s in text if s.target)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, sum(loss for loss, _ in single), rtol=1e-5, atol=1e-5)
    assert [number for _, number in model.text_losses(texts, features)] == [number for _, number in single]
    backwards, _ = model.loss(texts[::-1], features)
    torch.testing.assert_close(backwards, total, rtol=1e-5, atol=1e-5)


def test_the_mean_over_samples_weighs_texts_alike(model, features):
    texts = texts_of(model)
    per_text = model.text_losses(texts, features)
    model.loss_mean = "sample"
    total, count = model.loss(texts, features)
    assert count == len(texts)
    assert total.item() == pytest.approx(sum(loss / number for loss, number in per_text), rel=1e-5)
    assert total.item() / count != pytest.approx(
        sum(loss for loss, _ in per_text) / sum(number for _, number in per_text), rel=1e-3
    ), "the texts differ in length, so the two means must differ"


def test_each_text_reads_its_own_image(model, features):
    texts = texts_of(model)
    before = [loss for loss, _ in model.text_losses(texts, features)]
    after = [loss for loss, _ in model.text_losses(texts, features | {"b": features["b"] + 3})]
    changed = [abs(x - y) > 1e-4 for x, y in zip(before, after, strict=True)]
    assert changed == [False, True, False, False]


def test_an_image_is_projected_once_however_many_texts_name_it(model, features, monkeypatch):
    batches, forward = [], model.adapter.forward
    monkeypatch.setattr(model.adapter, "forward", lambda batch: batches.append(len(batch)) or forward(batch))
    slots = model.slots(texts_of(model), features)
    assert batches == [3] and set(slots) == {"a", "b", "c", SOFT_PROMPT}
    assert slots["a"].shape == (3, model.lm.hidden_size) and slots[SOFT_PROMPT].shape == (2, model.lm.hidden_size)


def test_noise_named_by_a_step_does_not_depend_on_the_micro_batch(model, features):
    texts = texts_of(model)
    model.token_noise = 0.5
    whole, _ = model.loss(texts, features, draw="step 7")
    halves = [model.loss(part, features, draw="step 7")[0] for part in (texts[:2], texts[2:])]
    torch.testing.assert_close(sum(halves), whole, rtol=1e-5, atol=1e-5)
    assert abs(model.loss(texts, features, draw="step 8")[0] - whole) > 1e-3


def test_generation_stops_at_a_stop_token_and_leaves_it_out(model, features, monkeypatch):
    stop = model.prompt.stop_ids[0]
    word = model.lm.tokenizer("blue", add_special_tokens=False).input_ids
    forward, calls = model.lm.model.forward, []

    def scripted(*args, **kwargs):
        """The model's own outputs, with logits that say `word` and then stop; the second row goes on."""
        output = forward(*args, **kwargs)
        step = len(calls)
        calls.append(step)
        said = [word[step] if step < len(word) else stop, word[step % len(word)]]
        output.logits = torch.full_like(output.logits[:, -1:], -100.0)
        for row, token in enumerate(said):
            output.logits[row, -1, token] = 100.0
        return output

    monkeypatch.setattr(model.lm.model, "forward", scripted)
    first, second = model.generate(texts_of(model, answer=False)[:2], features, max_new_tokens=2 * len(word))
    assert first == "blue" and second.split() == ["blue", "blue"]
    assert len(calls) == 2 * len(word), "a row that goes on is not cut by one that stops"
    calls.clear()
    monkeypatch.setattr(model.prompt, "stop_ids", (stop, word[0]))
    assert model.generate(texts_of(model, answer=False)[:2], features, max_new_tokens=9) == ["", ""]
    assert len(calls) == 1, "both rows have stopped at once"


def test_answers_in_a_batch_are_those_of_single_prompts(model, features):
    prompts = texts_of(model, answer=False)
    together = model.generate(prompts, features, max_new_tokens=8)
    assert together == [model.generate([prompt], features, max_new_tokens=8)[0] for prompt in prompts]
    assert any(together)
    longer = model.generate(prompts, features, max_new_tokens=16)
    assert all(long.startswith(short) for long, short in zip(longer, together, strict=True))


def test_only_the_adapter_is_trained_and_by_stable_names(model, features):
    total, _ = model.loss(texts_of(model), features)
    total.backward()
    trained = model.trained()
    assert list(trained) == [name for name, _ in model.adapter.named_parameters()] and "log_gain" in trained
    assert all(parameter.grad is not None for parameter in trained.values())
    assert all(parameter.grad is None for parameter in model.lm.model.parameters())


def test_a_text_without_an_image_is_words_alone(model):
    ids = tuple(model.lm.tokenizer("the quick brown fox").input_ids)
    text = [Segment(ids=ids[:2]), Segment(ids=ids[2:], target=True)]
    total, count = model.loss([text], {})
    labels = torch.tensor([[-100, -100, *ids[2:]]])
    own = model.lm.model(input_ids=torch.tensor([ids]), labels=labels).loss
    torch.testing.assert_close(total / count, own, rtol=1e-5, atol=1e-5)


def test_an_adapter_needs_something_to_train_and_options_that_fit():
    pooled = FeatureShape("pooled", 1, 12)
    for options, says in (
        ({"spec": "none"}, "leaves nothing to train"),
        ({"spec": "mlp2", "soft_prompt_mlp": True}, "needs a --soft-prompt"),
        ({"spec": "linear2", "projector_hidden": 4}, "no hidden layer"),
    ):
        with pytest.raises(AdapterError, match=says):
            Adapter(**{"features": pooled, "hidden_size": 8, "embedding_rms": 0.02} | options)
    with pytest.raises(AdapterError, match="nothing says which"):
        Adapter("epalm", FeatureShape("layers", 6, 12), 8, 0.02)


def test_matched_tokens_have_the_embeddings_rms():
    torch.manual_seed(0)
    plain = Adapter("mlp4", FeatureShape("pooled", 1, 12), 32, 0.02, output_norm=False)
    rows = torch.randn(64, 12)
    factor = plain.match_scale(rows)
    assert factor != 1 and plain(rows).pow(2).mean(-1).sqrt().median().item() == pytest.approx(0.02, rel=1e-4)
    normed = Adapter("mlp4", FeatureShape("pooled", 1, 12), 32, 0.02)
    assert normed.match_scale(rows) == 1.0
    assert normed(rows).pow(2).mean(-1).sqrt().detach().numpy() == pytest.approx(0.02, rel=1e-3)
