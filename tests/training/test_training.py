"""The training loop's parts: which texts make which step, the loss of a step however it is cut, the run folder."""

import itertools
import json
import shutil
from collections import Counter
from itertools import pairwise

import pytest
import torch
from toy_scenes import some_batch

from periscope.adapters.lm.load import load_language_model
from periscope.adapters.model import AdaptedModel, Adapter
from periscope.adapters.projectors import FeatureShape
from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.template import default_template
from periscope.errors import RecipeError, RunError
from periscope.evaluation.controls import derangement
from periscope.recipes import load_recipe
from periscope.shards.read import FeatureSet
from periscope.shards.texts import Text
from periscope.training.config import RENAMED, TrainConfig, config_from, option_names
from periscope.training.data.dataset import TextFeatureDataset
from periscope.training.data.order import epoch_runs, epoch_steps, steps_per_epoch
from periscope.training.heldout import heldout_losses
from periscope.training.resolve import refuse_changes, resumed, settle, settle_length
from periscope.training.run import Run, load_optimizer_state, newest_run, optimizer_state
from periscope.training.step import learning_rate, make_optimizer, set_rates, take_step


def test_an_epoch_holds_every_text_once_and_epochs_differ():
    media = [i // 5 for i in range(1003)]
    lengths = [10 + (i * 7) % 40 for i in range(1003)]
    epochs = [epoch_steps(media, lengths, 16, seed=0, epoch=e) for e in (0, 0, 1)]
    assert epochs[0] == epochs[1] != epochs[2]
    for steps in epochs:
        assert len(steps) == steps_per_epoch(1003, 16) == 63
        assert Counter(i for step in steps for i in step) == Counter(range(1003))
        assert sorted(map(len, steps))[1:] == [16] * 62
    assert epoch_steps(media, lengths, 16, seed=1, epoch=0) != epochs[0]


def test_a_mediums_texts_travel_together_and_steps_hold_texts_of_like_length():
    media = [i // 4 for i in range(4000)]
    lengths = [5 + 60 * ((i // 4) % 10) for i in range(4000)]
    together = epoch_steps(media, lengths, 16, seed=0, epoch=0)
    apart = epoch_steps(media, lengths, 16, seed=0, epoch=0, texts_per_medium=1)

    def media_per_step(steps):
        return sum(len({media[i] for i in step}) for step in steps) / len(steps)

    def padding(steps):
        real = sum(lengths)
        return 1 - real / sum(len(step) * max(lengths[i] for i in step) for step in steps)

    assert media_per_step(together) < 4.5 and media_per_step(apart) > 12
    assert padding(together) < 0.05 and padding(apart) < 0.05


def test_runs_keep_to_media_that_lie_side_by_side():
    """4,000 texts of 1,000 media, 100 media a run: a step reads from one run, or from where two meet."""
    about = [(i * 37) % 1000 for i in range(4000)]
    lengths = [5 + 60 * (i % 10) for i in range(4000)]
    runs = epoch_runs(about, lengths, 16, seed=0, epoch=0, run=100)
    steps = [step for one in runs for step in one.steps]
    assert len(steps) == 250 and Counter(i for step in steps for i in step) == Counter(range(4000))
    assert sorted(map(len, steps))[0] == 16

    def reach(steps):
        spans = [[about[i] for i in step] for step in steps]
        return [max(span) - min(span) for span in spans]

    anywhere = epoch_steps(about, lengths, 16, seed=0, epoch=0)
    assert sum(span < 100 for span in reach(steps)) > 230 and sum(span < 100 for span in reach(anywhere)) < 25
    places = [min(about[i] for i in step) // 100 for step in steps]
    turns = sum(a != b for a, b in pairwise(places))
    assert turns < 60, "one run is read before the next begins"
    other = [step for one in epoch_runs(about, lengths, 16, seed=0, epoch=1, run=100) for step in one.steps]
    firsts = [{min(about[i] for i in step) for step in some} for some in (steps, other)]
    assert firsts[0] != firsts[1], "another epoch's runs begin elsewhere"


@pytest.fixture
def model(language_model_folder):
    lm = load_language_model(str(language_model_folder("llama")))
    torch.manual_seed(3)
    adapter = Adapter("mlp2", FeatureShape("pooled", 1, 6), lm.hidden_size, lm.embedding_rms, soft_prompt=2)
    return AdaptedModel(lm, adapter, Prompt(lm.tokenizer, default_template(lm.tokenizer)))


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


class FakeFeatures:
    """Features of ten media: row k is k everywhere."""

    def __len__(self):
        return 10

    def row(self, key):
        return int(key[1:])

    def read_many(self, keys, kind):
        if not keys:
            return torch.empty(0, 6).half()
        return torch.stack([torch.full((6,), float(key[1:])) for key in keys]).half()


def test_controls_swap_features_and_drop_media(model):
    encoded = TextFeatureDataset(FakeFeatures(), model.prompt, model.adapter)
    texts = [
        Text(f"t{i}", (f"m{i}",), ({"role": "assistant", "content": "a red circle"},), "heldout") for i in range(10)
    ]
    stand_in = {f"m{i}": f"m{(i + 1) % 10}" for i in range(10)}
    batch = encoded.batch(texts[:2], instead=stand_in.__getitem__)
    assert batch.features["m0"][0] == 1 and batch.features["m1"][0] == 2
    without = encoded.batch(texts[:2], media=False)
    assert all(segment.slot in (None, "soft prompt") for text in without.texts for segment in text)
    losses = heldout_losses(model, encoded, texts, stand_in, 4)
    assert set(losses) == {"real", "shuffled", "none"} and losses["none"] != losses["real"]
    assert losses["shuffled"] == pytest.approx(
        losses["real"], abs=1e-5
    )  # the same ten texts, so a permutation of terms
    assert "shuffled" not in heldout_losses(model, encoded, texts, None, 4)


def test_many_texts_are_measured_by_several_processes_to_the_same_end(model, monkeypatch, tmp_path):
    encoded = TextFeatureDataset(FakeFeatures(), model.prompt, model.adapter)
    said = ["a red circle", "blue", "", "the quick brown fox " * 90]
    media = [("m3",), ("m1",), (), ("m1", "m2")]
    texts = [
        Text(f"t{i}", media[i % 4], ({"role": "assistant", "content": said[i // 4 % 4]},), "train") for i in range(700)
    ]
    alone, state = encoded.keep(texts, 256), torch.get_rng_state()
    monkeypatch.setattr("periscope.training.data.dataset.MANY", 100)
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    together = encoded.keep(texts, 256)
    assert torch.equal(torch.get_rng_state(), state)
    assert (
        together == alone
        and 0 < len(alone.texts) < 700
        and set(alone.dropped)
        == {
            "no words to learn",
            "longer than 256 tokens",
        }
    )
    assert (
        set(alone.media) == {0, 1, 2} and len({n for n, m in zip(alone.about, alone.media, strict=True) if not m}) > 50
    )
    assert {n for n, m in zip(alone.about, alone.media, strict=True) if m == 1} == {1, 3}


def test_texts_that_cannot_be_learnt_are_counted_not_cut(model):
    encoded = TextFeatureDataset(FakeFeatures(), model.prompt, model.adapter)
    turns = lambda words: ({"role": "assistant", "content": words},)  # noqa: E731
    texts = [
        Text("good", ("m1",), turns("a red circle"), "train"),
        Text("empty", ("m1",), turns("  "), "train"),
        Text("long", ("m1",), turns("fox " * 400), "train"),
        Text("question only", ("m1",), ({"role": "user", "content": "what?"},), "train"),
    ]
    kept = encoded.keep(texts, 256)
    assert [text.id for text in kept.texts] == ["good"]
    assert kept.dropped == {"no words to learn": 2, "longer than 256 tokens": 1}


def test_a_derangement_never_gives_the_same_content():
    contents = [i // 3 for i in range(30)] + [99] * 14
    order = derangement(contents)
    assert sorted(order) == list(range(44)) and all(contents[i] != contents[j] for i, j in enumerate(order))
    assert derangement(contents) == order
    assert derangement([1, 1, 1, 2]) is None and derangement([]) is None and derangement([1]) is None


def run_at(path):
    return Run.create(path, config_from({"steps": 100, "delimiters": ["Scene:", "\n"], "lm": 'a"b\\c'}, "the test"))


def save(run, step, best=False, keep=2):
    def write(folder):
        folder.mkdir()
        (folder / "adapter.json").write_text("{}")

    return run.save(step, write, {"tensors": {"x": torch.tensor([step])}, "facts": {"best": 1.5}}, keep, best)


def test_a_run_is_never_overwritten_and_describes_itself(tmp_path, monkeypatch):
    run = run_at(tmp_path / "r")
    assert run.config.prompt.delimiters == ("Scene:", "\n") and run.config.lm == 'a"b\\c'
    assert "epochs" not in (run.path / "config.toml").read_text()
    assert (
        json.loads((run.path / "environment.json").read_text())["packages"]["torch"] == torch.__version__.split("+")[0]
    )
    with pytest.raises(RunError, match=r"never overwritten.*--resume"):
        run_at(tmp_path / "r")
    with monkeypatch.context() as broken:
        broken.setattr("periscope.training.run.platform.platform", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_at(tmp_path / "s")
    assert not (tmp_path / "s").exists() and run_at(tmp_path / "s").config == run.config
    shutil.rmtree(tmp_path / "s")
    with pytest.raises(RunError, match="has no checkpoint"):
        run.step_folder()
    with pytest.raises(RunError, match="not a run"):
        Run.open(tmp_path)
    assert newest_run(tmp_path) == run.path
    with pytest.raises(RunError, match="no run in"):
        newest_run(run.path)


def test_checkpoints_are_whole_pruned_and_pointed_at(tmp_path):
    run = run_at(tmp_path / "r")
    save(run, 10, best=True)
    for step in (20, 30, 40):
        save(run, step)
    assert sorted(p.name for p in (run.path / "steps").iterdir()) == ["000010", "000030", "000040"]
    assert run.step_folder().name == "000040" and run.step_folder("best").name == "000010"
    state = run.load_state("cpu")
    assert state["facts"]["step"] == 40 and state["tensors"]["x"].item() == 40
    (run.path / "last").write_text("../../elsewhere\n")
    with pytest.raises(RunError):
        run.step_folder()
    (run.path / "last").write_text("000030\n")
    assert save(run, 40).name == "000040" and run.step_folder().name == "000040"  # killed before `last` was moved
    (run.path / "steps" / "000040" / "state" / "tensors.safetensors").write_bytes(b"rubbish")
    with pytest.raises(RunError, match="can't be read"):
        run.load_state("cpu")


def test_metrics_and_samples_are_cut_back_to_the_checkpoint(tmp_path):
    run = run_at(tmp_path / "r")
    for step in range(1, 31):
        run.log(step=step, loss=1.0)
    for step in (10, 20, 30):
        run.write_samples(step, [{"media": "m", "prompt": "a|b", "answer": f"{step}\nx", "reference": "r"}])
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 31, "lo')
    run.cut_back(20)
    assert [row["step"] for row in run.metrics()] == list(range(1, 21))
    text = (run.path / "samples.md").read_text()
    assert text.count("## step") == 2 and "| m | a\\|b | 20 x | r |" in text and "30" not in text


def test_optimizer_state_round_trip():
    def step(optimizer, parameters):
        for p in parameters:
            p.grad = torch.ones_like(p) * 0.1
        optimizer.step()

    a, b = [torch.nn.Parameter(torch.arange(4.0)) for _ in range(2)]
    one, two = torch.optim.AdamW([a]), torch.optim.AdamW([b])
    step(one, [a])
    load_optimizer_state(two, optimizer_state(one))
    b.data.copy_(a.data)
    step(one, [a])
    step(two, [b])
    assert torch.equal(a, b)


def test_settings_merge_and_refuse(tmp_path):
    assert settle({"lr": 0.5}, {"lr": 0.1, "batch": 4}).lr == 0.5
    assert settle({}, {"batch": 4}).batch == 4
    with pytest.raises(RunError, match=r"--batch is 0"):
        settle({"batch": 0}, {})
    run = run_at(tmp_path / "r")
    with pytest.raises(RunError, match=r"started with lr 0.001, not 0.5"):
        resumed(run, {"lr": 0.5})
    assert resumed(run, {"lr": 0.001}).steps == 100
    save(run, 100)
    with pytest.raises(RunError, match="is finished"):
        resumed(run, {})
    with pytest.raises(RunError, match="texts changed"):
        refuse_changes({"texts": "a"}, texts="b")


def test_recipes_name_the_nearest_and_refuse_what_they_cannot_set(tmp_path):
    demo = load_recipe("demo").train_options(option_names(), "mlp16", RENAMED)
    assert demo["lm"] == "demo/backbones/lm"
    own = tmp_path / "own.toml"
    own.write_text("[train]\nlr = 0.5\nbatch = 4\n[adapter.mlp16]\nlr = 0.25\n[adapter.linear16]\nbatch = 8\n")
    for spec, found in (("mlp16", (0.25, 4)), ("linear16", (0.5, 8)), ("mlp", (0.5, 4))):
        recipe = load_recipe(str(own)).train_options({"lr", "batch"}, spec, {})
        assert (recipe["lr"], recipe["batch"]) == found, spec
    with pytest.raises(RecipeError, match="did you mean demo"):
        load_recipe("dmo")
    bad = tmp_path / "r.toml"
    for text, said in (("[train]\nlearning = 3\n", "sets learning"), ("[train", "not TOML"), ("[trian]\n", "trian")):
        bad.write_text(text)
        with pytest.raises(RecipeError, match=said):
            load_recipe(str(bad)).train_options({"lr"}, "mlp16", {})


def test_a_missing_feature_set_is_a_sentence(tmp_path):
    from periscope.errors import FeatureSetError

    with pytest.raises(FeatureSetError):
        FeatureSet(tmp_path / "nothing")


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
        assert set_rates(optimizer, step, config) == pytest.approx(rate)
        assert [g["lr"] for g in optimizer.param_groups] == [
            pytest.approx(1e-5 if g["name"] == "soft prompt" else rate) for g in optimizer.param_groups
        ]
    plain = make_optimizer(model.trained(), TrainConfig())
    assert [p for g in plain.param_groups for p in g["params"]] == list(model.adapter.parameters())


def test_epochs_settle_the_steps(capsys):
    config = TrainConfig(epochs=1.5)
    settle_length(config, 101)
    assert config.steps == 152 and "1.5 epochs of 101" in capsys.readouterr().out
    for config, steps in ((TrainConfig(), 500), (TrainConfig(steps=7, epochs=3.0), 7)):
        settle_length(config, 101)
        assert config.steps == steps
