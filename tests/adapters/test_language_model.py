"""The frozen language model driven by vectors: its own loss and tokens, whatever the batch; never a changed weight."""

import pytest
import tiny
import torch

from periscope.adapters.lm.gradient_checkpointing import checkpoint_layers
from periscope.adapters.lm.identity import weights_sha256
from periscope.adapters.lm.load import load_language_model
from periscope.adapters.model import AdaptedModel, Adapter
from periscope.adapters.projectors import FeatureShape
from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.segments import Segment
from periscope.adapters.prompting.template import default_template
from periscope.adapters.splice import length_of, splice
from periscope.errors import AdapterError

FAMILIES = list(tiny.FAMILIES)
WIDTH = 12
TURNS = [
    [{"role": "assistant", "content": "a red circle and a small blue star"}],
    [{"role": "user", "content": "What colour is the star?"}, {"role": "assistant", "content": "blue"}],
    [{"role": "assistant", "content": "the lazy dog"}],
    [
        {"role": "user", "content": "What jumps over the dog? " * 8},
        {"role": "assistant", "content": "the quick brown fox"},
    ],
]


def adapted(folder, spec="mlp3", kind="pooled", **options):
    lm = load_language_model(str(folder))
    torch.manual_seed(1)
    adapter = Adapter(spec, FeatureShape(kind, 1, WIDTH), lm.hidden_size, lm.embedding_rms, **options)
    return AdaptedModel(lm, adapter, Prompt(lm.tokenizer, default_template(lm.tokenizer)))


