"""Stage 2: a run goes on from another's adapter and tunes the language model by LoRA, on questions of several turns."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import save_language_model

from periscope import eval as eval_script
from periscope import inference as live
from periscope import train as train_script
from periscope.adapters.lm.gradient_checkpointing import checkpoint_layers
from periscope.adapters.lm.identity import weights_sha256
from periscope.adapters.lm.language_model import LoraSize
from periscope.adapters.lm.load import load_language_model
from periscope.adapters.lm.lora import add_lora, lora_parameters
from periscope.adapters.model import AdaptedModel, Adapter
from periscope.adapters.projectors import FeatureShape
from periscope.adapters.prompting.prompt import Prompt
from periscope.adapters.prompting.template import Template, default_template
from periscope.errors import AdapterError, RunError
from periscope.exports.__main__ import merged as merge
from periscope.precompute.cli import main as precompute
from periscope.training.config import config_from
from periscope.training.models.language_model_holder import LanguageModelHolder
from periscope.training.run import Run
from periscope.training.step import make_optimizer, set_rates

COLOURS = ("red", "blue", "green", "small")
SHORT = ("--eval-every", "100", "--batch", "6", "--lr", "1e-3")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Vectors with captions, questions of one and two turns about them and of no medium, two language models."""
    place = tmp_path_factory.mktemp("stage2")
    rows = np.random.default_rng(0).standard_normal((40, 12)).astype(np.float32)
    for name, values in (("v", rows), ("w", rows[:, :8])):
        (place / name).mkdir()
        np.save(place / name / "v.npy", values)
        (place / name / "v.txt").write_text("".join(f"a {COLOURS[i % 4]} circle\n" for i in range(40)))
        precompute(args=["--data", str(place / name), "--out", str(place / f"features-{name}"), "--device", "cpu"])

    def turns(*words):
        return [{"role": ("user", "assistant")[k % 2], "content": said} for k, said in enumerate(words)]

    lines = [
        {
            "id": f"q{i}", "media": [f"v.npy/{i:06d}"],
            "turns": turns("<image>\nWhat colour is it?", COLOURS[i % 4], "What shape?", "a circle"),
        }
        for i in range(40)
    ]  # fmt: skip
    lines += [
        {"id": f"t{i}", "media": [], "split": "train", "turns": turns(f"a {COLOURS[i % 4]} fox?", "the lazy dog")}
        for i in range(12)
    ]
    (place / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    save_language_model("llama", place / "lm")
    save_language_model("llama", place / "other", seed=4)
    return place


def trained(path) -> dict[str, torch.Tensor]:
    """All that a checkpoint's adapter folder holds."""
    folder = Path(path) / "adapter"
    whole = load_file(folder / "adapter.safetensors")
    maps = folder / "lora" / "adapter_model.safetensors"
    return whole | (load_file(maps) if maps.is_file() else {})


@pytest.fixture
def first(home, call):
    """A run of stage 1, on captions."""
    if not (home / "runs" / "first").exists():
        model = ("--features", "features-v", "--lm", "lm", "--adapter", "mlp3", "--soft-prompt", "2")
        call(train_script, *model, *SHORT, "--steps", "6", "--delimiters", "[", "]", "--name", "first")
    return "runs/first"


STAGE_2 = ("--text", "questions.jsonl", "--lora", "r=4,alpha=8", "--lora-lr", "1e-2", *SHORT)


@pytest.fixture
def second(home, call, first):
    """A run of stage 2, with its merged model in merged/."""
    if not (home / "runs" / "second").exists():
        call(train_script, "--init", first, *STAGE_2, "--steps", "12", "--save-every", "3", "--freeze-projector", "3",
             "--merge-lora", "merged", "--name", "second")  # fmt: skip
    return "runs/second"


def test_stage_2_goes_on_from_stage_1_and_its_lora_is_pefts(home, call, first, second, capsys):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run = Run.open(Path("runs/second"))
    losses = [row["loss"] for row in run.metrics() if "loss" in row]
    assert len(losses) == 12 and losses[-1] < losses[0] - 0.2
    texts = json.loads((run.path / "steps/000012/adapter/adapter.json").read_text())["training"]["texts"]
    assert texts == 30 + 12  # 10 of the media are held out
    before, after = trained(Run.open(Path(first)).step_folder()), trained(run.step_folder())
    shared = set(before) & set(after)
    assert shared == set(before) and not any(torch.equal(before[name], after[name]) for name in shared)
    assert sum("lora_B" in name and value.abs().max() > 0 for name, value in after.items()) == 14
    begun, model = (live.load_adapted(path)[0] for path in (first, run.path))
    assert model.prompt.template == begun.prompt.template and model.prompt.template.delimiters == ("[", "]")
    assert model.lm.lora == LoraSize(4, 8) and begun.lm.lora is None
    assert not any(parameter.requires_grad for parameter in model.lm.model.parameters())

    ids = torch.arange(9)[None] + 20
    base = AutoModelForCausalLM.from_pretrained("lm").eval()
    with torch.no_grad():
        plain, here = base(ids).logits.clone(), model.lm.model(ids).logits
        theirs = PeftModel.from_pretrained(base, str(run.step_folder() / "adapter" / "lora"))(ids).logits
    torch.testing.assert_close(theirs, here, rtol=1e-5, atol=1e-5)
    assert (plain - here).abs().max() > 1e-2
    call(eval_script, "--run", second, "--max-new-tokens", "3", "--controls", "shuffled")
    assert re.search(r"qa_\w+ +[\d.]+", capsys.readouterr().out)
    card = (run.step_folder() / "adapter" / "README.md").read_text()
    assert "The language model was tuned too" in card and "r=4" in card


def test_the_frozen_model_is_untouched_by_both_stages(call, first, monkeypatch):
    held = LanguageModelHolder("cpu")
    monkeypatch.setattr("periscope.training.models.language_model_holder.LanguageModelHolder", lambda *_: held)
    fresh = weights_sha256(load_language_model("lm").model)
    model = ("--features", "features-v", "--lm", "lm", "--adapter", "mlp3", *SHORT, "--steps", "2")
    call(train_script, *model, "--name", "kept-1")
    assert weights_sha256(held._held.lm.model) == fresh and not lora_parameters(held._held.lm.model)
    assert not any(parameter.requires_grad for parameter in held._held.lm.model.parameters())
    call(train_script, "--init", first, *STAGE_2, "--steps", "2", "--name", "kept-2")
    assert held.loaded == 1 and weights_sha256(held._held.lm.model) == fresh
    changed = [name for name, value in lora_parameters(held._held.lm.model).items() if "lora_B" in name and value.any()]
    assert len(changed) == 14
    learning = {name for name, parameter in held._held.lm.model.named_parameters() if parameter.requires_grad}
    assert len(learning) == 28 and all(".lora_" in name for name in learning)


def test_the_projector_waits_while_it_is_frozen(call, first):
    call(train_script, "--init", first, *STAGE_2, "--steps", "3", "--freeze-projector", "3", "--name", "waits")
    before, after = trained(Run.open(Path(first)).step_folder()), trained("runs/waits/steps/000003")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any("lora_B" in name and value.abs().max() > 0 for name, value in after.items())


@pytest.mark.parametrize("stop", ["000004", "000008"])  # in the frozen steps, and after them
def test_a_resumed_stage_2_ends_in_the_same_bits(stop, home, call, first):
    if not Path("runs/whole").exists():
        call(train_script, "--init", first, *STAGE_2, "--steps", "12", "--save-every", "4", "--freeze-projector", "6",
             "--token-noise", "0.2", "--name", "whole")  # fmt: skip
    pieces = Path(f"runs/pieces-{stop}")
    shutil.copytree("runs/whole", pieces)
    (pieces / "last").write_text(f"{stop}\n")
    for folder in (pieces / "steps").iterdir():
        if folder.name > stop:
            shutil.rmtree(folder)
    call(train_script, "--resume", pieces)
    whole, again = trained("runs/whole/steps/000012"), trained(pieces / "steps/000012")
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)
    losses = [[row["loss"] for row in Run.open(path).metrics() if "loss" in row] for path in ("runs/whole", pieces)]
    assert losses[0] == losses[1] and len(losses[0]) == 12


