"""One optimizer step: the loss however a step is cut, learning rates, parameter groups."""

import itertools

import pytest
import torch
from toy_scenes import some_batch

from periscope.adapters.lm.load import load_language_model
from periscope.adapters.model import AdaptedModel, Adapter
from periscope.adapters.projectors import FeatureShape
from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.template import default_template
from periscope.errors import RunError
from periscope.training.config import TrainConfig, config_from
from periscope.training.step import learning_rate, make_optimizer, set_rates, take_step


def test_the_cut_into_micro_batches_changes_neither_loss_nor_gradient(model):
    batch = some_batch(model)
    before = {k: v.clone() for k, v in model.adapter.state_dict().items()}
    results = []
    for micro in (7, 3, 1):
        model.adapter.load_state_dict(before)
        optimizer = torch.optim.SGD(model.adapter.parameters(), lr=1.0)
        loss, norm, _ = take_step(model, optimizer, torch.amp.GradScaler("cpu", enabled=False), batch, micro, clip=0)
        results.append((loss, norm, [p.grad.clone() for p in model.adapter.parameters()]))
    one = sum(loss for loss, _ in model.text_losses(batch.texts, batch.features))
    assert isinstance(one, float)
    for loss, norm, grads in results[1:]:
        assert loss == pytest.approx(results[0][0], abs=1e-6) and norm == pytest.approx(results[0][1], rel=1e-4)
        for grad, want in zip(grads, results[0][2], strict=True):
            assert torch.allclose(grad, want, atol=1e-6)


def test_the_loss_is_per_target_token_over_the_whole_step(model):
    batch = some_batch(model)
    per_text = model.text_losses(batch.texts, batch.features)
    want = sum(loss for loss, _ in per_text) / sum(count for _, count in per_text)
    optimizer = torch.optim.SGD(model.adapter.parameters(), lr=0.0)
    loss, _, _ = take_step(model, optimizer, torch.amp.GradScaler("cpu", enabled=False), batch, 2, clip=0)
    assert loss == pytest.approx(want, abs=1e-6)


def test_a_mean_over_texts_is_the_same_however_the_step_is_cut(model):
    """Of the whole step: the mean of each text's mean, which isn't the mean over tokens when texts differ in length."""
    batch = some_batch(model)
    per_text = model.text_losses(batch.texts, batch.features)
    by_text = sum(loss / count for loss, count in per_text) / len(per_text)
    by_token = sum(loss for loss, _ in per_text) / sum(count for _, count in per_text)
    assert abs(by_text - by_token) > 1e-3
    for mean, want in (("sample", by_text), ("token", by_token)):
        model.loss_mean, grads = mean, []
        for micro in (7, 3, 1):
            optimizer = torch.optim.SGD(model.adapter.parameters(), lr=0.0)
            loss, _, _ = take_step(model, optimizer, torch.amp.GradScaler("cpu", enabled=False), batch, micro, clip=0)
            assert loss == pytest.approx(want, abs=1e-6), (mean, micro)
            grads.append(torch.cat([p.grad.flatten() for p in model.adapter.parameters()]))
        assert all(torch.allclose(grad, grads[0], atol=1e-6) for grad in grads[1:])


def test_out_of_memory_halves_the_micro_batch_and_loses_nothing(model, monkeypatch):
    batch, whole = some_batch(model), AdaptedModel.loss
    optimizer = torch.optim.SGD(model.adapter.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    want, _, _ = take_step(model, optimizer, scaler, batch, 7, clip=0)

    def crowded(self, texts, *rest):
        if len(texts) > 2:
            raise torch.OutOfMemoryError("simulated")
        return whole(self, texts, *rest)

    monkeypatch.setattr(AdaptedModel, "loss", crowded)
    loss, _, micro = take_step(model, optimizer, scaler, batch, 7, clip=0)
    assert micro == 2 and loss == pytest.approx(want, abs=1e-6)
    monkeypatch.setattr(AdaptedModel, "loss", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("simulated")))
    with pytest.raises(RunError, match="one text alone"):
        take_step(model, optimizer, scaler, batch, 7, clip=0)