def batch(model, answer=True, soft_prompt=False):
    generator = torch.Generator().manual_seed(2)
    names = [f"m{i}" for i in range(len(TURNS))]
    texts = [
        model.prompt.segments(turns, [name], answer=answer, soft_prompt=soft_prompt)
        for turns, name in zip(TURNS, names, strict=True)
    ]
    return texts, {name: torch.randn(WIDTH, generator=generator) for name in names}


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_equals_the_models_own(family, language_model_folder):
    model = adapted(language_model_folder(family))
    ids = model.lm.tokenizer("the quick brown fox jumps over", return_tensors="pt").input_ids
    with torch.no_grad():
        said = model.lm.model(input_ids=ids, labels=ids)
        driven = model.lm.model(inputs_embeds=model.lm.embed(ids))
    own = said.loss
    assert torch.allclose(driven.logits, said.logits, atol=1e-5)
    whole = [Segment(ids=tuple(ids[0, :1].tolist())), Segment(ids=tuple(ids[0, 1:].tolist()), target=True)]
    total, count = model.loss([whole], {})
    assert count == ids.shape[1] - 1
    assert torch.allclose(total / count, own, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_with_media_equals_labels_loss_over_the_same_vectors(family, language_model_folder):
    model = adapted(language_model_folder(family))
    texts, features = batch(model)
    for text in texts:
        spliced = splice(model.lm, [text], model.slots([text], features))
        own = model.lm.model(inputs_embeds=spliced.inputs_embeds, labels=spliced.labels).loss
        total, count = model.loss([text], features)
        assert torch.allclose(total / count, own, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_batching_changes_neither_loss_nor_answers(family, language_model_folder):
    model = adapted(language_model_folder(family), soft_prompt=2)
    texts, features = batch(model, soft_prompt=True)
    together = model.text_losses(texts, features)
    for i, (total, count) in enumerate(together):
        ((alone, n),) = model.text_losses(texts[i : i + 1], features)
        assert n == count and abs(alone - total) / count < 1e-5
    prompts, features = batch(model, answer=False, soft_prompt=True)
    answers = model.generate(prompts, features, max_new_tokens=8)
    assert answers == [model.generate([prompt], features, max_new_tokens=8)[0] for prompt in prompts]
    assert any(answers)


@pytest.mark.parametrize("family", FAMILIES)
def test_padded_texts_are_learnt_without_a_mask(family, language_model_folder, monkeypatch):
    monkeypatch.setattr("periscope.adapters.model.choose_pass", lambda *_: None)  # as for texts of nearly one length
    monkeypatch.setattr("periscope.adapters.constant_prefix.MIN_PREFIX", 1000)  # behind a prefix there is a mask
    model = adapted(language_model_folder(family))
    texts, features = batch(model)
    alone = [model.text_losses([text], features)[0] for text in texts]
    given, forward = [], model.lm.model.forward
    monkeypatch.setattr(model.lm.model, "forward", lambda **inputs: given.append(inputs) or forward(**inputs))
    together = model.text_losses(texts, features)
    (inputs,) = given
    assert set(inputs) == {"inputs_embeds", "logits_to_keep", "use_cache"} and len(inputs["inputs_embeds"]) == 4
    assert torch.allclose(torch.tensor(together), torch.tensor(alone), rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_reaches_the_adapter_and_nothing_else(family, language_model_folder):
    model = adapted(language_model_folder(family), soft_prompt=2)
    before = weights_sha256(model.lm.model)
    optimizer = torch.optim.AdamW(model.adapter.parameters(), lr=1e-2)
    losses = []
    for _ in range(3):
        total, count = model.loss(*batch(model, soft_prompt=True))
        (total / count).backward()
        optimizer.step()
        losses.append((total / count).item())
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.adapter.parameters())
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    assert all(p.grad is None and not p.requires_grad for p in model.lm.model.parameters())
    assert not model.lm.model.training
    assert weights_sha256(model.lm.model) == before


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointed_layers_give_the_same_gradients(family, language_model_folder):
    model = adapted(language_model_folder(family))
    texts, features = batch(model)
    grads, kept = [], []
    for every, layers in ((0, 0), (1, 2), (2, 1)):
        assert checkpoint_layers(model.lm, every) == layers
        sizes = {}

        def note(tensor, sizes=sizes):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            total, _ = model.loss(texts, features)
        grads.append(torch.cat([grad.flatten() for grad in torch.autograd.grad(total, model.adapter.parameters())]))
        kept.append(sum(sizes.values()))
    assert torch.equal(grads[0], grads[1]) and torch.equal(grads[0], grads[2])
    assert kept[1] < kept[2] < kept[0]
    assert model.generate(*batch(model, answer=False), max_new_tokens=3)


def test_token_noise_is_for_training_alone_and_follows_the_seed(language_model_folder):
    model = adapted(language_model_folder("llama"))
    texts, features = batch(model)
    plain, scored = model.loss(texts, features)[0].item(), model.text_losses(texts, features)
    model.token_noise = 0.5
    assert model.text_losses(texts, features) == scored
    losses = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        losses.append(model.loss(texts, features)[0].item())
    assert losses[0] == losses[1] != losses[2] and plain not in losses
    quiet, loud = model.slots(texts, features), model.slots(texts, features, 0.5)
    for name, tokens in quiet.items():
        share = ((loud[name] - tokens).pow(2).mean() / tokens.pow(2).mean()).sqrt().item()
        assert 0.35 < share < 0.65


def test_padding_is_what_the_mask_hides(language_model_folder):
    model = adapted(language_model_folder("opt"))
    texts, features = batch(model)
    slots = model.slots(texts, features)
    right, left = splice(model.lm, texts, slots), splice(model.lm, texts, slots, side="left")
    for side in (right, left):
        assert side.attention_mask.sum(1).tolist() == right.attention_mask.sum(1).tolist()
        assert (side.position_ids * side.attention_mask).amax(1).tolist() == (right.attention_mask.sum(1) - 1).tolist()
    assert torch.equal(right.inputs_embeds[right.attention_mask.bool()], left.inputs_embeds[left.attention_mask.bool()])


@pytest.mark.parametrize("family", ["mistral", "phi3", "gemma2", "gemma3_text"])
def test_a_window_is_shorter_than_what_is_tested(family, language_model_folder, tmp_path):
    """So that what is said above of padding and batches is said of windows too: without them the loss is another."""
    model = adapted(language_model_folder(family))
    window = model.lm.model.config.sliding_window
    folder = tiny.save_language_model(family, tmp_path / "lm", sliding_window=10_000)
    without = AdaptedModel(load_language_model(str(folder)), model.adapter, model.prompt)
    texts, features = batch(model)
    lengths = [length_of(text, 3) for text in texts]
    assert max(lengths) > 1.5 * window and min(lengths) < window
    losses = zip(model.text_losses(texts, features), without.text_losses(texts, features), strict=True)
    differ = [abs(with_window - none) / count for (with_window, count), (none, _) in losses]
    assert all(found < 1e-5 for found, length in zip(differ, lengths, strict=True) if length <= window)
    assert differ[lengths.index(max(lengths))] > 1e-3


def test_splice_refuses_a_text_without_targets_and_another_width(language_model_folder):
    model = adapted(language_model_folder("llama"))
    with pytest.raises(AdapterError, match="no words to learn"):
        splice(model.lm, [[Segment(ids=(5, 6))]], {})
    with pytest.raises(AdapterError, match=r"width 7, but .* hidden_size 32"):
        splice(model.lm, [[Segment(slot="m"), Segment(ids=(5,), target=True)]], {"m": torch.zeros(2, 7)})


def test_a_models_own_generation_settings_are_not_mixed_in(language_model_folder, tmp_path):
    folder = tiny.save_language_model("llama", tmp_path / "lm")
    (folder / "generation_config.json").write_text('{"do_sample": true, "temperature": 9.0, "repetition_penalty": 5.0}')
    tempted, plain = adapted(folder), adapted(language_model_folder("llama"))
    texts, features = batch(plain, answer=False)
    want = plain.generate(texts, features, max_new_tokens=12)
    assert tempted.generate(texts, features, max_new_tokens=12) == want


def test_wrong_models_get_a_sentence(tmp_path, monkeypatch):
    with pytest.raises(AdapterError, match="neither a folder"):
        load_language_model("no-such-model")
    with pytest.raises(AdapterError, match=r"without a config\.json"):
        load_language_model(str(tmp_path))
    with pytest.raises(AdapterError, match="can't be reached"):
        load_language_model("nobody/nothing")
    (tmp_path / "config.json").write_text('{"model_type": "no_such_type"}')
    with pytest.raises(AdapterError, match="not a transformers language model"):
        load_language_model(str(tmp_path))