def test_init_without_lora_is_stage_1_gone_on_and_lora_goes_on_too(call, first, second):
    folder = Run.open(Path(first)).step_folder() / "adapter"
    call(train_script, "--init", folder, "--features", "features-v", *SHORT, "--lr", "0", "--steps", "1",
         "--name", "still")  # fmt: skip
    before, after = trained(folder.parent), trained("runs/still/steps/000001")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    still = ("--text", "questions.jsonl", *SHORT, "--lr", "0", "--lora-lr", "0", "--steps", "1")
    call(train_script, "--init", second, *still, "--name", "tuned-still")
    before, after = trained("runs/second/steps/000012"), trained("runs/tuned-still/steps/000001")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert Run.open(Path("runs/tuned-still")).config.lora.lora == "r=4,alpha=8"
    with pytest.raises(RunError, match="has --lora r=4,alpha=8, not r=8"):
        call(train_script, "--init", second, "--lora", "r=8", "--name", "never")


@pytest.mark.parametrize(
    "flags, says",
    [
        (("--adapter", "mlp4"), "has --adapter mlp3, not mlp4"),
        (("--soft-prompt", "3"), "has --soft-prompt 2, not 3"),
        (("--projector-hidden", "7"), "has --projector-hidden 0, not 7"),
        (("--lm", "other"), "other is not the language model that runs/first was trained with: its weights differ"),
        (("--features", "features-w"), "trained on features of"),
        (("--start-words", "red"), "--start-words begins a new adapter"),
        (("--warm-start", "5"), "--warm-start begins a new adapter"),
        (("--lora", "64"), "isn't of the form r=64,alpha=16"),
        (("--freeze-projector", "5"), "nothing to train without --lora"),
        (("--merge-lora", "m"), "there is no LoRA to merge"),
    ],
)
def test_what_contradicts_the_start_is_refused(flags, says, call, first):
    before = sorted(path.name for path in Path("runs").iterdir())
    given = [] if "--features" in flags else ["--features", "features-v"]
    with pytest.raises((RunError, AdapterError), match=says):
        call(train_script, "--init", first, *given, *flags, "--name", "never")
    assert sorted(path.name for path in Path("runs").iterdir()) == before