def test_a_loss_that_is_not_a_number_takes_no_step(model):
    batch = some_batch(model)
    batch.rows[0] = float("nan")
    before = [p.clone() for p in model.adapter.parameters()]
    optimizer = torch.optim.AdamW(model.adapter.parameters(), lr=1.0)
    loss, _, _ = take_step(model, optimizer, torch.amp.GradScaler("cpu", enabled=False), batch, 7, clip=1)
    assert loss != loss
    assert all(torch.equal(p, q) for p, q in zip(model.adapter.parameters(), before, strict=True))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_training_in_half_precision_lowers_the_loss(precision, language_model_folder):
    lm = load_language_model(str(language_model_folder("llama")), precision=precision)
    torch.manual_seed(3)
    adapter = Adapter("mlp2", FeatureShape("pooled", 1, 6), lm.hidden_size, lm.embedding_rms, soft_prompt=2)
    model = AdaptedModel(lm, adapter, Prompt(lm.tokenizer, default_template(lm.tokenizer)))
    scaler = torch.amp.GradScaler("cpu", enabled=precision == "fp16", init_scale=1024.0)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=3e-3)
    batch = some_batch(model)
    losses = [take_step(model, optimizer, scaler, batch, 4, clip=1.0)[0] for _ in range(12)]
    assert losses[-1] < losses[0] - 0.1 and all(p.dtype == torch.float32 for p in adapter.parameters())


def test_learning_rate_rises_then_falls_to_nothing():
    rates = [learning_rate(step, 100, 1e-3, 0.1) for step in range(1, 101)]
    assert rates[0] == pytest.approx(1e-4) and max(rates) == rates[9] == pytest.approx(1e-3)
    assert all(a > b for a, b in itertools.pairwise(rates[9:])) and rates[-1] == pytest.approx(0)


def test_the_schedules_end_where_they_should():
    rates = {
        name: [learning_rate(step, 100, 1e-3, 0.1, name, 1e-4) for step in range(1, 101)]
        for name in ("cosine", "linear", "constant")
    }
    assert len({tuple(rate[:10]) for rate in rates.values()}) == 1
    assert [rates[name][-1] for name in rates] == pytest.approx([1e-4, 1e-4, 1e-3])
    assert rates["linear"][54] == pytest.approx(5.5e-4) == rates["cosine"][54]
    assert rates["cosine"][30] > rates["linear"][30] and set(rates["constant"][9:]) == {1e-3}


def test_a_soft_prompt_may_have_a_constant_rate_and_vectors_have_no_decay(model):
    options = {"steps": 10, "weight_decay": 0.02, "soft_prompt_lr": 1e-5, "lr": 2e-5, "warmup": 0.1}
    config = config_from(options, "the test")
    optimizer = make_optimizer(model.trained(), config)
    found = {(g["name"], g["weight_decay"]): sum(p.numel() for p in g["params"]) for g in optimizer.param_groups}
    projector, width = model.adapter.projector, model.lm.hidden_size
    matrices = sum(p.numel() for p in projector.parameters() if p.ndim > 1)
    vectors = sum(p.numel() for p in projector.parameters() if p.ndim < 2) + 1  # and the gain
    assert found == {("projector", 0.02): matrices, ("projector", 0.0): vectors, ("soft prompt", 0.02): 2 * width}
    for step, rate in ((1, 2e-5), (10, 0.0)):
        assert set_rates(optimizer, step, 10, config) == pytest.approx(rate)
        assert [g["lr"] for g in optimizer.param_groups] == [
            pytest.approx(1e-5 if g["name"] == "soft prompt" else rate) for g in optimizer.param_groups
        ]
    plain = make_optimizer(model.trained(), TrainConfig())
    assert [p for g in plain.param_groups for p in g["params"]] == list(model.adapter.parameters())
