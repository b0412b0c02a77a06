"""Stage 2 with the whole language model trained: its gradients, its optimizers, its checkpoints."""

import json
from pathlib import Path

import bitsandbytes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import adapted, save_language_model
from torch.nn import functional

from periscope import eval as eval_script
from periscope import inference as live
from periscope import train as train_script
from periscope.adapters.io.hub import stage
from periscope.adapters.lm.gradient_checkpointing import checkpoint_layers
from periscope.adapters.lm.language_model import unfreeze
from periscope.adapters.lm.load import load_language_model
from periscope.adapters.splice import IGNORED
from periscope.errors import AdapterError, RunError
from periscope.precompute.cli import main as precompute
from periscope.training.models.language_model_holder import LanguageModelHolder
from periscope.training.resolve import settle
from periscope.training.run import Run
from periscope.training.step import load_optimizer_state, make_optimizer, optimizer_state, set_rates

SHORT = ("--eval-every", "100", "--batch", "6", "--steps", "4", "--lr", "3e-3", "--lm-lr", "3e-3")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Vectors with captions, and a language model."""
    place = tmp_path_factory.mktemp("whole")
    (place / "v").mkdir()
    np.save(place / "v" / "v.npy", np.random.default_rng(0).standard_normal((24, 12)).astype(np.float32))
    captions = ("a red circle", "a small blue star", "the lazy dog")
    (place / "v" / "v.txt").write_text("".join(captions[i % 3] + "\n" for i in range(24)))
    precompute(args=["--data", str(place / "v"), "--out", str(place / "features-v"), "--device", "cpu"])
    save_language_model("gpt_neox", place / "lm")
    return place


@pytest.fixture
def tuned(home, call) -> Path:
    """A run that trained its language model."""
    if not (home / "runs" / "tuned").exists():
        model = ("--features", "features-v", "--lm", "lm", "--adapter", "mlp3")
        call(train_script, *model, *SHORT, "--train-lm", "--name", "tuned")
    return Path("runs/tuned")


@pytest.mark.parametrize("every", [0, 1])
@pytest.mark.parametrize("family", ["gpt_neox", "mamba", "mamba2", "smollm"])
def test_a_step_has_the_gradient_of_plain_passes_in_every_weight(family, every, language_model_folder):
    """Words before the picture that all texts share, and several texts about one picture, which are computed once."""
    model = adapted(language_model_folder(family), template={"preamble": "the quick brown fox jumps over the dog. "})
    unfreeze(model.lm)
    checkpoint_layers(model.lm, every)
    given = {name: torch.randn(12, generator=torch.Generator().manual_seed(i)) for i, name in enumerate("mn")}
    words = [("m", "a red circle"), ("m", "a red star"), ("n", "the lazy dog"), ("m", "a red circle and a star")]
    texts = [model.prompt.segments([{"role": "assistant", "content": said}], [name]) for name, said in words]
    assert model.prefix_length(texts) == 0 or not model.lm.family.recurrent
    trained = model.trained()
    assert sum(name.startswith("lm.") for name in trained) == len(list(model.lm.model.parameters()))
    loss = model.loss(texts, given)[0]
    grads = torch.autograd.grad(loss, list(trained.values()))

    plain = torch.zeros(())
    for text in texts:
        batch, _ = model._splice([text], model.slots([text], given))
        logits = model.lm.model(inputs_embeds=batch.inputs_embeds, use_cache=False).logits
        plain = plain + functional.cross_entropy(
            logits[0, :-1], batch.labels[0, 1:], ignore_index=IGNORED, reduction="sum"
        )
    expected = torch.autograd.grad(plain, list(trained.values()))
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=1e-5)
    for name, ours, theirs in zip(trained, grads, expected, strict=True):
        error = (ours - theirs).norm() / theirs.norm()
        assert theirs.abs().max() > 0 and error < 1e-3, f"{name} is off by {error:.1g}"


def test_a_run_trains_scores_and_is_loaded_with_its_language_model(home, call, tuned, capsys):
    run = Run.open(tuned)
    folder = run.step_folder() / "adapter"
    losses = [row["loss"] for row in run.metrics() if "loss" in row]
    assert losses[-1] < losses[0] - 0.1 and run.config.model.gradient_checkpointing == 1
    recorded = json.loads((folder / "adapter.json").read_text())["language_model"]
    assert recorded["name"] == "lm" and recorded["folder"] == "lm"
    model, _ = live.load_adapted(tuned)
    before = load_language_model("lm").own_parameters()
    assert not any(torch.equal(before[name], value) for name, value in model.lm.own_parameters().items())
    call(eval_script, "--run", tuned, "--max-new-tokens", "3", "--controls", "shuffled")
    (home / "answers.json").write_text('["a red circle", "a small blue star", "the lazy dog"]')
    call(eval_script, "--run", tuned, "--answers", "answers.json", "--controls", "shuffled")
    scored = json.loads((tuned / "eval.json").read_text())
    assert scored["chosen"] == "the likeliest of 3 answers"
    rows = [json.loads(line) for line in (tuned / "predictions.jsonl").read_text().splitlines()]
    assert {row["answer"] for row in rows} <= {"a red circle", "a small blue star", "the lazy dog"}
    assert "The language model was trained too" in (folder / "README.md").read_text()
    with pytest.raises(AdapterError, match="another language model: its weights differ"):
        live.load_adapted(tuned, lm="lm")
    with pytest.raises(AdapterError, match="has a language model of its own"):
        live.load_several({None: tuned, "vector": tuned})
    with pytest.raises(AdapterError, match=r"which isn't pushed with it: share .*lm as a model"):
        stage(folder, home / "staged", "owner/name")
    stage(folder, home / "staged", "owner/name", lm="owner/tuned")
    shared = json.loads((home / "staged" / "adapter.json").read_text())["language_model"]
    assert (shared["name"], shared["folder"]) == ("owner/tuned", "") and not (home / "staged" / "lm").exists()


def test_a_run_that_starts_from_it_has_its_language_model(call, tuned, capsys):
    still = ("--features", "features-v", "--eval-every", "9", "--batch", "6", "--steps", "1", "--lr", "0")
    call(train_script, "--init", tuned, *still, "--name", "frozen-again")
    folder = Run.open(tuned).step_folder() / "adapter"
    assert Run.open(Path("runs/frozen-again")).config.lm == str(folder / "lm")
    assert "the language model is unchanged" in capsys.readouterr().out
    call(train_script, "--init", tuned, *still, "--train-lm", "--lm-lr", "0", "--name", "still")
    after = Path("runs/still/steps/000001/adapter")
    for file in ("adapter.safetensors", "lm/model.safetensors"):
        before, now = load_file(folder / file), load_file(after / file)
        assert before.keys() == now.keys() and all(torch.equal(before[name], now[name]) for name in before)


@pytest.mark.parametrize("precision, dtype", [("bf16", torch.bfloat16), ("mixed", torch.float32)])
def test_weights_are_held_in_bf16_or_computed_in_it(precision, dtype, call, tuned):
    model = ("--features", "features-v", "--lm", "lm", "--adapter", "mlp3", "--precision", precision, "--train-lm")
    call(train_script, *model, *SHORT, "--name", precision)
    run = Run.open(Path("runs") / precision)
    losses, exact = ([row["loss"] for row in each.metrics() if "loss" in row] for each in (run, Run.open(tuned)))
    assert losses != exact and losses == pytest.approx(exact, rel=0.05)
    saved = load_file(run.step_folder() / "adapter" / "lm" / "model.safetensors")
    assert {value.dtype for value in saved.values()} == {dtype}
    live.load_adapted(run.path)


@pytest.mark.parametrize("name", ["AdamW8bit", "PagedAdamW8bit"])
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_moments_in_8_bits_resume_to_the_same_bits(name):
    """A matrix in 8 bits, one too small for them, and one in bf16."""

    def steps(optimizer, matrices, first, last):
        for step in range(first, last):
            for i, matrix in enumerate(matrices):
                noise = torch.randn(matrix.shape, generator=torch.Generator().manual_seed(10 * step + i))
                matrix.grad = noise.to(matrix.dtype)
            optimizer.step()

    def start(values=None):
        shapes = ((80, 80), torch.float32), ((8, 8), torch.float32), ((64, 128), torch.bfloat16)
        values = values or [torch.ones(shape, dtype=dtype) for shape, dtype in shapes]
        matrices = [torch.nn.Parameter(value.clone()) for value in values]
        groups = [{"params": [matrix], "weight_decay": 0.1} for matrix in matrices]
        return getattr(bitsandbytes.optim, name)(groups, lr=1e-3), matrices

    optimizer, whole = start()
    steps(optimizer, whole, 0, 3)
    kept = optimizer_state(optimizer)
    assert {value.dtype for value in kept.values()} == {torch.uint8, torch.float32, torch.int64}
    again, resumed = start(whole)
    load_optimizer_state(again, kept)
    for each, matrices in ((optimizer, whole), (again, resumed)):
        steps(each, matrices, 3, 6)
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


def test_its_own_rate_and_group(home):
    model = adapted(home / "lm")
    unfreeze(model.lm)
    options = {"train_lm": True, "lr": 1e-3, "lm_lr": 2e-5, "weight_decay": 0.1, "freeze_projector": 1, "warmup": 0}
    config = settle(options)
    optimizer = make_optimizer(model.trained(), config)
    names = sorted((group["name"], group["weight_decay"]) for group in optimizer.param_groups)
    assert names == [("lm", 0.0), ("lm", 0.1), ("projector", 0.0), ("projector", 0.1)]
    for step, learns in ((1, False), (2, True)):
        rate = set_rates(optimizer, step, 10, config)
        assert [group["lr"] for group in optimizer.param_groups if group["name"] == "lm"] == [
            pytest.approx(rate / 50)
        ] * 2
        assert all(parameter.requires_grad == learns for parameter in model.adapter.parameters())
        assert all(parameter.requires_grad for parameter in model.lm.own_parameters().values())
    assert config.model.gradient_checkpointing == 1 and settle({"train_lm": True}).lr == 2e-5


def test_the_next_run_gets_the_model_as_it_was(home):
    holder = LanguageModelHolder("cpu")
    lm = holder.load(str(home / "lm"), "auto", trained=True)
    unfreeze(lm)
    with torch.no_grad():
        lm.own_parameters()["gpt_neox.embed_in.weight"].add_(1)
    holder.check()
    fresh = holder.load(str(home / "lm"), "auto")
    assert fresh is not lm and not fresh.trained and holder.loaded == 2
    assert (lm.model.get_input_embeddings().weight - fresh.model.get_input_embeddings().weight).abs().min() > 0.9


@pytest.mark.parametrize(
    "options, says",
    [
        ({"train_lm": True, "lora": "r=2"}, "leave --lora out"),
        ({"train_lm": True, "precision": "4bit"}, "--precision 4bit is for frozen weights"),
        ({"precision": "mixed"}, "--precision mixed is for weights that --train-lm trains"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(options, says):
    with pytest.raises(RunError, match=says):
        settle(options)