def test_a_recipes_second_stage_stays_on_the_first_ones_model(home, call, first, capsys):
    fields = '[train]\nlm = "owner/seven-billion"\nlora = "r=2"\nadapter = "{}"\n'
    for adapter in ("mlp3", "mlp4"):
        (home / f"{adapter}.toml").write_text(fields.format(adapter))
    more = ("--init", first, "--text", "questions.jsonl", *SHORT, "--steps", "1")
    call(train_script, *more, "--recipe", "mlp3.toml", "--name", "by-recipe")
    assert Run.open(Path("runs/by-recipe")).config.lm == "lm"
    said = "note: mlp3.toml is meant for owner/seven-billion, and runs/first was trained with lm"
    assert said in capsys.readouterr().out
    with pytest.raises(RunError, match=r"has --adapter mlp3, and the recipe wants mlp4; .*pass --adapter mlp3"):
        call(train_script, *more, "--recipe", "mlp4.toml", "--name", "never")
    call(train_script, *more, "--recipe", "mlp4.toml", "--adapter", "mlp3", "--name", "by-flag")


def test_a_name_that_is_taken_is_told_before_anything_is_loaded(call, first, monkeypatch):
    monkeypatch.setattr(LanguageModelHolder, "load", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(RunError, match="runs/first exists, and a run is never overwritten"):
        call(train_script, "--features", "features-v", "--lm", "lm", "--name", "first")
    with pytest.raises(RunError, match="was started with lora none, not r=2"):
        call(train_script, "--resume", first, "--lora", "r=2")


def test_text_alone_teaches_lora_and_without_it_is_left_out(home, call, capsys):
    alone = [json.loads(line) for line in (home / "questions.jsonl").read_text().splitlines()][40:]
    mixed = [*alone, *(line for line in map(json.loads, (home / "questions.jsonl").read_text().splitlines()[:40]))]
    (home / "mixed.jsonl").write_text("".join(json.dumps(line) + "\n" for line in mixed))
    (home / "alone.jsonl").write_text("".join(json.dumps(line) + "\n" for line in alone))
    model = ("--features", "features-v", "--lm", "lm", "--adapter", "mlp3", *SHORT, "--steps", "2")
    call(train_script, *model, "--text", "mixed.jsonl", "--name", "stage1-mixed")
    said = capsys.readouterr().out
    assert "30 to learn from" in said and "12 left out: no medium, and only the projector is trained" in said
    call(train_script, *model, "--text", "alone.jsonl", "--lora", "r=2", "--name", "words-alone")
    assert "12 to learn from, 0 held out" in capsys.readouterr().out
    assert any(
        "lora_B" in name and value.abs().max() > 0 for name, value in trained("runs/words-alone/steps/000002").items()
    )
    with pytest.raises(RunError, match="no words to train on"):
        call(train_script, *model, "--text", "alone.jsonl", "--name", "nothing")


def test_lora_over_a_model_in_4_bits(call, first):
    """QLoRA: the run itself ends with a look at the hash of the packed weights."""
    call(train_script, "--init", first, *STAGE_2, "--precision", "4bit", "--steps", "8", "--name", "packed-run")
    losses = [row["loss"] for row in Run.open(Path("runs/packed-run")).metrics() if "loss" in row]
    assert losses[-1] < losses[0] - 0.1
    model, _ = live.load_adapted("runs/packed-run", precision="4bit")
    assert all(parameter.dtype == torch.float32 for parameter in lora_parameters(model.lm.model).values())


def test_a_merged_model_answers_as_its_lora_did(home, first, second):
    model, _ = live.load_adapted(second)
    merged, config = live.load_adapted("merged/adapter", lm="merged")
    assert merged.lm.lora is None and not (home / "merged/adapter/lora").exists() and config.lora is None
    texts = [model.prompt.segments([{"role": "user", "content": "What?"}], ["m"], answer=False, soft_prompt=True)]
    given = {"m": torch.randn(12, generator=torch.Generator().manual_seed(0))}
    assert model.generate(texts, given, 12) == merged.generate(texts, given, 12)
    whole = [model.prompt.segments([{"role": "assistant", "content": "a red fox"}], ["m"], soft_prompt=True)]
    with torch.no_grad():
        losses = [one.loss(whole, given)[0] for one in (model, merged, live.load_adapted(first)[0])]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)
    assert (losses[0] - losses[2]).abs() > 1e-2

    with pytest.raises(AdapterError, match="another language model: its config differs"):
        live.load_adapted("merged/adapter", lm="lm")
    with pytest.raises(AdapterError, match="another language model: its config differs"):
        live.load_adapted(second, lm="merged")
    with pytest.raises(AdapterError, match="merged exists"):
        merge(Path(second), Path("merged"))
    with pytest.raises(AdapterError, match="no LoRA to merge"):
        merge(Path(first), Path("merged-2"))
    with pytest.raises(AdapterError, match="not the language model"):
        merge(Path(second), Path("merged-2"), lm="other")
    packed = load_language_model("lm", precision="4bit")
    packed.model.save_pretrained("packed")
    packed.tokenizer.save_pretrained("packed")
    with pytest.raises(AdapterError, match="packed is stored in 4bit, where a LoRA can't be merged without loss"):
        merge(Path(second), Path("merged-2"), lm="packed")
    assert not Path("merged-2").exists()
    merge(Path(second), Path("merged-2"), precision="bf16")
    assert load_file("merged-2/model.safetensors")["model.norm.weight"].dtype == torch.bfloat16


def test_a_folder_without_its_lora_is_refused(home, second):
    shutil.copytree(Run.open(Path(second)).step_folder() / "adapter", home / "shared")
    assert live.load_adapted(home / "shared")[0].lm.lora
    shutil.rmtree(home / "shared" / "lora")
    with pytest.raises(AdapterError, match=r"holds no adapter_config.json, so it is no LoRA"):
        live.load_adapted(home / "shared")


def prepared(language_model_folder, family="llama") -> AdaptedModel:
    lm = load_language_model(str(language_model_folder(family)))
    torch.manual_seed(3)
    adapter = Adapter("mlp2", FeatureShape("pooled", 1, 6), lm.hidden_size, lm.embedding_rms, soft_prompt=2)
    return AdaptedModel(lm, adapter, Prompt(lm.tokenizer, default_template(lm.tokenizer)))


def test_groups_rates_and_the_frozen_projector(language_model_folder):
    model = prepared(language_model_folder)
    add_lora(model.lm, 2, 2)
    options = {"steps": 10, "lr": 2e-5, "lora_lr": 2e-4, "min_lr": 2e-6, "warmup": 0.1, "weight_decay": 0.1}
    config = config_from({**options, "soft_prompt_lr": 1e-5, "freeze_projector": 2}, "the test")
    optimizer = make_optimizer(model.trained(), config)
    names = sorted((group["name"], group["weight_decay"]) for group in optimizer.param_groups)
    assert names == [("lora", 0.1), ("projector", 0.0), ("projector", 0.1), ("soft prompt", 0.1)]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(parameters) == len(model.trained()) == len(list(model.adapter.parameters())) + 28
    for step, projector, maps, learns in ((1, 2e-5, 2e-4, False), (3, None, None, True), (10, 2e-6, 2e-5, True)):
        rate = set_rates(optimizer, step, 10, config)
        rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
        assert rates["soft prompt"] == 1e-5 and rates["lora"] == pytest.approx(10 * rate)
        if projector:
            assert (rate, rates["lora"]) == (pytest.approx(projector), pytest.approx(maps))
        assert all(parameter.requires_grad == learns for parameter in model.adapter.parameters())
        assert all(parameter.requires_grad for parameter in lora_parameters(model.lm.model).values())


@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_layers_that_run_again_give_lora_the_same_gradient(family, language_model_folder):
    model = prepared(language_model_folder, family)
    torch.manual_seed(0)
    add_lora(model.lm, 4, 8)
    trained = model.trained()
    with torch.no_grad():
        for name, parameter in trained.items():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    texts = [model.prompt.segments([{"role": "assistant", "content": "a red fox"}], ["m"], soft_prompt=True)]
    given, grads = {"m": torch.randn(6)}, []
    for every in (0, 1):
        checkpoint_layers(model.lm, every)
        grads.append(torch.autograd.grad(model.loss(texts, given)[0], list(trained.values())))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))
    assert all(grad.abs().max() > 0 for grad, name in zip(grads[0], trained, strict=True) if "lora_" in name)


def test_one_run_after_another_finds_the_model_without_lora(home):
    holder = LanguageModelHolder("cpu")
    lm = holder.load(str(home / "lm"), "auto")
    before = weights_sha256(lm.model)
    add_lora(lm, 2, 2)
    holder.check()
    assert holder.load(str(home / "lm"), "auto") is lm and lm.lora is None and not lora_parameters(lm.model)
    assert weights_sha256(lm.model) == before
    add_lora(lm, 2, 2)
    with torch.no_grad():
        lm.model.model.layers[0].mlp.up_proj.base_layer.weight[0, 0] += 1
    with pytest.raises(RunError, match="weights changed"):
        holder.check()


@pytest.mark.parametrize("family, style", [("llama", "plain"), ("qwen2", "chat"), ("mistral", "chat")])
def test_every_answer_of_a_conversation_is_learnt(family, style, language_model_folder):
    lm = load_language_model(str(language_model_folder(family)))
    prompt = Prompt(lm.tokenizer, Template(style=style))
    words = ["What colour?", "red", "What shape?", "a circle", "Is it small?", "the lazy dog"]
    turns = [{"role": ("user", "assistant")[k % 2], "content": said} for k, said in enumerate(words)]
    segments = prompt.segments(turns, ["m"])
    said = [lm.tokenizer.decode(part.ids[: -len(prompt.turn_end)]) for part in segments if part.target]
    assert [words.strip() for words in said] == words[1::2]
    assert all(part.ids[-len(prompt.turn_end) :] == prompt.turn_end for part in segments if part.target)
